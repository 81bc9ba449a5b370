"""Integers in the layers and in the weights beside float32, in one run: decisions that differ, speed, size.

    python -m benchmarks int8 [--epochs 3] [--candles 30000] [--units 64,32] [--real FILE] [--json FILE]

Three networks are trained: on a synthetic market with a small edge, on one with a larger edge, and on a real market if
there is a file of it. The decisions of the test part are those of the network with its calibration and its rule. An
export takes integers in the layers if at most 0.1 % of the decisions differ, else integers in the weights. A ratio is
float32 over int8, as a median of calls in turn; absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "FILUSDT-1m-202308-202311-binance-um.feather"
CALLS = 200


def list_markets(count: int, real: Path) -> dict[str, tuple[Any, str]]:
    """Name -> candles and timeframe."""
    from crypto_lstm.data.candles import read_candles
    from crypto_lstm.data.synthetic import synthetic_candles

    markets = {}
    for edge in (0.3, 0.6):
        markets[f"synthetic, edge {edge:g}"] = synthetic_candles(count, seed=3, edge=edge, timeframe="5m"), "5m"
    if real.exists():
        markets[real.stem] = read_candles(real).tail(43_200 + count).reset_index(drop=True), "1m"
    else:
        print(f"left out the real market: {real} does not exist")
    return markets


def measure(candles: Any, timeframe: str, units: tuple[int, ...], epochs: int, place: Path) -> list[dict[str, Any]]:
    """Train a network, and compare its float32 with each kind of integers."""
    from datetime import datetime

    from crypto_lstm.config import Config
    from crypto_lstm.inference import onnx_file
    from crypto_lstm.inference.int8 import is_accepted, quantize_arrays, quantize_weights, restore_weights
    from crypto_lstm.inference.predictor import Predictor
    from crypto_lstm.training.saved_run import load_run
    from crypto_lstm.training.trainer import train

    network = {"sequence_length": 60, "lstm_units": units, "dense_units": (16,)}
    config = Config(timeframe=timeframe, epochs=epochs, batch_size=256, **network)
    train(candles, config, place, tensorboard=False)
    bundle, metadata = load_run(place).bundle, json.loads((place / "metadata.json").read_text())
    since = datetime.fromisoformat(metadata["windows"]["spans"]["test"][0])
    path = place / "model.onnx"
    policy = Predictor.load(path).policy
    facts, _, arrays = onnx_file.decode_onnx_file(path.read_bytes(), path)
    rows = onnx_file._make_candle_windows(config, bundle.scaler, candles, since)
    plain = onnx_file.open_session(onnx_file.encode_onnx_file(config, arrays))
    answers = onnx_file.run_one_by_one(plain, rows)
    shape = config.sequence_length, len(config.features)
    golden = onnx_file.decode_rows(facts["golden"]["windows"], shape, "golden windows", path)
    keras = onnx_file.decode_rows(facts["golden"]["probabilities"], (3,), "golden answers", path)
    found = []
    for integers in (quantize_arrays(arrays), quantize_weights(arrays)):
        report = onnx_file.measure_integers(config, integers, (rows, answers, {}), (golden, keras), policy)
        session = onnx_file.open_session(onnx_file.encode_onnx_file(config, restore_weights(integers)))
        sizes = [sum(array.nbytes for array in one.values()) for one in (arrays, integers)]
        file = len(onnx_file.encode_onnx_file(config, integers, {**facts, "int8": report.as_dict()}))
        medians = time_in_turn((plain, session), rows)
        found.append(
            {
                **report.as_dict(),
                "share": report.share,
                "accepted": is_accepted(report),
                "one_window_ms": [1000 * one for one in medians],
                "speed_ratio": medians[0] / medians[1],
                "weights_ratio": sizes[1] / sizes[0],
                "file_ratio": file / path.stat().st_size,
                "actions": int(np.count_nonzero(policy.choose_rows(answers)["decision"] != "HOLD")),
            }
        )
    return found


def time_in_turn(sessions: tuple[Any, Any], rows: np.ndarray) -> list[float]:
    """Median seconds of one window, of two networks that answer in turn."""
    from crypto_lstm.inference.onnx_file import INPUT

    times: tuple[list[float], list[float]] = ([], [])
    for call in range(CALLS):
        window = rows[call % len(rows)][None]
        for session, spent in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, {INPUT: window})
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


HEADER = ("model", "integers in", "decisions differ", "share", "probability", "one window", "weights", "file")


def list_row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    verdict = "" if one["accepted"] else ", refused"
    counts = f"{one['different']} of {one['windows']:,} ({one['actions']:,} trades)"
    change = f"{one['mean_change']:.1e}, at most {one['max_change']:.1e}"
    ratios = f"{one['speed_ratio']:.2f} x as quick", f"{one['weights_ratio']:.2f}", f"{one['file_ratio']:.2f}"
    return name, one["kind"], counts, f"{one['share']:.3%}{verdict}", change, *ratios


def main(words: list[str]) -> int:
    from crypto_lstm.utils.display import text_table

    parser = argparse.ArgumentParser(prog="python -m benchmarks int8", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--candles", type=int, default=30_000)
    parser.add_argument("--units", default="64,32", help="of the LSTM layers")
    parser.add_argument("--real", type=Path, default=REAL, help="candles of a real market, of minutes")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args(words)
    units, results = tuple(map(int, options.units.split(","))), {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, market) in enumerate(list_markets(options.candles, options.real).items()):
            results[name] = measure(*market, units, options.epochs, Path(folder) / str(number))
    table = [list_row(name, one) for name, found in results.items() for one in found]
    print(text_table(HEADER, table, width=200))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0
