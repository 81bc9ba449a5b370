"""Calibration and rule: exact formulas, batch against single rows, extreme values, plain values of files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from crypto_lstm.config import HOLD, LONG, SHORT
from crypto_lstm.evaluation.metrics import correct_prior
from crypto_lstm.inference.calibration import Calibration, CalibrationError, RollingPrior
from crypto_lstm.inference.decision import InvalidPredictionError
from crypto_lstm.inference.rule import RuleError, TradeRule, barrier_break_even, kelly_shares

THIRDS = (1 / 3, 1 / 3, 1 / 3)
CALIBRATIONS = (
    Calibration(),
    Calibration((0.3, 0.3, 0.4), (0.1, 0.8, 0.1), 1.7, (0.2, -0.1, -0.1)),
    Calibration((0.3, 0.3, 0.4), (0.0, 1.0, 0.0), 0.01, (50.0, -50.0, 50.0)),
    Calibration(THIRDS, (1.0, 0.0, 0.0), 100.0),
)
RULE = TradeRule("expected_value", ((-0.5, -0.1, 1.0), (1.0, -0.1, -0.5)), 0.2, class_shares=(0.15, 0.7, 0.15))


def make_answers(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([0.3, 0.5, 0.3], size=rows)


def test_a_calibration_is_its_formula():
    answers = make_answers(300)
    calibration = CALIBRATIONS[1]
    corrected = correct_prior(answers, calibration.trained_on, calibration.prior)
    powers = corrected ** (1 / 1.7) * np.exp(calibration.biases)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibration.apply(answers), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(Calibration().apply(answers), answers, rtol=0, atol=1e-12)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_each_row_is_finite_and_equal_in_a_batch(calibration, kind):
    certain = [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [1e-45, 1, 0]]
    answers = np.concatenate([np.array(certain), make_answers(200)]).astype(kind)
    result = calibration.apply(answers)
    assert result.dtype == np.float64
    assert np.isfinite(result).all() and (result >= 0).all()
    assert np.abs(result.sum(axis=1) - 1).max() < 1e-12
    for row, expected in zip(answers, result, strict=True):
        assert calibration.apply(row).tobytes() == expected.tobytes()
        assert calibration.apply(row[None])[0].tobytes() == expected.tobytes()
    for part in (answers[7:24], answers[::3], np.asfortranarray(answers)[:50]):
        singles = np.array([calibration.apply(row) for row in part])
        assert calibration.apply(part).tobytes() == singles.tobytes()


def test_a_prior_of_each_row_replaces_the_fixed_one():
    answers, calibration = make_answers(50), CALIBRATIONS[1]
    priors = make_answers(50, seed=1)
    result = calibration.apply(answers, prior=priors)
    for row, prior, expected in zip(answers, priors, result, strict=True):
        fixed = Calibration(calibration.trained_on, tuple(prior.tolist()), 1.7, calibration.biases)
        np.testing.assert_allclose(fixed.apply(row), expected, rtol=1e-12)
        assert calibration.apply(row, prior=prior).tobytes() == expected.tobytes()
    with pytest.raises(CalibrationError, match="shape"):
        calibration.apply(answers, prior=priors[:3])
    with pytest.raises(CalibrationError, match="sum to 1"):
        calibration.apply(answers, prior=[0.5, 0.5, 0.5])


def test_no_rows_are_no_rows():
    assert Calibration().apply(np.zeros((0, 3))).shape == (0, 3)
    assert RULE.choose_classes(np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("row", [[0.2, 0.2, 0.2], [math.nan, 0.5, 0.5], [-0.1, 0.6, 0.5], [math.inf, 0, 0]])
def test_rows_that_are_not_probabilities_are_refused(row):
    with pytest.raises(InvalidPredictionError, match="not probabilities"):
        Calibration().apply([[0.2, 0.3, 0.5], row])


@pytest.mark.parametrize("shape", [(2,), (4, 2), (1, 2, 3)])
def test_another_shape_is_refused(shape):
    with pytest.raises(CalibrationError, match="shape"):
        Calibration().apply(np.full(shape, 0.5))
    with pytest.raises(RuleError, match="shape"):
        RULE.expected_returns(np.full(shape, 0.5))


@pytest.mark.parametrize("value", [CALIBRATIONS[1], RULE])
def test_values_survive_json_to_the_bit(value):
    assert type(value).from_dict(json.loads(json.dumps(value.as_dict(), allow_nan=False))) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0), ("temperature", math.inf), ("temperature", "1"), ("temperature", True), ("biases", [0, 0]),
        ("biases", [0, 0, 60]), ("biases", None), ("prior", [1, 1, -1]), ("prior", "abc"), ("trained_on", [1, 1, 1]),
    ],
)  # fmt: skip
def test_a_damaged_calibration_is_refused_by_its_field(field, value):
    with pytest.raises(CalibrationError, match=field):
        Calibration.from_dict({**Calibration().as_dict(), field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "best"), ("kind", None), ("mean_returns", 3), ("mean_returns", [[0, 0, 0]]),
        ("mean_returns", [[0, 0, 0], [0, math.nan, 0]]), ("cost_pct", -0.1), ("cost_pct", 100),
        ("margin_pct", math.inf), ("class_shares", [1, 1, 1]),
    ],
)  # fmt: skip
def test_a_damaged_rule_is_refused_by_its_field(field, value):
    with pytest.raises(RuleError, match=field):
        TradeRule.from_dict({**RULE.as_dict(), field: value})


@pytest.mark.parametrize("change", [{"more": 1}, None])
def test_missing_and_unknown_fields_are_refused(change):
    for kind, error, values in ((Calibration, CalibrationError, {}), (TradeRule, RuleError, {})):
        with pytest.raises(error, match="has"):
            kind.from_dict({**values, **change} if change else [])


def test_a_rule_takes_the_side_with_the_better_expected_return():
    answers = make_answers(500)
    chosen = RULE.choose_classes(answers)
    for row, decision in zip(answers, chosen, strict=True):
        long = float(np.dot(row, RULE.mean_returns[0])) - 0.2
        short = float(np.dot(row, RULE.mean_returns[1])) - 0.2
        expected = HOLD
        if max(long, short) > 0:
            expected = LONG if long > short else SHORT
        assert decision == expected
        np.testing.assert_allclose(RULE.expected_returns(row), [long, short], atol=1e-12)
        assert RULE.choose_classes(row) == decision
    batch = RULE.expected_returns(answers)
    assert batch.tobytes() == np.array([RULE.expected_returns(row) for row in answers]).tobytes()
    assert set(chosen.tolist()) == {SHORT, HOLD, LONG}


def test_a_margin_and_a_tie_are_no_trade():
    rule = TradeRule("expected_value", ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), 0.0, margin_pct=0.25)
    assert rule.choose_classes([0.0, 0.75, 0.25]) == HOLD
    assert rule.choose_classes([0.0, 0.5, 0.5]) == LONG
    assert rule.choose_classes([0.5, 0.0, 0.5]) == HOLD
    likeliest = TradeRule("argmax", RULE.mean_returns, 0.2)
    assert likeliest.choose_classes([[0.4, 0.2, 0.4], [0.1, 0.2, 0.7], [0.4, 0.3, 0.3]]).tolist() == [HOLD, LONG, SHORT]


def test_the_break_even_probability_is_where_the_expected_return_is_zero():
    assert round(barrier_break_even(1.0, 0.5, 0.2), 3) == 0.467
    for side, own in (("long", LONG), ("short", SHORT)):
        level = RULE.break_even_probability[side]
        answer = np.array(RULE.class_shares)
        answer[own] = 0
        answer *= (1 - level) / answer.sum()
        answer[own] = level
        assert abs(RULE.expected_returns(answer)[("long", "short").index(side)]) < 1e-12
    never = TradeRule("expected_value", ((0.0, 0.0, 0.1), (0.0, 0.0, 0.0)), 0.2)
    assert never.break_even_probability == {"long": None, "short": None}


def test_a_kelly_share_is_capped_and_zero_without_gain():
    shares = kelly_shares(RULE, [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], cap=0.1)
    assert shares.tolist() == [[0.1, 0.0], [0.0, 0.0]]


def test_class_shares_of_a_bot_wait_for_the_end_of_a_label():
    rolling = RollingPrior(horizon=5, span=10, prior=THIRDS)
    rolling.add(0, LONG)
    np.testing.assert_allclose(rolling.shares(4), THIRDS)
    np.testing.assert_allclose(rolling.shares(5), (np.array([0, 0, 1]) + 5 / 3) / 6)
    np.testing.assert_allclose(rolling.shares(14), (np.array([0, 0, 1]) + 5 / 3) / 6)
    np.testing.assert_allclose(rolling.shares(15), THIRDS)
    with pytest.raises(CalibrationError, match="finished at or before 15: call add before"):
        rolling.add(3, LONG)
    for wrong in ({"horizon": 0}, {"span": 1.5}, {"prior": [1, 1, 1]}):
        with pytest.raises(CalibrationError, match=next(iter(wrong))):
            RollingPrior(**{"horizon": 5, "span": 10, "prior": THIRDS, **wrong})
