"""A rolling prior: plain loops, batch, stream, files and judgement agree to the bit, and nothing is known too early."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import CLASSES, HOLD, LONG, SHORT, Config, ConfigError
from crypto_lstm.data.candle_input import StreamError
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.feature_stream import FeatureStream
from crypto_lstm.data.market_scaler import MarketScaler
from crypto_lstm.data.markets import prepare
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import count_finished_labels, prepare_history, prepare_rows
from crypto_lstm.evaluation.ledger import fingerprint_settings
from crypto_lstm.evaluation.pipeline_audit import audit_pipeline
from crypto_lstm.inference.bundle import BundleError, load_bundle, save_bundle
from crypto_lstm.inference.calibration import Calibration, CalibrationError, PriorWindow
from crypto_lstm.inference.onnx_file import OnnxFileError, export_onnx
from crypto_lstm.inference.policy import DecisionPolicy, PolicyError
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.inference.rule import TradeRule
from crypto_lstm.training.judging import judge_model
from crypto_lstm.training.saved_run import predict_candles

CONFIG = Config(
    timeframe="1h",
    sequence_length=4,
    future_window=6,
    features=("high_change", "low_change", "close_change", "volume_change"),
    long_tp_pct=1.0,
    long_sl_pct=0.8,
    short_tp_pct=1.2,
    short_sl_pct=0.9,
    max_gap_minutes=180,
    rolling_prior="3d",
    lstm_units=(4,),
    dense_units=(),
    batch_size=32,
)
BREATHING = CONFIG.replace(barrier_scale="100 * std(pct(close) / 100, 1d)")
CALIBRATION = Calibration((1 / 3, 1 / 3, 1 / 3), (0.3, 0.35, 0.35), temperature=1.3, biases=(0.1, -0.2, 0.1))
RULE = TradeRule("expected_value", ((-0.5, -0.1, 1.0), (1.2, 0.35, -0.5)), 0.2, 0.04, (0.3, 0.35, 0.35))
WINDOW = PriorWindow(6, 72, 36)
POLICY = DecisionPolicy(CALIBRATION, RULE, WINDOW)
NAMES = [name.lower() for name in CLASSES]
ANY_AGE: dict[str, Any] = {"max_age_candles": float("inf")}


def make_candles(count: int = 700, seed: int = 4) -> pd.DataFrame:
    """Hourly candles with gaps that are filled, and one that is too long."""
    rng = np.random.default_rng(seed)
    candles = synthetic_candles(count, seed=seed, timeframe="1h")
    kept = (rng.random(count) > 0.1) & ((candles.index < count // 2) | (candles.index > count // 2 + 9))
    return candles[kept | (candles.index >= count - 4)].reset_index(drop=True)


CANDLES = make_candles()


class Formula:
    """A network that answers from the sum of a window, each window by itself."""

    def predict(self, windows: np.ndarray) -> np.ndarray:
        shares = [np.exp([float(window.sum()), 0.3, float(window[-1, 0])]) for window in np.tanh(windows)]
        return np.array([share / share.sum() for share in shares]).reshape(-1, len(CLASSES))


def make_predictor(
    config: Config = CONFIG, markets: tuple[str, ...] = (), policy: DecisionPolicy = POLICY
) -> Predictor:
    width = len(config.features)
    scaler: Any = Scaler("none", config.features, (0.0,) * width, (1.0,) * width, 1e6)
    if markets:
        scaler = MarketScaler("all", markets, (scaler,))
    network: Any = Formula()
    return Predictor(Path("formula"), config, {"expires": None}, "0" * 64, True, 0.0, policy, network, scaler)


# ---------------------------------------------------------------- a plain loop


def label_plainly(filled: pd.DataFrame, row: int, config: Config) -> int:
    """The class of a row, candle by candle, without NumPy."""
    entry = float(filled["close"].iloc[row])
    wins = {}
    for side, sign in (("long", 1), ("short", -1)):
        target = entry * (1 + sign * getattr(config, f"{side}_tp_pct") / 100)
        stop = entry * (1 - sign * getattr(config, f"{side}_sl_pct") / 100)
        for later in range(1, config.future_window + 1):
            high, low = float(filled["high"].iloc[row + later]), float(filled["low"].iloc[row + later])
            is_stopped = low <= stop if side == "long" else high >= stop
            is_won = high >= target if side == "long" else low <= target
            if is_stopped:
                break
            if is_won:
                wins[side] = later
                break
    if "long" in wins and wins["long"] <= wins.get("short", 10**9):
        return LONG
    return SHORT if "short" in wins else HOLD


def find_priors_plainly(candles: pd.DataFrame, config: Config) -> dict[pd.Timestamp, list[float]]:
    """The prior at each candle, from the labels that are finished there."""
    filled = fill_gaps(candles, config.max_gap_minutes, config.timeframe)
    segment, horizon, span = filled["segment"].tolist(), config.future_window, config.prior_candles
    labels: list[int | None] = []
    for row in range(len(filled) - horizon):
        is_whole = segment[row] == segment[row + horizon]
        labels.append(label_plainly(filled, row, config) if is_whole else None)
    priors = {}
    for now, date in enumerate(filled["date"]):
        counted = labels[max(now - horizon - span + 1, 0) : max(now - horizon + 1, 0)]
        known = [label for label in counted if label is not None]
        prior = list(CALIBRATION.prior)
        if len(known) >= 36:
            prior = [(known.count(k) + horizon * prior[k]) / (len(known) + float(horizon)) for k in range(3)]
        priors[date] = prior
    return priors


def test_predict_and_update_have_the_prior_of_a_plain_loop_to_the_bit():
    priors = find_priors_plainly(CANDLES, CONFIG)
    assert len({tuple(prior) for prior in priors.values()}) > 200
    raw = make_predictor(CONFIG.replace(rolling_prior=None), policy=DecisionPolicy()).predict(CANDLES)
    batch = make_predictor().predict(CANDLES)
    expected = {}
    for number, date in enumerate(batch["date"]):
        answer, opened = np.array([raw[name][number] for name in NAMES]), pd.Timestamp(date, tz="UTC")
        expected[opened] = CALIBRATION.apply(answer, priors[opened]).tolist()
    got = np.stack([batch[name] for name in NAMES], axis=1)
    assert got.tolist() == list(expected.values())
    live, found = make_predictor().warm_up(CANDLES[:150]), 0
    for candle in CANDLES[150:].to_dict("records"):
        decision = live.update(candle, **ANY_AGE)
        if decision.probabilities is not None:
            found += 1
            assert list(decision.probabilities.values()) == expected[candle["date"]]
    assert found > 300


@pytest.mark.parametrize("config", [CONFIG, BREATHING, CONFIG.replace(tie="target", long_sl_pct=5.0)])
def test_feed_in_parts_late_candles_and_a_restart_change_no_bit(config, tmp_path):
    """Parts of all sizes, candles that come late, and a stream that is saved and loaded again."""
    whole = make_predictor(config).predict(CANDLES)
    decisions = {}
    live = make_predictor(config).warm_up(CANDLES[:200])
    rows = CANDLES[200:].to_dict("records")
    rows[40], rows[41] = rows[41], rows[40]  # a late candle
    for number, candle in enumerate(rows):
        if number in (30, 90):  # with labels of candles before and after the long gap
            live.save_state(tmp_path / "state.npz")
            live = make_predictor(config).load_state(tmp_path / "state.npz")
        decisions[candle["date"]] = live.update(candle, **ANY_AGE)
    assert [live.decide(CANDLES, **ANY_AGE).probabilities] == [decisions[rows[-1]["date"]].probabilities]
    for number, date in enumerate(pd.DatetimeIndex(whole["date"], tz="UTC")):
        decision = decisions.get(date)
        if decision is not None and decision.probabilities is not None:
            assert list(decision.probabilities.values()) == [whole[name][number] for name in NAMES]
            assert decision.action == whole["decision"][number]
    assert sum(decision.probabilities is not None for decision in decisions.values()) > 250


def test_each_market_has_a_prior_of_its_own():
    """`update_many` equals `update`, and a market equals a model of this market alone."""
    candles = {name: make_candles(300, seed) for name, seed in (("A/B", 5), ("C/D", 6))}
    both, each = (make_predictor(markets=tuple(candles)) for _ in range(2))
    alone = {name: make_predictor() for name in candles}
    for name, frame in candles.items():
        both.warm_up(name, frame[:-20])
        each.warm_up(name, frame[:-20])
        alone[name].warm_up(frame[:-20])
    for place in range(-20, 0):
        given = {name: frame.iloc[place].to_dict() for name, frame in candles.items()}
        decisions = both.update_many(given, **ANY_AGE)
        for name, candle in given.items():
            assert decisions[name] == each.update(name, candle, **ANY_AGE) == alone[name].update(candle, **ANY_AGE)
    assert decisions["A/B"] != decisions["C/D"]


# ---------------------------------------------------------------- the start of a stream


def test_too_few_labels_give_the_prior_of_the_training_and_say_so():
    plain = make_predictor(policy=replace(POLICY, rolling=None), config=CONFIG.replace(rolling_prior=None))
    few, enough = (synthetic_candles(count, seed=1, timeframe="1h") for count in (36 + 6 - 1, 36 + 6))
    decision = make_predictor().decide(few, **ANY_AGE)
    assert decision.probabilities == plain.decide(few, **ANY_AGE).probabilities
    words = "35 labels are finished, and the rolling prior needs 36: the prior is that of the training"
    assert words in decision.reason
    decision = make_predictor().decide(enough, **ANY_AGE)
    assert decision.probabilities != plain.decide(enough, **ANY_AGE).probabilities and "labels" not in decision.reason


def test_the_warm_up_holds_all_that_a_decision_depends_on():
    """Older candles than `history_candles` do not change a decision."""
    candles = synthetic_candles(1200, seed=2, timeframe="1h")
    needed = CONFIG.replace(rolling_prior="32d").history_candles
    assert needed == 32 * 24 + 6 and CONFIG.history_candles == 720 + 4
    config = CONFIG.replace(rolling_prior="32d")
    predictor = make_predictor(config, policy=replace(POLICY, rolling=PriorWindow.from_config(config)))
    short, long = (predictor.decide(candles.tail(count), **ANY_AGE) for count in (needed, 1200))
    assert short.probabilities == long.probabilities
    assert predictor.decide(candles.tail(needed - 2), **ANY_AGE).probabilities != long.probabilities


DAMAGES = {
    "labels of no class": {"label_classes": lambda array: np.where(array == LONG, 3, array).astype(np.int8)},
    "more labels than candles": {"label_classes": lambda array: np.zeros_like(array)},
    "values that no candle has": {"label_prices": lambda array: np.where(array == array[-2, 0], -1.0, array)},
    "candles of another segment": {"label_prices": lambda array: np.nan_to_num(array, nan=1.0)},
    "candles that do not end with the newest": {"label_prices": lambda array: np.roll(array, 1, axis=0)},
    "a scale of the barriers that is not above": {"label_prices": lambda array: array * [1, 1, 1, 0.5]},
    "or of other shapes": {"label_classes": lambda array: array[1:]},
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_state_is_refused(words):
    count = 20 if words == "more labels than candles" else 4 if "segment" in words else 60
    stream = FeatureStream(CONFIG)
    stream.feed(synthetic_candles(count, seed=3, timeframe="1h"))
    state = stream.state_dict()
    ((name, damage),) = DAMAGES[words].items()
    with pytest.raises(StreamError, match=words):
        FeatureStream(CONFIG).load_state_dict({**state, name: damage(state[name])})
    with pytest.raises(StreamError, match="feed the history anew"):
        FeatureStream(CONFIG.replace(rolling_prior=None)).load_state_dict(state)
    FeatureStream(CONFIG).load_state_dict(state)


def test_a_stream_keeps_the_same_bytes_however_long_it_runs():
    sizes = []
    for count in (200, 2000):
        stream = FeatureStream(BREATHING)
        stream.feed(synthetic_candles(count, seed=3, timeframe="1h"))
        sizes.append({name: array.nbytes for name, array in stream.state_dict().items()})
    assert sizes[0] == sizes[1] and sizes[0]["label_classes"] == 72


# ---------------------------------------------------------------- training and judgement


def answer_at_random(data, name: str, skill: float = 0.0) -> np.ndarray:
    labels = data.outcomes_of(name)["label"].to_numpy()
    raw = np.random.default_rng(len(name)).dirichlet((4, 4, 4), len(labels))
    raw[np.arange(len(labels)), labels] += skill
    return raw / raw.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("config", [CONFIG, BREATHING])
def test_the_judged_rows_know_the_labels_that_a_bot_knows(config):
    """The counts of validation and test are those of a stream at the same candles."""
    candles = make_candles(900, 7)
    data = prepare(candles, config)
    stream = FeatureStream(config)
    fed = stream.feed(candles)
    found = count_finished_labels(data)
    assert set(found) == {"validation", "test"}
    for name, counts in found.items():
        times = data.dates_of(name).dt.as_unit("ns").astype("int64").to_numpy()
        assert counts.tolist() == fed.finished[np.searchsorted(fed.times, times)].tolist()
        assert counts.sum(axis=1).max() == 72
    assert count_finished_labels(prepare(candles, config.replace(rolling_prior=None))) == {}


def test_a_fold_of_a_walk_forward_run_knows_the_same_labels_whatever_comes_later():
    """A history that is cut after the labels of a test part has the counts of the whole one."""
    history = prepare_history(make_candles(900, 7), CONFIG)
    rows = tuple(history.usable[start : start + 100] for start in (100, 230, 360))
    end = int(rows[2][-1]) + CONFIG.future_window + 1
    found = [count_finished_labels(prepare_rows(one, rows, CONFIG)) for one in (history, history.cut(end, CONFIG))]
    for name, counts in found[0].items():
        assert counts.tolist() == found[1][name].tolist() and len(counts) == 100


def test_of_several_markets_each_counts_its_own_labels():
    candles = {"A/B": make_candles(900, 7), "C/D": make_candles(800, 8)}
    data = prepare(candles, CONFIG)
    owners = data.find_markets("test")
    for number, frame in enumerate(candles.values()):
        fed = FeatureStream(CONFIG).feed(frame)
        own = owners == number
        times = data.dates_of("test")[own].dt.as_unit("ns").astype("int64").to_numpy()
        expected = fed.finished[np.searchsorted(fed.times, times)]
        assert count_finished_labels(data)["test"][own].tolist() == expected.tolist()


def test_a_prior_that_rolls_is_better_where_the_class_shares_drift(tmp_path):
    """The market alternates between calm and volatile every two weeks. The network can't see the turns."""
    rng = np.random.default_rng(1)
    candles = synthetic_candles(6000, seed=9, timeframe="1h")
    factor = np.where(np.arange(6000) // 336 % 2, 2.0, 0.3)
    moves = np.diff(np.log(candles["close"]), prepend=np.log(candles["close"].iloc[0])) * factor
    close = 100 * np.exp(np.cumsum(moves))
    before = np.concatenate([[100.0], close[:-1]])
    spread = 0.001 * factor * rng.random(6000)
    candles = candles.assign(open=before, close=close)
    candles["high"] = np.maximum(before, close) * (1 + spread)
    candles["low"] = np.minimum(before, close) * (1 - spread)
    losses = {}
    for span in (None, "3d"):
        config = CONFIG.replace(rolling_prior=span)
        data = prepare(candles, config)
        answers = [answer_at_random(data, name, 0.05) for name in ("validation", "test")]
        judged = judge_model(candles, data, *answers, "0" * 64, tmp_path / "ledger", baselines=False)
        losses[span] = judged.judgement.model.log_loss
        assert (judged.fit.policy.rolling is None) == (span is None)
    assert losses["3d"] < losses[None] - 0.05, losses


# ---------------------------------------------------------------- nothing of the future


def test_later_candles_change_no_earlier_decision():
    """The history is cut off, or goes on as another market: the bits before are the same."""
    whole = make_predictor().predict(CANDLES)
    cut = CANDLES["date"].iloc[400]
    other = CANDLES.copy()
    columns = ["open", "high", "low", "close"]
    other.loc[401:, columns] = 1.7 * CANDLES[columns].iloc[401:].to_numpy()[::-1]
    for candles in (CANDLES[:401], other):
        found = make_predictor().predict(candles)
        until = int(np.count_nonzero(pd.DatetimeIndex(found["date"], tz="UTC") <= cut))
        assert until > 250
        for name in [*NAMES, "decision", "expected_long"]:
            assert found[name][:until].tolist() == whole[name][:until].tolist()


def test_the_audit_of_the_pipeline_holds_the_rolling_prior():
    audit = audit_pipeline(synthetic_candles(900, seed=3, timeframe="1h"), CONFIG, places=2)
    assert audit.passed and "stage: rolling prior" in [column.name for column in audit.columns]


# ---------------------------------------------------------------- files and settings


def test_files_carry_the_window_and_every_way_decides_the_same(tmp_path):
    from crypto_lstm.architecture import build_model

    run = SimpleNamespace(config=CONFIG, model=build_model(CONFIG), data=prepare(CANDLES, CONFIG), policy=POLICY)
    save_bundle(run, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    export_onnx(bundle, tmp_path / "model.onnx")
    predictor = Predictor.load(tmp_path / "model.onnx")
    assert bundle.policy == predictor.policy == POLICY
    assert "prior of the labels of the last 72 candles" in str(bundle.policy)
    table = predict_candles(bundle.model, bundle.scaler, CONFIG, CANDLES, bundle.policy)
    batch = predictor.predict(CANDLES)
    np.testing.assert_allclose(np.stack([batch[name] for name in NAMES], axis=1), table[NAMES], rtol=0, atol=1e-5)
    decision, by_keras = (way.decide(CANDLES, **ANY_AGE) for way in (predictor, bundle))
    assert list(decision.probabilities.values()) == [batch[name][-1] for name in NAMES]
    np.testing.assert_allclose(list(by_keras.probabilities.values()), table[NAMES].iloc[-1], rtol=0, atol=1e-6)
    for config, policy in ((CONFIG.replace(rolling_prior=None), POLICY), (CONFIG, replace(POLICY, rolling=None))):
        run.config, run.policy = config, policy
        run.data = prepare(CANDLES, config)
        with pytest.raises(BundleError, match="rolling_prior is"):
            save_bundle(run, tmp_path / "other")
        with pytest.raises(OnnxFileError, match="rolling_prior is"):
            export_onnx(replace(bundle, config=config, policy=policy), tmp_path / "other.onnx")
            Predictor.load(tmp_path / "other.onnx")


def test_a_policy_without_the_option_is_written_and_read_as_before():
    plain = DecisionPolicy(CALIBRATION, RULE)
    assert set(plain.as_dict()) == {"calibration", "rule"} and DecisionPolicy.from_dict(plain.as_dict()) == plain
    assert DecisionPolicy.from_dict(json.loads(json.dumps(POLICY.as_dict()))) == POLICY
    assert fingerprint_settings(Config()) == "0d53c57387defc31"  # of earlier versions: the same trial stays the same
    assert fingerprint_settings(Config(rolling_prior="7d")) != "0d53c57387defc31"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rolling_prior": "7"}, "rolling_prior must be none or a time such as 7d, 12h or 90m, got '7'"),
        ({"rolling_prior": 7}, "rolling_prior must be none or a time"),
        ({"rolling_prior": "0d"}, "rolling_prior must be none or a time"),
        ({"rolling_prior": "1h"}, "rolling_prior must be at least as long as future_window, 120 candles, got 1h"),
        ({"rolling_prior": "7d", "labels": "own"}, "a bot can't make labels of your own"),
        ({"rolling_prior": "90m", "timeframe": "1h"}, "rolling_prior must fit timeframe 1h"),
        ({"rolling_prior": "9999d"}, "rolling_prior must fit timeframe 1m: a span must be from 1 to 1,000,000"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_before_a_training(settings, words):
    with pytest.raises(ConfigError, match="rolling_prior") as caught:
        Config(**settings)
    assert words in str(caught.value)


def test_values_that_fit_nothing_are_typed_errors():
    for values in itertools.product((0, 72, True, "6", None), repeat=2):
        with pytest.raises(CalibrationError, match="of a rolling prior must be"):
            PriorWindow(6, *values) if values != (72, 72) else PriorWindow(0, 72, 72)
    with pytest.raises(CalibrationError, match="a rolling prior has horizon, span, minimum"):
        DecisionPolicy.from_dict({**POLICY.as_dict(), "rolling_prior": {"span": 3}})
    with pytest.raises(PolicyError, match="needs a calibration"):
        DecisionPolicy(rolling=WINDOW)
    answers = np.full((2, 3), 1 / 3)
    for finished in (None, np.zeros((3, 3)), np.zeros(3)):
        with pytest.raises(PolicyError, match="expected counts of finished labels of the shape"):
            POLICY.choose_rows(answers, finished)
