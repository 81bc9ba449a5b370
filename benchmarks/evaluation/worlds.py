"""Invented markets and answers of a model whose metrics are known, for benchmarks of intervals and of luck.

A market is a random walk of five-minute candles. Its labels look four hours ahead, the model's window is one hour. The
model answers from two autoregressive processes, for the direction and for the size of a move. Their memory is a
setting: the hours in which their autocorrelation falls to 1/e.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from crypto_lstm.config import Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.evaluation.metrics import direction_accuracy, direction_cells, returns_after_fees, row_log_loss

CONFIG = Config(timeframe="5m", sequence_length=12, future_window=48)
CANDLES_PER_HOUR = 12
BLOCK = CONFIG.sequence_length + CONFIG.future_window  # candles of a block of `block_bootstrap`
PURGE_GAP = BLOCK - 1
PRIOR = np.array([0.25, 0.5, 0.25])  # the baseline of the log-loss gain
STEP_PCT = 0.13  # deviation of a five-minute return


@dataclass(frozen=True)
class Kind:
    """A kind of market: how strongly the answers move it, and how strongly its volatility drifts."""

    name: str
    edge: float  # drift of a step in deviations, per unit of the direction process
    drifting_volatility: float = 0.0  # deviation of the logarithm of the volatility


KINDS = (Kind("fair", 0.0), Kind("edge", 0.08), Kind("edge, drifting volatility", 0.08, 0.35))


@dataclass(frozen=True)
class History:
    """The judged rows of one market."""

    labels: np.ndarray  # (rows,)
    probabilities: np.ndarray  # (rows, 3)
    decisions: np.ndarray  # (rows,)
    log_loss_gain: np.ndarray  # (rows,) nats, over `PRIOR`
    net_return: np.ndarray  # (rows,) percent after fees; 0 for HOLD

    def take_first(self, rows: int) -> History:
        """The same history, ended after `rows` rows."""
        return History(*(column[:rows] for column in list_columns(self)))


def list_columns(history: History) -> list[np.ndarray]:
    """The columns of a history, in the order of its fields."""
    return [getattr(history, field.name) for field in fields(history)]


def make_process(generator: np.random.Generator, rows: int, decay: float) -> np.ndarray:
    """A stationary autoregression of order 1 with variance 1, whose autocorrelation falls to 1/e in `decay` rows."""
    from scipy.signal import lfilter

    factor = np.exp(-1 / decay)
    noise = generator.normal(size=rows) * np.sqrt(1 - factor**2)
    noise[0] = generator.normal()
    return lfilter([1], [1, -factor], noise)


def make_history(kind: Kind, memory_h: float, rows: int, seed: list[int]) -> History:
    """Draw one history of `rows` judged rows."""
    generator = np.random.default_rng(seed)
    candles = rows + CONFIG.future_window
    decay = memory_h * CANDLES_PER_HOUR
    direction, size, volatility = (make_process(generator, candles, decay) for _ in range(3))
    deviations = STEP_PCT * np.exp(kind.drifting_volatility * volatility)
    # the step into candle t follows the process before it, so an answer at the close of t predicts from t + 1 on
    drift = kind.edge * np.concatenate([[0.0], direction[:-1]])
    steps = deviations * (generator.normal(size=candles) + drift)
    outcomes = make_labels(_make_candles(steps), CONFIG)
    labels = outcomes["label"].to_numpy().astype(np.int64)
    probabilities = _answer(direction[:rows], size[:rows])
    decisions = probabilities.argmax(axis=1)
    return History(
        labels,
        probabilities,
        decisions,
        row_log_loss(labels, np.tile(PRIOR, (rows, 1))) - row_log_loss(labels, probabilities),
        returns_after_fees(decisions, outcomes, CONFIG.fee_pct),
    )


def _make_candles(steps: np.ndarray) -> pd.DataFrame:
    """Candles that open at the last close; high and low are the ends."""
    close = 100 * np.exp(np.cumsum(steps) / 100)
    opened = np.concatenate([[100.0], close[:-1]])
    dates = pd.date_range("2020-01-01", periods=len(close), freq="5min", tz="UTC")
    columns = {"open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close}
    return pd.DataFrame({"date": dates, **columns, "volume": 1.0})


def _answer(direction: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(rows, 3) softmax of both processes."""
    scores = np.exp(np.column_stack([-0.8 * direction, 0.3 + 0.5 * size, 0.8 * direction]))
    return scores / scores.sum(axis=1, keepdims=True)


def measure_old_direction(history: History) -> float:
    """The direction metric of `evaluation.metrics`, over all rows."""
    cells = direction_cells(history.labels, history.probabilities)
    return float(direction_accuracy(np.bincount(cells[cells >= 0], minlength=4)))
