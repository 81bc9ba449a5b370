"""Delete the guards of the code that saves and loads, one at a time: some test must turn red each time.

`python tools/mutants.py [--module NAME ...] [--list] [--survivors] [--fresh]`.
Guards are found in the exported modules: an `if` that
raises, each operand of its `and` and `or`, a `raise` in an except handler or at a function's end, a call of a checker whose result
nobody takes, a sync. First every test runs once while it is noted which lines it reaches; a mutant is then tried with the tests that
reach it, the quick ones first, up to the first that fails. Mutants live in a copy of the package. All children are forked from one
process that has imported TensorFlow and not used it.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "crypto_lstm"
MODULES = {  # module -> its notebook, whose cells are tests as well
    "sealed": "21", "lock": "23", "commit": "24", "files": "15", "generations": "", "bundle": "25", "resume": "29", "folder": "30",
    "hdf5": "31", "network": "32", "foreign": "33", "validation": "34", "persistence": "05",
}  # fmt: skip
TESTS = ("test_commit", "test_guards", "test_model_files", "test_bundle", "test_foreign", "test_resume", "test_faults")
SLOW = ("random_moments", "is_killed_and_goes_on")  # left out: they see what others see, in minutes
TIMEOUT_S, LONGEST_S = 300.0, 60.0  # of a mutant; of the tests that are tried on it, as they took without it

# Mutants that no test can see, by the words of `--list` after the function's name, each with the reason.
_LAYOUT = (
    "plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count() or (thing.id.get_storage_size() != size)"
)
_KIND = "info.flag_bits & 1 or (mode and (not stat.S_ISREG(mode)) and stat.S_IFMT(mode))"
ALLOWED = {
    "if not report.ok or report.sha256 is None, without report.sha256 is None": "for the type checker: a report without a hash has faults",
    "if needs_bytes and needs_bytes > shutil.disk_usage(parent).free, without needs_bytes": "0 bytes are never more than what is free",
    f"if {_LAYOUT}, without plan.get_nfilters()": "HDF5 packs arrays in pieces only, and those are refused",
    f"if {_KIND}, without mode": "a mode of 0 has no kind either",
    "if format != 'saved_model' and target.is_dir()": "the commit refuses a folder as well, with the same class",
}

# ---------------------------------------------------------------- the mutants

_CHECKER = re.compile(r"_?(check|require|validate|verify|probe|compare)\w*|raise_for_errors")
_SYNC = re.compile(r"fsync|_?sync(_folder)?")


@dataclass(frozen=True)
class Mutant:
    """One deletion. `line` to `end` are what a test must reach to see it; `how`: whether they must run, or an error pass through them."""

    module: str
    name: str
    line: int
    end: int
    how: str  # runs, raises
    source: str  # of the module without the guard


def mutants(module: str) -> Iterator[Mutant]:
    """All of a module, in the order of its lines; equal words are numbered."""
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    seen: dict[str, int] = {}
    for number in range(len(list(_edits(ast.parse(text))))):
        tree = ast.parse(text)
        name, node, how, apply = list(_edits(tree))[number]
        apply()
        name = f"{module}.{name}"
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name += f" #{seen[name]}"
        yield Mutant(module, name, node.lineno, node.end_lineno, how, ast.unparse(ast.fix_missing_locations(tree)))


def _edits(tree: ast.Module) -> Iterator[tuple[str, Any, str, Any]]:
    """Words, the node that a test must reach, how, and the function that makes the change."""
    for function, parent in _functions(tree):
        where = f"{parent}{function.name}"
        handled = {id(s) for h in ast.walk(function) if isinstance(h, ast.ExceptHandler) for s in h.body if isinstance(s, ast.Raise)}
        for body in _bodies(function):
            for place, node in enumerate(body):
                if isinstance(node, ast.If) and any(isinstance(s, ast.Raise) for s in node.body):
                    yield from _of_condition(where, node)
                elif isinstance(node, ast.Raise) and (id(node) in handled or (body is function.body and place == len(body) - 1 and place)):
                    yield f"{where}: {_words(node)}", node, "runs", lambda body=body, place=place: _put(body, place, ast.Pass())
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    called = node.value.func
                    word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                    for pattern, how in ((_CHECKER, "raises"), (_SYNC, "runs")):
                        if pattern.fullmatch(word):
                            yield f"{where}: {_words(node)}", node, how, lambda body=body, place=place: _put(body, place, ast.Pass())


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


def _of_condition(where: str, node: ast.If) -> Iterator[tuple[str, Any, str, Any]]:
    """The guard as a whole, and each operand of its condition."""
    words, body = f"{where}: if {ast.unparse(node.test)}", next(s for s in node.body if isinstance(s, ast.Raise))

    def never() -> None:
        node.test = ast.BoolOp(ast.And(), [node.test, ast.Constant(False)])  # what the condition assigns stays

    yield words, body, "runs", never
    for part in [n for n in ast.walk(node.test) if isinstance(n, ast.BoolOp)]:
        for place, operand in enumerate(part.values):
            reach = body if isinstance(part.op, ast.Or) else ast.copy_location(ast.Pass(), node.test)
            reach.end_lineno = getattr(body if isinstance(part.op, ast.Or) else node.test, "end_lineno", None)
            if any(isinstance(n, ast.NamedExpr) for n in ast.walk(operand)):
                continue  # what follows needs its value
            yield f"{words}, without {ast.unparse(operand)}", reach, "runs", lambda part=part, place=place: part.values.pop(place)


def _put(body: list[ast.stmt], place: int, node: ast.stmt) -> None:
    body[place] = ast.copy_location(node, body[place])


def _words(node: ast.stmt) -> str:
    return ast.unparse(node)[:120]


# ---------------------------------------------------------------- what each test reaches


class _Reach:
    """A pytest plugin: notes for each test its time, the lines of the modules that it runs, and those that an error passes."""

    def __init__(self, out: Path, files: dict[str, str]) -> None:
        self.out, self.files, self.test, self.found = out, files, "", dict[str, set[tuple[str, int]]]()

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
        told = {"test": self.test, "seconds": seconds, "setup": setup, **{how: sorted(lines) for how, lines in self.found.items()}}
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        self.test = f"{item.path.name}::{item.nodeid.partition('::')[2]}"  # without folders: notebooks' tests lie elsewhere each time
        self.found, start = {"runs": set(), "raises": set()}, time.monotonic()
        leave, pid = os._exit, os.getpid()

        def leaving(code: int) -> None:  # children of a test tell what they reached as well
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
            print(f"not used, it does not pass by itself: {item.nodeid}", file=sys.stderr)
        return True


def _notebook_test(number: str, module: str, place: Path) -> Path:
    """A test that runs the cells of a notebook that are not exported, on the module."""
    (path,) = (ROOT / "nbs").glob(f"{number}_*.ipynb")
    test = place / f"test_nb_{module}.py"
    test.write_text(f"""
import json, os, pathlib
import importlib
def test_notebook(monkeypatch):
    import matplotlib
    matplotlib.use("agg")
    monkeypatch.chdir({str(ROOT / "nbs")!r})
    names = vars(importlib.import_module("crypto_lstm.{module}"))  # not a copy: cells put other functions in the place of the module's
    for cell in json.loads(pathlib.Path({str(path)!r}).read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and not any(word in text for word in ("#| export", "#|export", "#| default_exp", "#| gpu")):
            exec(compile(text, "cell", "exec"), names)
""")
    return test


def _forked(run: Any, log: Path) -> int:
    """The process in which `run` runs, with its own group and its words in a file."""
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
    shutil.copytree(PACKAGE, place / "crypto_lstm")  # with what Python compiled of it
    if mutant:
        for compiled in (place / "crypto_lstm").glob(f"__pycache__/{mutant.module}.*"):
            compiled.unlink()
        (place / "crypto_lstm" / f"{mutant.module}.py").write_text(mutant.source, encoding="utf-8")
    sys.path[:0] = [str(place), str(ROOT / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), str(ROOT / "tests")])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.chdir(ROOT)


def _pytest(tests: list[str], place: Path, plugins: list[Any], *more: str) -> int:
    import pytest

    skip = " and ".join(f"not {word}" for word in SLOW)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most of the time of a quick test was theirs
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
    """For each file of tests its digest and what its tests reach, two at a time; what is known is not measured again."""
    waiting = [ROOT / "tests" / f"{name}.py" for name in reversed(TESTS)]
    waiting += [_notebook_test(MODULES[name], name, place) for name in names if MODULES[name]]
    running: dict[int, tuple[Path, Path]] = {}
    while waiting or running:
        while waiting and len(running) < 2:
            test = waiting.pop(0)
            if known.get(test.name, {}).get("digest") == _digest(test):
                yield test.name, known[test.name]
                continue
            work = Path(tempfile.mkdtemp(dir=place))

            def run(test: Path = test, work: Path = work) -> int:
                _package(work)
                files = {str(work / "crypto_lstm" / f"{name}.py"): name for name in names}
                return _pytest([str(test)], work, [_Reach(work / "reach.jsonl", files)])

            running[_forked(run, work / "log")] = test, work
        if running:
            child, _ = os.wait()
            test, work = running.pop(child)
            said = (work / "log").read_text(errors="replace").strip().splitlines()[-1:]
            print(f"reach of {test.name}: {said}", file=sys.stderr, flush=True)
            yield test.name, {"digest": _digest(test), "tests": _reached(work / "reach.jsonl")}


def _reached(out: Path) -> list[Reached]:
    """What a file's tests reached, and their children."""
    found: dict[str, Reached] = {}
    for line in out.read_text().splitlines() if out.exists() else []:
        told = json.loads(line)
        entry = found.setdefault(told["test"], {"test": told["test"], "seconds": None, "setup": 0.0, "runs": [], "raises": []})
        if told["seconds"] is not None:
            entry |= {"seconds": told["seconds"], "setup": told["setup"]}
        for how in ("runs", "raises"):
            entry[how] = sorted({tuple(pair) for pair in [*entry[how], *told[how]]})
    return [entry for entry in found.values() if entry["seconds"] is not None]


def chosen(mutant: Mutant, reached: list[Reached]) -> list[str]:
    """The tests that can see a mutant: files with a cheap start first, in a file the quick tests first."""
    lines = range(mutant.line, mutant.end + 1)
    able = [t for t in reached if any(module == mutant.module and line in lines for module, line in t[mutant.how])]
    start = {}
    for test in reached:
        file = test["test"].partition("::")[0]
        start[file] = start.get(file, 0.0) + test["setup"]
    of_sync = mutant.name.endswith(")") and _SYNC.search(mutant.name) is not None

    def price(test: Reached) -> tuple[bool, float, float]:
        return of_sync and "sync" not in test["test"], start[test["test"].partition("::")[0]] + test["seconds"], test["seconds"]

    able.sort(key=price)
    total, tests = 0.0, list[str]()
    for test in able:
        if total + test["seconds"] <= LONGEST_S or not tests:
            tests.append(test["test"])
            total += test["seconds"]
    return tests


# ---------------------------------------------------------------- the run


class _First:
    """A pytest plugin: writes down the first test that failed."""

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
            said = killer.read_text() if killer.exists() else "" if re.search(r"\d+ passed", log) else f"it ended: {log.strip()[-200:]}"
            yield mutant, said, time.monotonic() - start
            shutil.rmtree(work, ignore_errors=True)
        for child, (_, work, start) in running.items():
            if time.monotonic() - start > TIMEOUT_S and not (work / "killer").exists():
                (work / "killer").write_text("time-out")
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


def _node(test: str, place: Path) -> str:
    """A test's name as pytest takes it; those of notebooks lie in the temporary folder."""
    file, _, name = test.partition("::")
    return f"{place / Path(file).name if 'test_nb_' in file else ROOT / 'tests' / Path(file).name}::{name}"


def _digest(test: Path) -> str:
    """What the reach of a file of tests depends on: itself, its helpers, its notebook and the package."""
    helpers = [path for path in (ROOT / "tests").glob("*.py") if not path.name.startswith("test_")]
    numbers = [MODULES[module] for module in MODULES if test.name == f"test_nb_{module}.py"]
    notebooks = [path for number in numbers for path in (ROOT / "nbs").glob(f"{number}_*.ipynb")]
    files = [*sorted(PACKAGE.glob("[!_]*.py")), *sorted(helpers), *notebooks]
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*files, *([] if notebooks else [test])])).hexdigest()


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
    parser.add_argument("--list", action="store_true", help="name the mutants, try none")
    parser.add_argument("--survivors", action="store_true", help="try those that survived once more")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "crypto_lstm_mutants.json", help="answers so far")
    parser.add_argument("--fresh", action="store_true", help="forget the answers so far")
    arguments = parser.parse_args()
    names = [name for name in arguments.module or MODULES if (PACKAGE / f"{name}.py").exists()]
    found = [mutant for name in names for mutant in mutants(name)]
    if arguments.list:
        print(*(mutant.name for mutant in found), f"{len(found)} mutants", sep="\n")
        return 0
    return _run(found, arguments)


def _run(found: list[Mutant], arguments: argparse.Namespace) -> int:
    begin, everything = time.monotonic(), [name for name in MODULES if (PACKAGE / f"{name}.py").exists()]
    known = {} if arguments.fresh or not arguments.results.exists() else json.loads(arguments.results.read_text())
    sources = {mutant.name: hashlib.sha256(mutant.source.encode()).hexdigest() for mutant in found}
    kept = known.get("answers", {})
    answers = {name: answer for name, answer in kept.items() if answer["source"] == sources.get(name, answer["source"])}
    todo = [m for m in found if m.name not in answers or (arguments.survivors and not answers[m.name]["killer"])]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _import_once()
        measured = dict(reach(known.get("reach", {}), everything, place)) if todo else {}
        reached = [test for file in measured.values() for test in file["tests"]]
        print(f"{len(reached)} tests, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        jobs = [(mutant, chosen(mutant, reached)) for mutant in todo]
        for mutant, killer, seconds in try_all(jobs, place):
            answers[mutant.name] = {"killer": killer, "source": sources[mutant.name], "seconds": round(seconds, 1)}
            print(f"{'killed  ' if killer else 'SURVIVED'} {seconds:5.1f} s  {mutant.name}  {killer[-150:]}", flush=True)
            arguments.results.write_text(json.dumps({"reach": measured, "answers": answers}))
    return _verdict(found, answers, time.monotonic() - begin)


def _verdict(found: list[Mutant], answers: dict[str, Any], seconds: float) -> int:
    alive = [mutant.name for mutant in found if not answers[mutant.name]["killer"]]
    reasons = {name: ALLOWED.get(name.partition(": ")[2].partition(" #")[0]) for name in alive}
    bad = [name for name in alive if not reasons[name]]
    for name in alive:
        print(f"survived: {name}: {reasons[name] or 'NO TEST SEES IT'}")
    words = {mutant.name.partition(": ")[2].partition(" #")[0] for mutant in found if mutant.name not in alive}
    stale = [text for text in ALLOWED if text in words]
    for text in stale:
        print(f"on the list of survivors, but killed: {text}")
    killed, excused = len(found) - len(alive), len(alive) - len(bad)
    print(f"{len(found)} mutants, {killed} killed, {excused} survive for a reason, {len(bad)} SURVIVED; {seconds:.0f} s")
    return 1 if bad or stale else 0


if __name__ == "__main__":
    sys.exit(main())
