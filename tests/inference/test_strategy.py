"""What a strategy of freqtrade needs: entries, exits, answers for histories, and the stream of a running bot."""

from __future__ import annotations

import logging
import math
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from support.fake_exchange import ExchangeError, FakeClock, FakeExchange, Fault, market_of

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.rule import TradeRule
from crypto_lstm.inference.strategy import (
    StrategyError,
    StrategyModel,
    choose_entries,
    drop_fillers,
    find_highest_thresholds,
    find_stop_price,
    find_target_ratio,
    is_past_horizon,
    require_market,
)
from crypto_lstm.storage.manifest import PinMismatchError

CONFIG = Config(
    pair="BTC/USDT", timeframe="12h", sequence_length=6, max_gap_minutes=2160, lstm_units=(4,), dense_units=()
)
CANDLES = synthetic_candles(200, seed=4, timeframe="12h")
HALF_DAY = pd.Timedelta(hours=12)
PAIR = "BTC/USDT:USDT"
SHARES = ["lstm_short", "lstm_hold", "lstm_long"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("strategy")
    network, rng = build_model(CONFIG, compile_model=False), np.random.default_rng(0)
    for variable in network.weights:
        variable.assign(rng.normal(0, 0.6, variable.shape))
    rows = make_features(CANDLES, CONFIG)[list(CONFIG.features)].to_numpy()
    sha256 = export_onnx(network, place / "m.onnx", config=CONFIG, scaler=Scaler.fit(rows, CONFIG))
    return SimpleNamespace(path=place / "m.onnx", sha256=sha256)


class Bot:
    """A strategy on the fake exchange, as freqtrade runs it: after each close it gets a frame."""

    def __init__(self, exported, folder, *faults: Fault, start: int = 120) -> None:
        self.exported, self.folder = exported, folder
        self.exchange = FakeExchange([market_of("BTCUSDT", CANDLES, "12h")], FakeClock(0, speed=0), list(faults))
        self.asked: list[int] = []
        self.answers: dict[int, float] = {}
        self.set_clock(start)
        self.start()

    def set_clock(self, row: int, delay_s: float = 1.0) -> None:
        """Some seconds after the close of a candle."""
        self.exchange.clock.set((CANDLES["date"][row] + HALF_DAY).timestamp() * 1000 + delay_s * 1000)

    def read_clock(self) -> datetime:
        return datetime.fromtimestamp(self.exchange.clock.now_ms() / 1000, UTC)

    def start(self) -> None:
        """Start, or start again after a kill."""
        path, pin = self.exported.path, self.exported.sha256
        self.model = StrategyModel(path, pin, "12h", state_folder=self.folder, clock=self.read_clock)
        self.model.start(PAIR, self.fetch)

    def fetch(self, pair: str, since_ms: int) -> pd.DataFrame:
        self.asked.append(since_ms)
        rows = self.exchange.fetch_ohlcv(pair, "12h", since_ms, 1000)
        table = pd.DataFrame(rows, columns=["date", "open", "high", "low", "close", "volume"])
        table["date"] = pd.to_datetime(table["date"], unit="ms", utc=True)
        table = table.drop_duplicates("date").sort_values("date")
        return table[table["date"] + HALF_DAY <= self.read_clock()].reset_index(drop=True)

    def make_frame(self, row: int) -> pd.DataFrame:
        """The newest candles as freqtrade hands them over: missing ones filled in."""
        known = self.fetch(PAIR, int(CANDLES["date"][row - 40].timestamp() * 1000))
        self.asked.pop()
        dates = pd.date_range(known["date"].iloc[0], CANDLES["date"][row], freq="12h")
        frame = known.set_index("date").reindex(dates)
        frame["close"] = frame["close"].ffill()
        for name in ("open", "high", "low"):
            frame[name] = frame[name].fillna(frame["close"])
        return frame.fillna({"volume": 0.0}).rename_axis("date").reset_index()

    def follow(self, *rows: int) -> None:
        for row in rows:
            self.set_clock(row)
            table = self.model.follow(PAIR, self.make_frame(row), self.fetch)
            self.answers[row] = table["lstm_long"].iloc[-1]


def expect_answers(exported, candles: pd.DataFrame) -> dict[int, float]:
    """Row of `CANDLES` -> the probability of LONG, by `predict` on these candles."""
    model = StrategyModel(exported.path, exported.sha256, "12h")
    rounded = market_of("BTCUSDT", candles, "12h").as_frame()
    answers = model.predictor.predict(rounded)
    rows = np.searchsorted(CANDLES["date"].astype("int64"), answers["date"].astype("int64"))
    return dict(zip(rows.tolist(), answers["long"].tolist(), strict=True))


def opening(row: int) -> int:
    return int(CANDLES["date"][row].timestamp() * 1000)


# ---------------------------------------------------------------- entries and exits


def test_entries_equal_those_of_the_rule():
    rule = TradeRule("expected_value", ((-0.5, -0.1, 1.0), (1.0, 0.0, -0.6)), 0.1, margin_pct=0.05)
    shares = np.random.default_rng(1).dirichlet([1, 1, 1], 500)
    expected = rule.expected_returns(shares)
    frame = pd.DataFrame({"lstm_expected_long": expected[:, 0], "lstm_expected_short": expected[:, 1]})
    for margin in (0.0, 0.05, 0.4):
        chosen = replace(rule, margin_pct=margin).choose_classes(shares)
        entries = choose_entries(frame, DecisionPolicy(rule=rule), margin)
        assert (entries["long"] == (chosen == 2)).all() and (entries["short"] == (chosen == 0)).all()
        assert entries["long"].any() and entries["short"].any()
    highest = find_highest_thresholds(DecisionPolicy(rule=rule))
    assert highest == {"long": 0.9, "short": 0.9}
    assert expected.max() <= 0.9 and not choose_entries(frame, DecisionPolicy(rule=rule), 0.9)["long"].any()


def test_a_row_without_an_answer_enters_nothing():
    frame = pd.DataFrame(dict.fromkeys([*SHARES, "lstm_expected_long", "lstm_expected_short"], [math.nan, math.nan]))
    frame["lstm_decision"] = math.nan
    rule = TradeRule.from_barriers((1.0, 0.5), (1.0, 0.5), 0.1)
    for policy in (DecisionPolicy(), DecisionPolicy(rule=rule), DecisionPolicy(rule=replace(rule, kind="argmax"))):
        entries = choose_entries(frame, policy, 0.0)
        assert not entries["long"].any() and not entries["short"].any()


@pytest.mark.parametrize("fee", [0.0, 0.0005, 0.01])
def test_the_ratio_of_the_target_is_that_of_freqtrade(fee):
    config = CONFIG.replace(long_tp_pct=1.3, short_tp_pct=0.7)
    amount, entry = 0.37, 26_309.23
    for side, target in (("long", entry * 1.013), ("short", entry * 0.993)):
        if side == "long":  # freqtrade: calc_profit_ratio
            ratio = amount * target * (1 - fee) / (amount * entry * (1 + fee)) - 1
        else:
            ratio = 1 - amount * target * (1 + fee) / (amount * entry * (1 - fee))
        assert find_target_ratio(config, side, fee) == pytest.approx(ratio, abs=1e-12)


def test_stops_and_horizon_are_those_of_the_labels():
    config = Config(timeframe="5m", future_window=3, long_sl_pct=0.4, short_sl_pct=0.9)
    assert find_stop_price(config, "long", 200.0) == pytest.approx(199.2)
    assert find_stop_price(config, "short", 200.0) == pytest.approx(201.8)
    candle = datetime(2026, 3, 1, 10, 5, tzinfo=UTC)
    for delay_s in (0, 1, 299):
        opened = candle + timedelta(seconds=delay_s)
        assert not is_past_horizon(config, opened, candle + timedelta(minutes=15, seconds=-1))
        assert is_past_horizon(config, opened, candle + timedelta(minutes=15))


# ---------------------------------------------------------------- refusals


def test_another_market_and_another_file_are_refused(exported):
    model = StrategyModel(exported.path, exported.sha256, "12h")
    with pytest.raises(StrategyError, match="expected the pair BTC/USDT that the model was trained on, got 'ETH/USDT'"):
        model.answer_history("ETH/USDT", CANDLES, lambda: CANDLES)
    with pytest.raises(StrategyError, match="ETH"):
        model.follow("ETH/USDT", CANDLES, lambda pair, since: CANDLES)
    with pytest.raises(StrategyError, match="expected the timeframe 12h of the model, got '1m'"):
        StrategyModel(exported.path, exported.sha256, "1m")
    with pytest.raises(PinMismatchError, match="you pinned"):
        StrategyModel(exported.path, "0" * 64, "12h")
    free = StrategyModel(exported.path, None, "12h", any_pair=True)
    assert len(free.answer_history("ETH/USDT", CANDLES, lambda: CANDLES)) == 200
    for pair in ("BTCUSDT", "btc-usdt", "BTC/USDT:USDT", "BTC_USDT"):
        require_market(CONFIG, pair, "12h")


# ---------------------------------------------------------------- histories


def test_a_history_is_answered_once_with_the_candles_before_it(exported, monkeypatch):
    model = StrategyModel(exported.path, exported.sha256, "12h")
    loads: list[int] = []
    runs: list[int] = []
    inner = type(model.predictor).predict
    monkeypatch.setattr(type(model.predictor), "predict", lambda self, c: runs.append(len(c)) or inner(self, c))

    def load() -> pd.DataFrame:
        loads.append(1)
        return CANDLES

    frame = CANDLES[150:180].reset_index(drop=True)
    first = model.answer_history(PAIR, frame, load)
    assert model.answer_history(PAIR, frame.copy(), load).equals(first) and (len(loads), len(runs)) == (1, 1)
    assert runs == [60 + 6 + 30]  # 30 days, a window, and the frame
    changed = frame.copy()
    changed.loc[20, "close"] *= 1.0001
    assert not model.answer_history(PAIR, changed, load).equals(first) and len(loads) == 2
    copy = pickle.loads(pickle.dumps(model))
    assert copy.answer_history(PAIR, frame, load).equals(first) and len(loads) == 2
    expected = inner(model.predictor, CANDLES[:180])
    assert np.allclose(first["lstm_long"], expected["long"][-30:], atol=1e-6)
    assert list(first.columns[:6]) == list(CANDLES.columns) and len(model._histories) == 2


def test_no_answer_depends_on_a_later_candle(exported):
    model = StrategyModel(exported.path, exported.sha256, "12h")
    whole = model.answer_history(PAIR, CANDLES[100:], lambda: CANDLES)
    for end in (130, 171):
        part = model.answer_history(PAIR, CANDLES[100:end], lambda: CANDLES)  # the disk holds what comes later
        assert np.allclose(part[SHARES], whole[SHARES][: end - 100], atol=1e-6)


def test_a_short_history_and_an_empty_frame_have_no_answers(exported, caplog):
    model = StrategyModel(exported.path, exported.sha256, "12h")
    with caplog.at_level(logging.WARNING):
        table = model.answer_history(PAIR, CANDLES[:20], lambda: CANDLES[:0])
    assert table["lstm_long"].isna().all() and "more candles are needed" in caplog.text
    assert not len(model.answer_history(PAIR, CANDLES[:0], lambda: CANDLES))


def test_fillers_are_dropped_and_real_candles_are_kept():
    frame = CANDLES[:10].copy()
    close = frame.loc[4, "close"]
    frame.loc[5, ["open", "high", "low", "close", "volume"]] = [close, close, close, close, 0.0]
    frame.loc[7, "volume"] = 0.0  # prices moved
    frame.loc[8, ["open", "high", "low", "close"]] = close  # traded at one price
    assert drop_fillers(frame).index.tolist() == list(range(9))
    assert drop_fillers(frame)["date"].tolist() == frame["date"].drop(5).tolist()


# ---------------------------------------------------------------- a running bot


def test_each_answer_equals_that_of_predict_and_a_restart_needs_the_gap_alone(exported, tmp_path):
    bot = Bot(exported, tmp_path)
    bot.follow(*range(121, 130))
    bot.model.save_states()
    bot.set_clock(133)
    bot.start()  # killed, and back two days later
    assert bot.asked[-1] == opening(129)
    bot.follow(134, 135)
    expected = expect_answers(exported, CANDLES)
    assert bot.answers == pytest.approx({row: expected[row] for row in bot.answers}, abs=1e-6)
    assert len(bot.asked) == 2  # each start asks once, and no candle was missing


def test_a_missing_candle_is_fetched_and_never_invented(exported, tmp_path, caplog):
    late = Fault("late", opening(122), lasts_s=12 * 3600 - 1)  # served when the next one closes
    gap = Fault("gap", opening(126))
    bot = Bot(exported, tmp_path, late, gap)
    with caplog.at_level(logging.WARNING):
        bot.follow(121, 123, 124, *range(127, 137))
    expected = expect_answers(exported, CANDLES)
    for row in (121, 123, 124):
        assert bot.answers[row] == pytest.approx(expected[row], abs=1e-6)
    for row in range(127, 132):
        assert math.isnan(bot.answers[row])
    assert caplog.text.count("1 candle is missing before the newest one") == 1  # once an hour
    assert not math.isnan(bot.answers[136])


def test_a_candle_that_changes_builds_the_stream_anew(exported, tmp_path, caplog):
    bot = Bot(exported, tmp_path, Fault("changed", opening(122), lasts_s=12 * 3600 + 5, size=3.0))
    with caplog.at_level(logging.WARNING):
        bot.follow(121, 122, 123, 124)
    expected = expect_answers(exported, CANDLES)
    early = CANDLES.copy()
    early.loc[122, "close"] *= 1.03
    early.loc[122, "high"] = max(early.loc[122, ["high", "close"]])
    wrong = expect_answers(exported, early)
    assert bot.answers[122] == pytest.approx(wrong[122], abs=1e-5) and abs(wrong[122] - expected[122]) > 1e-4
    assert bot.answers[124] == pytest.approx(expected[124], abs=1e-6)
    assert "candles changed after their close: 1" in caplog.text and len(bot.asked) == 2


def test_an_exchange_that_is_down_leaves_the_stream_as_it_was(exported, tmp_path):
    bot = Bot(exported, tmp_path)
    bot.follow(121)
    bot.set_clock(123)
    frame = bot.make_frame(123).iloc[-1:]  # candle 122 is not in it
    bot.exchange.faults.append(Fault("down", bot.exchange.clock.now_ms(), lasts_s=3600))
    before = bot.model.streams[PAIR].time
    with pytest.raises(ExchangeError):
        bot.model.follow(PAIR, frame, bot.fetch)
    assert bot.model.streams[PAIR].time == before
    bot.follow(124)
    assert bot.answers[124] == pytest.approx(expect_answers(exported, CANDLES)[124], abs=1e-6)


@pytest.mark.parametrize("damage", ["truncated", "other model", "too old"])
def test_a_state_that_can_not_be_continued_is_replaced(damage, exported, tmp_path, caplog):
    bot = Bot(exported, tmp_path)
    bot.follow(121)
    bot.model.save_states()
    (path,) = tmp_path.glob("*.npz")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "other model":
        stream = bot.model.streams[PAIR]
        replace(stream.predictor, sha256="1" * 64).save_state(path)
    bot.set_clock(199 if damage == "too old" else 123)
    bot.start()
    assert bot.asked[-1] < opening(121) or damage == "too old"
    row = 199 if damage == "too old" else 124
    if damage != "too old":
        assert "the saved state was not used" in caplog.text
        bot.follow(row)
        assert bot.answers[row] == pytest.approx(expect_answers(exported, CANDLES)[row], abs=1e-6)
    else:
        assert bot.asked[-1] > opening(121)


def test_a_full_disk_stops_no_bot(exported, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    bot = Bot(exported, tmp_path / "file" / "states")
    bot.follow(121)
    assert "the state was not saved" in caplog.text and not math.isnan(bot.answers[121])


def test_a_frame_that_comes_twice_is_answered_once(exported, tmp_path):
    bot = Bot(exported, tmp_path)
    bot.follow(121, 121)
    assert bot.answers[121] == pytest.approx(expect_answers(exported, CANDLES)[121], abs=1e-6)
    assert len(bot.model.streams[PAIR].answers) == 1


def test_a_long_warm_up_makes_no_candle_too_old(exported, tmp_path):
    bot = Bot(exported, tmp_path)
    bot.set_clock(121)
    frame = bot.make_frame(121)

    def fetch_for_hours(pair: str, since_ms: int) -> pd.DataFrame:
        table = bot.fetch(pair, since_ms)
        bot.exchange.clock.advance(13 * 3600)  # more than a candle
        return table

    bot.model.streams.clear()  # a pair that was added later
    for path in tmp_path.iterdir():
        path.unlink()
    answers = bot.model.follow(PAIR, frame, fetch_for_hours)
    assert answers["lstm_long"].iloc[-1] == pytest.approx(expect_answers(exported, CANDLES)[121], abs=1e-6)
