"""Trainings in JupyterLab: the live panel moves, the interrupt and the stop buttons are heard, a restart goes on."""

from __future__ import annotations

import time

from browser_lab import (
    CELLS,
    KERNEL,
    PICTURES,
    WIDGET,
    CheckError,
    Lab,
    change_theme,
    find_errors,
    read_text,
    require,
    run_command,
    wait_for_cells,
    watch_requests,
    write_notebook,
)
from playwright.sync_api import Page, TimeoutError

SETTINGS = """
import crypto_lstm as cl

candles = cl.synthetic_candles(12_000, seed=1, edge=0.7, timeframe="15m")
config = cl.Config(
    timeframe="15m", sequence_length=24, future_window=48, long_tp_pct=2.0, long_sl_pct=1.5, short_tp_pct=2.0,
    short_sl_pct=1.5, lstm_units=(16,), dense_units=(8,), batch_size=32, epochs=20, test_split=0.3,
    early_stopping_patience=50,
)
"""
TRAINING = """
run = cl.train(candles, config, "run", tensorboard=False, ledger="ledger.jsonl", save_every_batches=20)
print("interrupted:", run.interrupted, "resumed:", run.resumed_at)
"""
BACKGROUND = """
training = cl.train(candles, config, "behind", tensorboard=False, ledger="ledger.jsonl", background=True)
"""
RESULT = """
run = training.result(120)
print("interrupted:", run.interrupted, "resumed:", run.resumed_at, "epochs:", run.epochs_finished)
"""
PANEL = ".cl-panel"
LEAST_UPDATES = 5


def check_panel(lab: Lab, page: Page) -> str:
    """The panel moves, in both themes; an interrupted training goes on, and so does one whose kernel was restarted."""
    write_notebook(lab.folder / "panel.ipynb", [SETTINGS + TRAINING])
    foreign = watch_requests(page)
    lab.open(page, "panel.ipynb")
    run_command(page, "notebook:run-all-cells")
    rate = watch_panel(page)
    for theme in ("Dark", "Light"):
        change_theme(page, theme)
        page.screenshot(path=PICTURES / f"panel-{theme.lower()}.png")
        contrast = page.evaluate(CONTRAST)
        require(contrast >= 4.5, f"the text of the panel has a contrast of {contrast:.1f} ({theme})")
    run_command(page, "notebook:interrupt-kernel")
    cells = wait_for_cells(page, 120)
    require(not find_errors(cells), f"an interrupted training ends with {find_errors(cells)}")
    require("interrupted: SIGINT" in read_text(cells), f"the training was not interrupted: {read_text(cells)[-500:]}")
    run_command(page, "notebook:run-all-cells")
    watch_panel(page)
    run_command(page, "notebook:restart-run-all")
    page.click(".jp-Dialog button.jp-mod-accept", timeout=20_000)
    page.wait_for_selector(PANEL, state="detached", timeout=60_000)
    watch_panel(page)
    check_end(page)
    require(not foreign, f"the notebook asks {foreign}")
    return f"the panel moved {rate:.1f} times a second; a training went on after interrupt and after restart"


def check_end(page: Page) -> None:
    """Wait for the end of a training that was resumed: a picture takes the place of the panel."""
    cells = wait_for_cells(page, 150)
    text = read_text(cells)
    require(not find_errors(cells) and "interrupted: None" in text, f"the training did not go on: {text[-500:]}")
    require("resumed: epoch" in text, f"the second run did not resume: {text[-500:]}")
    kinds = {kind for cell in cells for output in cell["outputs"] for kind in output.get("data", {})}
    require({"image/png", "image/svg+xml", "text/html"} & kinds, f"the panel left no picture, only {sorted(kinds)}")
    page.wait_for_selector(".jp-OutputArea-output img", timeout=20_000)
    require(page.locator(PANEL).count() == 0, "the panel is still there after the end of the training")
    page.screenshot(path=PICTURES / "panel-ends.png")


CONTRAST = """() => {
  const number = (text) => text.match(/[\\d.]+/g).map(Number);
  const level = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let node = document.querySelector('.cl-panel .cl-status'), paper = [0, 0, 0, 0];
  const ink = number(getComputedStyle(node).color);
  while (node && paper.length === 4 && paper[3] === 0) {
    paper = number(getComputedStyle(node).backgroundColor);
    node = node.parentElement;
  }
  const levels = [level(ink), level(paper)].sort((a, b) => b - a);
  return (levels[0] + 0.05) / (levels[1] + 0.05);
}"""


def watch_panel(page: Page) -> float:
    """Wait for the panel; returns its updates in a second. Fails if it does not move, or its text stays the same."""
    page.wait_for_selector(PANEL, timeout=90_000)
    wait_for_steps(page)
    read = f"""() => {{
        const node = document.querySelector('{PANEL}');
        return [Number(node?.dataset.updates || 0), node?.innerText];
    }}"""
    begin, started = page.evaluate(read), time.monotonic()
    texts, now = {begin[1]}, begin
    while time.monotonic() - started < 30 and now[0] - begin[0] < 2 * LEAST_UPDATES:
        page.wait_for_timeout(200)
        now = page.evaluate(read)
        texts.add(now[1])
    moved = now[0] - begin[0]
    require(moved >= LEAST_UPDATES, f"the panel does not move: {moved} updates in {time.monotonic() - started:.0f} s")
    require(len(texts) >= LEAST_UPDATES, f"the panel shows the same text all the time: {texts}")
    return moved / (time.monotonic() - started)


def wait_for_steps(page: Page) -> None:
    """Wait until steps are shown: before the first one TensorFlow builds the graph, and nothing moves."""
    is_training = f"() => / left/.test(document.querySelector('{PANEL}')?.dataset.status)"
    try:
        page.wait_for_function(is_training, timeout=60_000)
    except TimeoutError as error:
        raise CheckError("the panel does not move: it shows no step within 60 s") from error


def check_background(lab: Lab, page: Page) -> str:
    """The buttons of a training in the background are heard, and the same call goes on."""
    write_notebook(lab.folder / "background.ipynb", [SETTINGS, BACKGROUND, RESULT])
    lab.open(page, "background.ipynb")
    run_cell(page, 0)
    texts = []
    for kind in ("epoch", "step"):
        run_cell(page, 1)
        watch_panel(page)
        page.click(f".cl-stop-{kind}")
        page.wait_for_timeout(100)
        require(page.locator(f".cl-stop-{kind}").is_disabled(), "a pressed button can be pressed again")
        page.screenshot(path=PICTURES / f"background-{kind}.png")
        run_cell(page, 2)
        texts.append(read_text(page.evaluate(CELLS)[2:]))
        require("interrupted: the stop button" in texts[-1], f"the button 'stop after {kind}' was not heard: {texts}")
        page.wait_for_selector(PANEL, state="detached", timeout=20_000)
    require("resumed: None" in texts[0] and "resumed: epoch" in texts[1], f"the second training did not go on: {texts}")
    return "a training in the background was stopped after an epoch and after a step by its buttons"


def run_cell(page: Page, number: int) -> None:
    """Run one cell, and wait for its end."""
    page.evaluate(f"(number) => {{ {WIDGET}.content.activeCellIndex = number; }}", number)
    count = f"() => {WIDGET}.content.model.cells.get({number}).executionCount"
    before = page.evaluate(count)
    run_command(page, "notebook:run-cell")
    page.wait_for_function(
        f"([before]) => ({count})() > (before || 0) && {KERNEL}.status === 'idle'", arg=[before], timeout=150_000
    )
