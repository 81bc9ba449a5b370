"""Barriers that follow an expression: labels, simulator and rule agree with plain loops; 1 changes no bit."""

import math

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import HOLD, LONG, SHORT, Config, ConfigError
from crypto_lstm.data.barriers import BarrierError, compute_barrier_scale
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.labels import LabelError, make_labels, plot_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.evaluation.lookahead import audit_lookahead
from crypto_lstm.evaluation.rule_fit import measure_mean_returns
from crypto_lstm.evaluation.simulator import Costs, simulate

SCALE = "100 * std(pct(close) / 100, 1d)"
CONFIG = Config(
    timeframe="1h", features=("close_change", "price_to_ma1440"), sequence_length=12, future_window=12, batch_size=32,
    long_tp_pct=2, long_sl_pct=1.5, short_tp_pct=2.5, short_sl_pct=1, barrier_scale=SCALE, fee_pct=0,
)  # fmt: skip
CANDLES = synthetic_candles(900, seed=5, timeframe="1h").drop(index=[*range(300, 302), *range(500, 580)])
FILLED = fill_gaps(CANDLES.reset_index(drop=True), timeframe="1h")


def loop_scale() -> list[float]:
    """Standard deviation of the last 24 changes in percent that are known, as plain Python."""
    close, segment = FILLED["close"].tolist(), FILLED["segment"].tolist()
    known, scales = [], []
    for row, price in enumerate(close):
        if row and segment[row] == segment[row - 1]:
            known.append(100 * (price - close[row - 1]) / close[row - 1])
        last = known[-24:]
        mean = math.fsum(last) / 24
        scales.append(math.sqrt(math.fsum((x - mean) ** 2 for x in last) / 24) if len(last) == 24 else math.nan)
    return scales


def loop_side(row: int, sign: int, target_pct: float, stop_pct: float) -> tuple[int, int, float]:
    """Outcome, offset and return of a trade from the close of a row."""
    entry = FILLED["close"].iloc[row]
    target, stop = entry * (1 + sign * target_pct / 100), entry * (1 - sign * stop_pct / 100)
    for offset in range(1, CONFIG.future_window + 1):
        high, low = FILLED["high"].iloc[row + offset], FILLED["low"].iloc[row + offset]
        best, worst = (high, low) if sign > 0 else (-low, -high)
        if worst <= sign * stop:
            return 1, offset, -stop_pct
        if best >= sign * target:
            return 0, offset, target_pct
    return 2, CONFIG.future_window, sign * 100 * (FILLED["close"].iloc[row + CONFIG.future_window] / entry - 1)


def test_the_scale_equals_a_plain_loop():
    scale = compute_barrier_scale(FILLED, CONFIG)
    wanted = np.array(loop_scale())
    known = np.isfinite(scale)
    np.testing.assert_allclose(scale[known], wanted[known], rtol=1e-9)
    assert np.isfinite(wanted[~known]).sum() <= 24  # just after a gap; the engine counts candles, known or not


def test_labels_equal_a_plain_loop():
    labels, scale = make_labels(FILLED, CONFIG), compute_barrier_scale(FILLED, CONFIG)
    segment = FILLED["segment"].to_numpy()
    wanted_rows = [
        row for row in range(len(FILLED) - 12) if np.isfinite(scale[row]) and segment[row] == segment[row + 12]
    ]
    assert labels.index.tolist() == wanted_rows
    assert (labels["barrier_scale"].to_numpy() == scale[wanted_rows]).all()
    for row in wanted_rows[::7]:
        found = labels.loc[row]
        long = loop_side(row, 1, 2 * scale[row], 1.5 * scale[row])
        short = loop_side(row, -1, 2.5 * scale[row], 1 * scale[row])
        assert (found["long_outcome"], found["long_offset"]) == long[:2]
        assert (found["short_outcome"], found["short_offset"]) == short[:2]
        assert found["long_return"] == pytest.approx(long[2], rel=1e-5, abs=1e-6)
        assert found["short_return"] == pytest.approx(short[2], rel=1e-5, abs=1e-6)
        long_wins, short_wins = long[0] == 0, short[0] == 0
        first = LONG if long_wins and (not short_wins or long[1] <= short[1]) else SHORT if short_wins else HOLD
        assert found["label"] == first


def test_a_constant_scale_gives_the_bits_of_multiplied_percentages():
    fixed = CONFIG.replace(barrier_scale="1")
    doubled = fixed.replace(long_tp_pct=4, long_sl_pct=3, short_tp_pct=5, short_sl_pct=2)
    found = make_labels(FILLED, fixed.replace(barrier_scale="2")).drop(columns="barrier_scale")
    pd.testing.assert_frame_equal(found, make_labels(FILLED, doubled))
    assert "barrier_scale" not in make_labels(FILLED, fixed)
    assert compute_barrier_scale(FILLED, fixed) is None


def test_the_simulator_places_the_barriers_of_the_candle_before_the_entry():
    scale = compute_barrier_scale(FILLED, CONFIG)
    rows = np.flatnonzero(np.isfinite(scale))[:-40:9]
    decisions = np.where(np.arange(len(rows)) % 2, LONG, SHORT)
    result = simulate(FILLED, rows, decisions, CONFIG, Costs(fee_pct=0), random_runs=5)
    trades = result.trades
    at_target = trades[trades["reason"] == "target"]
    assert len(at_target) > 3
    for trade in at_target.itertuples():
        entry = int(np.flatnonzero(FILLED["date"] == trade.entry_time)[0])
        percent = {"long": 2, "short": 2.5}[trade.side.lower()]
        assert trade.net_pct == pytest.approx(percent * scale[entry - 1], rel=1e-9)


def test_a_decision_without_a_scale_is_not_traded():
    scale = compute_barrier_scale(FILLED, CONFIG)
    unknown = int(np.flatnonzero(np.isnan(scale))[5])
    known = int(np.flatnonzero(np.isfinite(scale))[30])
    result = simulate(FILLED, [unknown, known], [LONG, LONG], CONFIG, random_runs=5)
    assert result.trades["row"].tolist() == [known]


def test_rows_without_a_scale_are_counted_by_reason():
    config = CONFIG.replace(barrier_scale=f"{SCALE} * (day_of_week() != 2)")
    data = prepare(FILLED, config)
    count = data.dropped["barrier_scale is missing or not above 0"]
    assert count > 0
    fixed = prepare(FILLED, config.replace(barrier_scale="1"))
    assert "barrier_scale is missing or not above 0" not in fixed.dropped
    used = sum(data.dropped.values()) + sum(len(part.rows) for part in data.parts.values())
    assert used == len(FILLED) == sum(fixed.dropped.values()) + sum(len(part.rows) for part in fixed.parts.values())
    assert np.isfinite(data.outcomes_of("train")["barrier_scale"]).all()


def test_the_scale_looks_back_only():
    labels = audit_lookahead(lambda candles: make_labels(candles, CONFIG), CANDLES.reset_index(drop=True), places=2,
                             allowed=12)  # fmt: skip
    assert labels["label"].verdict == "looks ahead as allowed" and labels["label"].ahead == 12
    scale = audit_lookahead(lambda frame: compute_barrier_scale(fill_gaps(frame, timeframe="1h"), CONFIG),
                            FILLED[["date", "open", "high", "low", "close", "volume"]][:480], places=2)  # fmt: skip
    assert scale.passed and scale["value"].ahead == 0


def test_classes_with_few_rows_get_the_barriers():
    labels = make_labels(FILLED, CONFIG)
    one_class = labels[labels["label"] == HOLD]
    means = measure_mean_returns(one_class, CONFIG)  # multiples of the scale
    assert means[0, LONG] == 2 and means[1, LONG] == -1


def test_faults_are_named():
    with pytest.raises(BarrierError, match="needs the column funding"):
        make_labels(FILLED, CONFIG.replace(barrier_scale="funding"))
    with pytest.raises(LabelError, match="barrier_scale above 0"):
        make_labels(FILLED, CONFIG.replace(barrier_scale="0 - close"))
    for bad in ("", "clos(", "open.real", "__import__('os')", "std(close, 90m)", 1, None):
        with pytest.raises(ConfigError, match="barrier_scale must"):
            CONFIG.replace(barrier_scale=bad)


def test_the_picture_shows_the_barriers_of_the_row():
    labels = make_labels(FILLED, CONFIG)
    row = int(labels.index[40])
    texts = [text.get_text() for text in plot_labels(FILLED, labels, row, CONFIG).texts]
    assert any(f"LONG target {2 * labels.loc[row, 'barrier_scale']:+.3g} %" in text for text in texts)
