"""What `prepare` adds to resident memory, and how fast batches are gathered beside the training that they feed, in one process.

Goals for 773,837 one-minute candles on two cores: memory added at most 4 x the bytes of features and labels; batches of 256
gathered 20 x as fast as the default network trains.

    python benchmarks/feeding.py                       a synthetic market of 773,837 candles
    python benchmarks/feeding.py --candles FILE        any file that read_candles understands
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np

from crypto_lstm.architecture import build_model
from crypto_lstm.candles import read_candles, synthetic_candles
from crypto_lstm.config import Config
from crypto_lstm.display import text_table
from crypto_lstm.resources import MB, peak_memory_mb, process_memory_mb, reset_peak_memory
from crypto_lstm.windows import TrainingData, prepare


def median_seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """Median wall time of some runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory_rows(candles, config: Config) -> tuple[TrainingData, list[list[str]]]:
    """Prepare the candles, and what that added to the process; the small run first loads every library that is used."""
    prepare(synthetic_candles(50_000, seed=1), config)
    gc.collect()
    before = process_memory_mb()
    reset_peak_memory()
    data = prepare(candles, config)
    peak = peak_memory_mb() - before
    gc.collect()
    added = process_memory_mb() - before
    kept = (data.train.matrix.nbytes + data.outcomes.memory_usage(index=True).sum()) / MB
    as_windows = len(data.train.matrix) * config.sequence_length * len(config.features) * 4 / MB
    return data, [
        ["features and labels", f"{kept:,.0f} MB", ""],
        ["added by prepare, resident", f"{added:,.0f} MB", f"{added / kept:.1f} x features and labels (goal: at most 4)"],
        ["added while it runs, at the peak", f"{peak:,.0f} MB", f"{peak / kept:.1f} x"],
        [
            "peer: all windows copied out",
            f"{as_windows:,.0f} MB",
            f"{as_windows / added:.0f} x what prepare adds (computed, not allocated)",
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candles", help="default: a synthetic market of 773,837 candles")
    parser.add_argument("--steps", type=int, default=6, help="training steps in each of three timed rounds")
    arguments = parser.parse_args()
    config = Config()
    candles = read_candles(arguments.candles) if arguments.candles else synthetic_candles(773_837, seed=0)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, Keras {keras.__version__}")
    data, rows = memory_rows(candles, config)
    print(text_table([f"{len(candles):,} candles", "memory", ""], rows), end="\n\n")
    print(text_table(["windows a second, batches of 256", "median", ""], speed_rows(data, config, arguments.steps)))


if __name__ == "__main__":
    main()
