"""Run every check of the project, three at a time. The last line says how many passed and failed. `make test` runs it.

    check.py [WORD ...]    only checks whose name contains one of the words

Tests and notebooks need TensorFlow, whose import takes 5 seconds. This process imports it once, does not use it, and
forks a process for each file of tests, each notebook and each benchmark: each starts from the same fresh state. Other
checks are commands. So are the tests in `FORKING`: they fork thousands of times, and a fork of a process that has
imported TensorFlow takes several times as long.
"""

from __future__ import annotations

import gc
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
AT_ONCE = 3  # a check waits for disks, children and pip for a tenth of its time, the wheel for most of it
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT |= {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a check has one core
LONGEST = (  # these start first, so that both cores end together
    "wheel and sdist",
    "reliability",
    "tests/profiling",
    "tests/training",
    "tests/test_traced_graph.py",
    "tests/storage/test_faults.py",
    "tests/inference/test_predictor.py",
    "tests/commands/test_main.py",
    "nbs/tutorials/05",
)
FORKING = ("tests/storage/test_verified.py",)  # need no TensorFlow; each runs in a process of its own


@dataclass(frozen=True)
class Check:
    """A check: `run` returns its exit code, in a process of its own with its output in a file."""

    name: str
    run: Callable[[], int]
    is_pytest: bool = False


def list_checks() -> list[Check]:
    """All checks; the longest first, then tests, notebooks and commands."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    notebooks = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    found = [
        Check("wheel and sdist, in a new environment", check_wheel),
        Check("reliability: kills, faults, mutations, attacks, resumes, NaN", check_reliability),
        *(test_check(path) for path in tests),
        *(notebook_check(path) for path in notebooks),
        command("notebooks clean and exported", sys.executable, "tools/exported.py"),
        command("README in step with nbs/index.ipynb", sys.executable, "tools/readme.py", "--check"),
        command("imports run down only", f"{BIN}/lint-imports"),
        command("ruff", f"{BIN}/ruff", "check", "."),
        command("types", f"{BIN}/mypy"),
    ]
    return sorted(found, key=rank)


def rank(check: Check) -> int:
    """The place of a check among the longest ones; checks that are not named keep their order after them."""
    places = [place for place, start in enumerate(LONGEST) if check.name.startswith(start)]
    return places[0] if places else len(LONGEST)


def check_wheel() -> int:
    """Run `tools/wheel.py` in this process, which has imported TensorFlow."""
    sys.path.append(str(ROOT / "tools"))
    runpy.run_path(str(ROOT / "tools" / "wheel.py"), run_name="__main__")
    return 0


def check_reliability() -> int:
    """Run the quick round in this process, which has imported TensorFlow and not used it."""
    from benchmarks.reliability import suite

    return suite.main(["--quick"])


def command(name: str, *words: str) -> Check:
    """A check that is a command."""
    return Check(name, lambda: subprocess.run(words).returncode)


def test_check(path: Path) -> Check:
    """A check that runs a file of tests."""
    name = str(path.relative_to(ROOT))
    words = ["-q", "-rs", name]

    def run() -> int:
        import pytest

        return int(pytest.main(words))

    def run_apart() -> int:
        return subprocess.run([sys.executable, "-m", "pytest", *words]).returncode

    return Check(name, run_apart if name in FORKING else run, is_pytest=True)


def notebook_check(path: Path) -> Check:
    """A check that runs a notebook from top to bottom, as `nbdev_test` does."""
    name = str(path.relative_to(ROOT))
    flags = "gpu" if shutil.which("nvidia-smi") else ""

    def run() -> int:
        from nbdev.test import nbdev_test

        nbdev_test(path=name, flags=flags, n_workers=0)  # in this process; ends it where the notebook fails
        return 0

    return Check(name, run)


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Running:
    """A check in its process, and the folder with its output and temporary files."""

    check: Check
    folder: Path
    start: float


def start_check(check: Check, folder: Path) -> int:
    """Fork the process of a check; its id."""
    folder.mkdir()
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        enter_process(folder)
        code = check.run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def enter_process(folder: Path) -> None:
    """Give the process its output file, its folder of temporary files, and its folder of lasting ones."""
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    temporary = folder / "t"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)
    os.environ["XDG_STATE_HOME"] = str(temporary / "state")  # the ledger of trials is not that of the user
    tempfile.tempdir = None
    sys.argv = ["check"]


def import_libraries() -> None:
    """Import the libraries that most tests and notebooks need, once for all. None of them is used here.

    The plugins of pytest are among them: each fork would import them again.
    """
    import arch.bootstrap
    import h5py
    import hypothesis.strategies
    import keras
    import matplotlib.pyplot
    import nbdev.test
    import pandas
    import pyarrow.parquet
    import pytest
    import scipy.optimize
    import scipy.signal
    import scipy.stats
    import sklearn.linear_model
    import sklearn.preprocessing
    import tensorflow

    del arch, h5py, hypothesis, keras, matplotlib, nbdev, pandas, pyarrow, pytest, scipy, sklearn, tensorflow
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    gc.collect()
    gc.freeze()  # the collector of a forked process leaves these objects, and so their memory stays shared
    gc.set_threshold(50_000, 50, 100)  # by default it runs every 700 new objects: a tenth of the time of a graph


# ---------------------------------------------------------------- results


def count_results(check: Check, code: int, output: str) -> tuple[int, int, int]:
    """How many passed, failed and were skipped: tests of pytest one by one, other checks as one."""
    if not check.is_pytest:
        return (1, 0, 0) if code == 0 else (0, 1, 0)
    lines = output.splitlines()
    summary = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|error|skipped)", line)), "")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", summary)}
    passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if failed == 0 and (code != 0 or passed + skipped == 0):
        failed = 1  # pytest itself failed, or found no test
    return passed, failed, skipped


def print_result(check: Check, counts: tuple[int, int, int], times: str, output: str) -> None:
    """A line for the check, then its output where it failed, else the reasons of skipped tests."""
    passed, failed, skipped = counts
    tests = f" ({passed} passed, {skipped} skipped)" if check.is_pytest else ""
    lines = output.strip().splitlines()
    shown = lines[-60:] if failed else [line for line in lines if line.startswith("SKIPPED")]
    print("\n".join([f"{'FAIL' if failed else 'ok  '} {times}  {check.name}{tests}", *shown]), flush=True)


def run_checks(checks: list[Check], place: Path) -> tuple[int, int, int]:
    """Run all checks, some at the same time; how many passed, failed and were skipped."""
    waiting, running, total = list(checks), dict[int, Running](), [0, 0, 0]
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            check, folder = waiting.pop(0), place / str(len(waiting))
            running[start_check(check, folder)] = Running(check, folder, time.monotonic())
        process, status, used = os.wait3(0)
        done = running.pop(process)
        output = (done.folder / "output").read_text(encoding="utf-8", errors="replace")
        counts = count_results(done.check, os.waitstatus_to_exitcode(status), output)
        total = [a + b for a, b in zip(total, counts, strict=True)]
        times = f"{time.monotonic() - done.start:5.0f} s {used.ru_utime + used.ru_stime:5.0f} s processor"
        print_result(done.check, counts, times, output)
        shutil.rmtree(done.folder, ignore_errors=True)
    passed, failed, skipped = total
    return passed, failed, skipped


def main(words: list[str]) -> int:
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    sys.path[0] = str(ROOT)  # as `python -m` has it; it was the folder of this file
    checks = [check for check in list_checks() if not words or any(word in check.name for word in words)]
    import_libraries()
    with tempfile.TemporaryDirectory(prefix="check") as folder:
        passed, failed, skipped = run_checks(checks, Path(folder))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
