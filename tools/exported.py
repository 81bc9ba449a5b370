"""Check that the notebooks are clean, exported and short: a clean and an export of a copy change nothing."""

import filecmp
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import fold

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def list_sources(folder: Path) -> set[Path]:
    """Modules and notebooks below a folder, relative to it."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if path.suffix in (".py", ".ipynb") and ".ipynb_checkpoints" not in path.parts}


def find_differences(left: Path, right: Path) -> list[str]:
    """Modules and notebooks that are not the same below both folders, or missing in one."""
    ours, theirs = list_sources(left), list_sources(right)
    missing = ours ^ theirs
    changed = {name for name in ours & theirs if not filecmp.cmp(left / name, right / name, shallow=False)}
    return sorted(str(name) for name in missing | changed)


MACHINE = re.compile(r"/(?:tmp|home|root|Users|work)/\w|port\.cc|cuda_platform|\b0x[0-9a-f]{8,}")


def find_bad_outputs() -> list[str]:
    """Outputs of notebooks that show an error, or details of one machine: paths, addresses, TensorFlow's greeting."""
    faults = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            for output in cell.get("outputs", []):
                if fault := find_fault(output):
                    faults.append(f"{path.relative_to(ROOT)}, cell {number}: {fault}")
    return faults


def find_fault(output: dict) -> str:
    """The part of an output that a notebook must not hold; "" if there is none."""
    if output["output_type"] == "error":
        return "an error"
    data = {kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"}
    found = MACHINE.search(json.dumps(data) + "".join(output.get("text", [])))
    return found.group() if found else ""


MAX_KB = 300


def find_heavy_notebooks() -> list[str]:
    """Notebooks that are larger than a page may be, or hold the state of a widget, which a closed page can't show."""
    faults = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        kilobytes = len(text.encode()) / 1000
        if kilobytes > MAX_KB:
            faults.append(f"{path.relative_to(ROOT)}: {kilobytes:,.0f} KB, at most {MAX_KB}")
        if "widgets" in json.loads(text)["metadata"]:
            faults.append(f"{path.relative_to(ROOT)}: the state of a widget; delete it from the metadata")
    return faults


MAX_CELL_LINES = 100
EXPORT = re.compile(r"^#\|\s*exports?\b", re.MULTILINE)


def find_long_cells() -> list[str]:
    """Exported cells with more than `MAX_CELL_LINES` lines: such a cell holds more than one idea."""
    faults = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            source = "".join(cell["source"])
            lines = len(source.splitlines())
            if cell["cell_type"] == "code" and EXPORT.search(source) and lines > MAX_CELL_LINES:
                faults.append(f"{path.relative_to(ROOT)}, cell {number}: {lines} lines")
    return faults


def main() -> int:
    checks = {
        "outputs that a notebook must not hold; run it again or change it": find_bad_outputs,
        f"exported cells of more than {MAX_CELL_LINES} lines; move work into functions": find_long_cells,
        "notebooks that are too heavy": find_heavy_notebooks,
        "exported cells that are not folded, run `make notebooks`": lambda: fold.find_unfolded(ROOT),
    }
    for title, find in checks.items():
        faults = find()
        if faults:
            print(f"{title}:", *faults, sep="\n")
            return 1
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "crypto_lstm"
        copy.mkdir()
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        for name in ("nbs", "crypto_lstm"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        for name in ("settings.ini", "setup.py", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        for command in ("nbdev_clean", "nbdev_export"):
            subprocess.run([BIN / command], cwd=copy, check=True, capture_output=True)
        changed = []
        for name in ("nbs", "crypto_lstm"):
            changed += [f"{name}/{path}" for path in find_differences(ROOT / name, copy / name)]
    if changed:
        print(f"not clean or not exported, run `make notebooks`: {', '.join(changed)}")
        return 1
    print("all notebooks are clean and exported")
    return 0


if __name__ == "__main__":
    sys.exit(main())
