"""Memory of candles from the file to data ready to train, and the time of training spent in feeding, in one process.

Goals for 2,300,000 one-minute candles on two cores: at most 300 MB resident above the libraries, the candles included;
at most 2 % of a training step of the default network spent waiting for its batch; batches gathered 20 times as fast as
the network trains; memory added by `prepare` at most 4 times the bytes of features and labels.

    python -m benchmarks feeding                       a synthetic market of 2,300,000 candles
    python -m benchmarks feeding --missing 0.02        the same with gaps, short ones and some of 100 minutes
    python -m benchmarks feeding --candles FILE        any file that `read_candles` reads
    python -m benchmarks feeding --memory              memory only
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
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import sklearn.preprocessing  # noqa: F401 - `prepare` loads it; its memory must not count as that of the candles

from benchmarks.paths import ROOT
from benchmarks.speed.workers import time_median
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import TrainingData, prepare
from crypto_lstm.utils.display import text_table
from crypto_lstm.utils.system import MB, peak_memory_mb, process_memory_mb, reset_peak_memory


def write_candles(path: Path, count: int, missing: float) -> None:
    """A synthetic market as a feather file. Runs in a process of its own, whose memory is not measured."""
    candles, generator = synthetic_candles(count, seed=0, start="2020-01-01"), np.random.default_rng(1)
    kept = generator.random(count) >= missing
    for start in generator.integers(0, count, 60 if missing else 0):
        kept[start : start + 100] = False
    candles[kept].reset_index(drop=True).to_feather(path)


def measure_memory(path: Path, config: Config) -> tuple[TrainingData, list[list[str]]]:
    """Read and prepare a file: the data, and the rows on the growth of the process. The candles stay in memory."""
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
    own = added - read
    return data, [
        ["libraries only", f"{libraries:,.0f} MB", "the rows below are above this"],
        ["candles, read and held", f"{read:,.0f} MB", f"{columns:,.0f} MB are their columns; peak {read_peak:,.0f} MB"],
        ["ready to train, candles held", f"{added:,.0f} MB", "goal at 2,300,000 candles: at most 300 MB"],
        ["the highest while preparing", f"{peak:,.0f} MB", ""],
        ["added by prepare", f"{own:,.0f} MB", f"{own / kept:.1f} x features and labels (goal: at most 4)"],
        ["", "", f"{own / (data.train.matrix.nbytes / MB):.1f} x the features as float32 (PREPARED_COPIES)"],
        ["peer: all windows copied out", f"{as_windows:,.0f} MB", f"{as_windows / added:.0f} x as much (computed)"],
    ]


class Rounds(keras.utils.PyDataset):
    """A few steps of an epoch, and the seconds that gathering took. If `batch` is given, each step gets that batch."""

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


def measure_waiting(data: TrainingData, config: Config, steps: int, rounds: int) -> list[list[str]]:
    """`fit` on gathered batches and on one batch repeated, in turn: the share of the time that goes into gathering."""
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
                if name == "gathered":
                    shares.append(kinds[name].seconds / took)
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


def measure_speed(data: TrainingData, config: Config, steps: int) -> list[list[str]]:
    """Windows a second: gathered, gathered by Keras' own dataset, and trained."""
    batches, batch = min(len(data.train), 100), config.batch_size
    gathered = batches * batch / time_median(lambda: [data.train[i] for i in range(batches)], repeat=5)
    plain = keras.utils.timeseries_dataset_from_array(
        data.train.matrix[: (batches + 1) * batch], None, config.sequence_length, batch_size=batch, shuffle=True, seed=1
    )
    keras_rate = len(plain) * batch / time_median(lambda: [np.asarray(windows) for windows in plain], repeat=3)
    model = build_model(config)
    model.train_on_batch(*data.train[0])
    step_s = time_median(lambda: [model.train_on_batch(*data.train[i]) for i in range(steps)], repeat=3)
    trained = steps * batch / step_s
    return [
        ["training, default network", f"{trained:,.0f}", ""],
        [
            "batches gathered, WindowDataset",
            f"{gathered:,.0f}",
            f"{gathered / trained:,.0f} x training (goal: at least 20)",
        ],
        [
            "peer: timeseries_dataset_from_array",
            f"{keras_rate:,.0f}",
            f"WindowDataset is {gathered / keras_rate:.1f} x as fast",
        ],
    ]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks feeding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candles", type=Path, help="default: a synthetic market")
    parser.add_argument("--count", type=int, default=2_300_000, help="candles of the synthetic market")
    parser.add_argument("--missing", type=float, default=0.0, help="share of its candles that are missing")
    parser.add_argument("--steps", type=int, default=6, help="training steps in each timed round")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of fit on gathered and on repeated batches")
    parser.add_argument("--memory", action="store_true", help="memory only")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.write:
        write_candles(arguments.write, arguments.count, arguments.missing)
        return
    config = Config()
    machine = f"{platform.platform()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}, Keras {keras.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.candles or Path(folder) / "synthetic.feather"
        if not arguments.candles:
            size = ["--count", str(arguments.count), "--missing", str(arguments.missing)]
            command = [sys.executable, "-m", "benchmarks", "feeding", "--write", str(path), *size]
            subprocess.run(command, check=True, cwd=ROOT)
        data, rows = measure_memory(path, config)
    print(text_table([f"{len(data.dates):,} candles, gaps filled", "memory", ""], rows), end="\n\n")
    if not arguments.memory:
        rows = measure_waiting(data, config, arguments.steps, arguments.rounds)
        print(text_table(["batches of 256", "median", ""], rows), end="\n\n")
        print(text_table(["windows a second", "median", ""], measure_speed(data, config, arguments.steps)))
