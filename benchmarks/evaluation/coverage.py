"""How many 99 % intervals hold the true value: stretches of time beside both block bootstraps, in one run.

Goal: 97 to 99.9 % in every world, for memories of 1 hour to 3 days and parts of 30 to 120 blocks (a block is as long as
a window and its label). The true values come from histories of 1.2 million rows. Parts that are too short get no
interval by stretches; the share of histories with an interval stands beside the coverage.

    python -m benchmarks coverage                 all, with 400 histories of each world; writes coverage.json
    python -m benchmarks coverage --histories 40  fewer, and nothing is written
    python -m benchmarks coverage --report        the table of the stored results
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.evaluation.block_bootstrap import assign_blocks, bootstrap_metrics
from benchmarks.evaluation.worlds import (
    BLOCK,
    CONFIG,
    KINDS,
    PURGE_GAP,
    History,
    Kind,
    list_columns,
    make_history,
    measure_old_direction,
)
from benchmarks.paths import RESULTS
from crypto_lstm.evaluation.intervals import Interval, metric_intervals, signal_direction
from crypto_lstm.evaluation.metrics import confusion_matrix, decision_metrics
from crypto_lstm.utils.display import text_table

COVERAGE_RESULTS = RESULTS / "coverage.json"
HISTORIES = 400
MEMORIES_H = (1, 8, 24, 72)
BLOCKS = (30, 60, 120)
METRICS = ("balanced_accuracy", "mcc", "direction", "log_loss_gain", "net_return")
METHODS = ("stretches", "bootstrap", "old")  # ours; circular blocks of automatic length; `block_bootstrap`
GOAL = (0.97, 0.999)
_TRUTH_HISTORIES, _TRUTH_ROWS = 4, 300_000

Limits = tuple[float, float] | None
Cell = dict[str, Any]


def find_truth(kind: Kind, memory_h: int) -> dict[str, float]:
    """The metrics of a long history, and those of the old definition of direction as `old_direction`."""
    histories = [make_history(kind, memory_h, _TRUTH_ROWS, [7, number]) for number in range(_TRUTH_HISTORIES)]
    pooled = History(*(np.concatenate(columns) for columns in zip(*map(list_columns, histories), strict=True)))
    confusion = confusion_matrix(pooled.labels, pooled.decisions)
    figures = decision_metrics(confusion)
    return {
        "balanced_accuracy": float(figures["balanced_accuracy"]),
        "mcc": float(figures["mcc"]),
        "direction": float(signal_direction(confusion)),
        "old_direction": measure_old_direction(pooled),
        "log_loss_gain": float(pooled.log_loss_gain.mean()),
        "net_return": float(pooled.net_return.mean()),
    }


def estimate_intervals(history: History) -> dict[str, dict[str, Limits]]:
    """Method -> metric -> limits, or None where there is no interval."""
    rows = np.arange(len(history.labels))
    means = {"log_loss_gain": history.log_loss_gain, "net_return": history.net_return}
    found = metric_intervals(history.labels, history.decisions, rows, PURGE_GAP, means, history.probabilities)
    blocks = assign_blocks(rows, BLOCK)
    resampled = bootstrap_metrics(history.labels, history.probabilities, blocks, means)
    old: dict[str, Limits] = {}
    for metric in METRICS:
        low, high = np.nanpercentile(resampled[metric], [0.5, 99.5])
        old[metric] = (float(low), float(high))
    return {
        "stretches": {metric: get_limits(found.stretches[metric]) for metric in METRICS},
        "bootstrap": {metric: get_limits(found.bootstrap[metric]) for metric in METRICS},
        "old": old,
    }


def get_limits(interval: Interval) -> Limits:
    """Low and high, or None."""
    if interval.low is None or interval.high is None:
        return None
    return interval.low, interval.high


def measure_world(kind: Kind, memory_h: int, histories: int) -> list[Cell]:
    """One cell for each length of the part."""
    truth = find_truth(kind, memory_h)
    cells = []
    for blocks in BLOCKS:
        counts = {method: {metric: [0, 0] for metric in METRICS} for method in METHODS}  # held, given
        facts = {"kind": kind.name, "memory_h": memory_h, "blocks": blocks, "histories": histories}
        cells.append({**facts, "truth": truth, "counts": counts})
    for number in range(histories):
        history = make_history(kind, memory_h, max(BLOCKS) * BLOCK, [number, memory_h])
        for cell in cells:
            part = history.take_first(cell["blocks"] * BLOCK)
            for method, intervals in estimate_intervals(part).items():
                count_hits(cell["counts"][method], intervals, truth, method)
    return cells


def count_hits(
    counts: dict[str, list[int]], intervals: dict[str, Limits], truth: dict[str, float], method: str
) -> None:
    """Add one history to [intervals that hold the true value, intervals given] of each metric."""
    for metric, limits in intervals.items():
        if limits is None:
            continue
        is_old_direction = method == "old" and metric == "direction"
        value = truth["old_direction" if is_old_direction else metric]
        counts[metric][0] += limits[0] - 1e-9 <= value <= limits[1] + 1e-9
        counts[metric][1] += 1


def measure_all(histories: int, memories: Sequence[int] = MEMORIES_H, workers: int = 2) -> list[Cell]:
    """All cells, from worker processes."""
    jobs = [(kind, memory_h, histories) for memory_h in memories for kind in KINDS]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = pool.starmap(measure_world, jobs, chunksize=1)
    return [cell for cells in found for cell in cells]


def render_results(cells: Sequence[Cell]) -> str:
    """One table a method and the summary of each."""
    parts = []
    for method in METHODS:
        rows = [_list_coverages(cell, method) for cell in cells]
        title = f"{method}: share of 99 % intervals that hold the true value (share of histories with an interval)"
        table = text_table(["market", "memory", "blocks", *METRICS], rows, width=120)
        parts.append(f"{title}\n{table}\n{summarise(cells, method)}")
    return "\n\n".join(parts)


def _list_coverages(cell: Cell, method: str) -> list[str]:
    texts = []
    for metric in METRICS:
        held, given = cell["counts"][method][metric]
        texts.append(f"{held / given:.3f} ({given / cell['histories']:.0%})" if given else "- (0%)")
    return [cell["kind"], f"{cell['memory_h']} h", str(cell["blocks"]), *texts]


def summarise(cells: Sequence[Cell], method: str) -> str:
    """Coverage over all cells, its range where at least half of the histories have an interval, and false intervals."""
    held = given = tried = 0
    coverages, false_shares = [], []
    for cell in cells:
        for hits, found in (cell["counts"][method][metric] for metric in METRICS):
            held, given, tried = held + hits, given + found, tried + cell["histories"]
            false_shares.append((found - hits) / cell["histories"])
            if found >= cell["histories"] / 2:
                coverages.append(hits / found)
    if not given:
        return f"{method}: no interval was given"
    text = f"{method}: {held / given:.2%} of {given:,} intervals hold the true value, {given / tried:.0%} were given"
    if coverages:
        below = sum(coverage < GOAL[0] for coverage in coverages)
        above = sum(coverage > GOAL[1] for coverage in coverages)
        text += f"; where at least half were given, {min(coverages):.3f} to {max(coverages):.3f}: of {len(coverages)}"
        text += f" figures {below} are below {GOAL[0]} and {above} above {GOAL[1]}"
    return f"{text}; false intervals in at most {max(false_shares):.1%} of the histories of a world"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=HISTORIES, help="of each world")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--report", action="store_true", help="show the stored results")
    options = parser.parse_args(words)
    if options.report:
        print(render_results(json.loads(COVERAGE_RESULTS.read_text(encoding="utf-8"))["cells"]))
        return 0
    cells = measure_all(options.histories, workers=options.workers)
    if options.histories == HISTORIES:
        facts = {"settings": {"window": CONFIG.sequence_length, "horizon": CONFIG.future_window}, "cells": cells}
        COVERAGE_RESULTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(render_results(cells))
    return 0
