"""How saved models and trainings survive kills, failing disks, changed bytes, attacks and NaN, beside plain Keras.

    python -m benchmarks reliability               measure everything, write reliability.json (an hour on two cores)
    python -m benchmarks reliability --only kills  one part; its results replace those of this part in reliability.json
    python -m benchmarks reliability --quick       a smaller round of each guarantee; exit 1 where one is broken
    python -m benchmarks reliability --report      print the stored results

`make test` runs the quick round.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from benchmarks.paths import RESULTS
from benchmarks.reliability.jobs import FULL, PARTS, QUICK, Job, Result, list_jobs, scale_counts
from benchmarks.reliability.report import print_report, remove_paths

RELIABILITY_RESULTS = RESULTS / "reliability.json"


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Running:
    """A job in its own process, which was forked from this one."""

    part: str
    name: str
    process: int
    start: float


def run_jobs(named: list[tuple[str, str, Job]], at_once: int, seed: int) -> Iterator[tuple[str, str, Result]]:
    """Part, name and result of each job, in the order in which they end."""
    waiting, running = list(named), dict[Connection, Running]()
    while waiting or running:
        while waiting and len(running) < at_once:
            part, name, job = waiting.pop(0)
            pipe, process = _fork_job(job, f"{seed}-{part}-{name}")
            running[pipe] = Running(part, name, process, time.monotonic())
        for pipe in wait(list(running)):
            ended = running.pop(pipe)
            try:
                result = pipe.recv()
            except EOFError:
                result = {"error": "the process ended without a result", "bad": 1, "broken": [], "seed": seed}
            pipe.close()
            used = os.wait4(ended.process, 0)[2]  # with all children that it has waited for
            times = {
                "seconds": round(time.monotonic() - ended.start, 1),
                "processor_s": round(used.ru_utime + used.ru_stime, 1),
            }
            yield ended.part, ended.name, {**result, **times}


def _fork_job(job: Job, seed: str) -> tuple[Connection, int]:
    """The pipe on which the result comes, and the process that runs the job."""
    receiving, sending = Pipe(duplex=False)
    process = os.fork()
    if not process:
        _run_in_child(job, seed, sending)
    sending.close()
    return receiving, process


def _run_in_child(job: Job, seed: str, pipe: Connection) -> None:
    try:
        pipe.send(job(random.Random(seed).randrange(10**9)))
    except BaseException as error:
        lines = traceback.format_exc()[-2000:]
        pipe.send({"error": repr(error)[:2000], "bad": 1, "broken": [lines], "seed": seed})
    finally:
        pipe.close()
        os._exit(0)


# ---------------------------------------------------------------- measurement


def measure(arguments: argparse.Namespace, seed: int, counts: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Run the parts and add their results to the known ones. A quick run runs all jobs together and writes nothing."""
    from support import save_load_cases as saves

    for name in ("crypto_lstm", "absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    saves.data()  # once, before the forks
    parts = [part for part in PARTS if not arguments.only or part in arguments.only]
    for group in [parts] if arguments.quick else [[part] for part in parts]:
        known |= measure_group(group, arguments, seed, counts)
        if not arguments.quick:
            RELIABILITY_RESULTS.write_text(json.dumps(remove_paths(known), indent=1) + "\n", encoding="utf-8")
    return known


def measure_group(
    parts: Sequence[str], arguments: argparse.Namespace, seed: int, counts: dict[str, Any]
) -> dict[str, Any]:
    """Run the jobs of some parts; results by part, in the order of the jobs."""
    named = [(part, name, job) for part in parts for name, job in list_jobs(part, counts)]
    start, found = time.monotonic(), dict[tuple[str, str], Result]()
    at_once = 1 if list(parts) == ["speed"] else arguments.at_once
    for part, name, result in run_jobs(named, at_once, seed):
        outcome = result.get("error", f"{result['processor_s']:.0f} s of processor time")[:300]
        print(f"{time.monotonic() - start:6.0f} s  {part}, {name}: {outcome}", flush=True)
        found[part, name] = result
    about = {
        "scale": arguments.scale,
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - start, 1),
        "machine": describe_machine(),
    }
    by_part: dict[str, Any] = {}
    for part, name, _ in named:
        by_part.setdefault(part, {**about, "results": {}})["results"][name] = found[part, name]
    return by_part


def describe_machine() -> dict[str, Any]:
    """Versions, system and cores."""
    import keras
    import tensorflow as tf

    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    return {**versions, "system": platform.platform(), "cores": os.cpu_count()}


# ---------------------------------------------------------------- command


def main(words: Sequence[str] | None = None) -> int:
    """Run in a temporary folder of our own, so that the files of killed children are removed with it."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as own:
        tempfile.tempdir = own
        try:
            code = run(words)
        finally:
            tempfile.tempdir = None
    shutil.rmtree(own, ignore_errors=True)
    return code


def run(words: Sequence[str] | None) -> int:
    """Measure and report; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; can be given more than once")
    parser.add_argument("--quick", action="store_true", help="a smaller round of each guarantee; writes nothing")
    parser.add_argument("--report", action="store_true", help="print the stored results, measure nothing")
    parser.add_argument("--seed", type=int, default=None, help="seed of all randomness; default: a new one")
    parser.add_argument("--scale", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="processes at the same time")
    arguments = parser.parse_args(words)
    known = json.loads(RELIABILITY_RESULTS.read_text(encoding="utf-8")) if RELIABILITY_RESULTS.exists() else {}
    if arguments.report:
        print_report(known, full=True)
        return 0
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(3), "big")
    quick = " --quick" if arguments.quick else ""
    print(f"seed {seed}: python -m benchmarks reliability{quick} --seed {seed}", flush=True)
    counts = QUICK if arguments.quick else scale_counts(FULL, arguments.scale)
    found = measure(arguments, seed, counts, {} if arguments.quick else known)
    return 1 if print_report(found, full=not arguments.quick) else 0
