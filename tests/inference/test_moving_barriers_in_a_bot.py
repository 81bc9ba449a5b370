"""Barriers that follow the market, and targets of the user's, in a bot: decisions, journal, paper, strategy."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.commands.freqtrade import list_notes, write_strategy
from crypto_lstm.config import LONG, SHORT, Config
from crypto_lstm.data.barriers import compute_barrier_scale
from crypto_lstm.data.candles import ensure_filled
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.paper import PaperAccount
from crypto_lstm.evaluation.simulator import simulate
from crypto_lstm.inference.journal import JournalError, parse_entry, read_journal
from crypto_lstm.inference.live import LiveRunner
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.inference.replay import ReplayClock, ReplayExchange
from crypto_lstm.inference.strategy import StrategyModel, choose_entries, find_stop_price, find_target_ratio

SIZES = {"long_tp_pct": 1.0, "long_sl_pct": 0.8, "short_tp_pct": 0.9, "short_sl_pct": 0.7}
CONFIG = Config(
    pair="BTC/USDT",
    timeframe="12h",
    sequence_length=6,
    max_gap_minutes=2160,
    future_window=5,
    lstm_units=(4,),
    dense_units=(),
    barrier_scale="std(pct(close), 5d)",
    **SIZES,
)
OWN = CONFIG.replace(labels="own", barrier_scale="1")
CANDLES = synthetic_candles(260, seed=4, timeframe="12h")
MARKET, HALF_DAY = "BTC/USDT", pd.Timedelta(hours=12)


def export(config: Config, path):
    network, rng = build_model(config, compile_model=False), np.random.default_rng(0)
    for variable in network.weights:
        variable.assign(rng.normal(0, 0.6, variable.shape))
    rows = make_features(CANDLES, config)[list(config.feature_names)].to_numpy()
    export_onnx(network, path, config=config, scaler=Scaler.fit(rows[~np.isnan(rows).any(axis=1)], config))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("barriers")
    return {"moving": export(CONFIG, place / "moving.onnx"), "own": export(OWN, place / "own.onnx")}


@pytest.fixture(scope="module")
def journals(models, tmp_path_factory):
    """The entries of a replay of each model, from candle 100 on, with a restart."""
    found = {}
    for name, path in models.items():
        folder = tmp_path_factory.mktemp(name)
        for start, end in ((100, 160), (160, 258)):
            clock = ReplayClock(CANDLES["date"][start].timestamp())
            exchange = ReplayExchange({MARKET: CANDLES}, "12h", clock)
            times = {"now": clock.now, "sleep": clock.sleep}
            runner = LiveRunner(Predictor.load(path), exchange.fetch_ohlcv, [MARKET], lambda _: None, folder, **times)
            runner.run(until=CANDLES["date"][end] + pd.Timedelta(minutes=1))
        found[name] = read_journal(folder / "journal.jsonl", newest_only=False)
    return found


def find_scales() -> dict[int, float]:
    """Opening -> the scale of the labels."""
    scale = compute_barrier_scale(ensure_filled(CANDLES, CONFIG), CONFIG)
    return dict(zip(CANDLES["date"].astype("int64").tolist(), scale.tolist(), strict=True))


# ---------------------------------------------------------------- decisions and journal


def test_predict_and_the_journal_have_the_scale_of_the_labels_to_the_bit(models, journals):
    expected = find_scales()
    answers = Predictor.load(models["moving"]).predict(CANDLES)
    times = answers["date"].astype("int64").tolist()
    assert answers["barrier_scale"].tolist() == [expected[time] for time in times]
    assert len(journals["moving"]) > 150
    for entry in journals["moving"]:
        assert entry.barrier_scale == expected[entry.time]
        assert parse_entry(entry.as_line()) == entry
    assert "barrier_scale" not in Predictor.load(models["own"]).predict(CANDLES)
    assert {entry.barrier_scale for entry in journals["own"]} == {None}


def test_a_decision_has_the_scale_and_a_candle_without_one_has_none(models):
    flat = CANDLES.copy()
    flat.loc[180:, ["open", "high", "low", "close"]] = 100.0  # no movement, no barriers
    predictor = Predictor.load(models["moving"])
    predictor.warm_up(flat[:170])
    for row in range(170, 200):
        decision = predictor.update(flat.loc[row].to_dict(), now=(flat["date"][row] + HALF_DAY).to_pydatetime())
        assert (decision.barrier_scale is None) == (row >= 190), row
    assert decision.as_dict()["barrier_scale"] is None


def test_a_line_of_an_earlier_version_is_read(journals):
    entry = journals["own"][0]
    old = entry.as_line().replace(b', "barrier_scale": null', b"")
    assert old != entry.as_line() and parse_entry(old) == entry
    for wrong in (b"0", b"-1.5", b'"2"', b"true"):
        with pytest.raises(JournalError):
            parse_entry(entry.as_line().replace(b'"barrier_scale": null', b'"barrier_scale": ' + wrong))


# ---------------------------------------------------------------- on paper


@pytest.mark.parametrize(("name", "config"), [("moving", CONFIG), ("own", OWN)])
def test_the_paper_trades_equal_those_of_the_simulator(name, config, journals):
    entries = journals[name]
    account = PaperAccount.from_entries(entries, MARKET, config)
    numbers = {time: row for row, time in enumerate(CANDLES["date"].astype("int64").tolist())}
    rows = [numbers[entry.time] for entry in entries]
    codes = {"LONG": LONG, "SHORT": SHORT}
    classes = np.array([codes.get(entry.action, 1) for entry in entries], dtype=np.int8)
    holding = None
    if name == "own":
        holding = dict.fromkeys(("long", "short"), np.full(len(rows) - 1, config.future_window))
    seen = CANDLES[: rows[-1] + 1]
    trades = simulate(seen, rows[:-1], classes[:-1], config, random_runs=0, holding=holding).trades
    trades = trades[trades["reason"] != "end"]
    assert len(account.trades) > 10 and len(account.trades) in (len(trades), len(trades) - 1)
    for own, (_, trade) in zip(account.trades, trades.iterrows(), strict=False):
        assert (own.side, own.entry_time, own.exit_time, own.reason) == (
            trade["side"],
            trade["entry_time"].to_pydatetime(),
            trade["exit_time"].to_pydatetime(),
            trade["reason"],
        )
        assert own.net_pct == trade["net_pct"]
    reasons = {trade.reason for trade in account.trades}
    assert reasons == ({"timeout"} if name == "own" else {"target", "stop", "timeout"})


def test_without_a_scale_there_is_no_position(journals):
    entry = next(one for one in journals["moving"] if one.action == "LONG")
    account = PaperAccount(MARKET, CONFIG)
    account.take(replace(entry, barrier_scale=None))
    assert account.position is None
    account.take(entry)
    assert account.position.scale == entry.barrier_scale


# ---------------------------------------------------------------- the strategy of freqtrade


def test_a_strategy_finds_the_scale_of_a_trade_at_its_signal(models):
    expected, model = find_scales(), StrategyModel(models["moving"], None, "12h")
    frame = model.answer_history(MARKET, CANDLES[150:], lambda: CANDLES)
    times = CANDLES["date"].astype("int64").tolist()
    assert frame["lstm_barrier_scale"].tolist() == pytest.approx([expected[time] for time in times[150:]], rel=1e-12)
    for row in (160, 201):
        opened = CANDLES["date"][row].to_pydatetime()  # at the open of the candle after the signal
        for moment in (opened, opened + timedelta(hours=11)):
            assert model.find_scale(MARKET, moment) == pytest.approx(expected[times[row - 1]], rel=1e-12)
    assert math.isnan(model.find_scale(MARKET, CANDLES["date"][90].to_pydatetime()))
    assert math.isnan(model.find_scale("ETH/USDT", CANDLES["date"][200].to_pydatetime()))
    assert StrategyModel(models["own"], None, "12h").find_scale(MARKET, CANDLES["date"][90].to_pydatetime()) == 1.0


def test_a_bot_finds_the_scale_of_a_new_trade(models, tmp_path):
    expected, times = find_scales(), CANDLES["date"].astype("int64").tolist()
    now = [CANDLES["date"][199] + HALF_DAY]
    model = StrategyModel(models["moving"], None, "12h", state_folder=tmp_path, clock=lambda: now[0])

    def fetch(pair: str, since_ms: int) -> pd.DataFrame:
        since = pd.Timestamp(since_ms, unit="ms", tz="UTC")
        return CANDLES[(CANDLES["date"] >= since) & (CANDLES["date"] + HALF_DAY <= now[0])]

    model.start(MARKET, fetch)
    for row in range(200, 206):
        now[0] = CANDLES["date"][row] + HALF_DAY + pd.Timedelta(seconds=15)
        answers = model.follow(MARKET, CANDLES[row - 30 : row + 1], fetch)
        assert answers["lstm_barrier_scale"].iloc[-1] == pytest.approx(expected[times[row]], rel=1e-9)
        assert model.find_scale(MARKET, now[0].to_pydatetime()) == answers["lstm_barrier_scale"].iloc[-1]


def test_barriers_of_a_trade_are_multiples():
    plain = CONFIG.replace(barrier_scale="1", **{name: 0.4 * value for name, value in SIZES.items()})
    for side in ("long", "short"):
        assert find_target_ratio(CONFIG, side, 0.001, 0.4) == pytest.approx(find_target_ratio(plain, side, 0.001))
        assert find_stop_price(CONFIG, side, 200.0, 0.4) == pytest.approx(find_stop_price(plain, side, 200.0))


def test_a_row_without_barriers_enters_nothing(models):
    policy = Predictor.load(models["moving"]).policy
    frame = pd.DataFrame({"lstm_decision": [1.0, 1.0, -1.0], "lstm_long": 0.6, "lstm_short": 0.6})
    frame["lstm_barrier_scale"] = [np.nan, 0.5, np.nan]
    entries = choose_entries(frame, policy, 0.5)
    assert entries["long"].tolist() == [False, True, False] and not entries["short"].any()


def test_the_strategies_have_the_parts_that_their_model_needs(models, tmp_path):
    texts = {}
    for name, path in models.items():
        plan = make_plan(path, tmp_path)
        texts[name] = write_strategy(plan)
        compile(texts[name], name, "exec")
        assert "@" not in texts[name] and max(map(len, texts[name].splitlines())) <= 120
        notes = "\n".join(list_notes(plan))
        assert ("no stop-loss but -99 %" in notes) == (name == "own")
        assert ("follow the market" in notes) == (name == "moving")
        assert "stoploss = -0.99" in texts[name]
    assert "self.find_scale(pair, trade)" in texts["moving"] and "use_custom_roi = True" in texts["moving"]
    assert "find_scale" not in texts["own"] and "use_custom_roi = False" in texts["own"]


def make_plan(path, folder):
    from crypto_lstm.commands.freqtrade import StrategyPlan

    options = {"trading_mode": "futures", "name": "X", "exchange": "binance", "any_pair": False, "days": 30}
    return StrategyPlan(Predictor.load(path), folder, "BTC/USDT:USDT", test_start=None, **options)
