"""Each caution with a control: equal distributions give no warning, and what is wrong is named."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from crypto_lstm.config import Config
from crypto_lstm.data.candles import ensure_filled
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.evaluation.cautions import (
    CautionError,
    RegimeResult,
    assign_regimes,
    compute_psi,
    find_block_length,
    find_cautions,
    find_dead_market,
    find_dead_stretches,
    find_outside,
    find_shifts,
    find_useless_features,
    find_weak_regimes,
    measure_outside,
    measure_regimes,
    measure_stability,
    tabulate_cautions,
)
from crypto_lstm.evaluation.intervals import stretch_interval

SMALL = Config(
    timeframe="1h", features=("close_change", "volume_change", "price_to_ma1440"), sequence_length=12, future_window=24
)
CALM = synthetic_candles(6000, seed=5, timeframe="1h")


def make_series(count: int, seed: int, memory: int) -> np.ndarray:
    """First-order autoregression with variance 1 that forgets over `memory` rows."""
    kept = np.exp(-1 / memory)
    shocks = np.random.default_rng(seed).standard_normal(count + 20 * memory)
    return lfilter([1], [1, -kept], shocks * np.sqrt(1 - kept**2))[20 * memory :]


# ---------------------------------------------------------------- population stability


def test_an_equal_distribution_of_few_independent_values_rarely_warns_and_a_shift_does():
    """A test part of 1,000 rows that forget over 25 rows holds about 20 independent values. The limit is 1 in 100."""
    warned, found, above_usual = 0, 0, 0
    for seed in range(200):
        series = make_series(9000, seed, memory=25)
        same = measure_stability("x", series[:8000], series[8000:])
        warned += same.is_shifted
        above_usual += same.psi > 0.25
        if seed % 5 == 0:
            found += measure_stability("x", series[:8000], series[8000:] + 1.5).is_shifted
    assert warned <= 8
    assert above_usual > warned
    assert found >= 38  # of 40


def test_a_small_shift_is_found_in_many_independent_values():
    generator = np.random.default_rng(0)
    train, test = generator.standard_normal(20_000), generator.standard_normal(4000)
    assert not measure_stability("x", train, test).is_shifted
    shifted = measure_stability("x", train, test + 0.2)
    assert shifted.is_shifted
    assert shifted.psi < 0.25  # the usual limit does not see it


def test_the_index_by_hand_and_of_equal_counts():
    assert compute_psi(np.array([10, 20, 30]), np.array([10, 20, 30])) == 0
    expected = (0.6 - 0.5) * np.log(0.6 / 0.5) + (0.4 - 0.5) * np.log(0.4 / 0.5)
    assert compute_psi(np.array([49.5, 49.5]), np.array([59.5, 39.5])) == pytest.approx(expected)
    assert np.isfinite(compute_psi(np.array([100, 0]), np.array([0, 100])))


def test_blocks_are_longer_than_the_memory():
    for memory in (5, 50):
        length = find_block_length(make_series(20_000, 1, memory))
        assert 4 * memory < length < 12 * memory
    assert find_block_length(np.random.default_rng(0).standard_normal(5000)) == 2
    assert find_block_length(np.ones(100)) == 2


def test_a_shift_of_a_feature_with_two_values_is_found():
    train = np.repeat([0.0, 1.0], 500)[np.random.default_rng(0).permutation(1000)]
    assert not measure_stability("x", train, train[:200]).is_shifted
    assert measure_stability("x", train, np.ones(200)).is_shifted
    assert not measure_stability("x", np.ones(500), np.ones(100)).is_shifted


def test_too_few_rows_are_refused():
    with pytest.raises(CautionError, match="expected 100 or more training rows and a test, got 99 and 5"):
        measure_stability("x", np.zeros(99), np.zeros(5))
    with pytest.raises(CautionError, match="got 500 and 0"):
        measure_stability("x", np.zeros(500), np.zeros(0))


def test_a_shift_is_reported_for_the_shifted_feature_only():
    generator = np.random.default_rng(0)
    train, test = generator.standard_normal((5000, 3)), generator.standard_normal((1000, 3))
    test[:, 1] *= 3
    found = find_shifts(("a", "b", "c"), train, test)
    assert [caution.figures["feature"] for caution in found] == ["b"]
    assert "the test values of b follow another distribution than those of training: PSI" in found[0].sentence
    json.dumps(found[0].as_dict())


# ---------------------------------------------------------------- outside the range


def test_a_slow_feature_outside_its_training_range_is_named():
    """The price leaves its long mean in the test part, as `price_to_ma43200` does on real candles."""
    candles = CALM.copy()
    rise = np.exp(np.maximum(np.arange(6000) - 5300, 0) * 0.004)
    for name in ("open", "high", "low", "close"):
        candles[name] *= rise
    config = SMALL.replace(features=("close_change", "price_to_ma43200"), scaler="none", feature_clip=1000)
    found = find_cautions(prepare(candles, config))
    outside = [caution for caution in found if caution.kind == "outside"]
    assert [caution.figures["feature"] for caution in outside] == ["price_to_ma43200"]
    assert outside[0].figures["share"] > 0.9
    assert "price_to_ma43200 lie outside the range of the training part" in outside[0].sentence


def test_shares_outside_the_range_equal_counts():
    generator = np.random.default_rng(0)
    train, test = generator.standard_normal((300, 2)), 1.5 * generator.standard_normal((200, 2))
    plain = [
        np.mean([not train[:, column].min() <= value <= train[:, column].max() for value in test[:, column]])
        for column in range(2)
    ]
    np.testing.assert_allclose(measure_outside(train, test), plain)
    at_the_limit = np.r_[np.zeros(95), np.full(5, 2.0)][:, None]
    assert find_outside(["x"], np.array([[0.0], [1.0]]), at_the_limit) == []
    at_the_limit[0] = 2
    assert len(find_outside(["x"], np.array([[0.0], [1.0]]), at_the_limit)) == 1


# ---------------------------------------------------------------- useless features


def test_constant_nearly_constant_and_duplicate_features_are_named():
    generator = np.random.default_rng(0)
    train = generator.standard_normal((400, 5)).astype(np.float32)
    train[:, 1] = 0
    train[:, 3] = -3 * train[:, 0] + 1
    centre, scale = (0, 5, 1, 0, 0), (1, 1, 1e-9, 1, 1)  # the third is 1 with rounding errors, before scaling
    found = find_useless_features(("a", "b", "c", "d", "e"), train, centre, scale)
    assert [(caution.kind, caution.figures["feature"]) for caution in found] == [
        ("constant", "b"),
        ("constant", "c"),
        ("duplicate", "d"),
    ]
    assert found[2].figures["other"] == "a"
    assert found[2].sentence == "d repeats a: each is a linear function of the other"


def test_alike_features_are_no_duplicates():
    generator = np.random.default_rng(0)
    one = generator.standard_normal(1000)
    train = np.stack([one, one + 1e-3 * generator.standard_normal(1000)], axis=1).astype(np.float32)
    assert find_useless_features(("a", "b"), train, (0, 0), (1, 1)) == []
    assert find_useless_features(("a",), train[:, :1], (0,), (1,)) == []


# ---------------------------------------------------------------- dead markets


def kill_market(candles: pd.DataFrame, first: int, last: int) -> pd.DataFrame:
    """The price stands still, and nobody trades, in these rows."""
    dead = candles.copy()
    dead.loc[first:last, ["open", "high", "low", "close"]] = dead.loc[first - 1, "close"]
    dead.loc[first:last, "volume"] = 0.0
    return dead


def test_a_market_that_died_is_named_with_its_dates():
    filled = ensure_filled(kill_market(CALM, 5900, 5999), SMALL)
    assert find_dead_stretches(filled, SMALL) == [(5900, 5999)]
    (caution,) = find_dead_market(filled, SMALL)
    assert caution.kind == "dead_market"
    assert caution.figures["candles"] == 100 and caution.figures["ends_dead"]
    assert "from 2024-09-02 20:00 to 2024-09-06 23:00" in caution.sentence
    assert "was the pair delisted?" in caution.sentence


def test_a_dead_stretch_in_the_middle_and_a_short_one():
    filled = ensure_filled(kill_market(kill_market(CALM, 1000, 1030), 3000, 3022), SMALL)
    assert find_dead_stretches(filled, SMALL) == [(1000, 1030)]  # 23 hours are no day
    (caution,) = find_dead_market(filled, SMALL)
    assert not caution.figures["ends_dead"]
    assert "Leave such stretches out." in caution.sentence


def test_a_market_that_trades_is_not_dead():
    assert find_dead_market(ensure_filled(CALM, SMALL), SMALL) == []


# ---------------------------------------------------------------- regimes


def test_regimes_are_thirds_and_need_only_their_window():
    rows = np.arange(11, 6000)
    close, dates = CALM["close"].to_numpy(), CALM["date"]
    found = assign_regimes(close, dates, rows, SMALL)
    for name in ("volatility", "trend"):
        assert np.bincount(found[name]).tolist() == pytest.approx([5989 / 3] * 3, abs=1)
    row = 400
    window = np.log(close[rows[row] - 11 : rows[row] + 1])
    risen = found["trend"] == 2
    assert (found["hour"] == dates.iloc[rows].dt.hour.to_numpy() // 8).all()
    trends = np.log(close[rows]) - np.log(close[rows - 11])
    assert trends[risen].min() > trends[~risen].max()
    assert trends[row] == pytest.approx(window[-1] - window[0])


def test_a_weak_regime_is_named_and_even_results_are_not():
    rows = np.arange(11, 6000)
    regimes = assign_regimes(CALM["close"].to_numpy(), CALM["date"], rows, SMALL)
    gains = np.random.default_rng(1).normal(0.1, 0.3, len(rows))
    assert find_weak_regimes(measure_regimes(gains, rows, regimes, SMALL)) == []
    gains[regimes["hour"] == 1] -= 0.3
    (caution,) = find_weak_regimes(measure_regimes(gains, rows, regimes, SMALL))
    assert caution.figures["regime"] == "08 to 16 UTC"
    assert "the gain in log-loss is below zero at 08 to 16 UTC: mean -0.1966 [" in caution.sentence
    json.dumps(caution.as_dict())


def test_noise_gives_weak_regimes_as_seldom_as_its_interval_says():
    """One side of 99 % and nine regimes: about 4.5 % of parts may warn."""
    rows = np.arange(11, 6000)
    regimes = assign_regimes(CALM["close"].to_numpy(), CALM["date"], rows, SMALL)
    warned = 0
    for seed in range(100):
        gains = np.random.default_rng(seed).normal(0, 1, len(rows))
        warned += bool(find_weak_regimes(measure_regimes(gains, rows, regimes, SMALL)))
    assert warned <= 12


def test_a_regime_without_eight_stretches_is_not_judged():
    rows = np.arange(6000)
    regime = np.zeros(6000, dtype=int)
    regime[:3000] = 1  # in 6 of 12 stretches
    results = {result.regime: result for result in measure_regimes(-np.ones(6000), rows, {"hour": regime}, SMALL)}
    assert results["08 to 16 UTC"].stretches == 6 and results["08 to 16 UTC"].interval is None
    assert results["16 to 24 UTC"] == RegimeResult("hour", "16 to 24 UTC", 0, 0, None, None)


def test_short_stretches_give_no_interval():
    rows = np.arange(8 * 5 * 35)  # the rows of a regime span a little less: too short for 8 stretches of 5 gaps
    short = measure_regimes(-np.ones(len(rows)), rows, {"hour": rows % 3}, SMALL)
    assert {result.interval for result in short} == {None}
    rows = np.arange(8 * 5 * 35 + 6)
    assert all(item.interval for item in measure_regimes(-np.ones(len(rows)), rows, {"hour": rows % 3}, SMALL))


def test_the_interval_of_a_regime_is_that_of_every_other_figure():
    rows = np.arange(11, 6000)
    regimes = assign_regimes(CALM["close"].to_numpy(), CALM["date"], rows, SMALL)
    gains = np.random.default_rng(3).normal(0.1, 0.3, len(rows))
    chosen = regimes["trend"] == 2
    expected = stretch_interval(gains[chosen], rows[chosen], SMALL.future_window + SMALL.sequence_length - 1)
    found = {result.regime: result.interval for result in measure_regimes(gains, rows, regimes, SMALL)}
    assert found["rising prices"] == (expected.low, expected.high)


def test_values_of_other_rows_are_refused():
    with pytest.raises(CautionError, match="one value, one row and one regime for each window"):
        measure_regimes(np.ones(5), np.arange(6), {"hour": np.zeros(6)}, SMALL)


# ---------------------------------------------------------------- all together


def test_a_market_that_keeps_its_law_gives_no_caution():
    for seed in (5, 6, 7):
        candles = synthetic_candles(6000, seed=seed, timeframe="1h")
        assert find_cautions(prepare(candles, SMALL), candles) == ()


def test_all_cautions_of_a_broken_market_in_a_table_of_80_columns():
    candles = kill_market(CALM, 5700, 5999)
    candles.loc[5300:5699, "volume"] **= 3
    data = prepare(candles, SMALL)
    gains = np.full(len(data.test.rows), -0.1) + np.random.default_rng(0).normal(0, 0.01, len(data.test.rows))
    found = find_cautions(data, candles, gains)
    assert {"shift", "dead_market"} <= {caution.kind for caution in found}
    table = tabulate_cautions(found)
    assert max(map(len, table.splitlines())) <= 80
    assert "<table>" in tabulate_cautions(found, as_html=True)
    assert tabulate_cautions(()) == "No caution was found."


def test_candles_and_gains_of_another_market_are_refused():
    data = prepare(CALM, SMALL)
    with pytest.raises(CautionError, match="expected the 6000 candles of the training data, got 5000 after filling"):
        find_cautions(data, CALM.iloc[:5000])
    with pytest.raises(CautionError, match="expected one gain for each of 5.. test windows, got shape .3,."):
        find_cautions(data, CALM, np.ones(3))
