"""A replayed exchange with faults, and a child process that runs a `LiveRunner` on it until it is killed.

Its clock lies in a file, so that a child that is started after a kill goes on at the time at which the last one died.
The module imports neither TensorFlow nor pandas: a child starts in half a second.

    python -m support.live_faults FOLDER    # run a child on the plan in the folder
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from crypto_lstm.inference.journal import JournalEntry
from crypto_lstm.inference.live import LiveOptions, LiveRunner
from crypto_lstm.inference.predictor import Predictor

MARKET = "BTC/USDT"
KINDS = ("gap", "late", "duplicate", "changed", "order", "down", "limit", "skew", "garbage", "callback", "lost")


class NetworkError(Exception):
    """As in ccxt."""


class RateLimitExceeded(Exception):
    """As in ccxt."""


class SharedClock:
    """Seconds since 1970 in a file: `sleep` moves them at once, and the next process reads them."""

    def __init__(self, path: Path, start_s: float | None = None) -> None:
        if start_s is not None:
            path.write_bytes(struct.pack("d", start_s))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def now(self) -> float:
        return struct.unpack("d", self._map[:8])[0]

    def sleep(self, seconds: float) -> None:
        self._map[:8] = struct.pack("d", self.now() + max(seconds, 0.001))


@dataclass(frozen=True)
class Plan:
    """What the exchange does: candles by their number, spans in seconds."""

    step_s: float
    start: int  # number of the newest candle that has closed at the start
    end: int  # number of the last candle
    hidden: dict[int, float] = field(default_factory=dict)  # candle -> moment at which it appears; infinity: never
    changed: dict[int, float] = field(default_factory=dict)  # candle -> moment until which it has other values
    spans: list[tuple[str, float, float, float]] = field(default_factory=list)  # kind, first and last moment, amount
    failing: list[int] = field(default_factory=list)  # candles whose `on_decision` raises

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)))

    @classmethod
    def load(cls, path: Path) -> Plan:
        values = json.loads(path.read_text())
        for name in ("hidden", "changed"):
            values[name] = {int(number): moment for number, moment in values[name].items()}
        return cls(**values)


def make_plan(first_s: float, step_s: float, start: int, end: int, count: int, seed: int) -> Plan:
    """A plan with `count` faults of all kinds, on candles that are far enough from the end to be repaired."""
    chance = random.Random(seed)
    plan = Plan(step_s, start, end)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        candle = chance.randrange(start + 3, end - 30)
        closed = first_s + (candle + 1) * step_s
        if kind in ("gap", "late"):
            fewest, most = (1, 20) if kind == "gap" else (0.01, 1.5)
            plan.hidden[candle] = closed + step_s * chance.uniform(fewest, most)
        elif kind == "lost":
            plan.hidden[candle] = float("inf")
        elif kind == "changed":
            plan.changed[candle] = closed + step_s * chance.uniform(0.01, 2.5)
        elif kind == "callback":
            plan.failing.append(candle)
        else:
            longest = {"down": 10_800.0, "limit": 900.0, "skew": 4 * step_s}.get(kind, 2 * step_s)
            plan.spans.append((kind, closed, closed + longest, chance.uniform(-3000, 3000)))
    return plan


class FaultyExchange:
    """Candles with the faults of a plan, by ccxt's signature. Moments are those of the exchange's own clock."""

    def __init__(self, rows: np.ndarray, plan: Plan, clock: SharedClock) -> None:
        self.rows, self.plan, self.clock = rows, plan, clock
        self.first_s = rows[0, 0] / 1000
        self.chance = random.Random(int(clock.now()))

    def find_span(self, kind: str) -> float | None:
        """The amount of a fault of this kind that holds now."""
        moment = self.clock.now()
        for name, first, last, amount in self.plan.spans:
            if name == kind and first <= moment < last:
                return amount
        return None

    def machine_now(self) -> float:
        """The clock of the machine, which may be wrong."""
        return self.clock.now() + (self.find_span("skew") or 0.0)

    def fetch_time(self) -> float:
        return 1000 * self.clock.now()

    def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Any:
        if self.find_span("down") is not None:
            raise NetworkError("connection reset by peer")
        if self.find_span("limit") is not None and self.chance.random() < 0.7:
            raise RateLimitExceeded("too many requests")
        moment = self.clock.now()
        newest = int((moment - self.first_s) // self.plan.step_s)
        begin = max(0, int((since / 1000 - self.first_s) // self.plan.step_s))
        numbers = range(begin, min(newest, len(self.rows) - 1) + 1)
        shown = [self.serve(number, moment) for number in numbers if self.plan.hidden.get(number, 0.0) <= moment]
        return self.disturb(shown[:limit])

    def serve(self, number: int, moment: float) -> list[float]:
        row = self.rows[number].tolist()
        if moment < self.first_s + (number + 1) * self.plan.step_s:  # still open
            return [int(row[0]), row[1], row[1], row[1], row[1], 0.0]
        if moment < self.plan.changed.get(number, 0.0):
            return [int(row[0]), *row[1:5], row[5] + 1]
        return [int(row[0]), *row[1:]]

    def disturb(self, shown: list[list[float]]) -> Any:
        if self.find_span("duplicate") is not None:
            shown = [row for row in shown for _ in range(2)]
        if self.find_span("order") is not None:
            self.chance.shuffle(shown)
        if self.find_span("garbage") is not None:
            bad = [shown[0][0], float("nan"), "x", -1, None, 0.0] if shown else ["x"]
            return self.chance.choice([None, [], [*shown, bad], [bad, *shown], "<html>", [*shown, [], None]])
        return shown


def run_child(folder: Path) -> None:
    """Run a runner until the end of the plan, or until this process is killed."""
    plan, rows = Plan.load(folder / "plan.json"), np.load(folder / "candles.npy")
    exchange = FaultyExchange(rows, plan, SharedClock(folder / "clock"))
    calls = os.open(folder / "calls.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    failing = {exchange.first_s + number * plan.step_s for number in plan.failing}

    def note(entry: JournalEntry) -> None:
        os.write(calls, entry.as_line())
        if entry.time / 1e9 in failing:
            raise RuntimeError("the bot has a bug")

    runner = LiveRunner(
        Predictor.load(folder / "model.onnx"),
        exchange.fetch_ohlcv,
        [MARKET],
        note,
        folder / "bot",
        LiveOptions(save_every_s=20 * plan.step_s),
        fetch_time=exchange.fetch_time,
        now=exchange.machine_now,
        sleep=exchange.clock.sleep,
    )
    end_s = exchange.first_s + (plan.end + 3) * plan.step_s
    print(json.dumps(runner.run(until=datetime.fromtimestamp(end_s, UTC)).as_dict()))


if __name__ == "__main__":
    run_child(Path(sys.argv[1]))
