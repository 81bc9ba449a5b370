"""Fold the exported cells of the source notebooks, so that a reader sees narrative and results first.

    fold.py            write `jupyter: {"source_hidden": true}` into the metadata of each exported cell
    fold.py --check    report the cells whose metadata is not so

Tutorials and the index hold no library source, and are left alone. JupyterLab shows a folded cell as a bar that opens
with a click; `nbdev_clean` keeps the metadata (`allowed_cell_metadata_keys` in settings.ini).
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPORTED = re.compile(r"^#\|\s*exports?\b", re.MULTILINE)
FOLDED = {"source_hidden": True}


def list_notebooks(root: Path = ROOT) -> list[Path]:
    """The source notebooks."""
    found = sorted((root / "nbs").rglob("*.ipynb"))
    return [path for path in found if is_source(path.relative_to(root / "nbs"))]


def is_source(place: Path) -> bool:
    return place.name != "index.ipynb" and not {"tutorials", ".ipynb_checkpoints"} & set(place.parts)


def fold_notebook(notebook: dict) -> int:
    """Fold the exported cells in place, and unfold the others; returns how many cells were changed."""
    changed = 0
    for cell in notebook["cells"]:
        is_exported = cell["cell_type"] == "code" and bool(EXPORTED.search("".join(cell["source"])))
        wanted = {**cell["metadata"].get("jupyter", {}), **FOLDED} if is_exported else None
        if cell["metadata"].get("jupyter") != wanted:
            cell["metadata"].pop("jupyter", None)
            cell["metadata"] |= {"jupyter": wanted} if wanted else {}
            changed += 1
    return changed


def find_unfolded(root: Path = ROOT) -> list[str]:
    """Notebooks with cells that are not folded as they should be."""
    faults = []
    for path in list_notebooks(root):
        changed = fold_notebook(json.loads(path.read_text(encoding="utf-8")))
        if changed:
            faults.append(f"{path.relative_to(root)}: {changed} cells")
    return faults


def main(words: list[str]) -> int:
    if "--check" in words:
        faults = find_unfolded()
        print("not folded, run `make notebooks`:" if faults else "all exported cells are folded", *faults, sep="\n")
        return 1 if faults else 0
    for path in list_notebooks():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if fold_notebook(notebook):
            text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
            path.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
