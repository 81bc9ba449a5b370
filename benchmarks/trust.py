"""What a saved model and a training survive: kills, failing disks, changed bytes, attacks, NaN; beside plain Keras, and what it costs.

python benchmarks/trust.py               measure everything, write trust_results.json (about an hour on two idle cores)
python benchmarks/trust.py --only kills  one part; its results replace those of this part in trust_results.json
python benchmarks/trust.py --quick       a smaller round of each promise; exit 1 where one is broken (`make test` runs it)
python benchmarks/trust.py --report      print what was measured last
"""

import argparse
import json
import logging
import os
import platform
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

RESULTS = HERE / "trust_results.json"
PARTS = ("kills", "faults", "mutations", "attacks", "resume", "nan", "speed")
FULL = {
    "kills": 400, "kills, Keras": 100, "share": 1.0, "limits": 40,
    "mutations": 5000, "mutations, no manifest": 50, "mutations, Keras": 150,
    "resume": (10, 5), "resume, Keras": (5, 2), "decisions": 280, "trainings": 40, "market": 80, "nan, Keras": (100, 8), "rounds": 15,
}  # fmt: skip
QUICK = {
    "kills": 40, "kills, Keras": 0, "share": 0.03, "limits": 3, "mutations": 250, "mutations, no manifest": 0, "mutations, Keras": 0,
    "resume": (1, 2), "resume, Keras": (0, 0), "decisions": 30, "trainings": 2, "market": 8, "nan, Keras": (0, 0), "rounds": 0,
}  # fmt: skip

Result = dict[str, Any]
Job = Callable[[int], Result]  # from a seed; runs in a process of its own, which has imported TensorFlow and not used it


def memory_disk() -> tempfile.TemporaryDirectory[str]:
    """A folder where a sync costs nothing, if there is one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)


# ---------------------------------------------------------------- the parts


def kill_job(kind: str, plain: bool, kills: int) -> Job:
    """SIGKILL at random moments of saves, on the disk, within 1.6 times the length of a save: its last steps are hit as well."""
    from support import crash_injection as faults
    from support import save_load_cases as saves

    def job(seed: int) -> Result:
        make = (saves.PLAIN if plain else saves.KINDS)[kind]
        build = saves.trained if kind == "training state" else saves.model
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as aside:
            with faults.Apart(lambda: lambda: _seconds(make(Path(aside))[0])) as measure:
                seconds = measure()
            with faults.Apart(lambda: make(Path(folder))[1]) as read:
                save = make(Path(folder))[0]
                report = faults.kill_rounds(save, read, kills=kills, seed=seed, longest_s=1.6 * seconds, prepare=build)
        return {
            "kills": report.kills,
            "inside": report.inside,
            "lost": len(report.lost),
            "torn": len(report.torn),
            "save_s": round(seconds, 3),
            "bad": len(report.lost) + len(report.torn),
            "seed": seed,
            "broken": [*report.lost, *report.torn][:5],
        }

    return job


def _seconds(save: Callable[[int], None]) -> float:
    times = []
    for number in range(1, 5):
        start = time.perf_counter()
        save(number)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def fault_job(kind: str, plain: bool, share: float, limits: int) -> Job:
    """Every Python file call fails in three ways and is followed and preceded by an exit; the system refuses at sizes."""
    import fcntl

    from support import crash_injection as faults
    from support import save_load_cases as saves

    def job(seed: int) -> Result:
        make = (saves.PLAIN if plain else saves.KINDS)[kind]
        more = [] if plain else [(fcntl, "flock"), *faults.places("exchange")]

        def sweep() -> faults.SweepReport:
            with memory_disk() as folder:
                return faults.sweep_faults(make, Path(folder), seed=seed, share=share, limits=limits, more=more, typed=not plain)

        with faults.Apart(lambda: sweep, timeout_s=3600) as apart:
            report = apart()
        counts = {name: getattr(report, name) for name in ("calls", "faults", "exits", "moments", "limits", "litter", "ends", "seed")}
        return {**counts, "tries": report.faults + report.exits + report.limits, "bad": len(report.broken), "broken": report.broken[:5]}

    return job


def mutation_job(kind: str, plain: bool, n: int) -> Job:
    from support import byte_mutation as mutations

    def job(seed: int) -> Result:
        subject = (mutations.PLAIN if plain else mutations.SUBJECTS)[kind]
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


def attack_job(name: str) -> Job:
    from support import attacks

    def job(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            report = getattr(attacks, name)(Path(folder))
        return {"done": report.done, "bad": len(report.wrong), "broken": report.wrong[:5], "seed": None}

    return job


def resume_job(plain: bool, runs: int, kills: int) -> Job:
    from support import kill_and_resume as resuming

    def job(seed: int) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            found = list((resuming.plain_runs if plain else resuming.killed_runs)(runs, kills, seed, Path(folder)))
        killed = sum(run["killed"] if plain else len(run["killed"]) for run in found)
        bad = [str(run) for run in found if not run["equal"]]
        return {"runs": runs, "killed": killed, "equal": runs - len(bad), "bad": len(bad), "broken": bad[:5], "seed": seed}

    return job


def nan_job(part: str, n: int) -> Job:
    from support import nan_injection as injections

    def job(seed: int) -> Result:
        if part == "decisions":
            counts = injections.decisions(dict.fromkeys(injections.DECIDING, n), seed)
        elif part == "market":
            counts = {"candles of a training": injections.market(n, seed)}
        elif part == "plain decisions":
            count, shorts = injections.plain_decisions(n, seed)
            return {"done": {"window": count.done}, "bad": len(count.wrong), "short": shorts, "broken": count.wrong[:2], "seed": seed}
        else:
            counts = injections.trainings(dict.fromkeys(injections.TRAINING, n), seed, plain=part == "plain trainings")
        wrong = [text for count in counts.values() for text in count.wrong]
        harmless = sum(count.harmless for count in counts.values())
        done = {kind: count.done for kind, count in counts.items()}
        return {"done": done, "harmless": harmless, "bad": len(wrong), "broken": wrong[:5], "seed": seed}

    return job


def speed_job(rounds: int) -> Job:
    """Saves and loads of the default network in turn with plain Keras, on the disk; ratios of medians, and the quartiles of the rounds."""

    def job(seed: int) -> Result:
        import trust_speed

        return {"rounds": rounds, "seed": None, "bad": 0, "broken": [], **trust_speed.measure(rounds)}

    return job


def jobs(part: str, counts: dict[str, Any]) -> Iterator[tuple[str, Job]]:
    """Name and job of everything in a part; the names of plain Keras' end with `, Keras`."""
    from support import byte_mutation as mutations
    from support import save_load_cases as saves

    if part == "kills":
        for kind in sorted(saves.KINDS, key=["saved_model", "bundle", "keras", "h5", "training state"].index):
            yield kind, kill_job(kind, False, counts["kills"])
        for kind in saves.PLAIN if counts["kills, Keras"] else ():
            yield f"{kind}, Keras", kill_job(kind, True, counts["kills, Keras"])
    elif part == "faults":
        for kind in saves.KINDS:
            yield (
                kind,
                fault_job(kind, False, counts["share"], counts["limits"]),
            )
        for kind in saves.PLAIN if counts["kills, Keras"] else ():
            yield f"{kind}, Keras", fault_job(kind, True, counts["share"], counts["limits"])
    elif part == "mutations":
        for kind in mutations.SUBJECTS:
            few = "manifest" in kind
            if few and not counts["mutations, no manifest"]:
                continue
            yield (
                kind,
                mutation_job(
                    kind, False, counts["mutations, no manifest"] if few else counts["mutations"] // (1 if kind != "training state" else 5)
                ),
            )
        for kind in mutations.PLAIN if counts["mutations, Keras"] else ():
            yield f"{kind}, Keras", mutation_job(kind, True, counts["mutations, Keras"])
    elif part == "attacks":
        yield "model files", attack_job("on_model_files")
        yield "folders", attack_job("on_folders")
    elif part == "resume":
        runs, kills = counts["resume"]
        for half in ("one", "two") if runs > 1 else ("one",):
            yield half, resume_job(False, runs, kills)
        if counts["resume, Keras"][0]:
            yield "fit, Keras", resume_job(True, *counts["resume, Keras"])
    elif part == "nan":
        yield "decisions", nan_job("decisions", counts["decisions"])
        yield "trainings", nan_job("trainings", counts["trainings"])
        yield "market", nan_job("market", counts["market"])
        if counts["nan, Keras"][0]:
            yield "decisions, Keras", nan_job("plain decisions", counts["nan, Keras"][0])
            yield "trainings, Keras", nan_job("plain trainings", counts["nan, Keras"][1])
    elif counts["rounds"]:
        yield "default network", speed_job(counts["rounds"])


# ---------------------------------------------------------------- running them


def run(named: list[tuple[str, str, Job]], at_once: int, seed: int) -> Iterator[tuple[str, str, Result]]:
    """Part, name and result of each job, as they end; each in a process that was forked from this one."""
    waiting, running = list(named), dict[Any, tuple[str, str, int, float]]()
    while waiting or running:
        while waiting and len(running) < at_once:
            part, name, job = waiting.pop(0)
            out, into = Pipe(duplex=False)
            if not (child := os.fork()):
                _in_child(job, f"{seed}-{part}-{name}", into)
            into.close()
            running[out] = part, name, child, time.monotonic()
        for out in wait(list(running)):
            part, name, child, start = running.pop(out)
            try:
                result = out.recv()
            except EOFError:
                result = {"error": "the process ended without an answer", "bad": 1, "broken": [], "seed": seed}
            out.close()
            used = os.wait4(child, 0)[2]  # with all children that it has waited for
            times = {"seconds": round(time.monotonic() - start, 1), "processor_s": round(used.ru_utime + used.ru_stime, 1)}
            yield part, name, {**result, **times}


def _in_child(job: Job, seed: str, into: Any) -> None:
    try:
        into.send(job(random.Random(seed).randrange(10**9)))
    except BaseException as error:
        import traceback

        into.send({"error": repr(error)[:2000], "bad": 1, "broken": [traceback.format_exc()[-2000:]], "seed": seed})
    finally:
        into.close()
        os._exit(0)


def machine() -> dict[str, Any]:
    import keras
    import tensorflow as tf

    versions = {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__}
    return {**versions, "system": platform.platform(), "cores": os.cpu_count()}


# ---------------------------------------------------------------- what it came to


def zero(bad: int, n: int, what: str) -> str:
    """`0 of 2,000 (below 0.15 % at 95 %)`."""
    bound = f" (below {300 / n:.2g} % at 95 %)" if n and not bad else ""
    return f"{bad:,} of {n:,} {what}{bound}"


def _split(results: dict[str, Result]) -> tuple[dict[str, Result], dict[str, Result]]:
    plain = {name.removesuffix(", Keras"): r for name, r in results.items() if name.endswith(", Keras")}
    return {name: r for name, r in results.items() if not name.endswith(", Keras")}, plain


def _lines_kills(name: str, r: Result) -> tuple[str, str]:
    told = zero(r["bad"], r["kills"], "lost or torn")
    if r["bad"]:
        told += f"; {r['lost']} lost, {r['torn']} torn = {r['bad'] / r['kills']:.0%} of kills"
    return told, f"{r['inside'] / r['kills']:.0%} inside a save of {r['save_s']:.2f} s"


def _lines_faults(name: str, r: Result) -> tuple[str, str]:
    swept = (
        f"{r['calls']} calls: {r['faults']} errors, {r['exits']} exits (as {r['moments']} different folders), {r['limits']} limits of size"
    )
    return zero(r["bad"], r["tries"], "broke it"), swept + (f"; {r['litter']} times a temporary file stayed" if r["litter"] else "")


def _lines_mutations(name: str, r: Result) -> tuple[str, str]:
    told = f"{r['refused']} refused, {r['same']} the same numbers, {r['other']} other numbers, {r['hung']} hung, {r['crashed']} crashed"
    return zero(r["bad"], r["done"], "accepted with other numbers, crashed or hung"), told


def _lines_attacks(name: str, r: Result) -> tuple[str, str]:
    return zero(r["bad"], sum(r["done"].values()), "did something"), ", ".join(f"{kind} {n}" for kind, n in r["done"].items())


def _lines_resume(name: str, r: Result) -> tuple[str, str]:
    return f"{r['equal']} of {r['runs']} equal", f"{r['killed']} kills"


def _lines_nan(name: str, r: Result) -> tuple[str, str]:
    told = ", ".join(f"{kind} {n}" for kind, n in r["done"].items())
    extra = [f"{r['harmless']} without effect"] if r.get("harmless") else [f"{r['short']} were SHORT"] if "short" in r else []
    what = "got a decision" if "decisions" in name else "were kept"
    return zero(r["bad"], sum(r["done"].values()), what), "; ".join([told, *extra])


def _lines_speed(name: str, r: Result) -> tuple[str, str]:
    told = [f"{kind} save {_ratio(v['save'])}, load {_ratio(v['load'])}" for kind, v in r["ratios"].items()]
    return "; ".join(told), f"{r['rounds']} rounds in turn"


def _ratio(v: dict[str, float]) -> str:
    return f"{v['ratio']:.2f} x ({v['low']:.2f} to {v['high']:.2f}; {v['ours_ms']:.0f} ms against {v['keras_ms']:.0f})"


LINES = {
    "kills": _lines_kills, "faults": _lines_faults, "mutations": _lines_mutations, "attacks": _lines_attacks,
    "resume": _lines_resume, "nan": _lines_nan, "speed": _lines_speed,
}  # fmt: skip
TITLES = {
    "kills": "SIGKILL at random moments of a save: lost or torn",
    "faults": "each file call x {ENOSPC, EIO, short write, exit before, exit after}, and limits of size: old generation unreadable",
    "mutations": "changed bytes: accepted with other numbers, crashed, hung",
    "attacks": "stand-ins for published attacks: code run, files opened elsewhere, sockets",
    "resume": "trainings killed and gone on with: weights, optimizer, history, epochs equal by sha256",
    "nan": "NaN or infinity anywhere: a decision, or kept as best",
    "speed": "durable save and verified load, against plain Keras' save + fsync and load: ratio of medians (quartiles of the rounds)",
}
SWEPT = (
    "faults: os.* and Python's files fail call by call; exits are copies of the folder at that moment; what TensorFlow and HDF5\n"
    "write without Python is cut short by RLIMIT_FSIZE at random sizes. On a memory disk, as the mutations; kills: on the disk."
)


def fell_short(part: str, results: dict[str, Result], full: bool) -> list[str]:
    """What the goals say and the results don't."""
    ours, _ = _split(results)
    found = [
        f"{part}, {name}: {r.get('error') or r['bad']} {' | '.join(r['broken'])[:600]}"
        for name, r in ours.items()
        if r["bad"] or "error" in r
    ]
    done = [r for r in ours.values() if "error" not in r]
    if part == "kills":
        found += [
            f"kills, {n}: {r['inside'] / r['kills']:.0%} inside, 30 % wanted"
            for n, r in ours.items()
            if "error" not in r and r["inside"] < 0.3 * r["kills"]
        ]
    if part == "attacks" and sum(sum(r["done"].values()) for r in done) < 60:
        found.append("attacks: fewer than 60")
    if part == "speed":
        for r in done:
            found += [
                f"speed, {kind}: {what} takes {v[what]['ratio']:.2f} x, at most {goal} x wanted"
                for kind, v in r["ratios"].items()
                for what, goal in (("save", 2.0), ("load", 1.5))
                if v[what]["ratio"] > goal
            ]
    wanted = {"kills": ("kills", 2000), "mutations": ("done", 20_000), "resume": ("runs", 20)}
    if full and part in wanted:
        key, goal = wanted[part]
        if (n := sum(r[key] for r in done)) < goal:
            found.append(f"{part}: {n:,} of {goal:,}")
    if full and part == "nan" and (n := sum(sum(r["done"].values()) for r in done)) < 2000:
        found.append(f"nan: {n:,} of 2,000")
    return found


def report(parts: dict[str, Any], full: bool) -> list[str]:
    """Print every figure; what fell short."""
    short = []
    for r in parts.get("kills", {}).get("results", {}).values():  # older results lack it
        r.setdefault("bad", r.get("lost", 0) + r.get("torn", 0))
    for part in (p for p in PARTS if p in parts):
        about, results = parts[part], parts[part]["results"]
        made = f"seed {about['seed']}, {about['date']}, {about['seconds']:.0f} s on {about['machine']['cores']} cores"
        print(f"\n{TITLES[part]}\n  {made}, {about.get('scale', 1):g} of the full counts")
        for side, group in zip(("", "plain Keras, "), _split(results), strict=True):
            for name, r in group.items():
                told = (r["error"][:200], "") if "error" in r else LINES[part](name, r)
                print(f"  {side + name:24} {told[0]}\n  {'':24} {told[1]}, {r['processor_s']:.0f} s of processor, seed {r['seed']}")
            if side == "" and part in ("kills", "mutations") and len(group) > 1 and not any("error" in r for r in group.values()):
                key = "kills" if part == "kills" else "done"
                bad = sum(r["bad"] for r in group.values())
                print(f"  {'all':24} {zero(bad, sum(r[key] for r in group.values()), 'in all')}")
        short += fell_short(part, results, full)
    missing = [part for part in PARTS if part not in parts] if full else []
    print(f"\n{SWEPT}")
    print("\nfell short:", *(short or ["nothing"]), sep="\n  ")
    if missing:
        print(f"not measured: {', '.join(missing)}")
    return short


def portable(found: Any) -> Any:
    """What is stored: no tracebacks, and no paths of the machine."""
    if isinstance(found, str):
        return re.sub(r"(?:/[\w.-]+)+/(?=[\w.-]+)", "", re.split(r"(?:\\+n)+Traceback|\nTraceback", found)[0])
    if isinstance(found, dict):
        return {name: portable(value) for name, value in found.items()}
    return [portable(value) for value in found] if isinstance(found, list) else found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; can be given more than once")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--seed", type=int, default=None, help="all randomness follows from it; default: a new one")
    parser.add_argument("--scale", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="processes at the same time")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if arguments.report:
        report(known, full=True)
        return 0
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(3), "big")
    print(f"seed {seed}: python benchmarks/trust.py{' --quick' * arguments.quick} --seed {seed}", flush=True)
    found = measure(arguments, seed, QUICK if arguments.quick else scaled(FULL, arguments.scale), {} if arguments.quick else known)
    short = report(found, full=not arguments.quick)
    return 1 if short else 0


def scaled(counts: dict[str, Any], scale: float) -> dict[str, Any]:
    def one(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(one(name, part) for part in value)
        return value if scale == 1 else min(1.0, value * scale) if name == "share" else max(1, round(value * scale))

    return {name: one(name, value) for name, value in counts.items()}


def measure(arguments: argparse.Namespace, seed: int, counts: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Run the parts, all jobs of a quick round together, and write what a full one found after each part."""
    from support import save_load_cases as saves

    logging.getLogger("crypto_lstm").setLevel(logging.CRITICAL)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("tensorflow").setLevel(logging.CRITICAL)
    saves.data()
    parts = [part for part in PARTS if not arguments.only or part in arguments.only]
    groups = [parts] if arguments.quick else [[part] for part in parts]
    for group in groups:
        named = [(part, name, job) for part in group for name, job in jobs(part, counts)]
        start, results = time.monotonic(), {part: dict[str, Result]() for part in group}
        order = [name for _, name, _ in named]
        for part, name, result in run(named, 1 if group == ["speed"] else arguments.at_once, seed):
            told = result.get("error", f"{result['processor_s']:.0f} s of processor")[:300]
            print(f"{time.monotonic() - start:6.0f} s  {part}, {name}: {told}", flush=True)
            results[part][name] = result
        about = {
            "scale": arguments.scale,
            "seed": seed,
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": round(time.monotonic() - start, 1),
            "machine": machine(),
        }
        for part in group:
            if results[part]:
                known[part] = {**about, "results": dict(sorted(results[part].items(), key=lambda item: order.index(item[0])))}
        if not arguments.quick:
            RESULTS.write_text(json.dumps(portable(known), indent=1) + "\n", encoding="utf-8")
    return known


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as own:  # what killed children leave behind goes with it
        tempfile.tempdir = own
        code = main()
    shutil.rmtree(own, ignore_errors=True)
    sys.exit(code)
