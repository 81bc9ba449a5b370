"""Processes that stay alive and do one piece of work on request, so that imports don't count and a drift of the machine meets all alike.

A request is one line of JSON on stdin, `{"work": name, ...}`; the answer one line on stdout that begins with `answer:`. Needs nothing but
Python, so that a peer in another environment can serve as well.
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

Works = Mapping[str, Callable[..., Any]]


def serve(works: Works) -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": works[request.pop("work")](**request)}
        except Exception:  # told to whoever asked, who stops
            answer = {"error": traceback.format_exc()}
        print("answer:" + json.dumps(answer), flush=True)


class Worker:
    """A process that serves; to be used as a context."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.command = command
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
        self.complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True, env=env)

    def ask(self, work: str, /, **settings: Any) -> Any:
        """What the work answers. Raises `RuntimeError` with the traceback of the other side."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"work": work, **settings}) + "\n")
        self.process.stdin.flush()
        answer = next((line for line in self.process.stdout if line.startswith("answer:")), None)
        if answer is None:
            self.complaints.seek(0)
            said = self.complaints.read()[-2000:]
            raise RuntimeError(f"{' '.join(self.command)} ended with exit code {self.process.wait()} at {work!r}:\n{said}")
        read = json.loads(answer[7:])
        if "error" in read:
            raise RuntimeError(f"{' '.join(self.command)} failed at {work!r}:\n{read['error']}")
        return read["value"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.complaints.close()


def in_turn(works: Mapping[str, Callable[[], float]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """What each work answers in each round: A B C, A B C, ...; the first `warm` rounds are not kept."""
    for _ in range(warm):
        for work in works.values():
            work()
    table = [[work() for work in works.values()] for _ in range(rounds)]
    return {name: list(column) for name, column in zip(works, zip(*table, strict=True), strict=True)}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeat: int) -> float:
    """Median wall time of some calls, one after the other."""
    return statistics.median(seconds(work) for _ in range(repeat))
