"""Large changes of one weight that the golden answers of a bundle and of an ONNX file do not show."""

from __future__ import annotations

import argparse

import keras
import numpy as np

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference.bundle import TOLERANCE
from crypto_lstm.inference.onnx_file import GOLDEN_REAL, make_probe_rows

NETWORKS = {"32/16": ((32, 16), (16,)), "128/64/32": ((128, 64, 32), (32, 16)), "256/128": ((256, 128), (64,))}
TOLERANCES = (1e-3, TOLERANCE)


def make_windows(config: Config) -> np.ndarray:
    """Golden windows as a bundle has them: real ones, then probes."""
    data = prepare(synthetic_candles(60_000, seed=3), config)
    places = np.linspace(0, len(data.test.rows) - 1, GOLDEN_REAL).round().astype(int)
    probes = np.repeat(make_probe_rows(config)[:, None], config.sequence_length, axis=1)
    return np.concatenate([data.test.gather(data.test.rows[places]), probes])


def change_weights(model: keras.Model, windows: np.ndarray, count: int) -> np.ndarray:
    """(count, windows) changes of the answers, each after a random weight was changed by 1 or by -1."""
    rng = np.random.default_rng(0)
    before = model.predict_on_batch(windows)
    sizes = np.array([np.prod(variable.shape) for variable in model.weights])
    changes = []
    for _ in range(count):
        variable = model.weights[rng.choice(len(sizes), p=sizes / sizes.sum())]
        good = variable.numpy()
        changed = good.copy()
        changed.flat[rng.integers(changed.size)] += rng.choice([-1, 1])
        variable.assign(changed)
        changes.append(np.abs(model.predict_on_batch(windows) - before).max(axis=1))
        variable.assign(good)
    return np.array(changes)


def main(words: list[str]) -> int:
    """Print, for each network, how many changes no golden answer shows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks golden", description=__doc__)
    parser.add_argument("--changes", type=int, default=250, help="changes of one weight for each network")
    options = parser.parse_args(words)
    print("network    file    smallest change of an answer   unseen at " + " and ".join(f"{t:g}" for t in TOLERANCES))
    for name, (lstm_units, dense_units) in NETWORKS.items():
        config = Config(lstm_units=lstm_units, dense_units=dense_units)
        changes = change_weights(build_model(config), make_windows(config), options.changes)
        for file, chosen in (("bundle", changes), ("ONNX", changes[:, ::2])):
            largest = chosen.max(axis=1)
            unseen = ", ".join(str(int(np.count_nonzero(largest <= limit))) for limit in TOLERANCES)
            print(f"{name:10} {file:7} {largest.min():<30.1e} {unseen}", flush=True)
    return 0
