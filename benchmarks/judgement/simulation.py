"""Time and memory of judging two million decisions: calibrate, apply the rule, simulate, and 1,000 random accounts.

    python -m benchmarks simulation [--quick] [--json FILE]

The candles are synthetic (one minute) and the answers are noise around the labels' shares, so the figures of the
account mean nothing. Each case runs in a process of its own. `peak_mb` is the growth over the candles and the answers,
which the caller holds. Seconds are wall clock and processor time; the latter is less sensitive to a busy machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.paths import ROOT
from crypto_lstm.config import Config
from crypto_lstm.utils.display import text_table

RULES = ("expected_value", "argmax")


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


def measure_case(count: int, kind: str) -> dict[str, Any]:
    """Seconds of each step, and memory, for `count` decisions."""
    from crypto_lstm.data.candles import fill_gaps
    from crypto_lstm.data.labels import make_labels
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.evaluation.calibration_fit import calibration_error, fit_calibration
    from crypto_lstm.evaluation.rule_fit import fit_rule
    from crypto_lstm.evaluation.simulator import simulate

    config = Config()
    candles = fill_gaps(synthetic_candles(count + config.future_window, seed=0))
    outcomes = make_labels(candles, config)
    labels, rows = outcomes["label"].to_numpy(), outcomes.index.to_numpy()
    answers = make_answers(labels)
    part = slice(0, len(labels) // 5)  # as a validation part
    prior = np.bincount(labels[part], minlength=3) / len(labels[part])
    wall, processor = {}, {}

    def timed(name: str, work: Any) -> Any:
        start, start_cpu = time.perf_counter(), time.process_time()
        result = work()
        wall[name], processor[name] = time.perf_counter() - start, time.process_time() - start_cpu
        return result

    gap = config.future_window + config.sequence_length - 1
    thirds = [1 / 3] * 3
    with PeakWatch() as watch:
        fit = timed(
            "fit calibration", lambda: fit_calibration(answers[part], labels[part], rows[part], thirds, prior, gap)
        )
        rule = timed("fit rule", lambda: fit_rule(outcomes[part], config.replace(rule=kind)))
        calibrated = timed("calibrate", lambda: fit.calibration.apply(answers))
        error = timed("calibration error", lambda: calibration_error(labels, calibrated))
        decisions = timed("decide", lambda: rule.choose_classes(calibrated))
        done = timed("simulate", lambda: simulate(candles, rows, decisions, config))
    return {
        "decisions": len(rows),
        "rule": kind,
        "trades": len(done.trades),
        "calibration_error": error,
        "wall_s": wall,
        "processor_s": processor,
        "peak_mb": watch.peak_mb,
    }


def print_cases(cases: list[dict[str, Any]]) -> None:
    names = list(cases[0]["wall_s"])
    rows = []
    for name in names:
        times = [f"{case['wall_s'][name]:.2f} ({case['processor_s'][name]:.2f})" for case in cases]
        rows.append([f"{name}, s (of a processor)", *times])
    for key in ("wall_s", "processor_s"):
        rows.append([f"sum, {key}", *(f"{sum(case[key].values()):.2f}" for case in cases)])
    rows.append(["peak, MB above candles and answers", *(f"{case['peak_mb']:.0f}" for case in cases)])
    rows.append(["trades", *(case["trades"] for case in cases)])
    print(text_table(["", *(case["rule"] for case in cases)], rows, width=100), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="200,000 decisions in place of 2,000,000")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--case", choices=RULES, help=argparse.SUPPRESS)  # one case, in this process
    arguments = parser.parse_args(words)
    count = 200_000 if arguments.quick else 2_000_000
    if arguments.case:
        print(json.dumps(measure_case(count, arguments.case)))
        return
    cases = []
    for kind in RULES:
        command = [sys.executable, "-m", "benchmarks", "simulation", "--case", kind]
        command += ["--quick"] * arguments.quick
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        cases.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{cases[0]['decisions']:,} decisions, with 1,000 random accounts")
    print_cases(cases)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
