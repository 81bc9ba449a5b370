"""A JupyterLab for checks, and what they do with it: open a notebook, run its cells, change the theme."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build" / "browser"
TOKEN = "of-this-check-only"


class CheckError(Exception):
    """What a person would see is not as it should be."""


def require(condition: Any, fault: str) -> None:
    if not condition:
        raise CheckError(fault)


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


def change_theme(page: Page, theme: str) -> None:
    """Choose the theme "Dark" or "Light", and wait until it is drawn."""
    run_command(page, "apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    page.wait_for_function(f"() => document.body.dataset.jpThemeName === 'JupyterLab {theme}'", timeout=20_000)
    page.wait_for_timeout(500)


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


def watch_requests(page: Page) -> list[str]:
    """A list that gets the address of every request to a host."""
    found: list[str] = []

    def note(request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname != "127.0.0.1":
            found.append(request.url)

    page.on("request", note)
    return found
