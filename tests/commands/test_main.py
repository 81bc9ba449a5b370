"""The command line: a bad input gives one message and an exit code, no traceback, and writes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import forked

from crypto_lstm.commands.main import main
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.training.saved_run import load_run

ANSWERS = ("short", "hold", "long", "expected_long", "expected_short", "decision", "filled", "out_of_range")
COMMAND = Path(sys.executable).parent / "crypto-lstm"
SMALL = {"timeframe": "1h", "sequence_length": 12, "future_window": 24, "lstm_units": (8, 4), "dense_units": (4,)}
SMALL |= {"batch_size": 64, "epochs": 2}
WIDE = {"long_tp_pct": 2, "short_tp_pct": 2, "long_sl_pct": 2, "short_sl_pct": 2}
SETTINGS = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in (SMALL | WIDE).items()]

pytestmark = pytest.mark.usefixtures("bare_trainings")


def hourly(rows: int = 3000) -> pd.DataFrame:
    return synthetic_candles(rows, seed=3, timeframe="1h")


@pytest.fixture(scope="module")
def candle_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("candles") / "candles.feather"
    hourly().to_feather(path)
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, candle_file):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--candles", str(candle_file), "--output", str(folder), "--set", *SETTINGS]) == 0
    return folder


def feather(**changes):
    """Writes a feather file of candles; each change is a new column, or a function of the frame."""

    def make(path: Path) -> Path:
        frame = hourly(3000)
        for name, change in changes.items():
            frame = change(frame) if callable(change) else frame.assign(**{name: change})
        frame.to_feather(path)
        return path

    return make


def content(text: str | bytes):
    """Writes a file with this content."""

    def make(path: Path) -> Path:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def at_row(name: str, value: float):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[1500, name] = value
        return frame

    return change


def drop_zone(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(date=frame["date"].dt.tz_localize(None))


def repeat_last(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.tail(1).assign(volume=1.0)], ignore_index=True)


def make_flat(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(open=100.0, high=100.001, low=99.999, close=100.0)


def make_minutes(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(date=pd.date_range("2024-01-01", periods=len(frame), freq="1min", tz="UTC"))


def move_to_future(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(date=frame["date"] + pd.Timedelta(days=36_500))


def cut_feather(path: Path) -> Path:
    path.write_bytes(feather()(path).read_bytes()[:5000])
    return path


BAD_FILES = {
    "missing file": (lambda path: path, "candles.feather"),
    "folder": (empty_folder, "folder"),
    "empty file": (content(""), "empty"),
    "text": (content("dear diary\nnothing happened today\n"), "candles.feather"),
    "cut feather": (cut_feather, "candles.feather"),
    "no volume": (feather(change=lambda frame: frame.drop(columns="volume")), "volume"),
    "NaN": (feather(change=at_row("close", np.nan)), "close"),
    "infinity": (feather(change=at_row("high", np.inf)), "high"),
    "zero price": (feather(change=at_row("low", 0.0)), "low"),
    "negative volume": (feather(change=at_row("volume", -1.0)), "volume"),
    "high below low": (feather(change=at_row("high", 1e-3)), "high"),
    "naive times": (feather(change=drop_zone), "add --timezone UTC"),
    "conflict": (feather(change=repeat_last), "add --on-conflict first"),
    "200 rows": (feather(change=lambda frame: frame.head(200)), "200"),
    "one class only": (feather(change=make_flat), "all three classes"),
    "wrong timeframe": (feather(change=make_minutes), "add --set timeframe=1m"),
    "future": (feather(change=move_to_future), "future"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_candles_are_one_message_and_nothing_is_written(name, tmp_path, capsys):
    write, expected = BAD_FILES[name]
    path = write(tmp_path / "candles.feather")
    before = sorted(tmp_path.rglob("*"))
    code = main(["train", "--candles", str(path), "--output", str(tmp_path / "out"), "--json", "--set", *SETTINGS])
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert code == 1
    assert expected in error["message"]
    assert error["type"].endswith("Error") and error["type"] != "OSError"
    assert error["message"] in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


BAD_SETTINGS = {
    "unknown key": (["--set", "epoch=3"], "did you mean epochs?"),
    "wrong value": (["--set", "dropout_rate=1.5"], "dropout_rate must be in [0, 1), got 1.5"),
    "two faults": (["--set", "epochs=0", "scaler=log"], "2 faults"),
    "no equals sign": (["--set", "epochs"], "key=value"),
    "missing config": (["--config", "nowhere.toml"], "nowhere.toml"),
    "batch too large": (["--set", *SETTINGS, "batch_size=100000"], "Set batch_size to"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_one_message_and_nothing_is_written(name, candle_file, tmp_path, capsys):
    words, expected = BAD_SETTINGS[name]
    code = main(["train", "--candles", str(candle_file), "--output", str(tmp_path / "out"), *words])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert expected in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", ["", "fly", "train", "train --candle x", "estimate --batch-size 0", "demo --depth 3"]
)
def test_a_wrong_option_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    first, second = capsys.readouterr().err.splitlines()  # the error comes first, and not below the whole usage
    assert "error: " in first and second.endswith("--help lists the options")


def test_a_folder_with_other_files_is_not_touched(candle_file, tmp_path, capsys):
    (tmp_path / "model.keras").write_text("mine")
    assert main(["train", "--candles", str(candle_file), "--output", str(tmp_path), "--set", *SETTINGS]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.keras", "mine")]


def test_report_reads_a_run_and_refuses_a_damaged_one(run_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    assert main(["report", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert values["judgement"] == metadata["judgement"] and values["has_record"] and values["unfinished"] is None
    assert main(["verify", str(folder)]) == 0
    page = (folder / "report.html").read_bytes()
    data = (folder / "judgement.npz").read_bytes()
    (folder / "judgement.npz").write_bytes(data[:-1])
    assert main(["report", str(folder)]) == 1
    assert "judgement.npz" in capsys.readouterr().err
    assert main(["verify", str(folder)]) == 1
    (folder / "judgement.npz").write_bytes(data)
    (folder / "report.html").write_text("mine")
    assert main(["report", str(folder)]) == 1
    assert "exists and is no report" in capsys.readouterr().err
    assert (folder / "report.html").read_text() == "mine" and page != b"mine"


def test_a_folder_with_a_run_is_refused_with_the_option_that_resumes_it(run_folder, candle_file, capsys):
    words = ["train", "--candles", str(candle_file), "--output", str(run_folder), "--no-resume", "--set", *SETTINGS]
    assert main(words) == 1
    assert "leave out --no-resume to continue that run" in capsys.readouterr().err


def test_train_writes_all_files(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {
        "best_model_checkpoint.keras", "model.keras", "model.onnx", "bundle", "scaler.json", "config.toml",
        "metadata.json", "history.json", "logs", "training_curves.png", "memory_history.png", "confusion_matrix.png",
        "judgement.npz", "report.html", "price_and_trades.png", "equity.png", "reliability.png", "months.png",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")], "a temporary was left behind"
    metadata = json.loads((run_folder / "metadata.json").read_text())
    assert Config.from_dict(metadata["config"]) == Config(**SMALL, **WIDE)
    assert {"sha256", "candles", "first", "last", "cleaning"} == set(metadata["data"])
    assert metadata["data"]["cleaning"]["format"] == "feather" and metadata["data"]["candles"] == 3000
    assert {"model", "scaler", "config", "history", "memory", "record", "bundle", "onnx"} == set(metadata["sha256"])
    assert {"python", "tensorflow", "keras"} <= set(metadata["versions"])
    assert metadata["test"]["baselines"].keys() == {"majority", "class prior"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_writes_a_row_for_every_full_window(run_folder, candle_file, tmp_path, capsys, suffix):
    target = tmp_path / f"answers{suffix}"
    words = ["predict", "--model", str(run_folder), "--candles", str(candle_file), "--output", str(target), "--json"]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    answers = pd.read_csv(target) if suffix == ".csv" else pd.read_parquet(target)
    assert list(answers.columns) == ["date", "part", *ANSWERS]
    assert len(answers) == summary["rows"] == 3000 - 719 - 11  # 30 days of hours for the mean, 12 for the window
    assert pd.Timestamp(answers["date"].iloc[-1]) == hourly()["date"].iloc[-1]
    long, short = answers["expected_long"], answers["expected_short"]  # percent after costs
    trades = [(long > short) & (long > 0), (short > long) & (short > 0)]
    assert (np.select(trades, ["LONG", "SHORT"], "HOLD") == answers["decision"]).all()
    np.testing.assert_allclose(answers[["short", "hold", "long"]].sum(axis=1), 1)
    assert main(words) == 1  # it exists now, and is not overwritten
    assert "nothing is overwritten" in capsys.readouterr().err


def test_verify_finds_every_changed_file_of_a_run(run_folder, tmp_path, capsys):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    pin = json.loads((copy / "metadata.json").read_text())["sha256"]["bundle"]
    for path in (copy, copy / "bundle", copy / "model.keras"):
        assert main(["verify", str(path), "--json"]) == 0, path
        assert json.loads(capsys.readouterr().out)["ok"] is True
    for path in (copy, copy / "bundle"):
        assert main(["verify", str(path), "--sha256", pin]) == 0
        assert "good" in capsys.readouterr().out
        assert main(["verify", str(path), "--sha256", "0" * 64]) == 1
    beside = ("scaler.json", "config.toml", "model.keras", "model.onnx", "history.json", "memory_history.json")
    manifests = [f"{name}.manifest.json" for name in ("model.keras", "model.onnx", "best_model_checkpoint.keras")]
    others = ("model_metadata.json", "best_model_checkpoint.keras")
    bundled = ("bundle/scaler.json", "bundle/weights.npz", "bundle/manifest.json")
    for name in (*beside, *manifests, *others, *bundled):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        before = sorted((p.name, p.stat().st_mtime_ns) for p in copy.rglob("*"))
        capsys.readouterr()
        assert main(["verify", str(copy)]) == 1, name
        assert "NOT as it was saved" in capsys.readouterr().out
        assert sorted((p.name, p.stat().st_mtime_ns) for p in copy.rglob("*")) == before
        (copy / name).write_bytes(data)
    assert main(["verify", str(copy)]) == 0


def test_predict_accepts_the_bundle_and_checks_its_hash(run_folder, candle_file, tmp_path, capsys):
    words = ["--candles", str(candle_file), "--json"]
    assert main(["predict", "--model", str(run_folder), *words]) == 0
    whole = json.loads(capsys.readouterr().out)
    pin = json.loads((run_folder / "metadata.json").read_text())["sha256"]["bundle"]
    assert main(["predict", "--model", str(run_folder / "bundle"), "--sha256", pin, *words]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["last"] == pytest.approx(whole["last"], abs=1e-5) and same | {"last": 0} == whole | {"last": 0}
    assert main(["predict", "--model", str(run_folder), "--sha256", "0" * 64, *words]) == 1
    assert "you pinned" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_predict_reports_that_a_model_has_expired(run_folder, candle_file, tmp_path, capsys):
    run, day = load_run(run_folder), datetime(2024, 1, 1, tzinfo=UTC)
    export_onnx(run.model, tmp_path / "old.onnx", config=run.config, scaler=run.scaler, expires=day)
    for model, expired in ((tmp_path / "old.onnx", True), (run_folder, False)):
        words = ["predict", "--model", str(model), "--candles", str(candle_file)]
        assert main(words) == 0
        assert ("expired at 2024-01-01T00:00:00+00:00" in capsys.readouterr().out) == expired
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["expired"] is expired


def test_predict_refuses_another_timeframe(run_folder, tmp_path, capsys):
    synthetic_candles(3000, seed=1, edge=0.0).to_feather(tmp_path / "minutes.feather")
    assert main(["predict", "--model", str(run_folder), "--candles", str(tmp_path / "minutes.feather")]) == 1
    message = capsys.readouterr().err
    assert "candles of 1h are expected" in message
    assert "pass candles of the timeframe that the model was trained on" in message


@pytest.mark.parametrize("command", ["estimate", "doctor"])
def test_json_is_alone_on_standard_output(command):
    words = [COMMAND, command, "--json", "--set", "lstm_units=8,4", "batch_size=32"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def press_stop(process: forked.Child) -> None:
    """Send SIGINT, as Ctrl-C does."""
    os.kill(process.pid, signal.SIGINT)


def test_a_signal_ends_training_with_all_files(candle_file, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--candles", candle_file, "--output", run, "--json", "--set", *SETTINGS, "epochs=1000"]
    process = forked.start(forked.MAIN, *words)
    for line in process.stderr:  # the second epoch has ended
        if line.startswith("epoch 2"):
            break
    press_stop(process)
    out, err = process.communicate()
    assert process.returncode == 130
    result = json.loads(out)
    assert result["interrupted"] == "SIGINT" and 2 <= result["epochs_run"] < 1000
    assert all(Path(file).exists() for file in result["files"].values()) and "Traceback" not in err


def test_a_second_signal_stops_at_once_and_names_what_is_left(candle_file, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--candles", candle_file, "--output", run, "--json", "--set", *SETTINGS, "epochs=1000"]
    process = forked.start(forked.MAIN, *words)
    for line in process.stderr:
        if line.startswith("epoch 2"):
            break
    press_stop(process)
    for line in process.stderr:
        if "again" in line or "once more" in line:
            break
    press_stop(process)
    out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    result = json.loads(out)  # either the second came in time, or the files were already being written
    assert "interrupted" in result or "holds what was written so far" in result["error"]["message"]


def test_a_reader_that_closes_the_pipe_early_is_no_error():
    done = subprocess.run(f"{COMMAND} estimate | head -1", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Memory")


@pytest.mark.parametrize("value", [[["x"]], {"a": 1}, "\0", 10**400, float("nan"), None, True, -1, np.array([1, 2])])
def test_an_odd_value_of_any_setting_raises_config_error_alone(value):
    for name in Config().as_dict():
        try:
            Config(**{name: value})
        except ConfigError as error:
            assert name in str(error)


@pytest.mark.parametrize(
    "code",
    [
        "import crypto_lstm.config",
        "import crypto_lstm.memory",
        "import crypto_lstm.commands.main as command; command.main(['--help'])",
    ],
)
def test_start_loads_nothing_heavy(code):
    """`python -m benchmarks start` measures the time; here, the packages that would make it slow are not loaded."""
    heavy = {"tensorflow", "keras", "pandas", "matplotlib", "sklearn", "pyarrow"}
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["tensorflow", "numpy", "psutil", "sklearn"])
def test_doctor_reports_a_package_that_cannot_be_imported(module):
    """The package is installed, but its import fails: the report has a fault with its fix, and no traceback."""
    script = f"""
import sys
for name in [name for name in sys.modules if name.split(".")[0] == {module!r}]:
    del sys.modules[name]
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {module!r}:
            raise ImportError("a shared library is missing")
sys.meta_path.insert(0, Broken())
from crypto_lstm.commands.main import main
sys.exit(main(["doctor", "--json"]))
"""
    done = forked.run(script)
    diagnosis = json.loads(done.stdout)
    faults = {check["name"]: check["remedy"] for check in diagnosis["checks"] if check["state"] == "fault"}
    assert done.returncode == 1 and not diagnosis["healthy"] and "Traceback" not in done.stderr
    assert "--force-reinstall" in faults[{"sklearn": "scikit-learn"}.get(module, module)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["estimate", "--config", ""], "config"),
        (["estimate", "--budget", "9" * 400], "must be a number above 0"),
        (["predict", "--timezone", ""], "time zone ''"),
        (["report", ""], "is no finished run"),
        (["report", "x", "--output", ""], "must end in .html, got ''"),
        (["baseline", "--candles", "x", "--output", ""], "must end in .html, got ''"),
    ],
)
def test_empty_and_endless_values_are_refused(words, expected, run_folder, tmp_path, capsys):
    if words[0] == "predict":
        hourly().assign(date=hourly()["date"].dt.tz_localize(None)).to_csv(tmp_path / "candles.csv", index=False)
        words = [*words, "--model", str(run_folder), "--candles", str(tmp_path / "candles.csv")]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
