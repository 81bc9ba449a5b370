"""Try notebooks, site and report as a person does, in Chromium: `make browser`. Pictures go to build/browser.

JupyterLab runs on a temporary copy of the notebooks. Five notebooks run from top to bottom without an error. During a
training the live panel moves; the interrupt button ends it, and the same cell goes on. Shift+Tab shows the parameters
with their meaning. Tables fit and can be read in the light and the dark theme. The site searches from `file://` and
asks no other host. The report of a run fits wide and narrow windows in both themes.

    browser.py [WORD ...]    only the checks whose name contains one of the words
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from playwright.sync_api import BrowserContext, Page, sync_playwright

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build" / "browser"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NOTEBOOKS = (
    "00_config.ipynb",
    "utils/02_display.ipynb",
    "data/03_synthetic.ipynb",
    "evaluation/14_album.ipynb",
    "tutorials/01_your_first_model.ipynb",
)
TOKEN = "of-this-check-only"
TRAINING = """
import crypto_lstm as cl

candles = cl.synthetic_candles(12_000, seed=1, edge=0.7, timeframe="15m")
config = cl.Config(
    timeframe="15m", sequence_length=24, future_window=48, long_tp_pct=2.0, long_sl_pct=1.5, short_tp_pct=2.0,
    short_sl_pct=1.5, lstm_units=(16,), dense_units=(8,), batch_size=32, epochs=20, test_split=0.3,
    early_stopping_patience=50,
)
run = cl.train(candles, config, "run", tensorboard=False, ledger="ledger.jsonl", save_every_batches=20)
print("interrupted:", run.interrupted, "resumed:", run.resumed_at)
"""


class CheckError(Exception):
    """What a person would see is not as it should be."""


def require(condition: Any, fault: str) -> None:
    if not condition:
        raise CheckError(fault)


# ---------------------------------------------------------------- JupyterLab


@dataclass
class Lab:
    """A JupyterLab on a copy of the notebooks."""

    url: str
    folder: Path

    def open(self, page: Page, name: str) -> None:
        """Open a notebook, and wait until its kernel is ready."""
        page.goto(f"{self.url}/lab/workspaces/check/tree/{name}?token={TOKEN}&reset")
        page.wait_for_function(f"() => window.jupyterapp && {WIDGET}?.context?.isReady", timeout=60_000)
        page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=60_000)


WIDGET = "window.jupyterapp.shell.currentWidget"
KERNEL = f"{WIDGET}.context.sessionContext.session?.kernel"
CELLS = f"""() => Array.from({WIDGET}.content.model.cells).filter((cell) => cell.type === 'code').map(
    (cell) => ({{count: cell.executionCount, source: cell.sharedModel.source, outputs: cell.outputs.toJSON()}}))"""


def run_command(page: Page, command: str, arguments: dict[str, Any] | None = None) -> None:
    """Run a command of JupyterLab, such as the one behind a button; does not wait for what it starts."""
    page.evaluate(
        "([command, values]) => { window.jupyterapp.commands.execute(command, values); }", [command, arguments or {}]
    )


def run_all(page: Page, timeout_s: float = 150) -> list[dict]:
    """Run all cells, and wait until the kernel has nothing left to do; returns the code cells."""
    run_command(page, "notebook:run-all-cells")
    return wait_for_cells(page, timeout_s)


def wait_for_cells(page: Page, timeout_s: float) -> list[dict]:
    """Wait until every code cell was executed and the kernel is idle."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        page.wait_for_timeout(400)
        cells = [cell for cell in page.evaluate(CELLS) if cell["source"].strip()]
        has_error = any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
        if has_error or all(cell["count"] for cell in cells) and page.evaluate(f"() => {KERNEL}.status") == "idle":
            return cells
    raise CheckError(f"the cells did not end within {timeout_s:.0f} s")


def find_errors(cells: list[dict]) -> list[str]:
    outputs = [output for cell in cells for output in cell["outputs"]]
    return [f"{one['ename']}: {one['evalue']}" for one in outputs if one["output_type"] == "error"]


def find_free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def start_lab(place: Path) -> Iterator[Lab]:
    """JupyterLab on a copy of nbs, with settings and state of its own."""
    folder, port = place / "nbs", find_free_port()
    shutil.copytree(ROOT / "nbs", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(place / "state"),
        **{f"JUPYTER_{name}_DIR": str(place / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"),
        "IPYTHONDIR": str(place / "ipython"),
    }
    news = place / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    words += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}"]
    words += [f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"]
    with (place / "lab.log").open("w") as log:
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=place)
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api/status?token={TOKEN}", server, place / "lab.log")
            yield Lab(f"http://127.0.0.1:{port}", folder)
        finally:
            server.terminate()
            server.wait(20)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise CheckError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


# ---------------------------------------------------------------- checks in JupyterLab


def check_notebooks(lab: Lab, page: Page) -> str:
    """Five notebooks run from top to bottom, and their tables fit in both themes."""
    tables = 0
    for name in NOTEBOOKS:
        lab.open(page, name)
        errors = find_errors(run_all(page))
        require(not errors, f"{name}: {errors}")
        tables += check_tables(page, Path(name).stem)
    require(tables >= 4, f"only {tables} tables were found in {len(NOTEBOOKS)} notebooks")
    return f"{len(NOTEBOOKS)} notebooks without an error, {tables} tables that fit and can be read"


TABLES = """() => Array.from(document.querySelectorAll('.jp-OutputArea-output table')).map((table) => {
  const box = table.closest('.jp-OutputArea-output'), cell = table.querySelector('td, th');
  if (!cell) return null;
  const number = (text) => text.match(/[\\d.]+/g).map(Number);
  let node = cell, paper = [0, 0, 0, 0];
  while (node && paper.length === 4 && paper[3] === 0) {
    paper = number(getComputedStyle(node).backgroundColor);
    node = node.parentElement;
  }
  const level = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const levels = [level(number(getComputedStyle(cell).color)), level(paper)].sort((a, b) => b - a);
  return {wide: table.offsetWidth - box.clientWidth, contrast: (levels[0] + 0.05) / (levels[1] + 0.05)};
}).filter((one) => one && one.contrast)"""


def check_tables(page: Page, name: str) -> int:
    """Tables of the open notebook are not wider than their cell, and can be read in both themes; their number."""
    count = 0
    for theme in ("Dark", "Light"):
        run_command(page, "apputils:change-theme", {"theme": f"JupyterLab {theme}"})
        page.wait_for_function(f"() => document.body.dataset.jpThemeName === 'JupyterLab {theme}'", timeout=20_000)
        page.wait_for_timeout(500)
        found = page.evaluate(TABLES)
        page.screenshot(path=PICTURES / f"{name}-{theme.lower()}.png")
        for one in found:
            require(one["wide"] <= 1, f"{name}: a table is {one['wide']} pixels wider than its cell ({theme})")
            fault = f"{name}: the text of a table has a contrast of {one['contrast']:.1f} ({theme})"
            require(one["contrast"] >= 4.5, fault)
        count = len(found)
    return count


PANEL = ".cl-panel"


def check_panel(lab: Lab, page: Page) -> str:
    """The panel moves, the interrupt button stops the training, and the same cell goes on to its end."""
    write_notebook(lab.folder / "panel.ipynb", [TRAINING])
    foreign = watch_requests(page)
    lab.open(page, "panel.ipynb")
    run_command(page, "notebook:run-all-cells")
    page.wait_for_selector(PANEL, timeout=90_000)
    rate = watch_panel(page)
    page.screenshot(path=PICTURES / "panel-moves.png")
    run_command(page, "notebook:interrupt-kernel")
    cells = wait_for_cells(page, 120)
    require(not find_errors(cells), f"an interrupted training ends with {find_errors(cells)}")
    require("interrupted: SIGINT" in read_text(cells), f"the training was not interrupted: {read_text(cells)[-500:]}")
    run_command(page, "notebook:run-all-cells")
    page.wait_for_function(f"() => {KERNEL}.status === 'busy'", timeout=20_000)
    cells = wait_for_cells(page, 150)
    text = read_text(cells)
    require(not find_errors(cells) and "interrupted: None" in text, f"the training did not go on: {text[-500:]}")
    require("resumed: epoch" in text, f"the second run did not resume: {text[-500:]}")
    kinds = {kind for cell in cells for output in cell["outputs"] for kind in output.get("data", {})}
    require({"image/png", "image/svg+xml", "text/html"} & kinds, f"the panel left no picture, only {sorted(kinds)}")
    page.wait_for_selector(".jp-OutputArea-output img", timeout=20_000)  # it takes the place of the panel
    require(page.locator(PANEL).count() == 0, "the panel is still there after the end of the training")
    page.screenshot(path=PICTURES / "panel-ends.png")
    require(not foreign, f"the notebook asks {foreign}")
    return f"the panel moved {rate:.1f} times a second; interrupted and resumed"


LEAST_UPDATES = 5


def watch_panel(page: Page) -> float:
    """Updates of the panel in a second. Fails if it does not move, or what it shows stays the same."""
    read = f"""() => {{
        const node = document.querySelector('{PANEL}');
        return [Number(node?.dataset.updates || 0), node?.innerText];
    }}"""
    begin, started = page.evaluate(read), time.monotonic()
    texts, now = {begin[1]}, begin
    while time.monotonic() - started < 30 and now[0] - begin[0] < 4 * LEAST_UPDATES:
        page.wait_for_timeout(200)
        now = page.evaluate(read)
        texts.add(now[1])
    moved = now[0] - begin[0]
    require(moved >= LEAST_UPDATES, f"the panel does not move: {moved} updates in {time.monotonic() - started:.0f} s")
    require(len(texts) >= LEAST_UPDATES, f"the panel shows the same text all the time: {texts}")
    return moved / (time.monotonic() - started)


def check_help(lab: Lab, page: Page) -> str:
    """Shift+Tab within a call shows its parameters with their meaning."""
    write_notebook(lab.folder / "help.ipynb", ["import crypto_lstm as cl\ncl.train, cl.Config", "cl.train("])
    lab.open(page, "help.ipynb")
    run_command(page, "notebook:run-cell-and-select-next")
    page.wait_for_function(f"() => {WIDGET}.content.model.cells.get(0).executionCount", timeout=60_000)
    cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(1)
    cell.click()
    page.keyboard.press("End")
    page.keyboard.press("Shift+Tab")
    tooltip = page.wait_for_selector(".jp-Tooltip", timeout=30_000)
    text = tooltip.inner_text()
    page.screenshot(path=PICTURES / "help.png")
    for words in ("output_dir", "an empty or a new folder", "save_every_batches", "save the state every N steps"):
        require(words in text, f"Shift+Tab does not show {words!r}: {text[:1500]}")
    return "Shift+Tab shows the parameters of train with their meaning"


def write_notebook(path: Path, sources: list[str]) -> None:
    cells = []
    for number, source in enumerate(sources):
        cell = {"cell_type": "code", "id": f"cell-{number}", "metadata": {}, "execution_count": None, "outputs": []}
        cells.append({**cell, "source": source.strip().splitlines(keepends=True)})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


def read_text(cells: list[dict]) -> str:
    """Text that the cells have printed."""
    parts = ["".join(output.get("text", "")) for cell in cells for output in cell["outputs"]]
    return "".join(parts)


# ---------------------------------------------------------------- checks of pages


def check_report(lab: Lab, page: Page) -> str:
    """The report of the run of the panel fits wide and narrow windows, in both themes."""
    report = lab.folder / "run" / "report.html"
    require(report.exists(), "the training of the panel left no report")
    foreign = watch_requests(page)
    for scheme in ("light", "dark"):
        for width in (1400, 800):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme)
            page.goto(f"file://{report}")
            name = f"report-{scheme}-{width}"
            page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
            wide = page.evaluate("() => document.documentElement.scrollWidth")
            require(wide <= width, f"{name}: the page is {wide} pixels wide")
            require(page.locator("svg").count() >= 7, f"{name}: {page.locator('svg').count()} pictures")
            paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
            require((paper == "rgb(255, 255, 255)") == (scheme == "light"), f"{name}: the page is {paper}")
    require(not foreign, f"the report asks {foreign}")
    return "the report fits 1400 and 800 pixels, light and dark"


def check_site(lab: Lab, page: Page) -> str:
    """The site is read from the disk: search finds names and words, and nothing is asked from another host."""
    site = ROOT / "_docs"
    require((site / "index.html").exists(), "there is no site: run make docs")
    foreign = watch_requests(page)
    searches = {"read_candles": "api/data.candles", "triple-barrier": "labels", "DownloadError": "download"}
    for words, wanted in searches.items():
        page.goto(f"file://{site}/search.html?q={words}")
        page.wait_for_selector("#search-results ul.search li a", timeout=30_000)
        found = [item.get_attribute("href") or "" for item in page.locator("#search-results li a").all()]
        require(any(wanted in link for link in found), f"the search for {words} finds {found[:10]}")
    page.screenshot(path=PICTURES / "site-search.png")
    pages = ["index.html", "api/training.trainer.html", "notebooks/data/08_labels.html"]
    pages.append("notebooks/evaluation/14_album.html")
    for scheme in ("light", "dark"):
        for width in (1400, 800):
            page.set_viewport_size({"width": width, "height": 1000})
            page.emulate_media(color_scheme=scheme)
            for place in pages:
                page.goto(f"file://{site}/{place}")
                wide = page.evaluate("() => document.documentElement.scrollWidth")
                require(wide <= width, f"{place} is {wide} pixels wide in a window of {width}")
                page.screenshot(path=PICTURES / f"site-{Path(place).stem}-{scheme}-{width}.png")
    require(not foreign, f"the site asks {foreign}")
    return "the site searches from the disk, fits, and asks no other host"


def watch_requests(page: Page) -> list[str]:
    """A list that gets the address of every request to a host."""
    found: list[str] = []

    def note(request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname != "127.0.0.1":
            found.append(request.url)

    page.on("request", note)
    return found


CHECKS: dict[str, Callable[[Lab, Page], str]] = {
    "site": check_site,
    "notebooks": check_notebooks,
    "help": check_help,
    "panel": check_panel,
    "report": check_report,
}


def run_checks(lab: Lab, context: BrowserContext, words: list[str]) -> int:
    """Run the checks, each in a page of its own; returns how many failed."""
    failed = 0
    for name, check in CHECKS.items():
        if words and not any(word in name for word in words):
            continue
        page, started = context.new_page(), time.monotonic()
        page.set_viewport_size({"width": 1400, "height": 1000})
        try:
            result = f"ok    {check(lab, page)}"
        except Exception as error:  # a check that stops is a check that failed
            page.screenshot(path=PICTURES / f"{name}-failed.png")
            result, failed = f"FAIL  {name}: {error}", failed + 1
        page.close()
        print(f"{time.monotonic() - started:5.0f} s  {result}", flush=True)
    return failed


def main(words: list[str]) -> int:
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        print("no Chromium found: install it (Debian, Ubuntu: apt-get install chromium), then run make browser again")
        return 1
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as name, start_lab(Path(name)) as lab, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        failed = run_checks(lab, browser.new_context(), words)
        browser.close()
    print(f"{failed} failed; pictures are in {PICTURES.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
