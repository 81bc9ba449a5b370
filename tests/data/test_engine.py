"""The language of features: each function equals a plain loop, sees no future, and has the same bits live."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_lstm.config import Config
from crypto_lstm.data.candle_input import StreamError
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.engine import CAUSES, FORGOTTEN, compile_features, compile_trees, compute_expression
from crypto_lstm.data.feature_stream import FeatureStream
from crypto_lstm.data.features import compute_features, make_features
from crypto_lstm.data.layouts import CandleError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.utils.expressions import FUNCTIONS, parse_expression

ROWS, STEP = 300, 60_000_000_000
TIMES = 1_700_000_040_000_000_000 + np.arange(ROWS) * STEP


def random_columns(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Prices, volumes with zeros, and a column of the user's that is negative, zero and unknown now and then."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    funding = np.round(rng.normal(0, 1, rows), 1)
    funding[rng.random(rows) < 0.1] = np.nan
    spread = 1 + np.abs(rng.normal(0, 0.01, (2, rows)))
    volume = rng.choice([0.0, 0.0, 1.0, 7.5, 1e6], rows)
    return {"close": close, "high": close * spread[0], "low": close / spread[1], "volume": volume, "funding": funding}


def random_starts(seed: int, rows: int = ROWS) -> np.ndarray:
    starts = np.random.default_rng(seed).random(rows) < 0.02
    starts[0] = True
    return starts


def compute(text: str, columns: dict[str, np.ndarray], starts: np.ndarray, size: int = 131_072) -> np.ndarray:
    return compute_expression(text, TIMES[: len(starts)], columns, starts, 1, size)


# Plain loops: each gets the row and lists of values, and returns a number or None


def known(values: np.ndarray, row: int) -> list[float]:
    return [value for value in values[: row + 1].tolist() if not math.isnan(value)]


def over_last(function: Callable[[list[float]], float]) -> Callable[..., float | None]:
    def loop(row: int, starts: np.ndarray, x: np.ndarray, n: int) -> float | None:
        found = known(x, row)
        return function(found[-n:]) if len(found) >= n and not math.isnan(x[row]) else None

    return loop


def look_back(row: int, starts: np.ndarray, x: np.ndarray, n: int) -> float | None:
    is_whole = row >= n and not starts[row - n + 1 : row + 1].any()
    return x[row - n] if is_whole else None


def smooth(share: Callable[[int], float]) -> Callable[..., float | None]:
    def loop(row: int, starts: np.ndarray, x: np.ndarray, n: int) -> float | None:
        found = known(x, row)
        kept = 1 - share(n)
        if math.isnan(x[row]) or kept ** (len(found) - 1) >= FORGOTTEN and kept > 0:
            return None
        level = found[0]
        for value in found:
            level = level + share(n) * (value - level)
        return level

    return loop


def variance(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def standardise(values: list[float]) -> float | None:
    deviation = math.sqrt(variance(values))
    return (values[-1] - math.fsum(values) / len(values)) / deviation if deviation else None


WINDOWS: dict[str, Callable[..., float | None]] = {
    "sum": over_last(math.fsum),
    "mean": over_last(lambda values: math.fsum(values) / len(values)),
    "var": over_last(variance),
    "std": over_last(lambda values: math.sqrt(variance(values))),
    "min": over_last(min),
    "max": over_last(max),
    "zscore": over_last(standardise),
    "lag": look_back,
    "ema": smooth(lambda n: 2 / (n + 1)),
    "wilder": smooth(lambda n: 1 / n),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_a_function_of_the_past_equals_a_plain_loop(name, n):
    columns, starts = random_columns(n), random_starts(n)
    for column in ("close", "volume", "funding"):
        came = compute(f"{name}({column}, {n})", columns, starts)
        loop = [WINDOWS[name](row, starts, columns[column], n) for row in range(ROWS)]
        expected = np.array([math.nan if value is None else value for value in loop])
        assert np.array_equal(np.isnan(came), np.isnan(expected)), column
        scale = np.nanmax(np.abs(expected)) if np.isfinite(expected).any() else 1.0
        np.testing.assert_allclose(came, expected, rtol=1e-9, atol=1e-11 * scale)
        if name in ("min", "max", "lag"):
            assert np.array_equal(came, expected, equal_nan=True)


ONE_CANDLE: dict[str, Callable[[float, float], float | None]] = {
    "abs(funding)": lambda x, v: abs(x),
    "log(funding)": lambda x, v: math.log(x) if x > 0 else None,
    "exp(funding)": lambda x, v: math.exp(x),
    "exp(exp(8 * funding))": lambda x, v: math.exp(math.exp(8 * x)) if math.exp(8 * x) < 88 else None,  # of float32
    "sqrt(funding)": lambda x, v: math.sqrt(x) if x >= 0 else None,
    "sign(funding)": lambda x, v: (x > 0) - (x < 0),
    "tanh(funding)": lambda x, v: math.tanh(x),
    "sin(funding)": lambda x, v: math.sin(x),
    "cos(funding)": lambda x, v: math.cos(x),
    "min(funding, volume)": min,
    "max(0, funding)": lambda x, v: max(0.0, x),
    "clip(funding, -0.5, 1)": lambda x, v: min(max(x, -0.5), 1.0),
    "ratio(funding, volume)": lambda x, v: x / v if v else 1.0,
    "funding / volume": lambda x, v: x / v if v else None,
    "1 / (funding * 0)": lambda x, v: None,
    "-funding + 2 * volume - funding": lambda x, v: -x + 2 * v - x,
    "funding ** 2": lambda x, v: x * x,
    "volume ** 0.5": lambda x, v: v**0.5,
    "funding ** -1": lambda x, v: 1 / x if x else None,
    "funding ** 0.5": lambda x, v: x**0.5 if x >= 0 else None,
    "funding < 0": lambda x, v: x < 0,
    "funding <= 0": lambda x, v: x <= 0,
    "funding > volume": lambda x, v: x > v,
    "funding >= volume": lambda x, v: x >= v,
    "funding == 0": lambda x, v: x == 0,
    "funding != 0": lambda x, v: x != 0,
    "funding * 0 + 3": lambda x, v: 3.0,
}


@pytest.mark.parametrize("text", ONE_CANDLE)
def test_a_function_of_one_candle_equals_python(text):
    columns, starts = random_columns(5), random_starts(5)
    came = compute(text, columns, starts)
    for row in range(ROWS):
        x, v = float(columns["funding"][row]), float(columns["volume"][row])
        expected = None if math.isnan(x) and "funding" in text else ONE_CANDLE[text](x, v)
        if expected is None:
            assert math.isnan(came[row]), row
        else:
            assert came[row] == pytest.approx(float(expected), rel=1e-14, abs=1e-300), row


def test_the_clock_is_that_of_the_opening_in_utc():
    columns, starts = random_columns(5), random_starts(5)
    dates = pd.to_datetime(TIMES, utc=True)
    assert np.array_equal(compute("minute_of_day", columns, starts), dates.hour * 60 + dates.minute)
    assert np.array_equal(compute("day_of_week()", columns, starts), dates.day_of_week)


def test_changes_and_indicators_equal_plain_loops():
    columns = random_columns(6)
    starts = np.arange(ROWS) == 0
    high, low, close, volume = (columns[name] for name in ("high", "low", "close", "volume"))
    assert np.array_equal(compute("diff(close, 3)", columns, starts)[3:], close[3:] - close[:-3])
    change = [
        100 * (now - before) / before if before else 0.0 for before, now in zip(volume[:-1], volume[1:], strict=True)
    ]
    assert np.array_equal(compute("pct(volume)", columns, starts)[1:], change)
    ranges = [max(high[t] - low[t], abs(high[t] - close[t - 1]), abs(low[t] - close[t - 1])) for t in range(1, ROWS)]
    np.testing.assert_allclose(compute("true_range()", columns, starts)[1:], ranges, rtol=1e-12, atol=1e-12)
    level = ranges[0]
    for value in ranges:
        level += (value - level) / 5
    assert compute("atr(5)", columns, starts)[-1] == pytest.approx(level, rel=1e-9)
    levels = {3: close[0], 9: close[0]}
    for value in close:
        levels = {n: old + 2 / (n + 1) * (value - old) for n, old in levels.items()}
    assert compute("macd(close, 3, 9)", columns, starts)[-1] == pytest.approx(levels[3] - levels[9], rel=1e-9)
    typical = (high + low + close) / 3
    weights = [math.fsum(volume[t - 8 : t + 1]) for t in range(8, ROWS)]
    sums = [math.fsum((typical * volume)[t - 8 : t + 1]) for t in range(8, ROWS)]
    expected = [total / weight if weight else math.nan for total, weight in zip(sums, weights, strict=True)]
    np.testing.assert_allclose(compute("vwap(9)", columns, starts)[8:], expected, rtol=1e-12)


def test_every_function_of_the_table_is_tested_here():
    tested = {*WINDOWS, *(name for text in ONE_CANDLE for name in (text.split("(")[0],)), "diff", "pct", "rsi", "atr"}
    tested |= {"true_range", "macd", "vwap", "minute_of_day", "day_of_week", "max"}
    assert {function.name for function in FUNCTIONS} <= tested


def test_indicators_equal_ta_lib():
    """RSI, ATR, EMA and MACD of TA-Lib, once both have forgotten how they began."""
    talib = pytest.importorskip("talib")
    rows = 2000
    columns = random_columns(7, rows)
    times, starts = np.arange(rows) * STEP, np.arange(rows) == 0
    high, low, close = (columns[name] for name in ("high", "low", "close"))

    def ours(text: str) -> np.ndarray:
        return compute_expression(text, times, columns, starts, 1)[1000:]

    np.testing.assert_allclose(ours("rsi(close, 14)"), talib.RSI(close, 14)[1000:], rtol=1e-7)
    np.testing.assert_allclose(ours("atr(14)"), talib.ATR(high, low, close, 14)[1000:], rtol=1e-7)
    np.testing.assert_allclose(ours("ema(close, 20)"), talib.EMA(close, 20)[1000:], rtol=1e-9)
    np.testing.assert_allclose(
        ours("macd(close, 12, 26)"), talib.MACD(close, 12, 26, 9)[0][1000:], rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(ours("std(close, 20)"), talib.STDDEV(close, 20)[1000:], rtol=1e-6)


# Random expressions


SERIES = ("close", "high", "volume", "funding")


def draw_expressions(depth: int) -> st.SearchStrategy[str]:
    """Texts of expressions that are at most so deep."""
    leaf = st.sampled_from([*SERIES, "1", "0.5", "minute_of_day"])
    if depth == 0:
        return leaf
    below, span = draw_expressions(depth - 1), st.sampled_from(["1", "2", "3", "5", "9", "4m"])
    name = st.sampled_from(["abs", "log", "exp", "sqrt", "sign", "tanh", "sin", "cos"])
    windows = st.sampled_from([*WINDOWS, "diff", "pct"])
    return st.one_of(
        leaf,
        st.builds("({} {} {})".format, below, st.sampled_from(["+", "-", "*", "/", "<", ">=", "=="]), below),
        st.builds("{}({})".format, name, below),
        st.builds("{}({}, {})".format, windows, below, span),
        st.builds("{}({}, {})".format, windows, below, span),
        st.builds("ratio({}, {})".format, below, below),
        st.builds("rsi({}, 2)".format, below),
        st.builds("max(0, {})".format, below.filter(lambda text: not text[0].isdigit())),
        st.just("atr(2)"),
        st.just("vwap(3)"),
    )


@settings(max_examples=60, deadline=None)
@given(text=draw_expressions(5), seed=st.integers(0, 10_000), cut=st.integers(1, ROWS - 1))
def test_random_expressions_are_causal_and_equal_in_blocks_and_singles(text, seed, cut):
    columns, starts = random_columns(seed), random_starts(seed)
    whole = compute(text, columns, starts)
    changed = {name: np.concatenate([values[:cut], -3 * values[: cut - 1 : -1]]) for name, values in columns.items()}
    later = np.concatenate([starts[:cut], ~starts[cut:]])
    assert compute(text, changed, later)[:cut].tobytes() == whole[:cut].tobytes()
    for size in (1, 2, 1 + seed % 50):
        assert compute(text, columns, starts, size).tobytes() == whole.tobytes(), size


def test_the_causal_test_can_fail():
    columns, starts = random_columns(1), random_starts(1)
    ahead = np.append(columns["close"][1:], 0.0)
    changed = columns | {"close": np.where(np.arange(ROWS) < 100, columns["close"], 1.0)}
    assert not np.array_equal(ahead[:100], np.append(changed["close"][1:], 0.0)[:100])
    assert (
        np.array_equal(compute("lag(close)", columns, starts)[1:100], compute("lag(close)", changed, starts)[1:100])
        or starts[1:100].any()
    )


@pytest.mark.parametrize("name", ["sum", "mean", "var", "std"])
@pytest.mark.parametrize("span", [2, 60, 1440, 10_000])
def test_sums_and_moments_keep_nine_digits(name, span):
    rng = np.random.default_rng(span)
    rows = 3 * span + 2000
    times, starts = np.arange(rows) * STEP, np.zeros(rows, dtype=bool)
    for place in (span, span + 1, 2 * span - 1):  # at the beginning of a block, within it, at its end
        values = 40_000 + rng.normal(0, 1, rows)
        values[place] *= 1e6
        came = compute_expression(f"{name}(x, {span})", times, {"x": values}, starts, 1)
        for row in {place, place + 1, place + span // 2, place + span - 1, place + span, rows - 1}:
            part = values[row - span + 1 : row + 1].tolist()
            if len(part) == span and row < rows:
                exact = WINDOWS[name](len(part) - 1, starts, np.array(part), span)
                assert came[row] == pytest.approx(exact, rel=1e-9), (place, row)


def test_a_constant_has_no_deviation():
    columns, starts = {"x": np.full(500, 0.1)}, np.zeros(500, dtype=bool)
    assert not compute_expression("std(x, 60)", TIMES[:1] + np.arange(500) * STEP, columns, starts, 1)[59:].any()


# The table of features, and the stream


HOURLY = Config(
    timeframe="1h",
    sequence_length=4,
    max_gap_minutes=180,
    features={
        "close_change": "pct(close)",
        "rsi_6": "rsi(close, 6)",
        "z": "zscore(log(high / low), 12h)",
        "place": "(close - min(low, 1d)) / (max(high, 1d) - min(low, 1d))",
        "funding_sum": "sum(funding, 8h)",
        "trade_size": "log(volume)",
    },
    column_max_age={"funding": "2h"},
)


def own_candles(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    candles = synthetic_candles(rows, seed=seed, timeframe="1h")
    candles.loc[rng.random(rows) < 0.03, "volume"] = 0.0
    candles["funding"] = rng.normal(0, 1, rows)
    gone = rng.random(rows) < 0.1
    gone[rows // 2 : rows // 2 + 12] = True
    gone[0] = False
    return candles[~gone].reset_index(drop=True)


@pytest.mark.parametrize("seed", range(3))
def test_own_features_are_the_same_live(seed):
    candles = own_candles(700, seed)
    expected = make_features(candles, HOURLY).set_index("date")
    stream, rows, dates = FeatureStream(HOURLY), [], []
    stream.feed(candles[:150])
    for candle in candles[150:].to_dict("records"):
        stream.push(candle)
        if stream.latest() is not None:
            rows.append(stream.latest().copy())
            dates.append(candle["date"])
    wanted = expected[expected.index.isin(candles["date"][150:])]
    assert dates == list(wanted.index) and len(rows) > 100
    assert np.array_equal(np.stack(rows), wanted.to_numpy())
    other = FeatureStream(HOURLY)
    other.load_state_dict(stream.state_dict())
    late = candles.iloc[-1].to_dict() | {"date": candles["date"].iloc[-1] + pd.Timedelta(hours=1)}
    assert stream.push(late) and other.push(late)
    for name, array in stream.state_dict().items():
        assert array.tobytes() == other.state_dict()[name].tobytes(), name


def test_candles_without_a_feature_are_counted_by_cause():
    config = HOURLY.replace(column_max_age=["funding = 1h"])
    found = compute_features(fill_gaps(own_candles(700, 1), 180, "1h", config.column_ages), config)
    assert set(found.missing) == {CAUSES[1], CAUSES[2], CAUSES[3], CAUSES[5]}
    assert sum(found.missing.values()) == int(np.count_nonzero(~found.usable))
    assert not found.matrix[~found.usable].any()


def test_a_column_keeps_its_last_value_for_its_age_only():
    candles = own_candles(300, 2)
    first = int(np.flatnonzero(np.diff(candles["date"]) == pd.Timedelta(hours=3))[0])
    filled = fill_gaps(candles, 180, "1h", {"funding": 1})
    place = int(np.flatnonzero(filled["date"] == candles["date"][first])[0])
    funding = filled["funding"].to_numpy()[place : place + 4]
    assert funding[0] == funding[1] == candles["funding"][first]
    assert math.isnan(funding[2]) and funding[3] == candles["funding"][first + 1]
    assert fill_gaps(candles, 180, "1h", {"funding": 0})["funding"].isna().sum() == filled["filled"].sum()
    assert "funding" not in fill_gaps(candles, 180, "1h")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda frame: frame.drop(columns="funding"), "need the column funding"),
        (lambda frame: frame.rename(columns={"funding": "fundin"}), "did you mean fundin"),
        (lambda frame: frame.assign(funding="high"), "must hold numbers"),
        (lambda frame: frame.assign(funding=True), "must hold numbers"),
        (lambda frame: frame.assign(funding=frame["funding"].where(frame.index != 7)), "got nan in row 7"),
        (lambda frame: frame.assign(funding=frame["funding"].where(frame.index != 9, np.inf)), "got inf in row 9"),
        (lambda frame: frame.assign(funding=frame["funding"].astype("Float64").where(frame.index != 3)), "in row 3"),
        (lambda frame: frame.assign(funding=frame["funding"].astype("category")), "must hold numbers"),
    ],
)
def test_a_column_without_numbers_is_refused(change, fault):
    candles = change(own_candles(300, 3))
    with pytest.raises(CandleError, match=fault):
        make_features(candles, HOURLY)


def test_a_live_candle_needs_the_columns_by_name():
    candles = own_candles(300, 4)
    stream = FeatureStream(HOURLY)
    stream.feed(candles[:200])
    before, candle = stream.state_dict(), candles.iloc[200].to_dict()
    cells = [candle[name] for name in ("open", "high", "low", "close", "volume")]
    row = [int(candle["date"].timestamp() * 1000), *cells]
    wrong = {
        "missing": {name: value for name, value in candle.items() if name != "funding"},
        "none": candle | {"funding": None},
        "text": candle | {"funding": "0.1"},
        "nan": candle | {"funding": math.nan},
        "infinite": candle | {"funding": math.inf},
        "masked": candle | {"funding": np.ma.masked},
        "a row": row,
        "a long row": [*row, 0.1],
    }
    for name, one in wrong.items():
        with pytest.raises(StreamError, match="funding"):
            stream.push(one)
        with pytest.raises(StreamError, match="funding|columns of one length|expected candles"):
            stream.feed([one] if isinstance(one, list) else {key: [value] for key, value in one.items()})
        assert all(array.tobytes() == before[key].tobytes() for key, array in stream.state_dict().items()), name
    masked = {name: list(candles[name][200:210]) for name in candles} | {
        "funding": np.ma.masked_array(candles["funding"][200:210], mask=np.arange(10) == 4)
    }
    with pytest.raises(StreamError, match="funding as numbers, got a masked value"):
        stream.feed(masked)
    assert stream.push(candle)


def test_equal_parts_are_computed_once():
    trees = {f"a{n}": parse_expression(f"mean(close, 1d) * {n} + rsi(close, 14)") for n in range(5)}
    program = compile_trees(trees, 1)
    assert [step.operation for step in program.steps].count("sum") == 1
    assert [step.operation for step in program.steps].count("wilder") == 2
    assert compile_features(HOURLY) is compile_features(HOURLY.replace(seed=3))
