"""The exchange of the bot's tests: its candles against a plain loop, its faults, and its answers over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from support.fake_exchange import ExchangeError, FakeClock, FakeExchange, Fault, make_market, plant_faults

MINUTE = 60_000
BEGINS = 1_709_805_600_000  # 2024-03-07 10:00 UTC
MARKET = make_market(days=2, ahead_days=1, seed=2, begins_ms=BEGINS)


def make_exchange(*faults: Fault, at_s: float = 0.0) -> FakeExchange:
    return FakeExchange([MARKET], FakeClock(BEGINS + at_s * 1000, speed=0), list(faults))


def merge_by_loop(step: int, until: int) -> list[list[float]]:
    """Longer candles of the market up to a moment, by a plain loop."""
    merged: dict[int, list[float]] = {}
    for moment, row in zip(MARKET.times.tolist(), MARKET.rows.tolist(), strict=True):
        if moment >= until:
            break
        known = merged.setdefault(moment // step * step, [row[0], row[1], row[2], row[3], 0.0])
        known[1], known[2], known[3] = max(known[1], row[1]), min(known[2], row[2]), row[3]
        known[4] += row[4]
    return [[moment, *row] for moment, row in merged.items()]


def test_candles_equal_those_of_a_plain_loop():
    exchange = make_exchange()
    for name, step in (("1m", MINUTE), ("5m", 5 * MINUTE), ("1h", 60 * MINUTE), ("8h", 480 * MINUTE)):
        expected = merge_by_loop(step, BEGINS)
        closed = [one for one in expected if one[0] + step <= BEGINS]
        for limit in (1, 3, 500):
            newest = [one for one in exchange.fetch_ohlcv("BTC/USDT", name, None, limit) if one[0] + step <= BEGINS]
            assert np.allclose(np.reshape(newest, (-1, 6)), np.reshape(closed[len(closed) - len(newest) :], (-1, 6)))
            since = expected[1][0] - 1
            oldest = exchange.fetch_ohlcv("BTC/USDT:USDT", name, since, limit)
            whole = [one for one in oldest if one[0] + step <= BEGINS]
            assert np.allclose(whole, closed[1 : 1 + len(whole)]) and len(oldest) == min(
                limit, len(expected) - 1 + (BEGINS % step == 0)
            )


def test_the_open_candle_comes_last_and_grows():
    exchange = make_exchange(at_s=15)
    first = exchange.fetch_ohlcv("BTCUSDT", limit=2)[-1]
    exchange.clock.advance(30)
    second = exchange.fetch_ohlcv("BTCUSDT", limit=2)[-1]
    exchange.clock.advance(15)
    closed = exchange.fetch_ohlcv("BTCUSDT", limit=2)[0]
    row = MARKET.rows[np.searchsorted(MARKET.times, BEGINS)].tolist()
    assert first[0] == second[0] == closed[0] == BEGINS and closed[1:] == row
    assert first[5] < second[5] < closed[5] and first[1] == row[0]
    assert abs(second[4] - row[0]) > abs(first[4] - row[0])


def test_each_fault_is_served_as_it_is_described():
    def times(*faults: Fault, at_s: float) -> list[int]:
        exchange = make_exchange(*faults, at_s=at_s)
        return [(one[0] - BEGINS) // MINUTE for one in exchange.fetch_ohlcv("BTC/USDT", "1m", BEGINS)]

    assert times(at_s=190) == [0, 1, 2, 3]
    assert times(Fault("gap", BEGINS + MINUTE), at_s=190) == [0, 2, 3]
    late = Fault("late", BEGINS + MINUTE, lasts_s=90)
    assert times(late, at_s=190) == [0, 2, 3] and times(late, at_s=211) == [0, 1, 2, 3]
    assert times(Fault("duplicate", BEGINS + MINUTE), at_s=190) == [0, 1, 1, 2, 3]
    assert times(Fault("out_of_order", BEGINS + MINUTE), at_s=190) == [0, 2, 1, 3]
    assert times(Fault("skew", BEGINS, size=60), at_s=190) == [0, 1, 2, 3, 4]
    assert times(Fault("gap", BEGINS + MINUTE, symbol="ETHUSDT"), at_s=190) == [0, 1, 2, 3]
    changed = Fault("changed", BEGINS, lasts_s=90, size=1.0)
    early, after = (make_exchange(changed, at_s=at_s).fetch_ohlcv("BTC/USDT", "1m", BEGINS)[0] for at_s in (149, 151))
    assert early[4] == round(after[4] * 1.01, 2) and early[2] >= early[4] and early[5] == after[5]
    for kind, status in (("down", 503), ("limited", 429)):
        with pytest.raises(ExchangeError) as caught:
            times(Fault(kind, BEGINS, lasts_s=60), at_s=59)
        assert caught.value.status == status and times(Fault(kind, BEGINS, lasts_s=60), at_s=61) == [0, 1]


def test_planted_faults_lie_in_their_span_each_at_its_own_candle():
    counts = {"gap": 5, "late": 4, "down": 1}
    span = (BEGINS, BEGINS + 600 * MINUTE)
    faults = plant_faults(MARKET, counts, np.random.default_rng(0), span)
    assert len({fault.time_ms for fault in faults}) == 10
    assert all(span[0] <= fault.time_ms < span[1] for fault in faults)
    assert {kind: sum(fault.kind == kind for fault in faults) for kind in counts} == counts


def read_answer(url: str) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_answers_over_http():
    exchange = make_exchange(at_s=30)
    with exchange.serve() as url:
        status, rows = read_answer(f"{url}/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=2")
        assert status == 200 and [row[0] for row in rows] == [BEGINS - MINUTE, BEGINS]
        assert float(rows[0][4]) == MARKET.rows[np.searchsorted(MARKET.times, BEGINS) - 1, 3]
        symbols = [read_answer(f"{url}/{path}/exchangeInfo")[1]["symbols"] for path in ("api/v3", "fapi/v1")]
        assert [found[0]["symbol"] for found in symbols] == ["BTCUSDT"] * 2
        assert symbols[1][0]["contractType"] == "PERPETUAL"
        assert read_answer(f"{url}/api/v3/time")[1] == {"serverTime": BEGINS + 30_000}
        rates = read_answer(f"{url}/fapi/v1/fundingRate?symbol=BTCUSDT")[1]
        assert [rate["fundingTime"] % (480 * MINUTE) for rate in rates] == [0] * 6
        mark = read_answer(f"{url}/fapi/v1/markPriceKlines?symbol=BTCUSDT&interval=8h&limit=1")[1]
        assert float(mark[0][5]) == 0
        assert read_answer(f"{url}/api/v3/klines?symbol=XRPUSDT&interval=1m") == (
            400,
            {"code": -1121, "msg": "Invalid symbol."},
        )
        assert read_answer(f"{url}/api/v3/klines?symbol=BTCUSDT&interval=7m")[0] == 400
        assert read_answer(f"{url}/api/v3/order")[0] == 404
    assert len(exchange.requests) == 9 and exchange.requests[-1].startswith("404 ")


def test_a_clock_runs_at_its_speed():
    still, fast = FakeClock(BEGINS, speed=0), FakeClock(BEGINS, speed=1e6)
    assert still.now_ms() == BEGINS and fast.now_ms() > BEGINS
    still.advance(2.5)
    assert still.now_ms() == BEGINS + 2500
