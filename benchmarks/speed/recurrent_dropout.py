"""Which kind of recurrent dropout learns better: pairs of trainings on a planted edge and on a fair game.

python -m benchmarks recurrent-dropout            train all pairs (half an hour), write recurrent_dropout.json
python -m benchmarks recurrent-dropout --report   print the stored results
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS

DROPOUT_RESULTS = RESULTS / "recurrent_dropout.json"
KINDS = ("per_sample", "per_batch")
CONTROLS = {"planted edge": 0.6, "fair game": 0.0}
SEEDS = tuple(range(1, 9))
METRICS = ("mcc", "balanced_accuracy", "direction")


def train_once(edge: float, seed: int, kind: str) -> dict[str, Any]:
    """Metrics of one training on the test part; market and initial weights come from the seed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from crypto_lstm.commands.demo import DEMO_CANDLES, DEMO_CONFIG
    from crypto_lstm.config import FEATURES
    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.training.trainer import train

    keras.backend.clear_session()
    candles = synthetic_candles(DEMO_CANDLES, seed=seed, edge=edge)
    config = DEMO_CONFIG.replace(seed=seed, recurrent_dropout=kind, features=FEATURES, test_split=0.2)
    with tempfile.TemporaryDirectory() as folder:
        run = train(candles, config, Path(folder) / "run", tensorboard=False)
    metrics = {name: run.test.metrics[name] for name in METRICS}
    metrics["log_loss"] = run.test.metrics["log_loss"]
    return {**metrics, "learnt": run.judgement.learnt, "epochs": run.epochs_run}


def compare_pairs(pairs: list[dict[str, dict[str, float]]], metric: str) -> dict[str, float]:
    """Means of both kinds, the mean difference (per_batch minus per_sample), and its 95 % interval by Student's t."""
    from scipy.stats import ttest_rel

    first = [pair[KINDS[0]][metric] for pair in pairs]
    second = [pair[KINDS[1]][metric] for pair in pairs]
    test = ttest_rel(second, first)
    low, high = test.confidence_interval(0.95)
    return {
        KINDS[0]: statistics.fmean(first),
        KINDS[1]: statistics.fmean(second),
        "difference": statistics.fmean(second) - statistics.fmean(first),
        "low": float(low),
        "high": float(high),
        "p": float(test.pvalue),
    }


def measure(seeds: Sequence[int]) -> dict[str, Any]:
    """All pairs of trainings, by control."""
    results: dict[str, Any] = {}
    for control, edge in CONTROLS.items():
        results[control] = []
        for seed in seeds:
            pair = {kind: train_once(edge, seed, kind) for kind in KINDS}
            results[control].append({"seed": seed, **pair})
            shown = ", ".join(f"{kind} MCC {pair[kind]['mcc']:+.3f}" for kind in KINDS)
            print(f"{control}, seed {seed}: {shown}", flush=True)
    return results


def render_results(results: dict[str, Any]) -> str:
    """The pairs of each control, and the comparison of each metric."""
    lines = []
    for control, pairs in results.items():
        names = "  ".join(f"{kind + ' MCC':>16}" for kind in KINDS)
        lines += [f"{control}: test part, {len(pairs)} markets and seeds", f"  {'seed':>4}  {names}"]
        lines += [
            f"  {pair['seed']:>4}  " + "  ".join(f"{pair[kind]['mcc']:>+16.3f}" for kind in KINDS) for pair in pairs
        ]
        for metric in METRICS:
            found = compare_pairs(pairs, metric)
            means = ", ".join(f"{kind} {found[kind]:.3f}" for kind in KINDS)
            interval = f"[{found['low']:+.3f}, {found['high']:+.3f}]"
            lines.append(f"  {metric}: {means}; difference {found['difference']:+.3f} {interval}, p {found['p']:.2f}")
        learnt = {kind: sum(pair[kind]["learnt"] for pair in pairs) for kind in KINDS}
        counts = ", ".join(f"{kind} {count} of {len(pairs)}" for kind, count in learnt.items())
        lines += [f"  judged to have learnt when they were measured: {counts}", ""]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks recurrent-dropout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", action="store_true", help="print the stored results, train nothing")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="pairs of each control")
    arguments = parser.parse_args(words)
    if not arguments.report:
        results = measure(SEEDS[: arguments.seeds])
        DROPOUT_RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(render_results(json.loads(DROPOUT_RESULTS.read_text(encoding="utf-8"))))
