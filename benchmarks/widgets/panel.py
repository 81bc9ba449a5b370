"""Cost of the live panel in one training in the kernel of a notebook, measured in two ways.

The widget is the real one (anywidget), and its messages leave the kernel.

- Counted: CPU time of the panel's own methods in the thread that trains, and of the thread that sends its messages,
  over the CPU time of the whole process. Every update counts. It proves the share, since nothing else is in it.
- Compared: blocks of half a second with the panel and without it, in turns. The ratio of neighbours holds whatever the
  panel costs elsewhere: in CPU time of the process for a step, caches and all threads included, and by the clock, which
  holds the noise of the machine too.

Both come with a 95 % interval: of the mean over the blocks (Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from scipy import stats

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare, tf_dataset
from crypto_lstm.widgets.panel import PanelCallback, WidgetDisplay
from crypto_lstm.widgets.training_record import TrainingPlan, TrainingRecord

BLOCK_S = 0.5  # a block with the panel begins with an update
SMALL = {"sequence_length": 24, "lstm_units": (32, 16), "dense_units": (8,), "batch_size": 64}


@dataclass
class Block:
    """Steps of about half a second of training, all with the panel or all without it."""

    has_panel: bool
    steps: int = 0
    wall_s: float = 0.0
    process_s: float = 0.0  # CPU time of all threads
    hooks_s: float = 0.0  # CPU time of the panel's methods
    hooks_wall_s: float = 0.0
    sender_s: float = 0.0  # CPU time of the thread that sends messages


@dataclass
class Clocks:
    """Clocks at one moment."""

    wall_s: float = field(default_factory=time.perf_counter)
    process_s: float = field(default_factory=time.process_time)
    sender_s: float = field(default_factory=lambda: read_sender_s())


def read_sender_s() -> float:
    """CPU time of the kernel's thread that sends messages."""
    for thread in threading.enumerate():
        if thread.name == "IOPub" and thread.ident is not None:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return math.nan


class Blocks(keras.callbacks.Callback):
    """Passes the hooks of a panel on in every second block, and times everything."""

    def __init__(self, panel: PanelCallback) -> None:
        super().__init__()
        self.panel = panel
        self.blocks: list[Block] = []
        self._block = Block(has_panel=True)
        self._begin = Clocks()

    def set_model(self, model: keras.Model) -> None:
        """Give the model to the panel too."""
        super().set_model(model)
        self.panel.set_model(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Leave the time between two epochs out, with the tracing of the network."""
        self._block = Block(self._block.has_panel)
        self._call(self.panel.on_epoch_begin, epoch, logs)
        self._block = Block(self._block.has_panel)
        self._begin = Clocks()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Pass it on in every second block."""
        self._block.steps += 1
        if self._block.has_panel:
            self._call(self.panel.on_train_batch_end, batch, logs)
        if time.perf_counter() - self._begin.wall_s >= BLOCK_S:
            self._end_block()

    def _call(self, hook: Any, *values: Any) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        hook(*values)
        self._block.hooks_s += time.thread_time() - cpu
        self._block.hooks_wall_s += time.perf_counter() - wall

    def _end_block(self) -> None:
        block, begin, now = self._block, self._begin, Clocks()
        block.wall_s = now.wall_s - begin.wall_s
        block.process_s = now.process_s - begin.process_s
        block.sender_s = now.sender_s - begin.sender_s
        self.blocks.append(block)
        self._block, self._begin = Block(not block.has_panel), now


def measure(small: bool, seconds: float) -> dict[str, Any]:
    """Train for about so many seconds, in a notebook; returns shares in percent with their intervals."""
    config = Config(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2, epochs=1000)
    config = config.replace(**SMALL) if small else config
    data = prepare(synthetic_candles(20_000, seed=3, timeframe="1h"), config)
    plan = TrainingPlan(title="benchmark", epochs=1000, steps=len(data.train), blind_loss=1.1, limit_mb=1000.0)
    record = TrainingRecord(plan)
    panel = PanelCallback(record, WidgetDisplay(record.view()))
    timed, model = Blocks(panel), build_model(config)
    batches = tf_dataset(data.train).repeat()
    model.fit(batches, epochs=1, steps_per_epoch=50, verbose=0, callbacks=[panel])  # traces the network
    steps, end = len(data.train), time.perf_counter() + seconds
    while time.perf_counter() < end:
        model.fit(batches, epochs=1, steps_per_epoch=20 * steps, verbose=0, callbacks=[timed, Deadline(end)])
    return describe(timed.blocks, panel.updates)


class Deadline(keras.callbacks.Callback):
    """Ends a training at a moment."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the clock."""
        if time.perf_counter() >= self.end:
            self.model.stop_training = True


def describe(blocks: Sequence[Block], updates: int) -> dict[str, Any]:
    """Shares of the panel in percent: mean, and the ends of its 95 % interval."""
    shown = [block for block in blocks if block.has_panel]
    pairs = [pair for pair in zip(blocks, blocks[1:], strict=False) if pair[0].has_panel != pair[1].has_panel]
    by_cpu = [compare(*pair, lambda block: block.process_s) for pair in pairs[::2]]
    by_clock = [compare(*pair, lambda block: block.wall_s) for pair in pairs[::2]]
    steps = sum(block.steps for block in blocks)
    sent_without = statistics.mean(block.sender_s for block in blocks if not block.has_panel)
    counted = [100 * (block.hooks_s + max(0.0, block.sender_s - sent_without)) / block.process_s for block in shown]
    return {
        "blocks": len(blocks),
        "steps": steps,
        "step_ms": 1000 * sum(block.wall_s for block in blocks) / steps,
        "updates": updates,
        "update_cpu_ms": 1000 * sum(block.hooks_s + block.sender_s for block in shown) / updates,
        "counted_cpu_pct": estimate(counted),
        "counted_wall_pct": estimate([100 * block.hooks_wall_s / block.wall_s for block in shown]),
        "compared_cpu_pct": estimate(by_cpu),
        "compared_wall_pct": estimate(by_clock),
    }


def compare(first: Block, second: Block, measure: Callable[[Block], float]) -> float:
    """How much more a step takes with the panel, in percent."""
    shown, bare = (first, second) if first.has_panel else (second, first)
    return 100 * (measure(shown) / shown.steps / (measure(bare) / bare.steps) - 1)


def estimate(values: Sequence[float]) -> list[float]:
    """Mean, and the ends of its 95 % interval."""
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return [mean, mean - half, mean + half]


def run_in_kernel(small: bool, seconds: float) -> dict[str, Any]:
    """`measure` in a kernel of its own, as in a notebook."""
    import nbformat
    from nbclient import NotebookClient

    lines = ["import json", "from benchmarks.widgets.panel import measure"]
    source = "\n".join([*lines, f"print(json.dumps(measure({small}, {seconds})))"])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=20 * seconds + 300, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[0].outputs if output.get("name") == "stdout")
    return json.loads(printed.splitlines()[-1])


def format_row(name: str, value: Any) -> str:
    """A figure, with its interval if it has one."""
    if isinstance(value, list):
        return f"  {name:18} {value[0]:8.3f}  [{value[1]:.3f}, {value[2]:.3f}]"
    return f"  {name:18} {value:8.4g}"


def main(words: list[str]) -> int:
    """Measure a small network with short steps and the default one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks panel", description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0, help="of each training")
    arguments = parser.parse_args(words)
    for name, small in (("small network", True), ("default network", False)):
        found = run_in_kernel(small, arguments.seconds)
        print("\n".join([name, *(format_row(*row) for row in found.items())]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
