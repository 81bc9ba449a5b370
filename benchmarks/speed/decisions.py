"""One decision and many: ours beside Keras, a compiled function and PyTorch if it is available, in turn in one run.

    python -m benchmarks decisions [--quick] [--only PART ...] [--torch PYTHON] [--json FILE] [--candles FILE]

All have the same weights and windows. PyTorch has the same layers and runs in a process of its own, which answers
line by line. Medians, ratios to ours and the spread (5th to 95th percentile) are printed; absolute times belong to
the machine. The part `parity` follows a million candles of a synthetic market, or of --candles, and compares each row
of the stream with `make_features`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.speed.workers import time_call
from crypto_lstm.config import Config

TORCH = """
import json, sys, time
import numpy as np, torch
spec = json.loads(sys.stdin.readline())
torch.set_num_threads(spec["threads"])
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [spec["features"], *spec["lstm"]]
        self.lstm = torch.nn.ModuleList([torch.nn.LSTM(a, b, batch_first=True) for a, b in zip(sizes, sizes[1:])])
        sizes = [sizes[-1], *spec["dense"], 3]
        self.dense = torch.nn.ModuleList([torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
    def forward(self, x):
        for layer in self.lstm:
            x, _ = layer(x)
        x = x[:, -1]
        for layer in self.dense[:-1]:
            x = torch.relu(layer(x))
        return torch.softmax(self.dense[-1](x), dim=1)
network = Network().eval()
print(torch.__version__, flush=True)
with torch.inference_mode():
    for line in sys.stdin:
        count = int(line)
        shape = (count, spec["length"], spec["features"])
        x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype("f4"))
        start = time.perf_counter()
        network(x).numpy()
        print(time.perf_counter() - start, flush=True)
"""


class Torch:
    """PyTorch in another environment: a call with a number of windows returns the seconds that they took."""

    def __init__(self, python: str, config: Config) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._child = subprocess.Popen([python, "-c", TORCH], **pipes, text=True)
        spec = {
            "features": len(config.features),
            "lstm": config.lstm_units,
            "dense": config.dense_units,
            "length": config.sequence_length,
            "threads": os.cpu_count(),
        }
        self.version = self._ask(json.dumps(spec))

    def _ask(self, line: str) -> str:
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        return self._child.stdout.readline().strip()

    def __call__(self, windows: int) -> float:
        return float(self._ask(str(windows)))

    def close(self) -> None:
        self._child.communicate()


def measure_by_turns(calls: dict[str, Callable[[], float]], rounds: int, budget_s: float) -> dict[str, list[float]]:
    """Seconds of each call, once in each round, in a rotating order.

    A call that has used its share of the budget is left out of further rounds, after at least 5.
    """
    for call in calls.values():
        call()  # the first call may load or compile; it is not counted
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls)[number % len(calls) :] + list(calls)[: number % len(calls)]
        for name in names:
            if sum(seconds[name]) < budget_s / len(calls) or len(seconds[name]) < 5:
                seconds[name].append(calls[name]())
    return seconds


def summarise(seconds: list[float], ours: list[float]) -> dict[str, float]:
    """Median and spread in ms, and how many times as long as ours."""
    low, middle, high = (1000 * float(np.percentile(seconds, share)) for share in (5, 50, 95))
    ratio = middle / 1000 / float(np.median(ours))
    return {"median_ms": middle, "p05_ms": low, "p95_ms": high, "rounds": len(seconds), "ratio": ratio}


def build_case() -> tuple[Config, Any, Any, np.ndarray]:
    """The default configuration, its network, its predictor with a scaler, and random windows."""
    from crypto_lstm.architecture import build_model
    from crypto_lstm.config import FEATURES
    from crypto_lstm.data.scaler import Scaler
    from crypto_lstm.inference.onnx_file import export_onnx
    from crypto_lstm.inference.predictor import Predictor

    config = Config()
    model = build_model(config, compile_model=False)
    centers, scales = (0.0,) * 4 + (1.0,) * 4, (0.1, 0.1, 0.1, 50.0, 0.01, 0.05, 1.0, 1.0)
    scaler = Scaler("robust", FEATURES, centers, scales, config.feature_clip)
    with tempfile.TemporaryDirectory() as place:
        export_onnx(model, Path(place) / "model.onnx", config=config, scaler=scaler)
        predictor = Predictor.load(Path(place) / "model.onnx")
    shape = (2048, config.sequence_length, len(config.features))
    windows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return config, model, predictor, windows


def measure_one_decision(
    model: Any, predictor: Any, windows: np.ndarray, torch: Torch | None, rounds: int, budget_s: float
) -> dict[str, Any]:
    """One window to probabilities."""
    import tensorflow as tf

    one = windows[:1]
    compiled = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    calls: dict[str, Callable[[], float]] = {
        "ours": lambda: time_call(lambda: predictor.probabilities(one)),
        "Keras predict": lambda: time_call(lambda: model.predict(one, verbose=0)),
        "tf.function": lambda: time_call(lambda: compiled(one).numpy()),
        "model(x)": lambda: time_call(lambda: model(one, training=False).numpy()),
    }
    if torch:
        calls["PyTorch"] = lambda: torch(1)
    seconds = measure_by_turns(calls, rounds, budget_s)
    return {name: summarise(values, seconds["ours"]) for name, values in seconds.items()}


def measure_many_decisions(
    model: Any, predictor: Any, windows: np.ndarray, torch: Torch | None, rounds: int, budget_s: float
) -> dict[str, Any]:
    """Windows a second, all windows in one call; Keras in batches of 512."""
    calls: dict[str, Callable[[], float]] = {
        "ours": lambda: time_call(lambda: predictor.probabilities(windows)),
        "Keras predict": lambda: time_call(lambda: model.predict(windows, batch_size=512, verbose=0)),
    }
    if torch:
        calls["PyTorch"] = lambda: sum(torch(512) for _ in range(len(windows) // 512))
    seconds = measure_by_turns(calls, rounds, budget_s)
    found = {}
    for name, values in seconds.items():
        rate = len(windows) / float(np.median(values))
        found[name] = summarise(values, seconds["ours"]) | {"windows_per_s": rate}
    return found


def measure_updates(predictor: Any, rounds: int) -> dict[str, Any]:
    """A new candle to a decision, after 30 days of history, and its steps."""
    import pandas as pd

    from crypto_lstm.data.synthetic import synthetic_candles

    history = synthetic_candles(predictor.config.month_candles + 200 + rounds, seed=1)
    predictor.stream = None
    warm_s = time_call(lambda: predictor.warm_up(history[:-rounds]))
    rows = history[-rounds:].assign(date=history["date"].astype("int64") // 10**6).to_numpy().tolist()
    stream = predictor.stream
    decided, computed = [], []
    for row in rows:
        now = pd.Timestamp(row[0] + 60_000, unit="ms", tz="UTC")
        decided.append(time_call(lambda row=row, now=now: predictor.update(row, now=now)))
        window = stream.window()[None]
        computed.append(time_call(lambda window=window: predictor.probabilities(window)))
    predictor.stream = None
    predictor.warm_up(history[:-rounds])
    pushed = [time_call(lambda row=row: predictor.stream.push(row)) for row in rows]
    whole = [time_call(lambda: predictor.decide(history, now=now)) for _ in range(min(rounds, 30))]
    parts = {"update": decided, "features alone": pushed, "network alone": computed, "decide on 30 days": whole}
    found = {name: summarise(values, decided) for name, values in parts.items()}
    return found | {"warm_up_30_days_ms": 1000 * warm_s}


COLD = """
import sys, time
start = time.perf_counter()
import crypto_lstm.inference.predictor
imported = time.perf_counter() - start
import numpy as np
predictor = crypto_lstm.inference.predictor.Predictor.load(sys.argv[1])
predictor.probabilities(np.zeros((1, 120, 8), dtype=np.float32))
print(imported, time.perf_counter() - start)
"""
KERAS = "import time; start = time.perf_counter(); import keras, tensorflow; print(time.perf_counter() - start)"


def measure_cold_start(model: Any, rounds: int) -> dict[str, Any]:
    """New processes: import, and the first decision; beside the import of TensorFlow and Keras."""
    from crypto_lstm.inference.onnx_file import export_onnx

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        export_onnx(model, path)
        runs: dict[str, list[float]] = {"first decision": [], "import": [], "TensorFlow and Keras": []}
        for _ in range(rounds):
            imported, decided = run_python(COLD, str(path))
            runs["import"].append(imported)
            runs["first decision"].append(decided)
            runs["TensorFlow and Keras"] += run_python(KERAS)
    return {name: summarise(values, runs["first decision"]) for name, values in runs.items()}


def run_python(code: str, *words: str) -> list[float]:
    """The numbers that a new Python process prints."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def load_market(candles: int, source: str | None) -> Any:
    """The first candles of a file; without one a synthetic market with one candle in a hundred missing."""
    from crypto_lstm.data.candles import read_candles
    from crypto_lstm.data.synthetic import synthetic_candles

    if source:
        return read_candles(source)[:candles]
    frame = synthetic_candles(candles, seed=1)
    return frame[np.random.default_rng(0).random(len(frame)) > 0.01].reset_index(drop=True)


def compare_stream(candles: int, source: str | None) -> dict[str, Any]:
    """Each row of the stream against the batch: the largest deviation, and the time of a candle.

    The deviation is relative for values above 1, else absolute.
    """
    from crypto_lstm.data.feature_stream import FeatureStream
    from crypto_lstm.data.features import make_features

    config = Config()
    frame = load_market(candles, source)
    expected = make_features(frame, config)
    times = expected["date"].astype("int64").to_numpy()
    matrix = expected[list(config.features)].to_numpy()
    rows = frame.assign(date=frame["date"].astype("int64") // 10**6).to_numpy().tolist()
    stream = FeatureStream(config)
    worst, same, compared, spent = 0.0, 0, 0, 0.0
    stream.feed(rows[:1000])
    for row in rows[1000:]:
        start = time.perf_counter()
        stream.push(row)
        spent += time.perf_counter() - start
        came = stream.latest()
        if came is not None:
            wanted = matrix[np.searchsorted(times, stream.time)]
            deviation = np.abs(came - wanted) / np.maximum(np.abs(wanted), 1)
            worst = max(worst, float(np.max(deviation)))
            same += bool((came == wanted).all())
            compared += 1
    counts = {"candles": len(frame), "compared": compared, "equal_bits": same}
    return counts | {"largest_deviation": worst, "us_per_candle": 1e6 * spent / len(rows)}


def print_table(title: str, results: dict[str, Any]) -> None:
    from crypto_lstm.utils.display import text_table

    rows = []
    for name, found in results.items():
        if not isinstance(found, dict):
            continue
        spread = f"{found['p05_ms']:.3f} - {found['p95_ms']:.3f}"
        rate = f"{found['windows_per_s']:,.0f}" if "windows_per_s" in found else "-"
        rows.append((name, f"{found['median_ms']:.3f}", spread, f"{found['ratio']:.2f}", rate))
    print(f"{title}\n{text_table(('', 'median ms', 'spread', 'times ours', 'windows/s'), rows)}\n", flush=True)


PARTS = ("one", "many", "update", "cold", "parity")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks decisions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file")
    parser.add_argument("--candles", metavar="FILE", help="real candles for the part parity")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure")
    arguments = parser.parse_args(words)
    quick, chosen = arguments.quick, arguments.only or PARTS
    config, model, predictor, windows = build_case()
    torch = Torch(arguments.torch, config) if arguments.torch else None
    rounds, budget_s = (50, 8.0) if quick else (400, 40.0)
    results: dict[str, Any] = {"torch": torch.version if torch else None, "processors": os.cpu_count()}
    if "one" in chosen:
        results["one decision"] = measure_one_decision(model, predictor, windows, torch, rounds, budget_s)
        print_table("one decision, window to probabilities", results["one decision"])
    if "many" in chosen:
        few = windows[:1024] if quick else windows
        many_rounds = 5 if quick else 15
        results["many decisions"] = measure_many_decisions(model, predictor, few, torch, many_rounds, budget_s)
        print_table("many decisions", results["many decisions"])
    if torch:
        torch.close()
    if "update" in chosen:
        results["update"] = measure_updates(predictor, 100 if quick else 1000)
        print_table("a new candle to a decision", results["update"])
    if "cold" in chosen:
        results["cold start"] = measure_cold_start(model, 2 if quick else 5)
        print_table("a new process", results["cold start"])
    if "parity" in chosen:
        results["stream parity"] = compare_stream(100_000 if quick else 1_000_000, arguments.candles)
        print("stream against batch:", results["stream parity"], flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
