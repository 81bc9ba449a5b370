"""Fair markets, on which nothing can be learnt: how often a model is said to have learnt, or to pay, and its trades.

The candles are synthetic, of one minute, with the default settings (windows and labels of 120 candles). The answers
are noise that seems sure of itself: two autoregressive processes, for the direction and for the size of a move, whose
memory is 1 hour to 3 days. Each market goes the whole way: calibration and rule on the parts before the test part, then
the simulator, the intervals and the judgement. The former verdict stands beside it (`benchmarks.judgement.former`).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.evaluation.worlds import make_process
from benchmarks.judgement.former import judge_as_before
from crypto_lstm.config import Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.labels import make_labels
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation.judgement import Answers, fit_policy, judge
from crypto_lstm.evaluation.simulator import simulate
from crypto_lstm.utils.display import text_table

CONFIG = Config()
GAP = CONFIG.future_window + CONFIG.sequence_length - 1
MEMORIES_H = (1, 8, 24, 72)
TRAINING, VALIDATION, TEST = 60_000, 40_000, 80_000  # windows of each part
FEW = 8_000  # windows of the part on which trades are counted
THIRDS = (1 / 3, 1 / 3, 1 / 3)


def make_noise(generator: np.random.Generator, rows: int, memory_h: float) -> np.ndarray:
    """(rows, 3) probabilities that know nothing of the market, of a network that was trained on balanced classes."""
    direction, size = (make_process(generator, rows, 60 * memory_h) for _ in range(2))
    scores = np.exp(np.column_stack([-0.8 * direction, 0.3 * size, 0.8 * direction]))
    return scores / scores.sum(axis=1, keepdims=True)


def judge_market(seed: int, memories_h: Sequence[float] = MEMORIES_H) -> list[dict[str, Any]]:
    """One fair market, judged with noise of each memory."""
    total = TRAINING + VALIDATION + TEST + 2 * GAP
    candles = fill_gaps(synthetic_candles(total + CONFIG.future_window, seed=seed))
    outcomes = make_labels(candles, CONFIG)
    first = TRAINING + GAP
    training, validation = outcomes[:TRAINING], outcomes[first : first + VALIDATION]
    test = outcomes[first + VALIDATION + GAP :]
    prior = np.bincount(training["label"], minlength=3) / TRAINING
    found = []
    for memory_h in memories_h:
        raw = make_noise(np.random.default_rng([seed, int(memory_h)]), total, memory_h)
        policy = fit_policy(raw[first : first + VALIDATION], validation, training, THIRDS, prior, CONFIG).policy
        answers = Answers.from_policy("noise", raw[-TEST:], policy)
        judged = judge("test", candles, test, answers, CONFIG)
        former = judge_as_before(answers.raw, test, CONFIG)
        found.append(
            {
                "seed": seed,
                "memory_h": memory_h,
                "learnt": judged.learnt,
                "pays": judged.pays,
                "has_interval": judged.intervals["balanced_accuracy"].low is not None,
                "former_learnt": former.learnt,
                "former_pays": former.pays,
                **count_trades(candles, test[:FEW], answers),
            }
        )
    return found


def count_trades(candles: Any, few: Any, answers: Answers) -> dict[str, Any]:
    """Trades of the default rule on the first test windows, beside those of argmax."""
    rows = few.index.to_numpy()
    facts = {}
    for name, decisions in (("", answers.decisions), ("argmax_", answers.raw.argmax(axis=1).astype(np.int8))):
        figures = simulate(candles, rows, decisions[: len(rows)], CONFIG, random_runs=0).figures
        facts |= {f"{name}trades": figures["trades"], f"{name}mean_net_pct": figures["mean_net_pct"]}
    return facts


def judge_markets(seeds: int, workers: int = 2) -> list[dict[str, Any]]:
    """All markets, from worker processes."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.imap_unordered(judge_market, range(seeds))
        markets = [market for several in found for market in several]
    return sorted(markets, key=lambda market: (market["seed"], market["memory_h"]))


def _mean_net(markets: Sequence[dict[str, Any]], prefix: str) -> float | None:
    """Mean net return of all trades, in percent."""
    trades = sum(market[f"{prefix}trades"] for market in markets)
    gained = sum(market[f"{prefix}trades"] * (market[f"{prefix}mean_net_pct"] or 0.0) for market in markets)
    return gained / trades if trades else None


def summarise_markets(markets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of false verdicts, and the trades on 8,000 windows."""
    facts: dict[str, Any] = {"markets": len(markets)}
    for name in ("learnt", "pays", "former_learnt", "former_pays", "has_interval"):
        facts[name] = float(np.mean([market[name] for market in markets]))
    for prefix in ("", "argmax_"):
        trades = [market[f"{prefix}trades"] for market in markets]
        facts[f"{prefix}mean_trades"] = float(np.mean(trades))
        facts[f"{prefix}most_trades"] = int(np.max(trades))
        facts[f"{prefix}mean_net_pct"] = _mean_net(markets, prefix)
        facts[f"{prefix}few_share"] = float(np.mean(np.array(trades) <= 20))
    return facts


def summarise_groups(markets: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The summary of each memory, and of all markets."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for market in markets:
        groups.setdefault(f"{market['memory_h']} h", []).append(market)
    groups["all"] = list(markets)
    return {name: summarise_markets(some) for name, some in groups.items()}


def render_groups(groups: dict[str, dict[str, Any]]) -> str:
    """A table of false verdicts and one of trades, with a row for each group."""
    verdicts, trades = [], []
    for name, facts in groups.items():
        shares = [f"{facts[key]:.1%}" for key in ("learnt", "pays", "former_learnt", "former_pays", "has_interval")]
        verdicts.append([name, facts["markets"], *shares])
        cells = []
        for prefix in ("", "argmax_"):
            mean = facts[f"{prefix}mean_net_pct"]
            net = "-" if mean is None else f"{mean:+.3f} %"
            cells += [f"{facts[f'{prefix}mean_trades']:.1f}", facts[f"{prefix}most_trades"], net]
        trades.append([name, *cells[:3], f"{facts['few_share']:.1%}", *cells[3:]])
    header = ["memory", "markets", "learnt", "pays", "learnt, former", "pays, former", "with interval"]
    few = ["memory", "trades", "most", "a trade", "at most 20", "trades, argmax", "most", "a trade"]
    return "\n\n".join(
        [
            f"Fair markets, {TEST:,} test windows: shares of false verdicts\n{text_table(header, verdicts, width=100)}",
            f"Fair markets, the first {FEW:,} test windows: simulated trades\n{text_table(few, trades, width=100)}",
        ]
    )
