"""Features of a long history, of one candle, and their accuracy.

Goals: 2.3 million candles with the eight presets within twice the time of the former code; 40 features with spans up
to 30 days within 10 s, and at most 10 bytes a candle and feature on top of the result; a new candle with 40 features
within 1 ms; the same bits in batches, in blocks of any size and one by one; a relative error below 1e-9 beside
`math.fsum`.

    python -m benchmarks features                      a synthetic market of 2.3 million candles
    python -m benchmarks features --candles 300000     a shorter one
    python -m benchmarks features --only equal         bits of a million gapped candles: batch, blocks, one by one
    python -m benchmarks features --former FOLDER      the presets by the package of that folder, too

Times are those of the processor, of one thread: other programs of the machine do not count. FOLDER holds an earlier
version, such as
`git archive COMMIT crypto_lstm | tar -x -C FOLDER` writes it.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from crypto_lstm.config import Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.engine import compile_features, compute_expression
from crypto_lstm.data.feature_stream import FeatureStream
from crypto_lstm.data.features import make_feature_matrix
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.utils.display import text_table

SPANS = ("30m", "4h", "1d", "7d", "30d")
FORTY = Config(
    features=[
        *(f"mean_{span} = ratio(close, mean(close, {span}))" for span in SPANS),
        *(f"volume_{span} = ratio(volume, mean(volume, {span}))" for span in SPANS),
        *(f"z_{span} = zscore(log(high / low), {span})" for span in SPANS),
        *(f"std_{span} = std(pct(close), {span})" for span in SPANS),
        *(f"place_{span} = (close - min(low, {span})) / (max(high, {span}) - min(low, {span}) + 1)" for span in SPANS),
        *(f"move_{span} = pct(close, {span})" for span in SPANS),
        *(f"rsi_{n} = rsi(close, {n})" for n in (7, 14, 28)),
        *(f"atr_{n} = atr({n}) / close" for n in (14, 28)),
        "macd = macd(close, 12, 26) / close",
        "vwap = close / vwap(1d)",
        "hour = sin(minute_of_day * 6.283185307179586 / 1440)",
        "week = day_of_week / 7",
        "rising = close > mean(close, 4h)",
    ]
)
FORMER = """
import sys, time
from crypto_lstm.config import Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.features import make_feature_matrix
from crypto_lstm.data.synthetic import synthetic_candles
filled = fill_gaps(synthetic_candles(int(sys.argv[1]), seed=1))
seconds = []
for _ in range(3):
    start = time.process_time()
    make_feature_matrix(filled, Config())
    seconds.append(time.process_time() - start)
print(min(seconds))
"""


def measure_former(folder: str, candles: int) -> float:
    """Seconds that an earlier version takes for the presets, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": folder}
    command = [sys.executable, "-c", FORMER, str(candles)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    return float(done.stdout)


def measure_matrix(filled: pd.DataFrame, config: Config, rounds: int) -> float:
    """Seconds of the fastest of some rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        make_feature_matrix(filled, config)
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure_bytes(filled: pd.DataFrame, config: Config) -> float:
    """Bytes a candle and feature at the peak, beside the result."""
    tracemalloc.start()
    matrix, usable = make_feature_matrix(filled, config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - matrix.nbytes - usable.nbytes) / matrix.size


def measure_candle(config: Config, rounds: int = 1000) -> dict[str, float]:
    """Milliseconds of a new candle, after 30 days of history: median and the 95th percentile."""
    candles = synthetic_candles(config.month_candles + 5000 + rounds, seed=1)
    rows = candles.assign(date=candles["date"].astype("int64") // 10**6).to_numpy().tolist()
    stream = FeatureStream(config)
    stream.feed(rows[:-rounds])
    seconds = []
    for row in rows[-rounds:]:
        start = time.process_time()
        stream.push(row)
        seconds.append(time.process_time() - start)
    return {"median": 1000 * float(np.median(seconds)), "p95": 1000 * float(np.percentile(seconds, 95))}


def make_gapped(candles: int, long_gaps: int) -> pd.DataFrame:
    """So many candles; one in fifty is missing, and some hours in long gaps, each of which begins a new segment."""
    frame, rng = synthetic_candles(candles + candles // 20, seed=2), np.random.default_rng(0)
    gone = rng.random(len(frame)) < 0.02
    for start in rng.integers(0, candles, long_gaps):
        gone[start : start + 300] = True
    return frame[~gone][:candles].reset_index(drop=True)


class Bits(NamedTuple):
    """Candles whose features are compared with those of the batch."""

    filled: int  # rows of blocks, with those that fill gaps
    filled_differ: int
    singles: int  # candles that came one by one
    singles_known: int  # of them with all features
    singles_differ: int


def compare_bits(config: Config, candles: int, long_gaps: int, limit_s: float) -> Bits:
    """The batch beside blocks of random sizes, and beside candles one by one for so many seconds."""
    config = config.replace(sequence_length=1)
    gapped = make_gapped(candles, long_gaps)
    filled = fill_gaps(gapped)
    matrix, usable = make_feature_matrix(filled, config)
    expected = np.where(usable[:, None], matrix, np.float32(np.nan))
    blocks, singles = feed_blocks(gapped, config), feed_singles(gapped, config, limit_s)
    own = expected[~filled["filled"].to_numpy()][: len(singles)]
    known = int((~np.isnan(singles).any(axis=1)).sum())
    differ = count_different(blocks, expected), count_different(singles, own)
    return Bits(len(blocks), differ[0], len(singles), known, differ[1])


def count_different(found: np.ndarray, expected: np.ndarray) -> int:
    """Rows (rows, features) float32 that differ in some bit."""
    if found.shape != expected.shape:
        return len(expected)
    return int((found.view(np.int32) != expected.view(np.int32)).any(axis=1).sum())


def feed_blocks(gapped: pd.DataFrame, config: Config) -> np.ndarray:
    """(rows, features) of a stream that is fed blocks of 1 to 100,000 candles; NaN where a candle lacks a feature."""
    stream, rng, came, start = FeatureStream(config), np.random.default_rng(1), [], 0
    while start < len(gapped):
        rows = int(10 ** rng.uniform(0, 5))
        fed = stream.feed(gapped.iloc[start : start + rows])
        came.append(np.where(fed.run[:, None] > 0, fed.matrix, np.float32(np.nan)))
        start += rows
    return np.concatenate(came)


def feed_singles(gapped: pd.DataFrame, config: Config, limit_s: float) -> np.ndarray:
    """(candles, features) of a stream that is pushed candle by candle, as a bot does, until the time is over."""
    rows = gapped.assign(date=gapped["date"].astype("int64") // 10**6).to_numpy().tolist()
    stream, came, until = FeatureStream(config), [], time.monotonic() + limit_s
    nothing = np.full(len(config.features), np.nan, dtype=np.float32)
    for row in rows:
        stream.push(row)
        latest = stream.latest()
        came.append(nothing if latest is None else latest.copy())
        if time.monotonic() > until:
            break
    return np.array(came)


def show_bits(candles: int, limit_s: float) -> None:
    """Print how many candles differ, for the presets and for forty features."""
    rows = []
    cases = (("eight presets", Config(), 20, math.inf), (f"{len(FORTY.features)} features", FORTY, 4, limit_s))
    for name, *case in cases:
        found = compare_bits(case[0], candles, *case[1:])
        rows.append((f"{name}: {found.filled:,} rows in blocks that differ from the batch", found.filled_differ, "0"))
        singles = f"{found.singles:,} candles one by one ({found.singles_known:,} with all features) that differ"
        rows.append((f"{name}: {singles}", found.singles_differ, "0"))
    print(text_table(("measured", "found", "goal"), rows))


def measure_error(rows: int = 200_000, samples: int = 60) -> float:
    """The largest relative error of sums and variances beside `math.fsum`, around a value a million times larger."""
    rng = np.random.default_rng(3)
    values = rng.lognormal(0, 1, rows)
    values[rows // 3] *= 1e6
    starts, times = np.zeros(rows, dtype=bool), np.arange(rows) * 60_000_000_000
    worst = 0.0
    for span in (14, 1440, 43_200):
        for name in ("sum", "var"):
            found = compute_expression(f"{name}(x, {span})", times, {"x": values}, starts, 1)
            for row in rng.integers(max(span, rows // 3 - span), min(rows, rows // 3 + 3 * span), samples):
                part = values[row - span + 1 : row + 1]
                centre = math.fsum(part) / span
                exact = math.fsum(part) if name == "sum" else math.fsum((part - centre) ** 2) / span
                worst = max(worst, abs(found[row] / exact - 1))
    return worst


def main(words: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks features", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candles", type=int, help="default: 2,300,000 for time, 1,000,000 gapped ones for bits")
    parser.add_argument("--only", choices=("speed", "equal"), help="time, memory and accuracy, or equal bits")
    parser.add_argument("--seconds", type=float, default=240, help="for 40 features one by one; the presets take all")
    parser.add_argument("--former", metavar="FOLDER", help="a folder with an earlier version")
    arguments = parser.parse_args(list(words))
    if arguments.only != "equal":
        show_speed(arguments.candles or 2_300_000, arguments.former)
    if arguments.only != "speed":
        show_bits(arguments.candles or 1_000_000, arguments.seconds)
    return 0


def show_speed(candles: int, former: str | None) -> None:
    """Print time, memory and accuracy."""
    filled = fill_gaps(synthetic_candles(candles, seed=1))
    rows = []
    if former:
        rows.append(("eight presets, former version", f"{measure_former(former, len(filled)):.2f} s", "-"))
    rows.append(("eight presets", f"{measure_matrix(filled, Config(), 3):.2f} s", "twice the former version"))
    rows.append((f"{len(FORTY.features)} features", f"{measure_matrix(filled, FORTY, 1):.2f} s", "10 s"))
    rows.append(("memory beside the result", f"{measure_bytes(filled, FORTY):.1f} bytes a value", "10 bytes"))
    state_mb = compile_features(FORTY).measure_state_bytes() / 1e6
    rows.append(("memory of a live state", f"{state_mb:.1f} MB", "-"))
    for name, config in (("eight presets", Config()), (f"{len(FORTY.features)} features", FORTY)):
        found = measure_candle(config)
        goal = "1 ms" if config is FORTY else "-"
        rows.append((f"a new candle, {name}", f"{found['median']:.3f} ms (p95 {found['p95']:.3f})", goal))
    rows.append(("relative error beside fsum", f"{measure_error():.1e}", "1e-9"))
    print(text_table(("measured", "found", "goal"), rows))
