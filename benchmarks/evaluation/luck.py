"""The best of 100 models without skill, and a true edge among them: how often each deflated Sharpe ratio convinces.

Goals: a ratio above 0.95 in at most 1 of 100 groups without skill, and in all groups where one model has an edge of
0.4 deviations.

    python -m benchmarks luck                  1,000 groups of each kind; writes results/luck.json
    python -m benchmarks luck --groups 100     fewer, and nothing is written
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np

from benchmarks.paths import RESULTS
from crypto_lstm.evaluation.luck import measure_luck, measure_overfitting, measure_superiority, probabilistic_sharpe
from crypto_lstm.utils.display import text_table

LUCK_RESULTS = RESULTS / "luck.json"
GROUPS = 1000
MODELS, PERIODS = 100, 500
CONVINCING = 0.95
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4)  # Sharpe ratio per period of one model, in deviations of the returns


def make_group(seed: int, edge: float) -> np.ndarray:
    """(models, periods) returns with fat tails; the first model has the edge."""
    generator = np.random.default_rng(seed)
    returns = generator.standard_t(5, size=(MODELS, PERIODS))
    returns[0] += edge * np.sqrt(5 / 3)  # the deviation of Student's t with 5 degrees of freedom
    return returns


def deflate_best(returns: np.ndarray) -> float:
    """The deflated Sharpe ratio of the model with the best Sharpe ratio."""
    sharpes = returns.mean(axis=1) / returns.std(axis=1)
    best = returns[sharpes.argmax()]
    return measure_luck(best, trials=len(returns), variance=float(sharpes.var(ddof=1))).deflated


def count_deflated(repetitions: int, edge: float) -> int:
    """Groups whose best model has a deflated Sharpe ratio above 0.95."""
    return sum(deflate_best(make_group(seed, edge)) > CONVINCING for seed in range(repetitions))


def measure_edge(groups: int, edge: float) -> dict[str, float]:
    """Shares of groups in which each figure convinces; PBO and SPA in a tenth of the groups."""
    undeflated = 0
    for seed in range(groups):
        returns = make_group(seed, edge)
        sharpes = returns.mean(axis=1) / returns.std(axis=1)
        luck = measure_luck(returns[sharpes.argmax()])
        undeflated += probabilistic_sharpe(luck.moments) > CONVINCING
    some = max(1, groups // 10)
    overfitting = [measure_overfitting(make_group(seed, edge), blocks=10).probability for seed in range(some)]
    superior = [measure_superiority(make_group(seed, edge), 1.0, 500).consistent < 0.05 for seed in range(some)]
    return {
        "edge": edge,
        "groups": groups,
        "probabilistic": undeflated / groups,
        "deflated": count_deflated(groups, edge) / groups,
        "mean_overfitting": float(np.mean(overfitting)),
        "superior": float(np.mean(superior)),
    }


def render_results(found: Sequence[dict[str, float]]) -> str:
    """A table of all edges."""
    header = ["edge", "groups", "PSR > 0.95", "DSR > 0.95", "mean PBO", "SPA p < 0.05"]
    rows = []
    for figures in found:
        shares = [f"{figures[name]:.1%}" for name in ("probabilistic", "deflated")]
        last = [f"{figures['mean_overfitting']:.2f}", f"{figures['superior']:.1%}"]
        rows.append([f"{figures['edge']:.1f}", f"{figures['groups']:,}", *shares, *last])
    return text_table(header, rows, width=80)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks luck", description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=GROUPS, help="of 100 models, for each edge")
    options = parser.parse_args(words)
    found = [measure_edge(options.groups, edge) for edge in EDGES]
    if options.groups == GROUPS:
        LUCK_RESULTS.write_text(json.dumps({"models": MODELS, "periods": PERIODS, "edges": found}, indent=1) + "\n")
    print(f"the best of {MODELS} models over {PERIODS} periods, of which one has the edge")
    print(render_results(found))
    return 0
