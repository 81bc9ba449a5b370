"""The block bootstrap against plain resampling of rows."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.evaluation.block_bootstrap import RESAMPLES, assign_blocks, bootstrap_metrics
from crypto_lstm.evaluation.metrics import (
    confusion_matrix,
    decision_metrics,
    direction_accuracy,
    direction_cells,
    row_log_loss,
)


def make_answers(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities (rows, 3) that have some skill."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, size=rows, p=[0.2, 0.5, 0.3])
    probabilities = generator.dirichlet([1, 2, 1], size=rows)
    probabilities[np.arange(rows), labels] += 0.3
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def test_the_bootstrap_equals_resampled_rows():
    """Repeat the rows of each block as often as it was drawn, and compute the metrics of these rows."""
    labels, probabilities = make_answers(rows=120, seed=1)
    positions = np.cumsum(np.random.default_rng(2).integers(1, 4, size=120))
    blocks = assign_blocks(positions, length=20)
    losses = row_log_loss(labels, probabilities)
    resampled = bootstrap_metrics(labels, probabilities, blocks, {"log_loss": losses}, seed=3)
    count = blocks.max() + 1
    draws = np.random.default_rng(3).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    for number in range(0, RESAMPLES, 100):
        rows = np.repeat(np.arange(120), draws[number][blocks])
        metrics = decision_metrics(confusion_matrix(labels[rows], probabilities[rows].argmax(axis=1)))
        cells = direction_cells(labels[rows], probabilities[rows])
        metrics["direction"] = direction_accuracy(np.bincount(cells[cells >= 0], minlength=4))
        metrics["log_loss"] = losses[rows].mean()
        for name, value in metrics.items():
            assert math.isclose(resampled[name][number], value, rel_tol=1e-12), name


def test_blocks_do_not_overlap_and_have_no_gaps():
    rows = np.array([100, 101, 119, 120, 500, 519, 520])
    assert assign_blocks(rows, length=20).tolist() == [0, 0, 0, 1, 2, 2, 3]


def test_blocks_of_one_row_are_the_ordinary_bootstrap():
    """The spread of the accuracy is the standard error of a proportion, and rows repeated 50 times add nothing."""
    labels, probabilities = make_answers(rows=600, seed=4)
    drawn = bootstrap_metrics(labels, probabilities, np.arange(600), {})["accuracy"]
    accuracy = float((labels == probabilities.argmax(axis=1)).mean())
    assert abs(drawn.std() - math.sqrt(accuracy * (1 - accuracy) / 600)) < 2e-3
    blocks = assign_blocks(np.arange(30_000), 50)
    repeated = bootstrap_metrics(np.repeat(labels, 50), np.repeat(probabilities, 50, axis=0), blocks, {})["accuracy"]
    assert abs(repeated.std() - drawn.std()) < 2e-3
