"""Try notebooks, site and report as a person does, in Chromium: `make browser`. Pictures go to build/browser.

JupyterLab runs on a temporary copy of the notebooks. Five notebooks run from top to bottom without an error. During a
training the live panel moves; the interrupt button ends it, and the same cell goes on, also after a restart of the
kernel. The buttons of a training in the background are heard. A chart of a million candles answers zooms, and the times
are reported. Shift+Tab shows the parameters with their meaning. Tables fit and can be read in the light and the dark
theme. The site searches from `file://` and asks no other host. The report of a run fits wide and narrow windows in both
themes.

    browser.py [WORD ...]    only the checks whose name contains one of the words
    browser.py chart         alone, for times that nothing else disturbs
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from browser_chart import check_chart
from browser_lab import (
    PICTURES,
    ROOT,
    WIDGET,
    CheckError,
    Lab,
    change_theme,
    find_errors,
    require,
    run_all,
    run_command,
    start_lab,
    watch_requests,
    write_notebook,
)
from browser_panel import check_background, check_panel
from playwright.sync_api import BrowserContext, Page, TimeoutError, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NOTEBOOKS = (
    "00_config.ipynb",
    "utils/02_display.ipynb",
    "data/03_synthetic.ipynb",
    "evaluation/14_album.ipynb",
    "tutorials/01_your_first_model.ipynb",
)


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
        change_theme(page, theme)
        found = page.evaluate(TABLES)
        page.screenshot(path=PICTURES / f"{name}-{theme.lower()}.png")
        for one in found:
            require(one["wide"] <= 1, f"{name}: a table is {one['wide']} pixels wider than its cell ({theme})")
            fault = f"{name}: the text of a table has a contrast of {one['contrast']:.1f} ({theme})"
            require(one["contrast"] >= 4.5, fault)
        count = len(found)
    return count


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


def build_site() -> None:
    """Build the site in the environment of `make docs`. Without that, the site that is there is taken."""
    python = ROOT / ".venv-docs" / "bin" / "python"
    if python.exists():
        built = subprocess.run([python, ROOT / "tools" / "docs.py"], capture_output=True, text=True)
        require(built.returncode == 0, f"the site can't be built: {built.stdout[-2000:]}{built.stderr[-2000:]}")


def check_site(lab: Lab, page: Page) -> str:
    """The site is read from the disk: search finds names and words, and nothing is asked from another host."""
    site = ROOT / "_docs"
    build_site()
    require((site / "index.html").exists(), "there is no site: run make docs")
    foreign = watch_requests(page)
    searches = {"read_candles": "api/data.candles", "triple-barrier": "labels", "DownloadError": "download"}
    for words, wanted in searches.items():
        page.goto(f"file://{site}/search.html?q={words}")
        with contextlib.suppress(TimeoutError):  # results come one by one
            page.wait_for_selector(f"#search-results li a[href*='{wanted}']", timeout=30_000)
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


CHECKS: dict[str, Callable[[Lab, Page], str]] = {
    "site": check_site,
    "notebooks": check_notebooks,
    "help": check_help,
    "panel": check_panel,
    "report": check_report,
    "background": check_background,
    "chart": check_chart,
}
LANES = (("panel", "report", "background"), ("notebooks", "help"), ("site",))  # side by side; `report` needs `panel`
ALONE = ("chart",)  # measures
_printing = threading.Lock()


def run_lane(lab: Lab, chromium: str, names: list[str]) -> int:
    """Run checks one after another in a browser of their own; returns how many failed."""
    if not names:
        return 0
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        failed = sum(not run_check(lab, browser.new_context(), name) for name in names)
        browser.close()
    return failed


def run_check(lab: Lab, context: BrowserContext, name: str) -> bool:
    """Run a check in a page of its own; returns whether it passed."""
    page, started, is_passed = context.new_page(), time.monotonic(), True
    page.set_viewport_size({"width": 1400, "height": 1000})
    try:
        result = f"ok    {CHECKS[name](lab, page)}"
    except Exception as error:  # a check that stops is a check that failed
        page.screenshot(path=PICTURES / f"{name}-failed.png")
        result, is_passed = f"FAIL  {name}: {error}", False
    context.close()
    with _printing:
        print(f"{time.monotonic() - started:5.0f} s  {result}", flush=True)
    return is_passed


def choose_checks(words: list[str]) -> list[str]:
    """Checks whose name contains one of the words; all without a word. Raises `CheckError` if there is none."""
    chosen = [name for name in CHECKS if not words or any(word in name for word in words)]
    if not chosen:
        raise CheckError(f"expected a part of {', '.join(CHECKS)}, got {' '.join(words)}")
    return chosen


def main(words: list[str]) -> int:
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        print("no Chromium found: install it (Debian, Ubuntu: apt-get install chromium), then run make browser again")
        return 1
    chosen = choose_checks(words)
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as name, start_lab(Path(name)) as lab, ThreadPoolExecutor(len(LANES)) as pool:
        lanes = [[one for one in lane if one in chosen] for lane in LANES]
        failed = sum(pool.map(lambda names: run_lane(lab, chromium, names), lanes))
        failed += run_lane(lab, chromium, [one for one in ALONE if one in chosen])
    print(f"{failed} failed; pictures are in {PICTURES.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
