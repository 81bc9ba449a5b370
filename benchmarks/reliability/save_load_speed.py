"""Durable saves and verified loads of the default network, in turn with plain Keras' save + fsync and load."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.speed.workers import time_call
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.persistence import FORMATS, load_model, save_model

Act = Callable[[], object]
Pair = tuple[Act, Act]  # ours, and that of Keras


def sync(path: Path) -> None:
    """Sync a file and its folder, or a folder with all that it holds."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path, path.parent]
    for each in paths:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def save_plain(model: keras.Model, path: Path) -> None:
    """Save as plain Keras does it, and sync."""
    if path.suffix:
        model.save(path)
    else:
        model.export(path, verbose=False)
    sync(path)


def load_plain(path: Path) -> object:
    """Load as plain Keras does it."""
    return keras.saving.load_model(path) if path.suffix else tf.saved_model.load(str(path))


def make_pairs(place: Path) -> dict[str, dict[str, Pair]]:
    """By kind: the save and the load, ours and those of Keras."""
    config = Config(timeframe="1h", sequence_length=120, future_window=24, dense_units=(32, 16))
    data = prepare(synthetic_candles(3000, seed=3, timeframe="1h"), config)
    model, theirs = (
        build_model(config),
        build_model(config),
    )  # Keras' `.h5` writer removes the optimizer from the settings
    for network in (model, theirs):
        network.optimizer.build(network.trainable_variables)
    found: dict[str, dict[str, Pair]] = {}

    def add(kind: str, save: Act, load: Act, plain: Path) -> None:
        found[kind] = {
            "save": (save, lambda: save_plain(theirs, plain)),
            "load": (load, lambda: load_plain(plain)),
        }

    def add_format(name: str, suffix: str) -> None:
        ours = place / f"ours-{name}{suffix}"
        save, load = (lambda: save_model(model, ours, name)), (lambda: load_model(ours))
        add(name, save, load, place / f"plain-{name}{suffix}")

    for name, suffix in FORMATS.items():
        add_format(name, suffix)
    run, bundle = SimpleNamespace(config=config, model=model, data=data), place / "bundle"
    save, load = (lambda: save_bundle(run, bundle)), (lambda: load_bundle(bundle))
    add("bundle (against .keras)", save, load, place / "bundle-plain.keras")
    return found


def measure(rounds: int) -> dict[str, Any]:
    """Ratios of medians by kind; `low` and `high` are the quartiles of the ratios of single rounds."""
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, pairs in make_pairs(Path(folder)).items():
            ratios[kind] = {act: compare(pair, rounds) for act, pair in pairs.items()}
    return {"ratios": ratios, "load": os.getloadavg()[0]}


def compare(pair: Pair, rounds: int) -> dict[str, float]:
    """Times of both in turn; the first two rounds are not counted."""
    ours, plain = pair
    times = np.array([[time_call(ours), time_call(plain)] for _ in range(rounds + 2)])[2:]
    ours_s, plain_s = np.median(times, axis=0)
    low, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.75))
    found = {"ours_ms": ours_s * 1e3, "keras_ms": plain_s * 1e3, "ratio": ours_s / plain_s, "low": low, "high": high}
    return {name: round(float(value), 3) for name, value in found.items()}
