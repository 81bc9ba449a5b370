"""Savers and readers that are tried under kills, faults and changed bytes: five of this package, and plain Keras.

`KINDS[name](place)` returns `save(n)` and `read()`, as `crash_injection` needs them; save n has the number n in every
weight. Both need a process that may use TensorFlow; nothing is built before the first call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import CarefulEarlyStopping, create_callbacks
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.persistence import FORMATS, load_model, save_model
from crypto_lstm.saving.model_file import load_report
from crypto_lstm.training.checkpointing import TrainingBackup, read_state

CONFIG = Config(timeframe="1h", sequence_length=6, future_window=24, lstm_units=(4,), dense_units=(), batch_size=64)

Kind = Callable[[Path], tuple[Callable[[int], None], Callable[[], int | None]]]


@functools.cache
def candles() -> Any:
    return synthetic_candles(1200, seed=3, timeframe="1h")


@functools.cache
def data() -> Any:
    """Windows of a synthetic market, made without TensorFlow, so that the process may fork afterwards."""
    return prepare(candles(), CONFIG)


@functools.cache
def model() -> keras.Model:
    return build_model(CONFIG, compile_model=False)


@functools.cache
def trained() -> keras.Model:
    """A network whose optimizer has its variables."""
    network = build_model(CONFIG)
    network.optimizer.build(network.trainable_variables)
    return network


def fill(network: keras.Model, number: int) -> keras.Model:
    network.set_weights([np.full(w.shape, number, w.dtype) for w in network.get_weights()])
    return network


def only(arrays: Iterable[np.ndarray]) -> int:
    """The number that fills all arrays; raises if there are several."""
    numbers = {float(value) for array in arrays for value in np.unique(array)}
    if len(numbers) != 1:
        raise AssertionError(f"torn: {sorted(numbers)[:5]}")
    return int(numbers.pop())


def _agreed(*numbers: int) -> int:
    if len(set(numbers)) != 1:
        raise AssertionError(f"parts of several saves: {numbers}")
    return numbers[0]


# ---------------------------------------------------------------- this package


def bundle(place: Path):
    target = place / "bundle"

    def save(number: int) -> None:
        tf.config.run_functions_eagerly(True)  # tracing the network of each bundle would take most of the time
        run = SimpleNamespace(config=CONFIG, model=fill(model(), number), data=data())
        save_bundle(run, target, notes={"number": number})

    def read() -> int | None:
        if not os.path.lexists(target):
            return None
        tf.config.run_functions_eagerly(True)
        found = load_bundle(target)
        return _agreed(only(found.model.get_weights()), found.metadata["notes"]["number"])

    return save, read


def _format(format: str) -> Kind:
    def kind(place: Path):
        target = place / f"model{FORMATS[format]}"

        def save(number: int) -> None:
            save_model(fill(model(), number), target, format, metadata={"number": number})

        def read() -> int | None:
            if not os.path.lexists(target):
                return None
            found = load_model(target, compile=False)
            report = load_report(found)
            assert report.verified, "it has no manifest"
            return _agreed(only(found.get_weights()), report.metadata["metadata"]["number"])

        return save, read

    return kind


def state(place: Path):
    """A checkpoint: network, optimizer, the best weights of early stopping, history, and the step."""

    def save(number: int) -> None:
        network = trained()
        for variable in (*network.variables, *network.optimizer.variables):
            variable.assign(np.full(variable.shape, number))
        callbacks = create_callbacks(CONFIG, place, tensorboard=False)
        early = next(c for c in callbacks if isinstance(c, CarefulEarlyStopping))
        early.best_weights = [np.full(w.shape, number, w.dtype) for w in network.get_weights()]
        facts = {"identity": {"number": number}, "config": CONFIG.as_dict()}
        backup = TrainingBackup(place, facts, callbacks, 8)
        backup.set_model(network)
        backup.history = {"loss": [float(number)]}
        backup.save(number, 0)

    def read() -> int | None:
        found = read_state(place)
        return None if found is None else _agreed(only(found.arrays.values()), found.epoch, found.identity["number"])

    return save, read


KINDS: dict[str, Kind] = {"bundle": bundle, **{name: _format(name) for name in FORMATS}, "training state": state}

# ---------------------------------------------------------------- plain Keras


def _plain(suffix: str) -> Kind:
    def kind(place: Path):
        target = place / f"model{suffix}"

        def save(number: int) -> None:
            fill(model(), number).save(target)

        def read() -> int | None:
            if not target.exists():
                return None
            return only(keras.saving.load_model(target, compile=False).get_weights())

        return save, read

    return kind


def exported(place: Path):
    target = place / "model"

    def save(number: int) -> None:
        fill(model(), number).export(target, verbose=False)

    def read() -> int | None:
        if not target.exists():
            return None
        return only(variable.numpy() for variable in tf.saved_model.load(str(target)).variables)

    return save, read


PLAIN: dict[str, Kind] = {"keras": _plain(".keras"), "h5": _plain(".h5"), "saved_model": exported}
