"""Parts 3, 4 and 5 of the original module: memory estimate, callbacks, memory monitor; and the readings beneath them.

The monitor beside readings from outside, its limit and its picture: test_monitor.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest

from crypto_lstm import callbacks
from crypto_lstm import memory
from crypto_lstm.utils import system as resources
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.utils.errors import CryptoLSTMError

SMALL = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), epochs=2)
MB = 2**20


@pytest.fixture
def windows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(96, 12, 8)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, 96)]


def quick_model() -> keras.Model:
    """Where the network does not matter: no loop to trace."""
    model = keras.Sequential([keras.Input((12, 8)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(windows, watchers, make=quick_model, **options):
    x, y = windows
    return make().fit(x[:64], y[:64], validation_data=(x[64:], y[64:]), verbose=0, callbacks=watchers, **options)


# part 3: the estimate


def test_part_3_has_the_original_keys_and_they_add_up():
    d = memory.estimate_memory(Config(), 256).as_dict()
    original = {"model_parameters", "model_memory_mb", "training_memory_mb", "batch_memory_mb", "total_estimated_mb", "total_estimated_gb"}
    assert original | {"batch_size"} <= set(d)
    assert (d["model_parameters"], d["batch_size"]) == (133_603, 256)
    parts = d["model_memory_mb"] + d["training_memory_mb"] + d["batch_memory_mb"] + d["runtime_mb"] + d["allocator_mb"]
    assert d["total_estimated_mb"] == pytest.approx(parts) == pytest.approx(1024 * d["total_estimated_gb"])
    assert json.loads(json.dumps(d, allow_nan=False)) == d


def test_part_3_parameters_are_those_of_the_built_model():
    assert memory.estimate_memory(SMALL).parameters == build_model(SMALL).count_params()


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "256"])
def test_part_3_refuses_a_batch_size_that_is_none(batch_size):
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        memory.estimate_memory(Config(), batch_size)


def test_part_3_text_and_html_agree_and_say_what_is_not_counted():
    estimate = memory.estimate_memory(Config(mixed_precision=True))
    for shown in (str(estimate), estimate._repr_html_()):
        assert f"{estimate.tensor_peak_mb:,.1f}" in shown
        assert "upper bound" in shown


def test_the_estimate_starts_no_tensorflow_and_no_plots():
    code = (
        "import sys; from crypto_lstm.config import Config; from crypto_lstm.memory import estimate_memory;"
        "from crypto_lstm.utils.system import available_memory_mb;"
        "estimate_memory(Config()); available_memory_mb();"
        "print([m for m in ('tensorflow', 'keras', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# readings of the process


def test_peak_keeps_what_came_and_went_until_it_is_reset():
    if not resources.reset_peak_memory():
        pytest.skip("this system can't reset the peak mark")
    before = resources.peak_memory_mb()
    block = bytearray(200 * MB)
    del block
    assert resources.peak_memory_mb() - before > 190
    assert resources.process_memory_mb() == pytest.approx(psutil.Process().memory_info().rss / MB, abs=5)
    assert resources.reset_peak_memory()
    assert resources.peak_memory_mb() == pytest.approx(resources.process_memory_mb(), abs=10)


def test_peak_without_proc_is_the_systems_counter(monkeypatch):
    monkeypatch.setattr(resources.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(resources.Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert resources.reset_peak_memory() is False
    assert resources.peak_memory_mb() == resources._system_peak_mb() > 50


# limits of the container, on made-up trees


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_cgroup_version_2_the_lowest_limit_of_all_levels_counts(tmp_path):
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
    assert (resources.memory_limit_mb(root), resources.available_memory_mb(root)) == (100, 50)


def test_cgroup_version_1_with_a_path_that_only_the_host_sees(tmp_path):
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
    assert (resources.memory_limit_mb(root), resources.available_memory_mb(root)) == (64, 34)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
        {"proc/self/cgroup": "nonsense", "sys/fs/cgroup/memory.max": "\n"},
    ],
)
def test_without_a_limit_the_machine_counts(tmp_path, files):
    assert resources.memory_limit_mb(tree(tmp_path, files)) == psutil.virtual_memory().total / MB


def test_a_group_over_its_limit_has_nothing_left_rather_than_less(tmp_path):
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": f"{MB}", "sys/fs/cgroup/memory.current": f"{2 * MB}"}
    assert resources.available_memory_mb(tree(tmp_path, files)) == 0


# part 4: the callbacks


def test_part_4_gives_the_original_callbacks_with_the_configured_values(tmp_path):
    config = Config(early_stopping_patience=7, reduce_lr_patience=3, reduce_lr_factor=0.25, min_learning_rate=1e-6)
    made = callbacks.create_callbacks(config, tmp_path / "deep" / "run")
    found = {base: next(c for c in made if isinstance(c, base)) for base in _ORIGINAL}
    checkpoint, early, reduce = (found[base] for base in _ORIGINAL[:3])
    assert checkpoint.filepath == str(tmp_path / "deep" / "run" / "best_model_checkpoint.keras")
    assert (checkpoint.monitor, checkpoint.mode) == ("val_accuracy", "max")
    assert (checkpoint.save_best_only, checkpoint.save_weights_only) == (True, False)
    assert (early.monitor, early.mode, early.patience, early.restore_best_weights) == ("val_accuracy", "max", 7, True)
    assert (reduce.monitor, reduce.patience, reduce.factor, reduce.min_lr) == ("val_loss", 3, 0.25, 1e-6)
    board = found[keras.callbacks.TensorBoard]
    assert (Path(board.log_dir), board.histogram_freq, board.embeddings_freq) == (tmp_path / "deep" / "run" / "logs", 0, 0)


_ORIGINAL = (
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.TensorBoard,
    callbacks.MemoryMonitorCallback,
)


def test_part_4_leaves_a_loadable_checkpoint_and_logs(tmp_path, windows, capsys):
    made = callbacks.create_callbacks(SMALL, tmp_path)
    history = fit(windows, made, lambda: build_model(SMALL), epochs=2)
    model = keras.models.load_model(tmp_path / callbacks.CHECKPOINT_NAME)
    x, y = windows
    accuracy = (model.predict(x[64:], verbose=0).argmax(axis=1) == y[64:].argmax(axis=1)).mean()
    assert accuracy == pytest.approx(max(history.history["val_accuracy"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == [callbacks.CHECKPOINT_NAME, callbacks.CHECKPOINT_NAME + ".manifest.json", "logs"]
    assert capsys.readouterr().out == ""


def test_part_4_monitor_without_validation_data_is_an_error(tmp_path, windows):
    x, y = windows
    with pytest.raises(callbacks.MonitorError, match="expected val_accuracy after epoch 1"):
        quick_model().fit(x, y, verbose=0, callbacks=callbacks.create_callbacks(SMALL, tmp_path, tensorboard=False))


def test_part_4_a_nan_window_is_a_typed_error_and_saves_nothing(tmp_path, windows):
    x, _ = windows
    x[0, 3, 2] = np.nan
    with pytest.raises(callbacks.NonFiniteError, match="in epoch 1"):
        fit(windows, callbacks.create_callbacks(SMALL, tmp_path, tensorboard=False), lambda: build_model(SMALL), epochs=3)
    assert list(tmp_path.iterdir()) == []


def test_part_4_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(callbacks.OutputFolderError, match="expected a folder") as caught:
        callbacks.create_callbacks(SMALL, tmp_path / "run")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, CryptoLSTMError)


def test_part_4_missing_tensorboard_is_found_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(callbacks.MissingTensorBoardError, match="pip install tensorboard"):
        callbacks.create_callbacks(SMALL, tmp_path)
    assert len(callbacks.create_callbacks(SMALL, tmp_path, tensorboard=False)) == 5


# part 5: the memory monitor


def test_part_5_records_each_epoch_beside_independent_readings(windows):
    monitor = callbacks.MemoryMonitorCallback()
    history = fit(windows, [monitor], epochs=2).history
    first, last = monitor.memory_history
    assert [r["epoch"] for r in (first, last)] == [0, 1]
    assert [r["val_accuracy"] for r in (first, last)] == pytest.approx(history["val_accuracy"])
    assert [r["val_loss"] for r in (first, last)] == pytest.approx(history["val_loss"])
    assert last["memory_mb"] == pytest.approx(psutil.Process().memory_info().rss / MB, abs=30)
    if not Path("/proc/self/status").exists():
        return
    marks = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert last["peak_mb"] == pytest.approx(int(marks[0].split()[1]) / 1024, abs=30)


def test_part_5_without_validation_says_none_and_not_zero(windows):
    monitor = callbacks.MemoryMonitorCallback()
    quick_model().fit(*windows, epochs=1, verbose=0, callbacks=[monitor])
    assert (monitor.memory_history[0]["val_accuracy"], monitor.memory_history[0]["val_loss"]) == (None, None)


def test_part_5_a_second_run_has_its_own_history_and_peak(windows):
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
def test_training_curves_show_what_the_history_holds(figure, epochs):
    whole = {"loss": [1.0, 0.8, 0.7, 0.6], "accuracy": [0.4, 0.5, 0.6, 0.7], "learning_rate": [0.1, 0.1, 0.05, 0.05]}
    history = {name: values[:epochs] for name, values in whole.items()}
    loss, accuracy = callbacks.plot_training_curves(history, baseline=0.55)
    assert list(loss.lines[0].get_ydata()) == history["loss"]
    assert loss.lines[0].get_marker() == "o"
    assert sum(line.get_linestyle() == ":" for line in loss.lines) == (epochs > 2)
    assert accuracy.get_title(loc="left") == f"Best accuracy {history['accuracy'][-1]:.3f} in epoch {epochs}"
    assert 0.55 in [line.get_ydata()[0] for line in accuracy.lines if line.get_linestyle() == "--"]
