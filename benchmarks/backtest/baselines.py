"""Simple baselines on invented markets: class prior, recent shares, logistic regression and boosting in one table.

    python -m benchmarks baselines [--candles 100000] [--seeds 3]

Each line is one kind of market, with the means over the seeds: balanced accuracy (1/3 without skill), log-loss after
prior correction, and the seconds of a fit. The features are those without the means of 30 days.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from crypto_lstm.config import FEATURES, Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import TrainingData, prepare
from crypto_lstm.evaluation.baselines import Baseline, fit_baselines, summarize_windows
from crypto_lstm.evaluation.metrics import confusion_matrix, decision_metrics
from crypto_lstm.utils.display import text_table

EDGES = (0.0, 0.3, 0.6)
CONFIG = Config(features=tuple(name for name in FEATURES if "43200" not in name))


def measure(data: TrainingData, baseline: Baseline) -> tuple[float, float, float]:
    """Balanced accuracy, log-loss and seconds on the test part."""
    labels = data.test.labels
    metrics = decision_metrics(confusion_matrix(labels, baseline.test.argmax(axis=1)))
    loss = baseline.compute_losses("test", labels, data.prior).mean()
    return float(metrics["balanced_accuracy"]), float(loss), baseline.fit_seconds


def measure_edge(edge: float, candles: int, seeds: int) -> list[list[str]]:
    """A row of the table for each baseline."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        data = prepare(synthetic_candles(candles, seed=seed, edge=edge), CONFIG)
        for name, baseline in fit_baselines(data).items():
            found.setdefault(name, []).append(measure(data, baseline))
    rows = []
    for name, figures in found.items():
        accuracy, loss, seconds = np.mean(figures, axis=0)
        rows.append([f"{edge:g}", name, f"{accuracy:.3f}", f"{loss:.4f}", f"{seconds:.1f}"])
    return rows


def measure_summaries(windows: int) -> str:
    """Time and memory of the summaries of many windows, a portion of 100,000 at a time."""
    matrix = np.random.default_rng(0).standard_normal((windows + 119, 8), dtype=np.float32)
    started = time.perf_counter()
    for first in range(119, windows + 119, 100_000):
        summarize_windows(matrix, np.arange(first, min(first + 100_000, len(matrix))), 120)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{windows:,} windows of 120 candles and 8 features: {seconds:.1f} s; peak of the process {peak:.0f} MB"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks baselines", description=__doc__.splitlines()[0])
    parser.add_argument("--candles", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=2_000_000, help="windows that are summarized; 0: none")
    options = parser.parse_args(words)
    if options.windows:
        print(measure_summaries(options.windows), flush=True)
    rows = []
    for edge in EDGES:
        rows += measure_edge(edge, options.candles, options.seeds)
    print(text_table(["edge", "baseline", "balanced accuracy", "log-loss", "fit s"], rows))
    return 0
