"""Ours and the peers in one run, in turn: one decision, many decisions, training, memory, feeding, start.

    python -m benchmarks speed                          measure all but growth; writes speed.json and RESULTS.md
    python -m benchmarks growth                         measure how each grows
    python -m benchmarks speed --only training start    measure these parts again, keep the others
    python -m benchmarks speed --quick                  fewer rounds, printed and not written
    python -m benchmarks speed --report                 render RESULTS.md from speed.json, measure nothing

To add a measurement, write a function that takes a `Bench` and returns series by name, and add it to `PARTS`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.paths import ROOT
from benchmarks.speed import report
from benchmarks.speed.report import (
    ALONE,
    BATCH,
    KERAS,
    LIMIT,
    PLAIN,
    SAMPLE,
    SINGLE,
    SPEED_RESULTS,
    TORCH,
    count_operations,
)
from benchmarks.speed.workers import Worker, measure_in_turn, time_call
from crypto_lstm.utils.system import processor_count

TORCH_PYTHON = ROOT / ".venv-torch" / "bin" / "python"
OURS = {SAMPLE: "per_sample", BATCH: "per_batch"}
CANDLES = 2_300_000
Series = dict[str, list[float]]


@dataclass(frozen=True)
class Bench:
    """Shared by all parts: the folder with model and data, and whether the run is short."""

    folder: str
    quick: bool

    def rounds(self, full: int) -> int:
        """Rounds of a part."""
        return 2 if self.quick else full

    def sizes(self, *full: int) -> tuple[int, ...]:
        """Points of a growth curve, ascending."""
        return full[:2] if self.quick else full

    def worker(self, kind: str, **environment: str) -> Worker:
        """A process of this kind."""
        if kind != "torch":
            return Worker(sys.executable, "-m", "benchmarks.speed.peers", kind, self.folder, **environment)
        if not TORCH_PYTHON.exists():
            raise SystemExit(
                f"expected PyTorch at {TORCH_PYTHON}, which does not exist: run `make bench`, "
                "or create the environment .venv-torch and install torch and numpy there"
            )
        return Worker(str(TORCH_PYTHON), "-m", "benchmarks.speed.torch_peer", self.folder, **environment)

    def once(self, kind: str, work: str, environment: dict[str, str] | None = None, /, **settings: Any) -> Any:
        """The answer to one request, in a process of its own."""
        with self.worker(kind, **environment or {}) as worker:
            return worker.ask(work, **settings)


# ---------------------------------------------------------------- answers


def answers(bench: Bench) -> dict[str, Series]:
    """One decision and many, by kinds that run side by side; raises where their probabilities differ."""
    with ExitStack() as stack:
        w = {kind: stack.enter_context(bench.worker(kind)) for kind in ("predictor", "keras", "torch", "numpy")}
        equal = check_agreement({kind: worker.ask("probabilities", count=64) for kind, worker in w.items()})
        one = {
            "ours": lambda: w["predictor"].ask("decision", repeat=200),
            "ours, update": lambda: w["predictor"].ask("update", repeat=200),
            "Keras predict": lambda: w["keras"].ask("decision", how="predict", repeat=10),
            "Keras model(x)": lambda: w["keras"].ask("decision", how="call", repeat=2),
            "Keras tf.function": lambda: w["keras"].ask("decision", how="function", repeat=20),
            "PyTorch": lambda: w["torch"].ask("decision", repeat=50),
            "NumPy loop": lambda: w["numpy"].ask("decision", repeat=20),
        }
        decision = measure_in_turn(one, bench.rounds(9))
        count, batch = 4096, 512
        many = {
            "ours": lambda: count / w["predictor"].ask("many", count=count),
            "Keras predict": lambda: count / w["keras"].ask("many", count=count, batch=batch),
            ALONE: lambda: count / w["keras"].ask("many", count=count, batch=batch, alone=True),
            "PyTorch": lambda: count / w["torch"].ask("many", count=count, batch=batch),
            **matrix_limits(w["keras"], count_operations()),
        }
        rates = measure_in_turn(many, bench.rounds(7))
        return {"decision": decision, "many": merge_limits(rates), "probabilities": equal}


def check_agreement(probabilities: dict[str, list[list[float]]]) -> float:
    """The largest difference between kinds. Raises `SystemExit` where they do not do the same work."""
    table = np.array(list(probabilities.values()))
    worst = float(np.ptp(table, axis=0).max())
    if not worst < 1e-5:
        names = ", ".join(probabilities)
        raise SystemExit(f"expected equal probabilities of {names}, they differ by {worst:.2g}: not the same work")
    return worst


def matrix_limits(worker: Worker, operations: float) -> dict[str, Callable[[], float]]:
    """Windows a second if all time went into float32 matrix products of 2048 x 2048, of NumPy and of TensorFlow."""

    def windows_a_second(how: str) -> float:
        return 2 * 2048**3 / worker.ask("product", how=how) / operations

    return {f"{LIMIT}, {how}": lambda how=how: windows_a_second(how) for how in ("numpy", "tensorflow")}


def merge_limits(series: Series) -> Series:
    """The two measurements of the limit as one: in each round the faster one."""
    two = [series.pop(f"{LIMIT}, {how}") for how in ("numpy", "tensorflow")]
    return {**series, LIMIT: [max(pair) for pair in zip(*two, strict=True)]}


# ---------------------------------------------------------------- training


def training(bench: Bench) -> dict[str, Any]:
    """Windows a second of training steps; raises where the losses of the kinds differ with all dropout off."""
    batch, steps = 256, 6
    with ExitStack() as stack:
        ours, theirs, limit = (stack.enter_context(bench.worker(kind)) for kind in ("ours", "training", "keras"))
        single = stack.enter_context(bench.worker("training", TF_NUM_INTRAOP_THREADS="1"))
        torch = stack.enter_context(bench.worker("torch"))
        worst = check_losses(ours, theirs, torch)

        def windows_a_second(worker: Worker, **kind: str) -> float:
            return batch * steps / worker.ask("train", batch=batch, steps=steps, **kind)

        works = {
            SAMPLE: lambda: windows_a_second(ours, kind=OURS[SAMPLE]),
            BATCH: lambda: windows_a_second(ours, kind=OURS[BATCH]),
            KERAS: lambda: windows_a_second(theirs, kind="keras"),
            PLAIN: lambda: windows_a_second(theirs, kind="plain"),
            SINGLE: lambda: windows_a_second(single, kind="keras"),
            TORCH: lambda: windows_a_second(torch),
            **matrix_limits(limit, 3 * count_operations()),
        }
        return {"training": merge_limits(measure_in_turn(works, bench.rounds(9))), "losses": worst}


LOSS_STEPS = 4


def check_losses(ours: Worker, theirs: Worker, torch: Worker) -> float:
    """The largest relative difference to Keras over some steps. Raises `SystemExit` if the losses differ."""
    settings = {"batch": 256, "steps": LOSS_STEPS}
    truth = np.array(theirs.ask("losses", kind="keras", **settings))
    found = {name: ours.ask("losses", kind=kind, **settings) for name, kind in OURS.items()}
    found[TORCH] = torch.ask("losses", **settings)
    worst = max(float(np.abs(np.array(losses) / truth - 1).max()) for losses in found.values())
    if not worst < 1e-3:
        raise SystemExit(f"expected the losses of Keras, {truth.tolist()}, got {found}: not the same work")
    return worst


def step_memory(bench: Bench) -> dict[str, Series]:
    """Peaks of ten training steps of 256 windows, each reading in a process of its own."""
    kinds = {**OURS, KERAS: "keras", PLAIN: "plain"}

    def read(quantity: str, kind: str) -> float:
        allocator = {"TF_CPU_ALLOCATOR_USE_BFC": str(int(quantity == "tensors_mb"))}
        process = "ours" if kind in OURS.values() else "training"
        return bench.once(process, "step_memory", allocator, kind=kind, steps=10)[quantity]

    def read_all(quantity: str, rounds: int) -> Series:
        works = {name: lambda kind=kind: read(quantity, kind) for name, kind in kinds.items()}
        return measure_in_turn(works, rounds, warm=0)

    return {"tensors": read_all("tensors_mb", 1), "growth_mb": read_all("growth_mb", 1 if bench.quick else 3)}


# ---------------------------------------------------------------- data


def data(bench: Bench) -> dict[str, Series]:
    """Feeding and resident memory for 2.3 million candles, and windows copied out at a tenth."""
    candles = CANDLES // 10 if bench.quick else CANDLES
    with bench.worker("data") as worker:
        feeding = worker.ask("feeding", candles=candles, steps=6, rounds=bench.rounds(7))
    readings = [bench.once("data", "resident", candles=candles) for _ in range(1 if bench.quick else 3)]
    names = {
        "ours": "added_mb",
        "ours, peak on the way": "peak_mb",
        "copied out, computed": "as_windows_mb",
        "TensorFlow and Keras": "runtime_mb",
    }
    copied = bench.once("data", "copied", candles=candles // 10)
    return {
        "feeding": feeding,
        "resident": {name: [reading[key] for reading in readings] for name, key in names.items()},
        "copied": {name: [value] for name, value in {**copied, "candles": candles // 10}.items()},
    }


START = {
    "import crypto_lstm.inference.predictor": "import crypto_lstm.inference.predictor",
    "first decision, ours": """
import sys, numpy
from crypto_lstm.inference.predictor import Predictor
Predictor.load(sys.argv[1] + "/model.onnx").probabilities(numpy.load(sys.argv[1] + "/window.npy"))""",
    "import numpy": "import numpy",
    "import tensorflow, keras": "import tensorflow, keras",
    "first decision, Keras predict": """
import sys, numpy, keras
keras.saving.load_model(sys.argv[1] + "/model.keras").predict(numpy.load(sys.argv[1] + "/window.npy"), verbose=0)""",
    "python -c pass": "pass",
}


def start(bench: Bench) -> dict[str, Series]:
    """Seconds of whole processes, from start to end."""
    with np.load(Path(bench.folder, "windows.npz")) as file:
        np.save(Path(bench.folder, "window.npy"), file["windows"][:1])

    def run(code: str) -> float:
        command = [sys.executable, "-c", code, bench.folder]
        return time_call(lambda: subprocess.run(command, check=True, capture_output=True))

    works = {name: lambda code=code: run(code) for name, code in START.items()}
    return {"start": measure_in_turn(works, bench.rounds(5))}


PIECES = (["start"], ["decisions", "--only", "parity"], ["candles"], ["feeding"], ["memory", "--quick"])


def pieces(bench: Bench) -> dict[str, dict[str, str]]:
    """The texts that other benchmarks print."""
    texts = {}
    for words in PIECES:
        command = [sys.executable, "-m", "benchmarks", *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        texts[" ".join(words)] = done.stdout
        print(done.stdout, flush=True)
    return {"pieces": texts}


# ---------------------------------------------------------------- growth


def growth(bench: Bench) -> dict[str, Any]:
    """Growth of time and memory: few points, few rounds."""
    return {"growth": {**measure_step_growth(bench), **measure_window_growth(bench), **measure_candle_growth(bench)}}


def measure_step_growth(bench: Bench) -> dict[str, Any]:
    """Training over batch size and over timesteps."""
    batches, timesteps = bench.sizes(16, 64, 256, 1024), bench.sizes(30, 60, 120, 240)
    over_batch, over_timesteps = {}, {}
    with bench.worker("ours") as ours, bench.worker("training") as theirs:
        for size in batches:
            over_batch[str(size)] = measure_step(
                bench, ours, theirs, batch=size, timesteps=120, steps=max(2, 1024 // size)
            )
        for size in timesteps:
            over_timesteps[str(size)] = measure_step(bench, ours, theirs, batch=256, timesteps=size, steps=3)
    text = "Milliseconds for each window of a training step, {}; medians."
    return {
        "Training over batch": {"x": "batch", "points": over_batch, "text": text.format("120 timesteps")},
        "Training over timesteps": {"x": "timesteps", "points": over_timesteps, "text": text.format("batches of 256")},
    }


def measure_step(
    bench: Bench, ours: Worker, theirs: Worker, *, batch: int, timesteps: int, steps: int
) -> dict[str, float]:
    """Milliseconds for each window, by kind; medians. The workers release their networks afterwards."""

    def window_ms(worker: Worker, kind: str) -> float:
        seconds = worker.ask("train", kind=kind, steps=steps, batch=batch, timesteps=timesteps)
        return 1e3 * seconds / (steps * batch)

    works = {
        SAMPLE: lambda: window_ms(ours, "per_sample"),
        BATCH: lambda: window_ms(ours, "per_batch"),
        KERAS: lambda: window_ms(theirs, "keras"),
    }
    times = measure_in_turn(works, bench.rounds(3))
    for worker in (ours, theirs):
        worker.ask("forget")
    return {name: float(np.median(values)) for name, values in times.items()}


def measure_window_growth(bench: Bench) -> dict[str, Any]:
    """An epoch's order and batches, and many decisions, over windows."""
    feeding, deciding = {}, {}
    with bench.worker("predictor") as ours, bench.worker("keras") as keras:
        for count in bench.sizes(1_000, 10_000, 100_000, 1_000_000):
            fed = bench.once("data", "epoch", windows=count)
            copied = bench.once("data", "copied", candles=count) if count < 1_000_000 else None
            feeding[str(count)] = {
                "ours, epoch gathered, s": fed["seconds"],
                "ours, held, MiB": fed["held_mb"],
                "copied out once, s": copied and copied["seconds"],
                "copied out, held, MiB": count * 120 * 8 * 4 / 2**20,
            }
            repeat = 3 if count < 100_000 else 1
            deciding[str(count)] = {
                "ours, s": float(np.median([ours.ask("many", count=count) for _ in range(repeat)])),
                "Keras predict, s": time_keras(keras, count, repeat),
            }
    return {
        "Feeding over windows": {
            "x": "windows",
            "points": feeding,
            "text": "One epoch: its order is drawn and every batch of 256 gathered. The peer copies every window out "
            "once; its memory is computed.",
        },
        "Decisions over windows": {
            "x": "windows",
            "points": deciding,
            "text": "Seconds for all windows. Keras: `predict` in batches of 512, not run on a million.",
        },
    }


def time_keras(keras: Worker, count: int, repeat: int) -> float | None:
    """Seconds of `predict`; None where it would take too long."""
    if count > 100_000:
        return None
    return float(np.median([keras.ask("many", count=count, batch=512) for _ in range(repeat)]))


def measure_candle_growth(bench: Bench) -> dict[str, Any]:
    """Features, labels and `prepare` over candles: time and memory."""
    found = {}
    for count in bench.sizes(100_000, 1_000_000, 10_000_000):
        times = bench.once("data", "candles", candles=count, repeat=3 if count < 10_000_000 else 1)
        whole = bench.once("data", "resident", candles=count)
        found[str(count)] = {
            "features, s": times["features_s"],
            "labels, s": times["labels_s"],
            "read and prepare, s": whole["seconds"],
            "added by prepare, MiB": max(0.1, whole["added_mb"]),
            "peak on the way, MiB": max(0.1, whole["peak_mb"]),
        }
    text = "One-minute candles of a synthetic market. Memory: the growth by reading and `prepare` of a process that "
    text += "did both on 50,000 candles before."
    return {"Candles": {"x": "candles", "points": found, "text": text}}


# ---------------------------------------------------------------- all

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "answers": answers,
    "training": training,
    "memory": step_memory,
    "data": data,
    "start": start,
    "pieces": pieces,
    "growth": growth,
}


def processor_name() -> str:
    """The model of the processor, from /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def describe_machine(bench: Bench) -> dict[str, Any]:
    """Processor, memory, system and versions of this run."""
    versions: dict[str, Any] = {}
    for kind in ("predictor", "keras", "numpy", "torch"):
        versions |= bench.once(kind, "versions")
    if versions.pop("tensorflow loaded"):
        raise SystemExit("expected crypto_lstm.inference.predictor without TensorFlow, it loads TensorFlow")
    return {
        "processor": processor_name(),
        "cores": processor_count(),
        "memory, GiB": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "Python": platform.python_version(),
        **versions,
    }


def measure(
    names: list[str], bench: Bench, results: dict[str, Any], save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure some parts and add them to the results, which are saved after each part."""
    parts = results["parts"]
    for name in names:
        print(f"{name} ...", flush=True)
        begin = time.perf_counter()
        found = PARTS[name](bench)
        checks = {key: found.pop(key) for key in ("probabilities", "losses") if key in found}
        parts |= found
        if checks:
            parts["equal"] = {**parts.get("equal", {}), **checks, "steps": LOSS_STEPS}
        took = time.perf_counter() - begin
        print(f"{name}: {took:.0f} s, load of the machine at its end {os.getloadavg()[0]:.1f}", flush=True)
        save(results)
    return results


def select_kept_parts(known: dict[str, Any], here: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    """The parts of an earlier run that stay. Numbers of two machines are never on one page."""
    if not known or known["machine"] == here:
        return dict(known.get("parts", {}))
    if only:
        raise SystemExit(
            f"{SPEED_RESULTS} is from another machine, {known['machine']}, this is {here}: "
            "measure all parts here, or move the file away"
        )
    return {}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="parts to measure; the others stay as speed.json has them"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds; prints, writes nothing")
    parser.add_argument("--report", action="store_true", help="render RESULTS.md from speed.json")
    arguments = parser.parse_args(words)
    known = json.loads(SPEED_RESULTS.read_text(encoding="utf-8")) if SPEED_RESULTS.exists() else {}
    if arguments.report:
        print(report.write_page(known))
        return
    names = arguments.only or [name for name in PARTS if name != "growth"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, arguments.quick)
        bench.once("data", "prepare", candles=120_000)
        here = describe_machine(bench)
        if arguments.quick:
            found = measure(names, bench, {"machine": here, "parts": {}}, lambda results: None)
            print(report.render_page(found))
            return
        kept = select_kept_parts(known, here, arguments.only)
        measure(names, bench, {"machine": here, "parts": kept}, save_results)


def save_results(results: dict[str, Any]) -> None:
    """Write speed.json, and RESULTS.md from it."""
    SPEED_RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.write_page(results)
