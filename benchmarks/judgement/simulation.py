"""Time and memory of judging two million decisions: calibration, rule, simulator, intervals, 1,000 random accounts.

    python -m benchmarks simulation [--decisions 2000000] [--profile] [--json FILE]

The candles are synthetic (one minute) and the answers are noise with a little knowledge of the labels, so the figures
of the account mean nothing. Each case runs in a process of its own; the last one judges four simpler models beside the
first. `peak_mb` is the growth over the candles and the answers, which the caller holds. Seconds are wall clock and
processor time; the latter is less sensitive to a busy machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.paths import ROOT
from crypto_lstm.config import Config
from crypto_lstm.utils.display import text_table

DECISIONS = 2_000_000
CASES = {"expected_value": ("expected_value", 0), "argmax": ("argmax", 0), "four rivals": ("expected_value", 4)}
GOAL_S, GOAL_MB = 20.0, 500.0


class PeakWatch:
    """Peak of the resident memory of this process above its start, in MB, polled every 5 ms."""

    def __enter__(self) -> PeakWatch:
        self._process = psutil.Process()
        self._start = self._process.memory_info().rss
        self._highest = self._start
        self._running = True
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def _poll(self) -> None:
        while self._running:
            self._highest = max(self._highest, self._process.memory_info().rss)
            time.sleep(0.005)

    def __exit__(self, *_: Any) -> None:
        self._running = False
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        return (self._highest - self._start) / 2**20


def make_answers(labels: np.ndarray) -> np.ndarray:
    """(rows, 3) float32 probabilities of a network with a little skill that was trained on balanced classes."""
    generator = np.random.default_rng(0)
    answers = generator.dirichlet([6, 6, 6], size=len(labels)).astype(np.float32)
    answers[np.arange(len(labels)), labels] += np.float32(0.1)
    return answers / answers.sum(axis=1, keepdims=True)


def measure_case(count: int, name: str, profile: bool = False) -> dict[str, Any]:
    """Seconds of each step, and memory, for `count` decisions."""
    from crypto_lstm.data.candles import fill_gaps
    from crypto_lstm.data.labels import make_labels
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.evaluation.judgement import Answers, fit_policy, judge

    kind, rivals = CASES[name]
    config = Config(rule=kind)
    candles = fill_gaps(synthetic_candles(count + config.future_window, seed=0))
    outcomes = make_labels(candles, config)
    labels = outcomes["label"].to_numpy()
    raw = make_answers(labels)
    part = slice(0, len(labels) // 5)  # as training and validation parts
    prior = np.bincount(labels[part], minlength=3) / len(labels[part])
    wall, processor = {}, {}

    def timed(step: str, work: Any) -> Any:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = work()
        wall[step], processor[step] = time.perf_counter() - start, time.process_time() - start_cpu
        return result

    profiler = cProfile.Profile()
    with PeakWatch() as watch:
        if profile:
            profiler.enable()
        outcome = outcomes[part]
        fit = timed("fit", lambda: fit_policy(raw[part], outcome, outcome, [1 / 3] * 3, prior, config))
        answers = timed("answer", lambda: Answers.from_policy("model", raw, fit.policy))
        others = [replace(answers, name=f"rival {number}") for number in range(rivals)]
        judged = timed("judge", lambda: judge("test", candles, outcomes, answers, config, others))
        profiler.disable()
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return {
        "case": name,
        "decisions": len(raw),
        "trades": len(judged.model.simulation.trades),
        "random_runs": len(judged.model.simulation.random_returns),
        "wall_s": wall,
        "processor_s": processor,
        "peak_mb": watch.peak_mb,
    }


def measure_cases(count: int = DECISIONS, profile: bool = False) -> list[dict[str, Any]]:
    """All cases, one after the other."""
    cases = []
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks", "simulation", "--case", name, "--decisions", str(count)]
        command += ["--profile"] * profile
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        cases.append(json.loads(done.stdout.splitlines()[-1]))
    return cases


def render_cases(cases: list[dict[str, Any]]) -> str:
    """A column for each case."""
    rows = []
    for step in cases[0]["wall_s"]:
        times = [f"{case['wall_s'][step]:.2f} ({case['processor_s'][step]:.2f})" for case in cases]
        rows.append([f"{step}, s (of a processor)", *times])
    sums = [f"{sum(case['wall_s'].values()):.2f} ({sum(case['processor_s'].values()):.2f})" for case in cases]
    rows.append([f"sum, s (of a processor); goal {GOAL_S:g}", *sums])
    rows.append([f"peak, MB; goal {GOAL_MB:g}", *(f"{case['peak_mb']:.0f}" for case in cases)])
    rows.append(["trades", *(f"{case['trades']:,}" for case in cases)])
    title = f"{cases[0]['decisions']:,} decisions, judged with {cases[0]['random_runs']:,} random accounts"
    return f"{title}\n{text_table(['', *(case['case'] for case in cases)], rows, width=100)}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--decisions", type=int, default=DECISIONS)
    parser.add_argument("--profile", action="store_true", help="print the functions that take most of the time")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # one case, in this process
    options = parser.parse_args(words)
    if options.case:
        print(json.dumps(measure_case(options.decisions, options.case, options.profile)))
        return 0
    cases = measure_cases(options.decisions, options.profile)
    print(render_cases(cases))
    if options.json:
        Path(options.json).write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    return 0
