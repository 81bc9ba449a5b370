"""How long it takes from a file of candles to features and labels, beside the plain way to compute them, in one run.

Goals for 773,837 one-minute candles on two cores: features within 1 s, with gaps filled; labels within 2 s; reading and
checking within 3 s.

    python -m benchmarks candles                       a synthetic market of 773,837 candles
    python -m benchmarks candles --candles FILE        any file that `read_candles` reads

Each figure is the median of five runs (`--repeat`). To add a measurement, write a function that returns a `Row` and
add it to `ROWS`.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.speed.workers import time_median
from crypto_lstm.config import FEATURES, HOLD, LONG, SHORT, Config
from crypto_lstm.data.candle_report import check_candles
from crypto_lstm.data.candles import fill_gaps, read_candles
from crypto_lstm.data.features import make_features
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.utils.display import text_table

SAMPLE = 20_000  # rows of the plain label loop; its time is extrapolated to all rows


@dataclass(frozen=True)
class Row:
    """One measurement: seconds of the package, its goal, and the seconds of a peer for the same work."""

    work: str
    ours_s: float
    goal_s: float | None = None
    peer: str = ""
    peer_s: float | None = None

    def cells(self) -> list[str]:
        """The cells of the table."""
        goal, peer, ratio = "-", "-", "-"
        if self.goal_s is not None:
            goal = f"{self.goal_s:g}{'' if self.ours_s <= self.goal_s else ' (missed)'}"
        if self.peer_s is not None:
            peer, ratio = f"{self.peer_s:.3f}", f"{self.peer_s / self.ours_s:.1f}"
        return [self.work, f"{self.ours_s:.3f}", goal, peer, ratio, self.peer]


@dataclass(frozen=True)
class Bench:
    """Shared by all measurements."""

    path: Path
    candles: pd.DataFrame  # as read, gaps not filled
    config: Config
    repeat: int

    def seconds(self, work: Callable[[], object]) -> float:
        """Median wall time of `repeat` runs."""
        return time_median(work, self.repeat)


def reading(bench: Bench) -> Row:
    """Read the file and check every candle."""
    seconds = bench.seconds(lambda: check_candles(read_candles(bench.path), bench.config.timeframe))
    if bench.path.suffix != ".feather":
        return Row("read and check", seconds, 3.0)
    unchecked = bench.seconds(lambda: pd.read_feather(bench.path))
    return Row("read and check", seconds, 3.0, "pandas.read_feather, nothing checked", unchecked)


def features(bench: Bench) -> Row:
    """Features from raw candles, against pandas' rolling means on the same candles."""
    ours, plain = make_features(bench.candles, bench.config), pandas_features(bench.candles, bench.config)
    if list(plain.index) != list(ours.index) or not np.allclose(ours[list(FEATURES)], plain, rtol=1e-4, atol=1e-4):
        raise SystemExit("expected the features of pandas' rolling means, got others: not the same work")
    seconds = bench.seconds(lambda: make_features(bench.candles, bench.config))
    peer = bench.seconds(lambda: pandas_features(bench.candles, bench.config))
    return Row("features", seconds, 1.0, "pandas rolling(n).mean()", peer)


def pandas_features(candles: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The eight features as one would write them with pandas."""
    filled = fill_gaps(candles, config.max_gap_minutes, config.timeframe)
    close, volume, before = filled["close"], filled["volume"], filled["close"].shift()
    changes = {name: 100 * (filled[name] - before) / before for name in ("high", "low", "close")}
    table = pd.DataFrame(changes).add_suffix("_change")
    last = volume.shift()
    table["volume_change"] = (100 * (volume - last) / last).where(last != 0, 0.0)
    for name, values in (("price", close), ("volume", volume)):
        for label, span in (("ma1440", config.day_candles), ("ma43200", config.month_candles)):
            mean = values.rolling(span).mean()
            table[f"{name}_to_{label}"] = (values / mean).where(mean != 0, 1.0)
    same = filled["segment"].diff().eq(0)
    return table.loc[same & (table.index >= config.month_candles - 1), list(FEATURES)].astype(np.float32)


def labels(bench: Bench) -> Row:
    """Labels from raw candles, against a loop over rows that uses NumPy in each, on a sample."""
    filled = fill_gaps(bench.candles, bench.config.max_gap_minutes, bench.config.timeframe)
    ours = make_labels(bench.candles, bench.config)
    sample = ours.index[:SAMPLE].to_numpy()
    if loop_labels(filled, bench.config, sample) != ours["label"][:SAMPLE].tolist():
        raise SystemExit("expected the labels of the plain loop, got others: not the same work")
    seconds = bench.seconds(lambda: make_labels(bench.candles, bench.config))
    extrapolated = bench.seconds(lambda: loop_labels(filled, bench.config, sample)) * len(ours) / len(sample)
    peer = f"loop over rows: {len(sample):,} timed, extrapolated to {len(ours):,}"
    return Row("labels", seconds, 2.0, peer, extrapolated)


def loop_labels(filled: pd.DataFrame, config: Config, rows: np.ndarray) -> list[int]:
    """The class of each row by the triple-barrier method, one row at a time (tie="stop")."""
    high, low, close = (filled[name].to_numpy() for name in ("high", "low", "close"))
    found = []
    for t in rows:
        future = slice(t + 1, t + 1 + config.future_window)
        up, down = high[future], low[future]
        long_profit = find_first(up >= close[t] * (1 + config.long_tp_pct / 100))
        long_loss = find_first(down <= close[t] * (1 - config.long_sl_pct / 100))
        short_profit = find_first(down <= close[t] * (1 - config.short_tp_pct / 100))
        short_loss = find_first(up >= close[t] * (1 + config.short_sl_pct / 100))
        long_wins, short_wins = long_profit < long_loss, short_profit < short_loss
        if long_wins and (not short_wins or long_profit <= short_profit):
            found.append(LONG)
        else:
            found.append(SHORT if short_wins else HOLD)
    return found


def find_first(touched: np.ndarray) -> int:
    """Index of the first True, or the length if there is none."""
    index = int(touched.argmax())
    return index if touched[index] else len(touched)


ROWS: tuple[Callable[[Bench], Row], ...] = (reading, features, labels)


def describe_machine() -> str:
    """System, cores and versions in one line."""
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}, pandas {pd.__version__}"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks candles", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candles", type=Path, help="file of one-minute candles; default: a synthetic market")
    parser.add_argument("--repeat", type=int, default=5, help="runs of which the median is shown")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.candles
        if path is None:
            path = Path(folder) / "synthetic.feather"
            synthetic_candles(773_837, seed=0, edge=0.0).to_feather(path)
        bench = Bench(path, read_candles(path), Config(), arguments.repeat)
        rows = [measure(bench) for measure in ROWS]
        print(describe_machine())
        source = "a synthetic market" if arguments.candles is None else path.name
        print(f"{len(bench.candles):,} candles from {source}; seconds, median of {bench.repeat}\n")
        header = ["work", "seconds", "goal", "peer", "peer / ours", "the peer"]
        print(text_table(header, [row.cells() for row in rows]))
