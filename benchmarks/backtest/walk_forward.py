"""Where the time of a walk-forward run goes: training, simpler models, files, and the run over folds itself.

    python -m benchmarks walk-forward [--candles 100000] [--folds 12] [--epochs 2]

The trainings are those of `train`: fit, evaluation, judgement and files of each fold. The overhead is all the rest:
candles to features and labels, forecast, cutting and saving of folds, and the judgement of the stitched test parts.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crypto_lstm.backtest import walk_forward as backtest
from crypto_lstm.config import FEATURES, Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.training import judging, trainer
from crypto_lstm.utils.display import text_table

CONFIG = Config(
    features=tuple(name for name in FEATURES if "43200" not in name),
    sequence_length=60,
    future_window=60,
    lstm_units=(16,),
    dense_units=(),
    batch_size=512,
)
TIMED = (  # module, function, title, whether it is a part of the trainings
    (trainer, "_fit", "fit of the networks", True),
    (judging, "answer_with_baselines", "simpler models", True),
    (trainer, "_write_run", "files of the runs", True),
    (backtest, "train_rows", "trainings, all of it", True),
    (backtest, "prepare_history", "features and labels", False),
    (backtest, "_measure_step_s", "forecast", False),
    (backtest, "_identify", "identity of the folds", False),
    (backtest, "_save_answers", "saved answers", False),
    (backtest, "_judge_folds", "judgement of all test parts", False),
)


def time_calls(module: Any, name: str, spent: dict[str, float]) -> None:
    """Replace a function of a module by one that adds its seconds to `spent`."""
    function: Callable[..., Any] = getattr(module, name)

    def timed(*words: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*words, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    setattr(module, name, timed)


def main(words: list[str]) -> int:
    """Run one walk-forward run, and print where its time went."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks walk-forward", description=__doc__)
    parser.add_argument("--candles", type=int, default=100_000)
    parser.add_argument("--folds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args(words)
    spent: dict[str, float] = {}
    for module, name, _, _ in TIMED:
        time_calls(module, name, spent)
    candles = synthetic_candles(arguments.candles, seed=1, edge=0.3)
    config = CONFIG.replace(epochs=arguments.epochs)
    warmup = config.day_candles + config.sequence_length + config.future_window
    first_train = (arguments.candles - warmup) // 3
    test = (arguments.candles - warmup - first_train) // arguments.folds
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.perf_counter()
        result = backtest.walk_forward(
            candles, config, place / "walk", first_train=first_train, test=test, step=test, ledger=place / "ledger"
        )
        total = time.perf_counter() - started
    print(describe(spent, total, len(result.folds), arguments.candles))
    return 0


def describe(spent: dict[str, float], total: float, folds: int, candles: int) -> str:
    """The table, and the overhead beside the trainings."""
    trainings = spent["train_rows"]
    rows = []
    for _, name, title, is_training in TIMED:
        seconds = spent.get(name, 0.0)
        rows.append([title, "training" if is_training else "overhead", f"{seconds:.1f}", f"{seconds / total:.1%}"])
    overhead = total - trainings
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [
        text_table(["step", "belongs to", "seconds", "share"], rows, width=80),
        f"{folds} folds on {candles:,} candles: {total:.1f} s, peak of the process {peak:.0f} MB",
        f"Overhead beside the trainings: {overhead:.1f} s, {overhead / trainings:.1%} (goal: 5 % on 500,000 candles).",
        f"Beside the fits alone: {total - spent['_fit']:.1f} s, {(total - spent['_fit']) / spent['_fit']:.1%}.",
    ]
    return "\n".join(lines)
