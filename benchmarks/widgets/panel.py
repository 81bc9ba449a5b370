"""Cost of the live panel: steps of one training with it and without it, in turns, in the kernel of a notebook.

The widget is the real one (anywidget), and its messages leave the kernel. The share of the callback is the time inside
the panel's own methods over the time of the training; the ratio compares the steps with the panel to those without,
which include whatever the panel costs elsewhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import keras

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare, tf_dataset
from crypto_lstm.widgets.panel import PanelCallback, WidgetDisplay
from crypto_lstm.widgets.training_record import TrainingPlan, TrainingRecord

TURN = 25  # steps with the panel, then as many without
SMALL = {"sequence_length": 24, "lstm_units": (32, 16), "dense_units": (8,), "batch_size": 64}


class Turns(keras.callbacks.Callback):
    """Passes the hooks of a panel on in every second turn, and times everything."""

    def __init__(self, panel: PanelCallback) -> None:
        super().__init__()
        self.panel = panel
        self.steps: dict[bool, list[float]] = {True: [], False: []}
        self.in_panel_s = 0.0
        self.turns_s = 0.0  # of the turns with the panel
        self._count = 0
        self._began = 0.0

    def set_model(self, model: keras.Model) -> None:
        """Give the model to the panel too."""
        super().set_model(model)
        self.panel.set_model(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Pass it on."""
        self.panel.on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Start the clock of the step."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Pass it on in every second turn, and stop the clock."""
        is_shown = self._count // TURN % 2 == 0
        self._count += 1
        before = time.perf_counter()
        if is_shown:
            self.panel.on_train_batch_end(batch, logs)
        now = time.perf_counter()
        if self._count > TURN:  # the first turn holds the tracing of the network
            self.steps[is_shown].append(now - self._began)
            if is_shown:
                self.in_panel_s += now - before
                self.turns_s += now - self._began


def measure(small: bool, seconds: float) -> dict[str, float]:
    """Train for about so many seconds, in a notebook; returns times in milliseconds and shares."""
    config = Config(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2, epochs=1000)
    config = config.replace(**SMALL) if small else config
    data = prepare(synthetic_candles(20_000, seed=3, timeframe="1h"), config)
    plan = TrainingPlan(title="benchmark", epochs=1000, steps=len(data.train), blind_loss=1.1, limit_mb=1000.0)
    record = TrainingRecord(plan)
    panel = PanelCallback(record, WidgetDisplay(record.view()))
    turns, model, end = Turns(panel), build_model(config), time.perf_counter() + seconds
    while time.perf_counter() < end:
        model.fit(tf_dataset(data.train), epochs=1, verbose=0, callbacks=[turns], shuffle=False)
    with_panel, without = turns.steps[True], turns.steps[False]
    return {
        "steps": len(with_panel) + len(without),
        "updates": panel.updates,
        "step_with_ms": 1000 * statistics.mean(with_panel),
        "step_without_ms": 1000 * statistics.mean(without),
        "ratio_of_means": statistics.mean(with_panel) / statistics.mean(without),
        "ratio_of_medians": statistics.median(with_panel) / statistics.median(without),
        "share_of_callback": turns.in_panel_s / turns.turns_s,
    }


def run_in_kernel(small: bool, seconds: float) -> dict[str, float]:
    """`measure` in a kernel of its own, as in a notebook."""
    import nbformat
    from nbclient import NotebookClient

    lines = ["import json", "from benchmarks.widgets.panel import measure"]
    source = "\n".join([*lines, f"print(json.dumps(measure({small}, {seconds})))"])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=20 * seconds + 300, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[0].outputs if output.get("name") == "stdout")
    return json.loads(printed.splitlines()[-1])


def main(words: list[str]) -> int:
    """Measure a small network with short steps and the default one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks panel", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training")
    arguments = parser.parse_args(words)
    for name, small in (("small network", True), ("default network", False)):
        found = run_in_kernel(small, arguments.seconds)
        print(f"{name}: {json.dumps({key: float(f'{value:.4g}') for key, value in found.items()})}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
