"""Check that the notebooks are clean and exported: cleaning and exporting a copy, twice, changes nothing."""

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def differences(left: Path, right: Path) -> list[str]:
    """Files below both folders that are not the same in both."""
    names = {p.relative_to(folder) for folder in (left, right) for p in folder.rglob("*") if p.is_file() and p.suffix in (".py", ".ipynb")}
    kept = [name for name in names if ".ipynb_checkpoints" not in name.parts]
    return sorted(
        str(name)
        for name in kept
        if not all((f / name).is_file() for f in (left, right)) or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "crypto_lstm"
        copy.mkdir()
        for name in ("nbs", "crypto_lstm"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("settings.ini", "setup.py", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        for number in (1, 2):
            for command in ("nbdev_clean", "nbdev_export"):
                subprocess.run([BIN / command], cwd=copy, check=True, capture_output=True)
            changed = [f"{name}/{path}" for name in ("nbs", "crypto_lstm") for path in differences(ROOT / name, copy / name)]
            if changed:
                print(f"round {number}: not clean or not exported, run make notebooks: {', '.join(changed)}")
                return 1
    print("all notebooks are clean and exported")
    return 0


if __name__ == "__main__":
    sys.exit(main())
