"""Every check of the project, two at a time; the last line says how many passed and failed. `make test` runs it."""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def checks() -> list[tuple[str, list[str]]]:
    """Name and command of each check; the long ones first, so that two cores end together."""
    python = sys.executable
    flags = ["--flags", "gpu"] if shutil.which("nvidia-smi") else []
    notebooks = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    return [
        ("wheel and sdist, in a new environment", [python, "tools/wheel.py"]),
        ("kills, faults, mutations, attacks, resumes, NaN", [python, "benchmarks/trust.py", "--quick"]),
        *(
            (str(path.relative_to(ROOT)), [python, "-m", "pytest", "-q", "-rs", str(path.relative_to(ROOT))])
            for path in sorted((ROOT / "tests").rglob("test_*.py"))
        ),
        *((str(path.relative_to(ROOT)), [f"{BIN}/nbdev_test", "--path", str(path.relative_to(ROOT)), "--n_workers", "1", *flags]) for path in notebooks),
        ("memory forecasts of four trainings (reports)", [python, "benchmarks/memory.py", "--quick"]),
        ("notebooks clean and exported", [python, "tools/exported.py"]),
        ("README in step with nbs/index.ipynb", [python, "tools/readme.py", "--check"]),
        ("imports run down only", [f"{BIN}/lint-imports"]),
        ("ruff", [f"{BIN}/ruff", "check", "."]),
        ("types", [f"{BIN}/mypy"]),
    ]


def run(name: str, command: list[str]) -> tuple[int, int, int]:
    """Run one check and tell about it; how many passed, failed and were skipped."""
    start = time.monotonic()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    output = (done.stdout + done.stderr).strip()
    lines = output.splitlines()
    summary = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|error)", line)), "")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", summary)}
    if "pytest" not in command:
        counts = {"passed": 1} if done.returncode == 0 else {"failed": 1}
    passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    failed = max(counts.get("failed", 0) + counts.get("error", 0), 0 if done.returncode == 0 and passed + skipped else 1)
    print(
        f"{'FAIL' if failed else 'ok  '} {time.monotonic() - start:5.0f} s  {name}"
        + (f" ({passed} passed, {skipped} skipped)" if passed + skipped > 1 else "")
    )
    reasons = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    print("\n".join(output.splitlines()[-60:] if failed else reasons), end="\n" if failed or reasons else "", flush=True)
    return passed, failed, skipped


def main() -> int:
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda check: run(*check), checks()))
    passed, failed, skipped = (sum(column) for column in zip(*results, strict=True))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
