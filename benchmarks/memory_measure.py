"""What the configurations of `memory_grid.json` really take: `memory.py` calls it and judges the forecasts by it."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from crypto_lstm.config import Config
from crypto_lstm.memory import Variant
from crypto_lstm.profiling.measure import measure_memory, probe_sizes

HERE = Path(__file__).parent
GRID = json.loads((HERE / "memory_grid.json").read_text(encoding="utf-8"))
REPEATS = 5


def settings(entry: dict[str, Any]) -> tuple[Config, Variant]:
    """Configuration and variant of an entry of the grid."""
    return Config.from_dict(entry["config"]), Variant(**entry["variant"])


def jobs(parts: Iterable[str]) -> list[tuple[str, dict[str, Any], int, bool]]:
    """Key, entry, batch size and whether tensors are counted, of all measurements that the parts need."""
    entries = {entry["name"]: entry for name in ("fit", "grid") for entry in GRID[name]}
    found = []
    for part in parts:
        if part == "probe":
            for entry in GRID["grid"]:
                found += [(f"{entry['name']}/probe/{size}", entry, size, False) for size in probe_sizes(entry["config"]["batch_size"])]
        elif part == "noise":
            found += [
                (f"{name}/repeat/{n}", entries[name], entries[name]["config"]["batch_size"], True)
                for name in GRID["noise"]
                for n in range(1, REPEATS)
            ]
        elif part == "quick":
            found += [(name, entries[name], entries[name]["config"]["batch_size"], True) for name in GRID["quick"]]
        else:
            found += [(entry["name"], entry, entry["config"]["batch_size"], True) for entry in GRID[part]]
    return found


def measure(parts: Iterable[str], results: dict[str, Any], path: Path | None, workers: int) -> None:
    """Measure what `results` lacks, and add it there and to the file."""

    def one(job: tuple[str, dict[str, Any], int, bool]) -> None:
        key, entry, size, tensors = job
        config, variant = settings(entry)
        results[key] = measure_memory(config, size, variant=variant, tensors=tensors, timeout_s=1800).as_dict()
        print(f"{key}: {results[key]['process_peak_mb']:,.0f} MB", flush=True)
        if path is not None:
            path.write_text(json.dumps(dict(sorted(results.items())), indent=0) + "\n", encoding="utf-8")

    missing = [job for job in jobs(parts) if job[0] not in results]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, missing))
