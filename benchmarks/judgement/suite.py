"""The whole judgement beside what it replaced and beside other implementations, in one run.

    python -m benchmarks judgement                       all; writes results/judgement.json
    python -m benchmarks judgement --only fair --seeds 20
    python -m benchmarks judgement --report              the tables of the stored results

Parts: `fair` (markets on which nothing can be learnt), `references` (other implementations), `time` (two million
decisions). Each part writes its results with the number of its seeds, and keeps those of the other parts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.judgement import fair, references, simulation
from benchmarks.paths import RESULTS

JUDGEMENT_RESULTS = RESULTS / "judgement.json"
SEEDS = 200
PARTS = ("references", "time", "fair")


def measure_part(part: str, options: argparse.Namespace) -> Any:
    """The results of one part, as plain values."""
    if part == "fair":
        markets = fair.judge_markets(options.seeds, options.workers)
        return {"seeds": options.seeds, "groups": fair.summarise_groups(markets)}
    if part == "time":
        return simulation.measure_cases(options.decisions)
    return references.compare_references()


def render_part(part: str, found: Any) -> str:
    """The tables of one part."""
    if part == "fair":
        return f"{found['seeds']} seeds\n{fair.render_groups(found['groups'])}"
    return simulation.render_cases(found) if part == "time" else references.render_references(found)


def load_results() -> dict[str, Any]:
    """The stored results; empty without a file."""
    if not JUDGEMENT_RESULTS.exists():
        return {}
    return json.loads(JUDGEMENT_RESULTS.read_text(encoding="utf-8"))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks judgement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="fair markets, each with four kinds of noise")
    parser.add_argument("--decisions", type=int, default=simulation.DECISIONS, help="of the part `time`")
    parser.add_argument("--workers", type=int, default=2, help="processes of the part `fair`")
    parser.add_argument("--report", action="store_true", help="show the stored results")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args(words)
    parts = [options.only] if options.only else PARTS
    for part in parts:
        found = None if options.report else measure_part(part, options)
        stored = load_results()  # now, since another process may have stored a part meanwhile
        if found is not None:
            stored[part] = found
            if not options.dry:
                JUDGEMENT_RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        if part in stored:
            print(render_part(part, stored[part]), end="\n\n", flush=True)
    return 0
