"""Durable saves and verified loads of the default network, in turn with plain Keras' save + fsync and load. Part of `trust.py`."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from support import save_load_cases as saves
import tensorflow as tf

from crypto_lstm.architecture import build_model
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.config import Config
from crypto_lstm.persistence import FORMATS, load_model, save_model
from crypto_lstm.data.windows import prepare

Act = Callable[[], object]


def _synced(path: Path) -> None:
    for file in [path, *path.rglob("*")] if path.is_dir() else [path, path.parent]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def pairs(place: Path) -> dict[str, dict[str, tuple[Act, Act]]]:
    """Kind -> save and load -> ours and Keras'."""
    config = Config(timeframe="1h", sequence_length=120, future_window=24, dense_units=(32, 16))
    data = prepare(saves.synthetic_candles(3000, seed=3, timeframe="1h"), config)
    model, theirs = build_model(config), build_model(config)  # Keras' own `.h5` writer takes the optimizer out of the model's settings
    for network in (model, theirs):
        network.optimizer.build(network.trainable_variables)
    found: dict[str, dict[str, tuple[Act, Act]]] = {}

    def plain_save(path: Path) -> Act:
        def act() -> None:
            theirs.save(path) if path.suffix else theirs.export(path, verbose=False)
            _synced(path)

        return act

    def plain_load(path: Path) -> Act:
        return lambda: keras.saving.load_model(path) if path.suffix else tf.saved_model.load(str(path))

    for format, suffix in FORMATS.items():
        ours, plain = place / f"ours-{format}{suffix}", place / f"plain-{format}{suffix}"
        found[format] = {
            "save": (lambda ours=ours, format=format: save_model(model, ours, format), plain_save(plain)),
            "load": (lambda ours=ours: load_model(ours), plain_load(plain)),
        }
    bundle, plain = place / "bundle", place / "bundle-plain.keras"
    run = SimpleNamespace(config=config, model=model, data=data)
    found["bundle (against .keras)"] = {
        "save": (lambda: save_bundle(run, bundle), plain_save(plain)),
        "load": (lambda: load_bundle(bundle), plain_load(plain)),
    }
    return found


def _seconds(act: Act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, Any]:
    """Ratios of medians; `low` and `high` are the quartiles of the ratios of single rounds."""
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, both in pairs(Path(folder)).items():
            ratios[kind] = {}
            for what, (ours, plain) in both.items():
                times = np.array([[_seconds(act) for act in (ours, plain)] for _ in range(rounds + 2)])[2:]
                medians = np.median(times, axis=0)
                low, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.75))
                shown = {
                    "ours_ms": medians[0] * 1e3,
                    "keras_ms": medians[1] * 1e3,
                    "ratio": medians[0] / medians[1],
                    "low": low,
                    "high": high,
                }
                ratios[kind][what] = {name: round(float(value), 3) for name, value in shown.items()}
    return {"ratios": ratios, "load": os.getloadavg()[0]}
