"""How long the parts that must start at once take, each in a new process, beside `import tensorflow`. Goal: 0.5 s."""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.workers import measure_in_turn, time_call
from crypto_lstm.utils.display import text_table

COMMAND = str(Path(sys.executable).parent / "crypto-lstm")
COMMANDS = {
    "import crypto_lstm": [sys.executable, "-c", "import crypto_lstm"],
    "import crypto_lstm.config": [sys.executable, "-c", "import crypto_lstm.config"],
    "import crypto_lstm.memory": [sys.executable, "-c", "import crypto_lstm.memory"],
    "crypto-lstm --help": [COMMAND, "--help"],
    "crypto-lstm estimate": [COMMAND, "estimate"],
    "python -c pass": [sys.executable, "-c", "pass"],
    "import tensorflow": [sys.executable, "-c", "import tensorflow"],
}


def time_process(command: list[str]) -> float:
    """Wall time of one process, from start to end, in seconds."""
    return time_call(lambda: subprocess.run(command, check=True, capture_output=True))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each is started, in turn (default: 5)")
    rounds = parser.parse_args(words).rounds
    works = {name: lambda command=command: time_process(command) for name, command in COMMANDS.items()}
    times = measure_in_turn(works, rounds, warm=0)
    slow = statistics.median(times["import tensorflow"])
    rows = []
    for name, values in times.items():
        middle = statistics.median(values)
        rows.append([name, f"{middle:.3f} s", f"{min(values):.3f} to {max(values):.3f}", f"{middle / slow:.3f}"])
    print(f"{platform.platform()}, Python {platform.python_version()}, {rounds} rounds in turn, medians")
    print(text_table(["start of", "median", "spread", "of import tensorflow"], rows))
