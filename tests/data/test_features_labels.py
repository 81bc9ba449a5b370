"""Features and labels equal plain loops, on synthetic and on real candles, without look-ahead."""

import gc
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.config import CLASSES, FEATURES, Config
from crypto_lstm.data import features as features_module
from crypto_lstm.data import labels as labels_module
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.features import FeatureError, compute_features, count_warmup_candles, make_features, rolling_mean
from crypto_lstm.data.labels import LabelError, count_labels, make_labels, plot_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.touches import OUTCOMES
from crypto_lstm.data.windows import prepare

DATA = Path(__file__).parents[3] / "shared" / "data"
PRICES = ["open", "high", "low", "close"]
HALF_DAYS = Config(
    timeframe="12h", max_gap_minutes=1440
)  # means over 2 and 60 candles: small enough for thousands of tries


def real_candles(name, start=0, stop=None):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real candles are not here: {name}")
    return pd.read_feather(path)[start:stop].reset_index(drop=True)


def random_values(rng, n, tick):
    """Prices on a coarse grid, so that barriers are met exactly, and volumes from nothing to 1e9."""
    close = np.maximum(100 + np.cumsum(rng.integers(-3, 4, n)) * tick, 5.0)
    opened = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(opened, close) + rng.integers(0, 4, n) * tick
    low = np.maximum(np.minimum(opened, close) - rng.integers(0, 4, n) * tick, 1.0)
    volume = rng.choice([0.0, 1e-8, 1.0, 7.5, 1e9], n)
    return {"open": opened, "high": high, "low": low, "close": close, "volume": volume}


def random_candles(seed, n, minutes, lost=0.1, tick=0.25):
    """A random walk of n candles of which some are missing, now and then several in a row."""
    rng = np.random.default_rng(seed)
    date = pd.date_range("2024-01-01", periods=n, freq=f"{minutes}min", tz="UTC")
    candles = pd.DataFrame({"date": date, **random_values(rng, n, tick)})
    gone = rng.random(n) < lost
    for start in rng.integers(0, n, 2):
        gone[start : start + 8] |= rng.random() < 0.5
    gone[0] = False
    return candles[~gone].reset_index(drop=True)


# Features


def plain_features(filled, t, config):
    """All eight features of row t from their definitions, with sums rounded once; None where there is no value."""
    high, low, close, volume = filled
    if t == 0:
        return None
    before = close[t - 1]
    row = [100 * (value[t] - before) / before for value in (high, low, close)]
    row.append(100 * (volume[t] - volume[t - 1]) / volume[t - 1] if volume[t - 1] != 0 else 0.0)
    for values in (close, volume):
        for span in (config.day_candles, config.month_candles):
            if t + 1 < span:
                return None
            mean = math.fsum(values[t + 1 - span : t + 1]) / span
            row.append(values[t] / mean if mean != 0 else 1.0)
    return row


def assert_features_match(candles, config, rows=None):
    filled = fill_gaps(candles, config.max_gap_minutes, config.timeframe)
    columns, segment = (
        [filled[name].tolist() for name in ("high", "low", "close", "volume")],
        filled["segment"].tolist(),
    )
    features = make_features(candles, config)
    for t in range(len(filled)) if rows is None else rows:
        want = plain_features(columns, t, config)
        if want is None or segment[t] != segment[t - 1]:
            assert t not in features.index
        else:
            np.testing.assert_allclose(
                features.loc[t, list(FEATURES)].to_numpy(dtype=np.float64), want, rtol=2e-7, atol=1e-30
            )
            assert features.at[t, "date"] == filled.at[t, "date"]


@pytest.mark.parametrize("seed", range(12))
def test_features_equal_the_definitions(seed):
    assert_features_match(random_candles(seed, 160, 720, lost=0.15), HALF_DAYS)


@pytest.mark.parametrize(
    "name", ["BTCUSD-1m-20180101-20190630-bitfinex.feather", "LTCUSD-1m-20190101-20190630-bitfinex.feather"]
)
def test_features_equal_the_definitions_on_real_candles(name):
    candles = real_candles(name, stop=60_000)
    filled = fill_gaps(candles)
    starts = np.flatnonzero(np.diff(filled["segment"])) + 1  # rows after long gaps: no features
    drawn = np.random.default_rng(0).integers(43_200, len(filled), 25)
    rows = [43_198, 43_199, 43_200, len(filled) - 1, *starts[starts > 43_199][:3], *drawn]
    assert_features_match(candles, Config(), [int(row) for row in rows])


def test_hourly_features_equal_the_definitions_on_real_candles():
    candles = real_candles("raw/freqtrade-BTC_USDT-1h.feather", stop=4000)[["date", *PRICES, "volume"]]
    config = Config(timeframe="1h", max_gap_minutes=240)
    assert (config.day_candles, config.month_candles, count_warmup_candles(config)) == (24, 720, 719)
    assert_features_match(candles, config, range(0, len(fill_gaps(candles, 240, "1h")), 7))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 158), scale=st.sampled_from([0.01, 0.5, 3.0, 1e6]))
def test_features_do_not_look_ahead(seed, cut, scale):
    candles = random_candles(seed, 160, 720)
    cut = min(cut, len(candles) - 2)
    now = candles["date"][cut]
    changed = candles.copy()
    other = random_values(np.random.default_rng(seed + 1), len(candles), 0.1)
    for name, values in other.items():
        changed.loc[cut + 1 :, name] = values[cut + 1 :] * scale
    before, after = (make_features(frame, HALF_DAYS) for frame in (candles, changed))
    assert before[before["date"] <= now].equals(after[after["date"] <= now])
    past = before[before["date"] <= now]
    if len(past):  # what is known at the time gives the same as what is known later
        assert make_features(candles[: cut + 1], HALF_DAYS).equals(past)


def test_the_look_ahead_test_can_fail():
    """The same comparison finds a mean that is centred on its row."""
    close = random_candles(3, 160, 720)["close"]
    changed = close.where(close.index <= 100, close * 2)
    centred = [values.rolling(9, center=True).mean()[:101] for values in (close, changed)]
    assert not centred[0].equals(centred[1])


@pytest.mark.parametrize("span", [1, 2, 1440, 43_200])
def test_rolling_mean_does_not_drift(span):
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 2, 150_000)
    values[50_000:] = 1e-8 * rng.lognormal(0, 1, 100_000)
    values[rng.integers(50_000, 60_000, 40)] = 10.0 ** rng.uniform(0, 9, 40)
    values[50_000] = 1e9
    mean = rolling_mean(values, span)
    assert np.isnan(mean[: span - 1]).all()
    for t in [span - 1, span, 50_000, 50_000 + span, 50_001 + span, 149_999, *rng.integers(span, 150_000, 60)]:
        fresh = math.fsum(values[t + 1 - span : t + 1]) / span
        assert abs(mean[t] / fresh - 1) < 1e-9


def test_rolling_mean_of_prices_over_a_year():
    rng = np.random.default_rng(0)
    prices = 40_000 * np.exp(np.cumsum(rng.normal(0, 7e-4, 525_600)))
    mean = rolling_mean(prices, 43_200)
    for t in (43_199, 100_000, 300_000, 525_599):
        assert abs(mean[t] / (math.fsum(prices[t - 43_199 : t + 1]) / 43_200) - 1) < 1e-11


def test_features_may_be_chosen_in_any_order():
    candles = random_candles(5, 160, 720)
    chosen = ["volume_to_ma1440", "close_change"]
    some, all_of_them = make_features(candles, HALF_DAYS.replace(features=chosen)), make_features(candles, HALF_DAYS)
    assert list(some) == ["date", *chosen] and len(some) > len(all_of_them)
    assert some.loc[all_of_them.index].equals(all_of_them[["date", *chosen]])
    assert set(some.dtypes[chosen]) == {np.dtype(np.float32)}


def test_means_run_over_a_long_gap_and_changes_do_not():
    candles = random_candles(1, 200, 720, lost=0)
    candles = pd.concat([candles[:100], candles[110:]], ignore_index=True)
    assert 100 not in make_features(candles, HALF_DAYS).index
    means = make_features(candles, HALF_DAYS.replace(features=["price_to_ma43200"]))
    fresh = candles["close"][41:101].mean()
    assert means.at[100, "price_to_ma43200"] == pytest.approx(candles["close"][100] / fresh, rel=1e-6)


def test_filled_candles_give_the_same_features_and_labels():
    candles = random_candles(2, 160, 720)
    filled = fill_gaps(candles, HALF_DAYS.max_gap_minutes, HALF_DAYS.timeframe)
    assert make_features(candles, HALF_DAYS).equals(make_features(filled, HALF_DAYS))
    config = HALF_DAYS.replace(future_window=5)
    assert make_labels(candles, config).equals(make_labels(filled, config))


def test_candles_are_not_changed():
    candles = random_candles(2, 160, 720)
    copy = candles.copy(deep=True)
    make_features(candles, HALF_DAYS)
    make_labels(candles, HALF_DAYS)
    assert candles.equals(copy)


def test_too_few_candles_for_features_are_refused():
    with pytest.raises(FeatureError, match="at least 43200 candles of 1m .* got 200"):
        make_features(synthetic_candles(200, seed=0, edge=0.0), Config())
    with pytest.raises(FeatureError, match="at least 2 candles"):
        make_features(synthetic_candles(200, seed=0, edge=0.0)[:1], Config(features=["close_change"]))
    assert len(make_features(random_candles(0, 60, 720, lost=0)[:60], HALF_DAYS.replace(max_gap_minutes=10**6))) == 1


@pytest.mark.parametrize(
    ("column", "value"), [("volume", np.nan), ("volume", -1.0), ("volume", np.inf), ("close", 0.0), ("high", np.nan)]
)
def test_unsound_values_are_refused(column, value):
    filled = fill_gaps(random_candles(0, 160, 720, lost=0), HALF_DAYS.max_gap_minutes, "12h")
    filled.loc[70, column] = value
    with pytest.raises(FeatureError, match=f"{column} must be .* in row 70"):
        make_features(filled, HALF_DAYS)


def test_a_candle_with_a_value_beyond_float32_is_left_out():
    filled = fill_gaps(random_candles(0, 160, 720, lost=0), HALF_DAYS.max_gap_minutes, "12h")
    filled["volume"] = 1.0
    filled.loc[80, "volume"] = 1e-310
    filled.loc[90, "volume"] = 1e-40
    features = compute_features(filled, HALF_DAYS)
    assert np.flatnonzero(~features.usable[59:]).tolist() == [81 - 59, 91 - 59]
    assert features.missing["a result that is not finite"] == features.missing["a value that float32 can't hold"] == 1


# Labels


def plain_side(high, low, close, t, side, config):
    """How a trade entered at close[t] ends, walking from candle to candle: outcome, candles until it, percent."""
    entry = close[t]
    up, down = (
        (config.long_tp_pct, config.long_sl_pct) if side == "long" else (config.short_sl_pct, config.short_tp_pct)
    )
    above, below = entry * (1 + up / 100), entry * (1 - down / 100)
    for k in range(1, config.future_window + 1):
        rose, fell = high[t + k] >= above, low[t + k] <= below
        target, stop = (rose, fell) if side == "long" else (fell, rose)
        if target and stop:
            target, stop = config.tie == "target", config.tie == "stop"
        if target:
            return "target", k, config.long_tp_pct if side == "long" else config.short_tp_pct
        if stop:
            return "stop", k, -(config.long_sl_pct if side == "long" else config.short_sl_pct)
    move = 100 * (close[t + config.future_window] - entry) / entry
    return "timeout", config.future_window, move if side == "long" else -move


def plain_labels(candles, config):
    """{row: (class, long end, short end)} for every row with a whole future in its segment."""
    filled = fill_gaps(candles, config.max_gap_minutes, config.timeframe)
    high, low, close, segment = (filled[name].tolist() for name in ("high", "low", "close", "segment"))
    found = {}
    for t in range(len(close)):
        future = segment[t + 1 : t + 1 + config.future_window]
        if len(future) < config.future_window or any(number != segment[t] for number in future):
            continue
        long, short = (plain_side(high, low, close, t, side, config) for side in ("long", "short"))
        wins = [
            (end[1], order, name)
            for order, (name, end) in enumerate([("LONG", long), ("SHORT", short)])
            if end[0] == "target"
        ]
        found[t] = (min(wins)[2] if wins else "HOLD", long, short)
    return found


def assert_labels_match(candles, config):
    labels, want = make_labels(candles, config), plain_labels(candles, config)
    assert labels.index.tolist() == list(want)
    assert [CLASSES[number] for number in labels["label"]] == [label for label, _, _ in want.values()]
    for number, side in ((1, "long"), (2, "short")):
        ends = [row[number] for row in want.values()]
        assert [OUTCOMES[code] for code in labels[f"{side}_outcome"]] == [end[0] for end in ends]
        assert labels[f"{side}_offset"].tolist() == [end[1] for end in ends]
        np.testing.assert_array_equal(labels[f"{side}_return"], np.array([end[2] for end in ends], dtype=np.float32))
    return labels


PERCENT = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    window=st.sampled_from([1, 2, 3, 7, 8, 9, 31, 32, 33]),
    tie=st.sampled_from(["stop", "target"]),
    percentages=st.tuples(PERCENT, PERCENT, PERCENT, PERCENT),
)
def test_labels_equal_a_plain_loop(seed, window, tie, percentages):
    names = ("long_tp_pct", "long_sl_pct", "short_tp_pct", "short_sl_pct")
    config = Config(future_window=window, tie=tie, max_gap_minutes=3, **dict(zip(names, percentages, strict=True)))
    candles = random_candles(seed, 150, 1, lost=0.02)
    if plain_labels(candles, config):
        assert_labels_match(candles, config)
    else:
        with pytest.raises(LabelError):
            make_labels(candles, config)


@pytest.mark.parametrize("tie", ["stop", "target"])
def test_labels_equal_a_plain_loop_on_a_synthetic_market(tie):
    labels = assert_labels_match(
        synthetic_candles(20_000, seed=3, edge=0.0), Config(tie=tie)
    )  # more than one portion of rows
    assert min(count_labels(labels).values()) > 100


@pytest.mark.parametrize("tie", ["stop", "target"])
@pytest.mark.parametrize(
    "name", ["BTCUSD-1m-20180101-20190630-bitfinex.feather", "LTCUSD-1m-20190101-20190630-bitfinex.feather"]
)
def test_labels_equal_a_plain_loop_on_real_candles(name, tie):
    candles = real_candles(name)
    around = int(np.flatnonzero(candles["date"].diff() > pd.Timedelta(minutes=61))[0])  # a gap too long to fill
    part = candles[max(around - 2500, 0) : around + 2500].reset_index(drop=True)
    filled = fill_gaps(part)
    assert filled["filled"].any() and filled["segment"].iloc[-1] > 0
    labels = assert_labels_match(part, Config(tie=tie))
    assert min(count_labels(labels).values()) > 20


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.integers(0, 100))
def test_a_label_sees_its_entry_and_its_window_only(seed, t):
    config = Config(future_window=12)
    candles = random_candles(seed, 150, 1, lost=0)
    candles = fill_gaps(candles, config.max_gap_minutes, config.timeframe)
    t = min(t, len(candles) - 13)
    changed = candles.copy()
    outside = (candles.index < t) | (candles.index > t + 12)
    changed.loc[outside, PRICES] *= 1.7
    labels, others = make_labels(candles, config), make_labels(changed, config)
    if t in labels.index:  # not dropped by a long gap
        assert labels.loc[[t]].equals(others.loc[[t]])


def test_labels_have_their_types():
    labels = make_labels(synthetic_candles(500, seed=0, edge=0.0), Config())
    assert list(labels)[:4] == ["date", "label", "long_outcome", "short_outcome"]
    assert list(labels)[4:] == ["long_offset", "short_offset", "long_return", "short_return"]
    assert [str(kind) for kind in labels.dtypes[1:]] == ["int8"] * 3 + ["int32"] * 2 + ["float32"] * 2
    assert labels.index.tolist() == list(range(380))


def test_too_few_candles_for_labels_are_refused():
    candles = synthetic_candles(300, seed=0, edge=0.0)
    with pytest.raises(LabelError, match="at least 121 candles .* longest of 120 candles has 120"):
        make_labels(candles[:120], Config())
    with pytest.raises(LabelError, match="the longest of 200 candles has 100"):
        make_labels(pd.concat([candles[:100], candles[200:]], ignore_index=True), Config())
    with pytest.raises(LabelError):
        make_labels(candles, Config(future_window=10**9))
    assert len(make_labels(candles[:121], Config())) == 1


def test_an_unsound_price_is_refused():
    filled = fill_gaps(synthetic_candles(300, seed=0, edge=0.0))
    filled.loc[7, "low"] = np.nan
    with pytest.raises(LabelError, match="low must be a finite number, got nan in row 7"):
        make_labels(filled, Config())


def test_features_and_labels_share_row_numbers():
    candles = random_candles(4, 200, 720)
    config = HALF_DAYS.replace(future_window=3)
    features, labels = make_features(candles, config), make_labels(candles, config)
    rows = features.index.intersection(labels.index)
    assert len(rows) > 50 and features.loc[rows, "date"].equals(labels.loc[rows, "date"])


def test_labels_can_be_plotted():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    candles = synthetic_candles(400, seed=0, edge=0.0)
    labels = make_labels(candles, Config())
    ax = plot_labels(candles, labels, [10, 200], Config())
    assert plot_labels(candles, labels, 10, Config(), ax=ax) is ax
    with pytest.raises(LabelError, match=r"rows \[399\] have no label"):
        plot_labels(candles, labels, 399, Config())
    matplotlib.pyplot.close("all")


# Portions and shared columns


@pytest.mark.parametrize("lost", [0.0, 0.1])
def test_portions_change_nothing(monkeypatch, lost):
    """Whole months of means and any number of labels at a time give the bits of one pass."""
    candles, config = random_candles(5, 1000, 720, lost), HALF_DAYS.replace(future_window=7)
    features, labels = make_features(candles, config), make_labels(candles, config)
    monkeypatch.setattr(features_module, "_PORTION", 1)
    for portion in (1, 13, 500):
        monkeypatch.setattr(labels_module, "_PORTION", portion)
        pd.testing.assert_frame_equal(make_features(candles, config), features, check_exact=True)
        pd.testing.assert_frame_equal(make_labels(candles, config), labels, check_exact=True)


@pytest.mark.parametrize("lost", [[], [500]])
def test_a_change_stays_in_its_own_table(lost):
    """Tables share their dates where they can; who writes into one changes no other."""
    candles = synthetic_candles(1000, timeframe="12h").drop(index=lost).reset_index(drop=True)
    before, late = candles.copy(deep=True), pd.Timestamp("2001-01-01", tz="UTC")
    filled, features, labels = (
        fill_gaps(candles, 1440, "12h"),
        make_features(candles, HALF_DAYS),
        make_labels(candles, HALF_DAYS),
    )
    for table in (filled, features, labels):
        table.loc[table.index[3], "date"] = late
        table.iloc[4, 0] = late
    filled.loc[5, ["open", "volume"]] = 1.0
    pd.testing.assert_frame_equal(candles, before)
    candles.iloc[:, 0] = late
    assert (features["date"] != late).sum() == len(features) - 2 and (labels["date"] != late).sum() == len(labels) - 2


@pytest.mark.parametrize(("lost", "allowed"), [(0, 64), (10, 80)])
def test_prepare_keeps_little_memory(lost, allowed):
    """Bytes per candle: features 32, outcomes 19, row numbers and classes 5; with gaps also dates and row numbers."""
    candles = synthetic_candles(100_000, timeframe="1h")
    candles = candles.drop(index=range(50_000, 50_000 + lost)).reset_index(drop=True)
    config = Config(timeframe="1h", max_gap_minutes=60, balance="none")
    prepare(candles[:5000].reset_index(drop=True), config)  # loads what it uses
    tracemalloc.start()
    try:
        data = prepare(candles, config)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 32 + 19 < kept / len(data.dates) < allowed
