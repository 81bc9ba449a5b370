"""A plain oracle of a bot's stream: the candles that it takes, when it has a window, and the features in it.

It keeps every candle in a dictionary and recomputes everything with loops. It shares no code with the package.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np

from crypto_lstm.config import Config
from crypto_lstm.data.candle_input import StreamError
from crypto_lstm.data.live_stream import LiveStream

STEP_MS = 12 * 3_600_000
CONFIG = Config(timeframe="12h", sequence_length=6, max_gap_minutes=2160)  # 30 days are 60 candles, a day is 2
MAX_GAP = 3  # candles


@dataclass
class Oracle:
    """Candles by their number since the first; a candle is (open, high, low, close, volume)."""

    length: int  # candles in a window
    received: dict[int, tuple[float, ...]] = field(default_factory=dict)
    taken: int | None = None  # the newest candle that nothing can come before any more
    newest: int | None = None

    def expect(self, number: int, row: tuple[float, ...]) -> str:
        """What passing this candle must do: `new`, `known`, `changed` or `late`."""
        if number in self.received and (self.taken is None or number >= self.taken):
            return "known" if self.received[number] == row else "changed"
        if self.taken is not None and number < self.taken:
            return "late"
        return "new"

    def add(self, number: int, row: tuple[float, ...]) -> None:
        self.received[number] = row
        self.newest = number if self.newest is None else max(self.newest, number)
        if self.taken is None:
            self.taken = number
        oldest = self.newest - self.length
        left = [one for one in range(self.taken, oldest + 1) if one in self.received]
        self.taken = max([self.taken, *left])
        while self.taken + 1 in self.received:
            self.taken += 1

    def count_missing(self) -> int:
        """Candles that are missing before the newest one and may still come."""
        if self.newest is None or self.taken is None:
            return 0
        return sum(number not in self.received for number in range(self.taken, self.newest))

    def window(self) -> list[list[float]] | None:
        """The features of the last candles; None while a candle is missing or has no features."""
        if self.newest is None or self.count_missing():
            return None
        rows, segment = self._fill()
        window = []
        for place in range(len(rows) - self.length, len(rows)):
            if place < 60 - 1 or place < 1 or segment[place] != segment[place - 1]:
                return None
            window.append(_features(rows, place))
        same_segment = len(set(segment[-self.length :])) == 1
        return window if len(window) == self.length and same_segment else None

    def _fill(self) -> tuple[list[tuple[float, ...]], list[int]]:
        """All candles with short gaps filled, and the number of each one's segment."""
        rows: list[tuple[float, ...]] = []
        segment: list[int] = []
        before = None
        for number in sorted(self.received):
            gap = 0 if before is None else number - before - 1
            if 0 < gap <= MAX_GAP:
                close = rows[-1][3]
                rows += [(close, close, close, close, 0.0)] * gap
                segment += [segment[-1]] * gap
            rows.append(self.received[number])
            segment.append(segment[-1] + (gap > MAX_GAP) if segment else 0)
            before = number
        return rows, segment


def _features(rows: list[tuple[float, ...]], place: int) -> list[float]:
    """The eight features in the order of the configuration's default."""
    now, last = rows[place], rows[place - 1]
    values = {"high_change": 100 * (now[1] - last[3]) / last[3], "low_change": 100 * (now[2] - last[3]) / last[3]}
    values["close_change"] = 100 * (now[3] - last[3]) / last[3]
    values["volume_change"] = 100 * (now[4] - last[4]) / last[4] if last[4] else 0.0
    for name, column in (("price", 3), ("volume", 4)):
        for label, span in (("ma1440", 2), ("ma43200", 60)):
            mean = math.fsum(row[column] for row in rows[place - span + 1 : place + 1]) / span
            values[f"{name}_to_{label}"] = now[column] / mean if mean else 1.0
    return [values[name] for name in CONFIG.features]


def make_market(candles: int, chance: random.Random) -> list[tuple[float, ...]]:
    """Rows of a random walk, some without a trade."""
    rows, price = [], 100.0
    for _ in range(candles):
        opening, price = price, price * math.exp(chance.gauss(0, 0.02))
        high, low = max(opening, price) * 1.01, min(opening, price) * 0.99
        rows.append((opening, high, low, price, 0.0 if chance.random() < 0.1 else chance.uniform(1, 100)))
    return rows


@dataclass
class Tally:
    """What a fuzz run did."""

    calls: int = 0
    new: int = 0
    refused: int = 0
    with_hole: int = 0
    doubted: int = 0  # answers that doubt the timeframe
    windows: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(calls: int, seed: int, check_every: int = 7) -> Tally:
    """Pass candles in random order, with losses and repeats, to a stream and to the oracle; compare after each call."""
    chance, tally = random.Random(seed), Tally()
    while tally.calls < calls:
        rows = make_market(260, chance)
        stream, oracle, first = LiveStream(CONFIG), Oracle(CONFIG.sequence_length), 54_000
        order = disturb(len(rows), chance)
        for number in order[: calls - tally.calls]:
            row = rows[number]
            if chance.random() < 0.01:
                row = (*row[:4], row[4] + 1)  # another volume
            _compare(stream, oracle, number, first, row, tally, check=tally.calls % check_every == 0)
    return tally


def disturb(candles: int, chance: random.Random) -> list[int]:
    """Numbers of candles as a bad connection delivers them: some lost, some late, some twice."""
    order: list[tuple[float, int]] = []
    number = 0
    while number < candles:
        lost = chance.randint(1, 8) if chance.random() < 0.02 else 0
        for one in range(number, min(number + lost, candles)):
            if chance.random() < 0.6:  # it comes later
                order.append((one + chance.uniform(1, 9), one))
        number += lost
        if number < candles:
            order.append((number, number))
            if chance.random() < 0.05:
                order.append((number + chance.uniform(0, 4), number))
        number += 1
    return [one for _, one in sorted(order)]


def _compare(
    stream: LiveStream,
    oracle: Oracle,
    number: int,
    first: int,
    row: tuple[float, ...],
    tally: Tally,
    check: bool,
) -> None:
    tally.calls += 1
    expected = oracle.expect(number, row)
    try:
        got = "new" if stream.push([(first + number) * STEP_MS, *row]) else "known"
    except StreamError as error:
        got = "late" if "comes late" in str(error) else "changed" if "other values" in str(error) else str(error)
    if got != expected:
        tally.faults.append(f"candle {number}: expected {expected}, got {got}")
    if expected == "new":
        oracle.add(number, row)
        tally.new += 1
    tally.refused += expected in ("late", "changed")
    missing = sum(hole.candles for hole in stream.find_holes())
    if missing != oracle.count_missing():
        tally.faults.append(f"candle {number}: expected {oracle.count_missing()} missing candles, got {missing}")
    tally.with_hole += missing > 0
    if missing and stream.window() is not None:
        tally.faults.append(f"candle {number}: a window with a hole")
    if check:
        _compare_windows(stream, oracle, number, tally)


def _compare_windows(stream: LiveStream, oracle: Oracle, number: int, tally: Tally) -> None:
    expected, window = oracle.window(), stream.window()
    if (expected is None) != (window is None):
        tally.faults.append(f"candle {number}: expected {'no' if expected is None else 'a'} window")
    elif expected is not None and not np.allclose(window, expected, rtol=1e-5, atol=1e-5):
        tally.faults.append(f"candle {number}: other features")
    tally.windows += expected is not None
