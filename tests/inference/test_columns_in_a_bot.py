"""Columns of the user's in a running bot: `LiveRunner`, the strategy of freqtrade, `crypto-lstm paper`."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.commands.main import main
from crypto_lstm.config import Config
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.decision import NO_TRADE
from crypto_lstm.inference.journal import read_journal
from crypto_lstm.inference.live import LiveError, LiveRunner
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.inference.replay import ReplayClock, ReplayExchange
from crypto_lstm.inference.strategy import StrategyError, StrategyModel

CONFIG = Config(
    pair="BTC/USDT",
    timeframe="12h",
    sequence_length=6,
    max_gap_minutes=2160,
    lstm_units=(4,),
    dense_units=(),
    features={
        "close_change": "pct(close)",
        "rate": "sum(funding, 24h)",
        "btc": "pct(btc_close)",
        "slow": "close / mean(close, 40d)",  # longer than the 30 days of a plain model
    },
    column_max_age=["funding = 12h"],
)
NAMES = list(CONFIG.feature_columns)
HALF_DAY = pd.Timedelta(hours=12)
MARKET = "BTC/USDT"


def make_candles(count: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = synthetic_candles(count, seed=4, timeframe="12h")
    other = synthetic_candles(count, seed=5, timeframe="12h")["close"]
    return frame.assign(funding=rng.normal(0, 0.01, count), btc_close=other)


CANDLES = make_candles()
OPENINGS = (CANDLES["date"].astype("int64") // 10**6).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network, rng = build_model(CONFIG, compile_model=False), np.random.default_rng(0)
    for variable in network.weights:
        variable.assign(rng.normal(0, 0.6, variable.shape))
    path = tmp_path_factory.mktemp("columns") / "model.onnx"
    rows = make_features(CANDLES, CONFIG)[list(CONFIG.feature_names)].to_numpy()
    export_onnx(network, path, config=CONFIG, scaler=Scaler.fit(rows[~np.isnan(rows).any(axis=1)], CONFIG))
    return path


# ---------------------------------------------------------------- LiveRunner


class Source:
    """An exchange, and a source of columns with faults."""

    def __init__(self, start: int) -> None:
        self.clock = ReplayClock(CANDLES["date"][start].timestamp())
        self.exchange = ReplayExchange({MARKET: CANDLES}, "12h", self.clock, columns=NAMES)
        self.late: dict[int, float] = {}  # row -> hours after its close until `funding` is known
        self.down: tuple[int, ...] = ()  # rows after whose close the source can't be reached
        self.wrong: dict[int, tuple[float, float]] = {}  # row -> value, and hours after its close until it is right

    def fetch_columns(self, market: str, openings: list[int]) -> dict[str, list[float | None]]:
        found = self.exchange.fetch_columns(market, openings)
        newest = int((self.clock.now() - OPENINGS[0] / 1000) // 43_200) - 1
        if newest in self.down:
            raise ConnectionError("no route to host")
        for place, opened in enumerate(openings):
            row = OPENINGS.index(opened)
            age_h = (self.clock.now() - opened / 1000) / 3600 - 12
            if age_h < self.late.get(row, 0.0):
                found["funding"][place] = None
            if row in self.wrong and age_h < self.wrong[row][1]:
                found["funding"][place] = self.wrong[row][0]
        return found

    def run(self, model, folder, end: int, told: list | None = None):
        told = [] if told is None else told
        times = {"now": self.clock.now, "sleep": self.clock.sleep, "fetch_columns": self.fetch_columns}
        fetch = self.exchange.fetch_ohlcv
        runner = LiveRunner(Predictor.load(model), fetch, [MARKET], told.append, folder, **times)
        runner.run(until=CANDLES["date"][end] + pd.Timedelta(minutes=1))
        return told


def expect(model, candles=CANDLES) -> dict[int, tuple[str, float]]:
    answers = Predictor.load(model).predict(candles)
    times = answers["date"].astype("datetime64[ns]").astype(np.int64).tolist()
    return dict(zip(times, zip(answers["decision"].tolist(), answers["long"].tolist(), strict=True), strict=True))


def read_answers(folder) -> dict[int, tuple[str, float]]:
    entries = read_journal(folder / "journal.jsonl")
    return {one.time: (one.decision, (one.probabilities or {}).get("LONG", math.nan)) for one in entries}


def test_the_journal_equals_predict_over_restarts(model, tmp_path):
    told = Source(100).run(model, tmp_path / "bot", 120)
    told = Source(120).run(model, tmp_path / "bot", 140, told)
    expected, found = expect(model), read_answers(tmp_path / "bot")
    assert len(found) >= 40 and found == {time: expected[time] for time in found}
    assert [entry.action for entry in told] == [entry.decision for entry in told]
    assert all(len(entry.candle) == 6 for entry in told)


def test_a_value_that_is_not_known_gives_no_trade_and_is_asked_for_again(model, tmp_path, caplog):
    source = Source(100)
    source.late = {110: 14.0, 118: 0.1, 130: math.inf}
    source.wrong = {125: (5.0, 13.0)}
    source.down = (114,)
    with caplog.at_level(logging.WARNING):
        told = source.run(model, tmp_path / "bot", 150)
    entries = {OPENINGS.index(one.time // 10**6): one for one in read_journal(tmp_path / "bot" / "journal.jsonl")}
    without = CANDLES.drop(index=130).reset_index(drop=True)
    expected = expect(model, without)
    for row, entry in entries.items():
        if 130 <= row <= 136:
            assert entry.decision == NO_TRADE and (row == 130) == (entry.candle is None)
        else:
            assert (entry.decision, entry.probabilities["LONG"]) == expected[entry.time], row
    assert "the column funding has no value for the candle of" in entries[130].reason
    first = next(one for one in told if one.time // 10**6 == OPENINGS[110])
    assert first.action == NO_TRADE and "the column funding has no value" in first.reason
    assert "ConnectionError: 'no route to host' (raised by fetch_columns)" in caplog.text
    actions = [one.time for one in told if one.action != NO_TRADE]
    assert len(set(actions)) == len(actions)


def test_what_a_runner_refuses(model, tmp_path):
    exchange = ReplayExchange({MARKET: CANDLES}, "12h", ReplayClock(CANDLES["date"][100].timestamp()))
    with pytest.raises(LiveError, match="needs funding, btc_close beside each candle.*give fetch_columns"):
        LiveRunner(Predictor.load(model), exchange.fetch_ohlcv, [MARKET], print, tmp_path / "a")
    for answer, fault in (
        ({"funding": [0.0] * 100}, "a mapping with the column btc_close"),
        ([1, 2], "a mapping with the column"),
        ({"funding": [0.0], "btc_close": [0.0]}, "one for each candle"),
    ):
        source = Source(100)
        source.fetch_columns = lambda market, openings, answer=answer: answer
        with pytest.raises(LiveError, match=fault):
            source.run(model, tmp_path / "b", 101)
    source = Source(100)
    source.late = dict.fromkeys(range(200), math.inf)
    with pytest.raises(LiveError, match="no history of BTC/USDT: the column funding has no value"):
        source.run(model, tmp_path / "c", 101)


# ---------------------------------------------------------------- freqtrade


class Bot:
    """What a strategy does with its model: `add_columns` sees every frame."""

    def __init__(self, model, folder, row: int) -> None:
        self.values, self.row, self.asked = CANDLES.set_index("date")[NAMES].copy(), row, 0
        clock = lambda: self.find_close() + pd.Timedelta(seconds=15)  # noqa: E731
        self.model = StrategyModel(model, None, "12h", state_folder=folder, clock=clock)

    def find_close(self):
        return CANDLES["date"][self.row] + HALF_DAY

    def add_columns(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame[["date", "open", "high", "low", "close", "volume"]].join(self.values, on="date")

    def fetch(self, pair: str, since_ms: int) -> pd.DataFrame:
        self.asked += 1
        since = pd.Timestamp(since_ms, unit="ms", tz="UTC")
        closed = CANDLES[(CANDLES["date"] >= since) & (CANDLES["date"] + HALF_DAY <= self.find_close())]
        return self.add_columns(closed.reset_index(drop=True))

    def follow(self, row: int) -> float:
        self.row = row
        frame = CANDLES[row - 40 : row + 1].reset_index(drop=True)
        return self.model.follow(MARKET, self.add_columns(frame), self.fetch)["lstm_long"].iloc[-1]


def test_a_strategy_answers_histories_and_new_candles_alike(model, tmp_path):
    expected = expect(model)
    bot = Bot(model, tmp_path, 120)
    bot.model.start(MARKET, bot.fetch)
    found = {row: bot.follow(row) for row in range(121, 135)}
    bot.model.save_states()
    again = Bot(model, tmp_path, 137)
    again.model.start(MARKET, again.fetch)
    found |= {row: again.follow(row) for row in range(138, 145)}
    assert found == pytest.approx({row: expected[OPENINGS[row] * 10**6][1] for row in found}, abs=1e-6)
    history = bot.model.answer_history(MARKET, CANDLES[150:], lambda: CANDLES)
    assert history["lstm_long"].tolist() == [expected[opened * 10**6][1] for opened in OPENINGS[150:]]
    assert "funding" in history


def test_a_strategy_does_not_trade_a_candle_without_a_value(model, tmp_path, caplog):
    bot, expected = Bot(model, tmp_path, 120), expect(model)
    bot.model.start(MARKET, bot.fetch)
    dates, kept = CANDLES["date"], bot.values["funding"].copy()
    bot.values.loc[dates[123] :, "funding"] = np.nan  # not there yet
    with caplog.at_level(logging.WARNING):
        found = {row: bot.follow(row) for row in (121, 122, 123)}
    assert math.isnan(found[123]) and "has no value of funding: see add_columns" in caplog.text
    bot.values["funding"] = kept  # late, but there
    found |= {row: bot.follow(row) for row in (124, 125)}
    rows = (121, 122, 124, 125)
    assert [found[row] for row in rows] == pytest.approx([expected[OPENINGS[row] * 10**6][1] for row in rows], abs=1e-6)
    bot.values.loc[dates[126], "btc_close"] = np.inf  # never there
    found = {row: bot.follow(row) for row in range(126, 136)}
    assert all(math.isnan(found[row]) for row in range(126, 132))
    assert "candle is missing" in caplog.text
    whole = expect(model, CANDLES.drop(index=126))
    assert found[135] == pytest.approx(whole[OPENINGS[135] * 10**6][1], abs=1e-6)


def test_a_strategy_without_the_column_does_not_start(model, tmp_path, caplog):
    bot = Bot(model, tmp_path, 120)
    bot.values = bot.values[["btc_close"]]
    with pytest.raises(StrategyError, match="needs funding beside each candle.*fill in add_columns"):
        bot.model.start(MARKET, bot.fetch)
    with pytest.raises(StrategyError, match="needs funding"):
        bot.model.answer_history(MARKET, bot.add_columns(CANDLES), lambda: CANDLES)
    holed = CANDLES.copy()
    holed.loc[170, "funding"] = np.nan
    with caplog.at_level(logging.WARNING):
        answers = bot.model.answer_history(MARKET, holed[150:], lambda: holed)
    assert answers["lstm_long"].isna().all() and "funding must be a finite number" in caplog.text
    ended = CANDLES.copy()
    ended.loc[195:, "funding"] = np.nan  # the newest are not known
    ended.loc[:20, "btc_close"] = np.nan  # and the oldest
    answers = bot.model.answer_history(MARKET, ended[150:], lambda: ended)
    assert answers["lstm_long"].isna().tolist() == [False] * 45 + [True] * 5


# ---------------------------------------------------------------- the commands


def test_the_commands_take_a_model_with_columns(model, tmp_path, capsys):
    CANDLES.to_parquet(tmp_path / "candles.parquet")
    words = ["--model", str(model), "--output", str(tmp_path / "paper"), "--json"]
    assert main(["paper", *words, "--candles", str(tmp_path / "candles.parquet")]) == 0
    values = json.loads(capsys.readouterr().out)
    expected, found = expect(model), read_answers(tmp_path / "paper")
    assert values["summary"]["candles"] == len(found) > 100
    assert found == {time: expected[time] for time in found}
    CANDLES.drop(columns="funding").to_parquet(tmp_path / "plain.parquet")
    assert main(["paper", *words, "--candles", str(tmp_path / "plain.parquet")]) == 1
    assert "funding" in capsys.readouterr().err
    assert main(["paper", *words, "--exchange", "binance"]) == 1
    assert "replay --candles that have it, or run LiveRunner with fetch_columns" in capsys.readouterr().err
    words = ["--model", str(model), "--output", str(tmp_path / "s"), "--trading-mode", "futures", "--json"]
    assert main(["freqtrade", *words]) == 0
    values = json.loads(capsys.readouterr().out)
    assert any("fill in add_columns" in note and "'funding'" in note for note in values["notes"])
    text = (tmp_path / "s" / "CryptoLSTM.py").read_text()
    assert "the features need funding, btc_close" in text
