"""Build the documentation site in `_docs` from the notebooks and the exported modules. `make docs` runs it.

Nothing is executed and nothing is fetched: the outputs of the notebooks are shown as they are, and the pages of the
modules are made from signatures, docstrings and the comments beside the parameters. At the end the built pages are
checked: every public name has a section, every link leads somewhere, and no page loads a file from another host.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from docs_api import Module, list_modules, write_page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "docs"  # the prepared sources
BUILT = ROOT / "build" / "site"  # where Sphinx writes; myst-nb leaves a folder beside it
OUTPUT = ROOT / "_docs"  # the site
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp)\b", re.MULTILINE)
EXPORTED = re.compile(r"^#\|\s*exports?\b", re.MULTILINE)
ECHO = re.compile(r"^#\|\s*echo:\s*false", re.MULTILINE)
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "LICENSE": "license.md"}
WINGS = {  # folder of nbs -> title, in the reading order
    "": "Settings, network and files",
    "data": "Data",
    "training": "Training",
    "evaluation": "Evaluation",
    "backtest": "Backtest",
    "inference": "Inference",
    "profiling": "Profiling",
    "saving": "Saving",
    "storage": "Storage",
    "commands": "Commands",
    "utils": "Utilities",
}


# ---------------------------------------------------------------- notebooks


def list_notebooks() -> list[Path]:
    """Notebooks relative to nbs, in reading order; the index is the start page and is left out."""
    found = (path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts and path.name != "index.ipynb")


def prepare_notebook(path: Path, names: dict[str, str]) -> dict:
    """A notebook as the site shows it: hidden cells left out, exported ones folded, directives removed."""
    notebook = json.loads((ROOT / "nbs" / path).read_text(encoding="utf-8"))
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        cell.setdefault("id", f"cell-{number}")
        cell["metadata"] = {}
        if cell["cell_type"] == "markdown":
            source = link_names(move_links(source, Path("nbs") / path), names)
        elif cell["cell_type"] == "code":
            if HIDDEN.search(source):
                continue
            tags = ["hide-input"] if EXPORTED.search(source) else []
            cell["metadata"] = {"tags": [*tags, "remove-input"] if ECHO.search(source) else tags}
            source = "\n".join(line for line in source.split("\n") if not line.startswith("#|")).strip("\n")
            cell["outputs"] = [choose_output(output) for output in cell["outputs"]]
        cell["source"] = source
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    metadata = {"kernelspec": kernel, "language_info": language}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def choose_output(output: dict) -> dict:
    """An output without what needs a running kernel: widgets are shown as their picture or text."""
    if "data" in output:
        output["data"] = {kind: value for kind, value in output["data"].items() if "widget" not in kind}
    return output


def move_links(text: str, place: Path) -> str:
    """Relative links of a file of the repository, as seen from its page of the site."""

    def move(match: re.Match) -> str:
        target, _, anchor = match.group(2).partition("#")
        page = find_page((ROOT / place.parent / target).resolve())
        if page is None:
            return match.group(1).strip("[]") if not match.group(1).startswith("!") else ""
        here = find_page((ROOT / place).resolve()) or Path("index.md")
        steps = "../" * len(here.parent.parts)
        return f"{match.group(1)}({steps}{page.as_posix()}{'#' + anchor if anchor else ''})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?:|#|mailto:)([^)\s]+)\)", move, text)


def find_page(path: Path) -> Path | None:
    """The page of the site for a file or folder of the repository; None if it has none."""
    if not path.is_relative_to(ROOT):
        return None
    place = path.relative_to(ROOT)
    if place.as_posix() in PAGES:
        return Path(PAGES[place.as_posix()])
    if place.as_posix() in ("README.md", "nbs/index.ipynb"):
        return Path("index.md")
    if place.parts[:1] == ("nbs",) and path.suffix == ".ipynb" and path.exists():
        return Path("notebooks", *place.parts[1:])
    if place.parts[:1] == ("nbs",) and path.suffix == ".png" and path.exists():
        return Path("images", path.name)
    if place.parts[:1] == ("nbs",) and path.is_dir():
        return Path("notebooks", *place.parts[1:], "index.md")
    return Path("benchmarks.md") if place.as_posix() == "benchmarks/results/RESULTS.md" else None


def link_names(text: str, names: dict[str, str]) -> str:
    """Text with `name` linked to its section, outside of code blocks and of existing links."""
    parts = re.split(r"(^```.*?^```|^    .*?$)", text, flags=re.DOTALL | re.MULTILINE)
    name = re.compile(r"(?<![\[`{}\w])`([A-Za-z_][\w.]*)`(?![\]`])")
    for place in range(0, len(parts), 2):
        parts[place] = name.sub(lambda match: link(match, names), parts[place])
    return "".join(parts)


def link(match: re.Match, names: dict[str, str]) -> str:
    name = match.group(1).removeprefix("cl.")
    return f"{{py:obj}}`{match.group(1)} <{names[name]}>`" if name in names else match.group()


# ---------------------------------------------------------------- sources of all pages


def prepare() -> list[Module]:
    """Write the sources of all pages; returns the modules that have a page."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    modules = list_modules(ROOT / "crypto_lstm")
    names = find_unique_names(modules)
    notebooks = list_notebooks()
    for path in notebooks:
        write(Path("notebooks") / path, json.dumps(prepare_notebook(path, names)))
    for module in modules:
        notebook = find_page((ROOT / module.notebook).resolve()) if module.notebook else None
        text = write_page(module, notebook, lambda text: link_names(text, names))
        write(Path("api") / f"{module.short_name}.md", text)
    for file, page in PAGES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        text = f"# License\n\n```text\n{text}\n```\n" if file == "LICENSE" else move_links(text, Path(file))
        write(Path(page), text)
    results = ROOT / "benchmarks" / "results" / "RESULTS.md"
    write(Path("benchmarks.md"), re.sub(r"!?\[([^\]]*)\]\((?!http)[^)]*\)", r"\1", results.read_text(encoding="utf-8")))
    shutil.copytree(ROOT / "nbs" / "images", SOURCE / "images")
    write_indexes(notebooks, modules)
    shutil.copy(ROOT / "tools" / "docs_conf.py", SOURCE / "conf.py")
    (SOURCE / "_static").mkdir()
    shutil.copy(ROOT / "tools" / "docs.css", SOURCE / "_static" / "docs.css")
    return modules


def find_unique_names(modules: list[Module]) -> dict[str, str]:
    """Public names that only one module has, with the full name."""
    found: dict[str, list[str]] = {}
    for module in modules:
        for name in module.public:
            found.setdefault(name, []).append(f"{module.name}.{name}")
    return {name: places[0] for name, places in found.items() if len(places) == 1}


def write(place: Path, text: str) -> None:
    file = SOURCE / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def write_indexes(notebooks: list[Path], modules: list[Module]) -> None:
    """The start page with all tables of contents, and one page for each folder of notebooks."""
    trees = [make_tree("Tutorials", [f"notebooks/{path}" for path in notebooks if path.parts[0] == "tutorials"])]
    tutorials = [path.name for path in notebooks if path.parts[0] == "tutorials"]
    write(Path("notebooks/tutorials/index.md"), f"---\norphan: true\n---\n# Tutorials\n\n{make_list(tutorials)}")
    pages = []
    for wing in list_wings(notebooks):
        inside = [path for path in notebooks if path.parent == Path(wing)]
        page = Path("notebooks", wing, "index.md")
        title = WINGS.get(wing, wing.capitalize())
        write(page, f"# {title}\n\n{make_tree('', [path.name for path in inside], hidden=False)}")
        pages.append(page.as_posix())
    trees.append(make_tree("Source notebooks", pages))
    trees.append(make_tree("Modules", ["api/index.md"]))
    trees.append(make_tree("Project", ["benchmarks.md", *PAGES.values()]))
    lines = [f"- [`{module.name}`]({module.short_name}.md): {module.doc.splitlines()[0]}" for module in modules]
    tree = make_tree("", [f"{module.short_name}.md" for module in modules])
    write(Path("api/index.md"), "\n".join(["# All modules", "", tree, "", *lines, ""]))
    start = move_links((ROOT / "README.md").read_text(encoding="utf-8"), Path("README.md"))
    write(Path("index.md"), "\n\n".join([start, *trees]))


def list_wings(notebooks: list[Path]) -> list[str]:
    """Folders of notebooks other than the tutorials: the known ones in their order, then new ones."""
    there = {path.parent.as_posix().replace(".", "") for path in notebooks} - {"tutorials"}
    return [wing for wing in WINGS if wing in there] + sorted(there - WINGS.keys())


def make_tree(caption: str, pages: list[str], hidden: bool = True) -> str:
    options = [f":caption: {caption}"] if caption else []
    options += [":hidden:"] if hidden else [":maxdepth: 1"]
    return "\n".join(["```{toctree}", *options, "", *pages, "```"])


def make_list(pages: list[str]) -> str:
    return "\n".join(f"- [{page}]({page})" for page in pages)


# ---------------------------------------------------------------- checks of the built pages


class Page(HTMLParser):
    """Links, identifiers and loaded files of a page. Links within the output of a cell may be a part of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names, self.links, self.loaded = set[str](), list[str](), list[str]()
        self.depth = 0  # of blocks within the output of a cell
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.names |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "div" and (self.depth or "cell_output" in values.get("class", "")):
            self.depth += 1
        if tag in ("a", "area"):
            self.links += [values["href"]] if "href" in values and not self.depth else []
        elif tag == "link" and values.get("rel") not in ("canonical", "author", "help", "copyright"):
            self.loaded.append(values.get("href", ""))
        else:
            self.loaded += [values[name] for name in ("src", "data", "poster") if values.get(name)]
            self.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.split()]
        if values.get("style") and "url(" in values["style"]:
            self.loaded += re.findall(r"url\(['\"]?([^'\")]+)", values["style"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self.depth:
            self.depth -= 1

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)


def check_site(modules: list[Module]) -> list[str]:
    """Faults of the built site."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(OUTPUT.rglob("*.html"))}
    faults = [fault for path, page in pages.items() for fault in check_page(path, page, pages)]
    for style in OUTPUT.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        loaded = re.findall(r"url\(['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
        faults += [f"{style.name} loads {one}" for pair in loaded for one in pair if is_foreign(one)]
    for module in modules:
        names = pages[OUTPUT / "api" / f"{module.short_name}.html"].names
        missing = [name for name in module.public if f"{module.name}.{name}" not in names]
        faults += [f"{module.name}.{name} has no section" for name in missing]
    return faults


def check_page(path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    here = path.relative_to(OUTPUT)
    yield from (f"{here} loads {one} from another host" for one in page.loaded if is_foreign(one))
    for one in page.links:
        target = urlsplit(one)
        if target.scheme or one.startswith("//"):
            continue
        file = (path.parent / unquote(target.path)).resolve() if target.path else path
        file = file / "index.html" if file.is_dir() else file
        if not file.exists():
            yield f"{here}: the link {one} leads nowhere"
        elif target.fragment and file in pages and unquote(target.fragment) not in pages[file].names:
            yield f"{here}: the link {one} has no such anchor"


def is_foreign(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp", "ws", "wss")


def main() -> int:
    modules = prepare()
    shutil.rmtree(BUILT, ignore_errors=True)
    words = ["-q", "-j", "3", "-d", ROOT / "build" / "doctrees", "-b", "html", SOURCE, BUILT]
    built = subprocess.run([sys.executable, "-m", "sphinx", *map(str, words)], capture_output=True, text=True)
    notes = [line for line in built.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    if built.returncode:
        print(built.stdout, built.stderr, sep="\n")
        return 1
    shutil.rmtree(OUTPUT, ignore_errors=True)
    BUILT.rename(OUTPUT)
    faults = [*notes, *check_site(modules)]
    print(*faults[:100], sep="\n")
    names = sum(len(module.public) for module in modules)
    pages = len(list(OUTPUT.rglob("*.html")))
    print(f"{pages} pages in {OUTPUT.name}/, {names} names of {len(modules)} modules, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
