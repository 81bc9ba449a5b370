"""What the settings of training give: each variant trains the default network in a process of its own, and takes its turn with the others.

    python benchmarks/defaults.py                all variants, about 10 minutes; writes benchmarks/defaults_results.json
    python benchmarks/defaults.py --rounds 3     fewer rounds; --only NAME ... fewer variants
    python benchmarks/defaults.py --report       prints what is stored

In a round every variant trains some steps with Keras' `fit`, one after the other, in turned order in every second round; the first round of
each compiles and is not counted. What counts is the time of a step beside that of `as it is` in the same round, on the clock and of the
processor; no time alone is kept. Where others use the machine too, the processor's time says more. To add a variant, name a `Setup` in
`VARIANTS`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("defaults_results.json")
BASE = "as it is"
BATCH, STEPS, CANDLES = 256, 8, 60_000


@dataclass
class Setup:
    """What a variant may change before its network is made, and the data it trains on."""

    compile: dict[str, Any] = field(default_factory=dict)  # more arguments of `compile`
    policy: str = "float32"  # Keras' dtype policy
    threads: tuple[int, int] | None = None  # intra-op, inter-op; 0: TensorFlow's choice; None: as `train` sets them
    steps: int = STEPS  # of a round
    data: str = "gathered"  # gathered, tuned (as Keras feeds it), repeated (one batch again and again) or graph (gathered by TensorFlow)
    stock: bool = False  # Keras' own layers


VARIANTS: dict[str, tuple[str, Setup]] = {
    BASE: ("gathered by NumPy, one step a call, one thread an operation, no XLA, float32", Setup()),
    "Keras' own layers": ("keras.layers.LSTM, one thread an operation", Setup(stock=True)),
    "the same, all threads": ("keras.layers.LSTM, TensorFlow's choice of threads", Setup(stock=True, threads=(0, 0))),
    "all threads": ("an operation is spread over all cores: TensorFlow's choice", Setup(threads=(0, 0))),
    "1 operation at a time": ("on all threads", Setup(threads=(0, 1))),
    "fed by Keras": ("the dataset itself given to fit: a pipeline that tunes itself", Setup(data="tuned")),
    "one batch repeated": ("nothing is gathered: the limit of what feeding can give", Setup(data="repeated")),
    "gathered in the graph": ("tf.gather on a resident matrix, tf.data", Setup(data="graph")),
    "4 steps a call": ("steps_per_execution=4", Setup(compile={"steps_per_execution": 4})),
    "8 steps a call": ("steps_per_execution=8, here all steps of a round", Setup(compile={"steps_per_execution": 8})),
    "XLA": ("jit_compile=True", Setup(compile={"jit_compile": True}, steps=1)),
    "bfloat16": ("mixed_bfloat16: weights float32, arithmetic bfloat16", Setup(policy="mixed_bfloat16")),
}


def trainer(name: str) -> Callable[[], tuple[float, float]]:
    """A function that trains one round and gives a step's seconds, on the clock and of the processor. TensorFlow is set up first."""
    setup = VARIANTS[name][1]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    from crypto_lstm.architecture import build_model
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.config import Config
    from crypto_lstm.gpu import setup_cpu_threads
    from crypto_lstm.layers import to_keras_model
    from crypto_lstm.data.windows import prepare

    if setup.threads is None:
        setup_cpu_threads()
    for threads, kind in zip(setup.threads or (0, 0), ("intra", "inter"), strict=True):
        if threads:
            getattr(tf.config.threading, f"set_{kind}_op_parallelism_threads")(threads)
    keras.config.set_dtype_policy(setup.policy)
    config = Config(batch_size=BATCH)
    data, model = prepare(synthetic_candles(CANDLES, seed=0), config), build_model(config)
    if setup.stock:
        model = to_keras_model(model)
        model.compile(keras.optimizers.Adam(config.learning_rate), loss=model.loss, metrics=["accuracy", "categorical_accuracy"])
    if setup.compile:
        model.compile(model.optimizer, loss=model.loss, metrics=["accuracy", "categorical_accuracy"], **setup.compile)
    batches = {"gathered": gathered, "tuned": some, "repeated": repeated, "graph": in_graph}[setup.data](data.train, setup)

    def seconds() -> tuple[float, float]:
        start, busy = time.perf_counter(), time.process_time()
        history = model.fit(batches, steps_per_epoch=setup.steps if setup.data == "graph" else None, shuffle=False, verbose=0)
        took, busy = time.perf_counter() - start, time.process_time() - busy
        if not history.history["loss"][0] < 10:
            raise SystemExit(f"{name}: the loss is {history.history['loss'][0]}: this did not train")
        return took / setup.steps, busy / setup.steps

    return seconds


def gathered(train: Any, setup: Setup) -> Any:
    """The same, as `train` feeds it."""
    from crypto_lstm.data.windows import tf_dataset

    return tf_dataset(some(train, setup))


def some(train: Any, setup: Setup) -> Any:
    """Some steps of each epoch of the training windows, as `prepare` gives them."""
    import keras

    class Some(keras.utils.PyDataset):  # the order is shuffled anew for each round, as in training
        def __len__(self) -> int:
            return setup.steps

        def __getitem__(self, index: int) -> Any:
            return train[index]

        def on_epoch_begin(self) -> None:
            train.on_epoch_begin()

    return Some()


def repeated(train: Any, setup: Setup) -> Any:
    """One batch, made once."""
    import tensorflow as tf

    return untuned(tf.data.Dataset.from_tensors(train[0]).repeat(setup.steps))


def untuned(batches: Any) -> Any:
    """A pipeline that no thread tunes."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def in_graph(train: Any, setup: Setup) -> Any:
    """The same windows gathered by TensorFlow from a matrix that it holds; shuffled in the graph, without end."""
    import tensorflow as tf

    matrix, length, classes = tf.constant(train.matrix), train.sequence_length, tf.constant(train.labels.astype("int32"))
    rows = tf.constant(train.rows.astype("int32"))

    def batch(positions: Any) -> Any:
        steps = tf.gather(rows, positions)[:, None] + tf.range(1 - length, 1)[None, :]
        return tf.gather(matrix, steps), tf.one_hot(tf.gather(classes, positions), 3)

    order = tf.data.Dataset.range(len(train.rows)).shuffle(len(train.rows), seed=0).repeat()
    return untuned(order.batch(BATCH, drop_remainder=True).map(batch, num_parallel_calls=2).prefetch(2))


def work(name: str) -> None:
    """The process of one variant: a round for each line that comes in, its seconds as a line out."""
    seconds = trainer(name)
    for _ in sys.stdin:
        print(json.dumps(seconds()), flush=True)


class Worker:
    """A variant's process, as its parent sees it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.failed, self.log = name, "", folder / f"{name}.log"
        with open(self.log, "w", encoding="utf-8") as log:
            command = [sys.executable, __file__, "--work", name]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def round(self) -> tuple[float, float]:
        """Seconds of a step in one round, on the clock and of the processor; NaN for a variant that does not run."""
        if not self.failed:
            try:
                print(file=self.process.stdin, flush=True)
                clock, processor = json.loads(self.process.stdout.readline())
                return clock, processor
            except (ValueError, BrokenPipeError):
                told = [line.strip() for line in self.log.read_text(encoding="utf-8").splitlines() if "Error" in line]
                self.failed = (told or ["it ended without a word"])[-1][:160]
        return float("nan"), float("nan")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(60)


def compiled(name: str, folder: Path) -> Worker:
    """The process of a variant after its first round."""
    worker = Worker(name, folder)
    print(f"{name}: {'ready' if worker.round()[0] > 0 else worker.failed}", flush=True)
    return worker


def measure(names: list[str], rounds: int) -> dict[str, Any]:
    """How many times as fast as `as it is` each variant trained, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(max_workers=2) as pool:  # nothing is timed yet
            workers = list(pool.map(lambda name: compiled(name, Path(folder)), names))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(rounds):
            for worker in workers if number % 2 else reversed(workers):
                times[worker.name].append(worker.round())
        for worker in workers:
            worker.close()

    def ratios(name: str, which: int) -> list[float]:
        """Of the times of `as it is` to those of a variant, round by round."""
        return [round(base[which] / own[which], 4) for base, own in zip(times[BASE], times[name], strict=True)]

    return {
        worker.name: {
            "what": VARIANTS[worker.name][0],
            "failed": worker.failed,
            "speed": [] if worker.failed else ratios(worker.name, 0),
            "work": [] if worker.failed else [round(1 / ratio, 4) for ratio in ratios(worker.name, 1)],
        }
        for worker in workers
    }


def quartiles(speeds: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(speeds) < 2:
        return (speeds[0],) * 3
    low, middle, high = statistics.quantiles(speeds, n=4, method="inclusive")
    return low, middle, high


def report(results: dict[str, Any]) -> str:
    """The stored results as a table."""
    from crypto_lstm.utils.display import text_table

    rows = []
    for name, found in results["variants"].items():
        low, middle, high = quartiles(found["speed"]) if found["speed"] else (float("nan"),) * 3
        work = f"{statistics.median(found['work']):.2f}" if found["work"] else "-"
        shown = [f"{middle:.2f}", f"{low:.2f} to {high:.2f}", work] if found["speed"] else ["-", found["failed"], work]
        rows.append([name, *shown, found["what"]])
    table = text_table(["training", "speed", "quartiles", "work", "what it is"], rows)
    size = f"{results['rounds']} rounds of {results['steps']} steps (XLA: {VARIANTS['XLA'][1].steps}), batch {results['batch']}"
    legend = "speed: times as fast as the first row, in the same round; work: time of the processor, in times that of the first row"
    return f"{results['machine']}\n{size}, {results['when']}\n\n{table}\n\n{legend}"


def machine() -> str:
    """One line on what this ran on."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are counted")
    parser.add_argument("--only", nargs="+", choices=[name for name in VARIANTS if name != BASE], help="variants beside the first")
    parser.add_argument("--report", action="store_true", help="print what is stored, measure nothing")
    parser.add_argument("--work", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    if not arguments.report:
        names = [BASE, *(arguments.only or [name for name in VARIANTS if name != BASE])]
        today = datetime.now(UTC).date().isoformat()
        facts = {"machine": machine(), "when": today, "batch": BATCH, "steps": STEPS, "rounds": arguments.rounds}
        results = {**facts, "variants": measure(names, arguments.rounds)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
