"""Many markets in one model: decisions of a hundred markets a minute, start of their bot, memory of training data.

Goals on two cores: 100 markets at 1m within 8 ms of processor time after the last candle has come, 300 MB resident,
a start from saved states in 2 s; 20 markets of a million candles at 40 bytes a candle, ready to train.

    python -m benchmarks markets                        all parts
    python -m benchmarks markets --only live            decisions and start, with the default network
    python -m benchmarks markets --only live --small    with windows of 60 and layers of 32 and 16
    python -m benchmarks markets --only memory          20 markets x 1,000,000 candles
    python -m benchmarks markets --only memory --markets 5 --candles 200000

The live part runs in processes of their own, which load neither TensorFlow nor pandas, as a bot does. `update` market
by market and `update_many` run in turns, and their answers must be equal to the bit. The models decide by a calibration
and a rule, as trained ones do. The floor is the call of onnxruntime alone, in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MINUTES = 15  # that are timed
COLUMNS = ("open", "high", "low", "close", "volume")


def write_live_files(folder: Path, markets: int, is_small: bool) -> None:
    """A network of random weights for so many markets, and their candles: a month, a window, and the timed minutes."""
    import crypto_lstm as cl
    from crypto_lstm.data.features import make_features
    from crypto_lstm.data.market_scaler import MarketScaler
    from crypto_lstm.data.scaler import Scaler

    config = cl.Config(seed=1)
    if is_small:
        config = config.replace(sequence_length=60, lstm_units=(32, 16), dense_units=(16,))
    names = tuple(f"M{number}/USDT" for number in range(markets))
    arrays = {}
    for number in range(markets):
        candles = cl.synthetic_candles(config.month_candles + config.sequence_length + MINUTES, seed=number)
        arrays[f"{number}"] = candles[list(COLUMNS)].to_numpy()
        if not number:
            arrays["dates"] = candles["date"].dt.tz_localize(None).to_numpy()
            features = make_features(candles, config)
            scaler = Scaler.fit(features[list(config.features)].to_numpy(), config)
    arrays["names"] = np.array(names)
    cl.export_onnx(
        cl.build_model(config), folder / "model.onnx", config=config, scaler=MarketScaler("all", names, (scaler,))
    )
    np.savez(folder / "candles.npz", **arrays)


def update_each(predictor: Any, candles: dict[str, Any], now: Any) -> dict[str, Any]:
    """The decisions of `update`, market by market."""
    return {name: predictor.update(name, candle, now=now) for name, candle in candles.items()}


def time_call(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """The result, and milliseconds of processor time and of waiting."""
    started, cpu = time.perf_counter(), time.process_time()
    result = call(*arguments)
    return result, 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - started)


def read_resident_mb() -> float:
    """Resident memory of this process, without psutil, which a bot does not have."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def read_candle(table: np.ndarray, dates: np.ndarray, row: int) -> list[float]:
    """A candle as ccxt returns it."""
    return [int(dates[row].astype("datetime64[ms]").astype(np.int64)), *table[row].tolist()]


def make_policy() -> Any:
    """A decision policy as a training makes it."""
    from crypto_lstm.inference.calibration import Calibration
    from crypto_lstm.inference.policy import DecisionPolicy
    from crypto_lstm.inference.rule import TradeRule

    market = (0.15, 0.7, 0.15)
    rule = TradeRule("expected_value", ((-0.5, -0.1, 1.0), (1.0, -0.1, -0.5)), cost_pct=0.2, class_shares=market)
    return DecisionPolicy(Calibration.from_priors((1 / 3, 1 / 3, 1 / 3), market), rule)


def call_network(predictor: Any) -> Any:
    """The network on the last rows of all windows, from the states that `prepare_next` left."""
    rows = np.stack([stream.window()[-1:] for stream in predictor.streams.values()])
    return predictor._step._run(rows, predictor._step._prepared.states)


def run_live(folder: Path) -> dict[str, Any]:
    """Warm up, save the states, and time minutes: `update` of each market, `update_many` prepared and not."""
    from datetime import UTC, datetime

    from crypto_lstm.inference.predictor import Predictor

    data = np.load(folder / "candles.npz")
    names, dates = data["names"].tolist(), data["dates"]
    one, many, prepared = (Predictor.load(folder / "model.onnx") for _ in range(3))
    known = len(dates) - MINUTES
    for number, name in enumerate(names):
        table = data[f"{number}"][:known]
        columns = {"date": dates[:known], **{key: table[:, place] for place, key in enumerate(COLUMNS)}}
        one.warm_up(name, columns)
    one.save_state(folder / "state.npz")
    one.policy = many.policy = prepared.policy = make_policy()
    many.load_state(folder / "state.npz")
    prepared.load_state(folder / "state.npz")
    last = {name: data[f"{number}"][known:] for number, name in enumerate(names)}
    times: dict[str, list[tuple[float, float]]] = {"one": [], "many": [], "prepare": [], "prepared": [], "floor": []}
    for row in range(MINUTES):
        minute = dates[known + row]
        candles = {name: read_candle(table, dates[known:], row) for name, table in last.items()}
        now = datetime.fromtimestamp(int(minute.astype("datetime64[s]").astype(np.int64)) + 60, UTC)
        found, *spent = time_call(update_each, one, candles, now)
        times["one"].append(tuple(spent))
        other, *spent = time_call(many.update_many, candles, now)
        times["many"].append(tuple(spent))
        _, *spent = time_call(prepared.prepare_next)
        times["prepare"].append(tuple(spent))
        quick, *spent = time_call(prepared.update_many, candles, now)
        times["prepared"].append(tuple(spent))
        _, *spent = time_call(call_network, prepared)
        times["floor"].append(tuple(spent))
        assert found == other == quick, "the answers differ"
        assert all(decision.probabilities is not None for decision in found.values()), next(iter(found.values()))
    medians = {name: [statistics.median(part) for part in zip(*spent, strict=True)] for name, spent in times.items()}
    return {"markets": len(names), "medians_ms": medians, "equal_decisions": len(names) * MINUTES}


def run_start(folder: Path) -> dict[str, Any]:
    """Load the model and the states of all markets, and decide on the next candles."""
    from datetime import UTC, datetime

    from crypto_lstm.inference.predictor import Predictor

    predictor, _, loaded_ms = time_call(lambda: Predictor.load(folder / "model.onnx"))
    _, _, states_ms = time_call(lambda: predictor.load_state(folder / "state.npz"))
    predictor.prepare_next()
    now = datetime.now(UTC)
    _, _, decided_ms = time_call(lambda: predictor.decide_many(now=now, max_age_candles=float("inf")))
    figures = {"load_ms": loaded_ms, "states_ms": states_ms, "decide_ms": decided_ms}
    size = (folder / "state.npz").stat().st_size / 1e6
    return {**figures, "resident_mb": read_resident_mb(), "state_mb": size, "modules": sorted(find_heavy_modules())}


def find_heavy_modules() -> set[str]:
    """Modules that a bot does not need."""
    return {"tensorflow", "keras", "pandas"} & set(sys.modules)


def run_in_process(function: str, *arguments: Any) -> dict[str, Any]:
    """The result of a function of this module in a process of its own, with the seconds of the process."""
    code = f"import json, sys; from pathlib import Path; from benchmarks.speed.markets import {function} as run; "
    code += "print(json.dumps(run(*map(eval, sys.argv[1:]))))"
    words = [f"Path({str(argument)!r})" if isinstance(argument, Path) else repr(argument) for argument in arguments]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.perf_counter() - started}


def read_anonymous_mb() -> float:
    """Anonymous memory of this process: without files that are mapped, such as libraries."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


class PeakSampler(threading.Thread):
    """The largest anonymous memory of this process, read every five milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb, self._stopped = 0.0, threading.Event()

    def run(self) -> None:
        """Read until `stop`."""
        while not self._stopped.wait(0.005):
            self.peak_mb = max(self.peak_mb, read_anonymous_mb())

    def stop(self) -> float:
        """The peak in MB of 2**20 bytes."""
        self._stopped.set()
        self.join()
        return max(self.peak_mb, read_anonymous_mb())


def run_memory(markets: int, candles: int) -> dict[str, Any]:
    """Bytes a candle that the training data of several markets hold, and at the peak of `prepare`.

    The candles themselves, which the caller holds, do not count.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import gc

    import sklearn.preprocessing  # noqa: F401 - `prepare` loads it; its memory must not count

    import crypto_lstm as cl
    from crypto_lstm.data.markets import prepare
    from crypto_lstm.utils.system import MB

    config = cl.Config()
    warm = {f"W{number}": cl.synthetic_candles(60_000, seed=number) for number in range(2)}
    prepare(warm, config)
    frames = {f"M{number}": cl.synthetic_candles(candles, seed=number) for number in range(markets)}
    gc.collect()
    before, sampler = read_anonymous_mb(), PeakSampler()
    sampler.start()
    started = time.perf_counter()
    data = prepare(frames, config)
    seconds, peak = time.perf_counter() - started, sampler.stop() - before
    gc.collect()
    held, count = read_anonymous_mb() - before, markets * candles
    arrays = [data.train.matrix, *(array for part in data.parts.values() for array in (part.rows, part.labels))]
    return {
        "markets": markets,
        "candles": count,
        "windows": len(data.train.rows),
        "bytes_a_candle": sum(array.nbytes for array in arrays) / count,
        "held_a_candle": held * MB / count,
        "peak_a_candle": peak * MB / count,
        "given_a_candle": sum(frame.memory_usage().sum() for frame in frames.values()) / count,
        "peak_mb": peak,
        "before_mb": before,
        "seconds": seconds,
    }


def show_live(live: dict[str, Any], start: dict[str, Any]) -> str:
    """The figures of the live part as lines."""
    spent = live["medians_ms"]
    titles = {
        "one": "update, market by market",
        "many": "update_many",
        "prepare": "prepare_next, between the candles",
        "prepared": "update_many after prepare_next",
        "floor": "of this the call of onnxruntime",
    }
    lines = [f"{live['markets']} markets, median of {MINUTES} minutes; {live['equal_decisions']:,} decisions equal"]
    lines += [f"  {titles[name]:36} {cpu:8.1f} ms of processor, {wall:8.1f} ms" for name, (cpu, wall) in spent.items()]
    total = start["load_ms"] + start["states_ms"]
    lines.append(
        f"  start: model {start['load_ms']:.0f} ms, states of {start['state_mb']:.0f} MB {start['states_ms']:.0f} ms"
    )
    lines.append(f"  start together {total / 1e3:.2f} s, the process {start['process_s']:.2f} s")
    lines.append(f"  resident memory {start['resident_mb']:.0f} MB, heavy modules {start['modules'] or 'none'}")
    return "\n".join(lines)


def show_memory(found: dict[str, Any]) -> str:
    """The figures of memory as lines."""
    return "\n".join(
        [
            f"{found['markets']} markets, {found['candles']:,} candles, {found['windows']:,} training windows",
            f"  arrays ready to train {found['bytes_a_candle']:.1f} bytes a candle",
            f"  anonymous memory beside the candles: {found['held_a_candle']:.1f} bytes a candle when ready to train,"
            f" {found['peak_a_candle']:.1f} at the peak of prepare",
            f"  this peak is {found['peak_mb']:,.0f} MB on top of {found['before_mb']:,.0f} MB; the candles"
            f" that are given hold {found['given_a_candle']:.1f} bytes each",
            f"  prepare took {found['seconds']:.1f} s",
        ]
    )


def main(words: list[str]) -> int:
    """Run the parts that the options choose, and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks markets", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("live", "memory"))
    parser.add_argument("--small", action="store_true", help="a small network in the live part")
    parser.add_argument("--markets", type=int, help="default: 100 live, 20 in memory")
    parser.add_argument("--candles", type=int, default=1_000_000, help="of each market in memory")
    options = parser.parse_args(words)
    if options.only != "memory":
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_live_files(folder, options.markets or 100, options.small)
            live = run_in_process("run_live", folder)
            print(show_live(live, run_in_process("run_start", folder)))
    if options.only != "live":
        print(show_memory(run_in_process("run_memory", options.markets or 20, options.candles)))
    return 0
