"""Make README.md from nbs/index.ipynb: `readme.py` writes it, `readme.py --check` reports whether it is up to date.

Markdown cells are copied. Code cells become Python blocks with their text outputs below; pictures become files in
nbs/images. A cell with `#| hide` is left out; `#| echo: false` shows the output alone; `#| alt: TEXT` is read to those
who don't see the picture. Directives are never shown.
"""

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "nbs" / "images"
DIRECTIVE = "#|"


def render_notebook(notebook: dict) -> tuple[str, dict[Path, bytes]]:
    """The text of the README, and the content of each picture in it."""
    parts: list[str] = []
    pictures: dict[Path, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!https?:|#)([\w./-]+)\)", move_link, source))
        elif cell["cell_type"] == "code":
            parts += render_code(source, cell["outputs"], pictures)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n", pictures


def render_code(source: str, outputs: list[dict], pictures: dict[Path, bytes]) -> list[str]:
    """The Markdown of a code cell and its outputs."""
    lines = source.splitlines()
    directives = {line.removeprefix(DIRECTIVE).strip() for line in lines if line.startswith(DIRECTIVE)}
    if "hide" in directives:
        return []
    parts = []
    if "echo: false" not in directives:
        code = "\n".join(line for line in lines if not line.startswith(DIRECTIVE))
        parts.append(f"```python\n{code}\n```")
    alt = next((line.removeprefix("alt:").strip() for line in directives if line.startswith("alt:")), "")
    for output in outputs:
        parts += render_output(output, pictures, alt)
    return parts


def render_output(output: dict, pictures: dict[Path, bytes], alt: str) -> list[str]:
    """The Markdown of one output; a picture is added to `pictures`."""
    data = output.get("data", {})
    if "image/png" in data:
        path = IMAGES / f"index-{len(pictures) + 1}.png"
        pictures[path] = base64.b64decode("".join(data["image/png"]))
        return [f"![{alt or path.stem}]({path.relative_to(ROOT).as_posix()})"]
    text = "".join(output.get("text", data.get("text/plain", []))).strip("\n")
    return [f"```\n{text}\n```"] if text else []


def move_link(match: re.Match) -> str:
    """A relative link of nbs/index.ipynb, as seen from the top folder."""
    target = match.group(1)
    if target.startswith("../"):
        return f"]({target[3:]})"
    return f"](nbs/{target})"


def check_files(files: dict[Path, bytes]) -> int:
    """Report files that differ from what the notebook gives; the exit code."""
    stale = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    if stale:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in stale)
        print(f"out of date with nbs/index.ipynb, run make notebooks: {names}")
        return 1
    print("README.md is up to date with nbs/index.ipynb")
    return 0


def main() -> int:
    notebook = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    text, pictures = render_notebook(notebook)
    files = {ROOT / "README.md": text.encode(), **pictures}
    if "--check" in sys.argv:
        return check_files(files)
    IMAGES.mkdir(exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
