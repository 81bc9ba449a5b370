"""A training with the live panel equals one without it, also after a kill; and every way to show it fails softly."""

import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from crypto_lstm.config import Config, ConfigError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.evaluation import report
from crypto_lstm.training import trainer, watch
from crypto_lstm.training.trainer import train
from crypto_lstm.widgets import notebook, panel

SIZES = {"sequence_length": 12, "lstm_units": (8,), "dense_units": (4,), "batch_size": 64, "epochs": 3}
CONFIG = Config(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2, **SIZES)
CANDLES = synthetic_candles(2600, seed=3, timeframe="1h")


class Screen:
    """Stands for the output of a cell."""

    shown: list = []

    def show(self, bundle, metadata=None):
        Screen.shown.append(dict(bundle))


@pytest.fixture
def in_notebook(monkeypatch):
    """The code believes that it runs in a notebook without anywidget; what it shows is kept."""
    Screen.shown = []
    monkeypatch.setattr(watch, "is_notebook", lambda: True)
    monkeypatch.setattr(panel, "NotebookOutput", Screen)
    monkeypatch.setattr(watch, "NotebookOutput", Screen)
    monkeypatch.setattr(panel, "UPDATE_S", 0.0)
    return Screen


def train_in(folder: Path, **options):
    ledger = folder.parent / "ledger.jsonl"
    return train(CANDLES, CONFIG, folder, tensorboard=False, ledger=ledger, deterministic=True, **options)


@pytest.fixture(scope="module", autouse=True)
def short_ends():
    """Simpler models are not fitted and the report has no pictures: both take longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_Task", functools.partial(trainer._Task, baselines=False))
        patch.setattr(trainer, "_write_figures", lambda run: None)
        patch.setattr(report, "_draw_pictures", lambda source: {})
        yield


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    return train_in(tmp_path_factory.mktemp("silent") / "run", verbose=0)


def assert_equal_bits(one, other):
    assert one.history == other.history
    for left, right in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        assert left.tobytes() == right.tobytes()


def test_the_panel_changes_no_bit_and_leaves_a_picture(in_notebook, silent, tmp_path):
    run = train_in(tmp_path / "run")
    assert_equal_bits(silent, run)
    texts = [bundle["text/plain"] for bundle in in_notebook.shown]
    assert sum("step" in text for text in texts) > 3 * 10
    assert "image/png" in in_notebook.shown[-1] and "Finished all 3 epochs. Best: epoch" in texts[-1]
    again = train_in(tmp_path / "run")
    assert again.resumed_at == "finished"
    assert "Nothing was trained: the folder 'run' held this finished run" in in_notebook.shown[-1]["text/plain"]


class StopAt(keras.callbacks.Callback):
    """Raises in one step: what a kill leaves behind is the last saved state."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise SystemExit("killed")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_resume_with_the_panel_equals_one_training(in_notebook, silent, tmp_path):
    with pytest.raises(SystemExit):
        train_in(tmp_path / "run", save_every_batches=3, callbacks=[StopAt(20)])
    assert "Stopped by an error. SystemExit: killed" in in_notebook.shown[-1]["text/plain"]
    run = train_in(tmp_path / "run", save_every_batches=3)
    assert run.resumed_at is not None
    assert_equal_bits(silent, run)
    assert "Resumed at epoch" in in_notebook.shown[-1]["text/plain"]


class StopAfterEpoch(StopAt):
    """Presses the stop button of a training in the background in the given step."""

    handle = None
    ready = threading.Event()

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            self.ready.wait(60)
            self.handle.stop("epoch")


def test_the_button_stops_after_the_epoch_and_the_run_is_resumed(silent, tmp_path):
    presser = StopAfterEpoch(3)
    presser.handle = train_in(tmp_path / "run", background=True, verbose=0, callbacks=[presser])
    presser.ready.set()
    run = presser.handle.result(timeout_s=300)
    assert (run.interrupted, run.partial_epochs, run.epochs_finished) == ("the stop button", 0, 1)
    assert not presser.handle.is_running and presser.handle.status == "done"
    assert_equal_bits(silent, train_in(tmp_path / "run", verbose=0))


def test_an_error_in_the_background_reaches_the_caller(tmp_path):
    handle = train(CANDLES.head(30), CONFIG, tmp_path / "run", background=True, verbose=0)
    with pytest.raises(ValueError):
        handle.result(timeout_s=60)
    assert handle.status.startswith("failed: ")


@pytest.mark.parametrize("verbose", [-1, 3, "1", 1.5, []])
def test_another_verbosity_is_refused(tmp_path, verbose):
    with pytest.raises(ConfigError, match="verbose must be none"):
        train(CANDLES, CONFIG, tmp_path / "run", verbose=verbose)
    assert not (tmp_path / "run").exists()


WITHOUT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
import crypto_lstm as cl
from crypto_lstm.widgets.notebook import has_widgets, is_notebook

assert not has_widgets() and not is_notebook()
candles = cl.synthetic_candles(300, timeframe="1h")
shown = cl.chart(candles)
bundle, metadata = shown._repr_mimebundle_()
assert set(bundle) == {{"image/png", "text/plain"}}, set(bundle)
print(shown)
"""


def test_without_anywidget_ipython_and_display_a_chart_is_a_picture():
    script = WITHOUT.format(blocked={"anywidget", "ipywidgets", "IPython", "traitlets"})
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "CandleChart(300 candles)\n"


def test_a_broken_anywidget_is_no_widget(monkeypatch):
    monkeypatch.setattr(notebook, "is_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "anywidget", None)  # importing it raises ImportError
    assert not notebook.has_widgets()


def test_views_are_json_with_values_that_are_not_finite():
    record = panel.TrainingRecord(watch.TrainingPlan(title="x", epochs=2, steps=2, blind_loss=np.inf))
    record.begin_epoch(0)
    record.end_step(0)
    record.add_step_metrics({"loss": float("nan")})
    record.end_epoch(0, {"loss": float("inf"), "val_loss": float("nan")})
    json.dumps(record.view(), allow_nan=False)
