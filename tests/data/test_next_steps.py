"""Steps of many streams that are computed together, beside streams that take their candles alone."""

import contextlib
import copy
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from support.interruption import interrupt_at

import crypto_lstm as cl
from crypto_lstm.data.candle_input import StreamError, parse_plain_candles, parse_sound_candle
from crypto_lstm.data.engine import compile_trees
from crypto_lstm.data.live_stream import LiveStream, compute_steps
from crypto_lstm.utils.expressions import parse_expression

MINUTE = 60_000_000_000
NAMES = ("date", "open", "high", "low", "close", "volume")
MS = 1_700_000_040_000
NOW = datetime.fromtimestamp(MS / 1000 + 60, UTC)
SOUND = [MS, 1.0, 2.0, 0.5, 1.5, 10]
PLAIN = {
    "a list": SOUND,
    "a tuple": tuple(SOUND),
    "a dictionary": dict(zip(NAMES, SOUND, strict=True)),
    "a timestamp": dict(zip(NAMES, SOUND, strict=True)) | {"date": pd.Timestamp(MS, unit="ms", tz="UTC")},
    "a date as float": [float(MS), *SOUND[1:]],
    "a date of NumPy": [np.int64(MS), *SOUND[1:]],
    "numbers of NumPy": [MS, *map(np.float64, SOUND[1:])],
    "large whole numbers": [MS, 2**60 + 1, 2**61 + 1, 1, 2**60 + 3, 2**62 + 1],
    "a further name": dict(zip(NAMES, SOUND, strict=True)) | {"funding": "text"},
}
UNUSUAL = {  # sound, of types that are read one by one
    "a series": pd.Series(dict(zip(NAMES, SOUND, strict=True))),
    "an array": np.array(SOUND),
    "a float32": [MS, np.float32(1), *SOUND[2:]],
}
FAULTY = {
    "off the grid": [MS + 1, *SOUND[1:]],
    "open": [MS + 60_000, *SOUND[1:]],
    "a bool": [MS, True, *SOUND[2:]],
    "a text": [MS, "1", *SOUND[2:]],
    "a NaN": [MS, float("nan"), *SOUND[2:]],
    "infinite": [MS, 1.0, float("inf"), *SOUND[3:]],
    "a low high": [MS, 1.0, 0.1, 0.5, 1.5, 10],
    "a price of zero": [MS, 0, 2.0, 0, 1.5, 10],
    "a negative volume": [*SOUND[:5], -1],
    "too large": [*SOUND[:5], 1e101],
    "nothing": None,
    "no cell": [],
    "one cell": [MS],
    "no names": {},
    "no date": [None, *SOUND[1:]],
    "microseconds": [MS * 1000, *SOUND[1:]],
    "before 1970": [-5, *SOUND[1:]],
    "a date beyond 64 bits": [10**30, *SOUND[1:]],
    "a date as bool": [True, *SOUND[1:]],
    "a date as text": dict(zip(NAMES, SOUND, strict=True)) | {"date": "2023-11-14"},
}


def test_plain_candles_are_parsed_as_one_by_one():
    cases = {**PLAIN, **UNUSUAL, **FAULTY}
    times, rows, is_sound = parse_plain_candles(list(cases.values()), MINUTE, NOW)
    assert dict(zip(cases, is_sound.tolist(), strict=True)) == dict.fromkeys(cases, False) | dict.fromkeys(PLAIN, True)
    for number, candle in enumerate(cases.values()):
        if is_sound[number]:
            assert parse_sound_candle(candle, MINUTE, NOW) == (int(times[number]), tuple(rows[number].tolist()))
    for candle in FAULTY.values():
        with pytest.raises(StreamError):
            parse_sound_candle(candle, MINUTE, NOW)
    for candle in PLAIN.values():  # alone: all dates of one type
        assert parse_plain_candles([candle], MINUTE, NOW)[2].tolist() == [True]


def test_further_columns_are_read_by_name_only():
    named = PLAIN["a dictionary"]
    candles = [named | {"funding": 0.5}, named, [*SOUND, 0.5], named | {"funding": float("nan")}, SOUND]
    _, rows, is_sound = parse_plain_candles(candles, MINUTE, NOW, ("funding",))
    assert is_sound.tolist() == [True, False, False, False, False] and rows[0].tolist() == [*SOUND[1:], 0.5]
    assert parse_sound_candle(candles[0], MINUTE, NOW, ("funding",))[1] == tuple(rows[0])


TEXTS = ("pct(close)", "lag(volume, 3)", "zscore(log(high / low), 5)", "ratio(close, mean(close, 7))", "rsi(close, 2)")
TEXTS += (
    "max(high, 4) - min(low, 6)",
    "tanh(diff(close, 2)) ** 1.5",
    "day_of_week()",
    "3",
    "std(sqrt(volume - 300), 4)",
)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 33])
def test_a_row_of_many_states_has_the_bits_of_a_block_of_one(size):
    """Values that are unknown at some rows, and states that are at different places of their blocks."""
    program = compile_trees({f"f{number}": parse_expression(text) for number, text in enumerate(TEXTS)}, 1)
    rng = np.random.default_rng(size)
    alone = [program.start() for _ in range(size)]
    for place in range(size):
        for time in range(place):
            columns = {name: rng.lognormal(5, 1, 1) for name in program.columns}
            alone[place], _ = program.feed(alone[place], np.array([time * MINUTE]), columns, np.array([time == 0]))
    together = [program.copy(state) for state in alone]
    for time in range(40, 70):
        times, starts = np.full(size, time * MINUTE), rng.random(size) < 0.1
        columns = {
            name: np.where(rng.random(size) < 0.1, np.nan, rng.lognormal(5, 1, size)) for name in program.columns
        }
        together, block = program.feed_each(together, times, columns, starts)
        for row in range(size):
            own = {name: values[row : row + 1] for name, values in columns.items()}
            alone[row], one = program.feed(alone[row], times[row : row + 1], own, starts[row : row + 1])
            assert [column[row].tobytes() for column in block.columns] == [column.tobytes() for column in one.columns]
            assert alone[row][:2] == together[row][:2]


FEATURES = ("close_change", "volume_change", "slow = ratio(close, mean(close, 3d))", "z = zscore(close, 4d)")
CONFIG = cl.Config(timeframe="12h", sequence_length=5, max_gap_minutes=1440, features=FEATURES)
MARKETS = [cl.synthetic_candles(80, seed=number, timeframe="12h").to_dict("records") for number in range(6)]


def push_together(streams, candles, closed_by):
    """The faults, by place, as `update_many` meets them."""
    faults = {}
    steps = compute_steps(streams, candles, closed_by)
    for place, (stream, candle, step) in enumerate(zip(streams, candles, steps, strict=True)):
        try:
            stream.push(candle, closed_by, step)
        except StreamError as error:
            faults[place] = str(error)
    return faults


def test_streams_with_lost_late_and_faulty_candles_equal_streams_alone():
    rng = np.random.default_rng(3)
    alone, together = ([LiveStream(CONFIG) for _ in MARKETS] for _ in range(2))
    late, faults = [], 0
    for now in range(70):
        closed_by = MARKETS[0][now]["date"] + pd.Timedelta("12h")
        candles = [market[now] for market in MARKETS]
        place = int(rng.integers(len(MARKETS)))
        if rng.random() < 0.3:  # lost now, and passed later
            late.append((place, candles[place]))
            candles[place] = candles[place] | {"high": 0.0}
        if late and rng.random() < 0.3:
            place, candle = late.pop()
            candles[place] = candle
        found = push_together(together, candles, closed_by)
        for number, (stream, candle) in enumerate(zip(alone, candles, strict=True)):
            try:
                stream.push(candle, closed_by)
                assert number not in found
            except StreamError as error:
                assert found[number] == str(error)
        faults += len(found)
        for one, other in zip(alone, together, strict=True):
            expected, state = one.state_dict(), other.state_dict()
            assert expected.keys() == state.keys()
            assert all(array.tobytes() == state[name].tobytes() for name, array in expected.items())
    assert faults > 10


def test_a_step_of_another_moment_is_not_taken():
    streams = [LiveStream(CONFIG) for _ in MARKETS[:2]]
    for stream, market in zip(streams, MARKETS, strict=False):
        stream.feed(pd.DataFrame(market[:30]))
    closed_by = MARKETS[0][40]["date"]
    steps = compute_steps(streams, [market[30] for market in MARKETS[:2]], closed_by)
    assert streams[0].push(MARKETS[0][30], closed_by)
    assert not streams[0].push(MARKETS[0][30], closed_by, steps[0])  # the candle came before
    assert compute_steps([], [], closed_by) == []


def test_an_exception_at_any_line_leaves_no_torn_stream():
    closed_by = MARKETS[0][40]["date"] + pd.Timedelta("12h")
    candles = [market[40] for market in MARKETS[:3]]
    origin = [LiveStream(CONFIG) for _ in candles]
    for stream, market in zip(origin, MARKETS, strict=False):
        stream.feed(pd.DataFrame(market[:40]))
    states = [stream.state_dict() for stream in origin]
    expected = copy.deepcopy(origin)
    push_together(expected, candles, closed_by)
    line, is_reached = 0, True
    while is_reached:
        line += 7 if line > 200 else 3  # of about 2,000 lines
        streams = [LiveStream(CONFIG) for _ in candles]
        for stream, state in zip(streams, states, strict=True):
            stream.load_state_dict(state)
        is_reached = interrupt_at(line, lambda streams=streams: push_together(streams, candles, closed_by))
        with contextlib.suppress(StreamError):
            push_together(streams, candles, closed_by)
        for stream, other in zip(streams, expected, strict=True):
            assert stream.time == other.time and np.array_equal(stream.window(), other.window()), line
    assert line > 200
