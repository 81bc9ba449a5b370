"""Zoom a chart of a million candles in JupyterLab, measure how long the bars take, and look at its marks."""

from __future__ import annotations

import json
from typing import Any

from browser_lab import (
    PICTURES,
    Lab,
    change_theme,
    find_errors,
    require,
    run_all,
    watch_requests,
    write_notebook,
)
from playwright.sync_api import Page

CHART = ".cl-chart"
CHART_CELL = """
import numpy as np
import pandas as pd

import crypto_lstm as cl

config = cl.Config(future_window=60, long_tp_pct=0.4, long_sl_pct=0.3, short_tp_pct=0.4, short_sl_pct=0.3)
candles = cl.synthetic_candles(1_000_000, seed=1, edge=0.5)
labels = cl.make_labels(candles, config)
chances = np.random.default_rng(0)
shares = chances.dirichlet((4, 4, 4), len(labels))
decisions = pd.DataFrame(shares, columns=["short", "hold", "long"]).assign(date=labels["date"].array)
names = np.array(["SHORT", "HOLD", "LONG"], dtype=object)
decisions["decision"] = np.where(shares.max(axis=1) > 0.6, names[shares.argmax(axis=1)], "HOLD")
entry = np.arange(1000, len(candles) - 100, 90)
leave = entry + chances.integers(10, 60, len(entry))
price = candles["close"].to_numpy()
net_pct = 100 * (price[leave] / price[entry] - 1)
trades = pd.DataFrame({
    "entry_time": candles["date"].array[entry], "exit_time": candles["date"].array[leave],
    "entry_price": price[entry], "exit_price": price[leave], "side": "LONG", "net_pct": net_pct,
})
cl.chart(candles, labels, decisions, trades)
"""
# One zoom after another. It begins with the last event of the gesture, and ends when the bars that it needs are painted
# and no further ones were asked for. "jump": to any span, from 150 candles to all; "wheel": eight turns of the wheel,
# one in each frame, in or out. Zooms that need no new bars after that event are not counted: they are drawn at once.
ZOOMS = """async (count) => {
  const root = document.querySelector('.cl-chart'), data = root.dataset;
  const pane = root.querySelector('canvas').closest('td').querySelector('canvas:last-of-type');
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  let seed = 7;
  const chance = () => { seed = (seed * 48271) % 2147483647; return seed / 2147483647; };
  const first = Number(data.first), last = Number(data.last), all = last - first, found = [];
  for (let number = 0; number < count; number += 1) {
    const before = data.answers, kind = number % 2 ? 'wheel' : 'jump';
    let started;
    if (kind === 'jump') {
      const span = 150 * 60 * (all / 9000) ** chance(), from = first + (all - span) * chance();
      started = performance.now();
      root.zoom(from, from + span);
    } else {
      const box = pane.getBoundingClientRect(), deltaY = chance() < 0.5 ? -300 : 300;
      const point = { clientX: box.left + box.width * chance(), clientY: box.top + 60 };
      const turn = { ...point, deltaY, bubbles: true, cancelable: true };
      for (let turns = 0; turns < 8; turns += 1) {
        await new Promise((done) => requestAnimationFrame(done)); // where a browser puts them
        started = performance.now();
        pane.dispatchEvent(new WheelEvent('wheel', turn));
      }
    }
    await wait(150);
    let seen;
    do { seen = data.answers; await wait(120); } while (seen !== data.answers);
    const ms = Number(data.painted) - started;
    const parts = { python: Number(data.python), trip: Number(data.roundTrip), drawing: Number(data.drawing) };
    const trips = data.answers - before;
    if (trips && ms > 0) found.push({ kind, ms, trips, bars: data.bars, ...parts });
  }
  return found;
}"""
NEAR = """async () => {
  const root = document.querySelector('.cl-chart'), data = root.dataset;
  const middle = (Number(data.first) + Number(data.last)) / 2;
  root.zoom(middle, middle + 200 * 60);
}"""


def check_chart(lab: Lab, page: Page, zooms: int = 60) -> str:
    """A chart of a million candles answers zooms, and shows labels, barriers and trades from close by."""
    write_notebook(lab.folder / "chart.ipynb", [CHART_CELL])
    foreign = watch_requests(page)
    lab.open(page, "chart.ipynb")
    errors = find_errors(run_all(page))
    require(not errors, f"the chart fails: {errors}")
    page.wait_for_selector(f"{CHART}[data-answers]", timeout=30_000)
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / "chart-far.png")
    found = page.evaluate(ZOOMS, zooms)
    (PICTURES / "chart-zooms.json").write_text(json.dumps(found, indent=1))
    require(len(found) >= zooms / 3, f"only {len(found)} of {zooms} zooms brought new bars")
    for theme in ("Dark", "Light"):
        change_theme(page, theme)
        page.evaluate(NEAR)
        page.wait_for_function(f"() => document.querySelector('{CHART}').dataset.near === 'true'", timeout=10_000)
        page.wait_for_timeout(300)
        page.screenshot(path=PICTURES / f"chart-near-{theme.lower()}.png")
        data = page.evaluate(f"() => ({{...document.querySelector('{CHART}').dataset}})")
        require(int(data["labels"]) >= 200 and int(data["trades"]) >= 2, f"labels or trades are not shown: {data}")
        barriers = page.locator(f"{CHART} .cl-line").last.inner_text()
        require("label" in barriers and "long:" in barriers, f"no label is described: {barriers!r}")
    require(not foreign, f"the chart asks {foreign}")
    return f"a chart of 1,000,000 candles, {describe_times(found)}"


def describe_times(found: list[dict[str, Any]]) -> str:
    """Median, 95th percentile and maximum of the zooms that needed new bars, and the parts of the median."""
    times = sorted(one["ms"] for one in found)
    high = times[min(len(times) - 1, int(0.95 * len(times)))]
    middle = {name: sorted(one[name] for one in found)[len(found) // 2] for name in ("python", "trip", "drawing")}
    python, trip, drawing = (middle[name] for name in ("python", "trip", "drawing"))
    parts = f"Python {python:.1f}, to the kernel and back {trip:.0f}, drawing {drawing:.0f}"
    several = sum(one["trips"] > 1 for one in found)
    return (
        f"{len(times)} zooms to redrawn bars: median {times[len(times) // 2]:.0f} ms, 95 % below {high:.0f} ms, "
        f"longest {times[-1]:.0f} ms (medians: {parts} ms; {several} asked more than once)"
    )
