"""The simulator against cases by hand, a plain loop over candles and the returns of labels; input it must refuse."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.config import HOLD, LONG, SHORT, Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.touches import OUTCOMES
from crypto_lstm.evaluation.simulator import Costs, SimulationError, plot_equity, plot_trades, simulate

EIGHT_HOURS = pd.Timedelta(hours=8)
BARRIERS = {"long_tp_pct": 2, "long_sl_pct": 1, "short_tp_pct": 2, "short_sl_pct": 1}
HAND = Config(timeframe="1h", future_window=3, max_gap_minutes=120, fee_pct=0.0, **BARRIERS)
CALM = (100, 100.5, 99.5, 100)


def make_candles(rows: list[tuple[float, ...]], start: str = "2024-03-07 00:00") -> pd.DataFrame:
    """Hourly candles from rows of open, high, low, close; None is a missing candle."""
    dates = pd.date_range(start, periods=len(rows), freq="1h", tz="UTC")
    kept = [number for number, row in enumerate(rows) if row is not None]
    frame = pd.DataFrame([rows[number] for number in kept], columns=["open", "high", "low", "close"], dtype=float)
    frame.insert(0, "date", dates[kept])
    return frame.assign(volume=1.0)


def trade_once(candles: pd.DataFrame, decision: int, config: Config = HAND, **costs: float) -> pd.Series:
    """The trade of a signal in the first candle."""
    done = simulate(candles, [0], [decision], config, Costs(**{"fee_pct": 0.0, **costs}), random_runs=0)
    return done.trades.iloc[0]


@pytest.mark.parametrize(
    ("case", "rows", "decision", "tie", "price", "reason"),
    [
        ("target of a long", [CALM, CALM, (100, 102, 100, 101), CALM, CALM], LONG, "stop", 102, "target"),
        ("target of a short", [CALM, CALM, (100, 100, 98, 99), CALM, CALM], SHORT, "stop", 98, "target"),
        ("stop of a long", [CALM, CALM, (100, 100, 99, 99), CALM, CALM], LONG, "stop", 99, "stop"),
        ("stop of a short", [CALM, CALM, (100, 101, 100, 101), CALM, CALM], SHORT, "stop", 101, "stop"),
        ("long gaps through its stop", [CALM, CALM, (97, 98, 96, 97), CALM, CALM], LONG, "stop", 97, "stop"),
        ("short gaps through its stop", [CALM, CALM, (104, 105, 104, 104), CALM, CALM], SHORT, "stop", 104, "stop"),
        ("long gaps over its target", [CALM, CALM, (105, 106, 105, 105), CALM, CALM], LONG, "stop", 102, "target"),
        ("short gaps under its target", [CALM, CALM, (96, 97, 95, 96), CALM, CALM], SHORT, "stop", 98, "target"),
        ("both, stop first, long", [CALM, CALM, (100, 102, 99, 100), CALM, CALM], LONG, "stop", 99, "stop"),
        ("both, target first, long", [CALM, CALM, (100, 102, 99, 100), CALM, CALM], LONG, "target", 102, "target"),
        ("both, stop first, short", [CALM, CALM, (100, 101, 98, 100), CALM, CALM], SHORT, "stop", 101, "stop"),
        ("both, target first, short", [CALM, CALM, (100, 101, 98, 100), CALM, CALM], SHORT, "target", 98, "target"),
        ("in the candle of the entry, target", [CALM, (100, 102, 100, 101), CALM], LONG, "stop", 102, "target"),
        ("in the candle of the entry, stop", [CALM, (100, 100, 98, 99), CALM], LONG, "stop", 99, "stop"),
        ("time limit of a long", [CALM, CALM, CALM, (100, 101, 99.5, 100.7), CALM], LONG, "stop", 100.7, "timeout"),
        ("time limit of a short", [CALM, CALM, CALM, (100, 100.9, 99.5, 100.7), CALM], SHORT, "stop", 100.7, "timeout"),
        ("a touch after the time limit", [CALM, CALM, CALM, CALM, (100, 110, 90, 100)], LONG, "stop", 100, "timeout"),
        ("a touch at the time limit", [CALM, CALM, CALM, (100, 102, 100, 100), CALM], LONG, "stop", 102, "target"),
        ("a touch before the entry", [(100, 110, 90, 100), CALM, CALM, CALM, CALM], LONG, "stop", 100, "timeout"),
        ("end of the data, long", [CALM, CALM, (100, 100.6, 99.5, 100.3)], LONG, "stop", 100.3, "end"),
        ("end of the data at the entry", [CALM, (100, 100.6, 99.5, 100.3)], SHORT, "stop", 100.3, "end"),
        ("a gap delays the entry", [CALM, None, (101, 103.1, 101, 103), CALM, CALM], LONG, "stop", 103.02, "target"),
        ("a gap delays the time limit", [CALM, CALM, CALM, None, (99.6, 100, 99, 100)], LONG, "stop", 99.6, "timeout"),
        ("a break of the data", [CALM, CALM, None, None, None, (98, 99, 97, 98), CALM], LONG, "stop", 98, "break"),
        ("barriers are relative to the entry", [CALM, (101, 101, 99.9, 100), CALM], LONG, "stop", 99.99, "stop"),
    ],
)
def test_a_trade_ends_as_by_hand(case, rows, decision, tie, price, reason):
    trade = trade_once(make_candles(rows), decision, HAND.replace(tie=tie))
    assert (trade["reason"], round(trade["exit_price"], 9)) == (reason, price), case
    sign = 1 if decision == LONG else -1
    assert math.isclose(trade["net_pct"], sign * 100 * (price / trade["entry_price"] - 1), abs_tol=1e-12)


def test_times_of_a_trade():
    candles = make_candles([CALM, CALM, (100, 102, 100, 101), CALM, CALM])
    trade = trade_once(candles, LONG)
    assert str(trade["entry_time"]) == "2024-03-07 01:00:00+00:00"
    assert str(trade["exit_time"]) == "2024-03-07 03:00:00+00:00"  # known at the close of the candle at the latest
    late = trade_once(make_candles([CALM, CALM, CALM, None, CALM]), LONG)
    assert str(late["exit_time"]) == "2024-03-07 04:00:00+00:00"  # filled at the open


@pytest.mark.parametrize(
    ("rows", "decision", "costs", "fee", "slippage"),
    [
        ([CALM, CALM, (100, 102, 100, 101), CALM, CALM], LONG, {"fee_pct": 0.1}, 0.1 + 0.102, 0),
        ([CALM, CALM, (100, 100, 98, 99), CALM, CALM], SHORT, {"fee_pct": 0.1}, 0.1 + 0.098, 0),
        ([CALM, CALM, (100, 102, 100, 101), CALM, CALM], LONG, {"slippage_pct": 0.05}, 0, 0.05),
        ([CALM, CALM, (97, 98, 96, 97), CALM, CALM], LONG, {"slippage_pct": 0.05}, 0, 0.05 + 0.05 * 0.97),
        ([CALM, CALM, CALM, CALM, CALM], SHORT, {"slippage_pct": 0.05, "fee_pct": 0.2}, 0.4, 0.1),
        ([CALM, CALM, CALM, CALM, CALM], LONG, {"spread_share": 0.5, "slippage_pct": 0.01}, 0, 0.03 + 0.05),
    ],
)
def test_costs_are_those_by_hand(rows, decision, costs, fee, slippage):
    candles = make_candles(rows).assign(spread_pct=[0.0, 0.04, 0.06, 0.08, 0.1])
    trade = trade_once(candles, decision, **costs)
    assert math.isclose(trade["fee_pct"], fee, abs_tol=1e-12)
    assert math.isclose(trade["slippage_pct"], slippage, abs_tol=1e-12)
    assert math.isclose(trade["net_pct"], trade["gross_pct"] - fee - slippage, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("start", "decision", "funding"),
    [
        ("2024-03-07 06:00", LONG, 0.02),  # entered at 07, held at 08
        ("2024-03-07 06:00", SHORT, -0.02),
        ("2024-03-07 07:00", LONG, 0.0),  # entered at 08, after the funding
        ("2024-03-07 05:00", LONG, 0.02),  # entered at 06, the candle of the exit opens at 08
        ("2024-03-07 04:00", LONG, 0.0),  # the time limit is at 08
        ("2024-03-07 22:00", SHORT, -0.02),  # midnight
    ],
)
def test_funding_is_paid_at_eight_hours(start, decision, funding):
    candles = make_candles([CALM] * 6, start)
    trade = trade_once(candles, decision, funding_pct_per_8h=0.02)
    assert math.isclose(trade["funding_pct"], funding, abs_tol=1e-12)
    is_due = candles["date"].dt.hour % 8 == 0
    by_column = candles.assign(funding_pct=np.where(is_due, 0.02, np.nan))
    assert trade_once(by_column, decision, use_funding_column=True)["funding_pct"] == trade["funding_pct"]


def test_daily_candles_pay_funding_three_times_a_day():
    candles = synthetic_candles(5, timeframe="1d").assign(open=100.0, high=100.5, low=99.5, close=100.0)
    trade = trade_once(candles, LONG, HAND.replace(timeframe="1d"), funding_pct_per_8h=0.01)
    assert math.isclose(trade["funding_pct"], 0.06, abs_tol=1e-12)  # entered on day 1, held at the opening of day 3
    with pytest.raises(SimulationError, match="open at 00, 08 and 16 UTC"):
        trade_once(candles.assign(funding_pct=0.01), LONG, HAND.replace(timeframe="1d"), use_funding_column=True)


# A plain loop, candle by candle, written from the rules and not from the code.


def simulate_by_loop(candles, decisions, config, costs, slots):
    """Trades (row, entry, exit, reason, net) in the order of their exits, and the equity at each close."""
    frame = fill_gaps(candles, config.max_gap_minutes, config.timeframe)
    dates, real, segment = frame["date"], ~frame["filled"].to_numpy(), frame["segment"].to_numpy()
    opens, highs, lows, closes = (frame[name].to_numpy() for name in ("open", "high", "low", "close"))
    extra = frame[["date"]].merge(candles, on="date", how="left")
    window, count = config.future_window, len(frame)
    cash = [1 / slots] * slots
    waiting, held, trades, equity = {}, {}, [], []

    def slip(number):
        spread = extra["spread_pct"][number] if costs.spread_share else 0.0
        return costs.slippage_pct + costs.spread_share * spread

    def rate(number):
        if not costs.use_funding_column:
            return costs.funding_pct_per_8h
        following = number
        while not real[following]:
            following += 1
        return extra["funding_pct"][following]

    def close(slot, number, price, reason):
        trade = held.pop(slot)
        value = price / trade["price"]
        paid = trade["paid"] + costs.fee_pct * value
        if reason != "target":
            paid += slip(number) * value
        net = 100 * trade["sign"] * (value - 1) - paid
        cash[slot] *= max(1 + net / 100, 0)
        trades.append((trade["row"], trade["entry"], number, reason, net))

    def can_enter(row):
        following = row + 1
        while following < count and not real[following]:
            following += 1
        return following < count and segment[following] == segment[row] and following <= row + window

    for number in range(count):
        before = dates[max(number - 1, 0)]
        due = dates[number].floor("8h") - before.floor("8h")
        for trade in held.values():
            paid = trade["sign"] * (due / EIGHT_HOURS) * rate(number) if due else 0.0
            trade["paid"] += paid * opens[number] / trade["price"]
        for slot in sorted(held):
            if segment[number] != segment[number - 1]:
                close(slot, number, opens[number], "break")
            elif real[number] and number > held[slot]["row"] + window:
                close(slot, number, opens[number], "timeout")
        if real[number]:
            for slot, row in list(waiting.items()):
                sign = 1 if decisions[row] == LONG else -1
                paid = costs.fee_pct + slip(number)
                held[slot] = {"row": row, "entry": number, "price": opens[number], "sign": sign, "paid": paid}
                del waiting[slot]
            for slot in sorted(held):
                trade = held[slot]
                side = "long" if trade["sign"] > 0 else "short"
                target = trade["price"] * (1 + trade["sign"] * getattr(config, f"{side}_tp_pct") / 100)
                stop = trade["price"] * (1 - trade["sign"] * getattr(config, f"{side}_sl_pct") / 100)
                if side == "long":
                    won, lost, fill = highs[number] >= target, lows[number] <= stop, min(stop, opens[number])
                else:
                    won, lost, fill = lows[number] <= target, highs[number] >= stop, max(stop, opens[number])
                if lost and (not won or config.tie == "stop"):
                    close(slot, number, fill, "stop")
                elif won:
                    close(slot, number, target, "target")
                elif number == trade["row"] + window:
                    close(slot, number, closes[number], "timeout")
                elif number == count - 1:
                    close(slot, number, closes[number], "end")
        total = sum(cash)
        for slot, trade in held.items():
            moved = trade["sign"] * (closes[number] / trade["price"] - 1)
            total += cash[slot] * (moved - trade["paid"] / 100)
        equity.append(total)
        free = [slot for slot in range(slots) if slot not in held and slot not in waiting and cash[slot] > 0]
        if decisions[number] != HOLD and free and can_enter(number):
            waiting[free[0]] = number
    return trades, np.array(equity)


def make_rough_market(seed: int) -> pd.DataFrame:
    """5-minute candles that open away from the last close, with short gaps and long ones, a spread and funding."""
    generator = np.random.default_rng(seed)
    count = 700
    jumps, moves = generator.normal(0, 0.004, count), generator.normal(0, 0.006, count)
    closes = 100 * np.exp(np.cumsum(jumps + moves))
    opens = closes / np.exp(moves)
    highs = np.maximum(opens, closes) * (1 + generator.exponential(0.003, count))
    lows = np.minimum(opens, closes) / (1 + generator.exponential(0.003, count))
    dates = pd.date_range("2024-03-07 02:00", periods=count, freq="5min", tz="UTC")
    frame = pd.DataFrame({"date": dates, "open": opens, "high": highs, "low": lows, "close": closes, "volume": 1.0})
    frame["spread_pct"] = generator.uniform(0.01, 0.05, count)
    frame["funding_pct"] = generator.normal(0.01, 0.02, count)
    kept = generator.random(count) < 0.9
    for start in generator.integers(1, count - 40, size=3):
        kept[start : start + int(generator.integers(5, 30))] = False
    kept[[0, count - 1]] = True
    return frame[kept].reset_index(drop=True)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("slots", [1, 3])
def test_a_simulation_equals_a_plain_loop(seed, slots):
    config = Config(
        timeframe="5m", future_window=9, max_gap_minutes=30, tie=("stop", "target")[seed % 2],
        long_tp_pct=2.1, long_sl_pct=1.3, short_tp_pct=1.7, short_sl_pct=0.9,
    )  # fmt: skip
    costs = Costs(0.07, 0.03, spread_share=0.5, funding_pct_per_8h=0.02)
    if seed % 3 == 0:
        costs = Costs(0.07, spread_share=1.0, use_funding_column=True)
    candles = make_rough_market(seed)
    count = len(fill_gaps(candles, 30, "5m"))
    generator = np.random.default_rng(100 + seed)
    share = (0.02, 0.2, 0.9)[seed % 3]
    decisions = np.where(generator.random(count) < share, generator.choice([SHORT, LONG], count), HOLD)
    found = simulate(candles, np.arange(count), decisions, config, costs, slots, random_runs=20)
    trades, equity = simulate_by_loop(candles, decisions, config, costs, slots)
    trades.sort()
    assert found.trades["row"].tolist() == [trade[0] for trade in trades]
    assert found.trades["reason"].tolist() == [trade[3] for trade in trades]
    np.testing.assert_allclose(found.trades["net_pct"], [trade[4] for trade in trades], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.equity, equity[: len(found.equity)], rtol=1e-12)
    assert math.isclose(found.figures["total_return_pct"], 100 * (equity[-1] - 1), abs_tol=1e-10)


def test_the_loop_meets_every_end():
    """The comparison is worth nothing for an end that never occurs in it."""
    reasons = set()
    config = Config(timeframe="5m", future_window=9, max_gap_minutes=30, long_tp_pct=2.1, long_sl_pct=1.3)
    for seed in range(12):
        candles = make_rough_market(seed)
        count = len(fill_gaps(candles, 30, "5m"))
        found = simulate(candles, np.arange(count), np.full(count, LONG), config, random_runs=0)
        reasons |= set(found.trades["reason"])
    assert reasons == {"target", "stop", "timeout", "break", "end"}


@pytest.mark.parametrize("tie", ["stop", "target"])
def test_returns_are_those_of_labels_if_the_market_opens_where_it_closed(tie):
    config = Config(timeframe="1h", future_window=24, tie=tie, fee_pct=0.0)
    candles = synthetic_candles(3000, seed=8, timeframe="1h")
    candles["open"] = candles["close"].shift(fill_value=candles["open"][0])
    candles["high"] = candles[["open", "high", "close"]].max(axis=1)
    candles["low"] = candles[["open", "low", "close"]].min(axis=1)
    outcomes = make_labels(candles, config)
    rows = outcomes.index[:: config.future_window + 1]  # so far apart that nothing overlaps
    decisions = np.random.default_rng(0).choice([SHORT, LONG], size=len(rows))
    trades = simulate(candles, rows, decisions, config, Costs(fee_pct=0.0), random_runs=0).trades
    labels = outcomes.loc[rows]
    is_long = decisions == LONG
    expected = np.where(is_long, labels["long_return"], labels["short_return"])
    codes = np.where(is_long, labels["long_outcome"], labels["short_outcome"])
    assert trades["row"].tolist() == list(rows)
    assert trades["reason"].tolist() == [OUTCOMES[code] for code in codes]
    np.testing.assert_allclose(trades["net_pct"], expected, atol=2e-6)  # labels are float32


def test_the_future_of_a_trade_is_all_that_it_needs():
    """Trades and equity up to a candle do not depend on later decisions, nor on candles after their ends."""
    config = Config(timeframe="1h", future_window=12)
    candles = synthetic_candles(800, seed=2, timeframe="1h")
    decisions = np.random.default_rng(1).choice([SHORT, HOLD, LONG], size=780)
    whole = simulate(candles, np.arange(780), decisions, config, random_runs=0)
    other = synthetic_candles(800, seed=99, timeframe="1h")
    mixed = pd.concat([candles[:500], other[500:]], ignore_index=True)
    changed = np.where(np.arange(780) < 480, decisions, HOLD)
    part = simulate(mixed, np.arange(780), changed, config, random_runs=0)
    ended = whole.trades["row"] < 480
    pd.testing.assert_frame_equal(whole.trades[ended], part.trades)
    np.testing.assert_array_equal(whole.equity[:480], part.equity[:480])
    cut = simulate(candles[:500], np.arange(480), decisions[:480], config, random_runs=0)
    pd.testing.assert_frame_equal(cut.trades, part.trades)


def test_a_year_is_annualised_from_ninety_days_on():
    candles = synthetic_candles(24 * 120, seed=3, timeframe="1h")
    config = Config(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2)
    rows = np.arange(24 * 110)
    for days, is_given in ((80, False), (100, True)):
        chosen = rows[: 24 * days]
        found = simulate(candles, chosen, np.where(chosen % 50 == 0, LONG, HOLD), config, random_runs=0)
        figures = found.figures
        assert (figures["annual_return_pct"] is not None) == (figures["calmar"] is not None) == is_given
        if is_given:
            span = (found.equity.index[-1] - found.equity.index[0]) / pd.Timedelta("365D")
            expected = 100 * (float(found.equity.iloc[-1]) ** (1 / span) - 1)
            assert math.isclose(figures["annual_return_pct"], expected)
            assert math.isclose(figures["calmar"], expected / figures["max_drawdown_pct"])


def test_figures_by_hand():
    """Equity of 1, 1.1, .99, 1.188 at closes a day apart."""
    rows = [(100, 100, 100, 100), (100, 110, 100, 110), (110, 110, 99, 99), (99, 118.8, 99, 118.8), (118.8,) * 4]
    candles = make_candles(rows)
    candles["date"] = pd.date_range("2024-03-07", periods=5, freq="1D", tz="UTC")
    config = Config(timeframe="1d", future_window=4, long_tp_pct=90, long_sl_pct=90)
    found = simulate(candles, [0], [LONG], config, Costs(fee_pct=0.0), random_runs=0)
    np.testing.assert_allclose(found.equity, [1, 1.1, 0.99, 1.188, 1.188])
    returns = np.array([0.1, -0.1, 0.2, 0.0])
    figures = found.figures
    assert math.isclose(figures["total_return_pct"], 18.8)
    assert math.isclose(figures["annual_volatility_pct"], 100 * returns.std(ddof=1) * math.sqrt(365))
    assert math.isclose(figures["sharpe"], returns.mean() / returns.std(ddof=1) * math.sqrt(365))
    assert math.isclose(figures["sortino"], returns.mean() / math.sqrt(0.01 / 4) * math.sqrt(365))
    assert math.isclose(figures["max_drawdown_pct"], 10)
    assert figures["annual_return_pct"] is None and figures["calmar"] is None  # four days are no basis for a year
    assert (figures["drawdown_from"][:10], figures["drawdown_to"][:10]) == ("2024-03-08", "2024-03-09")
    assert (figures["trades"], figures["exposure"], figures["won_share"]) == (1, 0.8, 1.0)
    assert math.isclose(figures["trades_per_day"], 0.25)
    assert math.isclose(figures["turnover_per_day"], (1 + 1.188) / 4)
    assert math.isclose(found.comparisons["buy and hold"]["total_return_pct"], 18.8)


def test_a_short_that_loses_everything_ends_the_account():
    candles = make_candles([CALM, CALM, (400, 400, 400, 400), (400, 400, 400, 400), (400, 400, 400, 400), CALM])
    config = HAND.replace(short_sl_pct=50)
    found = simulate(candles, np.arange(5), np.full(5, SHORT), config, random_runs=10)
    assert len(found.trades) == 1
    assert found.figures["total_return_pct"] == -100
    assert found.equity.min() == 0
    assert json.loads(json.dumps(found.as_dict()))["ignored"]["a position was open"] == 4


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_guesses_lie_anywhere_among_random_accounts(share):
    """The rank of guesses is uniform: its mean over 60 markets is 50 with a standard error of 3.7."""
    config = Config(timeframe="1h", future_window=24, **BARRIERS)
    ranks = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        decisions = np.where(generator.random(480) < share, generator.choice([SHORT, LONG], 480), HOLD)
        candles = synthetic_candles(520, seed=seed, timeframe="1h")
        found = simulate(candles, np.arange(480), decisions, config, random_runs=100, seed=seed)
        if found.random_percentile is not None:
            ranks.append(found.random_percentile)
    assert abs(np.mean(ranks) - 50) < 12
    assert 20 < np.std(ranks) < 38  # 28.9


def test_random_accounts_pay_what_a_trade_costs():
    """In a market that stands still each trade loses its costs, wherever it is."""
    candles = synthetic_candles(300, timeframe="1h").assign(open=100.0, high=100.0, low=100.0, close=100.0)
    decisions = np.where(np.arange(290) % 40 == 3, LONG, HOLD)
    found = simulate(candles, np.arange(290), decisions, HAND, Costs(fee_pct=0.1), random_runs=50)
    expected = 100 * (0.998 ** len(found.trades) - 1)
    assert math.isclose(found.figures["total_return_pct"], expected, rel_tol=1e-9)
    np.testing.assert_allclose(found.random_returns, expected, rtol=1e-9)
    assert found.comparisons["always short"]["total_return_pct"] < expected


def test_no_signal_is_no_trade():
    candles = synthetic_candles(300, timeframe="1h")
    found = simulate(candles, np.arange(250), np.full(250, HOLD), HAND)
    assert (len(found.trades), found.figures["total_return_pct"], found.random_percentile) == (0, 0.0, None)
    assert found.figures["sharpe"] is None
    assert "No trade" in str(found)
    plot_trades(found, candles)
    plot_equity(found)


def test_the_same_from_filled_candles_and_from_candles_as_read():
    candles = make_rough_market(3)
    config = Config(timeframe="5m", future_window=9, max_gap_minutes=30)
    filled = fill_gaps(candles, 30, "5m")
    decisions = np.random.default_rng(0).choice([SHORT, HOLD, LONG], size=len(filled))
    one = simulate(candles, np.arange(len(filled)), decisions, config, random_runs=5)
    two = simulate(filled, np.arange(len(filled)), decisions, config, random_runs=5)
    pd.testing.assert_frame_equal(one.trades, two.trades)
    assert one.as_dict() == two.as_dict()


def test_a_result_has_one_line_and_a_table_of_80_columns():
    candles = synthetic_candles(300, timeframe="1h")
    found = simulate(candles, np.arange(250), np.arange(250) % 3, HAND, random_runs=10)
    assert "\n" not in repr(found)
    assert max(map(len, str(found).splitlines())) <= 80
    json.dumps(found.as_dict(), allow_nan=False)


def test_costs_out_of_range_are_refused():
    for wrong in ({"fee_pct": 100.0}, {"slippage_pct": -1}, {"spread_share": math.nan}, {"funding_pct_per_8h": 11}):
        with pytest.raises(SimulationError, match=f"{[*wrong][0]} must be in"):
            Costs(**wrong)
    with pytest.raises(SimulationError, match="true or false"):
        Costs(use_funding_column="yes")


@pytest.mark.parametrize(
    ("rows", "decisions", "words"),
    [
        ([0, 1], [LONG], "one decision for each row"),
        ([], [], "one decision for each row"),
        ([1, 0], [LONG, LONG], "ascending"),
        ([-1, 0], [LONG, LONG], "ascending"),
        ([0, 6], [LONG, LONG], "row 6 of 6 filled candles"),
        ([0, 1], [LONG, 3], "SHORT 0, HOLD 1 or LONG 2"),
        ([0, 1], [0.5, 1.0], "whole numbers"),
        ([5], [LONG], "no decision has a later candle"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(rows, decisions, words):
    with pytest.raises(SimulationError, match=words):
        simulate(make_candles([CALM] * 6), rows, decisions, HAND)


def test_holes_in_the_columns_of_costs_are_refused():
    candles = make_candles([CALM] * 12)
    with pytest.raises(SimulationError, match="expected the column spread_pct"):
        trade_once(candles, LONG, spread_share=0.5)
    spread = candles.assign(spread_pct=0.1)
    spread.loc[2, "spread_pct"] = np.inf
    with pytest.raises(SimulationError, match="column spread_pct: 1 of its values"):
        trade_once(spread, LONG, spread_share=0.5)
    night = make_candles([CALM] * 6, "2024-03-07 06:00")
    with pytest.raises(SimulationError, match="expected the column funding_pct"):
        trade_once(night, LONG, use_funding_column=True)
    with pytest.raises(SimulationError, match="the first at 2024-03-07 08:00"):
        trade_once(night.assign(funding_pct=np.nan), LONG, use_funding_column=True)
