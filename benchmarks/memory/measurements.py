"""Measure the memory of the configurations in `grid.json`, each trained in fresh processes."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from crypto_lstm.config import Config
from crypto_lstm.memory import Variant
from crypto_lstm.profiling.measure import measure_memory, probe_sizes

GRID = json.loads(Path(__file__).with_name("grid.json").read_text(encoding="utf-8"))
REPEATS = 5
Job = tuple[str, dict[str, Any], int, bool]  # key, entry, batch size, and whether tensors are counted


def parse_entry(entry: dict[str, Any]) -> tuple[Config, Variant]:
    """Configuration and variant of an entry of the grid."""
    return Config.from_dict(entry["config"]), Variant(**entry["variant"])


def list_jobs(part: str) -> list[Job]:
    """All measurements of a part: fit, grid, probe, noise, stock or quick."""
    entries = {entry["name"]: entry for entry in (*GRID["fit"], *GRID["grid"])}
    found: list[Job] = []
    if part == "probe":
        for entry in GRID["grid"]:
            for size in probe_sizes(entry["config"]["batch_size"]):
                found.append((f"{entry['name']}/probe/{size}", entry, size, False))
    elif part == "noise":
        for name in GRID["noise"]:
            for number in range(1, REPEATS):
                found.append((f"{name}/repeat/{number}", *_count_tensors(entries[name])))
    elif part == "stock":
        for entry in GRID["grid"]:
            stock = {**entry, "variant": {**entry["variant"], "keras_layers": True}}
            found.append((f"stock/{entry['name']}", *_count_tensors(stock)))
    elif part == "quick":
        found += [(name, *_count_tensors(entries[name])) for name in GRID["quick"]]
    else:
        found += [(entry["name"], *_count_tensors(entry)) for entry in GRID[part]]
    return found


def _count_tensors(entry: dict[str, Any]) -> tuple[dict[str, Any], int, bool]:
    """The end of a job that counts tensors, at the batch size of the entry."""
    return entry, entry["config"]["batch_size"], True


def measure(
    parts: Iterable[str], results: dict[str, Any], path: Path | None, workers: int, count: int | None = None
) -> None:
    """Measure the jobs whose results are missing, and add the results to the dictionary and to the file.

    With `count` only the first jobs of each part are measured.
    """

    def run(job: Job) -> None:
        key, entry, size, tensors = job
        config, variant = parse_entry(entry)
        results[key] = measure_memory(config, size, variant=variant, tensors=tensors, timeout_s=1800).as_dict()
        print(f"{key}: {results[key]['process_peak_mb']:,.0f} MB", flush=True)
        if path is not None:
            path.write_text(json.dumps(dict(sorted(results.items())), indent=0) + "\n", encoding="utf-8")

    jobs = [job for part in parts for job in list_jobs(part)[:count]]
    missing = [job for job in jobs if "base_mb" not in results.get(job[0], {})]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, missing))
