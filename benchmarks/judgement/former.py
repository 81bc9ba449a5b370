"""The verdict that `evaluation.judgement` replaced: argmax signals, and percentiles of a bootstrap of short blocks.

Blocks are as long as a window and its label, the label returns of overlapping signals are averaged, and direction is
that of all rows whose label is SHORT or LONG, whether the model signals there or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from crypto_lstm.config import CLASSES, HOLD, LONG, SHORT, Config
from crypto_lstm.evaluation.metrics import decision_metrics

_RESAMPLES = 2000
_CONFIDENCE = 0.99
_MIN_BLOCKS = 10
_CLASSES = len(CLASSES)


@dataclass(frozen=True)
class FormerVerdict:
    """What the former judgement said of a part."""

    learnt: bool
    pays: bool
    signals: int  # rows whose most likely class is SHORT or LONG


def judge_as_before(answers: np.ndarray, outcomes: pd.DataFrame, config: Config) -> FormerVerdict:
    """Judge (rows, 3) answers of a network on the rows of `outcomes`."""
    labels = outcomes["label"].to_numpy().astype(np.int64)
    decisions = answers.argmax(axis=1)
    signals = int(np.count_nonzero(decisions != HOLD))
    rows = outcomes.index.to_numpy()
    blocks = (rows - rows[0]) // (config.future_window + config.sequence_length)
    count = int(blocks[-1]) + 1
    if count < _MIN_BLOCKS:
        return FormerVerdict(False, False, signals)
    draws = np.random.default_rng(config.seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    cells = _sum_cells(draws, blocks, labels * _CLASSES + decisions, _CLASSES**2)
    metrics = decision_metrics(cells.reshape(-1, _CLASSES, _CLASSES))
    lows = [_find_low(metrics["balanced_accuracy"]) - 1 / _CLASSES, _find_low(metrics["mcc"])]
    moved = labels != HOLD
    sides = 2 * (labels[moved] == LONG) + (answers[moved, LONG] > answers[moved, SHORT])
    lows.append(_find_low(_measure_direction(_sum_cells(draws, blocks[moved], sides, 4))) - 0.5)
    sums = np.bincount(blocks, weights=_list_returns(decisions, outcomes, config), minlength=count)
    return FormerVerdict(min(lows) > 0, _find_low(draws @ sums) > 0, signals)


def _find_low(values: np.ndarray) -> float:
    return float(np.nanpercentile(values, 50 * (1 - _CONFIDENCE)))


def _sum_cells(draws: np.ndarray, blocks: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """(resamples, size): rows in each cell."""
    count = draws.shape[1]
    return draws @ np.bincount(blocks * size + cells, minlength=count * size).reshape(count, size)


def _measure_direction(counts: np.ndarray) -> np.ndarray:
    """(resamples,) mean recall of SHORT and LONG; NaN without one of them."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shorts = counts[:, 0] / (counts[:, 0] + counts[:, 1])
        return (shorts + counts[:, 3] / (counts[:, 2] + counts[:, 3])) / 2


def _list_returns(decisions: np.ndarray, outcomes: pd.DataFrame, config: Config) -> np.ndarray:
    """(rows,) label return of each signal in percent after fees; 0 for HOLD."""
    longs, shorts = (outcomes[f"{side}_return"].to_numpy(np.float64) - 2 * config.fee_pct for side in ("long", "short"))
    return np.select([decisions == LONG, decisions == SHORT], [longs, shorts], 0.0)
