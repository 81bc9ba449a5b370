"""`LiveRunner` on a replayed month with faults and kills: its journal equals `predict`, or says why not."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from support import live_check
from support.live_faults import MARKET, FaultyExchange, Plan, SharedClock

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.features import make_features
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.decision import NO_TRADE
from crypto_lstm.inference.journal import JournalError, read_journal
from crypto_lstm.inference.live import LiveError, LiveOptions, LiveRunner
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.inference.rule import TradeRule
from crypto_lstm.storage.lock import LockedError

CONFIG = Config(timeframe="1h", sequence_length=12, lstm_units=(8, 4), dense_units=(), pair="BTC/USDT")
HISTORY, MONTH = 780, 720
HOUR = 3600.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    candles = synthetic_candles(1500, seed=3, timeframe="1h")
    scaler = Scaler.fit(make_features(candles, CONFIG)[list(CONFIG.features)].to_numpy(), CONFIG)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_onnx(build_model(CONFIG, compile_model=False), path, config=CONFIG, scaler=scaler)
    return path


def test_a_month_with_fifty_faults_and_kills_equals_predict(model, tmp_path):
    plan = live_check.prepare(tmp_path, model, HISTORY, MONTH, faults=44, seed=1)
    assert live_check.run_and_kill(tmp_path, plan, kills=6, seed=1, longest_s=0.5) == 6
    tally = live_check.compare(tmp_path, plan)
    assert tally.faults == []
    assert tally.dates == MONTH + 1
    assert tally.equal > 600 and tally.without > 10 and tally.actions > 550


# ---------------------------------------------------------------- one fault at a time, in this process


def replay(model, folder, plan_changes=None, start=780, end=800, fetch=None, told=None, **more):
    """A runner on an exchange of a plan; the entries that it handed over."""
    candles = synthetic_candles(840, seed=2, timeframe="1h")
    rows = candles.assign(date=candles["date"].astype("int64") // 10**6).to_numpy(np.float64)
    first_s = rows[0, 0] / 1000
    changes = {} if plan_changes is None else plan_changes(first_s)
    folder.mkdir(exist_ok=True)
    clock = SharedClock(folder / "clock", first_s + start * HOUR)
    exchange = FaultyExchange(rows, Plan(HOUR, start - 1, end, **changes), clock)
    told = [] if told is None else told
    times = {"now": exchange.machine_now, "sleep": clock.sleep, **more}
    fetch = fetch or exchange.fetch_ohlcv
    runner = LiveRunner(Predictor.load(model), fetch, [MARKET], told.append, folder / "bot", LiveOptions(), **times)
    runner.summary = runner.run(until=datetime.fromtimestamp(first_s + (end + 1) * HOUR, UTC))
    expected = Predictor.load(model).predict(rows)
    answers = dict(zip(expected["date"].astype("int64").tolist(), expected["decision"].tolist(), strict=True))
    return runner, told, answers


def list_decisions(entries):
    return [(entry.time, entry.decision) for entry in entries]


def test_without_faults_each_candle_is_told_once_and_in_time(model, tmp_path):
    runner, told, answers = replay(model, tmp_path / "a")
    assert len(told) == 21 and {entry.latency_s for entry in told[1:]} == {1.0}
    assert all(answers[entry.time] == entry.decision == entry.action for entry in told)
    assert runner.summary.as_dict() | {"candles": 21, "actions": 21} == runner.summary.as_dict()


def test_a_slow_clock_without_the_time_of_the_exchange_is_set_forward(model, tmp_path):
    span = lambda first_s: {"spans": [("skew", 0.0, 1e12, -3 * HOUR)]}  # noqa: E731
    _, told, answers = replay(model, tmp_path / "a", span, end=800)
    fresh = [entry for entry in told if entry.action != NO_TRADE]
    assert len(fresh) >= 20
    assert all(answers[entry.time] == entry.decision for entry in fresh)


def test_a_fast_clock_takes_no_open_candle_for_a_closed_one(model, tmp_path):
    """The clock is 40 s fast, and the exchange tells its time."""
    span = lambda first_s: {"spans": [("skew", 0.0, 1e12, 40.0)]}  # noqa: E731
    folder = tmp_path / "a"

    def fetch_time():
        return 1000 * SharedClock(folder / "clock").now()

    _, told, answers = replay(model, folder, span, fetch_time=fetch_time)
    assert len(told) == 21
    assert all(answers[entry.time] == entry.decision == entry.action for entry in told)


def test_an_exception_of_the_callback_does_not_end_the_loop(model, tmp_path):
    class Failing(list):
        def append(self, entry):
            super().append(entry)
            raise RuntimeError("the bot has a bug")

    logging.disable(logging.CRITICAL)
    try:
        runner, told, _ = replay(model, tmp_path / "a", told=Failing())
    finally:
        logging.disable(logging.NOTSET)
    assert runner.summary.failed_calls == len(told) == 21


def test_a_journal_that_cannot_be_written_means_no_trade(model, tmp_path, monkeypatch):
    calls = []

    def fail(self, entries):
        calls.append(list(entries))
        if len(calls) <= 3:
            raise JournalError("no space left on device")
        return append(self, calls[-1])

    append = LiveRunner.run.__globals__["Journal"].append
    monkeypatch.setattr("crypto_lstm.inference.journal.Journal.append", fail)
    _, told, answers = replay(model, tmp_path / "a")
    assert [entry.action for entry in told[:3]] == [NO_TRADE] * 3
    assert all("the journal could not be written" in entry.reason for entry in told[:3])
    assert [answers[entry.time] for entry in told] == [entry.decision for entry in told]
    assert len(read_journal(tmp_path / "a" / "bot" / "journal.jsonl")) == len(told)


def test_two_runners_do_not_share_a_folder(model, tmp_path):
    def fetch(*request):
        with pytest.raises(LockedError):
            replay(model, tmp_path / "b", fetch=lambda *request: [], start=780)
        raise TypeError("stop here")

    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "bot").symlink_to(tmp_path / "a" / "bot")
    (tmp_path / "a" / "bot").mkdir()
    with pytest.raises(LiveError, match="stop here"):
        replay(model, tmp_path / "a", fetch=fetch)


def test_a_rule_that_never_trades_and_an_expired_model_are_refused_before_the_first_request(model, tmp_path):
    predictor = Predictor.load(model)
    requests = []
    rule = TradeRule.from_barriers((1.0, 0.5), (1.0, 0.5), cost_pct=1.0)
    never = DecisionPolicy(None, rule)
    object.__setattr__(predictor, "policy", never)
    with pytest.raises(LiveError, match="never trades: the most that a trade can be expected to return is"):
        LiveRunner(predictor, lambda *request: requests.append(request), [MARKET], print, tmp_path)
    assert requests == []


WAIT = """
import sys
from pathlib import Path
from crypto_lstm.inference.live import LiveRunner
from crypto_lstm.inference.predictor import Predictor
import time
hour = 3_600_000
newest = int(time.time() * 1000) // hour * hour
def fetch(symbol, timeframe, since, limit):
    first = -(-since // hour) * hour
    times = range(first, min(newest, first + (limit - 1) * hour) + 1, hour)
    return [[t, 100.0 + t // hour % 7, 110.0, 90.0, 100.0 + (t // hour + 1) % 7, 5.0] for t in times]
def tell(entry):
    print(entry.action, flush=True)
LiveRunner(Predictor.load(sys.argv[1]), fetch, ["BTC/USDT"], tell, sys.argv[2]).run()
print("ended", flush=True)
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_and_saves_the_state(kind, model, tmp_path):
    """In real time: the decision on the newest closed candle comes at once, and then the runner waits for an hour."""
    words = [sys.executable, "-c", WAIT, str(model), str(tmp_path / "bot")]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() in ("SHORT", "HOLD", "LONG")
    time.sleep(0.1)
    os.kill(child.pid, kind)
    output, _ = child.communicate(timeout=20)
    assert (child.returncode, output) == (0, "ended\n")
    assert len(list((tmp_path / "bot").glob("*.npz"))) == 1
    lines = Path(tmp_path / "bot" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["market"] == MARKET
