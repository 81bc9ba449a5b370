"""Text from stored counts: the outcome of each job, and the missed goals."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.reliability.jobs import PARTS, Result

TITLES = {
    "kills": "SIGKILL at random moments of a save: lost or torn files",
    "faults": "each file call fails or ends the process, and file sizes are limited: the old save is unreadable",
    "mutations": "changed bytes: files accepted with other numbers, crashes, hangs",
    "attacks": "reproductions of published attacks: code run, files opened elsewhere, sockets",
    "resume": "trainings killed and resumed: weights, optimizer, history and epochs equal by SHA-256",
    "nan": "NaN or infinity anywhere: a decision made, or weights kept as best",
    "speed": "durable save and verified load over plain Keras' save + fsync and load: ratio of medians (quartiles)",
}
NOTES = (
    "faults: os.* and Python's file calls fail one by one with ENOSPC, EIO or a short write; exits are copies of the\n"
    "folder at that moment; files that TensorFlow and HDF5 write without Python are cut short at random sizes.\n"
    "Faults and mutations run on a memory disk, kills on the disk."
)
Lines = tuple[str, str]  # the outcome, and how it was tried


def count_failures(bad: int, n: int, failure: str) -> str:
    """For example `0 of 2,000 lost or torn (below 0.15 % at 95 %)`: the bound is the rule of three, 3 / n."""
    bound = f" (below {300 / n:.2g} % at 95 %)" if n and not bad else ""
    return f"{bad:,} of {n:,} {failure}{bound}"


def split_by_side(results: dict[str, Result]) -> tuple[dict[str, Result], dict[str, Result]]:
    """Results of this package, and those of plain Keras."""
    ours = {name: result for name, result in results.items() if not name.endswith(", Keras")}
    plain = {name.removesuffix(", Keras"): result for name, result in results.items() if name not in ours}
    return ours, plain


# ---------------------------------------------------------------- lines of a job


def _describe_kills(name: str, r: Result) -> Lines:
    outcome = count_failures(r["bad"], r["kills"], "lost or torn")
    if r["bad"]:
        outcome += f"; {r['lost']} lost, {r['torn']} torn = {r['bad'] / r['kills']:.0%} of kills"
    return outcome, f"{r['inside'] / r['kills']:.0%} inside a save of {r['save_s']:.2f} s"


def _describe_faults(name: str, r: Result) -> Lines:
    tried = f"{r['calls']} calls: {r['faults']} errors, {r['exits']} exits (as {r['moments']} different folders), "
    tried += f"{r['limits']} limits of size"
    if r["litter"]:
        tried += f"; a temporary file was left {r['litter']} times"
    return count_failures(r["bad"], r["tries"], "unreadable"), tried


def _describe_mutations(name: str, r: Result) -> Lines:
    tried = f"{r['refused']} refused, {r['same']} the same numbers, {r['other']} other numbers, "
    tried += f"{r['hung']} hung, {r['crashed']} crashed"
    return count_failures(r["bad"], r["done"], "accepted with other numbers, crashed or hung"), tried


def _describe_attacks(name: str, r: Result) -> Lines:
    tried = ", ".join(f"{kind} {n}" for kind, n in r["done"].items())
    return count_failures(r["bad"], sum(r["done"].values()), "succeeded"), tried


def _describe_resumes(name: str, r: Result) -> Lines:
    return f"{r['equal']} of {r['runs']} equal", f"{r['killed']} kills"


def _describe_nans(name: str, r: Result) -> Lines:
    tried = [", ".join(f"{kind} {n}" for kind, n in r["done"].items())]
    if r.get("harmless"):
        tried.append(f"{r['harmless']} without effect")
    elif "short" in r:
        tried.append(f"{r['short']} were SHORT")
    failure = "got a decision" if "decisions" in name else "were kept"
    return count_failures(r["bad"], sum(r["done"].values()), failure), "; ".join(tried)


def _describe_speed(name: str, r: Result) -> Lines:
    ratios = [f"{kind} save {_ratio(v['save'])}, load {_ratio(v['load'])}" for kind, v in r["ratios"].items()]
    return "; ".join(ratios), f"{r['rounds']} rounds in turn"


def _ratio(v: dict[str, float]) -> str:
    times = f"{v['ours_ms']:.0f} ms against {v['keras_ms']:.0f}"
    return f"{v['ratio']:.2f} x ({v['low']:.2f} to {v['high']:.2f}; {times})"


DESCRIPTIONS = {
    "kills": _describe_kills,
    "faults": _describe_faults,
    "mutations": _describe_mutations,
    "attacks": _describe_attacks,
    "resume": _describe_resumes,
    "nan": _describe_nans,
    "speed": _describe_speed,
}

# ---------------------------------------------------------------- goals

LONGEST = {"save": 2.0, "load": 1.5}  # times as long as plain Keras
WANTED = {
    "kills": ("kills", 2000),
    "mutations": ("done", 20_000),
    "resume": ("runs", 20),
}  # of a full run: count and goal


def find_missed_goals(part: str, results: dict[str, Result], full: bool) -> list[str]:
    """Goals that the results of a part miss; a full run must reach its counts as well."""
    ours, _ = split_by_side(results)
    missed = [_describe_failure(part, name, r) for name, r in ours.items() if r["bad"] or "error" in r]
    done = {name: r for name, r in ours.items() if "error" not in r}
    if part == "kills":
        missed += _find_early_kills(done)
    elif part == "speed":
        missed += _find_slow_saves(done)
    elif part == "attacks" and _count_tries(done) < 60:
        missed.append("attacks: expected at least 60")
    if full:
        missed += _find_low_counts(part, done)
    return missed


def _describe_failure(part: str, name: str, r: Result) -> str:
    return f"{part}, {name}: {r.get('error') or r['bad']} {' | '.join(r['broken'])[:600]}"


def _find_early_kills(done: dict[str, Result]) -> list[str]:
    missed = []
    for name, r in done.items():
        share = r["inside"] / r["kills"]
        if share < 0.3:
            missed.append(f"kills, {name}: {share:.0%} hit a save, expected at least 30 %")
    return missed


def _find_slow_saves(done: dict[str, Result]) -> list[str]:
    missed = []
    for r in done.values():
        for kind, ratios in r["ratios"].items():
            for act, longest in LONGEST.items():
                ratio = ratios[act]["ratio"]
                if ratio > longest:
                    missed.append(f"speed, {kind}: {act} takes {ratio:.2f} x, expected at most {longest} x")
    return missed


def _find_low_counts(part: str, done: dict[str, Result]) -> list[str]:
    if part == "nan":
        n, goal = _count_tries(done), 2000
    elif part in WANTED:
        key, goal = WANTED[part]
        n = sum(r[key] for r in done.values())
    else:
        return []
    return [f"{part}: {n:,} of {goal:,}"] if n < goal else []


def _count_tries(done: dict[str, Result]) -> int:
    return sum(sum(r["done"].values()) for r in done.values())


# ---------------------------------------------------------------- the whole report


def print_report(parts: dict[str, Any], full: bool) -> list[str]:
    """Print the results of all parts; returns the missed goals."""
    missed = []
    for part in PARTS:
        if part in parts:
            print_part(part, parts[part])
            missed += find_missed_goals(part, parts[part]["results"], full)
    print(f"\n{NOTES}")
    print("\nmissed goals:", *(missed or ["none"]), sep="\n  ")
    absent = [part for part in PARTS if part not in parts]
    if full and absent:
        print(f"not measured: {', '.join(absent)}")
    return missed


def print_part(part: str, about: dict[str, Any]) -> None:
    """Print the title, each job, and the sum of the jobs of this package."""
    made = f"seed {about['seed']}, {about['date']}, {about['seconds']:.0f} s on {about['machine']['cores']} cores"
    print(f"\n{TITLES[part]}\n  {made}, {about.get('scale', 1):g} of the full counts")
    ours, plain = split_by_side(about["results"])
    for name, result in ours.items():
        print_job(part, name, result)
    if part in ("kills", "mutations") and len(ours) > 1 and not any("error" in r for r in ours.values()):
        key = "kills" if part == "kills" else "done"
        bad, n = sum(_count_bad(r) for r in ours.values()), sum(r[key] for r in ours.values())
        print(f"  {'all':24} {count_failures(bad, n, 'in all')}")
    for name, result in plain.items():
        print_job(part, f"plain Keras, {name}", result)


def _count_bad(r: Result) -> int:
    """Failures of a job; old results of kills lack the sum."""
    return r["bad"] if "bad" in r else r.get("lost", 0) + r.get("torn", 0)


def print_job(part: str, name: str, result: Result) -> None:
    """Two lines: the outcome, and how it was tried."""
    if "error" in result:
        outcome, tried = result["error"][:200], ""
    else:
        outcome, tried = DESCRIPTIONS[part](name, {**result, "bad": _count_bad(result)})
    print(f"  {name:24} {outcome}")
    print(f"  {'':24} {tried}, {result['processor_s']:.0f} s of processor time, seed {result['seed']}")


def remove_paths(found: Any) -> Any:
    """The results as they are stored: without tracebacks, and without paths of the machine."""
    if isinstance(found, str):
        text = re.split(r"(?:\\+n)+Traceback|\nTraceback", found)[0]
        return re.sub(r"(?:/[\w.-]+)+/(?=[\w.-]+)", "", text)
    if isinstance(found, dict):
        return {name: remove_paths(value) for name, value in found.items()}
    if isinstance(found, list):
        return [remove_paths(value) for value in found]
    return found
