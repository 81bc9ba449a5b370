"""The memory monitor against readings of another process, its soft limit, and its plot."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from support import forked

from crypto_lstm import callbacks
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.memory import EmptyHistoryError, estimate_memory
from crypto_lstm.profiling import memory_monitor as monitor
from crypto_lstm.utils import system

MB = 2**20
ON_LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the readings of another process need Linux"
)


def start_python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A new Python process; its last line on stdout is JSON."""
    clean = dict(os.environ)
    for name in ("TF_CPU_ALLOCATOR_USE_BFC", "TF_ENABLE_ONEDNN_OPTS"):
        clean.pop(name, None)
    env = {**clean, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=pipe, stderr=pipe, text=True, env=env)


def read_result(process: subprocess.Popen[str]) -> tuple[Any, str]:
    """The JSON of the last line on stdout, and stderr."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err


# ---------------------------------------------------------------- against readings of another process

# TensorFlow keeps the pages of tensors for later. So only the windows, 250 MB of NumPy, are freed after the large batch
TWO_FITS = """
import gc, json, time
import keras, numpy as np
from crypto_lstm.profiling.memory_monitor import MemoryMonitorCallback

class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()
    def on_epoch_end(self, epoch, logs=None):
        spans.append((self.began, time.monotonic()))

layers = keras.layers
inner = [layers.Dense(16), layers.RepeatVector(200), layers.GlobalAveragePooling1D()]
model = keras.Sequential([keras.Input((8000,)), *inner, layers.Dense(3)])
model.compile("sgd", "mse")
monitor, spans, runs = MemoryMonitorCallback(), [], []
for batch_size in (2048, 16):
    x, y = np.ones((4 * batch_size, 8000), "float32"), np.ones((4 * batch_size, 3), "float32")
    model.fit(x, y, batch_size=batch_size, epochs=2, verbose=0, callbacks=[Clock(), monitor, Clock()])
    runs.append(monitor.memory_history)
    del x, y
    gc.collect()
print(json.dumps({"runs": runs, "spans": spans[1::2]}))
"""


def poll_memory(process: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """(time, anonymous MB) of another process about each millisecond until it ends; not the kernel's record."""
    page, found = os.sysconf("SC_PAGE_SIZE"), []
    with Path(f"/proc/{process.pid}/statm").open() as statm:
        while process.poll() is None:
            statm.seek(0)
            fields = statm.read().split()
            anonymous = int(fields[1]) - int(fields[2]) if len(fields) > 2 else 0  # resident less shared pages
            found.append((time.monotonic(), anonymous * page / MB))
            time.sleep(0.001)
    return found


@ON_LINUX
def test_the_peak_of_each_epoch_equals_the_readings_of_another_process_and_a_second_fit_has_its_own():
    # This process polls the anonymous memory of the child. The monitor reads its own, and the kernel's record.
    # CLOCK_MONOTONIC is the same for both processes, so the readings of each epoch are known
    process = start_python(TWO_FITS)
    polled = poll_memory(process)
    result, _ = read_result(process)
    large, small = result["runs"]
    assert [record["epoch"] for record in large + small] == [0, 1, 0, 1]
    for record, (began, ended) in zip(large + small, result["spans"], strict=True):
        outside = max(mb for moment, mb in polled if began <= moment <= ended)
        assert record["peak_is_epoch"]
        assert record["peak_mb"] == pytest.approx(outside, rel=0.02)
    highest = max(mb for _, mb in polled)
    for record in small:  # a record that was not reset would be far too high
        assert record["peak_mb"] < 0.9 * highest
    assert max(record["peak_mb"] for record in large) == pytest.approx(highest, rel=0.02)


# ---------------------------------------------------------------- the soft limit


LIMITED = """
import json, sys
from pathlib import Path
import keras, numpy as np
from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import CHECKPOINT_NAME, create_callbacks
from crypto_lstm.config import Config
from crypto_lstm.utils.system import anonymous_memory_mb

class Hog(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            self.held = bytearray(500 * 2**20)

config = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(128, 12, 8)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, 128)]
options = {"validation_data": (x[96:], y[96:]), "batch_size": 16, "epochs": 9, "verbose": 0}

def accuracy(model):
    return float((model.predict(x[96:], verbose=0).argmax(1) == y[96:].argmax(1)).mean())

def fit_with_margin(margin, folder):
    model = build_model(config)
    limit_mb = anonymous_memory_mb() + margin
    made = create_callbacks(config, folder, tensorboard=False, memory_soft_limit_mb=limit_mb)
    fitted = model.fit(x[:96], y[:96], callbacks=[Hog(), *made], **options)
    watch = next(c for c in made if type(c).__name__ == "MemoryMonitorCallback")
    return {
        "stop": watch.stopped_by_limit._asdict(),
        "limit": watch.soft_limit_mb,
        "history": fitted.history,
        "records": watch.memory_history,
        "saved": accuracy(keras.models.load_model(folder / CHECKPOINT_NAME)),
        "restored": accuracy(model),
        "files": [path.name for path in folder.iterdir()],
    }

print(json.dumps([fit_with_margin(margin, Path(sys.argv[1]) / str(margin)) for margin in (1, 400)]))
"""


@ON_LINUX
def test_soft_limit_ends_training_after_the_step_with_the_best_model_saved(tmp_path):
    done = forked.run(LIMITED, tmp_path, environment={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"})
    assert done.returncode == 0, done.stderr
    both, log = json.loads(done.stdout.splitlines()[-1]), done.stderr
    for found, place in zip(both, [(0, 0), (1, 1)], strict=True):  # the limits of 1 and of 400 MB above the start
        stop, history = found["stop"], found["history"]
        assert (stop["epoch"], stop["batch"], stop["limit_mb"]) == (*place, found["limit"])
        assert stop["peak_mb"] > stop["limit_mb"]
        # the shortened epoch was validated
        assert len(history["val_accuracy"]) == len(found["records"]) == place[0] + 1
        assert found["saved"] == found["restored"] == pytest.approx(max(history["val_accuracy"]))
        assert sorted(found["files"]) == [callbacks.CHECKPOINT_NAME, callbacks.CHECKPOINT_NAME + ".manifest.json"]
        assert f"{stop['peak_mb']:,.0f} MB, the soft limit is {stop['limit_mb']:,.0f} MB; lower batch_size" in log
    assert log.count("the soft limit is") == 2


@pytest.mark.parametrize("bad", [0, -1, -0.5, math.nan, math.inf, "1000", True, [1000], 10**400])
def test_invalid_limits_are_refused(tmp_path, bad):
    expected = r"soft_limit_mb must be none or in \(0, inf\), got "
    with pytest.raises(ConfigError, match=expected):
        monitor.MemoryMonitorCallback(soft_limit_mb=bad)
    with pytest.raises(ConfigError, match=expected):
        callbacks.create_callbacks(Config(), tmp_path / "run", memory_soft_limit_mb=bad)
    with pytest.raises(ConfigError, match=r"limit_mb must be none or in \(0, inf\), got "):
        monitor.plot_memory_history([{"epoch": 0, "peak_mb": 1.0}], limit_mb=bad)
    assert not (tmp_path / "run").exists()


def test_a_soft_limit_creates_the_monitor_that_it_needs(tmp_path):
    def limits(**options: Any) -> list[float | None]:
        made = callbacks.create_callbacks(Config(), tmp_path, tensorboard=False, **options)
        return [one.soft_limit_mb for one in made if isinstance(one, callbacks.MemoryMonitorCallback)]

    assert callbacks.MemoryMonitorCallback is monitor.MemoryMonitorCallback
    assert limits() == [None]
    assert limits(memory_monitor=False) == []
    assert limits(memory_soft_limit_mb=9) == [9.0]
    assert limits(memory_soft_limit_mb=9, memory_monitor=False) == [9.0]


# ---------------------------------------------------------------- tensors and GPU


TENSORS = """
import json
import keras, numpy as np, tensorflow as tf
from crypto_lstm.profiling.memory_monitor import MemoryMonitorCallback

monitor = MemoryMonitorCallback()
inner = [keras.layers.Dense(64), keras.layers.RepeatVector(500), keras.layers.GlobalAveragePooling1D()]
model = keras.Sequential([keras.Input((8,)), *inner])
model.compile("sgd", "mse")
first = tf.ones((256, 1024, 256))  # 256 MB before the first epoch, not part of it
del first
x, y = np.ones((512, 8), "float32"), np.ones((512, 64), "float32")
model.fit(x, y, batch_size=512, epochs=2, verbose=0, callbacks=[monitor])
print(json.dumps([record["tensor_peak_mb"] for record in monitor.memory_history]))
"""


def test_the_tensor_peak_is_none_unless_the_cpu_allocator_counts_all_tensors():
    without_onednn = start_python(TENSORS, TF_ENABLE_ONEDNN_OPTS="0")  # the import reads it
    clean = {name: text for name, text in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    counting = forked.run(TENSORS, environment={**clean, "TF_CPU_ALLOCATOR_USE_BFC": "1", "CUDA_VISIBLE_DEVICES": "-1"})
    activations = 512 * 500 * 64 * 4 / MB  # and perhaps a gradient of the same size
    for peak in json.loads(counting.stdout.splitlines()[-1]):
        assert activations < peak < 3 * activations < 256
    assert read_result(without_onednn)[0] == [None, None]
    if os.environ.get("TF_CPU_ALLOCATOR_USE_BFC") != "1" and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0":
        assert not monitor._has_cpu_statistics()  # the defaults, as in this process


def test_a_gpu_is_reset_with_each_epoch_and_read_at_its_end(monkeypatch):
    resets, readings = [], iter([(3.0, 40.0), (4.0, 50.0)])
    monkeypatch.setattr(monitor, "gpu_memory_mb", lambda: next(readings))
    monkeypatch.setattr(monitor, "reset_gpu_peak", lambda: resets.append(1) or True)
    watch = monitor.MemoryMonitorCallback()
    watch.on_train_begin()
    for epoch in (0, 1):
        watch.on_epoch_begin(epoch)
        assert len(resets) == epoch + 1
        watch.on_epoch_end(epoch, {})
    names = ("gpu_mb", "gpu_peak_mb", "tensor_peak_mb")
    values = [tuple(record[name] for name in names) for record in watch.memory_history]
    assert values == [(3.0, 40.0, 40.0), (4.0, 50.0, 50.0)]


# ---------------------------------------------------------------- systems that can't reset their record, and costs


def test_without_a_record_that_resets_the_ends_of_batches_are_read(monkeypatch):
    now, highest = [100.0], [900.0]
    monkeypatch.setattr(system, "reset_peak_memory", lambda: False)
    monkeypatch.setattr(system, "read_process_memory", lambda: system.ProcessMemory(now[0], 40.0))
    monkeypatch.setattr(system, "peak_memory_mb", lambda: highest[0])
    watch = monitor.MemoryMonitorCallback(soft_limit_mb=600)
    watch.set_model(SimpleNamespace(stop_training=False))
    watch.on_train_begin()
    watch.on_epoch_begin(0)
    watch._peak.stop()  # only the readings of this test
    for batch, held in enumerate((200.0, 500.0, 300.0)):
        now[0] = held
        watch.on_train_batch_end(batch)
    watch.on_epoch_end(0)
    watch.on_epoch_begin(1)
    watch._peak.stop()
    assert not watch.model.stop_training  # the peak of an earlier run does not count
    highest[0] = 990.0  # higher than before, so it is the peak of this epoch, with 40 MB of file pages
    watch.on_train_batch_end(0)
    watch.on_epoch_end(1)
    values = [(record["peak_mb"], record["peak_is_epoch"]) for record in watch.memory_history]
    assert values == [(500.0, False), (950.0, True)]
    assert watch.model.stop_training
    assert watch.stopped_by_limit == (1, 0, 950.0, 600.0)


@ON_LINUX
def test_a_step_reads_one_file_of_the_kernel_twice(monkeypatch):
    """So its cost does not depend on the network. Another thread reads as well: only this one counts."""
    watch, this, reads = monitor.MemoryMonitorCallback(soft_limit_mb=1e9), threading.get_ident(), []
    watch.on_epoch_begin(0)
    read_status = system._read_status

    def count():
        if threading.get_ident() == this:
            reads.append(1)
        return read_status()

    monkeypatch.setattr(system, "_read_status", count)
    watch.on_train_batch_end(0)
    watch.on_train_end()
    assert len(reads) == 2


def test_a_callback_that_is_used_again_forgets_its_stop(caplog):
    watch = monitor.MemoryMonitorCallback(soft_limit_mb=1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 3), "float32")
    with caplog.at_level(logging.WARNING, logger="crypto_lstm.profiling.memory_monitor"):
        model.fit(x, x[:, :1], batch_size=2, epochs=3, verbose=0, callbacks=[watch])
    assert watch.stopped_by_limit[:2] == (0, 0)
    assert (len(watch.memory_history), len(caplog.records)) == (1, 1)
    watch.soft_limit_mb = 1e9
    model.fit(x, x[:, :1], batch_size=2, epochs=3, verbose=0, callbacks=[watch])
    assert (watch.stopped_by_limit, len(watch.memory_history)) == (None, 3)


# ---------------------------------------------------------------- the plot


@pytest.fixture
def figure():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def make_records(epochs: int = 3, **more: float | None) -> list[dict[str, Any]]:
    common = {"memory_mb": 500.0, "peak_is_epoch": True, **more}
    return [{"epoch": epoch, "peak_mb": 700.0 + epoch, **common} for epoch in range(epochs)]


def test_file_pages_are_a_line_and_no_part_of_the_headroom(figure):
    ax = monitor.plot_memory_history(make_records(file_mb=1200.0), limit_mb=1000)
    assert ax.get_title(loc="left") == "Headroom 298 MB (30%)\nhighest peak 702 MB, limit 1,000 MB"
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["file pages, not counted"].get_ydata()) == [1200, 1200, 1200]
    assert ax.get_ylim()[1] > 1200


def shaded_bands(ax) -> list[tuple[float, float]]:
    """Lower and upper end of the shaded bands of the panel."""
    return [(round(p.get_y(), 6), round(p.get_y() + p.get_height(), 6)) for p in ax.patches]


def test_title_bands_and_bar_show_the_headroom(figure):
    estimate = estimate_memory(Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,)))
    ax = monitor.plot_memory_history(make_records(), estimate, limit_mb=1000)
    assert ax.get_title(loc="left") == "Headroom 298 MB (30%)\nhighest peak 702 MB, limit 1,000 MB"
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["peak of the epoch"].get_ydata()) == [700, 701, 702]
    assert list(lines["end of the epoch"].get_xdata()) == [1, 2, 3]
    assert lines["limit 1,000 MB"].get_ydata()[0] == 1000
    assert shaded_bands(ax) == [(round(estimate.process_peak_mb, 6), round(estimate.upper_mb, 6)), (702, 1000)]
    gauge = [round(bar.get_width()) for bar in ax.child_axes[0].patches]
    assert gauge == [1000, 702, 0]  # the limit, the peak, the excess


def test_a_far_limit_is_shown_by_the_bar_and_does_not_flatten_the_lines(figure):
    ax = monitor.plot_memory_history(make_records(1), limit_mb=24_000)
    assert ax.get_title(loc="left").startswith("Headroom 23,300 MB (97%)")
    assert ax.get_ylim()[1] < 1000
    gauge = ax.child_axes[0]
    assert [round(bar.get_width()) for bar in gauge.patches] == [24_000, 700, 0]
    assert gauge.get_xlim() == pytest.approx((0, 24_000), rel=0.01)


def test_a_peak_above_the_limit_is_named_and_shaded(figure):
    ax = monitor.plot_memory_history(make_records(), limit_mb=600)
    assert ax.get_title(loc="left").startswith("102 MB ABOVE the limit")
    assert shaded_bands(ax) == [(600, 702)]
    assert [round(bar.get_width()) for bar in ax.child_axes[0].patches] == [600, 600, 102]


@pytest.mark.parametrize("given", ["none", "subplot", "by hand"])
def test_a_gpu_has_a_panel_of_its_own(figure, given):
    ax = None
    if given == "subplot":
        ax = figure.subplots()[1]
    elif given == "by hand":
        ax = figure.figure().add_axes((0.1, 0.2, 0.8, 0.6))
    drawn = monitor.plot_memory_history(make_records(gpu_mb=10.0, gpu_peak_mb=412.0), ax=ax)
    assert ax is None or drawn is ax
    ram, gpu = drawn.figure.axes
    drawn.figure.canvas.draw()
    assert list(gpu.lines[0].get_ydata()) == [412.0] * 3
    assert gpu.get_title(loc="left") == "GPU tensors\nhighest peak 412 MB"
    assert ram.get_position().x1 < gpu.get_position().x0


def test_without_a_gpu_or_a_limit_there_is_one_panel_and_no_bar(figure):
    ax = monitor.plot_memory_history(make_records(gpu_mb=None, gpu_peak_mb=None))
    assert (len(ax.figure.axes), ax.child_axes) == (1, [])
    assert ax.get_title(loc="left") == "Highest peak 702 MB"
    assert all(low < high for low, high in pairwise(ax.get_yticks()))
    with pytest.raises(EmptyHistoryError, match="at least one epoch"):
        monitor.plot_memory_history([])
