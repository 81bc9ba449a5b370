"""Processes that stay alive and do one task on request: imports are not timed, and a drift of the machine affects all.

A request is one line of JSON on stdin, `{"work": name, ...}`. The answer is one line on stdout, which begins with
`answer:`. This module needs nothing but Python, so that PyTorch can serve from an environment of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.paths import ROOT

Works = Mapping[str, Callable[..., Any]]


def serve(works: Works) -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": works[request.pop("work")](**request)}
        except Exception:  # the process that asked raises it
            answer = {"error": traceback.format_exc()}
        print("answer:" + json.dumps(answer), flush=True)


class Worker:
    """A process that serves; use it as a context manager. It runs in the root of the repository."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.command = command
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in __exit__
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, **pipes, text=True, env=env, cwd=ROOT)

    def ask(self, work: str, /, **settings: Any) -> Any:
        """The answer to one request. Raises `RuntimeError` with the traceback of the worker."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"work": work, **settings}) + "\n")
        self.process.stdin.flush()
        answer = next((line for line in self.process.stdout if line.startswith("answer:")), None)
        if answer is None:
            self.errors.seek(0)
            printed = self.errors.read()[-2000:]
            code = self.process.wait()
            raise RuntimeError(f"{' '.join(self.command)} ended with exit code {code} at {work!r}:\n{printed}")
        parsed = json.loads(answer.removeprefix("answer:"))
        if "error" in parsed:
            raise RuntimeError(f"{' '.join(self.command)} failed at {work!r}:\n{parsed['error']}")
        return parsed["value"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def measure_in_turn(works: Mapping[str, Callable[[], float]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Answers of each work in each round: A B C, A B C, ...; the first `warm` rounds are not kept."""
    for _ in range(warm):
        for work in works.values():
            work()
    kept: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            kept[name].append(work())
    return kept


def time_call(work: Callable[[], object]) -> float:
    """Wall time of one call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_median(work: Callable[[], object], repeat: int) -> float:
    """Median wall time of `repeat` calls, one after the other, in seconds."""
    return statistics.median(time_call(work) for _ in range(repeat))
