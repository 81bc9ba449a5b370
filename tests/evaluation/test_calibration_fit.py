"""Fits against scikit-learn and scipy, controls of skill and of none, and no look at the future."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sklearn.calibration
from scipy.optimize import minimize

from crypto_lstm.config import HOLD, LONG, SHORT, Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation import calibration_fit
from crypto_lstm.evaluation.calibration_fit import (
    calibration_error,
    fit_calibration,
    plot_reliability,
    reliability_table,
    rolling_prior,
)
from crypto_lstm.evaluation.metrics import correct_prior
from crypto_lstm.evaluation.rule_fit import fit_rule
from crypto_lstm.evaluation.simulator import simulate
from crypto_lstm.inference.calibration import Calibration, CalibrationError, RollingPrior

THIRDS = (1 / 3, 1 / 3, 1 / 3)
GAP = 239


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def make_part(rows: int = 30_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a perfect model, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, 3)) + [0.0, 0.7, 0.0]
    cuts = softmax(logits).cumsum(axis=1)[:, :2]
    return logits, (generator.random((rows, 1)) > cuts).sum(axis=1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_multiplied_logits_are_found(factor):
    logits, labels = make_part()
    found = fit_calibration(softmax(factor * logits), labels, np.arange(30_000), THIRDS, THIRDS, GAP)
    assert abs(found.fitted.temperature - factor) < 0.05
    assert found.kept and found.ece_after < 0.01 < found.ece_before
    assert np.abs(found.fitted.biases).max() < 0.05


def test_biases_are_found_and_sum_to_zero():
    logits, labels = make_part()
    shifted = softmax(1.5 * logits + [0.9, 0.0, -0.3])
    found = fit_calibration(shifted, labels, np.arange(30_000), THIRDS, THIRDS, GAP)
    expected = -np.array([0.9, 0.0, -0.3]) / 1.5
    np.testing.assert_allclose(found.fitted.biases, expected - expected.mean(), atol=0.05)
    assert abs(sum(found.fitted.biases)) < 1e-12


def test_balanced_training_is_undone_by_the_prior_alone():
    logits, labels = make_part()
    shares = np.bincount(labels, minlength=3) / len(labels)
    balanced = correct_prior(softmax(logits), shares, THIRDS)
    found = fit_calibration(balanced, labels, np.arange(30_000), THIRDS, shares, GAP)
    assert not found.kept
    assert found.calibration == Calibration.from_priors(THIRDS, shares)
    assert found.log_loss_before < found.log_loss_raw


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_minimum_of_the_log_loss(seed):
    logits, labels = make_part(5000, seed)
    answers = softmax(1.3 * logits + [0.2, 0, 0])
    found = fit_calibration(answers, labels, np.arange(5000), (0.3, 0.3, 0.4), (0.2, 0.6, 0.2), GAP).fitted
    scores = np.log(answers) + np.log([0.2, 0.6, 0.2]) - np.log([0.3, 0.3, 0.4])

    def loss(values: np.ndarray) -> float:
        shifted = softmax(values[0] * scores + np.array([values[1], 0.0, values[2]]))
        return float(-np.log(shifted[np.arange(5000), labels]).mean())

    best = minimize(loss, [1.0, 0.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x
    biases = np.array([best[1], 0.0, best[2]])
    assert math.isclose(found.temperature, 1 / best[0], abs_tol=1e-5)
    np.testing.assert_allclose(found.biases, biases - biases.mean(), atol=1e-5)


@pytest.mark.skipif(not hasattr(sklearn.calibration, "_TemperatureScaling"), reason="scikit-learn 1.8 is needed")
def test_the_temperature_is_that_of_scikit_learn():
    logits, labels = make_part(5000)
    answers = softmax(2 * logits)
    scores = calibration_fit._log_posteriors(answers, Calibration(), None)
    ours = calibration_fit._minimise(scores, labels, np.array([1.0, 0, 0]), [0])[0]
    theirs = sklearn.calibration._TemperatureScaling().fit(np.log(answers), labels).beta_
    assert math.isclose(ours, theirs, abs_tol=1e-6)


@pytest.mark.parametrize("memory", [1, 300])
def test_a_network_that_needs_nothing_is_rarely_changed(memory):
    """The gain of a perfect model is zero, also when its answers and labels keep their values for 300 candles."""
    kept = 0
    for seed in range(20):
        logits, labels = make_part(12_000 // memory, seed)
        answers, repeated = np.repeat(softmax(logits), memory, axis=0), np.repeat(labels, memory)
        kept += fit_calibration(answers, repeated, np.arange(len(repeated)), THIRDS, THIRDS, GAP).kept
    assert kept <= 2


def test_a_network_without_skill_gets_the_shares_back():
    """Noise is as sure as a network can be: the temperature goes to its limit, and the shares are left."""
    generator = np.random.default_rng(0)
    labels = generator.choice(3, p=[0.2, 0.6, 0.2], size=20_000)
    noise = softmax(3 * generator.normal(size=(20_000, 3)))
    found = fit_calibration(noise, labels, np.arange(20_000), THIRDS, (0.2, 0.6, 0.2), GAP)
    assert found.kept and found.fitted.temperature == 20.0
    np.testing.assert_allclose(found.calibration.apply(noise).mean(axis=0), [0.2, 0.6, 0.2], atol=0.01)
    entropy = -np.sum(np.array([0.2, 0.6, 0.2]) * np.log([0.2, 0.6, 0.2]))
    assert abs(found.log_loss_after - entropy) < 0.02


def test_a_perfect_separation_is_no_fault():
    labels = np.arange(9000) % 3
    answers = np.full((9000, 3), 0.01)
    answers[np.arange(9000), labels] = 0.98
    found = fit_calibration(answers, labels, np.arange(9000), THIRDS, THIRDS, GAP)
    assert found.kept and 0.1 <= found.fitted.temperature < 0.2
    json.dumps(found.as_dict(), allow_nan=False)


def test_zero_probabilities_are_finite():
    logits, labels = make_part(9000)
    answers = softmax(60 * logits).astype(np.float32)
    assert (answers == 0).any()
    found = fit_calibration(answers, labels, np.arange(9000), THIRDS, THIRDS, GAP)
    assert found.kept
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_fit_depends_on_nothing_but_its_rows():
    """Rows after the part, and the same part at another place in time, change nothing."""
    logits, labels = make_part(9000)
    answers = softmax(2 * logits)
    one = fit_calibration(answers[:6000], labels[:6000], np.arange(6000), THIRDS, THIRDS, GAP)
    moved = fit_calibration(answers[:6000].copy(), labels[:6000], np.arange(6000) + 10**6, THIRDS, THIRDS, GAP)
    assert one == moved


def test_a_part_with_gaps_in_time_is_fitted():
    logits, labels = make_part(9000)
    rows = np.concatenate([np.arange(3000), np.arange(6000) + 50_000])
    found = fit_calibration(softmax(2 * logits), labels, rows, THIRDS, THIRDS, GAP)
    assert abs(found.fitted.temperature - 2) < 0.15 and found.gain_se > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": np.zeros(8999, dtype=int)}, "same windows"),
        ({"labels": np.full(9000, 3)}, "labels 0, 1 or 2"),
        ({"labels": np.zeros(9000)}, "labels 0, 1 or 2"),
        ({"rows": np.arange(9000)[::-1]}, "ascending"),
        ({"trained_on": [0.5, 0.5]}, "trained_on"),
        ({"prior": [0.5, 0.5, 0.5]}, "prior"),
    ],
)
def test_input_that_does_not_fit_is_refused(change, words):
    logits, labels = make_part(9000)
    given = {"probabilities": softmax(logits), "labels": labels, "rows": np.arange(9000)}
    with pytest.raises(CalibrationError, match=words):
        fit_calibration(**{**given, "trained_on": THIRDS, "prior": THIRDS, "purge_gap": GAP, **change})


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_a_plain_loop(seed):
    generator = np.random.default_rng(seed)
    answers = generator.dirichlet([1, 2, 1], size=1000).round(2)  # with ties
    answers[:, HOLD] = 1 - answers[:, SHORT] - answers[:, LONG]
    labels = generator.integers(0, 3, size=1000)
    total = 0.0
    for number in range(3):
        is_class = (labels == number).tolist()
        pairs = sorted(zip(answers[:, number].tolist(), is_class, strict=True), key=lambda pair: pair[0])
        bins: list[list[tuple[float, bool]]] = [[]]
        cuts = {place * 1000 // 15 for place in range(1, 15)}
        values = [pair[0] for pair in pairs]
        cuts = {values.index(values[cut]) for cut in cuts}  # a cut moves to the first of equal values
        for place, pair in enumerate(pairs):
            if place in cuts and bins[-1]:
                bins.append([])
            bins[-1].append(pair)
        for members in bins:
            mean, share = (sum(part) / len(members) for part in zip(*members, strict=True))
            total += abs(mean - share) * len(members) / 3000
    assert math.isclose(calibration_error(labels, answers), total, abs_tol=1e-12)
    table = reliability_table(labels, answers)
    assert table.groupby("class")["rows"].sum().tolist() == [1000] * 3


def test_fewer_rows_than_bins_and_one_value_are_binned():
    labels = np.array([0, 1, 2])
    assert len(reliability_table(labels, np.eye(3))) == 6  # two values in each class
    assert calibration_error(labels, np.eye(3)) == 0.0
    assert len(reliability_table(labels, np.tile(THIRDS, (3, 1)))) == 3
    assert len(plot_reliability(labels, {"one": np.eye(3)}).lines) == 4


# Class shares of finished labels


def make_outcomes(seed: int = 4):
    config = Config(timeframe="1h", future_window=24)
    return config, make_labels(synthetic_candles(1500, seed=seed, timeframe="1h"), config)


def test_rolling_shares_are_those_of_a_plain_loop_and_of_a_bot():
    _, outcomes = make_outcomes()
    kept = np.random.default_rng(0).random(len(outcomes)) < 0.7  # rows with gaps
    labels, rows = outcomes["label"].to_numpy()[kept], outcomes.index.to_numpy()[kept]
    prior = np.array([0.2, 0.5, 0.3])
    found = rolling_prior(labels, rows, 24, days=3, day_candles=24, prior=prior)
    bot, added = RollingPrior(24, 72, prior), 0
    for place, now in enumerate(rows):
        counted = [label for row, label in zip(rows, labels, strict=True) if now - 24 - 72 < row <= now - 24]
        counts = np.bincount(counted, minlength=3)
        np.testing.assert_allclose(found[place], (counts + 24 * prior) / (len(counted) + 24), rtol=1e-12)
        while rows[added] <= now - 24:
            bot.add(rows[added], labels[added])
            added += 1
        assert bot.shares(now).tobytes() == found[place].tobytes()


def test_rolling_shares_do_not_look_ahead():
    """Equal when the history is cut, and when everything after a moment is another market."""
    _, outcomes = make_outcomes()
    labels, rows = outcomes["label"].to_numpy(), outcomes.index.to_numpy()
    whole = rolling_prior(labels, rows, 24, 7, 24)
    for now in (0, 23, 24, 500, 1000):
        cut = labels[: max(now - 23, 1)], rows[: max(now - 23, 1)]  # labels that are known at the close of row now
        assert rolling_prior(*cut, 24, 7, 24, at=rows[: now + 1]).tobytes() == whole[: now + 1].tobytes()
        other = np.where(rows > now - 24, (labels + 1) % 3, labels)
        assert rolling_prior(other, rows, 24, 7, 24)[: now + 1].tobytes() == whole[: now + 1].tobytes()


def test_rolling_shares_help_where_the_shares_drift():
    """A market that is quiet, then wild: shares of the last days beat the shares of training in log-loss."""
    generator = np.random.default_rng(0)
    shares = np.repeat([[0.05, 0.9, 0.05], [0.35, 0.3, 0.35]], 5000, axis=0)
    labels = (generator.random((10_000, 1)) > shares.cumsum(axis=1)[:, :2]).sum(axis=1)
    rows = np.arange(10_000)
    priors = rolling_prior(labels, rows, 24, 7, 24, prior=(0.05, 0.9, 0.05))
    flat = np.tile(THIRDS, (10_000, 1))
    fixed = fit_calibration(flat, labels, rows, THIRDS, (0.05, 0.9, 0.05), GAP)
    drifting = fit_calibration(flat, labels, rows, THIRDS, (0.05, 0.9, 0.05), GAP, row_priors=priors)
    assert drifting.log_loss_before < fixed.log_loss_before - 0.1
    np.testing.assert_allclose(Calibration().apply(flat, prior=priors), priors, rtol=1e-9)


@pytest.mark.parametrize("change", [{"horizon": 0}, {"days": 0}, {"labels": np.array([0, 1])}])
def test_rolling_shares_refuse_input_that_does_not_fit(change):
    given = {"labels": np.array([0, 1, 2]), "rows": np.arange(3), "horizon": 1, "days": 1, "day_candles": 24}
    with pytest.raises(CalibrationError):
        rolling_prior(**{**given, **change})


# The rule of the training part


def test_a_rule_holds_the_mean_returns_of_its_training_rows_only():
    config, outcomes = make_outcomes()
    config = config.replace(slippage_pct=0.05, margin_pct=0.01)
    rule = fit_rule(outcomes[:800], config)
    for place, side in enumerate(("long_return", "short_return")):
        for number in (SHORT, HOLD, LONG):
            returns = outcomes[side][:800][outcomes["label"][:800] == number]
            assert math.isclose(rule.mean_returns[place][number], sum(map(float, returns)) / len(returns), rel_tol=1e-9)
    assert math.isclose(rule.cost_pct, 2 * (config.fee_pct + 0.05))
    assert (rule.kind, rule.margin_pct) == (config.rule, 0.01)
    _, other = make_outcomes(seed=9)
    mixed = outcomes.copy()
    mixed.iloc[800:] = other.iloc[800:]
    assert fit_rule(mixed[:800], config) == rule
    assert type(rule).from_dict(json.loads(json.dumps(rule.as_dict()))) == rule


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("memory", [1, 120])
def test_a_fair_market_is_hardly_traded(seed, memory):
    """Noise that thinks it knows: argmax trades most of 8,000 windows, the rule on calibrated answers at most 20."""
    config = Config(sequence_length=60, future_window=60)
    outcomes = make_labels(synthetic_candles(24_200, seed=seed), config)
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(24_000 // memory, 3)).repeat(memory, axis=0)
    answers = softmax(noise)  # of a network trained on balanced classes
    train, validation, test = outcomes[:8000], outcomes[8200:15_900], outcomes[16_000:24_000]
    prior = np.bincount(train["label"], minlength=3) / len(train)
    labels, rows = validation["label"].to_numpy(), validation.index.to_numpy()
    fit = fit_calibration(answers[8200:15_900], labels, rows, THIRDS, prior, purge_gap=119)
    decisions = fit_rule(train, config).choose_classes(fit.calibration.apply(answers[16_000:]))
    assert np.count_nonzero(answers[16_000:].argmax(axis=1) != HOLD) > 4000
    trades = simulate(synthetic_candles(24_200, seed=seed), test.index, decisions, config, random_runs=0).trades
    assert len(trades) <= 20
