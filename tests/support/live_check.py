"""Runs a `LiveRunner` on a replayed exchange with faults and kills, and compares its journal with `predict`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.inference.decision import NO_TRADE
from crypto_lstm.inference.journal import JournalEntry, read_journal
from crypto_lstm.inference.predictor import Predictor

from .live_faults import MARKET, Plan, SharedClock, make_plan

PLACE = Path(__file__).parents[2]


@dataclass
class Tally:
    """What a replay did, and every line of its journal that is wrong."""

    kills: int = 0
    dates: int = 0
    equal: int = 0  # decisions that equal those of `predict`, to the bit
    without: int = 0  # NO_TRADE, because a candle never came or the window was not full
    actions: int = 0
    entries: int = 0
    faults: list[str] = field(default_factory=list)


def prepare(folder: Path, model: Path, history: int, month: int, faults: int, seed: int) -> Plan:
    """Write candles, plan, clock and model of a replay into a folder."""
    predictor = Predictor.load(model)
    step_s = 60.0 * predictor.config.timeframe_minutes
    candles = synthetic_candles(history + month, seed=seed, timeframe=predictor.config.timeframe)
    rows = candles.assign(date=candles["date"].astype("int64") // 10**6).to_numpy(np.float64)
    np.save(folder / "candles.npy", rows)
    plan = make_plan(rows[0, 0] / 1000, step_s, history - 1, history + month - 1, faults, seed)
    plan.save(folder / "plan.json")
    shutil.copy(model, folder / "model.onnx")
    SharedClock(folder / "clock", rows[0, 0] / 1000 + history * step_s)
    return plan


def run_and_kill(folder: Path, plan: Plan, kills: int, seed: int, longest_s: float) -> int:
    """Run children until one reaches the end; the first `kills` are killed at random moments. Returns the kills."""
    chance, done = random.Random(seed), 0
    environment = {**os.environ, "PYTHONPATH": f"{PLACE}:{PLACE / 'tests'}"}
    command = [sys.executable, "-m", "support.live_faults", str(folder)]
    while True:
        errors = (folder / "errors").open("ab")
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        if done < kills:
            before = SharedClock(folder / "clock").now()
            deadline = time.monotonic() + 60
            while SharedClock(folder / "clock").now() == before and child.poll() is None:
                assert time.monotonic() < deadline, "the child did not start"
                time.sleep(0.01)
            time.sleep(chance.uniform(0, longest_s))
            os.kill(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        errors.close()
        if child.returncode == -signal.SIGKILL:
            done += 1
            SharedClock(folder / "clock").sleep(chance.choice([1.0, 100.0, 2.5 * plan.step_s]))
            continue
        assert child.returncode == 0, (folder / "errors").read_text()[-3000:]
        json.loads(output)
        return done


def compare(folder: Path, plan: Plan) -> Tally:
    """Compare the newest entry of each date with `predict` on the candles that came in the end."""
    rows, predictor = np.load(folder / "candles.npy"), Predictor.load(folder / "model.onnx")
    lost = {number for number, moment in plan.hidden.items() if moment == float("inf")}
    came = [number for number in range(len(rows)) if number not in lost]
    answers = predictor.predict(rows[came])
    step_ns = int(plan.step_s * 1e9)
    first_ns = int(rows[0, 0]) * 10**6
    known = {(int(time) - first_ns) // step_ns: row for row, time in enumerate(answers["date"].astype(np.int64))}
    newest = {(entry.time - first_ns) // step_ns: entry for entry in read_journal(folder / "bot" / "journal.jsonl")}
    tally = Tally()
    length = predictor.config.sequence_length
    for number in range(plan.start, plan.end + 1):
        tally.dates += 1
        entry = newest.get(number)
        if entry is None or entry.market != MARKET:
            tally.faults.append(f"candle {number} has no entry")
            continue
        near = any(number - length - 2 <= one <= number for one in lost)
        expected_candle = None if number in lost else rows[number].tolist()
        if entry.candle != expected_candle:
            tally.faults.append(f"candle {number}: an invented candle, {entry.candle} for {expected_candle}")
        if entry.decision == NO_TRADE and entry.reason and (near or number not in known):
            tally.without += 1
        elif number in known and _is_equal(entry, answers, known[number]):
            tally.equal += 1
        else:
            tally.faults.append(f"candle {number}: {entry}")
    _check_actions(folder, plan, tally)
    return tally


def _is_equal(entry: JournalEntry, answers: dict[str, np.ndarray], row: int) -> bool:
    shares = {name: float(answers[name.lower()][row]) for name in ("SHORT", "HOLD", "LONG")}
    return entry.decision == answers["decision"][row] and entry.probabilities == shares


def _check_actions(folder: Path, plan: Plan, tally: Tally) -> None:
    """A candle has at most one action, which came in time; every call has an entry, and calls no bot twice."""
    entries = read_journal(folder / "bot" / "journal.jsonl", newest_only=False)
    calls = read_journal(folder / "calls.jsonl", newest_only=False)
    actions = [entry for entry in entries if entry.action != NO_TRADE]
    tally.actions, tally.entries = len(actions), len(entries)
    for date, count in Counter(entry.date for entry in actions).items():
        if count > 1:
            tally.faults.append(f"{date}: {count} actions")
    tally.faults += [f"late: {entry}" for entry in actions if not 0 <= entry.latency_s <= plan.step_s]
    written = {entry.as_line() for entry in entries}
    tally.faults += [f"not in the journal: {call}" for call in calls if call.as_line() not in written]
    for date, count in Counter(call.date for call in calls if call.action != NO_TRADE).items():
        if count > 1:
            tally.faults.append(f"{date}: {count} calls with an action")
