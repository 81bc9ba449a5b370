"""The measurements of `compare.py`, ours and those of Keras and NumPy: each kind serves in a process of its own.

    python -m benchmarks.speed.peers KIND FOLDER

The folder holds the files that the request `prepare` of the kind `data` writes: candles, windows with targets, weights,
the network as an ONNX file and as a Keras file. Only the kinds that need TensorFlow load it: `predictor` and `numpy` do
not.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.keras_network import build_keras_network
from benchmarks.speed.workers import measure_in_turn, serve, time_call, time_median
from crypto_lstm.config import Config
from crypto_lstm.utils.system import peak_memory_mb, process_memory_mb, reset_peak_memory

if TYPE_CHECKING:
    import keras

WINDOWS = 4096  # stored: enough for the largest batch and for a round of many decisions
KINDS = ("per_sample", "per_batch")  # our recurrent dropout


class Stored:
    """The files in the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @property
    def config(self) -> Config:
        return Config.load(self.folder / "settings.json")

    @property
    def weights(self) -> list[np.ndarray]:
        with np.load(self.folder / "weights.npz") as file:
            return [file[f"arr_{n}"] for n in range(len(file.files))]

    @property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self.folder / "windows.npz") as file:
            return file["windows"], file["targets"]

    def view(self, count: int) -> np.ndarray:
        """Windows (count, timesteps, features) of consecutive candles, without a copy: the stored candles, repeated."""
        length = self.config.sequence_length
        with np.load(self.folder / "train.npz") as file:
            matrix, first = file["matrix"], file["rows"][0]
        candles = np.resize(matrix[first:], (count + length - 1, matrix.shape[1]))
        return np.lib.stride_tricks.sliding_window_view(candles, length, axis=0).transpose(0, 2, 1)


# ---------------------------------------------------------------- decisions without TensorFlow


class Predictor(Stored):
    """Ours: the ONNX file of the bundle on onnxruntime."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        from crypto_lstm.inference.predictor import Predictor as Ours

        self.ours = Ours.load(self.folder / "model.onnx")
        self.x, _ = self.windows
        self.streaming: Any = None

    def versions(self) -> dict[str, Any]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "tensorflow loaded": "tensorflow" in sys.modules}

    def probabilities(self, count: int) -> list[list[float]]:
        return self.ours.probabilities(self.x[:count]).tolist()

    def decision(self, repeat: int) -> float:
        self.ours.probabilities(self.x[:1])
        return time_median(lambda: self.ours.probabilities(self.x[:1]), repeat)

    def many(self, count: int) -> float:
        """Seconds for the probabilities of `count` windows, 4096 at a time: a million windows would need 4 GB."""
        x = self.view(count)

        def decide_all() -> None:
            for n in range(0, count, WINDOWS):
                self.ours.probabilities(x[n : n + WINDOWS])

        return time_call(decide_all)

    def update(self, repeat: int) -> float:
        """Median seconds from a new candle, as an exchange sends it, to its decision.

        The means over 30 days are filled before the first candle.
        """
        if self.streaming is None:
            self.streaming = self._candles()
        times = []
        for row, now in itertools.islice(self.streaming, repeat):
            start = time.perf_counter()
            decision = self.ours.update(row, now=now)
            times.append(time.perf_counter() - start)
            if decision.probabilities is None:
                raise RuntimeError(f"expected probabilities for {row}, got {decision}")
        return statistics.median(times)

    def _candles(self) -> Iterator[tuple[list[float], datetime]]:
        """Warm the stream up, then yield each candle, [ms, open, high, low, close, volume], and its closing time."""
        import pandas as pd

        candles = pd.read_feather(self.folder / "candles.feather")
        warm = self.config.month_candles + 2 * self.config.sequence_length
        self.ours.warm_up(candles[:warm])
        for date, *values in candles[warm:].itertuples(index=False):
            closes = date.to_pydatetime() + timedelta(minutes=self.config.timeframe_minutes)
            yield [date.value // 1_000_000, *values], closes


class Loop(Stored):
    """A loop written by hand in NumPy, one timestep after the other."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.w = self.weights
        self.x, _ = self.windows
        self.lstm_layers = len(self.config.lstm_units)

    def versions(self) -> dict[str, Any]:
        return {"numpy": np.__version__}

    def network(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of windows (n, timesteps, features)."""
        for n in range(self.lstm_layers):
            kernel, recurrent, bias = self.w[3 * n : 3 * n + 3]
            gates, units = x @ kernel + bias, len(recurrent)
            h = c = np.zeros((len(x), units), np.float32)
            x = np.empty((*x.shape[:2], units), np.float32)
            for t in range(x.shape[1]):
                z = gates[:, t] + h @ recurrent
                i, f, o = (1 / (1 + np.exp(-z[:, part * units : (part + 1) * units])) for part in (0, 1, 3))
                c = f * c + i * np.tanh(z[:, 2 * units : 3 * units])
                h = x[:, t] = o * np.tanh(c)
        x, dense = x[:, -1], self.w[3 * self.lstm_layers :]
        for kernel, bias in zip(dense[:-2:2], dense[1:-2:2], strict=True):
            x = np.maximum(x @ kernel + bias, 0)
        z = np.exp(x @ dense[-2] + dense[-1])
        return z / z.sum(axis=1, keepdims=True)

    def probabilities(self, count: int) -> list[list[float]]:
        return self.network(self.x[:count]).tolist()

    def decision(self, repeat: int) -> float:
        return time_median(lambda: self.network(self.x[:1]), repeat)


# ---------------------------------------------------------------- Keras


class Training(Stored):
    """Training steps by `fit`.

    `kind` is `per_sample` or `per_batch` (ours), `keras` (Keras with recurrent dropout) or `plain` (Keras without it).
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        import keras  # here, so that no request pays for it

        self.keras = keras
        self.models: dict[tuple, tuple[keras.Model, dict[str, Any]]] = {}

    def model(self, kind: str, config: Config) -> keras.Model:
        """A new network."""
        if kind in KINDS:
            from crypto_lstm.architecture import build_model

            return build_model(config.replace(recurrent_dropout=kind))
        return build_keras_network(config, config.recurrent_rate if kind == "keras" else 0.0)

    def losses(self, kind: str, batch: int, steps: int) -> list[float]:
        """Loss of each of the first training steps, without dropout: equal arithmetic gives equal numbers."""
        model = self.model(kind, self.config.replace(dropout_rate=0.0))
        model.set_weights(self.weights)
        x, y = self.windows
        losses = []
        for start in range(0, batch * steps, batch):
            part = slice(start, start + batch)
            losses.append(float(model.train_on_batch(x[part], y[part], return_dict=True)["loss"]))
        return losses

    def dataset(self, config: Config, windows: int) -> Any:
        """Some of the stored windows, repeated where they do not suffice, through the dataset that `train` uses."""
        from crypto_lstm.data.windows import WindowDataset

        with np.load(self.folder / "train.npz") as file:
            matrix = file["matrix"]
            rows, labels = np.resize(file["rows"], windows), np.resize(file["labels"], windows)
        shape = {"sequence_length": config.sequence_length, "batch_size": config.batch_windows}
        return WindowDataset(matrix, rows, labels, shuffle_seed=0, **shape)

    def train(self, kind: str, batch: int, steps: int, timesteps: int = 120) -> float:
        """Seconds of the steps of one `fit`: ours gathers batches from the matrix, peers have an array of windows."""
        key = (kind, batch, steps, timesteps)
        if key not in self.models:
            config = self.config.replace(batch_size=batch, sequence_length=timesteps)
            self.models[key] = self.model(kind, config), self.feed(kind, self.dataset(config, batch * steps))
        model, feed = self.models[key]
        return self.time_batches(model.fit, **feed)

    def feed(self, kind: str, data: Any) -> dict[str, Any]:
        """Arguments of `fit` for this kind."""
        from crypto_lstm.data.windows import tf_dataset

        fixed = {"shuffle": False, "verbose": 0}
        if kind in KINDS:
            return {"x": tf_dataset(data), **fixed}
        x, y = copy_windows(data)
        return {"x": x, "y": y, "batch_size": data.batch_size, **fixed}

    def time_batches(self, run: Callable[..., object], **feed: Any) -> float:
        """Seconds from the begin of the first batch to the end of the last, without the work and waits around them."""

        class Clock(self.keras.callbacks.Callback):
            first = last = 0.0

            def begin(self, batch: int, logs: object = None) -> None:
                self.first = self.first or time.perf_counter()

            def end(self, batch: int, logs: object = None) -> None:
                self.last = time.perf_counter()

            on_train_batch_begin = on_predict_batch_begin = begin
            on_train_batch_end = on_predict_batch_end = end

        clock = Clock()
        run(**feed, callbacks=[clock])
        return clock.last - clock.first

    def forget(self) -> None:
        """Release all networks."""
        self.models.clear()
        self.keras.backend.clear_session()
        gc.collect()

    def step_memory(self, kind: str, steps: int) -> dict[str, float | None]:
        """Peaks of some training steps, in MB of 2**20 bytes. A peak belongs to a process: use one for this alone.

        Tensors are counted where the process was started with TF_CPU_ALLOCATOR_USE_BFC=1.
        """
        import tensorflow as tf

        counted = os.environ.get("TF_CPU_ALLOCATOR_USE_BFC") == "1"
        model = self.model(kind, self.config)
        data = self.dataset(self.config, steps * self.config.batch_windows)
        gc.collect()
        resident = process_memory_mb()
        reset_peak_memory()
        if counted:
            tf.config.experimental.reset_memory_stats("CPU:0")
        model.fit(data, shuffle=False, verbose=0)
        tensors = tf.config.experimental.get_memory_info("CPU:0")["peak"] / 2**20 if counted else None
        return {"tensors_mb": tensors, "growth_mb": peak_memory_mb() - resident}


class Ours(Training):
    """The same, with the threads configured as `train` does it."""

    def __init__(self, folder: str) -> None:
        from crypto_lstm.gpu import setup_cpu_threads

        setup_cpu_threads()
        super().__init__(folder)


def copy_windows(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """All windows and targets of a dataset, copied out."""
    batches = [data[n] for n in range(len(data))]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


class Keras(Training):
    """Decisions of Keras, and the limit of the machine: matrix products."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        import tensorflow as tf

        self.tf = tf
        self.x, _ = self.windows
        self.answering = build_keras_network(self.config, self.config.recurrent_rate)
        self.answering.set_weights(self.weights)
        self.function = tf.function(lambda x: self.answering(x, training=False))
        self.square = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)

    def versions(self) -> dict[str, Any]:
        return {"tensorflow": self.tf.__version__, "keras": self.keras.__version__}

    def probabilities(self, count: int) -> list[list[float]]:
        return self.answering.predict(self.x[:count], verbose=0).tolist()

    def decision(self, how: str, repeat: int) -> float:
        window = self.x[:1]
        ways = {
            "predict": lambda: self.answering.predict(window, verbose=0),
            "call": lambda: self.answering(window, training=False).numpy(),
            "function": lambda: self.function(self.tf.constant(window)).numpy(),
        }
        return time_median(ways[how], repeat)

    def many(self, count: int, batch: int, alone: bool = False) -> float:
        """Seconds of a call of `predict`, or of its batches alone."""
        feed = {"x": self.view(count), "batch_size": batch, "verbose": 0}
        if alone:
            return self.time_batches(self.answering.predict, **feed)
        return time_call(lambda: self.answering.predict(**feed))

    def product(self, how: str) -> float:
        """Seconds of one float32 product of 2048 x 2048, on all cores."""
        if how == "numpy":
            return time_median(lambda: self.square @ self.square, 3)
        a = self.tf.constant(self.square)
        return time_median(lambda: self.tf.linalg.matmul(a, a).numpy(), 3)


# ---------------------------------------------------------------- data


class Data(Ours):
    """Candles to batches: memory and time. Resident memory belongs to a process: ask a new one for each measurement."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        from crypto_lstm.data.synthetic import synthetic_candles
        from crypto_lstm.data.windows import prepare

        self.prepare_candles, self.make_candles = prepare, synthetic_candles

    def prepare(self, candles: int) -> None:
        """Write the files that all kinds read: random weights, and windows of a synthetic market."""
        from crypto_lstm.architecture import build_model
        from crypto_lstm.inference.onnx_file import export_onnx

        config, table = Config(), self.make_candles(candles, seed=0, edge=0.5)
        (self.folder / "settings.json").write_text(json.dumps(config.as_dict()), encoding="utf-8")
        table.to_feather(self.folder / "candles.feather")
        data, model = self.prepare_candles(table, config), build_model(config)
        export_onnx(model, self.folder / "model.onnx", config=config, scaler=data.scaler)
        network = build_keras_network(config, config.recurrent_rate)
        network.set_weights(model.get_weights())
        network.save(self.folder / "model.keras")
        np.savez(self.folder / "weights.npz", *model.get_weights())
        train = data.train
        np.savez(self.folder / "train.npz", matrix=train.matrix, rows=train.rows, labels=train.labels)
        some = np.resize(np.random.default_rng(0).permutation(len(train.rows)), WINDOWS)
        targets = np.eye(3, dtype=np.float32)[train.labels[some]]
        np.savez(self.folder / "windows.npz", windows=train.gather(train.rows[some]), targets=targets)

    def candle_file(self, candles: int) -> Path:
        """A file of synthetic candles of the past. A process of its own writes it once, so that this one only reads."""
        path = self.folder / f"synthetic-{candles}.feather"
        if not path.exists():
            code = "import sys; from crypto_lstm.data.synthetic import synthetic_candles as s; "
            code += "s(int(sys.argv[1]), seed=0, start='2000-01-01').to_feather(sys.argv[2])"
            subprocess.run([sys.executable, "-c", code, str(candles), str(path)], check=True)
        return path

    def resident(self, candles: int) -> dict[str, float]:
        """Growth of the process by reading and preparing candles, in MB; a small run first loads all libraries."""
        from crypto_lstm.data.candles import read_candles

        small, path = self.candle_file(50_000), self.candle_file(candles)
        self.prepare_candles(read_candles(small), Config())
        gc.collect()
        before = process_memory_mb()
        reset_peak_memory()
        start = time.perf_counter()
        data = self.prepare_candles(read_candles(path), Config())
        took, peak = time.perf_counter() - start, peak_memory_mb() - before
        gc.collect()
        bytes_as_windows = candles * data.config.sequence_length * len(data.config.features) * 4
        readings = {"runtime_mb": before, "added_mb": process_memory_mb() - before, "peak_mb": peak, "seconds": took}
        return {**readings, "as_windows_mb": bytes_as_windows / 2**20}

    def copied(self, candles: int) -> dict[str, float]:
        """Growth of the process when every window is copied out, in MB, and the seconds of copying."""
        matrix = np.zeros((candles + 119, 8), np.float32)
        before = process_memory_mb()
        start = time.perf_counter()
        windows = np.stack([matrix[n : n + 120] for n in range(candles)])
        took = time.perf_counter() - start
        return {"added_mb": process_memory_mb() - before, "computed_mb": windows.nbytes / 2**20, "seconds": took}

    def feeding(self, candles: int, steps: int, rounds: int) -> dict[str, list[float]]:
        """Seconds of a step with the default network, and with a network of next to no arithmetic, fed alike.

        The second is the upper bound of the time that feeding takes of a step: it includes Keras' own loop, and no
        arithmetic runs beside it.
        """
        from crypto_lstm.data.candles import read_candles
        from crypto_lstm.data.windows import tf_dataset

        data = self.prepare_candles(read_candles(self.candle_file(candles)), Config())
        trained = {
            "step": self.model(data.config.recurrent_dropout, data.config),
            "feeding": self._idle_network(data.config),
        }
        counts = {"step": steps, "feeding": 40 * steps}

        def time_step(name: str) -> float:
            feed = {"x": tf_dataset(data.train), "steps_per_epoch": counts[name], "shuffle": False, "verbose": 0}
            return self.time_batches(trained[name].fit, **feed) / counts[name]

        return measure_in_turn({name: lambda name=name: time_step(name) for name in trained}, rounds)

    def _idle_network(self, config: Config) -> keras.Model:
        """A network that reads the newest candle only."""
        keras = self.keras
        window = keras.Input((config.sequence_length, len(config.features)))
        model = keras.Model(window, keras.layers.Dense(3, activation="softmax")(window[:, -1]))
        model.compile("adam", loss="categorical_crossentropy")
        return model

    def epoch(self, windows: int) -> dict[str, float]:
        """Seconds to draw one epoch's order and gather all its batches, and the memory of the windows, in MB."""
        from crypto_lstm.data.windows import WindowDataset

        random = np.random.default_rng(0)
        matrix = random.normal(size=(windows + 119, 8)).astype(np.float32)
        rows, labels = np.arange(119, 119 + windows), random.integers(0, 3, windows).astype(np.int8)
        data = WindowDataset(matrix, rows, labels, sequence_length=120, batch_size=256, shuffle_seed=0)

        def gather() -> None:
            data.on_epoch_begin()
            for n in range(len(data)):
                data[n]

        gather()
        return {"seconds": time_median(gather, 3), "held_mb": (matrix.nbytes + rows.nbytes + labels.nbytes) / 2**20}

    def candles(self, candles: int, repeat: int) -> dict[str, float]:
        """Seconds of features and of labels, each from raw candles."""
        from crypto_lstm.data.candles import read_candles
        from crypto_lstm.data.features import make_features
        from crypto_lstm.data.labels import make_labels

        table = read_candles(self.candle_file(candles))
        return {
            "features_s": time_median(lambda: make_features(table, Config()), repeat),
            "labels_s": time_median(lambda: make_labels(table, Config()), repeat),
        }


WORKERS: dict[str, tuple[type, str]] = {
    "predictor": (Predictor, "versions probabilities decision many update"),
    "numpy": (Loop, "versions probabilities decision"),
    "keras": (Keras, "versions probabilities decision many product"),
    "training": (Training, "losses train forget step_memory"),
    "ours": (Ours, "losses train forget step_memory"),
    "data": (Data, "prepare resident copied feeding epoch candles"),
}


if __name__ == "__main__":
    made, works = WORKERS[sys.argv[1]]
    worker = made(sys.argv[2])
    serve({name: getattr(worker, name) for name in works.split()})
