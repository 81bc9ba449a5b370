"""Folds with targets of the user's: later candles change no fold, and a changed target changes its own folds alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.backtest.walk_forward import _make_backtest, _Source
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.synthetic import synthetic_candles

CONFIG = Config(timeframe="1h", sequence_length=12, future_window=24, batch_size=64)
CANDLES = synthetic_candles(3_000, seed=3, timeframe="1h")
SPANS = {"mode": "expanding", "step": 300, "test": 300, "first_train": 1_200, "validation": 0.2, "embargo": 0}


def label_change(candles: pd.DataFrame) -> pd.DataFrame:
    """The sign of the return after a day, with a dead band of one percent."""
    change = 100 * (candles["close"].shift(-24) / candles["close"] - 1)
    number = np.where(change > 1, 2, np.where(change < -1, 0, 1))
    names = pd.Series(number).map(dict(enumerate(CLASSES)))
    return pd.DataFrame({"target": names.where(change.notna()), "return": change})


def describe_folds(candles, targets) -> list[dict]:
    source = _Source(candles, CONFIG, targets, Path("folds"))
    backtest = _make_backtest("walk-forward", source, SPANS, {"deterministic": True}, {})
    return [backtest.describe_fold(fold, None)["fold"] for fold in backtest.folds]


@pytest.mark.parametrize("markets", [False, True])
def test_later_candles_change_no_fold(markets):
    short, long = CANDLES[:2_700].reset_index(drop=True), CANDLES
    if markets:
        other = synthetic_candles(3_000, seed=4, timeframe="1h")
        short, long = {"A": short, "B": other[:2_700].reset_index(drop=True)}, {"A": long, "B": other}
    before, after = describe_folds(short, label_change), describe_folds(long, label_change)
    assert len(before) < len(after) and all("targets_sha256" in fold for fold in after)
    assert before == after[: len(before)]


def test_a_changed_target_changes_the_folds_that_hold_it():
    before = describe_folds(CANDLES, label_change)
    table = label_change(CANDLES)
    table.loc[2_400, "return"] += 1
    after = describe_folds(CANDLES, table)
    same = [one == other for one, other in zip(before, after, strict=True)]
    assert same[0] and not same[-1]
    assert [one["rows_sha256"] for one in before] == [one["rows_sha256"] for one in after]
