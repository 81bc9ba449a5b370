"""Bars of a chart against a loop in plain Python, and the answers that a browser gets."""

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.widgets.candle_bars import MAX_BARS, choose_bar_candles, join_candles
from crypto_lstm.widgets.chart import NEAR_CANDLES, ChartError, chart

MINUTE = 60 * 10**9


def market(rows: int, seed: int, share_missing: float = 0.0) -> pd.DataFrame:
    candles = synthetic_candles(rows, seed=seed)
    kept = np.random.default_rng(seed).random(rows) >= share_missing
    return candles[kept].reset_index(drop=True)


def columns(candles: pd.DataFrame):
    times = candles["date"].dt.as_unit("ns").astype("int64").to_numpy()
    prices = tuple(candles[name].to_numpy() for name in ("open", "high", "low", "close"))
    return times, prices, candles["volume"].to_numpy()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share_missing", [0.0, 0.3, 0.95])
def test_bars_equal_those_of_a_loop(seed, share_missing):
    times, prices, volume = columns(market(700, seed, share_missing))
    rng = np.random.default_rng(seed)
    begin, stop = sorted(rng.integers(0, len(times), 2).tolist())
    span_ns = int(rng.choice([1, 3, 15, 60, 1440])) * MINUTE
    bars = join_candles(times, prices, volume, span_ns, (begin, stop))
    groups: dict[int, list[int]] = {}
    for row in range(begin, stop):
        groups.setdefault(int(times[row]) // span_ns * span_ns, []).append(row)
    assert bars.times.tolist() == list(groups)
    for number, rows in enumerate(groups.values()):
        expected = [prices[0][rows[0]], max(prices[1][rows]), min(prices[2][rows]), prices[3][rows[-1]]]
        assert bars.prices[number].tolist() == expected
        assert bars.volume[number] == pytest.approx(sum(volume[row] for row in rows), rel=1e-12)
        assert (bars.first[number], bars.end[number]) == (rows[0], rows[-1] + 1)


def test_no_span_gives_more_bars_than_a_screen_has():
    for count in [*range(1, 5000, 7), *range(5000, 20_000_000, 77_777)]:
        assert count // choose_bar_candles(count) + 2 <= MAX_BARS


def test_every_answer_is_bounded_and_covers_what_is_visible():
    candles = market(60_000, 1, 0.1)
    shown = chart(candles)
    times = shown.times / 1e9
    rng = np.random.default_rng(0)
    for _ in range(40):
        first, last = sorted(rng.uniform(times[0] - 1e5, times[-1] + 1e5, 2))
        message, block = shown.answer(first, last)
        assert 1 <= len(block) <= MAX_BARS
        assert (np.diff(block[:, 0]) > 0).all()
        inside = (times >= first) & (times <= last)
        if inside.any():
            assert block[0, 0] <= times[inside][0] and times[inside][-1] < block[-1, 0] + message["step"]


@pytest.mark.parametrize("ends", [(np.nan, 1.0), (1e300, -1e300), (-5.0, -4.0), (9e9, 9e9), (0.0, 0.0)])
def test_spans_that_no_chart_has_get_an_answer(ends):
    message, block = chart(market(50, 1)).answer(*ends)
    assert len(block) >= 2 and message["total"] == 50


def test_one_candle_is_a_chart():
    message, block = chart(market(1, 1)).answer(0, 1)
    assert block.shape == (1, 6) and message["near"]


def test_labels_are_sent_when_few_candles_are_visible():
    config = Config(future_window=30)
    candles = market(3000, 2)
    shown = chart(candles, make_labels(candles, config))
    times = shown.times / 1e9
    near, _ = shown.answer(times[1000], times[1000 + NEAR_CANDLES - 2])
    far, _ = shown.answer(times[1000], times[1000 + NEAR_CANDLES + 2])
    assert near["near"] and len(near["labels"]) > 300
    assert not far["near"] and far["labels"] == []


def test_mean_probabilities_equal_those_of_a_loop():
    candles = market(2000, 3)
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], size=2000)
    frame = pd.DataFrame(shares, columns=["short", "hold", "long"]).assign(date=candles["date"], decision="LONG")
    frame = frame[frame.index % 7 != 0].iloc[400:]
    shown = chart(candles, decisions=frame)
    bars = join_candles(shown.times, shown.prices, shown.volume, 15 * MINUTE, (0, 2000))
    means = shown.decisions.average(bars)
    for number, (first, end) in enumerate(zip(bars.first, bars.end, strict=True)):
        inside = frame[(frame.index >= first) & (frame.index < end)]
        if len(inside):
            assert means[number] == pytest.approx(inside[["short", "hold", "long"]].mean().to_numpy())
        else:
            assert np.isnan(means[number]).all()


def test_trades_before_the_first_candle_are_left_out():
    candles = market(300, 4)
    dates, close = candles["date"], candles["close"].to_numpy()
    trades = pd.DataFrame(
        {
            "entry_time": [dates[0] - pd.Timedelta("9h"), dates[100]],
            "exit_time": [dates[0] - pd.Timedelta("8h"), dates[111]],
            "entry_price": [1.0, close[100]],
            "exit_price": [1.0, close[110]],
            "side": ["long", "short"],
            "net_pct": [1.0, -2.0],
        }
    )
    shown = chart(candles, trades=trades)
    message, _ = shown.answer(shown.times[0] / 1e9, shown.times[-1] / 1e9)
    assert len(message["trades"]) == 1
    entry, _, leave, _, is_long, net_pct = message["trades"][0]
    assert (leave - entry, is_long, net_pct) == (600, False, -2.0)  # the exit is in the candle that ends at exit_time
    with pytest.raises(ChartError, match="give both of the same market"):
        chart(candles, trades=trades.head(1))
    assert chart(candles, trades=trades.head(0)).answer(0, 1)[0]["trades"] == []


def test_names_from_outside_are_shortened_in_errors():
    with pytest.raises(ChartError, match="labels must be a DataFrame, got list"):
        chart(market(10, 1), labels=["<script>"])
    with pytest.raises(ChartError, match="expected a time such as"):
        chart(market(10, 1)).plot("\x1b[31m" + "x" * 500)
