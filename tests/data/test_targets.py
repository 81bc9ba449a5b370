"""User targets: those of the barriers give the same data, trades equal a plain loop, and wrong tables are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import CLASSES, HOLD, LONG, Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.labels import LabelError, make_labels
from crypto_lstm.data.markets import prepare
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.targets import TargetError, fingerprint_targets, read_targets
from crypto_lstm.evaluation.simulator import Costs, SimulationError, simulate

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, long_tp_pct=2, long_sl_pct=2, short_tp_pct=2, short_sl_pct=2,
    max_gap_minutes=180,
)  # fmt: skip
OWN = CONFIG.replace(labels="own")
CANDLES = synthetic_candles(2_500, seed=3, timeframe="1h").drop(index=[900, 1400, 1401]).reset_index(drop=True)


def copy_barriers(candles: pd.DataFrame) -> pd.DataFrame:
    """The triple-barrier labels as targets of the user's."""
    filled = fill_gaps(candles, CONFIG.max_gap_minutes, "1h")
    labels = make_labels(candles, CONFIG).reindex(range(len(filled)))[~filled["filled"].to_numpy()]
    names = labels["label"].map(dict(enumerate(CLASSES)))
    table = {"target": names, "long_return": labels["long_return"], "short_return": labels["short_return"]}
    return pd.DataFrame(table).reset_index(drop=True)


def test_the_labels_of_barriers_as_targets_give_the_same_training_data():
    expected, got = prepare(CANDLES, CONFIG), prepare(CANDLES, OWN, targets=copy_barriers)
    assert got.prior == expected.prior
    for name, part in expected.parts.items():
        assert np.array_equal(part.rows, got.parts[name].rows)
        assert np.array_equal(part.labels, got.parts[name].labels)
        for column in ("long_return", "short_return"):
            assert np.array_equal(expected.outcomes_of(name)[column], got.outcomes_of(name)[column])
    assert np.array_equal(expected.train.matrix, got.train.matrix)


def test_user_targets_equal_to_barriers_give_equal_labels_for_several_markets():
    markets = {"A/USDT": CANDLES, "B/USDT": synthetic_candles(2_500, seed=4, timeframe="1h")}
    expected, got = prepare(markets, CONFIG), prepare(markets, OWN, targets=copy_barriers)
    assert np.array_equal(expected.train.labels, got.train.labels)
    assert expected.outcomes_of("test")["label"].tolist() == got.outcomes_of("test")["label"].tolist()


def test_a_trade_lasts_as_long_as_its_target_says():
    rng = np.random.default_rng(0)
    candles = synthetic_candles(400, seed=5, timeframe="1h")
    rows = np.arange(20, 360)
    decisions = rng.choice([LONG, HOLD], size=len(rows), p=[0.2, 0.8])
    holding = rng.integers(1, 25, size=len(rows))
    done = simulate(
        candles, rows, decisions, OWN, Costs(fee_pct=0.1), holding={"long": holding, "short": holding}, random_runs=0
    )
    opens, closes = candles["open"].to_numpy(), candles["close"].to_numpy()
    expected, free = [], -1
    for row, decision, candles_held in zip(rows.tolist(), decisions.tolist(), holding.tolist(), strict=True):
        if decision == LONG and row >= free:
            value = closes[row + candles_held] / opens[row + 1]
            expected.append((row, 100 * (value - 1) - 0.1 * (1 + value)))
            free = row + candles_held
    assert done.trades["row"].tolist() == [row for row, _ in expected]
    assert np.allclose(done.trades["net_pct"], [net for _, net in expected])
    assert set(done.trades["reason"]) == {"timeout"}


@pytest.mark.parametrize("values", [[0], [25], [1.5], [1, 2]])
def test_a_holding_beyond_the_window_is_refused(values):
    holding = {"long": np.array(values), "short": np.array(values)}
    with pytest.raises(SimulationError, match="from 1 to 24"):
        simulate(CANDLES, [30], [LONG], OWN, holding=holding)


def test_a_changed_target_changes_the_fingerprint():
    table = copy_barriers(CANDLES)
    first = fingerprint_targets(read_targets(table, CANDLES, OWN))
    assert first == fingerprint_targets(read_targets(copy_barriers, CANDLES, OWN))
    for name, value in (("target", "SHORT"), ("long_return", 0.25)):
        changed = table.copy()
        changed.loc[100, name] = value
        assert fingerprint_targets(read_targets(changed, CANDLES, OWN)) != first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: 7, "a function of the candles, or a table"),
        (lambda table: table.drop(columns="target"), "expected the column target"),
        (lambda table: table[:-1], "a row for each of the"),
        (lambda table: table.drop(columns="short_return"), "long_return and short_return"),
        (lambda table: table.assign(target="long"), "got 'long' in row 0"),
        (lambda table: table.assign(target=3), "got 3 in row 0"),
        (lambda table: table.assign(target=True), "got True in row 0"),
        (lambda table: table.assign(target=1, long_return=np.inf), "a finite number of percent, got inf in row 0"),
        (lambda table: table.assign(long_return="much"), "expected numbers"),
        (lambda table: table.assign(long_return=True), "booleans"),
        (lambda table: table.assign(candles=0), "from 1 to future_window, 24, got 0"),
        (lambda table: table.assign(candles=2.5), "got 2.5"),
        (lambda table: {"target": [1], "return": [1, 2]}, "columns of one length"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_by_column_and_row(change, words):
    with pytest.raises(TargetError, match=words):
        read_targets(change(copy_barriers(CANDLES)), CANDLES, OWN)


def test_targets_of_other_candles_and_labels_without_targets_are_refused():
    targets = read_targets(copy_barriers, CANDLES, OWN)
    with pytest.raises(TargetError, match="targets of the same candles"):
        prepare(CANDLES[1:].reset_index(drop=True), OWN, targets=targets)
    with pytest.raises(TargetError, match="no candle has a target"):
        prepare(CANDLES, OWN, targets=copy_barriers(CANDLES).assign(target=None))
    with pytest.raises(LabelError, match="the targets are yours"):
        prepare(CANDLES, OWN)
