"""Ours and the peers in one session, in turn: a decision, many of them, training, memory, feeding, start. `make bench` runs it.

    python benchmarks/bench.py              measure all but growth; writes results.json and RESULTS.md
    python benchmarks/bench.py --only growth          how each grows
    python benchmarks/bench.py --only training start  measure these parts anew, keep the others
    python benchmarks/bench.py --quick      fewer rounds, printed and not written
    python benchmarks/bench.py --report     render RESULTS.md from results.json, measure nothing

To add a measurement, write a function that takes a `Bench` and returns series by name, and name it in `PARTS`.
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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import report
from report import ALONE, BATCH, HERE, KERAS, LIMIT, PLAIN, RESULTS, SAMPLE, SINGLE, TORCH, flops
from workers import Worker, in_turn, seconds

from crypto_lstm.utils.system import processor_count

TORCH_PYTHON = HERE.parent / ".venv-torch" / "bin" / "python"
OURS = {SAMPLE: "per_sample", BATCH: "per_batch"}
CANDLES = 2_300_000
Series = dict[str, list[float]]


@dataclass(frozen=True)
class Bench:
    """What the parts share: the folder with model and data, and how often to measure."""

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
            return Worker(sys.executable, str(HERE / "peers.py"), kind, self.folder, **environment)
        if not TORCH_PYTHON.exists():
            raise SystemExit(
                f"no PyTorch at {TORCH_PYTHON}: `make bench` makes it, or: python -m venv .venv-torch, and there pip install torch numpy"
            )
        return Worker(str(TORCH_PYTHON), str(HERE / "torch_peer.py"), self.folder, **environment)

    def once(self, kind: str, work: str, environment: dict[str, str] | None = None, /, **settings: Any) -> Any:
        """One work in a process of its own."""
        with self.worker(kind, **environment or {}) as worker:
            return worker.ask(work, **settings)


# ---------------------------------------------------------------- answers


def answers(bench: Bench) -> dict[str, Series]:
    """One decision and many, by kinds that are alive together; and that they agree."""
    with ExitStack() as stack:
        w = {kind: stack.enter_context(bench.worker(kind)) for kind in ("predictor", "keras", "torch", "numpy")}
        equal = agreement({kind: worker.ask("probabilities", count=64) for kind, worker in w.items()})
        one = {
            "ours": lambda: w["predictor"].ask("decision", repeat=200),
            "ours, update": lambda: w["predictor"].ask("update", repeat=200),
            "Keras predict": lambda: w["keras"].ask("decision", how="predict", repeat=10),
            "Keras model(x)": lambda: w["keras"].ask("decision", how="call", repeat=2),
            "Keras tf.function": lambda: w["keras"].ask("decision", how="function", repeat=20),
            "PyTorch": lambda: w["torch"].ask("decision", repeat=50),
            "NumPy loop": lambda: w["numpy"].ask("decision", repeat=20),
        }
        decision = in_turn(one, bench.rounds(9))
        count, batch = 4096, 512
        many = {
            "ours": lambda: count / w["predictor"].ask("many", count=count),
            "Keras predict": lambda: count / w["keras"].ask("many", count=count, batch=batch),
            ALONE: lambda: count / w["keras"].ask("many", count=count, batch=batch, alone=True),
            "PyTorch": lambda: count / w["torch"].ask("many", count=count, batch=batch),
            **limits(w["keras"], flops()),
        }
        return {"decision": decision, "many": fastest(in_turn(many, bench.rounds(7))), "probabilities": equal}


def agreement(probabilities: dict[str, list[list[float]]]) -> float:
    """The largest difference between kinds. Raises where they don't do the same work."""
    table = np.array(list(probabilities.values()))
    worst = float(np.ptp(table, axis=0).max())
    if not worst < 1e-5:
        raise SystemExit(f"probabilities of {', '.join(probabilities)} differ by {worst:.2g}: not the same work, nothing to compare")
    return worst


def limits(worker: Worker, operations: float) -> dict[str, Callable[[], float]]:
    """Windows a second if all time went into float32 matrix products of 2048 x 2048, by NumPy's and by TensorFlow's."""
    return {f"{LIMIT}, {how}": lambda how=how: 2 * 2048**3 / worker.ask("product", how=how) / operations for how in ("numpy", "tensorflow")}


def fastest(series: Series) -> Series:
    """The two measurements of the limit as one: in each round the faster."""
    two = [series.pop(f"{LIMIT}, {how}") for how in ("numpy", "tensorflow")]
    return {**series, LIMIT: [max(pair) for pair in zip(*two, strict=True)]}


# ---------------------------------------------------------------- training


def training(bench: Bench) -> dict[str, Any]:
    """Windows a second of training steps; and that with all dropout off the kinds have the same losses."""
    batch, steps = 256, 6
    with ExitStack() as stack:
        ours, stock, limit = (stack.enter_context(bench.worker(kind)) for kind in ("ours", "training", "keras"))
        single = stack.enter_context(bench.worker("training", TF_NUM_INTRAOP_THREADS="1"))
        torch = stack.enter_context(bench.worker("torch"))
        worst = same_losses(ours, stock, torch)
        works = {
            **{
                name: lambda kind=kind: batch * steps / ours.ask("train", kind=kind, batch=batch, steps=steps)
                for name, kind in OURS.items()
            },
            KERAS: lambda: batch * steps / stock.ask("train", kind="stock", batch=batch, steps=steps),
            PLAIN: lambda: batch * steps / stock.ask("train", kind="plain", batch=batch, steps=steps),
            SINGLE: lambda: batch * steps / single.ask("train", kind="stock", batch=batch, steps=steps),
            TORCH: lambda: batch * steps / torch.ask("train", batch=batch, steps=steps),
            **limits(limit, 3 * flops()),
        }
        return {"training": fastest(in_turn(works, bench.rounds(9))), "losses": worst}


LOSS_STEPS = 4


def same_losses(ours: Worker, stock: Worker, torch: Worker) -> float:
    """The largest relative difference to stock Keras over some steps. Raises where the mathematics differ."""
    settings = {"batch": 256, "steps": LOSS_STEPS}
    truth = np.array(stock.ask("losses", kind="stock", **settings))
    found = {name: ours.ask("losses", kind=kind, **settings) for name, kind in OURS.items()} | {TORCH: torch.ask("losses", **settings)}
    worst = max(float(np.abs(np.array(losses) / truth - 1).max()) for losses in found.values())
    if not worst < 1e-3:
        raise SystemExit(f"losses without dropout are {found}, of stock Keras {truth.tolist()}: not the same work, nothing to compare")
    return worst


def step_memory(bench: Bench) -> dict[str, Series]:
    """Peaks of ten training steps of 256 windows, each reading in a process of its own."""
    kinds = {**OURS, KERAS: "stock", PLAIN: "plain"}

    def read(quantity: str, kind: str) -> float:
        bfc = {"TF_CPU_ALLOCATOR_USE_BFC": str(int(quantity == "tensors_mb"))}
        return bench.once("ours" if kind in OURS.values() else "training", "step_memory", bfc, kind=kind, steps=10)[quantity]

    def turns(quantity: str, rounds: int) -> Series:
        return in_turn({name: lambda kind=kind: read(quantity, kind) for name, kind in kinds.items()}, rounds, warm=0)

    return {"tensors": turns("tensors_mb", 1), "growth_mb": turns("growth_mb", 1 if bench.quick else 3)}


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
    """Whole processes, from start to end."""
    with np.load(Path(bench.folder, "windows.npz")) as file:
        np.save(Path(bench.folder, "window.npy"), file["windows"][:1])

    def run(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code, bench.folder], check=True, capture_output=True))

    return {"start": in_turn({name: lambda code=code: run(code) for name, code in START.items()}, bench.rounds(5))}


PIECES = (["start.py"], ["decision.py", "--only", "parity"], ["candles.py"], ["feeding.py"], ["memory.py", "--quick"])


def pieces(bench: Bench) -> dict[str, dict[str, str]]:
    """What the other scripts print."""
    texts = {}
    for name, *options in PIECES:
        done = subprocess.run([sys.executable, str(HERE / name), *options], check=True, stdout=subprocess.PIPE, text=True)
        texts[" ".join([name, *options])] = done.stdout
        print(done.stdout, flush=True)
    return {"pieces": texts}


# ---------------------------------------------------------------- growth


def growth(bench: Bench) -> dict[str, Any]:
    """How each grows: few points, few rounds."""
    return {"growth": {**steps_growth(bench), **windows_growth(bench), **candles_growth(bench)}}


def steps_growth(bench: Bench) -> dict[str, Any]:
    """Training over batch size and over timesteps."""
    tables: dict[str, Any] = {}
    sizes = {"batch": bench.sizes(16, 64, 256, 1024), "timesteps": bench.sizes(30, 60, 120, 240)}
    with bench.worker("ours") as ours, bench.worker("training") as stock:
        for axis, points in sizes.items():
            found = {}
            for size in points:
                settings = {"batch": 256, "timesteps": 120, axis: size}
                steps = max(2, 1024 // settings["batch"]) if axis == "batch" else 3

                def one(worker: Worker, kind: str, settings: dict = settings, steps: int = steps) -> float:
                    return 1e3 * worker.ask("train", kind=kind, steps=steps, **settings) / (steps * settings["batch"])

                works = {SAMPLE: lambda: one(ours, "per_sample"), BATCH: lambda: one(ours, "per_batch"), KERAS: lambda: one(stock, "stock")}
                found[str(size)] = {name: float(np.median(values)) for name, values in in_turn(works, bench.rounds(3)).items()}
                ours.ask("forget"), stock.ask("forget")
            other = "120 timesteps" if axis == "batch" else "batches of 256"
            text = f"Milliseconds for each window of a training step, {other}; medians."
            tables[f"Training over {axis}"] = {"x": axis, "points": found, "text": text}
    return tables


def windows_growth(bench: Bench) -> dict[str, Any]:
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
                "Keras predict, s": keras_seconds(keras, count, repeat),
            }
    return {
        "Feeding over windows": {
            "x": "windows",
            "points": feeding,
            "text": "One epoch: the order drawn and every batch of 256 gathered. The peer copies every window out, once; of a million "
            "the memory is computed.",
        },
        "Decisions over windows": {
            "x": "windows",
            "points": deciding,
            "text": "Seconds for all windows; Keras by `predict` at 512, which was not run on a million.",
        },
    }


def keras_seconds(keras: Worker, count: int, repeat: int) -> float | None:
    """Seconds of `predict`; None where it would take too long."""
    return None if count > 100_000 else float(np.median([keras.ask("many", count=count, batch=512) for _ in range(repeat)]))


def candles_growth(bench: Bench) -> dict[str, Any]:
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
    text = "One-minute candles of an invented market. Memory is what reading and `prepare` add to a process that did both on 50,000 before."
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


def machine(bench: Bench) -> dict[str, Any]:
    """What this ran on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    versions: dict[str, Any] = {}
    for kind in ("predictor", "keras", "numpy", "torch"):
        versions |= bench.once(kind, "versions")
    if versions.pop("tensorflow loaded"):
        raise SystemExit("crypto_lstm.inference.predictor loads TensorFlow: a decision must do without")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": processor_count(),
        "memory, GiB": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
        "Python": platform.python_version(),
        **versions,
    }


def measure(names: list[str], bench: Bench, results: dict[str, Any], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure some parts into the results, which are saved after each."""
    parts = results["parts"]
    for name in names:
        print(f"{name} ...", flush=True)
        begin = time.perf_counter()
        found = PARTS[name](bench)
        checks = {key: found.pop(key) for key in ("probabilities", "losses") if key in found}
        parts |= found
        if checks:
            parts["equal"] = {**parts.get("equal", {}), **checks, "steps": LOSS_STEPS}
        print(f"{name}: {time.perf_counter() - begin:.0f} s, load of the machine at its end {os.getloadavg()[0]:.1f}", flush=True)
        save(results)
    return results


def kept_from(known: dict[str, Any], here: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    """The parts of an earlier run that stay; numbers of two machines are never on one page."""
    if not known or known["machine"] == here:
        return dict(known.get("parts", {}))
    if only:
        raise SystemExit(f"{RESULTS} is from another machine, {known['machine']}, this is {here}: measure all parts here, or move it away")
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure; the others keep what results.json has")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; prints, writes nothing")
    parser.add_argument("--report", action="store_true", help="render RESULTS.md from results.json")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if arguments.report:
        print(report.write(known))
        return
    names = arguments.only or [name for name in PARTS if name != "growth"]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, arguments.quick)
        bench.once("data", "prepare", candles=120_000)
        here = machine(bench)
        if arguments.quick:
            print(report.page(measure(names, bench, {"machine": here, "parts": {}}, lambda results: None)))
            return
        measure(names, bench, {"machine": here, "parts": kept_from(known, here, arguments.only)}, save)


def save(results: dict[str, Any]) -> None:
    """Write results.json, and RESULTS.md from it."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    report.write(results)


if __name__ == "__main__":
    main()
