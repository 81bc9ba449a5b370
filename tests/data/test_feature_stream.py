"""The stream equals the batch and a plain loop, and a refused candle changes nothing."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.config import FEATURES, Config, ConfigError
from crypto_lstm.data.candle_input import StreamError, parse_candle, parse_candles, parse_time
from crypto_lstm.data.candle_rules import VALUE_COLUMNS
from crypto_lstm.data.candles import fill_gaps, read_candles
from crypto_lstm.data.feature_stream import FeatureStream
from crypto_lstm.data.features import make_features
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import find_window_ends

DATA = Path(__file__).parents[3] / "shared" / "data"
HOUR_NS = 3_600_000_000_000
CONFIG = Config(timeframe="12h", sequence_length=5, max_gap_minutes=2160)  # 30 days are 60 candles, a day is 2


def gappy(rows: int, seed: int, timeframe: str = "12h", keep: float = 0.8) -> pd.DataFrame:
    """Candles with minutes without trades, small gaps, and some long ones."""
    rng = np.random.default_rng(seed)
    candles = synthetic_candles(rows, seed=seed, timeframe=timeframe)
    candles.loc[rng.random(rows) < 0.2, "volume"] = 0.0
    gone = rng.random(rows) > keep
    for start in rng.integers(0, rows, 3):
        gone[start : start + 9] = True
    gone[0] = False
    return candles[~gone].reset_index(drop=True)


def records(candles: pd.DataFrame) -> list[dict]:
    return candles.to_dict("records")


def streamed(stream: FeatureStream, candles: pd.DataFrame) -> dict[pd.Timestamp, np.ndarray]:
    """The newest row after each candle that has all its features."""
    rows = {}
    for candle in records(candles):
        stream.push(candle)
        if stream.latest() is not None:
            rows[candle["date"]] = stream.latest().copy()
    return rows


def plain_features(candles: pd.DataFrame, config: Config) -> dict[pd.Timestamp, list[float]]:
    """The definitions as one loop, with a fresh mean for each candle; only for the full set of features."""
    step, history, found = pd.Timedelta(minutes=config.timeframe_minutes), [], {}
    for candle in records(candles):
        missing = int((candle["date"] - history[-1]["date"]) / step) - 1 if history else 0
        new_segment = missing * config.timeframe_minutes > config.max_gap_minutes
        if not new_segment:
            for _ in range(missing):
                flat = dict.fromkeys(("open", "high", "low", "close"), history[-1]["close"])
                history.append({"date": history[-1]["date"] + step, **flat, "volume": 0.0})
        if history and not new_segment and len(history) >= config.month_candles - 1:
            last, values = history[-1], []
            for name in ("high", "low", "close"):
                values.append(100 * (candle[name] - last["close"]) / last["close"])
            values.append(100 * (candle["volume"] - last["volume"]) / last["volume"] if last["volume"] else 0.0)
            for name in ("close", "volume"):
                for span in (config.day_candles, config.month_candles):
                    window = [row[name] for row in history[len(history) - span + 1 :]] + [candle[name]]
                    mean = math.fsum(window) / span
                    values.append(candle[name] / mean if mean else 1.0)
            found[candle["date"]] = values
        history.append(candle)
    return found


# Equal to the batch


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cut=st.integers(0, 299),
    gap=st.sampled_from([0, 720, 2160, 7200]),
    features=st.lists(st.sampled_from(FEATURES), min_size=1, unique=True),
)
def test_the_stream_equals_the_batch_to_the_bit(seed, cut, gap, features):
    config = CONFIG.replace(max_gap_minutes=gap, features=features)
    candles = gappy(400, seed)
    try:
        expected = make_features(candles, config).set_index("date")
    except Exception as error:  # too many gaps: there is nothing to compare
        assert "none of the" in str(error) or "at least" in str(error)
        return
    stream = FeatureStream(config)
    if cut:
        stream.feed(candles[:cut])
    rows = streamed(stream, candles[cut:])
    wanted = expected[expected.index.isin(candles["date"][cut:])]
    assert list(rows) == list(wanted.index)
    assert np.array_equal(np.stack(list(rows.values())) if rows else np.empty(wanted.shape), wanted.to_numpy())


@pytest.mark.parametrize("seed", range(5))
def test_the_stream_equals_a_plain_loop(seed):
    candles = gappy(300, seed)
    expected, rows = plain_features(candles, CONFIG), streamed(FeatureStream(CONFIG), candles)
    assert list(rows) == list(expected) and len(rows) > 50
    np.testing.assert_allclose(np.stack(list(rows.values())), np.array(list(expected.values())), rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 320), max_size=5))
def test_many_at_once_equal_one_by_one(seed, cuts):
    candles = gappy(400, seed)
    one, many = FeatureStream(CONFIG), FeatureStream(CONFIG)
    for candle in records(candles):
        one.push(candle)
    for part in np.split(np.arange(len(candles)), sorted({cut for cut in cuts if cut < len(candles)})):
        try:
            many.feed(candles.iloc[part])
        except StreamError as error:  # a short part may look like another timeframe by chance
            assert "most are" in str(error)
            for candle in records(candles.iloc[part]):
                many.push(candle)
    assert one.state_dict().keys() == many.state_dict().keys()
    for name, array in one.state_dict().items():
        if name == "ring":  # the place of the window differs
            window = one.window()
            assert (window is None) == (many.window() is None) and (
                window is None or np.array_equal(window, many.window())
            )
        elif name == "header":
            assert np.array_equal(np.delete(array, 2), np.delete(many.state_dict()[name], 2))
        else:
            assert np.array_equal(array, many.state_dict()[name]), name


@pytest.mark.parametrize("seed", range(4))
def test_runs_equal_the_windows_of_training(seed):
    candles = gappy(400, seed)
    filled = fill_gaps(candles, CONFIG.max_gap_minutes, CONFIG.timeframe)
    has = np.zeros(len(filled), dtype=bool)
    has[make_features(filled, CONFIG).index] = True
    fed = FeatureStream(CONFIG).feed(candles)
    assert np.array_equal(fed.run >= 5, find_window_ends(has, filled["segment"].to_numpy(), 5))
    assert np.array_equal(fed.filled, filled["filled"].to_numpy())
    assert np.array_equal(fed.times, filled["date"].dt.as_unit("ns").astype("int64"))


@pytest.mark.parametrize("timeframe", ["1m", "1h", "1d"])
def test_the_stream_equals_the_batch_on_every_timeframe(timeframe):
    config = Config(timeframe=timeframe, sequence_length=7)
    rows = config.month_candles + 60
    candles = synthetic_candles(rows, seed=3, timeframe=timeframe)
    stream = FeatureStream(config)
    stream.feed(candles[:-20])
    came = streamed(stream, candles[-20:])
    expected = make_features(candles, config).set_index("date").to_numpy()[-20:]
    assert np.array_equal(np.stack(list(came.values())), expected)
    assert np.array_equal(stream.window(), expected[-7:])


@pytest.mark.parametrize(
    "name", ["LTCUSD-1m-20190101-20190630-bitfinex.feather", "FILUSDT-1m-202308-202311-binance-um.feather"]
)
def test_the_stream_equals_the_batch_on_real_candles(name):
    """A year of many gaps, and one with minutes without trades: one by one after 30 days, beside the whole."""
    if not (DATA / name).is_file():
        pytest.skip(f"real candles are not here: {name}")
    config, candles = Config(), read_candles(DATA / name)[:60_000]
    expected = make_features(candles, config).set_index("date")
    stream = FeatureStream(config)
    stream.feed(candles[:40_000])
    worst, doubts = 0.0, 0
    for candle in records(candles[40_000:50_000]):
        stream.push(candle)
        doubts += stream.suspicion() is not None
        if stream.latest() is not None:
            came = stream.latest()
            worst = max(
                worst,
                float(np.max(np.abs(came - expected.loc[candle["date"]].to_numpy()) / np.maximum(np.abs(came), 1))),
            )
    assert worst <= 1e-6 and doubts == 0, (worst, doubts)


def test_missing_counts_down_to_the_first_window():
    candles = synthetic_candles(100, seed=1, timeframe="12h")
    stream = FeatureStream(CONFIG)
    for number, candle in enumerate(records(candles[:70])):
        assert stream.missing() == max(59 + 5 - number, 0)
        assert (stream.window() is not None) == (stream.missing() == 0)
        stream.push(candle)
    stream.push(candles.iloc[90])
    assert stream.missing() == 5 and stream.window() is None


# Refused candles


GOOD = synthetic_candles(100, seed=1, timeframe="12h")
LAST = GOOD.iloc[-1].to_dict()
NEXT = LAST | {"date": LAST["date"] + pd.Timedelta(hours=12)}
BAD = {
    "late": (GOOD.iloc[-2].to_dict(), "comes late"),
    "repeated, other volume": (LAST | {"volume": 7.5}, "came before with other values"),
    "NaN": (NEXT | {"close": math.nan}, "close must be a finite number"),
    "infinity": (NEXT | {"high": math.inf}, "high must be a finite number"),
    "negative infinity": (NEXT | {"low": -math.inf}, "low must be a finite number"),
    "zero price": (NEXT | {"low": 0.0}, "low must be above zero"),
    "negative volume": (NEXT | {"volume": -1.0}, "at least zero"),
    "high below low": (NEXT | {"high": NEXT["low"] / 2}, "high must be at least open, low and close"),
    "close above high": (NEXT | {"close": NEXT["high"] * 2}, "high must be at least open, low and close"),
    "off the grid": (NEXT | {"date": NEXT["date"] + pd.Timedelta(minutes=5)}, "whole steps"),
    "a nanosecond off": (NEXT | {"date": NEXT["date"] + pd.Timedelta(1, "ns")}, "whole steps"),
    "another timeframe": (NEXT | {"date": LAST["date"] + pd.Timedelta(hours=1)}, "whole steps"),
    "no zone": (NEXT | {"date": NEXT["date"].tz_localize(None)}, "time zone"),
    "no date": (NEXT | {"date": pd.NaT}, "date"),
    "seconds": (NEXT | {"date": int(NEXT["date"].timestamp())}, "multiply seconds by 1000"),
    "microseconds": (NEXT | {"date": int(NEXT["date"].timestamp() * 1e6)}, "milliseconds"),
    "text": (NEXT | {"close": "1,234.5"}, "expected close as a number, got the text '1,234.5'"),
    "None": (NEXT | {"volume": None}, "expected volume as a number, got None"),
    "a column missing": ({name: value for name, value in NEXT.items() if name != "volume"}, "expected a candle"),
    "five values": ([int(NEXT["date"].timestamp() * 1000), 1, 1, 1, 1], "expected a candle as"),
    "nothing": (None, "expected a candle"),
    "a number": (7, "expected a candle"),
    "too large": (NEXT | {"high": 1e200}, "high must be at most 1e\\+100"),
    "too large for a float": (NEXT | {"high": 10**400}, "high must be a finite number"),
    "the year 9999": (NEXT | {"date": datetime(9999, 1, 1, tzinfo=UTC)}, "dates from 1678 to 2261"),
    "the year 9999, of NumPy": (NEXT | {"date": np.datetime64("9999-01-01")}, "dates from 1678 to 2261"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_refused_candle_changes_nothing(name):
    candle, message = BAD[name]
    stream = FeatureStream(CONFIG)
    stream.feed(GOOD)
    before = stream.state_dict()
    with pytest.raises(StreamError, match=message):
        stream.push(candle)
    after = stream.state_dict()
    assert all(np.array_equal(array, after[name]) for name, array in before.items())
    assert stream.push(NEXT) is True


def test_a_candle_with_a_change_beyond_float32_has_no_features():
    stream = FeatureStream(CONFIG)
    stream.feed(GOOD)
    assert stream.push(NEXT | {"high": 1e60}) is True
    assert stream.latest() is None and stream.window() is None and stream.missing() == CONFIG.sequence_length


@pytest.mark.parametrize("name", [name for name in BAD if name not in ("nothing", "a number", "five values", "None")])
def test_feed_refuses_all_candles_for_one(name):
    candle, _ = BAD[name]
    stream = FeatureStream(CONFIG)
    stream.feed(GOOD)
    before = stream.state_dict()
    with pytest.raises(StreamError):
        stream.feed({key: [candle.get(key), NEXT[key]] for key in candle})
    assert all(np.array_equal(array, stream.state_dict()[name]) for name, array in before.items())


def test_the_newest_candle_again_is_not_new():
    stream = FeatureStream(CONFIG)
    stream.feed(GOOD)
    before = stream.state_dict()
    assert stream.push(LAST) is False
    assert len(stream.feed(GOOD[-1:]).times) == 0
    assert all(np.array_equal(array, stream.state_dict()[name]) for name, array in before.items())
    assert len(stream.feed(pd.DataFrame([LAST, NEXT])).times) == 1


def test_a_candle_must_be_closed():
    stream = FeatureStream(CONFIG)
    stream.feed(GOOD)
    close = NEXT["date"] + pd.Timedelta(hours=12)
    with pytest.raises(StreamError, match="not closed yet"):
        stream.push(NEXT, closed_by=close - pd.Timedelta(1, "us"))
    assert stream.push(NEXT, closed_by=close) is True


@pytest.mark.parametrize("minutes, often", [(5, 5), (15, 2), (60, 2), (3, 8), (2, 12)])
def test_another_timeframe_is_suspected_where_it_fits_the_grid(minutes, often):
    config = Config(sequence_length=5)
    stream = FeatureStream(config)
    stream.feed(synthetic_candles(100, seed=1))
    date = pd.Timestamp(stream.time, tz="UTC")
    for number in range(1, often + 1):
        assert stream.suspicion() is None
        stream.push(LAST | {"date": date + pd.Timedelta(minutes=minutes * number)})
    assert f"{minutes} minutes apart" in stream.suspicion()
    stream.push(LAST | {"date": date + pd.Timedelta(minutes=minutes * often + 1)})
    assert stream.suspicion() is None


def test_a_history_of_another_timeframe_is_refused():
    with pytest.raises(StreamError, match="most are 1h apart"):
        FeatureStream(Config()).feed(synthetic_candles(100, timeframe="1h"))
    with pytest.raises(StreamError, match="whole steps of 1h"):
        FeatureStream(Config(timeframe="1h")).feed(synthetic_candles(100, timeframe="1m"))


# Shapes of input, and the state


def test_dates_are_read_in_every_shape():
    expected = 1_709_805_600_000_000_000
    zoned = pd.Timestamp(expected, tz="Asia/Tokyo")
    numbers = (1_709_805_600_000, np.int64(1_709_805_600_000), 1_709_805_600_000.0)
    for date in (*numbers, datetime(2024, 3, 7, 10, tzinfo=UTC), zoned, np.datetime64("2024-03-07T10", "h")):
        assert parse_time(date) == expected
        assert parse_candle([date, 1, 1, 1, 1, 0])[0] == expected
    assert parse_time(pd.Timestamp(expected + 1, tz="UTC")) == expected + 1
    listed = {"date": [datetime(2024, 3, 7, 10, tzinfo=UTC)], **{name: [1.0] for name in VALUE_COLUMNS}}
    assert parse_candles(listed)[0].tolist() == [expected]


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s"])
def test_a_column_of_dates_may_have_any_unit(unit):
    candles = synthetic_candles(50, seed=1)
    times, _ = parse_candles(candles.assign(date=candles["date"].dt.as_unit(unit)))
    assert np.array_equal(times, parse_candles(candles)[0])


def test_a_state_continues_and_an_unknown_one_is_refused():
    stream, other = FeatureStream(CONFIG), FeatureStream(CONFIG)
    stream.feed(GOOD[:80])
    state = stream.state_dict()
    other.load_state_dict(state)
    for part in (stream, other):
        part.feed(GOOD[80:])
    assert all(np.array_equal(array, other.state_dict()[name]) for name, array in stream.state_dict().items())
    fresh = FeatureStream(CONFIG)
    fresh.load_state_dict(FeatureStream(CONFIG).state_dict())
    assert fresh.time is None
    for name, array in state.items():
        for wrong in (array[:-1], array.astype(np.complex128), np.full_like(array, -3)):
            spoilt = state | {name: wrong}
            if name in ("row", "ring") and wrong.shape == array.shape and wrong.dtype == array.dtype:
                continue  # any finite numbers may be there
            with pytest.raises(StreamError, match="feed the history anew"):
                fresh.load_state_dict(spoilt)
    with pytest.raises(StreamError):
        fresh.load_state_dict({name: array for name, array in state.items() if name != "row"})
    with pytest.raises(StreamError):
        fresh.load_state_dict(state | {"ring": np.full_like(state["ring"], np.nan)})
    assert fresh.time is None


def test_a_configuration_is_still_checked():
    with pytest.raises(ConfigError):
        FeatureStream(CONFIG.replace(sequence_length=0))


COLUMNS = {name: GOOD[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}
DATES = GOOD["date"].dt.tz_localize(None).to_numpy()
RAGGED = {
    "a date too few": COLUMNS | {"date": DATES[:-1]},
    "one date": COLUMNS | {"date": DATES[:1]},
    "one row, many dates": {name: values[:1] for name, values in COLUMNS.items()} | {"date": DATES},
    "a date alone": COLUMNS | {"date": DATES[0]},
    "columns of columns": {name: values[:, None] for name, values in COLUMNS.items()} | {"date": DATES},
    "numbers alone": dict.fromkeys(COLUMNS, 1.0) | {"date": DATES[:1]},
    "one column shorter": COLUMNS | {"date": DATES, "volume": COLUMNS["volume"][1:]},
    "the year 2500": COLUMNS | {"date": DATES.astype("datetime64[s]") + np.timedelta64(365 * 476, "D")},
}


@pytest.mark.parametrize("name", RAGGED)
def test_columns_of_different_lengths_are_refused(name):
    stream = FeatureStream(CONFIG)
    with pytest.raises(
        StreamError, match="expected candles with|dates from 1678 to 2261|column date must be"
    ):
        stream.feed(RAGGED[name])
    assert stream.time is None


def test_a_candle_without_a_filled_mark_counts_as_traded():
    whole = FeatureStream(CONFIG)
    whole.feed(GOOD)
    joined = pd.concat([GOOD[:300].assign(filled=False), GOOD[300:]], ignore_index=True)  # NaN from row 300 on
    stream = FeatureStream(CONFIG)
    stream.feed(joined)
    assert all(np.array_equal(array, stream.state_dict()[name]) for name, array in whole.state_dict().items())
