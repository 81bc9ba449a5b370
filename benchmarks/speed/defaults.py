"""How fast the settings of training are: each variant trains the default network in a process of its own, in turn.

    python -m benchmarks defaults                all variants, about 10 minutes; writes defaults.json
    python -m benchmarks defaults --rounds 3     fewer rounds; --only NAME ... fewer variants
    python -m benchmarks defaults --report       prints the stored results

In a round every variant trains some steps with Keras' `fit`, one after the other; every second round runs in reverse
order. The first round of each compiles and is not counted. A result is the time of a step relative to that of `as it
is` in the same round, by wall time and by processor time; absolute times are not stored. Processor time is the better
measure where other programs use the machine too. To add a variant, add a `Setup` to `VARIANTS`.
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS, ROOT

DEFAULTS_RESULTS = RESULTS / "defaults.json"
BASE = "as it is"
BATCH, STEPS, CANDLES = 256, 8, 60_000


@dataclass
class Setup:
    """The settings of one variant, and the way its data is fed."""

    compile: dict[str, Any] = field(default_factory=dict)  # more arguments of `compile`
    policy: str = "float32"  # Keras' dtype policy
    threads: tuple[int, int] | None = None  # intra-op, inter-op; 0: TensorFlow's choice; None: as `train` sets them
    steps: int = STEPS  # of a round
    data: str = "gathered"  # a key of `FEEDS`
    keras_layers: bool = False  # Keras' own layers


VARIANTS: dict[str, tuple[str, Setup]] = {
    BASE: ("gathered by NumPy, one step a call, one thread an operation, no XLA, float32", Setup()),
    "Keras' own layers": ("keras.layers.LSTM, one thread an operation", Setup(keras_layers=True)),
    "the same, all threads": (
        "keras.layers.LSTM, TensorFlow's choice of threads",
        Setup(keras_layers=True, threads=(0, 0)),
    ),
    "all threads": ("an operation is spread over all cores: TensorFlow's choice", Setup(threads=(0, 0))),
    "1 operation at a time": ("on all threads", Setup(threads=(0, 1))),
    "fed by Keras": ("the dataset itself given to fit: a pipeline that tunes itself", Setup(data="tuned")),
    "one batch repeated": ("nothing is gathered: the limit for any way to feed", Setup(data="repeated")),
    "gathered in the graph": ("tf.gather on a resident matrix, tf.data", Setup(data="graph")),
    "4 steps a call": ("steps_per_execution=4", Setup(compile={"steps_per_execution": 4})),
    "8 steps a call": ("steps_per_execution=8, here all steps of a round", Setup(compile={"steps_per_execution": 8})),
    "XLA": ("jit_compile=True", Setup(compile={"jit_compile": True}, steps=1)),
    "bfloat16": ("mixed_bfloat16: weights float32, arithmetic bfloat16", Setup(policy="mixed_bfloat16")),
}


def prepare_trainer(name: str) -> Callable[[], tuple[float, float]]:
    """A function that trains one round and returns the seconds of a step: wall time and processor time."""
    setup = VARIANTS[name][1]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from crypto_lstm.config import Config
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.data.windows import prepare

    set_threads(setup)
    keras.config.set_dtype_policy(setup.policy)
    config = Config(batch_size=BATCH)
    data, model = prepare(synthetic_candles(CANDLES, seed=0), config), build_network(setup, config)
    batches = FEEDS[setup.data](data.train, setup)
    steps_per_epoch = setup.steps if setup.data == "graph" else None

    def time_step() -> tuple[float, float]:
        start, start_busy = time.perf_counter(), time.process_time()
        history = model.fit(batches, steps_per_epoch=steps_per_epoch, shuffle=False, verbose=0)
        took, busy = time.perf_counter() - start, time.process_time() - start_busy
        loss = history.history["loss"][0]
        if not loss < 10:
            raise SystemExit(f"{name}: expected a loss below 10, got {loss}: this did not train")
        return took / setup.steps, busy / setup.steps

    return time_step


def set_threads(setup: Setup) -> None:
    """Set TensorFlow's threads, before TensorFlow is used."""
    import tensorflow as tf

    from crypto_lstm.gpu import setup_cpu_threads

    if setup.threads is None:
        setup_cpu_threads()
        return
    intra, inter = setup.threads
    if intra:
        tf.config.threading.set_intra_op_parallelism_threads(intra)
    if inter:
        tf.config.threading.set_inter_op_parallelism_threads(inter)


def build_network(setup: Setup, config: Any) -> Any:
    """The default network, compiled as the variant says."""
    import keras

    from crypto_lstm.architecture import build_model
    from crypto_lstm.layers import to_keras_model

    model, metrics = build_model(config), ["accuracy", "categorical_accuracy"]
    if setup.keras_layers:
        model = to_keras_model(model)
        model.compile(keras.optimizers.Adam(config.learning_rate), loss=model.loss, metrics=metrics)
    if setup.compile:
        model.compile(model.optimizer, loss=model.loss, metrics=metrics, **setup.compile)
    return model


def feed_gathered(train: Any, setup: Setup) -> Any:
    """Some steps of each epoch, as `train` feeds them."""
    from crypto_lstm.data.windows import tf_dataset

    return tf_dataset(feed_by_keras(train, setup))


def feed_by_keras(train: Any, setup: Setup) -> Any:
    """Some steps of each epoch of the training windows, fed by Keras, which tunes its pipeline."""
    import keras

    class FewSteps(keras.utils.PyDataset):  # the order is shuffled again for each round, as in training
        def __len__(self) -> int:
            return setup.steps

        def __getitem__(self, index: int) -> Any:
            return train[index]

        def on_epoch_begin(self) -> None:
            train.on_epoch_begin()

    return FewSteps()


def feed_repeated(train: Any, setup: Setup) -> Any:
    """One batch, gathered once and repeated."""
    import tensorflow as tf

    return disable_tuning(tf.data.Dataset.from_tensors(train[0]).repeat(setup.steps))


def disable_tuning(batches: Any) -> Any:
    """The pipeline without the thread that tunes it."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def feed_in_graph(train: Any, setup: Setup) -> Any:
    """The same windows, gathered by TensorFlow from a matrix in its memory; shuffled in the graph, endless."""
    import tensorflow as tf

    length, matrix = train.sequence_length, tf.constant(train.matrix)
    classes, rows = tf.constant(train.labels.astype("int32")), tf.constant(train.rows.astype("int32"))

    def gather(positions: Any) -> Any:
        steps = tf.gather(rows, positions)[:, None] + tf.range(1 - length, 1)[None, :]
        return tf.gather(matrix, steps), tf.one_hot(tf.gather(classes, positions), 3)

    order = tf.data.Dataset.range(len(train.rows)).shuffle(len(train.rows), seed=0).repeat()
    return disable_tuning(order.batch(BATCH, drop_remainder=True).map(gather, num_parallel_calls=2).prefetch(2))


FEEDS: dict[str, Callable[[Any, Setup], Any]] = {
    "gathered": feed_gathered,
    "tuned": feed_by_keras,
    "repeated": feed_repeated,
    "graph": feed_in_graph,
}


def serve_rounds(name: str) -> None:
    """Run the process of one variant: for each line on stdin train a round and print its seconds."""
    time_step = prepare_trainer(name)
    for _ in sys.stdin:
        print(json.dumps(time_step()), flush=True)


class Worker:
    """The process of one variant, seen from the parent."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.failed, self.log = name, "", folder / f"{name}.log"
        command = [sys.executable, "-m", "benchmarks", "defaults", "--work", name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, **pipes, stderr=log, text=True, cwd=ROOT)

    def run_round(self) -> tuple[float, float]:
        """Seconds of a step in one round, wall time and processor time; NaN for a variant that does not run."""
        if not self.failed:
            try:
                print(file=self.process.stdin, flush=True)
                wall, processor = json.loads(self.process.stdout.readline())
                return wall, processor
            except (ValueError, BrokenPipeError):
                lines = self.log.read_text(encoding="utf-8").splitlines()
                errors = [line.strip() for line in lines if "Error" in line] or ["the process ended without a message"]
                self.failed = errors[-1][:160]
        return float("nan"), float("nan")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(60)


def start_worker(name: str, folder: Path) -> Worker:
    """The process of a variant after its first round, which compiles."""
    worker = Worker(name, folder)
    wall, _ = worker.run_round()
    print(f"{name}: {'ready' if wall > 0 else worker.failed}", flush=True)
    return worker


def measure(names: list[str], rounds: int) -> dict[str, Any]:
    """How many times as fast as `as it is` each variant trained, in each round."""
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(max_workers=2) as pool:  # nothing is timed yet
            workers = list(pool.map(lambda name: start_worker(name, Path(folder)), names))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(rounds):
            for worker in workers if number % 2 else reversed(workers):
                times[worker.name].append(worker.run_round())
        for worker in workers:
            worker.close()

    return {worker.name: compare_times(worker, times[BASE], times[worker.name]) for worker in workers}


def compare_times(worker: Worker, base: list[tuple[float, float]], own: list[tuple[float, float]]) -> dict[str, Any]:
    """The stored result of a variant: its speed and its processor time relative to `as it is`, in each round."""
    result = {"what": VARIANTS[worker.name][0], "failed": worker.failed, "speed": [], "work": []}
    if worker.failed:
        return result
    for (base_wall, base_busy), (own_wall, own_busy) in zip(base, own, strict=True):
        result["speed"].append(round(base_wall / own_wall, 4))
        result["work"].append(round(own_busy / base_busy, 4))
    return result


def compute_quartiles(speeds: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(speeds) < 2:
        return (speeds[0],) * 3
    low, middle, high = statistics.quantiles(speeds, n=4, method="inclusive")
    return low, middle, high


def render_results(results: dict[str, Any]) -> str:
    """The stored results as a table."""
    from crypto_lstm.utils.display import text_table

    rows = []
    for name, found in results["variants"].items():
        if found["speed"]:
            low, middle, high = compute_quartiles(found["speed"])
            work = statistics.median(found["work"])
            shown = [f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{work:.2f}"]
        else:
            shown = ["-", found["failed"], "-"]
        rows.append([name, *shown, found["what"]])
    table = text_table(["training", "speed", "quartiles", "work", "setting"], rows)
    size = f"{results['rounds']} rounds of {results['steps']} steps (XLA: {VARIANTS['XLA'][1].steps})"
    legend = "speed: times as fast as the first row, in the same round\nwork: processor time relative to the first row"
    return f"{results['machine']}\n{size}, batch {results['batch']}, {results['when']}\n\n{table}\n\n{legend}"


def describe_machine() -> str:
    """Processor, cores and versions in one line."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy"))
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def main(words: Sequence[str] | None = None) -> None:
    others = [name for name in VARIANTS if name != BASE]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks defaults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are counted")
    parser.add_argument("--only", nargs="+", choices=others, help="variants beside the first")
    parser.add_argument("--report", action="store_true", help="print the stored results, measure nothing")
    parser.add_argument("--work", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.work:
        serve_rounds(arguments.work)
        return
    if not arguments.report:
        variants = measure([BASE, *(arguments.only or others)], arguments.rounds)
        today = datetime.now(UTC).date().isoformat()
        facts = {
            "machine": describe_machine(),
            "when": today,
            "batch": BATCH,
            "steps": STEPS,
            "rounds": arguments.rounds,
        }
        DEFAULTS_RESULTS.write_text(json.dumps({**facts, "variants": variants}, indent=1) + "\n", encoding="utf-8")
    print(render_results(json.loads(DEFAULTS_RESULTS.read_text(encoding="utf-8"))))
