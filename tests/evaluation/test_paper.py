"""Paper trading: the trades of a replayed month equal those of the simulator, also after a stop and late candles."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from support import forked

from crypto_lstm.architecture import build_model
from crypto_lstm.commands.main import main
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.paper import PaperAccount
from crypto_lstm.evaluation.simulator import simulate
from crypto_lstm.inference.journal import JournalEntry, read_journal
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.predictor import Predictor

BARRIERS = {"long_tp_pct": 2, "long_sl_pct": 1, "short_tp_pct": 1.5, "short_sl_pct": 2}
NUMBERS = ("entry_price", "exit_price", "gross_pct", "fee_pct", "slippage_pct", "net_pct")


def make_entries(candles, classes):
    """A journal of decisions that all came in time."""
    entries = []
    for row, code in zip(candles.itertuples(index=False), classes, strict=True):
        candle = [row.date.timestamp() * 1000, row.open, row.high, row.low, row.close, row.volume]
        action = CLASSES[code]
        entries.append(JournalEntry("X", row.date.isoformat(), action, action, "", None, None, candle, 1.0, 1.0, ""))
    return entries


def list_trades(account):
    return [(trade.side, trade.reason, *(getattr(trade, name) for name in NUMBERS)) for trade in account.trades]


def list_expected(candles, classes, config):
    """The trades of the simulator, without those that the end of the candles cuts off."""
    places = np.flatnonzero(~fill_gaps(candles, config.max_gap_minutes, config.timeframe)["filled"])
    trades = simulate(candles, places, classes, config, random_runs=0).trades
    trades = trades[trades["reason"] != "end"]
    return [(row["side"], row["reason"], *(row[name] for name in NUMBERS)) for _, row in trades.iterrows()]


@pytest.mark.parametrize(("seed", "tie"), [(0, "stop"), (1, "target"), (2, "stop"), (3, "target")])
def test_the_trades_are_those_of_the_simulator(seed, tie):
    rng = np.random.default_rng(seed)
    costs = {"fee_pct": 0.05, "slippage_pct": 0.03}
    config = Config(timeframe="1h", future_window=5 + 9 * seed, max_gap_minutes=180, tie=tie, **BARRIERS, **costs)
    candles = synthetic_candles(600, seed=seed, timeframe="1h")
    kept = rng.random(len(candles)) > 0.04 * seed
    kept[np.arange(len(kept)) % 97 < seed] = False
    candles = candles[kept].reset_index(drop=True)
    classes = rng.choice([0, 1, 2], size=len(candles), p=[0.1, 0.8, 0.1])
    account = PaperAccount.from_entries(make_entries(candles, classes), "X", config)
    expected = list_expected(candles, classes, config)
    assert len(expected) > 10
    assert list_trades(account) == expected


def test_a_candle_that_comes_late_counts_for_the_open_position():
    """The bot was told NO_TRADE for the late candle, and the position that is open sees its prices."""
    config = Config(timeframe="1h", future_window=24, **BARRIERS)
    candles = synthetic_candles(200, seed=5, timeframe="1h")
    classes = np.ones(200, dtype=int)
    classes[3] = 2
    entries = make_entries(candles, classes)
    for entry in entries[5:8]:
        object.__setattr__(entry, "action", "NO_TRADE")
    late = [*entries[:5], *entries[6:8], entries[5], *entries[8:]]
    in_order = PaperAccount.from_entries(entries, "X", config)
    assert len(in_order.trades) == 1
    assert list_trades(PaperAccount.from_entries(late, "X", config)) == list_trades(in_order)


def test_a_decision_that_was_not_acted_on_opens_no_position():
    candles = synthetic_candles(100, seed=5, timeframe="1h")
    entries = make_entries(candles, np.full(100, 2))
    for entry in entries:
        object.__setattr__(entry, "action", "NO_TRADE")
    account = PaperAccount.from_entries(entries, "X", Config(timeframe="1h", **BARRIERS))
    assert account.position is None and not account.trades


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """A model, candles, and the folder of one replay of a month, by the command."""
    folder = tmp_path_factory.mktemp("paper")
    network = {"sequence_length": 12, "lstm_units": (8, 4), "dense_units": ()}
    config = Config(timeframe="1h", future_window=24, fee_pct=0.02, **network, **BARRIERS)
    candles = synthetic_candles(732 + 720, seed=3, timeframe="1h")
    candles.to_parquet(folder / "candles.parquet")
    scaler = Scaler.fit(make_features(candles, config)[list(config.features)].to_numpy(), config)
    export_onnx(build_model(config, compile_model=False), folder / "model.onnx", config=config, scaler=scaler)
    words = ["paper", "--model", "model.onnx", "--candles", "candles.parquet", "--output", "bot", "--json"]
    done = forked.run(forked.MAIN, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, config, candles, json.loads(done.stdout)


def test_the_journal_of_a_replayed_month_equals_predict_to_the_bit(replayed):
    folder, _, candles, _ = replayed
    answers = Predictor.load(folder / "model.onnx").predict(candles)
    entries = {entry.time: entry for entry in read_journal(folder / "bot" / "journal.jsonl")}
    rows = [row for row, time in enumerate(answers["date"].astype(np.int64).tolist()) if time in entries]
    assert len(rows) == len(entries) == 720
    for row, entry in zip(rows, entries.values(), strict=True):
        shares = {name: float(answers[name.lower()][row]) for name in CLASSES}
        assert (entry.decision, entry.action, entry.probabilities) == (answers["decision"][row], entry.decision, shares)


def test_the_paper_trades_of_the_command_equal_those_of_the_simulator(replayed):
    folder, config, candles, values = replayed
    answers = Predictor.load(folder / "model.onnx").predict(candles)
    codes = np.array([CLASSES.index(name) for name in answers["decision"]])
    classes = np.ones(len(candles), dtype=int)
    classes[-720:] = codes[-720:]
    expected = list_expected(candles, classes, config)
    trades = values["accounts"][0]["trades"]
    assert [(one["side"], one["reason"], *(one[name] for name in NUMBERS)) for one in trades] == expected
    assert len(expected) > 10


def test_a_stop_and_a_start_lead_to_the_same_account(replayed, tmp_path):
    folder, config, candles, values = replayed
    cut = random.Random(1).randrange(900, 1300)
    candles[:cut].to_parquet(tmp_path / "first.parquet")
    words = ["paper", "--model", str(folder / "model.onnx"), "--output", str(tmp_path / "bot")]
    assert main([*words, "--candles", str(tmp_path / "first.parquet")]) == 0
    assert main([*words, "--candles", str(folder / "candles.parquet")]) == 0
    entries = read_journal(tmp_path / "bot" / "journal.jsonl", newest_only=False)
    account = PaperAccount.from_entries(entries, config.pair, config)
    assert account.as_dict() == values["accounts"][0]
