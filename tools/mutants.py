"""Delete the guards of the code that saves and loads with TensorFlow, one at a time: a test must fail each time.

    mutants.py [--module NAME ...] [--list] [--survivors] [--fresh]

`mutmut` does the same for the wing `storage`. It is no help here: it would import TensorFlow for each mutant. Guards
are found in the exported modules: an `if` that raises, each operand of its `and` and `or`, a `raise` in an except
handler or at the end of a function, a call of a checker whose result is not used, a sync. First every test runs once
and the lines that it reaches are recorded. A mutant is then tried with the tests that reach it, the quick ones first,
up to the first that fails. Mutants live in a copy of the package. All children are forked from one process that has
imported TensorFlow and not used it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "crypto_lstm"
MODULES = (
    "inference.bundle",
    "training.checkpointing",
    "training.run_folder",
    "saving.hdf5",
    "saving.model_schema",
    "saving.model_file",
    "saving.compatibility",
    "persistence",
)
TESTS = ("storage", "saving", "inference", "training", "test_persistence.py")  # folders and files of tests
SLOW = ("is_killed_and_goes_on", "is_killed_and_resumed")  # left out: other tests reach the same lines in less time
TIMEOUT_S = 300.0  # of a mutant
LONGEST_S = 60.0  # of the tests that are tried on a mutant, as they took without it

# Mutants that no test can detect, by the words of `--list` after the function's name, each with the reason.
_LAYOUT = (
    "plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count() "
    "or (thing.id.get_storage_size() != size)"
)
_KIND = "info.flag_bits & 1 or (mode and (not stat.S_ISREG(mode)) and stat.S_IFMT(mode))"
ALLOWED = {
    "if not report.ok or report.sha256 is None, without report.sha256 is None": (
        "for the type checker: a report without a hash has faults"
    ),
    f"if {_LAYOUT}, without plan.get_nfilters()": "HDF5 compresses chunked arrays only, and those are refused",
    f"if {_KIND}, without mode": "a mode of 0 has no kind either",
    "if format != 'saved_model' and target.is_dir()": "`atomic_file` refuses a folder as well, with the same class",
}

# ---------------------------------------------------------------- the mutants

_CHECKER = re.compile(r"_?(check|require|validate|verify|probe|compare)\w*|raise_for_errors")
_SYNC = re.compile(r"fsync|_?sync(_folder)?")


@dataclass(frozen=True)
class Mutant:
    """One deletion. A test can detect it if it reaches a line from `line` to `end`.

    `how` is "runs" if the line must run, "raises" if an error must pass through it.
    """

    module: str
    name: str
    line: int
    end: int
    how: str
    source: str  # of the module without the guard


def module_path(module: str) -> Path:
    """The file of a module, relative to the package."""
    return Path(*module.split(".")).with_suffix(".py")


def list_mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module, in the order of its lines; equal words are numbered."""
    text = (PACKAGE / module_path(module)).read_text(encoding="utf-8")
    seen: dict[str, int] = {}
    for number in range(len(list(_edits(ast.parse(text))))):
        tree = ast.parse(text)
        name, node, how, apply = list(_edits(tree))[number]
        apply()
        name = f"{module}.{name}"
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name += f" #{seen[name]}"
        source = ast.unparse(ast.fix_missing_locations(tree))
        yield Mutant(module, name, node.lineno, node.end_lineno, how, source)


Edit = tuple[str, Any, str, Callable[[], object]]  # words, the node that a test must reach, how, and the change


def _edits(tree: ast.Module) -> Iterator[Edit]:
    """All deletions of guards."""
    for function, parent in _functions(tree):
        where = f"{parent}{function.name}"
        handled = _raises_of_handlers(function)
        for body in _bodies(function):
            for place, node in enumerate(body):
                if isinstance(node, ast.If) and any(isinstance(s, ast.Raise) for s in node.body):
                    yield from _edits_of_condition(where, node)
                elif isinstance(node, ast.Raise):
                    is_last = body is function.body and place == len(body) - 1 and place > 0
                    if id(node) in handled or is_last:
                        yield f"{where}: {_words(node)}", node, "runs", partial(_remove, body, place)
                elif how := _how_to_reach_call(node):
                    yield f"{where}: {_words(node)}", node, how, partial(_remove, body, place)


def _raises_of_handlers(function: ast.FunctionDef) -> set[int]:
    """Identities of the `raise` statements that stand directly in except handlers."""
    handlers = [node for node in ast.walk(function) if isinstance(node, ast.ExceptHandler)]
    return {id(statement) for handler in handlers for statement in handler.body if isinstance(statement, ast.Raise)}


def _how_to_reach_call(node: ast.stmt) -> str:
    """For a call of a checker or a sync whose result is not used: how a test must reach it; else ""."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return ""
    called = node.value.func
    word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if _CHECKER.fullmatch(word):
        return "raises"
    return "runs" if _SYNC.fullmatch(word) else ""


def _functions(tree: ast.Module) -> Iterator[tuple[Any, str]]:
    """Functions and methods, with the name of the class before."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, ""
        elif isinstance(node, ast.ClassDef):
            yield from ((item, f"{node.name}.") for item in node.body if isinstance(item, ast.FunctionDef))


def _bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, field, None), list):
                yield body


def _edits_of_condition(where: str, node: ast.If) -> Iterator[Edit]:
    """The guard as a whole, and each operand of its condition."""
    words = f"{where}: if {ast.unparse(node.test)}"
    body = next(statement for statement in node.body if isinstance(statement, ast.Raise))

    def disable() -> None:
        node.test = ast.BoolOp(ast.And(), [node.test, ast.Constant(False)])  # assignments in the condition stay

    yield words, body, "runs", disable
    for part in [n for n in ast.walk(node.test) if isinstance(n, ast.BoolOp)]:
        if isinstance(part.op, ast.Or):
            reach: ast.stmt = body
        else:
            reach = ast.copy_location(ast.Pass(), node.test)
            reach.end_lineno = node.test.end_lineno
        for place, operand in enumerate(part.values):
            if any(isinstance(n, ast.NamedExpr) for n in ast.walk(operand)):
                continue  # the following code needs its value
            yield f"{words}, without {ast.unparse(operand)}", reach, "runs", partial(part.values.pop, place)


def _remove(body: list[ast.stmt], place: int) -> None:
    """Replace a statement by `pass`."""
    body[place] = ast.copy_location(ast.Pass(), body[place])


def _words(node: ast.stmt) -> str:
    return ast.unparse(node)[:120]


# ---------------------------------------------------------------- the lines that each test reaches


class _Reach:
    """A pytest plugin that records for each test its time, the lines that it runs, and those that an error passes."""

    def __init__(self, out: Path, files: dict[str, str]) -> None:
        self.out, self.files, self.test = out, files, ""
        self.found: dict[str, set[tuple[str, int]]] = {}

    def trace(self, frame: Any, event: str, argument: Any) -> Any:
        module = self.files.get(frame.f_code.co_filename)
        if module is None:
            return None
        runs, raises = self.found["runs"], self.found["raises"]

        def local(frame: Any, event: str, argument: Any) -> Any:
            (raises if event == "exception" else runs).add((module, frame.f_lineno))
            return local

        return local

    def dump(self, seconds: float | None = None, setup: float = 0.0) -> None:
        reached = {how: sorted(lines) for how, lines in self.found.items()}
        record = {"test": self.test, "seconds": seconds, "setup": setup, **reached}
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        self.test = f"{_name_file(item.path)}::{item.nodeid.partition('::')[2]}"
        self.found = {"runs": set(), "raises": set()}
        start = time.monotonic()
        leave, pid = os._exit, os.getpid()

        def leaving(code: int) -> None:  # children of a test record the lines that they reached, too
            if os.getpid() != pid:
                sys.settrace(None)
                with contextlib.suppress(Exception):
                    self.dump()
            leave(code)

        os._exit = leaving  # type: ignore[assignment]
        sys.settrace(self.trace)
        from _pytest.runner import runtestprotocol

        try:
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            reports = runtestprotocol(item, nextitem=nextitem)
        finally:
            sys.settrace(None)
            os._exit = leave
        if all(report.outcome == "passed" for report in reports):
            self.dump(time.monotonic() - start, reports[0].duration)
        else:
            print(f"left out, it does not pass by itself: {item.nodeid}", file=sys.stderr)
        return True


def _name_file(path: Path) -> str:
    """The name of a file of tests, below `tests`; tests of notebooks lie in another temporary folder each time."""
    tests = ROOT / "tests"
    return str(path.relative_to(tests)) if path.is_relative_to(tests) else path.name


def find_notebook(module: str) -> Path:
    """The notebook that exports a module."""
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if f'"#| default_exp {module}"' in path.read_text(encoding="utf-8"):
            return path
    raise LookupError(f"expected a notebook with the line `#| default_exp {module}`, found none")


def write_notebook_test(module: str, place: Path) -> Path:
    """A test that runs those cells of a notebook that are not exported, on the module."""
    path = find_notebook(module)
    test = place / f"test_nb_{module.replace('.', '_')}.py"
    test.write_text(f"""
import json, os, pathlib
import importlib
def test_notebook(monkeypatch):
    import matplotlib
    matplotlib.use("agg")
    monkeypatch.chdir({str(path.parent)!r})
    names = vars(importlib.import_module("crypto_lstm.{module}"))  # not a copy: cells replace functions of the module
    for cell in json.loads(pathlib.Path({str(path)!r}).read_text())["cells"]:
        text = "".join(cell["source"])
        left_out = any(word in text for word in ("#| export", "#|export", "#| default_exp", "#| gpu"))
        if cell["cell_type"] == "code" and not left_out:
            exec(compile(text, "cell", "exec"), names)
""")
    return test


def _forked(run: Any, log: Path) -> int:
    """The process in which `run` runs, in its own group and with its output in a file."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        code = run()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def _package(place: Path, mutant: Mutant | None = None) -> None:
    """A copy of the package, first on the path of this process and of its children."""
    shutil.copytree(PACKAGE, place / "crypto_lstm")  # with its compiled modules
    if mutant:
        path = place / "crypto_lstm" / module_path(mutant.module)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()
        path.write_text(mutant.source, encoding="utf-8")
    sys.path[:0] = [str(place), str(ROOT / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), str(ROOT / "tests")])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.chdir(ROOT)


def _pytest(tests: list[str], place: Path, plugins: list[Any], *more: str) -> int:
    import pytest

    skip = " and ".join(f"not {word}" for word in SLOW)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins took most of the time of a quick test
    options = [
        "-q",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(place / "tmp"),
        "--rootdir",
        str(ROOT),
        "-k",
        skip,
        "--tb=line",
        *more,
    ]
    return int(pytest.main([*options, *tests], plugins=plugins))


Reached = dict[str, Any]  # test, seconds, runs and raises: pairs of module and line


def reach(known: dict[str, Any], names: list[str], place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each file of tests its digest and the lines that its tests reach, two at a time; known files are not run."""
    waiting = [*list_test_files(), *(write_notebook_test(name, place) for name in names)]
    running: dict[int, tuple[Path, Path]] = {}
    while waiting or running:
        while waiting and len(running) < 2:
            test = waiting.pop(0)
            if known.get(_name_file(test), {}).get("digest") == _digest(test):
                yield _name_file(test), known[_name_file(test)]
                continue
            work = Path(tempfile.mkdtemp(dir=place))

            def run(test: Path = test, work: Path = work) -> int:
                _package(work)
                files = {str(work / "crypto_lstm" / module_path(name)): name for name in names}
                return _pytest([str(test)], work, [_Reach(work / "reach.jsonl", files)])

            running[_forked(run, work / "log")] = test, work
        if running:
            child, _ = os.wait()
            test, work = running.pop(child)
            last = (work / "log").read_text(errors="replace").strip().splitlines()[-1:]
            print(f"lines reached by {_name_file(test)}: {last}", file=sys.stderr, flush=True)
            yield _name_file(test), {"digest": _digest(test), "tests": _reached(work / "reach.jsonl")}


def _reached(out: Path) -> list[Reached]:
    """The lines that the tests of a file and their children reached."""
    found: dict[str, Reached] = {}
    for line in out.read_text().splitlines() if out.exists() else []:
        record = json.loads(line)
        empty = {"test": record["test"], "seconds": None, "setup": 0.0, "runs": [], "raises": []}
        entry = found.setdefault(record["test"], empty)
        if record["seconds"] is not None:
            entry |= {"seconds": record["seconds"], "setup": record["setup"]}
        for how in ("runs", "raises"):
            entry[how] = sorted({tuple(pair) for pair in [*entry[how], *record[how]]})
    return [entry for entry in found.values() if entry["seconds"] is not None]


def choose_tests(mutant: Mutant, reached: list[Reached]) -> list[str]:
    """The tests that reach a mutant: files with a quick start first, in a file the quick tests first."""
    lines = range(mutant.line, mutant.end + 1)

    def is_reached_by(test: Reached) -> bool:
        return any(module == mutant.module and line in lines for module, line in test[mutant.how])

    able = [test for test in reached if is_reached_by(test)]
    start: dict[str, float] = {}
    for test in reached:
        file = test["test"].partition("::")[0]
        start[file] = start.get(file, 0.0) + test["setup"]
    of_sync = mutant.name.endswith(")") and _SYNC.search(mutant.name) is not None

    def price(test: Reached) -> tuple[bool, float, float]:
        file = test["test"].partition("::")[0]
        return of_sync and "sync" not in test["test"], start[file] + test["seconds"], test["seconds"]

    able.sort(key=price)
    total, tests = 0.0, list[str]()
    for test in able:
        if total + test["seconds"] <= LONGEST_S or not tests:
            tests.append(test["test"])
            total += test["seconds"]
    return tests


# ---------------------------------------------------------------- the run


class _First:
    """A pytest plugin that writes the first failed test to a file."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.out.exists():
            self.out.write_text(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.out.exists():
            self.out.write_text(f"{report.nodeid} (import)")


def try_all(todo: list[tuple[Mutant, list[str]]], place: Path) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant with the test that killed it, "" where none did, and the seconds."""
    waiting, running = list(todo), dict[int, tuple[Mutant, Path, float]]()
    while waiting or running:
        while waiting and len(running) < 2:
            mutant, tests = waiting.pop(0)
            if not tests:
                yield mutant, "", 0.0
                continue
            work = Path(tempfile.mkdtemp(dir=place))

            def run(mutant: Mutant = mutant, tests: list[str] = tests, work: Path = work) -> int:
                _package(work, mutant)
                return _pytest([_node(test, place) for test in tests], work, [_First(work / "killer")], "-x")

            running[_forked(run, work / "log")] = (mutant, work, time.monotonic())
        if not running:
            break
        child, _ = os.waitpid(-1, os.WNOHANG)
        if child in running:
            mutant, work, start = running.pop(child)
            killer, log = work / "killer", (work / "log").read_text(errors="replace")
            if killer.exists():
                killed_by = killer.read_text()
            elif re.search(r"\d+ passed", log):
                killed_by = ""
            else:
                killed_by = f"the process ended: {log.strip()[-200:]}"
            yield mutant, killed_by, time.monotonic() - start
            shutil.rmtree(work, ignore_errors=True)
        for child, (_, work, start) in running.items():
            if time.monotonic() - start > TIMEOUT_S and not (work / "killer").exists():
                (work / "killer").write_text("time-out")
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


def list_test_files() -> list[Path]:
    """The files of tests, those of folders in their order."""
    found = []
    for name in TESTS:
        path = ROOT / "tests" / name
        found += [path] if path.suffix else sorted(path.rglob("test_*.py"))
    return found


def _node(test: str, place: Path) -> str:
    """The name of a test for pytest; tests of notebooks lie in the temporary folder."""
    file, _, name = test.partition("::")
    folder = place if file.startswith("test_nb_") else ROOT / "tests"
    return f"{folder / file}::{name}"


def _digest(test: Path) -> str:
    """The hash of all that the reached lines depend on: the test, its helpers, its notebook and the package."""
    helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    sources = [path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py"]
    own = [test]
    for module in MODULES:
        if test.name == f"test_nb_{module.replace('.', '_')}.py":
            own = [find_notebook(module)]
    files = [*sorted(sources), *sorted(helpers), *own]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _import_once() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MPLBACKEND", "agg")
    import fastcore.test
    import h5py
    import keras
    import matplotlib.figure
    import pandas
    import pyarrow.parquet
    import pytest
    import sklearn.preprocessing
    import tensorflow

    del fastcore, h5py, keras, matplotlib, pandas, pyarrow, pytest, sklearn, tensorflow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", nargs="+", choices=MODULES, help="only these")
    parser.add_argument("--list", action="store_true", help="list the mutants, try none")
    parser.add_argument("--survivors", action="store_true", help="try the survivors again")
    results = Path(tempfile.gettempdir()) / "crypto_lstm_mutants.json"
    parser.add_argument("--results", type=Path, default=results, help="file of the results so far")
    parser.add_argument("--fresh", action="store_true", help="discard the results so far")
    arguments = parser.parse_args()
    found = [mutant for name in arguments.module or MODULES for mutant in list_mutants(name)]
    if arguments.list:
        print(*(mutant.name for mutant in found), f"{len(found)} mutants", sep="\n")
        return 0
    return _run(found, arguments)


def _run(found: list[Mutant], arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    known = {} if arguments.fresh or not arguments.results.exists() else json.loads(arguments.results.read_text())
    sources = {mutant.name: hashlib.sha256(mutant.source.encode()).hexdigest() for mutant in found}
    kept = known.get("answers", {})
    answers = {name: answer for name, answer in kept.items() if answer["source"] == sources.get(name, answer["source"])}

    def is_open(mutant: Mutant) -> bool:
        return mutant.name not in answers or (arguments.survivors and not answers[mutant.name]["killer"])

    todo = [mutant for mutant in found if is_open(mutant)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _import_once()
        measured = dict(reach(known.get("reach", {}), list(MODULES), place)) if todo else {}
        reached = [test for file in measured.values() for test in file["tests"]]
        print(f"{len(reached)} tests, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        jobs = [(mutant, choose_tests(mutant, reached)) for mutant in todo]
        for mutant, killer, seconds in try_all(jobs, place):
            answers[mutant.name] = {"killer": killer, "source": sources[mutant.name], "seconds": round(seconds, 1)}
            outcome = "killed  " if killer else "SURVIVED"
            print(f"{outcome} {seconds:5.1f} s  {mutant.name}  {killer[-150:]}", flush=True)
            arguments.results.write_text(json.dumps({"reach": measured, "answers": answers}))
    return _verdict(found, answers, time.monotonic() - begin)


def _verdict(found: list[Mutant], answers: dict[str, Any], seconds: float) -> int:
    alive = [mutant.name for mutant in found if not answers[mutant.name]["killer"]]
    reasons = {name: ALLOWED.get(name.partition(": ")[2].partition(" #")[0]) for name in alive}
    bad = [name for name in alive if not reasons[name]]
    for name in alive:
        print(f"survived: {name}: {reasons[name] or 'NO TEST FAILS'}")
    words = {mutant.name.partition(": ")[2].partition(" #")[0] for mutant in found if mutant.name not in alive}
    stale = [text for text in ALLOWED if text in words]
    for text in stale:
        print(f"in ALLOWED, but killed: {text}")
    killed, excused = len(found) - len(alive), len(alive) - len(bad)
    print(f"{len(found)} mutants, {killed} killed, {excused} allowed to survive, {len(bad)} SURVIVED; {seconds:.0f} s")
    return 1 if bad or stale else 0


if __name__ == "__main__":
    sys.exit(main())
