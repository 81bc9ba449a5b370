"""Windows on the price and the choice of a learning rate, at their edges."""

import numpy as np
import pytest

from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import DataError, prepare
from crypto_lstm.diagnostics.interpret import choose_worst, split_window
from crypto_lstm.diagnostics.lr_find import suggest_rate
from crypto_lstm.diagnostics.show_windows import show_windows

SIZES = {"sequence_length": 12, "lstm_units": (8,), "dense_units": (4,), "batch_size": 64}
CONFIG = Config(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2, **SIZES)


@pytest.fixture(scope="module")
def data():
    candles = synthetic_candles(3000, seed=3, timeframe="1h")
    return prepare(candles.drop(index=[700, 701, 1500]).reset_index(drop=True), CONFIG)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_each_window_is_of_its_class_and_part(data, part, count):
    gallery = show_windows(data, part=part, count=count)
    labels = dict(zip(data.parts[part].rows.tolist(), data.parts[part].labels.tolist(), strict=True))
    for name, rows in gallery.rows.items():
        assert len(rows) <= count and [CLASSES[labels[row]] for row in rows] == [name] * len(rows)


def test_windows_of_unknown_candles_are_refused(data):
    from dataclasses import replace

    with pytest.raises(DataError, match="pass candles="):
        show_windows(replace(data, candles=None))


def test_windows_without_a_class_leave_its_column_empty(data):
    from dataclasses import replace

    part = data.test
    only_hold = replace(
        data, test=type(part)(part.matrix, part.rows, np.ones(len(part.rows), int), sequence_length=12, batch_size=8)
    )
    gallery = show_windows(only_hold, part="test")
    assert [len(rows) for rows in gallery.rows.values()] == [0, 2, 0]
    gallery.plot()


@pytest.mark.parametrize("length", [1, 2, 7, 120])
@pytest.mark.parametrize("blocks", [1, 4, 200])
def test_blocks_cover_a_window_once(length, blocks):
    found = split_window(length, blocks)
    assert [candle for begin, end in found for candle in range(begin, end)] == list(range(length))


def test_the_worst_windows_do_not_overlap():
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(1000, 300, replace=False))
    chosen = choose_worst(rows, rng.random(300), 8, gap=40)
    assert len(chosen) == 8 and np.diff(np.sort(chosen)).min() >= 40


@pytest.mark.parametrize("place", [1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_at_the_steepest_place_of_a_noisy_curve(place):
    rates = np.geomspace(1e-6, 1, 100)
    falling = 1.1 - 0.3 / (1 + np.exp(-2 * np.log(rates / place))) + np.random.default_rng(1).normal(0, 0.004, 100)
    assert abs(np.log10(suggest_rate(rates, falling) / place)) < 0.5
