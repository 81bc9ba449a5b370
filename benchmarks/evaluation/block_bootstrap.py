"""The block bootstrap of blocks that do not overlap: a reference beside the intervals by stretches.

Source: Carlstein (1986), The Use of Subseries Values for Estimating the Variance of a General Statistic from a
Stationary Sequence. The evaluation of a model used it before; its 99 % intervals held the true value too seldom.
"""

from __future__ import annotations

import functools

import numpy as np

from crypto_lstm.config import CLASSES
from crypto_lstm.evaluation.metrics import decision_metrics, direction_accuracy, direction_cells

RESAMPLES = 2000


def assign_blocks(
    rows: np.ndarray,  # (rows,) position of each decision in time, ascending, in candles
    length: int,  # candles of a block
) -> np.ndarray:  # (rows,) number of the block: 0, 1, 2 ... without gaps
    """Cut rows into consecutive blocks of `length` candles that do not overlap."""
    numbers = (rows - rows[0]) // length
    return np.unique(numbers, return_inverse=True)[1]


def bootstrap_metrics(
    labels: np.ndarray,  # (rows,) true class
    probabilities: np.ndarray,  # (rows, 3)
    blocks: np.ndarray,  # (rows,) number of the block, from `assign_blocks`
    means: dict[str, np.ndarray],  # name -> (rows,) values whose mean is resampled too, such as log-losses
    seed: int = 0,
) -> dict[str, np.ndarray]:  # metric -> (2000,) values, one for each resample
    """Metrics of resampled parts: whole blocks are drawn with replacement.

    If a resample lacks a class that occurs in the part, its balanced accuracy and direction are NaN.
    """
    classes = len(CLASSES)
    draws = draw_blocks(int(blocks.max()) + 1, seed)
    cells = labels * classes + probabilities.argmax(axis=1)
    confusions = _count_cells(draws, blocks, cells, classes**2).reshape(-1, classes, classes)
    metrics = decision_metrics(confusions)
    directions = direction_cells(labels, probabilities)
    moved = directions >= 0
    metrics["direction"] = direction_accuracy(_count_cells(draws, blocks[moved], directions[moved], 4))
    occurs = np.bincount(labels, minlength=classes) > 0
    lacks_class = ((confusions.sum(axis=-1) == 0) & occurs).any(axis=-1)
    for metric in ("balanced_accuracy", "direction"):  # both need every class
        metrics[metric] = np.where(lacks_class, np.nan, metrics[metric])
    rows = confusions.sum(axis=(-2, -1))
    for name, values in means.items():
        metrics[name] = _sum_values(draws, blocks, values) / rows
    return metrics


@functools.lru_cache(maxsize=8)  # the draws depend on these two alone, and take most of the time
def draw_blocks(count: int, seed: int) -> np.ndarray:
    """(2000, blocks): how often each block was drawn in each resample."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def _count_cells(draws: np.ndarray, blocks: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """(2000, size): rows in each cell, for each resample."""
    count = draws.shape[1]
    counts = np.bincount(blocks * size + cells, minlength=count * size)
    return draws @ counts.reshape(count, size)


def _sum_values(draws: np.ndarray, blocks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(2000,): the sum of the values, for each resample."""
    count = draws.shape[1]
    sums = np.bincount(blocks, weights=values, minlength=count)
    return (draws @ sums.reshape(count, 1))[:, 0]
