"""What candles take from the file to data ready to train, and what feeding costs the training, in one process.

Goals for 2,300,000 one-minute candles on two cores: at most 300 MB resident over the libraries, the candles included; at most 2 % of a
training step of the default network spent waiting for its batch; batches gathered 20 x as fast as it trains; memory added by `prepare` at
most 4 x the bytes of features and labels.

    python benchmarks/feeding.py                       a synthetic market of 2,300,000 candles
    python benchmarks/feeding.py --missing 0.02        the same with holes, short ones and some of 100 minutes
    python benchmarks/feeding.py --candles FILE        any file that read_candles understands
    python benchmarks/feeding.py --memory              memory alone
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import sklearn.preprocessing  # noqa: F401  a library that `prepare` loads; its memory is not the candles'

from crypto_lstm.architecture import build_model
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import Config
from crypto_lstm.utils.display import text_table
from crypto_lstm.utils.system import MB, peak_memory_mb, process_memory_mb, reset_peak_memory
from crypto_lstm.data.windows import TrainingData, prepare


def write_candles(path: Path, count: int, missing: float) -> None:
    """A synthetic market as a feather file; in a process of its own, whose memory nobody counts."""
    candles, generator = synthetic_candles(count, seed=0, start="2020-01-01"), np.random.default_rng(1)
    kept = generator.random(count) >= missing
    for start in generator.integers(0, count, 60 if missing else 0):
        kept[start : start + 100] = False
    candles[kept].reset_index(drop=True).to_feather(path)


def median_seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """Median wall time of some runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory_rows(path: Path, config: Config) -> tuple[TrainingData, list[list[str]]]:
    """Read and prepare a file, and what that added to the process. The candles are still held, as a caller would."""
    gc.collect()
    libraries = process_memory_mb()
    reset_peak_memory()
    candles = read_candles(path, now="2100-01-01")
    read, read_peak = process_memory_mb() - libraries, peak_memory_mb() - libraries
    reset_peak_memory()
    data = prepare(candles, config)
    gc.collect()
    added, peak = process_memory_mb() - libraries, peak_memory_mb() - libraries
    kept = (data.train.matrix.nbytes + data.outcomes.memory_usage(index=True).sum()) / MB
    as_windows = len(data.train.matrix) * config.sequence_length * len(config.features) * 4 / MB
    columns = candles.memory_usage(index=True).sum() / MB
    return data, [
        ["libraries alone", f"{libraries:,.0f} MB", "what follows is above this"],
        ["candles, read and held", f"{read:,.0f} MB", f"{columns:,.0f} MB are their columns; peak {read_peak:,.0f} MB"],
        ["ready to train, candles held", f"{added:,.0f} MB", "goal at 2,300,000 candles: at most 300 MB"],
        ["the highest while preparing", f"{peak:,.0f} MB", ""],
        ["prepare's own part", f"{added - read:,.0f} MB", f"{(added - read) / kept:.1f} x features and labels (goal: at most 4)"],
        ["", "", f"{(added - read) / (data.train.matrix.nbytes / MB):.1f} x the features as float32 (PREPARED_COPIES)"],
        ["peer: all windows copied out", f"{as_windows:,.0f} MB", f"{as_windows / added:.0f} x as much (computed, not allocated)"],
    ]


class Rounds(keras.utils.PyDataset):
    """A few steps of an epoch, with the seconds that its batches took; `batch` is given again and again instead where there is one."""

    def __init__(self, data: TrainingData, steps: int, batch: tuple[np.ndarray, ...] | None = None) -> None:
        super().__init__()
        self.train, self.steps, self.batch, self.seconds = data.train, steps, batch, 0.0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        start = time.perf_counter()
        batch = self.train[index] if self.batch is None else self.batch
        self.seconds += time.perf_counter() - start
        return batch


def waiting_rows(data: TrainingData, config: Config, steps: int, rounds: int) -> list[list[str]]:
    """`fit` on gathered batches and on one batch repeated, in turn: the share of its time that goes into gathering, and what is lost."""
    model = build_model(config)
    data.train.on_epoch_begin()
    kinds = {"gathered": Rounds(data, steps), "repeated": Rounds(data, steps, data.train[0])}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    shares = []
    for number in range(rounds + 1):
        for name in kinds if number % 2 else reversed(kinds):
            kinds[name].seconds = 0.0
            start = time.perf_counter()
            model.fit(kinds[name], shuffle=False, verbose=0)
            took = time.perf_counter() - start
            if number:  # the first round compiles
                times[name].append(took)
                shares += [kinds[name].seconds / took] if name == "gathered" else []
    ratios = sorted(one / other for one, other in zip(times["gathered"], times["repeated"], strict=True))
    quarter, spread = len(ratios) // 4, f"{min(shares):.2%} to {max(shares):.2%}"
    return [
        ["share of fit spent in gathering", f"{statistics.median(shares):.2%}", f"{spread} (goal: at most 2 %)"],
        [
            "fit, gathered / one batch repeated",
            f"{statistics.median(ratios):.3f}",
            f"middle half of {rounds} rounds: {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}",
        ],
    ]


def speed_rows(data: TrainingData, config: Config, steps: int) -> list[list[str]]:
    """Windows a second: gathered, gathered by Keras' own dataset, and trained."""
    batches, batch = min(len(data.train), 100), config.batch_size
    gathered = batches * batch / median_seconds(lambda: [data.train[i] for i in range(batches)])
    plain = keras.utils.timeseries_dataset_from_array(
        data.train.matrix[: (batches + 1) * batch], None, config.sequence_length, batch_size=batch, shuffle=True, seed=1
    )
    keras_rate = len(plain) * batch / median_seconds(lambda: [np.asarray(windows) for windows in plain], repeat=3)
    model = build_model(config)
    model.train_on_batch(*data.train[0])
    trained = steps * batch / median_seconds(lambda: [model.train_on_batch(*data.train[i]) for i in range(steps)], repeat=3)
    return [
        ["training, default network", f"{trained:,.0f}", ""],
        ["batches gathered, WindowDataset", f"{gathered:,.0f}", f"{gathered / trained:,.0f} x training (goal: at least 20)"],
        ["peer: timeseries_dataset_from_array", f"{keras_rate:,.0f}", f"WindowDataset is {gathered / keras_rate:.1f} x as fast"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candles", type=Path, help="default: a synthetic market")
    parser.add_argument("--count", type=int, default=2_300_000, help="candles of the synthetic market")
    parser.add_argument("--missing", type=float, default=0.0, help="share of its candles that are missing")
    parser.add_argument("--steps", type=int, default=6, help="training steps in each timed round")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of fit on gathered and on repeated batches")
    parser.add_argument("--memory", action="store_true", help="memory alone")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_candles(arguments.write, arguments.count, arguments.missing)
        return
    config = Config()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, Keras {keras.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.candles or Path(folder) / "synthetic.feather"
        if not arguments.candles:
            size = ["--count", str(arguments.count), "--missing", str(arguments.missing)]
            subprocess.run([sys.executable, __file__, "--write", str(path), *size], check=True)
        data, rows = memory_rows(path, config)
    print(text_table([f"{len(data.dates):,} candles, gaps filled", "memory", ""], rows), end="\n\n")
    if not arguments.memory:
        print(text_table(["batches of 256", "median", ""], waiting_rows(data, config, arguments.steps, arguments.rounds)), end="\n\n")
        print(text_table(["windows a second", "median", ""], speed_rows(data, config, arguments.steps)))


if __name__ == "__main__":
    main()
