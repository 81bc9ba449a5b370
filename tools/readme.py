"""Make README.md from nbs/index.ipynb: `readme.py` writes it, `readme.py --check` says whether it is in step.

Markdown cells go in as they are, code cells as Python, text outputs below them, pictures as files under nbs/images.
Cells that start with `#| hide` are left out; `#| echo: false` shows the output alone.
"""

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "nbs" / "images"


def render(notebook: dict) -> tuple[str, dict[Path, bytes]]:
    """The README's text, and the pictures that it shows."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\((?!https?:|#)([\w./-]+)\)", link, source))
        elif cell["cell_type"] == "code" and not source.startswith("#| hide"):
            if not source.startswith("#| echo: false"):
                parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts += show(output, pictures)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n", pictures


def link(match: re.Match) -> str:
    """A link from nbs/index.ipynb, as seen from the top folder."""
    target = match.group(1)
    return f"]({target[3:]})" if target.startswith("../") else f"](nbs/{target})"


def show(output: dict, pictures: dict[Path, bytes]) -> list[str]:
    """One output as Markdown."""
    data = output.get("data", {})
    if "image/png" in data:
        path = IMAGES / f"index-{len(pictures) + 1}.png"
        pictures[path] = base64.b64decode("".join(data["image/png"]))
        return [f"![{path.stem}]({path.relative_to(ROOT).as_posix()})"]
    text = "".join(output.get("text", data.get("text/plain", []))).strip("\n")
    return [f"```\n{text}\n```"] if text else []


def main() -> int:
    notebook = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
    text, pictures = render(notebook)
    files = {ROOT / "README.md": text.encode(), **pictures}
    stale = [path.relative_to(ROOT).as_posix() for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    if "--check" in sys.argv:
        print(
            f"not in step with nbs/index.ipynb, run make notebooks: {', '.join(stale)}"
            if stale
            else "README.md is in step with nbs/index.ipynb"
        )
        return 1 if stale else 0
    IMAGES.mkdir(exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
