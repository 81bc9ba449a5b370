"""Integers in the LSTM layers beside float32, in one run: decisions that differ, speed, size.

    python -m benchmarks int8 [--epochs 3] [--candles 20000] [--json FILE]

Three small networks are trained on a synthetic market with an edge. The decisions of the test part are those of the
network with its calibration and its rule. A ratio is float32 over int8, as a median of calls in turn; absolute times
belong to the machine.
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

NETWORKS = {"small": (16, 8), "medium": (64, 32), "large": (128, 64)}
CALLS = 200


def measure(name: str, units: tuple[int, ...], count: int, epochs: int, place: Path) -> dict[str, Any]:
    """Train a network and compare its two files."""
    from datetime import datetime

    from crypto_lstm.config import Config
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.inference import onnx_file
    from crypto_lstm.inference.int8 import ACCEPTED_SHARE, measure_change, quantize_arrays
    from crypto_lstm.inference.predictor import Predictor
    from crypto_lstm.training.saved_run import load_run
    from crypto_lstm.training.trainer import train

    network = {"sequence_length": 60, "lstm_units": units, "dense_units": ()}
    config = Config(timeframe="5m", epochs=epochs, batch_size=256, **network)
    candles = synthetic_candles(count, seed=3, edge=0.6, timeframe="5m")
    run = train(candles, config, place / name, tensorboard=False)
    bundle = load_run(place / name).bundle
    metadata = json.loads((place / name / "metadata.json").read_text())
    since = datetime.fromisoformat(metadata["windows"]["spans"]["test"][0])
    path = place / name / "model.onnx"
    predictor = Predictor.load(path)
    facts, _, arrays = onnx_file.decode_onnx_file(path.read_bytes(), path)
    integers = quantize_arrays(arrays)
    rows = onnx_file._make_candle_windows(config, bundle.scaler, candles, since)
    sessions = [onnx_file.open_session(onnx_file.encode_onnx_file(config, one)) for one in (arrays, integers)]
    answers = [onnx_file.run_one_by_one(session, rows) for session in sessions]
    decisions = [predictor.policy.choose_rows(one)["decision"] for one in answers]
    report = measure_change(*answers, *decisions, 0.0)
    times: tuple[list[float], list[float]] = ([], [])
    for call in range(CALLS):
        window = rows[call % len(rows)][None]
        for session, spent in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, {onnx_file.INPUT: window})
            spent.append(time.perf_counter() - start)
    medians = [statistics.median(spent) for spent in times]
    sizes = [sum(array.nbytes for array in one.values()) for one in (arrays, integers)]
    files = [len(onnx_file.encode_onnx_file(config, one, facts)) for one in (arrays, integers)]
    return {
        "network": name,
        "units": list(units),
        "epochs": run.epochs_finished,
        **report.as_dict(),
        "share": report.share,
        "accepted": report.share <= ACCEPTED_SHARE,
        "one_window_ms": [1000 * one for one in medians],
        "speed_ratio": medians[0] / medians[1],
        "weight_bytes": sizes,
        "file_bytes": files,
        "file_ratio": files[1] / files[0],
        "actions": int(np.count_nonzero(decisions[0] != "HOLD")),
    }


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks int8", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--candles", type=int, default=20_000)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    options = parser.parse_args(words)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, units in NETWORKS.items():
            found = measure(name, units, options.candles, options.epochs, Path(folder))
            results.append(found)
            verdict = "accepted" if found["accepted"] else "refused"
            print(
                f"{name} {found['units']}: {found['different']} of {found['windows']:,} decisions differ "
                f"({found['share']:.3%}, {verdict}; {found['actions']:,} are no HOLD), probabilities move by at most "
                f"{found['max_change']:.2g}; one window {found['speed_ratio']:.2f} x as quick, weights "
                f"{found['weight_bytes'][1] / found['weight_bytes'][0]:.2f} and file {found['file_ratio']:.2f} of it",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0
