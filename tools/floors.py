"""Check that imports inside the package run down only, floor by floor, and that nobody imports what users must not get."""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "crypto_lstm"
FLOORS = [  # from the ground up; a module imports from the floors below its own
    {"display", "errors", "resources"},
    {"sealed"},
    {"lock"},
    {"files"},
    {"config", "commit"},
    {"stream"},
    {"hdf5"},
    {"gpu", "formats"},
    {"synthetic", "recurrent"},
    {"candles"},
    {"architecture", "features", "labels"},
    {"graph", "network"},
    {"decision", "foreign"},
    {"memory", "validation", "windows", "evaluation"},
    {"persistence"},
    {"budget", "trace", "monitor"},
    {"probe", "callbacks"},
    {"folder"},
    {"resume"},
    {"bundle", "doctor", "builder"},
    {"prediction"},
    {"training"},
    {"cli"},
]
DEVELOPMENT = {"fastcore", "nbdev", "execnb", "jupytext", "IPython"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports: names inside the package alone, others by their top name with a dot before."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inside = node.level > 0 or module.split(".")[0] == "crypto_lstm"
            found.add(module.removeprefix("crypto_lstm.") if inside else "." + module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("crypto_lstm.") if a.name.startswith("crypto_lstm.") else "." + a.name.split(".")[0] for a in node.names
            }
    return found


def main() -> int:
    floor_of = {name: number for number, names in enumerate(FLOORS) for name in names}
    faults = []
    for path in sorted(PACKAGE.glob("[!_]*.py")):
        if path.stem not in floor_of:
            faults.append(f"{path.name}: has no floor in tools/floors.py")
            continue
        for name in imports(path):
            if name in floor_of and floor_of[name] >= floor_of[path.stem]:
                faults.append(f"{path.name} (floor {floor_of[path.stem]}) imports {name} (floor {floor_of[name]})")
            if name.removeprefix(".") in DEVELOPMENT:
                faults.append(f"{path.name} imports {name[1:]}: its pins would reach every user")
    print("\n".join(faults) or f"{len(floor_of)} modules, all imports run down")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
