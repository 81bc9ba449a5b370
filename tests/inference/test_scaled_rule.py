"""A rule whose returns are multiples of the barrier scale: plain loops, batch and live to the bit, older files."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import crypto_lstm as cl
from crypto_lstm.config import CLASSES, HOLD, LONG, SHORT
from crypto_lstm.data.barriers import compute_barrier_scale
from crypto_lstm.data.candle_input import StreamError
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.feature_stream import FeatureStream
from crypto_lstm.data.features import make_features
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.market_scaler import MarketScaler
from crypto_lstm.data.markets import prepare
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.evaluation.judgement import Answers
from crypto_lstm.evaluation.rule_fit import fit_rule, read_scale
from crypto_lstm.inference.calibration import Calibration
from crypto_lstm.inference.decision import NO_TRADE
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.rule import RuleError, TradeRule, kelly_shares
from crypto_lstm.training.saved_run import predict_candles

SCALE = "100 * std(pct(close) / 100, 1d) * (day_of_week() != 2)"  # none on Wednesdays
CONFIG = cl.Config(
    timeframe="1h", features=("close_change", "volume_change"), sequence_length=12, future_window=12, lstm_units=(8, 4),
    dense_units=(4,), long_tp_pct=2, long_sl_pct=1.5, short_tp_pct=2.5, short_sl_pct=1, fee_pct=0.05,
    barrier_scale=SCALE,
)  # fmt: skip
CANDLES = cl.synthetic_candles(600, seed=5, timeframe="1h").drop(index=[*range(300, 302), *range(400, 440)])
CANDLES = CANDLES.reset_index(drop=True)
RULE = TradeRule("expected_value", ((-1.4, 0.3, 2.0), (2.5, 0.2, -0.9)), 0.2, 0.05, (0.3, 0.4, 0.3), mean_scale=0.6)
POLICY = DecisionPolicy(Calibration((1 / 3,) * 3, (0.3, 0.35, 0.35), biases=(0.1, -0.2, 0.1)), RULE)
HOUR = pd.Timedelta("1h")


def loop_returns(shares, scale):
    """Expected net return of a long and a short, in plain Python."""
    return [scale * sum(q * r for q, r in zip(shares, row, strict=True)) - RULE.cost_pct for row in RULE.mean_returns]


def loop_decision(shares, scale):
    if math.isnan(scale):
        return NO_TRADE
    long, short = loop_returns(shares, scale)
    if max(long, short) <= RULE.margin_pct or long == short:
        return "HOLD"
    return "LONG" if long > short else "SHORT"


def test_the_expected_return_is_that_of_the_present_candle():
    rng = np.random.default_rng(0)
    shares, scale = rng.dirichlet([1, 1, 1], 300), rng.lognormal(-0.5, 1, 300)
    found = RULE.expected_returns(shares, scale)
    np.testing.assert_allclose(found, [loop_returns(*row) for row in zip(shares, scale, strict=True)], atol=1e-12)
    singles = [RULE.expected_returns(*row) for row in zip(shares, scale, strict=True)]
    assert found.tobytes() == np.array(singles).tobytes()
    chosen = [CLASSES[number] for number in RULE.choose_classes(shares, scale)]
    assert chosen == [loop_decision(*row) for row in zip(shares, scale, strict=True)]
    assert set(chosen) == set(CLASSES)
    assert RULE.choose_classes(shares, np.nan).tolist() == [HOLD] * 300
    percent = TradeRule(RULE.kind, RULE.mean_returns, RULE.cost_pct, RULE.margin_pct, RULE.class_shares)
    assert percent.expected_returns(shares).tobytes() == RULE.expected_returns(shares, 1.0).tobytes()
    assert percent.expected_returns(shares, scale).tobytes() == percent.expected_returns(shares).tobytes()
    assert kelly_shares(percent, shares).tobytes() == kelly_shares(RULE, shares, scale=1.0).tobytes()


def test_break_even_is_that_of_the_mean_scale():
    share = RULE.break_even_probability["long"]
    others = [RULE.class_shares[number] for number in (SHORT, HOLD)]
    shares = [(1 - share) * other / sum(others) for other in others]
    assert RULE.expected_returns([*shares, share], RULE.mean_scale)[0] == pytest.approx(0, abs=1e-12)
    assert "multiples (x) of the barrier scale, in training 0.6 % on average" in str(RULE)


def test_older_rules_are_read_and_written_as_before():
    percent = TradeRule("expected_value", RULE.mean_returns, 0.2)
    assert sorted(percent.as_dict()) == ["class_shares", "cost_pct", "kind", "margin_pct", "mean_returns"]
    assert TradeRule.from_dict(json.loads(json.dumps(percent.as_dict()))) == percent
    assert TradeRule.from_dict(json.loads(json.dumps(RULE.as_dict()))) == RULE
    assert not DecisionPolicy(rule=percent).needs_scale and POLICY.needs_scale and not DecisionPolicy().needs_scale


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "1", True])
def test_a_mean_scale_that_is_none_is_refused(bad):
    with pytest.raises(RuleError, match="mean_scale must be"):
        TradeRule.from_dict({**RULE.as_dict(), "mean_scale": bad})


@pytest.mark.parametrize("bad", [None, 0.0, -1.0, math.inf, [1.0, 2.0, 3.0], [[1.0]]])
def test_scales_that_fit_no_row_are_refused(bad):
    with pytest.raises(RuleError, match="barrier scale"):
        RULE.expected_returns(np.full((2, 3), 1 / 3), bad)
    with pytest.raises(RuleError, match="barrier scale"):
        POLICY.choose_rows(np.full((2, 3), 1 / 3), scale=bad)


def test_the_fit_beside_a_plain_loop():
    outcomes = make_labels(CANDLES, CONFIG)
    rule = fit_rule(outcomes, CONFIG)
    for side, found in zip(("long", "short"), rule.mean_returns, strict=True):
        for number in range(3):
            rows = outcomes[outcomes["label"] == number]
            values = [float(r) / s for r, s in zip(rows[f"{side}_return"], rows["barrier_scale"], strict=True)]
            assert len(values) >= 20 and found[number] == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert rule.mean_scale == pytest.approx(outcomes["barrier_scale"].mean())
    assert rule.mean_returns[0][LONG] == pytest.approx(CONFIG.long_tp_pct, rel=1e-6)  # each long wins its take-profit
    fixed = CONFIG.replace(barrier_scale="1")
    assert fit_rule(make_labels(CANDLES, fixed), fixed).mean_scale is None
    data = prepare({"A": CANDLES, "B": CANDLES.assign(close=CANDLES["close"])}, CONFIG.replace(batch_size=16))
    assert fit_rule(data.training_outcomes, CONFIG).mean_scale is not None


def test_answers_of_a_judgement_beside_a_plain_loop():
    outcomes = make_labels(CANDLES, CONFIG)
    raw = np.random.default_rng(1).dirichlet([1, 1, 1], len(outcomes))
    answers = Answers.from_policy("model", raw, POLICY, scale=read_scale(outcomes))
    rows = zip(answers.probabilities, outcomes["barrier_scale"], strict=True)
    assert [CLASSES[number] for number in answers.decisions] == [loop_decision(*row) for row in rows]
    assert len(set(answers.decisions.tolist())) == 3
    with pytest.raises(RuleError, match="give the scale at each entry"):
        Answers.from_policy("model", raw, POLICY)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network of random weights with a scaled rule: one market, and three with a common scaler."""
    place = tmp_path_factory.mktemp("scaled")
    model, rng = cl.build_model(CONFIG), np.random.default_rng(0)
    for variable in model.trainable_weights:
        variable.assign(rng.normal(0, 0.8, variable.shape))
    scaler = Scaler.fit(make_features(CANDLES, CONFIG)[list(CONFIG.features)].to_numpy(), CONFIG)
    source = SimpleNamespace(model=model, config=CONFIG, scaler=scaler, policy=POLICY)
    export_onnx(source, place / "one.onnx")
    source.scaler = MarketScaler("all", ("A", "B", "C"), (scaler,))
    export_onnx(source, place / "many.onnx")
    return SimpleNamespace(one=place / "one.onnx", many=place / "many.onnx", model=model, scaler=scaler)


def test_batch_live_and_loop_agree_to_the_bit(files, tmp_path):
    predictor = cl.Predictor.load(files.one)
    table = pd.DataFrame(predictor.predict(CANDLES)).set_index("date")
    filled = fill_gaps(CANDLES, timeframe="1h").set_index("date")
    scale = pd.Series(compute_barrier_scale(filled.reset_index(), CONFIG), filled.index.tz_localize(None))
    for date, row in table.iterrows():
        shares = row[["short", "hold", "long"]].tolist()
        assert row["decision"] == loop_decision(shares, scale[date])
        np.testing.assert_allclose(row[["expected_long", "expected_short"]].tolist(), loop_returns(shares, scale[date]))
    assert set(table["decision"]) == {*CLASSES, NO_TRADE}
    live = cl.Predictor.load(files.one).warm_up(CANDLES[:460])
    many = cl.Predictor.load(files.many)
    for name in many.markets:
        many.warm_up(name, CANDLES[:460])
    asked = 0
    for number in range(460, len(CANDLES)):
        candle = CANDLES.iloc[number].to_dict()
        now = candle["date"] + HOUR
        decision = live.update(candle, now=now)
        expected = table.loc[candle["date"].tz_localize(None)]
        assert decision.action == expected["decision"]
        assert list(decision.probabilities.values()) == expected[["short", "hold", "long"]].tolist()
        if decision.action != NO_TRADE:
            assert list(decision.expected_pct.values()) == expected[["expected_long", "expected_short"]].tolist()
            asked += 1
        if number % 2:
            many.prepare_next()
        assert many.update_many(dict.fromkeys(many.markets, candle), now=now) == dict.fromkeys(many.markets, decision)
        if number % 30 == 0:  # a restart
            live.save_state(tmp_path / "one.npz")
            many.save_state(tmp_path / "many.npz")
            live = cl.Predictor.load(files.one).load_state(tmp_path / "one.npz")
            many = cl.Predictor.load(files.many).load_state(tmp_path / "many.npz")
            assert many.decide_many(now=now) == dict.fromkeys(many.markets, decision)
        if number % 40 == 0:
            assert live.decide(CANDLES[: number + 1], now=now) == decision
    assert asked > 50 and "scale of the barriers is not known" in str(
        [live.policy.choose(np.array([0.1, 0.2, 0.7]), scale=math.nan)]
    )
    by_keras = predict_candles(files.model, files.scaler, CONFIG, CANDLES, POLICY).set_index("date")
    assert (by_keras["decision"].to_numpy() == table["decision"].to_numpy()).all()
    np.testing.assert_allclose(by_keras["expected_long"], table["expected_long"], atol=1e-4)


def test_a_rule_in_percent_ignores_the_scale_of_its_configuration(files, tmp_path):
    """As an older file decides. The stream computes the scale for the barriers of a trade alone."""
    percent = DecisionPolicy(POLICY.calibration, TradeRule("expected_value", RULE.mean_returns, 0.2))
    source = SimpleNamespace(model=files.model, config=CONFIG, scaler=files.scaler, policy=percent)
    export_onnx(source, tmp_path / "percent.onnx")
    predictor = cl.Predictor.load(tmp_path / "percent.onnx").warm_up(CANDLES)
    assert not percent.needs_scale and predictor.stream.barrier_scale() > 0
    table = predictor.predict(CANDLES)
    answers = np.column_stack([table["short"], table["hold"], table["long"]])
    assert (table["expected_long"] == percent.rule.expected_returns(answers)[:, 0]).all()
    fixed = CONFIG.replace(barrier_scale="1")
    export_onnx(SimpleNamespace(**{**vars(source), "config": fixed}), tmp_path / "fixed.onnx")
    for name, values in cl.Predictor.load(tmp_path / "fixed.onnx").predict(CANDLES).items():
        assert values.tolist() == table[name].tolist()


def test_the_scale_of_a_state_is_checked():
    stream = FeatureStream(CONFIG, with_scale=True)
    fed = stream.feed(CANDLES)
    state = stream.state_dict()
    assert stream.barrier_scale() == fed.scale[-1] == state["scale"][0]
    for bad in ([-1.0], [0.0], [math.inf], [1.0, 2.0]):
        with pytest.raises(StreamError):
            FeatureStream(CONFIG, with_scale=True).load_state_dict({**state, "scale": np.array(bad)})
    with pytest.raises(StreamError):
        FeatureStream(CONFIG).load_state_dict(state)
    early = FeatureStream(CONFIG, with_scale=True)
    assert early.missing() == 25  # 24 changes, the first of which needs a candle before
    for number in range(24):
        early.push(CANDLES.iloc[number].to_dict())
        assert early.missing() == 24 - number and math.isnan(early.barrier_scale())
    early.push(CANDLES.iloc[24].to_dict())
    assert early.missing() == 0
