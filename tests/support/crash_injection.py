"""Kills, failing system calls and changed bytes, for anything that saves numbered content and reads it back.

`save(n)` saves content number n. `read()` returns the number of the content that a reader finds, None if there is none,
and raises if the content is damaged. Kills and real exits happen in forked children. A process in which TensorFlow is
running must not fork: let a process that has only imported TensorFlow fork an `Apart` for the reader, and let `prepare`
build in the child what it saves.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import importlib
import io
import multiprocessing
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crypto_lstm.utils.errors import CryptoLSTMError

Save = Callable[[int], None]
Read = Callable[[], int | None]


STORAGE = ("crypto_lstm.storage.verified", "crypto_lstm.storage.checkpoints", "crypto_lstm.storage.atomic")


def places(*names: str) -> list[tuple[Any, str]]:
    """Find functions of the storage modules by name, with or without underscore, as (module, name).

    A function is listed once for each module that imports it, so every call can be replaced. Fails for unknown names.
    """
    found = []
    for module_name in STORAGE:
        module = importlib.import_module(module_name)
        for name in names:
            found += [(module, spelling) for spelling in (name, f"_{name}") if hasattr(module, spelling)]
    assert {spelling.lstrip("_") for _, spelling in found} == set(names), (names, found)
    return found


# ---------------------------------------------------------------- a separate process


class Died(Exception):
    """A process ended, or did not answer in time."""


class Failed(Exception):
    """A function raised an exception in another process; the text of it."""


class Apart:
    """Calls the function that `make()` returns in a forked process, which may use TensorFlow.

    Raises `Failed` for its errors, and `Died` if the process ends or hangs.
    """

    def __init__(self, make: Callable[[], Callable[..., Any]], timeout_s: float = 120.0) -> None:
        self.make, self.timeout_s, self.child = make, timeout_s, 0

    def __call__(self, *words: Any) -> Any:
        if not self.child:
            self._start()
        try:
            self.pipe.send(words)
            if not self.pipe.poll(self.timeout_s):
                raise Died(f"no answer in {self.timeout_s:g} s")
            good, answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise Died(f"ended with {self.close()}") from error
        except Died:
            self.close()
            raise
        if not good:
            raise Failed(answer)
        return answer

    def close(self) -> int:
        """End the process and return its exit code. The next call starts another."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        self.pipe.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        self.child = 0
        return code

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child:
            self.close()

    def _start(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        parent, self.child = os.getpid(), os.fork()
        if self.child:
            theirs.close()
            return
        try:
            self.pipe.close()
            act = self.make()
            while True:
                while not theirs.poll(1.0):
                    if os.getppid() != parent:
                        os._exit(0)
                words = theirs.recv()
                try:
                    answer = (True, act(*words))
                except Exception as error:
                    answer = (False, f"{error!r}\n{traceback.format_exc()[-1500:]}")
                theirs.send(answer)
        except EOFError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)


# ---------------------------------------------------------------- kills


@dataclass
class KillReport:
    """Results of kills at random moments.

    Lost: a reader found older content than that of the last save that had ended, or none. Torn: `read` raised.
    """

    seed: int
    kills: int = 0
    inside: int = 0  # kills between the start and the end of a save
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    @property
    def share_inside(self) -> float:
        return self.inside / self.kills if self.kills else 0.0

    def __str__(self) -> str:
        text = f"{self.kills} kills, {self.inside} inside a save ({self.share_inside:.0%}), seed {self.seed}: "
        text += f"{len(self.lost)} lost, {len(self.torn)} torn"
        return "\n".join([text, *self.lost[:3], *self.torn[:3]])


def kill_rounds(
    # or a command, whose last argument will be the first number; it prints "begin n" and "end n" for each save
    save: Save | Sequence[str],
    read: Read,
    *,
    kills: int,
    seed: int,
    longest_s: float = 0.1,  # until the kill, from the start of the second save (of the first save of a command)
    pause_s: float = 0.001,  # between two saves of a function
    prepare: Callable[[], object] = lambda: None,  # in the child, before its first save
) -> KillReport:
    """Let a child save repeatedly, kill it at a random moment after its first save, and read; repeat `kills` times."""
    chance, report, newest = random.Random(seed), KillReport(seed), 0
    for _ in range(kills):
        begun, ended = _one_kill(save, newest + 1, chance.uniform(0, longest_s), pause_s, prepare)
        report.kills += 1
        report.inside += begun > ended
        ended = max(ended, newest)
        try:
            found = read()
        except Exception as error:
            report.torn.append(f"kill {report.kills}, saves {ended} to {begun}: {error!r}")
            continue
        if (found or 0) not in (ended, begun):
            report.lost.append(f"kill {report.kills}: expected save {ended} or {begun}, got {found}")
        newest = max(found or 0, newest)
    return report


def _one_kill(
    save: Save | Sequence[str], first: int, delay_s: float, pause_s: float, prepare: Callable[[], object]
) -> tuple[int, int]:
    """Kill one child; returns the numbers of the last save that had started and of the last that had ended."""
    child, pipe, process = _start(save, first, pause_s, prepare)
    with open(pipe, "rb", buffering=0) as log:
        select.select([log], [], [], 120)  # until the save starts that will be killed
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        if process:
            process.wait()
        else:
            os.waitpid(child, 0)
        words = log.readall().decode().split()
    numbers = {"begin": first - 1, "end": first - 1}
    for word, number in zip(words[0::2], words[1::2], strict=False):
        numbers[word] = int(number)
    return numbers["begin"], numbers["end"]


def _start(
    save: Save | Sequence[str], first: int, pause_s: float, prepare: Callable[[], object]
) -> tuple[int, int, subprocess.Popen[bytes] | None]:
    if not callable(save):
        process = subprocess.Popen([*save, str(first)], stdout=subprocess.PIPE)
        assert process.stdout
        return process.pid, os.dup(process.stdout.fileno()), process
    out, into = os.pipe()
    if child := os.fork():
        os.close(into)
        return child, out, None
    try:
        prepare()
        save(first)  # complete, so that there is content to lose, and one-time work of the process is over
        os.write(into, b"begin %d\nend %d\nbegin %d\n" % (first, first, first + 1))
        for number in range(first + 1, first + 100_000):
            save(number)
            os.write(into, b"end %d\n" % number)
            time.sleep(pause_s)
            os.write(into, b"begin %d\n" % (number + 1))
    finally:
        os._exit(70)
    raise AssertionError


# ---------------------------------------------------------------- calls of the system that fail

FILE_CALLS = "open read write fsync close rename replace mkdir unlink rmdir scandir listdir ftruncate"
POINTS = {os: tuple(FILE_CALLS.split())}
ACTIONS = ("ENOSPC", "EIO", "short write", "exit before", "exit after")
_READS = ("os.read", "os.scandir", "os.listdir")  # they change nothing, so one kind of error is enough
_DIED = 99


class _File:
    """A Python file whose writes, flushes and closes can fail."""

    def __init__(self, file: Any, calls: _Calls) -> None:
        self._file, self._calls = file, calls

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._file, name)
        return self._calls.wrap(f"file.{name}", real) if name in ("write", "flush", "close") else real

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


class _Calls:
    """Counts calls, and makes one of them fail."""

    def __init__(self, number: int | None = None, action: str = "") -> None:
        self.number, self.action, self.names = number, action, []

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            if len(self.names) - 1 != self.number:
                return real(*args, **kwargs)
            return self._fail(name, real, args, kwargs)

        return call

    def _fail(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.action == "exit before":
            os._exit(_DIED)
        if self.action == "short write":
            if not name.endswith("write"):
                return real(*args, **kwargs)
            *first, data = args
            half = real(*first, data[: len(data) // 2])
            if name == "os.write":
                return half  # the caller must check the number of written bytes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.action == "exit after" or name.endswith("close"):
            result = real(*args, **kwargs)  # a close that fails has closed
            if self.action == "exit after":
                os._exit(_DIED)
            del result
        number = getattr(errno, self.action)
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def failing(calls: _Calls, more: Sequence[tuple[Any, str]] = ()) -> Iterator[None]:
    """Route every call of `POINTS`, of Python's files and of `more` through `calls`. No other thread may be running."""
    replaced = [(module, name) for module, names in POINTS.items() for name in names] + list(more)
    real = {(module, name): getattr(module, name) for module, name in replaced}
    real_open, exit_, read = io.open, os._exit, os.read
    try:
        for (module, name), function in real.items():
            setattr(module, name, calls.wrap(f"{module.__name__.rpartition('.')[2]}.{name}", function))
        opened = calls.wrap("open", lambda *args, **kwargs: _File(real_open(*args, **kwargs), calls))
        io.open = builtins.open = opened  # type: ignore[assignment]
        yield
    finally:
        for (module, name), function in real.items():
            setattr(module, name, function)
        io.open = builtins.open = real_open
        assert exit_ is os._exit and read is os.read


@dataclass(frozen=True)
class Outcome:
    """How a save with a fault ended: saved, refused (a `CryptoLSTMError`), died (the requested exit) or crashed."""

    end: str
    error: str = ""
    calls: tuple[str, ...] = ()


def run_with_fault(
    save: Callable[[], None],
    number: int | None = None,  # of the call that fails; None: only count the calls
    action: str = "",
    more: Sequence[tuple[Any, str]] = (),
) -> Outcome:
    """Run `save` in a child in which one call fails."""
    out, into = os.pipe()
    if not (child := os.fork()):
        write, leave, calls = os.write, os._exit, _Calls(number, action)
        try:
            with failing(calls, more):
                save()
            end, error = "saved", ""
        except CryptoLSTMError as fault:
            end, error = "refused", f"{type(fault).__name__}: {fault}"
        except BaseException as fault:
            end, error = "crashed", repr(fault)
        write(into, "\0".join([end, error, *calls.names]).encode())
        leave(0)
    os.close(into)
    with open(out, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == _DIED:
        return Outcome("died")
    if status or not text:
        return Outcome("crashed", f"exit {status}")
    end, error, *names = text.split("\0")
    return Outcome(end, error, tuple(names))


@dataclass
class FaultReport:
    """Results of each call of a save x each action."""

    calls: int = 0
    faults: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # promises that did not hold

    def __str__(self) -> str:
        text = f"{self.calls} calls, {self.faults} faults: {self.ends}, {len(self.broken)} broken promises"
        return "\n".join([text, *self.broken[:5]])


def try_all_faults(
    make: Callable[[Path], tuple[Save, Read]],  # `save` and `read` for a place
    folder: Path,  # an empty one; on a memory disk this is quick
    *,
    before: int = 1,  # number of the content that is there when the fault happens; 0 is none
    more: Sequence[tuple[Any, str]] = (),  # further functions that may fail: (module, name)
    actions: Sequence[str] = ACTIONS,
) -> FaultReport:
    """Check after each fault that a reader finds the old content, or the new one if the save succeeded.

    The next save must succeed as well.
    """
    report = FaultReport()
    _fresh(make, folder, before)
    names = run_with_fault(lambda: make(folder)[0](before + 1), more=more).calls
    report.calls = len(names)
    for action in actions:
        for number, name in enumerate(names):
            if not _is_applicable(action, name):
                continue
            save, read = _fresh(make, folder, before)
            listing = sorted(p.name for p in folder.rglob("*"))
            outcome = run_with_fault(lambda save=save: save(before + 1), number, action, more)
            report.faults += 1
            report.ends[outcome.end] = report.ends.get(outcome.end, 0) + 1
            if fault := _broken(outcome, name, before, save, read, folder, listing):
                report.broken.append(f"call {number} ({name}), {action}: {outcome.end} {outcome.error}: {fault}")
    return report


def _is_applicable(action: str, name: str) -> bool:
    """Whether an action makes sense for a call: only writes can be short, and reads only fail with EIO."""
    if action == "short write":
        return name.endswith("write")
    return action == "EIO" or name not in _READS


def _fresh(make: Callable[[Path], tuple[Save, Read]], folder: Path, before: int) -> tuple[Save, Read]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    save, read = make(folder)
    for number in range(1, before + 1):
        save(number)
    return save, read


def _broken(
    outcome: Outcome,
    failed: str,  # name of the call that failed
    before: int,
    save: Save,
    read: Read,
    folder: Path,
    listing: list[str],
    typed: bool = True,
) -> str | None:
    """The promise that did not hold, if any."""
    allowed = {"saved": (before + 1,), "refused": (before,), "died": (before, before + 1)}
    if not typed:
        return _broken_untyped(allowed.get(outcome.end, (before, before + 1)), read)
    if outcome.end not in allowed:
        return "the error is not one of the package's"
    try:
        found = read() or 0
        if found not in allowed[outcome.end]:
            return f"the reader found save {found}"
        if outcome.end == "refused":
            now = sorted(p.name for p in folder.rglob("*") if not _is_foreign_lock(p, failed))
            if now != listing:
                return f"the folder was changed: {set(now) ^ set(listing)}"
        return _broken_next_save(before + 2, save, read, folder)
    except Exception as error:
        return f"reading or saving again failed: {error!r}"


def _broken_untyped(allowed: tuple[int, ...], read: Read) -> str | None:
    """For the writer of another package: it is enough that a reader finds allowed content."""
    try:
        found = read() or 0
    except Exception as error:
        return f"nothing can be read: {error!r}"[:300]
    return None if found in allowed else f"the reader found save {found}"


def _is_foreign_lock(path: Path, failed: str) -> bool:
    """Whether a lock file remains because it could not be locked: it may be another writer's."""
    return failed == "fcntl.flock" and path.name.startswith(".lock-")


def _broken_next_save(number: int, save: Save, read: Read, folder: Path) -> str | None:
    save(number)
    found = read()
    if found != number:
        return f"the next save was not found, but {found}"
    left = [path.name for path in folder.rglob(".*")]
    return f"the next save left {left}" if left else None


# ---------------------------------------------------------------- the same in one process, which may use TensorFlow


@dataclass
class _Moment:
    """One state of the folder, and the number of exits that would have left it."""

    kept: Path
    when: str
    exits: int = 0


class _Copies(_Calls):
    """Passes all calls on, and copies the folder as an exit right before or right after each call would leave it."""

    def __init__(self, place: Path, store: Path) -> None:
        super().__init__()
        self.place, self.store, self.found, self._busy = place, store, dict[str, _Moment](), False

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return real(*args, **kwargs)
            self.names.append(name)
            if name in _READS:
                return real(*args, **kwargs)
            self._keep(f"before call {len(self.names) - 1} ({name})")
            try:
                return real(*args, **kwargs)
            finally:
                self._keep(f"after call {len(self.names) - 1} ({name})")

        return call

    def _keep(self, when: str) -> None:
        self._busy = True
        key = _hash_tree(self.place)
        if key not in self.found:
            self.found[key] = _Moment(self.store / str(len(self.found)), when)
            shutil.copytree(self.place, self.found[key].kept, symlinks=True)
        self.found[key].exits += 1
        self._busy = False


def _hash_tree(folder: Path) -> str:
    """A hash of all names, kinds and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            kind, data = "link", os.fsencode(path.readlink())
        elif path.is_dir():
            kind, data = "folder", b""
        else:
            kind, data = "file", path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{kind}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


@dataclass
class SweepReport(FaultReport):
    """Results of `sweep_faults`.

    An exit is a copy of the folder before or after a call. At a limit of size the system itself refuses to write.
    """

    seed: int = 0
    exits: int = 0
    moments: int = 0  # different states of the folder among the exits
    limits: int = 0
    litter: int = 0  # times that the next save did not remove a temporary file

    def __str__(self) -> str:
        exits = f"{self.exits} exits ({self.moments} different folders)"
        text = f"{self.calls} calls; {self.faults} errors, {exits}, {self.limits} limits of size: {self.ends}"
        return "\n".join([f"{text}, {len(self.broken)} broken promises, seed {self.seed}", *self.broken[:5]])


def sweep_faults(
    make: Callable[[Path], tuple[Save, Read]],
    folder: Path,  # an empty one; on a memory disk this is quick
    *,
    seed: int = 0,
    share: float = 1.0,  # of the failing calls and of the exits, chosen at random
    limits: int = 40,  # number of size limits: they also reach code that writes without Python
    more: Sequence[tuple[Any, str]] = (),
    typed: bool = True,  # False: any error is accepted, and only the content that a reader finds counts
) -> SweepReport:
    """Check as `try_all_faults`: each call x {ENOSPC, EIO, short write, exit before, exit after}, and file size limits.

    No process ends here. The folder is copied at the moment of the exit instead, so data in Python's buffers is lost.
    """
    place, old, chance, report = folder / "place", folder / "old", random.Random(seed), SweepReport(seed=seed)
    save, read = _fresh(make, place, 1)
    save(2)  # late imports have happened
    save, read = _fresh(make, place, 1)
    shutil.copytree(place, old, symlinks=True)
    copies = _Copies(place, folder / "copies")
    with failing(copies, more):
        save(2)
    largest = max(path.stat().st_size for path in place.rglob("*") if path.is_file())
    moments = list(copies.found.values())
    if share < 1:
        count = max(3, round(share * len(moments)))
        moments = chance.sample(moments, min(len(moments), count))
    report.calls, report.moments = len(copies.names), len(moments)
    report.exits = sum(moment.exits for moment in moments)

    def check(end: str, error: str, called: str, what: str) -> None:
        report.ends[end] = report.ends.get(end, 0) + 1
        fault = _broken(Outcome(end, error), called, 1, save, read, place, listing, typed)
        if end == "died" and fault and fault.startswith("the next save left"):
            report.litter += 1
        elif fault:
            report.broken.append(f"{what}: {end} {error[:200]}: {fault}")

    listing = _listing(old)
    for moment in moments:
        _put_back(moment.kept, place)
        check("died", "", "", f"exit {moment.when}")
    for action in ("ENOSPC", "EIO", "short write"):
        for number, name in enumerate(copies.names):
            if not _is_applicable(action, name) or chance.random() >= share:
                continue
            _put_back(old, place)
            calls = _Calls(number, action)
            end, error = _here(save, calls, more)
            report.faults += len(calls.names) > number
            check(end, error, name, f"call {number} ({name}), {action}")
    for limit in sorted({0, *(chance.randrange(largest) for _ in range(limits - 1))}):
        _put_back(old, place)
        with _no_larger_than(limit):
            end, error = _here(save, _Calls(), ())
        report.limits += 1
        check(end, error, "", f"no file larger than {limit} bytes")
    return report


def _here(save: Save, calls: _Calls, more: Sequence[tuple[Any, str]]) -> tuple[str, str]:
    try:
        with failing(calls, more):
            save(2)
    except CryptoLSTMError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "crashed", repr(error)
    return "saved", ""


@contextlib.contextmanager
def _no_larger_than(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # Python ignores SIGXFSZ: a write fails with EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _put_back(kept: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(kept, place, symlinks=True)


def _listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


# ---------------------------------------------------------------- changed bytes

MUTATIONS = (
    "bit",
    "truncate",
    "append",
    "splice",
    "zero page",
    "delete",
    "duplicate",
    "swap",
    "other save",
    "symbolic link",
    "hard link",
)


def mutate(folder: Path, other: Path, chance: random.Random, kind: str | None = None) -> str | None:
    """Change a saved folder in one way; returns a description, None if nothing changed. `other` is another save."""
    kind = kind or chance.choice(MUTATIONS)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = chance.choice(files)
    data = path.read_bytes()
    where = chance.randrange(max(len(data), 1))
    description = f"{kind} of {path.relative_to(folder)} at {where}"
    if kind in ("bit", "truncate", "append", "splice", "zero page"):
        return description if _rewrite(path, data, kind, where, chance) else None
    if kind == "delete":
        path.unlink()
    elif kind == "duplicate":
        shutil.copyfile(path, path.with_name(path.name + chance.choice([".bak", "2", " "])))
    elif kind == "swap":
        second = chance.choice(files)
        if second.read_bytes() == data:
            return None
        path.write_bytes(second.read_bytes())
        second.write_bytes(data)
    elif kind == "other save":
        theirs = (other / path.relative_to(folder)).read_bytes()
        if theirs == data:
            return None
        path.write_bytes(theirs)
    else:
        aside = folder.parent / f"aside-{chance.randrange(10**9)}"
        path.rename(aside)
        path.symlink_to(aside) if kind == "symbolic link" else path.hardlink_to(aside)
    return description


def _rewrite(path: Path, data: bytes, kind: str, where: int, chance: random.Random) -> bool:
    if kind == "bit" and data:
        new = data[:where] + bytes([data[where] ^ 1 << chance.randrange(8)]) + data[where + 1 :]
    elif kind == "truncate":
        new = data[:where]
    elif kind == "append":
        new = data + chance.randbytes(chance.randrange(1, 100))
    elif kind == "splice":
        length, source = chance.randrange(1, 64), chance.randrange(max(len(data), 1))
        new = data[:where] + data[source : source + length] + data[where + length :]
    else:
        new = data[:where] + bytes(min(4096, len(data) - where)) + data[where + 4096 :]
    path.write_bytes(new)
    return new != data
