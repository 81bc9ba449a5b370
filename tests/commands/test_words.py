"""The right words at the right moment: settings, errors before tables, parts of the data, warnings, next commands."""

import argparse
import json
import os
import subprocess
import sys
import typing
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from support import forked

from crypto_lstm.commands import jobs
from crypto_lstm.commands.main import main
from crypto_lstm.commands.parser import make_parser
from crypto_lstm.config import Config, ConfigError, OnMemory
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.profiling.batch_size import fit_to_memory
from crypto_lstm.training.trainer import train
from crypto_lstm.widgets.progress import TrainingProgress, fit_line, wrap_sentences

WORDS = ["timeframe=1h", "sequence_length=12", "future_window=24", "lstm_units=8,4", "dense_units=4", "batch_size=64"]
WORDS += ["epochs=2", "long_tp_pct=2", "short_tp_pct=2", "long_sl_pct=2", "short_sl_pct=2"]


def hourly(rows: int = 3000) -> pd.DataFrame:
    return synthetic_candles(rows, seed=3, timeframe="1h")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A candle file, the folder of a run on its first 2500 candles, and what `train` printed in 80 columns."""
    folder = tmp_path_factory.mktemp("words")
    hourly().head(2500).to_feather(folder / "BTCUSDT-1h.feather")
    hourly().to_feather(folder / "ETH_USDT-1h.feather")
    (folder / "few").mkdir()
    hourly().iloc[1700:2500].reset_index(drop=True).to_feather(folder / "few" / "BTCUSDT-1h.feather")
    words = ["train", "--candles", "BTCUSDT-1h.feather", "--output", "run", "--no-tensorboard", "--set", *WORDS]
    return folder, run_main(folder, *words)


def list_commands() -> list[str]:
    """The commands of the parser."""
    (commands,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return list(commands.choices)


def run_main(folder, *words: str) -> subprocess.CompletedProcess:
    return forked.run(forked.MAIN, *words, cwd=folder, environment={**os.environ, "COLUMNS": "80"})


# settings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--epochs", "2"], "--epochs is a setting: write --set epochs=2"),
        (["train", "--batch-size=64"], "--batch-size is a setting: write --set batch_size=64"),
        (["train", "--lstm-units"], "--lstm-units is a setting: write --set lstm_units=VALUE"),
        (["estimate", "--epoch", "3"], "--epoch is a setting: write --set epochs=3"),
        (["predict", "--epochs", "3"], "this command takes no settings"),
        (["train"], "the following arguments are required: --candles, --output"),
        (["walk-forward"], "the following arguments are required: --candles, --output"),
        (["walk-forward", "--epochs", "2"], "--epochs is a setting: write --set epochs=2"),
        (["walk-forward", "--mode", "sliding"], "invalid choice: 'sliding'"),
    ],
)
def test_a_wrong_option_is_answered_first(words, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err.splitlines()[0]


def test_options_of_a_command_are_not_taken_for_settings():
    assert main(["estimate", "--batch-size", "32", "--set", "epochs=3", "--json"]) == 0


@pytest.mark.parametrize("words", [["train", "--set", "help"], ["estimate", "--set", "epochs=3", "help"], ["settings"]])
def test_the_settings_are_listed_in_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    assert set(Config().as_dict()) <= {line.split()[0] for line in lines if line.strip()}


def test_the_settings_as_json_have_default_and_allowed_values(capsys):
    assert main(["settings", "--json"]) == 0
    settings = {setting["setting"]: setting for setting in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["epochs"]["default"] == 100 and settings["epochs"]["allowed"] == "a whole number of at least 1"
    assert {name: setting["default"] for name, setting in settings.items()} == Config().as_dict()


def test_config_reports_unknown_names_and_bad_values_together():
    with pytest.raises(ConfigError) as caught:
        Config(batchsize=3, epochs=0)
    assert caught.value.settings == ("batchsize", "epochs")
    assert caught.value.faults == (
        "unknown setting 'batchsize'; did you mean batch_size?",
        "epochs must be a whole number of at least 1, got 0",
    )
    with pytest.raises(ConfigError, match="settings are given by name, such as epochs=20; got 3 without a name"):
        Config(3)


def test_the_types_of_choices_name_exactly_what_the_check_allows():
    hints = typing.get_type_hints(Config)
    choices = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}
    known = {"timeframe", "recurrent_dropout", "monitor", "tie", "labels", "scaler", "scale_by", "balance", "rule"}
    assert set(choices) == known | {"balance_by"}
    for name, words in choices.items():
        assert [getattr(Config(**{name: word}), name) for word in words] == list(words)
        with pytest.raises(ConfigError, match=f"one of {', '.join(words)}, got 'other'"):
            Config(**{name: "other"})


def test_what_to_do_without_enough_memory_has_a_literal_type():
    assert {function.__annotations__["on_memory"] for function in (train, fit_to_memory)} == {"OnMemory"}
    assert typing.get_args(OnMemory) == ("refuse", "accumulate", "force")
    for word in typing.get_args(OnMemory):
        fit_to_memory(Config(), word, budget_mb=100_000, base_mb=1.0)
    with pytest.raises(ConfigError, match="one of refuse, accumulate, force, got 'other'"):
        fit_to_memory(Config(), "other")


# errors


def test_an_error_of_a_training_comes_before_any_table(trained, tmp_path):
    folder, _ = trained
    words = ["train", "--candles", "BTCUSDT-1h.feather", "--output", str(tmp_path / "new"), "--set", *WORDS]
    done = run_main(folder, *words, "sequence_length=2400")
    assert done.returncode == 1 and "  " not in done.stderr
    assert [line for line in done.stderr.splitlines() if line != "preparing windows ..."][0].startswith("crypto-lstm")


def test_a_notebook_shows_the_message_first_and_none_of_our_frames():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    with capture_output() as shown:
        shell.run_cell("from crypto_lstm.config import Config\nConfig(epochs=0)")
    lines = shown.stdout.splitlines()
    assert lines[0] == "ConfigError: epochs must be a whole number of at least 1, got 0"
    assert len(lines) <= 5 and "crypto_lstm/" not in shown.stdout and "Config(epochs=0)" in shown.stdout


# after a training


def test_train_ends_with_the_plots_and_the_next_command_that_runs(trained):
    folder, done = trained
    lines = done.stdout.splitlines()
    assert "Look at, in run:" in lines and any("confusion_matrix.png" in line for line in lines)
    assert lines[lines.index("Look at, in run:") + 1].split(":")[0].strip() == "report.html"
    assert lines[-2] == "Next:" and lines[-1].split()[:4] == ["crypto-lstm", "predict", "--model", "run"]
    words = lines[-1].replace("FILE", "BTCUSDT-1h.feather").split()[1:]
    assert run_main(folder, *words).returncode == 0


def test_train_fits_80_columns_and_forecasts_minutes(trained):
    _, done = trained
    assert done.returncode == 0
    tables = [line for line in (done.stdout + done.stderr).splitlines() if "  " in line.strip()]
    progress = [line for line in tables if line.startswith("epoch ")]
    assert max(len(line) for line in tables if line not in progress) <= 80
    assert progress[0].startswith("epoch 1 of 2  loss") and progress[0].endswith("left")
    assert any(line.startswith("measured ") and "an epoch, at most" in line for line in done.stderr.splitlines())


def test_prose_is_wrapped_with_its_indent_and_a_command_is_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "    one two three four five six seven\na  table  that  is  wider  than  this"
    assert wrap_sentences(f"{text}\n  crypto-lstm predict --model run").splitlines() == [
        "    one two three four five",
        "    six seven",
        "a  table  that  is  wider  than  this",
        "  crypto-lstm predict --model run",
    ]


def test_progress_is_one_line_at_any_width(monkeypatch, capsys):
    import keras

    for width in (10, 40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        progress = TrainingProgress()
        progress.is_terminal = True
        callback = progress.as_callback()
        assert isinstance(callback, keras.callbacks.Callback)
        callback.set_params({"epochs": 100, "steps": 7})
        callback.on_epoch_begin(0)
        for batch in range(3):
            progress._last_refresh = 0.0
            callback.on_train_batch_end(batch, {"loss": 1.0986})
        callback.on_epoch_end(0, dict.fromkeys(["loss", "accuracy", "val_loss", "val_accuracy"], 0.3333))
        shown = capsys.readouterr().err
        assert max(map(len, shown.replace("\n", "\r").split("\r"))) < width
        if width >= 40:
            assert "epoch 1 of 100" in shown and "left" in shown
    assert fit_line([(0, "epoch 1 of 3")], 5) == "epoc"


# report and baseline


def test_report_shows_the_verdict_of_train_in_80_columns(trained):
    folder, trained_done = trained
    done = run_main(folder, "report", "run", "--output", "mine.html")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and max(map(len, lines)) <= 80
    assert lines[2] == "Verdict" and lines[4] in trained_done.stdout
    assert lines[-1] == "With pictures: mine.html"
    assert (folder / "mine.html").read_bytes() == (folder / "run" / "report.html").read_bytes()


def test_baseline_forecasts_before_it_starts_and_needs_no_network(trained, tmp_path):
    folder, _ = trained
    words = ["baseline", "--candles", "BTCUSDT-1h.feather", "--output", str(tmp_path / "best.html"), "--set", *WORDS]
    done = run_main(folder, *words)
    tables = [line for line in done.stdout.splitlines() if "  " in line.strip()]
    assert done.returncode == 0 and max(map(len, tables)) <= 80
    assert "2,500 candles: at most about" in done.stderr and "MB in this process" in done.stderr
    assert "logistic regression" in done.stdout and "epoch" not in done.stderr
    assert "<h1>BTCUSDT 1h" in (tmp_path / "best.html").read_text()
    assert run_main(folder, *words[:-1], "epochs=0").returncode == 1
    answer = json.loads(run_main(folder, words[0], "--json", *words[1:]).stdout)
    assert answer["best"] in answer["models"] and list(answer["models"])[:2] == ["class prior", "recent shares"]


# predict


def test_predict_marks_the_parts_of_the_training(trained):
    folder, _ = trained
    done = run_main(
        folder, "predict", "--model", "run", "--candles", "ETH_USDT-1h.feather", "--output", "parts.csv", "--json"
    )
    result = json.loads(done.stdout)
    rows = pd.read_csv(folder / "parts.csv", parse_dates=["date"])
    spans = json.loads((folder / "run" / "metadata.json").read_text())["windows"]["spans"]
    for name in ("train", "validation", "test"):
        dates = rows.loc[rows["part"] == name, "date"]
        assert [dates.min(), dates.max()] == [pd.Timestamp(date, tz="UTC") for date in spans[name]]
    newest = hourly().head(2500)["date"].iloc[-1]
    assert (rows.loc[rows["date"] > newest, "part"] == "new").all() and (rows["part"] == "new").sum() == 500
    assert result["parts"] == rows["part"].value_counts().to_dict()
    assert "candles seem to be of ETHUSDT, the model was trained on BTCUSDT" in " ".join(result["warnings"])
    assert "its decision is about that time" in " ".join(result["warnings"])


def test_predict_warns_when_no_row_is_new(trained):
    folder, _ = trained
    done = run_main(folder, "predict", "--model", "run", "--candles", "BTCUSDT-1h.feather")
    assert "no row is newer than the data of the training" in done.stdout and "seem to be" not in done.stdout


NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def make_model(pair: str = "BTC/USDT:USDT", days_ago: int = 1) -> jobs._Model:
    end = NOW - timedelta(days=days_ago)
    config = Config(pair=pair, timeframe="1h")
    return jobs._Model(config, None, lambda candles: candles, {"train": (end - timedelta(days=9), end)}, end)


@pytest.mark.parametrize(
    ("file", "warned"),
    [
        ("BTC_USDT_USDT-1h-futures.feather", False),
        ("data/BTCUSDT-1m-2024-01.zip", False),
        ("btcusdt.csv", False),
        ("candles.csv", False),
        ("ETHUSDT-1m.csv", True),
        ("Kraken_SOL-EUR.csv", True),
    ],
)
def test_the_name_of_a_file_can_contradict_the_market(file, warned):
    assert bool(jobs._find_other_market(file, make_model())) == warned


@pytest.mark.parametrize(
    ("market", "file", "warned"),
    [
        ("BTC/USDT", "ETHUSDT-1m.csv", False),  # the column says more than the name of the file
        ("BTC-USDT-SWAP", "candles.csv", False),
        ("X:BTCUSDT", "candles.csv", False),
        ("ETH/USDT", "BTCUSDT-1m.csv", True),
        ("SOLUSDT", "candles.csv", True),
        ("binance", "candles.csv", False),
        (None, "ETHUSDT-1m.csv", True),
    ],
)
def test_a_column_of_markets_can_contradict_the_market(market, file, warned):
    assert bool(jobs._find_other_market([file], make_model(), market)) == warned


def test_the_market_of_a_column_stays_with_the_candles(tmp_path):
    path = tmp_path / "candles.csv"
    hourly(30).assign(pair="SOL/USDT").to_csv(path, index=False)
    assert read_candles(path).attrs["market"] == "SOL/USDT"
    hourly(30).to_csv(path, index=False)
    assert read_candles(path).attrs["market"] is None


@pytest.mark.parametrize(
    ("newest", "days_ago", "words"),
    [
        (NOW - timedelta(hours=1), 1, []),
        (NOW - timedelta(hours=30), 2, ["its decision is about that time"]),
        (NOW - timedelta(hours=1), 200, ["the model was trained on candles until"]),
        (NOW - timedelta(days=2), 1, ["its decision is about that time", "no row is newer"]),
    ],
)
def test_the_age_of_candles_and_model_is_warned_of(newest, days_ago, words):
    model = make_model(days_ago=days_ago)
    frame = pd.DataFrame({"date": [pd.Timestamp(newest)]})
    frame["part"] = list(jobs._name_parts(frame["date"], model))
    warnings = jobs._find_age(frame, model)
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


# widths


def is_wide(line: str, width: int) -> bool:
    """Whether a line is wider than the terminal, though it holds no path and no command to copy."""
    has_long_word = max(map(len, line.split()), default=0) > width - 20  # a path, a hash
    return len(line) > width and not has_long_word and not line.lstrip().startswith(("crypto-lstm ", "freqtrade "))


ONE_FOLD = ["--first-train", "100d", "--no-baselines"]
SHOWN = [
    ["settings"],
    ["doctor"],
    ["estimate", "--set", "batch_size=auto"],
    ["estimate", "--set", "epochs=0", "scaler=log", "lstm_units=0"],
    ["verify", "run"],
    ["verify", "run/model.onnx"],
    ["verify", "run/bundle"],
    ["verify", "run/model.keras"],
    ["verify", "missing"],
    ["export", "--model", "run", "--output", "copy-{width}.onnx"],
    ["freqtrade", "--model", "run", "--output", "strategies", "--force"],
    ["paper", "--model", "run", "--output", "paper-{width}", "--candles", "few/BTCUSDT-1h.feather"],
    ["freqtrade", "--model", "run", "--output", "strategies", "--pair", "DOGE/USDT"],
    ["predict", "--model", "run", "--candles", "ETH_USDT-1h.feather"],
    ["predict", "--model", "run", "--candles", "BTCUSDT-1h.feather", "--output", "out-{width}.csv"],
    ["features", "--candles", "short.csv", "--set", "timeframe=1h", "features=r = rsi(close, 14), x = close / close"],
    ["audit", "--candles", "short.csv", "--function", "narrow_columns:add"],
    ["report", "run"],
    ["new", "project-{width}"],
    ["download", "BTCUSDT"],
    ["baseline", "--candles", "BTCUSDT-1h.feather", "--set", *WORDS],
    ["walk-forward", "--candles", "BTCUSDT-1h.feather", "--output", "folds", *ONE_FOLD, "--set", *WORDS],
    ["train", "--candles", "glued.csv", "--output", "new", "--set", "epochs=0"],
    ["train", "--candles", "broken.csv", "--output", "new"],
    ["train", "--candles", "BTCUSDT-1h.feather", "--output", "run", "--no-tensorboard", "--set", *WORDS],
]


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_a_command_fits_the_terminal(words, width, trained, capsys, monkeypatch):
    folder, _ = trained
    hourly(100).drop(columns="volume").to_csv(folder / "broken.csv", index=False)
    hourly(100).to_csv(folder / "short.csv", index=False)
    (folder / "narrow_columns.py").write_text("def add(candles):\n    return candles['close'].shift(-1)\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(width))
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    main([word.format(width=width) for word in words])
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).replace("\r", "\n").splitlines()
    assert lines and not [line for line in lines if is_wide(line, width)]


def test_every_command_is_shown_in_a_narrow_terminal():
    assert {words[0] for words in SHOWN} | {"demo"} == set(list_commands())  # demo shows what train and estimate show


# minutes


def test_estimate_measures_a_step_and_forecasts_minutes():
    config = Config.from_text([*WORDS, "epochs=10"])
    step = jobs._measure_step(config)
    assert step["step_s"] > 0 and step["batch_size"] == 64 and step["steps_timed"] == 5
    text = jobs._describe_step({"step_s": 0.128, "steps_timed": 5, "batch_size": 64}, config)
    assert "0.128 s a step of 64 windows, measured over 5 steps on this machine" in text
    assert "100,000 training windows take about 3 min an epoch, at most 33 min for 10 epochs" in text


def test_estimate_without_a_measurement_names_the_option(monkeypatch):
    arguments = argparse.Namespace(config=None, set=WORDS, budget=4000, batch_size=None, probe=False)
    assert "--probe measures the time and the memory of a step" in jobs.run_estimate(arguments).text
