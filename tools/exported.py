"""Check that the notebooks are clean and exported: cleaning and exporting a copy, twice, changes nothing."""

import filecmp
import json
import re
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


MACHINE = re.compile(r"/(?:tmp|home|root|Users|work)/\w|port\.cc|cuda_platform|\b0x[0-9a-f]{8,}")


def spoilt_outputs() -> list[str]:
    """Notebooks whose kept outputs show an error, or what belongs to one machine: paths, addresses, TensorFlow's greeting."""
    faults = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            for output in cell.get("outputs", []):
                shown = json.dumps({k: v for k, v in output.get("data", {}).items() if k != "image/png"}) + "".join(output.get("text", []))
                if output["output_type"] == "error" or (found := MACHINE.search(shown)):
                    faults.append(f"{path.name}, cell {number}: {'an error' if output['output_type'] == 'error' else found.group()}")
    return faults


def main() -> int:
    if faults := spoilt_outputs():
        print("outputs that do not belong into a notebook:", *faults, sep="\n")
        return 1
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
