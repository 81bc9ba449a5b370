"""Walk-forward: folds equal plain runs, kills and growing histories change nothing, and a flipped edge is found."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from support import forked

from crypto_lstm.backtest import walk_forward as module
from crypto_lstm.backtest.folds import FoldError, walk_forward_folds
from crypto_lstm.backtest.walk_forward import (
    InterruptedFoldError,
    WalkForward,
    cross_validate,
    load_walk_forward,
    walk_forward,
)
from crypto_lstm.callbacks import OutputFolderError
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import DataError, prepare, prepare_history, prepare_rows, split_rows
from crypto_lstm.evaluation.judgement import Answers, list_periods
from crypto_lstm.evaluation.ledger import read_ledger
from crypto_lstm.evaluation.luck import measure_luck, measure_sharpe
from crypto_lstm.evaluation.metrics import confusion_matrix, decision_metrics
from crypto_lstm.storage.manifest import IntegrityError
from crypto_lstm.training.judging import answer_with_baselines
from crypto_lstm.training.run_folder import FILES, ResumeMismatchError
from crypto_lstm.training.saved_run import load_run, verify_run
from crypto_lstm.training.trainer import train

CONFIG = Config(
    timeframe="1h",
    sequence_length=4,
    future_window=24,
    features=("high_change", "low_change", "close_change", "volume_change"),
    lstm_units=(4,),
    dense_units=(),
    batch_size=64,
    epochs=2,
    learning_rate=0.01,
    dropout_rate=0.0,  # its graph takes a fifth of the time; resumes with dropout are tested with those of `train`
    long_tp_pct=2.0,
    long_sl_pct=2.0,
    short_tp_pct=2.0,
    short_sl_pct=2.0,
)
SPANS = {"first_train": "25d", "test": "8d", "step": "8d", "validation": 0.25}
CANDLES = 1030

pytestmark = pytest.mark.usefixtures("bare_trainings")


def make_candles(count: int = CANDLES) -> pd.DataFrame:
    return synthetic_candles(count, seed=3, timeframe="1h")


def run_folds(folder: Path, candles: pd.DataFrame | None = None, **options) -> WalkForward:
    used = make_candles() if candles is None else candles
    ledger = folder.parent / f"ledger-{len(used)}.jsonl"  # a shorter history would count as another trial
    settings = {**SPANS, "warm_start": True, "deterministic": True, "ledger": ledger}
    return walk_forward(used, CONFIG, folder, **{**settings, **options})


class KillAfter(keras.callbacks.Callback):
    """Kill the process after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGKILL)


class KeepFirstWeights(keras.callbacks.Callback):
    """The weights with which each training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[np.ndarray]] = []

    def on_train_begin(self, logs=None):
        self.found.append(self.model.get_weights())


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from backtest.test_walk_forward import KillAfter, make_candles, run_folds
from crypto_lstm.backtest import walk_forward as module
module._measure_step_s = lambda config: 0.01  # the parent measures; here it would only cost time
end, steps = int(sys.argv[1]), int(sys.argv[2])
killers = [KillAfter(steps)] if steps else []
run_folds(Path(sys.argv[4]), make_candles()[:end], callbacks=killers, save_every_batches=1)
"""


def run_child(folder: Path, candles: int, kill_after: int) -> int:
    """Run in a forked child that is killed after some steps (0: never). Its exit code."""
    return forked.run(CHILD, candles, kill_after, Path(__file__).parents[1], folder).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two folds, the weights with which they began, and the log lines."""
    folder = tmp_path_factory.mktemp("whole") / "walk"
    keeper, lines = KeepFirstWeights(), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("crypto_lstm.backtest")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_measure_step_s", lambda config: 0.5)  # the notebook and the command measure it
        result = run_folds(folder, callbacks=[keeper])
    logger.removeHandler(handler)
    return result, keeper.found, lines


def compare(values: dict) -> dict:
    """The result without the SHA-256 of bundles, which contain the time of their creation."""
    kept = json.loads(json.dumps(values))
    for fold in kept["folds"]:
        fold.pop("bundle_sha256")
    return kept


def find_cut(folds: int = 1) -> int:
    """Candles of the history that ends when the labels of the first folds are finished."""
    history = prepare_history(make_candles(), CONFIG)
    dates = history.filled["date"].dt.tz_localize(None).to_numpy()
    found = walk_forward_folds(history.usable, dates, CONFIG, **SPANS)
    return int(found[folds - 1].test[-1]) + CONFIG.future_window + 1


def test_a_fold_equals_a_plain_training_on_the_same_rows(whole, tmp_path):
    result, _, _ = whole
    candles = make_candles(find_cut())
    history = prepare_history(candles, CONFIG)
    rows = result.folds[0].rows
    purge_gap = CONFIG.future_window + CONFIG.sequence_length - 1
    count = len(history.usable)
    shares = {"test_split": rows["test"] / count, "validation_split": (rows["validation"] + purge_gap) / count}
    plain = CONFIG.replace(**shares)
    assert [len(part) for part in split_rows(history.usable, plain)] == [
        rows[name] for name in ("train", "validation", "test")
    ]
    run = train(candles, plain, tmp_path / "run", tensorboard=False, deterministic=True, ledger=tmp_path / "ledger")
    for expected, answered in zip(run.answers, result.answers, strict=True):
        assert expected.name == answered.name
        for name in ("raw", "probabilities", "decisions"):
            np.testing.assert_array_equal(getattr(answered, name)[: rows["test"]], getattr(expected, name))
    assert result.folds[0].balanced_accuracy == run.judgement.model.balanced_accuracy


def test_a_fold_is_a_run_folder_and_a_warm_start_is_told(whole):
    result, weights, _ = whole
    folders = [result.output_dir / fold.folder_name for fold in result.folds]
    assert [folder.name for folder in folders] == ["fold-00", "fold-01"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} >= set(FILES.values()) - {"logs"}
        assert verify_run(folder).ok
    first = load_run(folders[0])
    for begun, ended in zip(weights[1], first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(begun, ended)
    facts = [json.loads((folder / "metadata.json").read_text())["identity"]["fold"] for folder in folders]
    assert [fact["warm_start"] for fact in facts] == [None, {"fold": 0, "bundle": first.bundle.sha256}]
    assert [fold.warm_start for fold in result.folds] == [None, 0]


def test_the_forecast_comes_first_and_the_time_left_after_each_fold(whole):
    result, _, lines = whole
    assert lines[0].startswith("Forecast: 2 folds to train, at most ")
    steps = sum(-(-fold.rows["balanced"] // CONFIG.batch_size) for fold in result.folds) * CONFIG.epochs
    assert lines[0].endswith(f"at most {steps} steps of 64 windows.")
    assert lines[1].startswith(f"Time: at most {steps * 0.5:.1f} s (0.500 s a step")
    assert lines[3].startswith("Memory: about ")
    assert any("left, 1 folds to train" in line for line in lines)


def test_later_candles_and_kills_change_no_fold(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_measure_step_s", lambda config: 0.01)
    result, _, _ = whole
    folder = tmp_path / "walk"
    assert run_child(folder, find_cut(), 0) == 0  # the history ends with the labels of the first fold
    assert len(load_walk_forward(folder).folds) == 1
    assert run_child(folder, CANDLES, 6) == -signal.SIGKILL  # in the second epoch of the second fold
    assert (folder / "fold-01" / "state").is_dir() and not (folder / "fold-01" / "metadata.json").exists()
    first = (folder / "fold-00" / "metadata.json").stat().st_mtime_ns
    again = run_folds(folder, save_every_batches=1)
    assert compare(again.as_dict()) == compare(result.as_dict())
    assert (folder / "fold-00" / "metadata.json").stat().st_mtime_ns == first
    for expected, answered in zip(result.answers, again.answers, strict=True):
        np.testing.assert_array_equal(answered.raw, expected.raw)


def test_a_result_is_read_again_and_damage_is_found(whole, caplog):
    result, _, _ = whole
    loaded = load_walk_forward(result.output_dir)
    assert loaded.as_dict() == result.as_dict() and str(loaded) == str(result)
    assert max(map(len, str(loaded).splitlines())) <= 80
    loaded.plot()
    damaged = result.output_dir / "answers" / "fold-01.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    again = run_folds(result.output_dir)
    assert again.as_dict() == result.as_dict() and "the answers of a fold are computed again" in caplog.text
    saved = result.path.read_text()
    for broken in ("{}", saved[:99], saved.replace('"epochs": 2,\n      "balanced', '"balanced')):
        result.path.write_text(broken)
        with pytest.raises(IntegrityError):
            load_walk_forward(result.output_dir)
    result.path.write_text(saved)


def test_other_settings_and_candles_are_refused(whole):
    result, _, _ = whole
    before = {path: path.stat().st_mtime_ns for path in result.output_dir.rglob("*")}
    with pytest.raises(ResumeMismatchError, match="folds.embargo is 0 there and 5 here"):
        run_folds(result.output_dir, embargo=5)
    with pytest.raises(ResumeMismatchError, match="warm_start is True there and False here"):
        run_folds(result.output_dir, warm_start=False)
    other = make_candles()
    other.loc[100, "volume"] *= 2
    with pytest.raises(ResumeMismatchError, match=r"data\.sha256 is .* there"):
        run_folds(result.output_dir, other)
    with pytest.raises(OutputFolderError, match="holds no walk-forward or cross-validation run"):
        run_folds(result.output_dir / "fold-00")
    changed = [path for path, time in before.items() if path.is_file() and path.stat().st_mtime_ns != time]
    assert changed == []


@pytest.mark.parametrize(
    ("candles", "options", "error", "words"),
    [
        (make_candles(700), {}, FoldError, "walk-forward needs at least"),
        (make_candles(), {"first_train": "3d"}, FoldError, "first_train"),
        (make_candles(), {"test": "20d"}, FoldError, "step must be at least test"),
        (make_candles(), {"mode": "sliding"}, FoldError, "mode must be one of expanding, rolling"),
        (make_candles(), {"step": "8 days"}, FoldError, "expected a duration"),
        (make_candles().assign(open=1.0, high=1.0, low=1.0, close=1.0), {}, DataError, "fold 0: the training part"),
    ],
)
def test_folds_that_do_not_fit_write_nothing(candles, options, error, words, tmp_path):
    with pytest.raises(error, match=words):
        run_folds(tmp_path / "walk", candles, **options)
    assert not (tmp_path / "walk").exists()


def test_a_folder_without_a_result_is_no_walk_forward(tmp_path):
    with pytest.raises(OutputFolderError, match="run the same call again"):
        load_walk_forward(tmp_path)


def test_a_stopped_fold_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_measure_step_s", lambda config: 0.01)
    monkeypatch.setattr(module, "train_rows", lambda *_, **__: SimpleNamespace(interrupted="SIGINT"))
    words = "SIGINT stopped the training of fold 0: the same call resumes"
    with pytest.raises(InterruptedFoldError, match=words) as error:
        run_folds(tmp_path / "walk")
    assert (error.value.number, error.value.cause) == (0, "SIGINT")


# an edge whose sign flips


def make_flipping_market(count: int = 10_000, strength: float = 0.35) -> pd.DataFrame:
    """Hourly candles with momentum in the first half and mean reversion in the second."""
    rng = np.random.default_rng(5)
    noise = 0.004 * rng.standard_normal(count)
    returns = np.zeros(count)
    for row in range(count):
        push = strength * returns[max(row - 6, 0) : row].sum() / 2
        sign = 1 if row < count // 2 else -1
        returns[row] = noise[row] + np.clip(sign * push, -0.004, 0.004)
    close = 100 * np.exp(np.cumsum(returns - returns.mean()))
    opening = np.concatenate([[100.0], close[:-1]])
    dates = pd.date_range("2022-01-01", periods=count, freq="h", tz="UTC", unit="ns")
    high, low = np.maximum(opening, close) * 1.0005, np.minimum(opening, close) * 0.9995
    volume = rng.uniform(1, 2, count)
    return pd.DataFrame({"date": dates, "open": opening, "high": high, "low": low, "close": close, "volume": volume})


def measure_logistic(answers: list[Answers], labels: np.ndarray) -> float:
    found = next(answered for answered in answers if answered.name == "logistic regression")
    return float(decision_metrics(confusion_matrix(labels, found.raw.argmax(axis=1)))["balanced_accuracy"])


def test_rolling_folds_find_an_edge_whose_sign_flips_and_one_split_does_not():
    barriers = {"long_tp_pct": 0.8, "long_sl_pct": 0.8, "short_tp_pct": 0.8, "short_sl_pct": 0.8}
    config = CONFIG.replace(future_window=6, **barriers)
    market = make_flipping_market()
    single = prepare(market, config.replace(test_split=0.4))
    once = measure_logistic(answer_with_baselines(single), single.test.labels)
    history = prepare_history(market, config)
    dates = history.filled["date"].dt.tz_localize(None).to_numpy()
    spans = {"first_train": "60d", "test": "40d", "step": "40d"}
    folds = walk_forward_folds(history.usable, dates, config, mode="rolling", **spans)
    parts, labels = [], []
    for fold in folds:
        data = prepare_rows(history, (fold.train, fold.validation, fold.test), config)
        parts.append(answer_with_baselines(data))
        labels.append(data.test.labels)
    joined = [Answers.join(models) for models in zip(*parts, strict=True)]
    rolling = measure_logistic(joined, np.concatenate(labels))
    assert once < 0.36 and rolling > 0.42, (once, rolling)


def test_cross_validation_answers_every_row_once_in_each_path(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_measure_step_s", lambda config: 0.01)
    monkeypatch.setattr(module, "_train_fold", answer_at_random)
    candles, ledger = make_candles(1000), tmp_path / "ledger.jsonl"
    options = {"groups": 6, "test_groups": 2, "ledger": ledger}
    found = cross_validate(candles, CONFIG.replace(batch_size=32), tmp_path / "cv", **options)
    assert (len(found.folds), len(found.paths)) == (15, 5)
    usable = prepare_history(candles, CONFIG).usable
    assert [path.rows for path in found.paths] == [len(usable)] * 5
    assert sum(fold.rows["test"] for fold in found.folds) == 5 * len(usable)
    saved = json.loads((tmp_path / "cv" / "cross_validation.json").read_text())
    assert saved == json.loads(json.dumps(found.as_dict()))
    assert max(map(len, str(found).splitlines())) <= 80 and "15 models, 5 paths" in str(found)
    again = cross_validate(candles, CONFIG.replace(batch_size=32), tmp_path / "cv", **options)  # the answers are read
    assert again.as_dict() == found.as_dict()
    (entry,) = read_ledger(ledger)  # one for 5 paths, and none more for the second call
    settings = {name: value for name, value in found.settings.items() if name != "config"}
    assert entry.changes["cross_validation"] == settings and settings["folds"]["groups"] == 6
    ratios = [measure_sharpe(list_periods(path.model.simulation)).sharpe for path in found.paths]
    assert entry.sharpe.sharpe in ratios and [path.luck.trials for path in found.paths] == [1] * 5


def test_a_cross_validation_is_one_trial_among_others(tmp_path, monkeypatch):
    """Another number of groups is another trial, and the deflated Sharpe ratio counts both, with their variance."""
    monkeypatch.setattr(module, "_measure_step_s", lambda config: 0.01)
    monkeypatch.setattr(module, "_train_fold", answer_at_random)
    candles, ledger = make_candles(1000), tmp_path / "ledger.jsonl"
    found = {}
    for groups in (4, 5, 4):
        folder = tmp_path / f"cv{groups}"
        config = CONFIG.replace(batch_size=32)
        found[groups] = cross_validate(candles, config, folder, groups=groups, test_groups=1, ledger=ledger)
    entries = read_ledger(ledger).entries
    assert len(entries) == 2 and entries[0].settings != entries[1].settings
    sharpes = [entry.sharpe.sharpe for entry in entries]
    (path,) = found[4].paths
    returns = list_periods(path.model.simulation)
    assert path.luck == measure_luck(returns, 2, float(np.var(sharpes, ddof=1)))
    assert path.luck.deflated < measure_luck(returns, 1, 0.0).deflated


def answer_at_random(backtest, fold, history, facts, parent):
    """Random probabilities in place of a training."""
    raw = np.random.default_rng(fold.number).dirichlet((1, 1, 1), len(fold.test))
    answers = Answers("network", raw, raw, raw.argmax(axis=1).astype(np.int8))
    rows = {name: len(part) for name, part in fold.parts.items()}
    spans = {name: list(span) for name, span in fold.spans.items()}
    result = module.FoldResult(fold.number, spans, rows, 1, 0.3, 1.1, 0, 0.0, None, "0" * 64)
    return module._FoldAnswers(result, (answers,))
