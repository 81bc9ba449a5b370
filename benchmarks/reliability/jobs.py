"""The jobs of each part: one job attacks one kind of saved file, or one training, and counts the outcomes."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed.workers import time_call

PARTS = ("kills", "faults", "mutations", "attacks", "resume", "nan", "speed")
KILL_ORDER = ("saved_model", "bundle", "keras", "h5", "training state")  # the longest first
COUNTS: dict[str, tuple[Any, Any]] = {  # of a full run; of a quick one
    "kills": (400, 5),
    "kills, saved_model": (400, 2),  # a save takes 20 times as long as the others
    "kills, Keras": (100, 0),
    "timed saves": (3, 1),
    "share": (1.0, 0.006),
    "limits": (40, 2),
    "mutations": (5000, 100),
    "attacks at every place": (True, False),
    "mutations, no manifest": (50, 0),
    "mutations, Keras": (150, 0),
    "resume": ((10, 5), (1, 2)),
    "pictures of a resume": (True, False),
    "resume, Keras": ((5, 2), (0, 0)),
    "decisions": (280, 20),
    "trainings": (40, 2),
    "market": (80, 8),
    "nan, Keras": ((100, 8), (0, 0)),
    "rounds": (15, 0),
}
FULL = {name: full for name, (full, _) in COUNTS.items()}
QUICK = {name: quick for name, (_, quick) in COUNTS.items()}

Result = dict[str, Any]
# A job gets a seed. It runs in a process of its own, which has imported TensorFlow and not used it.
Job = Callable[[int], Result]


def scale_counts(counts: dict[str, Any], scale: float) -> dict[str, Any]:
    """The counts of a full run, times the scale; shares stay at most 1, counts at least 1."""
    if scale == 1:
        return counts

    def scaled(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(scaled(name, part) for part in value)
        if name == "share":
            return min(1.0, value * scale)
        return max(1, round(value * scale))

    return {name: scaled(name, value) for name, value in counts.items()}


def memory_disk() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, in memory where that is possible: a sync costs nothing there."""
    memory = Path("/dev/shm")
    writable = memory.is_dir() and os.access(memory, os.W_OK)
    return tempfile.TemporaryDirectory(dir=memory if writable else None)


# ---------------------------------------------------------------- one job


def kill_job(kind: str, plain: bool, kills: int, timed: int) -> Job:
    """SIGKILL at random moments of saves, on the disk, within 1.6 times the duration of a save: to its last steps."""
    from support import crash_injection as faults
    from support import save_load_cases as saves

    make = (saves.PLAIN if plain else saves.KINDS)[kind]
    build = saves.trained if kind == "training state" else saves.model

    def job(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as aside:

            def start() -> Callable[..., Any]:
                read = make(Path(folder))[1]
                return lambda timing=False: time_save(make(Path(aside))[0], timed) if timing else read()

            with faults.Apart(start) as read:
                seconds = read(True)
                save, longest_s = make(Path(folder))[0], 1.6 * seconds
                report = faults.kill_rounds(save, read, kills=kills, seed=seed, longest_s=longest_s, prepare=build)
        broken = [*report.lost, *report.torn]
        return {
            "kills": report.kills,
            "inside": report.inside,
            "lost": len(report.lost),
            "torn": len(report.torn),
            "save_s": round(seconds, 3),
            "bad": len(broken),
            "seed": seed,
            "broken": broken[:5],
        }

    return job


def time_save(save: Callable[[int], None], timed: int) -> float:
    """Median seconds of a number of saves, after a first one that is not counted."""
    times = [time_call(lambda number=number: save(number)) for number in range(1, timed + 2)]
    return statistics.median(times[1:])


def fault_job(kind: str, plain: bool, share: float, limits: int) -> Job:
    """Each Python file call fails in three ways, and the process ends before and after it; file sizes are limited."""
    import fcntl

    from support import crash_injection as faults
    from support import save_load_cases as saves

    make = (saves.PLAIN if plain else saves.KINDS)[kind]
    more = [] if plain else [(fcntl, "flock"), *faults.places("exchange")]

    def job(seed: int) -> Result:
        def sweep() -> faults.SweepReport:
            options = {"seed": seed, "share": share, "limits": limits, "more": more, "typed": not plain}
            with memory_disk() as folder:
                return faults.sweep_faults(make, Path(folder), **options)

        with faults.Apart(lambda: sweep, timeout_s=3600) as apart:
            report = apart()
        names = ("calls", "faults", "exits", "moments", "limits", "litter", "ends", "seed")
        counts = {name: getattr(report, name) for name in names}
        tries = report.faults + report.exits + report.limits
        return {**counts, "tries": tries, "bad": len(report.broken), "broken": report.broken[:5]}

    return job


def mutation_job(kind: str, plain: bool, n: int) -> Job:
    """Bytes of a saved file are changed, and the file is loaded."""
    from support import byte_mutation as mutations

    subject = (mutations.PLAIN if plain else mutations.SUBJECTS)[kind]

    def job(seed: int) -> Result:
        with memory_disk() as folder:
            report = mutations.rounds(subject, n, Path(folder), seed, timeout_s=10 if plain else 100)
        hung = sum("no answer" in text for text in report.wrong)
        counts = {name: getattr(report, name) for name in ("done", "refused", "same", "other", "seed")}
        return {
            **counts,
            "hung": hung,
            "crashed": len(report.wrong) - report.other - hung,
            "bad": len(report.wrong),
            "broken": report.wrong[:5],
        }

    return job


def attack_job(kind: str, every_place: bool) -> Job:
    """Reproductions of published attacks on model files, at every place or at one that the seed chooses, or folders."""
    from support import attacks

    def job(seed: int) -> Result:
        dice = None if every_place else random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            if kind == "folders":
                report = attacks.on_folders(Path(folder))
            else:
                report = attacks.on_model_files(Path(folder), dice)
        return {"done": report.done, "bad": len(report.wrong), "broken": report.wrong[:5], "seed": seed}

    return job


def resume_job(plain: bool, runs: int, kills: int, pictures: bool = True) -> Job:
    """Trainings that are killed and resumed, compared with trainings that were not killed; with pictures or without."""
    from support import kill_and_resume as resuming
    from support import quick

    train = resuming.plain_runs if plain else resuming.killed_runs
    drawing = contextlib.nullcontext if pictures else quick.skip_pictures

    def job(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as folder, drawing():
            found = list(train(runs, kills, seed, Path(folder)))
        killed = sum(run["killed"] if plain else len(run["killed"]) for run in found)
        bad = [str(run) for run in found if not run["equal"]]
        equal = runs - len(bad)
        return {"runs": runs, "killed": killed, "equal": equal, "bad": len(bad), "broken": bad[:5], "seed": seed}

    return job


def nan_job(part: str, n: int) -> Job:
    """NaN or infinity in candles, files and trainings."""
    from support import nan_injection as injections

    def run(seed: int) -> dict[str, Any]:
        if part == "decisions":
            return injections.decisions(dict.fromkeys(injections.DECIDING, n), seed)
        if part == "market":
            return {"candles of a training": injections.market(n, seed)}
        kinds = dict.fromkeys(injections.TRAINING, n)
        return injections.trainings(kinds, seed, plain=part == "plain trainings")

    def job(seed: int) -> Result:
        counts = run(seed)
        wrong = [text for count in counts.values() for text in count.wrong]
        harmless = sum(count.harmless for count in counts.values())
        done = {kind: count.done for kind, count in counts.items()}
        return {"done": done, "harmless": harmless, "bad": len(wrong), "broken": wrong[:5], "seed": seed}

    def plain_job(seed: int) -> Result:
        count, shorts = injections.plain_decisions(n, seed)
        done = {"window": count.done}
        return {"done": done, "bad": len(count.wrong), "short": shorts, "broken": count.wrong[:2], "seed": seed}

    return plain_job if part == "plain decisions" else job


def speed_job(rounds: int) -> Job:
    """Saves and loads of the default network on the disk, in turn with plain Keras: ratios of medians."""

    def job(seed: int) -> Result:
        from benchmarks.reliability import save_load_speed

        return {"rounds": rounds, "seed": None, "bad": 0, "broken": [], **save_load_speed.measure(rounds)}

    return job


# ---------------------------------------------------------------- the jobs of a part

Named = Iterator[tuple[str, Job]]  # names of jobs on plain Keras end with `, Keras`


def list_jobs(part: str, counts: dict[str, Any]) -> Named:
    """Name and job of each job in a part."""
    return LISTS[part](counts)


def list_kills(counts: dict[str, Any]) -> Named:
    from support import save_load_cases as saves

    for kind in sorted(saves.KINDS, key=KILL_ORDER.index):
        kills = counts["kills, saved_model"] if kind == "saved_model" else counts["kills"]
        yield kind, kill_job(kind, False, kills, counts["timed saves"])
    for kind in saves.PLAIN if counts["kills, Keras"] else ():
        yield f"{kind}, Keras", kill_job(kind, True, counts["kills, Keras"], counts["timed saves"])


def list_faults(counts: dict[str, Any]) -> Named:
    from support import save_load_cases as saves

    for kind in saves.KINDS:
        yield kind, fault_job(kind, False, counts["share"], counts["limits"])
    for kind in saves.PLAIN if counts["kills, Keras"] else ():
        yield f"{kind}, Keras", fault_job(kind, True, counts["share"], counts["limits"])


def list_mutations(counts: dict[str, Any]) -> Named:
    from support import byte_mutation as mutations

    for kind in mutations.SUBJECTS:
        n = counts["mutations"]
        if "manifest" in kind:
            n = counts["mutations, no manifest"]
        elif kind == "training state":  # the slowest to load
            n //= 5
        if n:
            yield kind, mutation_job(kind, False, n)
    for kind in mutations.PLAIN if counts["mutations, Keras"] else ():
        yield f"{kind}, Keras", mutation_job(kind, True, counts["mutations, Keras"])


def list_attacks(counts: dict[str, Any]) -> Named:
    for kind in ("model files", "folders"):
        yield kind, attack_job(kind, bool(counts["attacks at every place"]))


def list_resumes(counts: dict[str, Any]) -> Named:
    runs, kills = counts["resume"]
    for half in ("one", "two") if runs > 1 else ("one",):
        yield half, resume_job(False, runs, kills, counts["pictures of a resume"])
    plain_runs, plain_kills = counts["resume, Keras"]
    if plain_runs:
        yield "fit, Keras", resume_job(True, plain_runs, plain_kills)


def list_nans(counts: dict[str, Any]) -> Named:
    for part in ("decisions", "trainings", "market"):
        yield part, nan_job(part, counts[part])
    decisions, trainings = counts["nan, Keras"]
    if decisions:
        yield "decisions, Keras", nan_job("plain decisions", decisions)
        yield "trainings, Keras", nan_job("plain trainings", trainings)


def list_speeds(counts: dict[str, Any]) -> Named:
    if counts["rounds"]:
        yield "default network", speed_job(counts["rounds"])


LISTS: dict[str, Callable[[dict[str, Any]], Named]] = {
    "kills": list_kills,
    "faults": list_faults,
    "mutations": list_mutations,
    "attacks": list_attacks,
    "resume": list_resumes,
    "nan": list_nans,
    "speed": list_speeds,
}
