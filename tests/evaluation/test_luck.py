"""Luck beside two references, `purgedcv` and `arch`, and controls with a known answer."""

from __future__ import annotations

import json
import math

import numpy as np
import purgedcv
import pytest
from arch.bootstrap import SPA

from benchmarks.evaluation.luck import count_deflated, deflate_best
from crypto_lstm.evaluation.luck import (
    LuckError,
    SharpeMoments,
    deflated_sharpe,
    expected_maximum_sharpe,
    long_run_variance,
    measure_luck,
    measure_overfitting,
    measure_sharpe,
    measure_superiority,
    minimum_track_record,
    probabilistic_sharpe,
)


def make_returns(seed, models=1, periods=240):
    """Returns with fat tails and some skew."""
    generator = np.random.default_rng(seed)
    returns = generator.standard_t(5, size=(models, periods))
    returns += generator.exponential(0.5, size=(models, periods)) - 0.45
    return returns[0] if models == 1 else returns


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("benchmark", [0.0, 0.05, -0.1])
def test_probabilistic_sharpe_equals_purgedcv(seed, benchmark):
    returns = make_returns(seed)
    ours = probabilistic_sharpe(measure_sharpe(returns), benchmark)
    assert ours == pytest.approx(purgedcv.probabilistic_sharpe_ratio(returns, benchmark), abs=1e-9)


@pytest.mark.parametrize("trials", [1, 2, 10, 1000])
def test_deflated_sharpe_equals_purgedcv(trials):
    returns = make_returns(3)
    theirs = purgedcv.deflated_sharpe_ratio_full(returns, trials, 0.004)
    moments = measure_sharpe(returns)
    assert expected_maximum_sharpe(trials, 0.004) == pytest.approx(theirs.sr_star, abs=1e-9)
    assert deflated_sharpe(moments, trials, 0.004) == pytest.approx(theirs.dsr, abs=1e-9)
    found = (moments.sharpe, moments.skew, moments.kurtosis)
    assert found == pytest.approx((theirs.observed_sr, theirs.skew, theirs.kurt), abs=1e-9)


@pytest.mark.parametrize("target", [0.0, 0.02])
def test_minimum_track_record_equals_purgedcv_rounded_up(target):
    moments = measure_sharpe(make_returns(1) + 0.2)
    theirs = purgedcv.min_track_record_length(moments.sharpe, target, 0.05, moments.skew, moments.kurtosis)
    assert math.ceil(minimum_track_record(moments, target)) == theirs


@pytest.mark.parametrize(("models", "periods", "blocks"), [(5, 240, 16), (30, 163, 10), (2, 97, 6)])
def test_overfitting_equals_purgedcv(models, periods, blocks):
    returns = make_returns(7, models, periods)
    theirs = purgedcv.probability_of_backtest_overfitting(returns, n_splits=blocks)
    ours = measure_overfitting(returns, blocks=blocks)
    assert ours.probability == pytest.approx(theirs.pbo, abs=1e-9)
    assert ours.slope == pytest.approx(theirs.slope, abs=1e-9)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-9)


def test_models_that_never_trade_have_sharpe_zero_and_share_their_rank():
    returns = make_returns(2, 6, 96)
    returns[:3] = 0.0
    theirs = purgedcv.probability_of_backtest_overfitting(returns, n_splits=6)
    np.testing.assert_allclose(measure_overfitting(returns, blocks=6).logits, theirs.logits, atol=1e-9)


@pytest.mark.parametrize("block_length", [1, 8])
def test_long_run_variance_equals_arch(block_length):
    returns = make_returns(4, 6, 200)
    reference = SPA(np.zeros(200), -returns.T, block_size=block_length, reps=10, seed=0)
    reference.compute()
    np.testing.assert_allclose(long_run_variance(returns, block_length), reference._loss_diff_var, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.15, -0.1])
def test_superiority_equals_arch_within_the_noise_of_the_bootstrap(shift):
    returns = make_returns(5, 8, 300)
    returns += shift - returns.mean()
    reference = SPA(np.zeros(300), -returns.T, block_size=5, reps=4000, seed=1)  # compares means: not studentised
    reference.compute()
    ours = measure_superiority(returns, block_length=5.0, resamples=4000, studentised=False)
    if ours.statistic == 0:
        assert ours.consistent == 1.0
        return
    found = (ours.lower, ours.consistent, ours.upper)
    assert found == pytest.approx(tuple(reference.pvalues), abs=0.035)  # 3 standard errors of both


def test_best_of_hundred_models_without_skill_is_hardly_ever_convincing():
    assert count_deflated(repetitions=100, edge=0.0) <= 1


def test_a_true_edge_among_hundred_models_is_found():
    assert count_deflated(repetitions=20, edge=0.4) == 20


def test_the_best_without_skill_would_convince_if_the_trials_were_not_counted():
    returns = np.random.default_rng(0).normal(size=(100, 500))
    best = returns[(returns.mean(axis=1) / returns.std(axis=1)).argmax()]
    assert measure_luck(best).deflated > 0.95 > deflate_best(returns)


def test_luck_is_plain_json_and_narrow_text():
    luck = measure_luck(make_returns(0) - 0.5, trials=7, variance=0.01)
    facts = json.loads(json.dumps(luck.as_dict()))
    assert facts["minimum_track_record"] is None
    assert facts["trials"] == 7
    assert max(map(len, str(luck).splitlines())) <= 80
    assert "<table>" in luck._repr_html_()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: measure_sharpe([1.0, 2.0, 3.0]), "at least 4 finite returns"),
        (lambda: measure_sharpe(np.zeros(9)), "returns that differ"),
        (lambda: measure_sharpe([1.0, np.inf, 3.0, 2.0]), "inf in row 1"),
        (lambda: expected_maximum_sharpe(True, 0.1), "whole number from 1, got True"),
        (lambda: expected_maximum_sharpe(3, -0.1), "from 0, got -0.1"),
        (lambda: expected_maximum_sharpe(3, math.nan), "from 0, got nan"),
        (lambda: minimum_track_record(SharpeMoments(0.1, 9, 0.0, 3.0), confidence=1.0), r"confidence in \(0, 1\)"),
        (lambda: probabilistic_sharpe(SharpeMoments(1.0, 9, 3.0, 3.0)), "no positive variance"),
        (lambda: measure_overfitting(np.ones((1, 99))), "at least 2 models"),
        (lambda: measure_overfitting(np.full((2, 99), np.nan)), "fill periods without a trade with 0"),
        (lambda: measure_overfitting(np.ones((2, 99)), blocks=7), "even number of blocks"),
        (lambda: measure_superiority(np.ones((2, 5))), "at least 12 periods"),
        (lambda: measure_superiority(np.eye(20), block_length=0.5), "block_length as a number of periods from 1"),
    ],
)
def test_unusable_input_is_refused(call, words):
    with pytest.raises(LuckError, match=words):
        call()


def test_models_that_never_trade_are_no_better_than_hold():
    found = measure_superiority(np.zeros((3, 50)))
    assert (found.statistic, found.consistent) == (0.0, 1.0)
