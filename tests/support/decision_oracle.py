"""`update` and `decide` of a predictor against the plain oracle of `live_oracle`: every call, right or wrong.

The network is a formula that reads every value of a window, so that a wrong window gives another decision.
"""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from crypto_lstm.config import CLASSES
from crypto_lstm.data.candle_input import StreamError
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.inference.policy import DecisionPolicy
from crypto_lstm.inference.predictor import Predictor
from support.live_oracle import CONFIG, STEP_MS, Oracle, Tally, disturb, make_market

FIRST = 54_000  # number of the first candle since 1970
_STEP = timedelta(milliseconds=STEP_MS)
_WEIGHTS = np.random.default_rng(0).normal(size=(CONFIG.sequence_length * len(CONFIG.features), len(CLASSES)))
_BAD_VALUES = (math.nan, math.inf, -1.0, True, "12", None, Decimal("3"), 1j, np.ma.masked, [3.0], 1e300)


class FormulaNetwork:
    """The softmax of a fixed product with all values of a window."""

    def predict(self, windows: np.ndarray) -> np.ndarray:
        return np.array([list(answer(window.ravel().tolist())) for window in windows]).reshape(-1, len(CLASSES))


def answer(values: list[float]) -> tuple[float, ...]:
    """The probabilities for one window, by a plain loop."""
    logits = []
    for column in range(len(CLASSES)):
        total = math.fsum(math.tanh(value) * weight for value, weight in zip(values, _WEIGHTS[:, column], strict=True))
        logits.append(math.exp(total))
    return tuple(logit / sum(logits) for logit in logits)


def make_predictor() -> Predictor:
    """A predictor with the formula as its network, and a scaler that changes nothing."""
    width = len(CONFIG.features)
    scaler = Scaler("none", CONFIG.features, (0.0,) * width, (1.0,) * width, 1e6)
    metadata = {"expires": None}
    network: Any = FormulaNetwork()
    return Predictor(Path("formula"), CONFIG, metadata, "0" * 64, True, 0.0, DecisionPolicy(), network, scaler)


def close_time(number: int) -> datetime:
    """When the candle with this number closes."""
    return datetime.fromtimestamp((FIRST + number) * STEP_MS / 1000, UTC) + _STEP


def fuzz_decisions(calls: int, seed: int, check_every: int = 1) -> Tally:
    """Pass candles and histories, good and bad, to `update` and `decide`; compare each answer with the oracle's.

    Windows are computed by the oracle in one of `check_every` calls, because its loops are slow.
    """
    chance, tally = random.Random(seed), Tally()
    while tally.calls < calls:
        rows = make_market(260, chance)
        predictor, oracle = make_predictor(), Oracle(CONFIG.sequence_length)
        for number in disturb(len(rows), chance)[: calls - tally.calls]:
            row = rows[number]
            if chance.random() < 0.01:
                row = (*row[:4], row[4] + 1)
            check = tally.calls % check_every == 0
            _update(predictor, oracle, number, row, chance, tally, check)
            if chance.random() < 0.1 and oracle.newest is not None and tally.calls < calls:
                _decide(predictor, oracle, chance, tally)
    return tally


# ---------------------------------------------------------------- update


def _update(
    predictor: Predictor,
    oracle: Oracle,
    number: int,
    row: tuple[float, ...],
    chance: random.Random,
    tally: Tally,
    check: bool,
) -> None:
    tally.calls += 1
    newest = max(number, number if oracle.newest is None else oracle.newest)
    now = close_time(newest) + timedelta(seconds=1)
    fault = chance.random()
    candle: list[Any] = [(FIRST + number) * STEP_MS, *row]
    expected = oracle.expect(number, row)
    if fault < 0.02:  # no candle at all, or a value that is none
        expected = "refused"
        candle[chance.randrange(6)] = chance.choice(_BAD_VALUES)
        if chance.random() < 0.2:
            candle = candle[: chance.randrange(6)]
    elif fault < 0.03 and expected == "new":  # it closes in a minute
        expected, now = "refused", close_time(number) - timedelta(minutes=1)
    is_old = fault > 0.99
    if is_old:
        now += 2 * _STEP
    try:
        decision = predictor.update(candle, now=now)
    except StreamError:
        tally.refused += 1
        if expected not in ("refused", "late", "changed"):
            tally.faults.append(f"candle {number}: expected {expected}, was refused")
        return
    except Exception as error:  # the fuzz counts every untyped error
        tally.faults.append(f"candle {number}: {type(error).__name__}: {error}")
        return
    if expected == "known":
        _expect_no_trade(decision, "came before", number, tally)
    elif expected == "new":
        oracle.add(number, row)
        tally.new += 1
        _compare_update(decision, oracle, number, is_old, tally, check)
    else:
        tally.faults.append(f"candle {number}: expected that it is {expected}, got {decision}")


def _expect_no_trade(decision: Any, words: str, number: int, tally: Tally) -> None:
    if decision.action != "NO_TRADE" or decision.probabilities is not None or words not in decision.reason:
        tally.faults.append(f"candle {number}: expected NO_TRADE ({words}), got {decision}")


def _compare_update(
    decision: Any, oracle: Oracle, number: int, is_old: bool, tally: Tally, check: bool
) -> None:
    missing = oracle.count_missing()
    if is_old:
        _expect_no_trade(decision, "too old", number, tally)
    elif "of the model's timeframe" in decision.reason:
        tally.doubted += 1
    elif missing:
        tally.with_hole += 1
        _expect_no_trade(decision, "missing before the newest one", number, tally)
    elif check:
        _compare_answer(decision, oracle.window(), number, tally)


def _compare_answer(decision: Any, window: list[list[float]] | None, number: int, tally: Tally) -> None:
    if window is None:
        _expect_no_trade(decision, "does not complete a window", number, tally)
        return
    tally.windows += 1
    values = [float(np.float32(value)) for row in window for value in row]
    shares = dict(zip(CLASSES, answer(values), strict=True))
    got = decision.probabilities
    if got is None or max(abs(got[name] - shares[name]) for name in CLASSES) > 1e-4:
        tally.faults.append(f"candle {number}: expected {shares}, got {decision} {got}")
    elif decision.action != max(got, key=got.__getitem__):
        tally.faults.append(f"candle {number}: {decision.action} is not the most likely class of {got}")


# ---------------------------------------------------------------- decide


def _decide(predictor: Predictor, oracle: Oracle, chance: random.Random, tally: Tally) -> None:
    """Decide on the newest received candles as a history: good, unsorted, or with a bad value."""
    tally.calls += 1
    numbers = sorted(oracle.received)[-chance.randint(1, 120) :]
    rows = [[(FIRST + number) * STEP_MS, *oracle.received[number]] for number in numbers]
    now = close_time(numbers[-1]) + timedelta(seconds=1)
    is_bad = chance.random() < 0.1
    if is_bad:
        _spoil(rows, chance)
    try:
        decision = predictor.decide(rows, now=now)
    except Exception as error:  # `decide` answers every fault of the data
        tally.faults.append(f"history of {len(rows)}: {type(error).__name__}: {error}")
        return
    if is_bad:
        _expect_no_trade(decision, "", numbers[-1], tally)
        return
    if "of the model's timeframe" in decision.reason:
        tally.doubted += 1
        return
    history = Oracle(oracle.length, {number: oracle.received[number] for number in numbers}, numbers[-1], numbers[-1])
    _compare_answer(decision, history.window(), numbers[-1], tally)
    _compare_filled(decision, numbers, history, tally)


def _spoil(rows: list[list[Any]], chance: random.Random) -> None:
    """Change a history so that no part of it can be used."""
    place = chance.randrange(len(rows))
    kind = chance.randrange(3)
    if kind == 0 and len(rows) > 1:
        other = (place + 1) % len(rows)
        rows[place], rows[other] = rows[other], rows[place]  # out of order
    elif kind == 1:
        rows[place] = rows[place][: chance.randrange(6)]
    else:
        rows[place][chance.randrange(6)] = chance.choice(_BAD_VALUES)


def _compare_filled(decision: Any, numbers: list[int], history: Oracle, tally: Tally) -> None:
    """The reason counts the candles of the window that nobody passed."""
    if decision.probabilities is None:
        return
    first = numbers[-1] - history.length + 1
    filled = sum(number not in history.received for number in range(first, numbers[-1] + 1))
    found = f"{filled} of the {history.length} candles of the window were missing and are filled"
    if (found in decision.reason) != (filled > 0):
        tally.faults.append(f"history up to {numbers[-1]}: expected {filled} filled candles, got {decision}")
