"""A bot's stream: missing candles are unknown, a step is taken whole or not at all, and invalid values are refused."""

from __future__ import annotations

import contextlib
import random
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from support import live_oracle
from support.interruption import interrupt_at
from support.live_oracle import CONFIG

from crypto_lstm.data.candle_input import StreamError, parse_candle, parse_candles
from crypto_lstm.data.feature_stream import FeatureStream
from crypto_lstm.data.live_stream import LiveStream
from crypto_lstm.data.synthetic import synthetic_candles

FRAME = synthetic_candles(140, seed=4, timeframe="12h")
ROWS = FRAME.assign(date=FRAME["date"].astype("int64") // 10**6).to_numpy().tolist()


def push_all(stream: LiveStream, rows: list[list[float]]) -> LiveStream:
    for row in rows:
        stream.push(row)
    return stream


# ---------------------------------------------------------------- missing candles


@pytest.mark.parametrize("seed", range(2))
def test_every_answer_equals_that_of_a_plain_oracle(seed):
    """`python -m benchmarks live` makes more calls."""
    tally = live_oracle.fuzz(calls=2000, seed=seed)
    assert tally.faults == []
    assert min(tally.refused, tally.with_hole, tally.windows) > 20, tally


@pytest.mark.parametrize("missing", [1, 3, 5, 30])
def test_late_candles_in_any_order_give_the_stream_that_saw_all_in_order(missing):
    config = CONFIG.replace(sequence_length=40)
    whole = push_all(LiveStream(config), ROWS)
    late = ROWS[105 - missing : 105]
    random.Random(missing).shuffle(late)
    stream = push_all(LiveStream(config), [*ROWS[: 105 - missing], *ROWS[105:110]])
    assert stream.window() is None
    assert stream.find_holes()[0].candles == missing
    push_all(stream, [*late, *ROWS[110:]])
    assert stream.find_holes() == []
    assert np.array_equal(stream.window(), whole.window())
    assert stream.state_dict().keys() == whole.state_dict().keys()


def test_one_call_of_feed_may_fill_the_hole():
    stream = push_all(LiveStream(CONFIG), [*ROWS[:100], *ROWS[103:105]])
    assert stream.feed(ROWS[100:103]) == 3
    assert np.array_equal(stream.window(), push_all(LiveStream(CONFIG), ROWS[:105]).window())


def test_a_history_with_a_hole_in_its_last_window_waits_as_well():
    kept = [*ROWS[:100], *ROWS[102:104]]
    stream = LiveStream(CONFIG)
    assert stream.feed(kept) == len(kept)
    assert stream.window() is None and stream.find_holes()[0].candles == 2
    older = LiveStream(CONFIG)
    older.feed([*ROWS[:90], *ROWS[92:104]])
    assert older.find_holes() == [] and older.window() is not None


def test_a_stream_that_fills_gaps_never_waits():
    stream = push_all(LiveStream(CONFIG, fill_gaps=True), [*ROWS[:100], *ROWS[103:104]])
    batch = FeatureStream(CONFIG)
    batch.feed([*ROWS[:100], *ROWS[103:104]])
    assert stream.filled_in_window() == 3
    assert np.array_equal(stream.window(), batch.window())


def test_the_state_holds_the_waiting_candles():
    stream = push_all(LiveStream(CONFIG), [*ROWS[:100], *ROWS[103:105]])
    other = LiveStream(CONFIG)
    other.load_state_dict(stream.state_dict())
    for one in (stream, other):
        one.feed(ROWS[100:103])
    assert np.array_equal(stream.window(), other.window())
    state = stream.state_dict()
    for name, wrong in {
        "waiting_times": np.array([1, 2], dtype=np.int64),
        "waiting_rows": np.zeros((1, 5)),
    }.items():
        with pytest.raises(StreamError):
            other.load_state_dict(state | {name: wrong})


def tamper(name: str, array: np.ndarray, chance: random.Random) -> np.ndarray:
    """The array with one value changed."""
    changed = array.copy()
    place = chance.randrange(max(array.size, 1))
    if array.dtype == bool:
        changed.flat[place] = not changed.flat[place]
    elif array.size:
        changed.flat[place] = chance.choice([-1, 0, 7, 10**15, -(2**62)])
    return changed


@pytest.mark.parametrize("seed", range(4))
def test_a_state_that_no_stream_can_have_written_is_refused(seed):
    chance = random.Random(seed)
    stream = push_all(LiveStream(CONFIG), [*ROWS[:100], *ROWS[103:105]])
    state, refused = stream.state_dict(), 0
    plausible = {"filled", "ring"}  # a plausible value of a feature, or of a mark, can't be told from the right one
    for _ in range(60):
        name = chance.choice(sorted(state))
        changed = tamper(name, state[name], chance)
        if np.array_equal(changed, state[name]):
            continue
        other = LiveStream(CONFIG)
        try:
            other.load_state_dict(state | {name: changed})
        except StreamError:
            refused += 1
            assert other.time is None
        else:
            assert name in plausible or np.min(changed) >= 0, name
    assert refused > 15


# ---------------------------------------------------------------- an exception in the middle of a step


STEPS = {
    "the next candle": (ROWS[:100], lambda stream: stream.push(ROWS[100])),
    "the last candle of a block of a mean": (ROWS[:119], lambda stream: stream.push(ROWS[119])),
    "a candle after a hole": (ROWS[:100], lambda stream: stream.push(ROWS[102])),
    "a late candle that ends a hole": ([*ROWS[:117], *ROWS[118:122]], lambda stream: stream.push(ROWS[117])),
    "many candles": (ROWS[:100], lambda stream: stream.feed(ROWS[100:125])),
    "the first history": ([], lambda stream: stream.feed(ROWS[:125])),
}


@pytest.mark.parametrize("name", STEPS)
def test_an_exception_at_any_line_leaves_no_torn_state(name):
    history, act = STEPS[name]
    rest = [row for row in ROWS if row not in history]
    line, whole = 0, push_all(LiveStream(CONFIG), ROWS)
    with_hole = push_all(LiveStream(CONFIG), [*ROWS[:100], *ROWS[102:]])
    origin = push_all(LiveStream(CONFIG), history)
    before, had_hole = origin.window(), bool(origin.find_holes())
    while True:
        line += 1
        stream = LiveStream(CONFIG)
        stream.load_state_dict(origin.state_dict())
        is_reached = interrupt_at(line, lambda stream=stream: act(stream))
        if stream.time == origin.time and bool(stream.find_holes()) == had_hole:  # the step was not taken
            assert np.array_equal(stream.window(), before) if before is not None else stream.window() is None, line
        with contextlib.suppress(StreamError):  # it was taken already
            act(stream)
        push_all(stream, [row for row in rest if row[0] * 10**6 > stream.time])
        expected = whole if name != "a candle after a hole" else with_hole
        assert stream.time == expected.time and np.array_equal(stream.window(), expected.window()), line
        if not is_reached:
            break
    assert line > 20


# ---------------------------------------------------------------- values that are no values


def columns(**changes) -> dict:
    return {name: FRAME[name].to_numpy().copy() for name in FRAME} | changes


def change_one(name: str, value: object) -> dict:
    cells = FRAME[name].astype(object).to_numpy().copy()
    cells[100] = value
    return columns(**{name: cells})


def mask_one(values: np.ndarray, at) -> np.ma.MaskedArray:
    masked = np.ma.array(values, mask=np.zeros(values.shape, dtype=bool))
    masked[at] = np.ma.masked
    return masked


def structured() -> np.ma.MaskedArray:
    records = FRAME.assign(date=FRAME["date"].dt.tz_localize(None)).to_records(index=False)
    table = np.ma.array(np.array(records))
    table["close"][100] = np.ma.masked
    return table


INVALID_TABLES = {
    "a masked cell in a column": (columns(close=mask_one(FRAME["close"].to_numpy(), 100)), "close.*masked.*row 100"),
    "a masked cell in rows": (mask_one(np.array(ROWS), (100, 4)), "close.*masked.*row 100"),
    "a masked cell in a structured array": (structured(), "close.*masked.*row 100"),
    "a masked date": (columns(date=mask_one(np.array([row[0] for row in ROWS]), 100)), "date.*masked.*row 100"),
    "None in a column": (change_one("volume", None), "volume.*None in row 100"),
    "pandas.NA in a column": (change_one("close", pd.NA), "close.*NA.*row 100"),
    "True in a column": (change_one("high", True), "high.*True of type bool in row 100"),
    "a Decimal in a column": (change_one("close", Decimal("1.5")), "close.*Decimal.*row 100"),
    "a text in a column": (change_one("close", "1.5"), "close.*the text '1.5' in row 100"),
    "a complex number in a column": (change_one("close", 1 + 0j), "close.*complex.*row 100"),
    "booleans": (FRAME.assign(volume=True), "volume as numbers, got bool"),
    "complex numbers": (FRAME.assign(close=FRAME["close"] + 0j), "close as numbers, got complex"),
    "categories": (FRAME.assign(close=FRAME["close"].astype("category")), "close as numbers, got categories"),
    "texts": (FRAME.assign(close=FRAME["close"].astype(str)), "close"),
    "True in a list of rows": ([*ROWS[:100], [*ROWS[100][:5], True]], "volume.*True of type bool in row 100"),
    "a text in a list of rows": ([*ROWS[:100], [*ROWS[100][:5], "7"]], "volume.*the text '7' in row 100"),
    "None in a list of rows": ([*ROWS[:100], [*ROWS[100][:5], None]], "volume.*None in row 100"),
    "time spans for dates": (columns(date=np.arange(len(FRAME)).astype("timedelta64[h]")), "row 0: expected a date"),
    "two levels of columns": (pd.concat({"BTC": FRAME}, axis=1), "no column date"),
}


@pytest.mark.parametrize("name", INVALID_TABLES)
def test_a_table_with_an_invalid_value_is_refused_by_name(name):
    table, message = INVALID_TABLES[name]
    stream = LiveStream(CONFIG)
    with pytest.raises(StreamError, match=message):
        stream.feed(table)
    assert stream.time is None


class NoOffset(tzinfo):
    def utcoffset(self, _):
        return None

    def dst(self, _):
        return None


class FailingOffset(NoOffset):
    def utcoffset(self, _):
        raise RuntimeError("no network")


class FailingCandle(dict):
    def __getitem__(self, name):
        raise OSError("the exchange is down")


NEXT = FRAME.iloc[100].to_dict()
INVALID_CANDLES = {
    "a masked value": (NEXT | {"close": np.ma.masked}, "close.*masked"),
    "a bool": (NEXT | {"close": True}, "close.*True of type bool"),
    "a NumPy bool": (NEXT | {"close": np.True_}, "close.*of type bool"),
    "pandas.NA": (NEXT | {"close": pd.NA}, "close.*NA"),
    "a Decimal": (NEXT | {"close": Decimal("1")}, "close.*Decimal"),
    "a complex number": (NEXT | {"close": 1 + 0j}, "close.*complex"),
    "an array": (NEXT | {"close": np.array([1.0])}, "close.*ndarray"),
    "seconds": (NEXT | {"date": 1_704_153_600}, "these are seconds"),
    "microseconds": (NEXT | {"date": 1_704_153_600_000_000}, "these are microseconds"),
    "nanoseconds": (NEXT | {"date": 1_704_153_600_000_000_000}, "these are nanoseconds"),
    "a time zone without an offset": (NEXT | {"date": datetime(2024, 1, 1, tzinfo=NoOffset())}, "that has an offset"),
    "a time zone that fails": (NEXT | {"date": datetime(2024, 1, 1, tzinfo=FailingOffset())}, "that has an offset"),
    "a span of time": (NEXT | {"date": timedelta(days=19_700)}, "expected a date"),
    "a candle that fails": (FailingCandle(NEXT), "expected a candle as"),
}


@pytest.mark.parametrize("name", INVALID_CANDLES)
def test_a_candle_with_an_invalid_value_is_refused_by_name(name):
    candle, message = INVALID_CANDLES[name]
    stream = push_all(LiveStream(CONFIG), ROWS[:100])
    with pytest.raises(StreamError, match=message):
        stream.push(candle)
    assert stream.time == ROWS[99][0] * 10**6


def test_numpy_numbers_and_unmasked_arrays_are_values():
    expected = parse_candle(ROWS[7])
    assert parse_candle([np.int64(ROWS[7][0]), *map(np.float64, ROWS[7][1:])]) == expected
    times, rows = parse_candles(np.ma.array(ROWS))
    assert (int(times[7]), tuple(rows[7])) == expected
    assert parse_candles([[int(row[0]), *row[1:]] for row in ROWS])[0][7] == expected[0]


def test_the_clock_is_named_when_a_candle_is_still_open():
    stream, close = LiveStream(CONFIG), datetime(2024, 1, 1, 12, tzinfo=UTC)
    candle = [int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1000), 1, 1, 1, 1, 1]
    with pytest.raises(StreamError, match="it closes at 2024-01-01 12:00:00.*the clock of this machine says"):
        stream.push(candle, closed_by=close - timedelta(milliseconds=300))
    assert stream.push(candle, closed_by=close)
