"""A decision and many of them: ours beside Keras, a compiled function and, where an environment has it, PyTorch, by turns in one run.

decision.py [--quick] [--torch PYTHON] [--json FILE] [--candles FILE]

Same weights, same windows. PyTorch (a Python that has it, in a process of its own that answers line by line) holds the same layers.
Medians, ratios to ours and the spread (5th to 95th of a hundred) are printed; absolute times belong to the machine and the moment.
`stream_parity` follows a million candles of a synthetic market, or of --candles, and compares each row with `make_features`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

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
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((count, spec["length"], spec["features"])).astype("f4"))
        start = time.perf_counter()
        network(x).numpy()
        print(time.perf_counter() - start, flush=True)
"""


class Torch:
    """The peer in another environment: asked for a number of windows, it says how long it took."""

    def __init__(self, python: str, config: Config) -> None:
        self._child = subprocess.Popen([python, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        spec = {"features": len(config.features), "lstm": config.lstm_units, "dense": config.dense_units, "length": config.sequence_length}
        self.version = self._ask(json.dumps(spec | {"threads": os.cpu_count()}))

    def _ask(self, line: str) -> str:
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        return self._child.stdout.readline().strip()

    def __call__(self, windows: int) -> float:
        return float(self._ask(str(windows)))

    def close(self) -> None:
        self._child.communicate()


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def by_turns(calls: dict[str, Callable[[], float]], rounds: int, budget_s: float) -> dict[str, list[float]]:
    """Each call once in each round, in a rotating order; a slow one is left out of most rounds once it has had its share of the time."""
    for call in calls.values():
        call()  # what the first one loads or compiles does not count
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls)[number % len(calls) :] + list(calls)[: number % len(calls)]
        for name in names:
            if sum(seconds[name]) < budget_s / len(calls) or len(seconds[name]) < 5:
                seconds[name].append(calls[name]())
    return seconds


def summary(seconds: list[float], ours: list[float]) -> dict[str, float]:
    """Median and spread in ms, and how many times as long as ours."""
    low, middle, high = (1000 * float(np.percentile(seconds, share)) for share in (5, 50, 95))
    return {"median_ms": middle, "p05_ms": low, "p95_ms": high, "rounds": len(seconds), "ratio": middle / 1000 / float(np.median(ours))}


def setting() -> tuple[Config, Any, Any, np.ndarray]:
    """The default network, its predictor, and a bundle-like scaler; windows to judge."""
    from crypto_lstm.architecture import build_model
    from crypto_lstm.config import FEATURES
    from crypto_lstm.inference.onnx_file import export_onnx
    from crypto_lstm.inference.predictor import Predictor
    from crypto_lstm.data.scaler import Scaler

    config = Config()
    model = build_model(config, compile_model=False)
    scaler = Scaler("robust", FEATURES, (0.0,) * 4 + (1.0,) * 4, (0.1, 0.1, 0.1, 50.0, 0.01, 0.05, 1.0, 1.0), config.feature_clip)
    with tempfile.TemporaryDirectory() as place:
        export_onnx(model, Path(place) / "model.onnx", config=config, scaler=scaler)
        predictor = Predictor.load(Path(place) / "model.onnx")
    windows = np.random.default_rng(0).standard_normal((2048, config.sequence_length, len(config.features))).astype(np.float32)
    return config, model, predictor, windows


def one_decision(model: Any, predictor: Any, windows: np.ndarray, torch: Torch | None, rounds: int, budget_s: float) -> dict[str, Any]:
    """Window to probabilities."""
    import tensorflow as tf

    one = windows[:1]
    compiled = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    calls: dict[str, Callable[[], float]] = {
        "ours": lambda: timed(lambda: predictor.probabilities(one)),
        "Keras predict": lambda: timed(lambda: model.predict(one, verbose=0)),
        "tf.function": lambda: timed(lambda: compiled(one).numpy()),
        "model(x)": lambda: timed(lambda: model(one, training=False).numpy()),
    }
    if torch:
        calls["PyTorch"] = lambda: torch(1)
    seconds = by_turns(calls, rounds, budget_s)
    return {name: summary(values, seconds["ours"]) for name, values in seconds.items()}


def many_decisions(model: Any, predictor: Any, windows: np.ndarray, torch: Torch | None, rounds: int, budget_s: float) -> dict[str, Any]:
    """Windows a second, all windows at a time; Keras in batches of 512."""
    calls: dict[str, Callable[[], float]] = {
        "ours": lambda: timed(lambda: predictor.probabilities(windows)),
        "Keras predict": lambda: timed(lambda: model.predict(windows, batch_size=512, verbose=0)),
    }
    if torch:
        calls["PyTorch"] = lambda: sum(torch(512) for _ in range(len(windows) // 512))
    seconds = by_turns(calls, rounds, budget_s)
    rates = {name: {"windows_per_s": len(windows) / float(np.median(values))} for name, values in seconds.items()}
    return {name: summary(values, seconds["ours"]) | rates[name] for name, values in seconds.items()}


def updates(predictor: Any, rounds: int) -> dict[str, Any]:
    """A new candle to a decision, after 30 days of history; and the parts of it."""
    import pandas as pd

    from crypto_lstm.data.synthetic import synthetic_candles

    history = synthetic_candles(predictor.config.month_candles + 200 + rounds, seed=1)
    predictor.stream = None
    warm_s = timed(lambda: predictor.warm_up(history[:-rounds]))
    rows = history[-rounds:].assign(date=history["date"].astype("int64") // 10**6).to_numpy().tolist()
    stream = predictor.stream
    decided, pushed, judged = [], [], []
    for row in rows:
        now = pd.Timestamp(row[0] + 60_000, unit="ms", tz="UTC")
        decided.append(timed(lambda row=row, now=now: predictor.update(row, now=now)))
        window = stream.window()[None]
        judged.append(timed(lambda window=window: predictor.probabilities(window)))
    predictor.stream = None
    predictor.warm_up(history[:-rounds])
    pushed = [timed(lambda row=row: predictor.stream.push(row)) for row in rows]
    whole = [timed(lambda: predictor.decide(history, now=now)) for _ in range(min(rounds, 30))]
    parts = {"update": decided, "features alone": pushed, "network alone": judged, "decide on 30 days": whole}
    return {name: summary(values, decided) for name, values in parts.items()} | {"warm_up_30_days_ms": 1000 * warm_s}


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


def cold_start(model: Any, rounds: int) -> dict[str, Any]:
    """New processes: import, and the first decision; beside the import of TensorFlow and Keras."""
    from crypto_lstm.inference.onnx_file import export_onnx

    with tempfile.TemporaryDirectory() as place:
        export_onnx(model, path := Path(place) / "model.onnx")
        runs: dict[str, list[float]] = {"first decision": [], "import": [], "TensorFlow and Keras": []}
        for _ in range(rounds):
            words = [[sys.executable, "-c", COLD, str(path)], [sys.executable, "-c", KERAS]]
            said = [subprocess.run(word, capture_output=True, text=True, check=True).stdout.split() for word in words]
            for name, value in zip(("import", "first decision", "TensorFlow and Keras"), map(float, sum(said, [])), strict=True):
                runs[name].append(value)
    return {name: summary(values, runs["first decision"]) for name, values in runs.items()}


def stream_parity(candles: int, source: str | None) -> dict[str, Any]:
    """Every row of the stream against the batch: the largest deviation (relative above 1, absolute below), and the time of a candle."""
    from crypto_lstm.data.candles import read_candles
    from crypto_lstm.data.features import make_features
    from crypto_lstm.data.feature_stream import FeatureStream
    from crypto_lstm.data.synthetic import synthetic_candles

    config = Config()
    frame = read_candles(source)[:candles] if source else synthetic_candles(candles, seed=1)
    if not source:
        frame = frame[np.random.default_rng(0).random(len(frame)) > 0.01].reset_index(drop=True)
    expected = make_features(frame, config)
    times = expected["date"].astype("int64").to_numpy()
    matrix = expected[list(config.features)].to_numpy()
    rows = frame.assign(date=frame["date"].astype("int64") // 10**6).to_numpy().tolist()
    stream, worst, same, compared, spent = FeatureStream(config), 0.0, 0, 0, 0.0
    stream.feed(rows[:1000])
    for row in rows[1000:]:
        start = time.perf_counter()
        stream.push(row)
        spent += time.perf_counter() - start
        if (came := stream.latest()) is not None:
            wanted = matrix[np.searchsorted(times, stream.time)]
            worst = max(worst, float(np.max(np.abs(came - wanted) / np.maximum(np.abs(wanted), 1))))
            same, compared = same + bool((came == wanted).all()), compared + 1
    counts = {"candles": len(frame), "compared": compared, "equal_bits": same}
    return counts | {"largest_deviation": worst, "us_per_candle": 1e6 * spent / len(rows)}


def table(title: str, results: dict[str, Any]) -> str:
    from crypto_lstm.utils.display import text_table

    rows = [
        (name, f"{v['median_ms']:.3f}", f"{v['p05_ms']:.3f} - {v['p95_ms']:.3f}", f"{v['ratio']:.2f}", f"{v.get('windows_per_s', 0):,.0f}")
        for name, v in results.items()
        if isinstance(v, dict)
    ]
    return f"{title}\n{text_table(('', 'median ms', 'spread', 'times ours', 'windows/s'), rows)}\n"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--candles", metavar="FILE", help="real candles for the parity of the stream")
    parser.add_argument("--only", nargs="+", choices=("one", "many", "update", "cold", "parity"))
    arguments = parser.parse_args(argv)
    quick, chosen = arguments.quick, arguments.only or ["one", "many", "update", "cold", "parity"]
    config, model, predictor, windows = setting()
    torch = Torch(arguments.torch, config) if arguments.torch else None
    rounds, budget_s = (50, 8.0) if quick else (400, 40.0)
    results: dict[str, Any] = {"torch": torch.version if torch else None, "processors": os.cpu_count()}
    if "one" in chosen:
        results["one decision"] = one_decision(model, predictor, windows, torch, rounds, budget_s)
        print(table("one decision, window to probabilities", results["one decision"]), flush=True)
    if "many" in chosen:
        few = windows[:1024] if quick else windows
        results["many decisions"] = many_decisions(model, predictor, few, torch, 5 if quick else 15, budget_s)
        print(table("many decisions", results["many decisions"]), flush=True)
    if torch:
        torch.close()
    if "update" in chosen:
        results["update"] = updates(predictor, 100 if quick else 1000)
        print(table("a new candle to a decision", results["update"]), flush=True)
    if "cold" in chosen:
        results["cold start"] = cold_start(model, 2 if quick else 5)
        print(table("a new process", results["cold start"]), flush=True)
    if "parity" in chosen:
        results["stream parity"] = stream_parity(100_000 if quick else 1_000_000, arguments.candles)
        print("stream against batch:", results["stream parity"], flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
