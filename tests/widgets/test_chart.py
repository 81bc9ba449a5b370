"""What the browser may ask a chart for, and where the barriers of scaled labels lie."""

import numpy as np
import pytest

from crypto_lstm.config import Config
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.widgets.chart import _receive_request, chart

CANDLES = synthetic_candles(5000, seed=3, timeframe="1h")


class Page:
    """Keeps what a widget sends to the browser."""

    def __init__(self):
        self.sent = []

    def send(self, message, buffers):
        self.sent.append((message, buffers))


def ask(shown, **content):
    page = Page()
    _receive_request(shown, page, {"id": "x", **content}, [])
    message, (block,) = page.sent[0]
    return message, np.frombuffer(block).reshape(-1, message["columns"])


@pytest.mark.parametrize("bars", [1000, 2000.5, 3000])
def test_a_page_gets_no_more_bars_than_it_asks_for(bars):
    assert 300 <= len(ask(chart(CANDLES), bars=bars)[1]) <= bars


@pytest.mark.parametrize("bars", [None, "9", float("nan"), float("inf"), -5, 0, 10**12, True, [1], {}])
@pytest.mark.parametrize("span", [(None, None), ("a", 3), (float("nan"), 0), (10**30, -(10**30)), ([], {})])
def test_every_request_is_answered_with_at_most_3000_bars(bars, span):
    block = ask(chart(CANDLES.head(4000)), bars=bars, **dict(zip(("from", "to"), span, strict=True)))[1]
    assert 1 <= len(block) <= 3000 and np.isfinite(block).all()


@pytest.mark.parametrize("content", [None, [], "x", 3, {}, {"from": 1}])
def test_a_message_that_is_no_request_is_left_alone(content):
    page = Page()
    _receive_request(chart(CANDLES.head(50)), page, content, [])
    assert page.sent == []


def test_barriers_of_a_scale_are_those_at_which_the_trades_ended():
    config = Config(
        timeframe="1h", future_window=24, barrier_scale="100 * atr(14) / close", long_tp_pct=1.5, short_tp_pct=1.2
    )
    labels = make_labels(CANDLES, config)
    close = CANDLES["close"].to_numpy()
    listed = chart(CANDLES, labels).answer(*(CANDLES["date"].iloc[[3000, 3300]].astype("int64") / 1e9))[0]["labels"]
    places = dict(zip(CANDLES["date"].astype("int64") // 10**9, range(len(CANDLES)), strict=True))
    seen = 0
    for time, _, _, _, long_outcome, _, long_target, *_ in listed:
        if long_outcome == "target":
            row = places[time]
            gain_pct = float(labels.loc[row, "long_return"])
            assert long_target == pytest.approx(close[row] * (1 + gain_pct / 100), rel=1e-6)
            seen += 1
    assert seen > 20
