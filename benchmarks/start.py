"""How long the parts that must start at once take, each in a new process, beside `import tensorflow`. Goal: 0.5 s.

.venv/bin/python benchmarks/start.py
"""

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from crypto_lstm.utils.display import text_table

COMMAND = str(Path(sys.executable).parent / "crypto-lstm")
WORDS = {
    "import crypto_lstm": [sys.executable, "-c", "import crypto_lstm"],
    "import crypto_lstm.config": [sys.executable, "-c", "import crypto_lstm.config"],
    "import crypto_lstm.memory": [sys.executable, "-c", "import crypto_lstm.memory"],
    "crypto-lstm --help": [COMMAND, "--help"],
    "crypto-lstm estimate": [COMMAND, "estimate"],
    "python -c pass": [sys.executable, "-c", "pass"],
    "import tensorflow": [sys.executable, "-c", "import tensorflow"],
}


def seconds(words: list[str]) -> float:
    """Wall-clock time of one process, from start to end."""
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    rounds = [{name: seconds(words) for name, words in WORDS.items()} for _ in range(5)]  # in turn, so that noise meets all
    slow = statistics.median(r["import tensorflow"] for r in rounds)
    rows = []
    for name in WORDS:
        times = sorted(r[name] for r in rounds)
        rows.append(
            [name, f"{statistics.median(times):.3f} s", f"{times[0]:.3f} to {times[-1]:.3f}", f"{statistics.median(times) / slow:.3f}"]
        )
    print(f"{platform.platform()}, Python {platform.python_version()}, 5 rounds in turn, medians")
    print(text_table(["start of", "median", "spread", "of import tensorflow"], rows))


if __name__ == "__main__":
    main()
