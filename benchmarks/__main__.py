"""`python -m benchmarks NAME [OPTION ...]` runs a benchmark; without a name it lists them.

Run it in the root of the repository.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One command: the module whose `main` runs it, a description, the duration, and options that it always gets."""

    module: str
    text: str
    duration: str
    options: tuple[str, ...] = ()


BENCHMARKS = {
    "speed": Benchmark(
        "speed.compare", "decisions, training, memory, feeding and start beside Keras, PyTorch and NumPy", "15 minutes"
    ),
    "growth": Benchmark(
        "speed.compare",
        "growth of time and memory with windows, batch, timesteps and candles",
        "half an hour",
        ("--only", "growth"),
    ),
    "gpu": Benchmark("speed.gpu", "training on a GPU: Keras' recurrent dropout against ours", "5 minutes"),
    "decisions": Benchmark(
        "speed.decisions", "one decision, many, a new candle, a cold start; stream against batch", "8 minutes"
    ),
    "candles": Benchmark("speed.candles", "a file of candles to features and labels", "1 minute"),
    "features": Benchmark(
        "speed.features", "features of a long history and of one candle: time, memory, accuracy, bits", "5 minutes"
    ),
    "feeding": Benchmark(
        "speed.feeding", "candles to batches: memory, and the training time spent waiting", "3 minutes"
    ),
    "start": Benchmark("speed.start", "start of a process: imports and commands", "1 minute"),
    "defaults": Benchmark("speed.defaults", "settings of training: threads, XLA, bfloat16, ways to feed", "10 minutes"),
    "recurrent-dropout": Benchmark(
        "speed.recurrent_dropout", "which recurrent dropout learns better, the faster or the slower one", "half an hour"
    ),
    "memory": Benchmark("memory.forecasts", "forecasts of memory against 40 measured trainings", "more than an hour"),
    "reliability": Benchmark(
        "reliability.suite", "kills, disk errors, changed bytes, attacks and NaN, beside plain Keras", "an hour"
    ),
    "coverage": Benchmark(
        "evaluation.coverage", "how many 99 % intervals of the metrics hold the true value", "20 minutes"
    ),
    "luck": Benchmark(
        "evaluation.luck", "how often the best of 100 models convinces, with an edge and without", "5 minutes"
    ),
    "lookahead": Benchmark(
        "evaluation.lookahead", "random expressions: none blamed by the audit, shifted ones found", "5 minutes"
    ),
    "baselines": Benchmark(
        "backtest.baselines", "logistic regression, boosting and recent shares on invented markets", "5 minutes"
    ),
    "walk-forward": Benchmark(
        "backtest.walk_forward", "time of a walk-forward run beside that of its trainings", "5 minutes"
    ),
    "live": Benchmark(
        "reliability.live", "a bot's stream with lost and late candles against a plain oracle", "5 minutes"
    ),
    "live_runner": Benchmark(
        "reliability.live_runner", "a replayed month with 50 faults and kills, against predict", "10 minutes"
    ),
    "int8": Benchmark("speed.int8", "integers beside float32: decisions that differ, speed, size", "10 minutes"),
    "judgement": Benchmark(
        "judgement.suite", "fair markets judged, other implementations, time and memory of two million", "20 minutes"
    ),
    "edge": Benchmark(
        "judgement.edge", "planted edges: found, and paying, by the network and by simpler models", "an hour"
    ),
    "simulation": Benchmark(
        "judgement.simulation", "two million decisions judged and simulated: time, memory", "2 minutes"
    ),
    "markets": Benchmark(
        "speed.markets", "many markets in one model: decisions of a minute, start, memory ready to train", "5 minutes"
    ),
    "panel": Benchmark("widgets.panel", "cost of the live panel: steps with and without it, in a kernel", "3 minutes"),
    "golden": Benchmark(
        "reliability.golden", "changes of one weight that no golden answer of a saved file shows", "10 minutes"
    ),
}


def describe_benchmarks() -> str:
    """One line for each benchmark: its name, its duration on two cores, and what it measures."""
    lines = [f"  {name:18} {found.duration:18} {found.text}" for name, found in BENCHMARKS.items()]
    usage = "python -m benchmarks NAME [OPTION ...]    `NAME --help` shows the options of a benchmark"
    return "\n".join([usage, "", f"  {'NAME':18} {'on two cores':18} measures", *lines])


def main(words: list[str]) -> int:
    """Run the benchmark that the first word names, with the words that follow as its options."""
    if not words or words[0] in ("-h", "--help"):
        print(describe_benchmarks())
        return 0
    name, *options = words
    if name not in BENCHMARKS:
        print(f"expected the name of a benchmark, got {name!r}\n\n{describe_benchmarks()}", file=sys.stderr)
        return 2
    found = BENCHMARKS[name]
    module = importlib.import_module(f"benchmarks.{found.module}")
    return module.main([*found.options, *options]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
