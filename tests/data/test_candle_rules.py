"""The rules of candles: frames and streams accept the same candles, and the module stays light."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.data.candle_input import StreamError, parse_time, require_sound_candle, require_sound_candles
from crypto_lstm.data.candle_report import check_candles
from crypto_lstm.data.candle_rules import (
    CANDLE_RULES,
    MINUTE_NS,
    VALUE_COLUMNS,
    datetime_to_ns,
    datetimes_to_ns,
    epochs_to_ns,
    find_broken_rule,
    find_violations,
    format_time,
    is_in_date_range,
)

START_NS = 1_704_067_200 * 10**9  # 2024-01-01
VALUES = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1.0, 2.0, 3.0, 1e100, 1.1e100, 1e308])
ROWS = st.tuples(*[VALUES] * 5)


def is_sound(row: tuple[float, ...]) -> bool:
    """The definition, written as one comparison."""
    opening, high, low, close, volume = row
    return 0 < low <= opening <= high <= 1e100 and low <= close <= high and 0 <= volume <= 1e100


@settings(deadline=None)
@given(ROWS)
def test_one_candle_is_sound_as_defined(row):
    assert (find_broken_rule(dict(zip(VALUE_COLUMNS, row, strict=True))) is None) == is_sound(row)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8))
def test_a_frame_and_a_stream_accept_the_same_candles(rows):
    times = START_NS + MINUTE_NS * np.arange(len(rows))
    frame = pd.DataFrame(rows, columns=list(VALUE_COLUMNS))
    frame.insert(0, "date", pd.to_datetime(times, unit="ns", utc=True))
    report = check_candles(frame, "1m", now="2025-01-01")
    assert report.ok == all(map(is_sound, rows))
    if report.ok:
        require_sound_candles(times, np.array(rows), MINUTE_NS)
        return
    first = next(number for number, row in enumerate(rows) if not is_sound(row))
    with pytest.raises(StreamError) as caught:
        require_sound_candles(times, np.array(rows), MINUTE_NS)
    with pytest.raises(StreamError) as of_one:
        require_sound_candle(int(times[first]), rows[first], MINUTE_NS)
    assert str(caught.value) == f"row {first}: {of_one.value}" and format_time(int(times[first])) in str(caught.value)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8))
def test_arrays_break_the_rules_that_single_candles_break(rows):
    columns = dict(zip(VALUE_COLUMNS, np.array(rows).T, strict=True))
    candles = [dict(zip(VALUE_COLUMNS, row, strict=True)) for row in rows]
    for violation in find_violations(columns):
        rules = [rule for rule in CANDLE_RULES if rule.kind == violation.kind]
        broken = [any(rule.is_broken_by(candle) for rule in rules) for candle in candles]
        assert violation.rows == sum(broken)
        assert not violation.rows or violation.first == broken.index(True)


@pytest.mark.parametrize(
    ("date", "is_accepted"),
    [("1677-12-31T23:59:59", False), ("1678-01-01", True), ("2261-12-31T23:59:59", True), ("2262-01-01", False)],
)
def test_all_inputs_share_the_limits_of_dates(date, is_accepted):
    moment = datetime.fromisoformat(date).replace(tzinfo=UTC)
    assert is_in_date_range(datetime_to_ns(moment)) == is_accepted
    for unit in ("s", "ms", "us", "ns"):
        assert datetimes_to_ns(np.array([date], dtype=f"datetime64[{unit}]"))[1].tolist() == [not is_accepted]
    for shape in (moment, np.datetime64(date, "s")):
        if is_accepted:
            assert parse_time(shape) == datetime_to_ns(moment)
        else:
            with pytest.raises(StreamError, match="expected dates from 1678 to 2261"):
                parse_time(shape)


@settings(deadline=None)
@given(st.integers(946_684_800, 4_102_444_799), st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_the_size_of_an_epoch_shows_its_unit(seconds, per_second):
    times, unknown = epochs_to_ns(np.array([seconds * per_second]))
    assert (times.tolist(), unknown.tolist()) == ([seconds * 10**9], [False])


@settings(deadline=None)
@given(st.datetimes(datetime(1678, 1, 2), datetime(2261, 12, 30)), st.integers(0, 999))
def test_times_are_exact_and_shown_as_pandas_shows_them(date, nanosecond):
    time = datetime_to_ns(date.replace(tzinfo=UTC)) + nanosecond
    assert time == (date - datetime(1970, 1, 1)) // timedelta(microseconds=1) * 1000 + nanosecond
    assert format_time(time) == str(pd.Timestamp(time, tz="UTC"))


LIGHT = ("candle_rules", "candle_input", "feature_stream", "scaler")
WITHOUT_TENSORFLOW = ("readers", "synthetic", "candles", "features", "labels")


@pytest.mark.parametrize("name", [*LIGHT, *WITHOUT_TENSORFLOW])
def test_an_import_loads_no_heavy_library(name):
    heavy = {"tensorflow", "keras", "matplotlib", "sklearn"}
    if name in LIGHT:
        heavy |= {"pandas", "pyarrow"}
    code = f"import sys, crypto_lstm.data.{name}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
