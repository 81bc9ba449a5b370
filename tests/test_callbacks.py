"""The memory estimate, the callbacks and the memory monitor of the original module, and the readings of memory.

More tests of the monitor are in profiling/test_memory_monitor.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import psutil
import pytest

from crypto_lstm import callbacks, memory
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.storage.verified import read_file
from crypto_lstm.utils import system
from crypto_lstm.utils.errors import CryptoLSTMError

SMALL = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), epochs=2)
MB = 2**20


@pytest.fixture
def windows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(96, 12, 8)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, 96)]


def quick_model() -> keras.Model:
    """A network without LSTM layers, which TensorFlow traces quickly."""
    output = keras.layers.Dense(3, activation="softmax")
    model = keras.Sequential([keras.Input((12, 8)), keras.layers.Flatten(), output])
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(windows, watchers, make=quick_model, **options):
    x, y = windows
    return make().fit(x[:64], y[:64], validation_data=(x[64:], y[64:]), verbose=0, callbacks=watchers, **options)


# the estimate


def test_the_estimate_has_the_original_keys_and_they_add_up():
    d = memory.estimate_memory(Config(), 256).as_dict()
    parts = ["model_memory_mb", "training_memory_mb", "batch_memory_mb"]
    assert {*parts, "model_parameters", "total_estimated_mb", "total_estimated_gb", "batch_size"} <= set(d)
    assert (d["model_parameters"], d["batch_size"]) == (133_603, 256)
    total_mb = sum(d[name] for name in [*parts, "runtime_mb", "allocator_mb"])
    assert d["total_estimated_mb"] == pytest.approx(total_mb)
    assert d["total_estimated_gb"] == pytest.approx(total_mb / 1024)
    assert json.loads(json.dumps(d, allow_nan=False)) == d


def test_the_estimate_counts_the_parameters_of_the_built_model():
    assert memory.estimate_memory(SMALL).parameters == build_model(SMALL).count_params()


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "256"])
def test_the_estimate_refuses_a_batch_size_that_is_no_whole_number_above_zero(batch_size):
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        memory.estimate_memory(Config(), batch_size)


def test_the_text_and_the_html_of_an_estimate_agree_and_state_its_limits():
    estimate = memory.estimate_memory(Config(mixed_precision=True))
    for shown in (str(estimate), estimate._repr_html_()):
        assert f"{estimate.tensor_peak_mb:,.1f}" in shown
        assert "upper bound" in shown


def test_the_estimate_imports_neither_tensorflow_nor_matplotlib():
    code = (
        "import sys; from crypto_lstm.config import Config; from crypto_lstm.memory import estimate_memory;"
        "from crypto_lstm.utils.system import available_memory_mb;"
        "estimate_memory(Config()); available_memory_mb();"
        "print([m for m in ('tensorflow', 'keras', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# readings of the process


def test_the_peak_includes_freed_memory_until_it_is_reset():
    if not system.reset_peak_memory():
        pytest.skip("this system can't reset the peak")
    before = system.peak_memory_mb()
    block = bytearray(200 * MB)
    del block
    assert system.peak_memory_mb() - before > 190
    assert system.process_memory_mb() == pytest.approx(psutil.Process().memory_info().rss / MB, abs=5)
    assert system.reset_peak_memory()
    assert system.peak_memory_mb() == pytest.approx(system.process_memory_mb(), abs=10)


def test_the_peak_without_proc_is_the_counter_of_the_system(monkeypatch):
    monkeypatch.setattr(system, "_read_status", dict)
    monkeypatch.setattr(system.Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert system.reset_peak_memory() is False
    assert system.peak_memory_mb() == system._system_peak_mb() > 50


class OtherProcess:
    """psutil's process on a system without `/proc`: 90 MB are resident, 60 of them its own."""

    def __init__(self, refusal=None):
        self.refusal = refusal

    def memory_info(self):
        return SimpleNamespace(rss=90 * MB)

    def memory_full_info(self):
        if self.refusal is not None:
            raise self.refusal
        return SimpleNamespace(uss=60 * MB)


@pytest.mark.parametrize(("refusal", "expected"), [(None, (60, 30)), (psutil.AccessDenied(), (90, 0))])
def test_without_proc_the_anonymous_memory_is_the_unique_set_or_all_that_is_resident(monkeypatch, refusal, expected):
    monkeypatch.setattr(system, "_read_status", dict)
    monkeypatch.setattr(system.psutil, "Process", lambda: OtherProcess(refusal))
    assert system.read_process_memory() == expected


def test_on_an_old_linux_shared_pages_are_the_file_pages(monkeypatch):
    found = system.read_process_memory()
    monkeypatch.setattr(system, "_read_status", dict)
    if hasattr(psutil.Process().memory_info(), "shared"):
        assert system.read_process_memory() == pytest.approx(found, abs=5)


# limits of the container, with folders in place of /proc and /sys


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_lowest_limit_of_all_levels_of_cgroup_version_2_counts(tmp_path):
    level = "sys/fs/cgroup/user.slice/job"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            f"{level}/memory.max": "max\n",
            f"{level}/memory.current": f"{10 * MB}",
            "sys/fs/cgroup/user.slice/memory.max": f"{100 * MB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{70 * MB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": f"anon 5\nactive_file {3 * MB}\ninactive_file {20 * MB}\n",
        },
    )
    assert (system.memory_limit_mb(root), system.available_memory_mb(root)) == (100, 50)


def test_the_limit_of_cgroup_version_1_is_found_if_only_the_host_has_the_path(tmp_path):
    level = "sys/fs/cgroup/memory"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "7:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
            f"{level}/memory.limit_in_bytes": f"{64 * MB}\n",
            f"{level}/memory.usage_in_bytes": f"{60 * MB}\n",
            f"{level}/memory.stat": f"inactive_file 7\ntotal_inactive_file {30 * MB}\n",
        },
    )
    assert (system.memory_limit_mb(root), system.available_memory_mb(root)) == (64, 34)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
        {"proc/self/cgroup": "nonsense", "sys/fs/cgroup/memory.max": "\n"},
    ],
)
def test_the_memory_of_the_machine_is_the_limit_without_a_cgroup_limit(tmp_path, files):
    assert system.memory_limit_mb(tree(tmp_path, files)) == psutil.virtual_memory().total / MB


def test_a_cgroup_over_its_limit_has_no_memory_available(tmp_path):
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": f"{MB}"}
    files["sys/fs/cgroup/memory.current"] = f"{2 * MB}"
    assert system.available_memory_mb(tree(tmp_path, files)) == 0


# the callbacks


def test_create_callbacks_returns_keras_callbacks_with_the_configured_values(tmp_path):
    config = Config(early_stopping_patience=7, reduce_lr_patience=3, reduce_lr_factor=0.25, min_learning_rate=1e-6)
    folder = tmp_path / "deep" / "run"
    made = callbacks.create_callbacks(config, folder)
    found = {base: next(callback for callback in made if isinstance(callback, base)) for base in _ORIGINAL}
    checkpoint, early, reduce = (found[base] for base in _ORIGINAL[:3])
    assert checkpoint.filepath == str(folder / "best_model_checkpoint.keras")
    assert (checkpoint.monitor, checkpoint.mode) == ("val_accuracy", "max")
    assert (checkpoint.save_best_only, checkpoint.save_weights_only) == (True, False)
    assert (early.monitor, early.mode, early.patience) == ("val_accuracy", "max", 7)
    assert early.restore_best_weights
    assert (reduce.monitor, reduce.patience, reduce.factor, reduce.min_lr) == ("val_loss", 3, 0.25, 1e-6)
    board = found[keras.callbacks.TensorBoard]
    assert (Path(board.log_dir), board.histogram_freq, board.embeddings_freq) == (folder / "logs", 0, 0)


_ORIGINAL = (
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.TensorBoard,
    callbacks.MemoryMonitorCallback,
)


def test_a_fit_writes_a_checkpoint_that_loads_and_logs(tmp_path, windows, capsys):
    made = callbacks.create_callbacks(SMALL, tmp_path)
    history = fit(windows, made, lambda: build_model(SMALL), epochs=2)
    model = keras.models.load_model(tmp_path / callbacks.CHECKPOINT_NAME)
    x, y = windows
    accuracy = (model.predict(x[64:], verbose=0).argmax(axis=1) == y[64:].argmax(axis=1)).mean()
    assert accuracy == pytest.approx(max(history.history["val_accuracy"]))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [callbacks.CHECKPOINT_NAME, callbacks.CHECKPOINT_NAME + ".manifest.json", "logs"]
    assert capsys.readouterr().out == ""


def test_a_monitor_without_validation_data_raises_an_error(tmp_path, windows):
    x, y = windows
    with pytest.raises(callbacks.MonitorError, match="expected val_accuracy after epoch 1"):
        quick_model().fit(x, y, verbose=0, callbacks=callbacks.create_callbacks(SMALL, tmp_path, tensorboard=False))


def test_a_nan_in_a_window_raises_an_error_and_nothing_is_saved(tmp_path, windows):
    x, _ = windows
    x[0, 3, 2] = np.nan
    made = callbacks.create_callbacks(SMALL, tmp_path, tensorboard=False)
    with pytest.raises(callbacks.NonFiniteError, match="in epoch 1"):
        fit(windows, made, lambda: build_model(SMALL), epochs=3)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_output_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(callbacks.OutputFolderError, match="expected a folder") as caught:
        callbacks.create_callbacks(SMALL, tmp_path / "run")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, CryptoLSTMError)


def test_a_missing_tensorboard_is_found_before_the_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(callbacks.MissingTensorBoardError, match="pip install tensorboard"):
        callbacks.create_callbacks(SMALL, tmp_path)
    assert len(callbacks.create_callbacks(SMALL, tmp_path, tensorboard=False)) == 5


@pytest.mark.parametrize(("monitor", "direction"), [("val_accuracy", -1), ("val_loss", 1)])
def test_a_second_session_keeps_the_better_checkpoint(monitor, direction, windows, tmp_path):
    """The second session starts from nothing but the folder; its value is worse, then better, than the saved one."""
    path = tmp_path / "best_model_checkpoint.keras"
    x, y = windows
    for value, kept in [(0.5, 0.5), (0.5 + direction * 0.1, 0.5), (0.5 - direction * 0.1, 0.5 - direction * 0.1)]:
        best = callbacks.BestCheckpoint(path, monitor=monitor)
        before = path.read_bytes() if path.exists() else b""
        best.set_model(quick_model())
        best.on_train_begin()
        best.on_epoch_begin(0)
        best.on_epoch_end(0, {"loss": 1.0, monitor: value})
        assert read_file(path).facts[monitor] == kept
        assert (path.read_bytes() == before) == (value != kept)


def test_a_checkpoint_of_another_monitor_is_not_replaced(tmp_path):
    path = tmp_path / "best_model_checkpoint.keras"
    callbacks.save_checkpoint(quick_model(), path, {"epoch": 1, "val_loss": 0.5})
    before = path.read_bytes()
    best = callbacks.BestCheckpoint(path, monitor="val_accuracy")
    with pytest.raises(callbacks.MonitorError, match="expected a checkpoint with val_accuracy, .* has epoch, val_loss"):
        best.on_train_begin()
    assert path.read_bytes() == before


def test_a_folder_that_is_no_utf8_is_refused_by_tensorboard_alone(tmp_path):
    folder = tmp_path / os.fsdecode(b"run_\xe9")
    with pytest.raises(callbacks.OutputFolderError, match="is not UTF-8"):
        callbacks.create_callbacks(SMALL, folder)
    assert len(callbacks.create_callbacks(SMALL, folder, tensorboard=False)) == 5


# the memory monitor


def test_the_monitor_agrees_with_independent_readings_in_each_epoch(windows):
    monitor = callbacks.MemoryMonitorCallback()
    history = fit(windows, [monitor], epochs=2).history
    first, last = monitor.memory_history
    assert [r["epoch"] for r in (first, last)] == [0, 1]
    assert [r["val_accuracy"] for r in (first, last)] == pytest.approx(history["val_accuracy"])
    assert [r["val_loss"] for r in (first, last)] == pytest.approx(history["val_loss"])
    assert last["memory_mb"] + last["file_mb"] == pytest.approx(psutil.Process().memory_info().rss / MB, abs=30)
    if not Path("/proc/self/status").exists():
        return
    marks = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert last["peak_mb"] + last["file_mb"] == pytest.approx(int(marks[0].split()[1]) / 1024, abs=30)


def test_the_monitor_records_none_without_validation_data(windows):
    monitor = callbacks.MemoryMonitorCallback()
    quick_model().fit(*windows, epochs=1, verbose=0, callbacks=[monitor])
    assert (monitor.memory_history[0]["val_accuracy"], monitor.memory_history[0]["val_loss"]) == (None, None)


def test_the_monitor_starts_a_second_run_with_its_own_history_and_peak(windows):
    class Spike(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            bytearray(300 * MB)

    monitor = callbacks.MemoryMonitorCallback()
    fit(windows, [Spike(), monitor], epochs=1)
    spiked = monitor.memory_history
    fit(windows, [monitor], epochs=2)
    assert (len(spiked), len(monitor.memory_history)) == (1, 2)
    if spiked[0]["peak_is_epoch"]:
        assert spiked[0]["peak_mb"] - max(r["peak_mb"] for r in monitor.memory_history) > 200


# plots


@pytest.fixture
def figure():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@pytest.mark.parametrize("epochs", [1, 4])
def test_training_curves_show_the_values_of_the_history(figure, epochs):
    whole = {"loss": [1.0, 0.8, 0.7, 0.6], "accuracy": [0.4, 0.5, 0.6, 0.7], "learning_rate": [0.1, 0.1, 0.05, 0.05]}
    history = {name: values[:epochs] for name, values in whole.items()}
    loss, accuracy = callbacks.plot_training_curves(history, baseline=0.55)
    assert list(loss.lines[0].get_ydata()) == history["loss"]
    assert loss.lines[0].get_marker() == "o"
    assert sum(line.get_linestyle() == ":" for line in loss.lines) == (epochs > 2)
    assert accuracy.get_title(loc="left") == f"Best accuracy {history['accuracy'][-1]:.3f} in epoch {epochs}"
    assert 0.55 in [line.get_ydata()[0] for line in accuracy.lines if line.get_linestyle() == "--"]
