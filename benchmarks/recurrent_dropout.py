"""Which kind of recurrent dropout learns better: trainings on a planted edge and on a fair game, in pairs that differ in nothing else.

python benchmarks/recurrent_dropout.py            train all pairs, write recurrent_dropout_results.json (about half an hour on two cores)
python benchmarks/recurrent_dropout.py --report   print what was measured last
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
RESULTS = Path(__file__).parent / "recurrent_dropout_results.json"
KINDS = ("per_sample", "per_batch")
CONTROLS = {"planted edge": 0.6, "fair game": 0.0}
SEEDS = tuple(range(1, 9))
METRICS = ("mcc", "balanced_accuracy", "direction")


def judged(edge: float, seed: int, kind: str) -> dict[str, Any]:
    """One training, on a market and from weights of this seed: what it is worth on the test part."""
    import keras

    from crypto_lstm.data.synthetic import synthetic_candles
    from crypto_lstm.commands.demo import DEMO_CANDLES, DEMO_CONFIG
    from crypto_lstm.training.trainer import train

    keras.backend.clear_session()
    candles = synthetic_candles(DEMO_CANDLES, seed=seed, edge=edge)
    with tempfile.TemporaryDirectory() as folder:
        run = train(candles, DEMO_CONFIG.replace(seed=seed, recurrent_dropout=kind), Path(folder) / "run", tensorboard=False)
    metrics = {name: run.test.metrics[name] for name in METRICS}
    return {**metrics, "log_loss": run.test.metrics["log_loss"], "learnt": run.test.learnt, "epochs": run.epochs_run}


def paired(pairs: list[dict[str, dict[str, float]]], metric: str) -> dict[str, float]:
    """Means of both kinds, the mean difference (per_batch less per_sample), and its 95 % interval by Student's t."""
    from scipy.stats import ttest_rel

    first, second = ([pair[kind][metric] for pair in pairs] for kind in KINDS)
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


def measure(seeds: tuple[int, ...]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for control, edge in CONTROLS.items():
        results[control] = []
        for seed in seeds:
            pair = {kind: judged(edge, seed, kind) for kind in KINDS}
            results[control].append({"seed": seed, **pair})
            print(f"{control}, seed {seed}: " + ", ".join(f"{kind} MCC {pair[kind]['mcc']:+.3f}" for kind in KINDS), flush=True)
    return results


def report(results: dict[str, Any]) -> str:
    lines = []
    for control, pairs in results.items():
        names = "  ".join(f"{kind + ' MCC':>16}" for kind in KINDS)
        lines += [f"{control}: test part, {len(pairs)} markets and seeds", f"  {'seed':>4}  {names}"]
        lines += [f"  {pair['seed']:>4}  " + "  ".join(f"{pair[kind]['mcc']:>+16.3f}" for kind in KINDS) for pair in pairs]
        for metric in METRICS:
            found = paired(pairs, metric)
            means = ", ".join(f"{kind} {found[kind]:.3f}" for kind in KINDS)
            interval = f"[{found['low']:+.3f}, {found['high']:+.3f}]"
            lines.append(f"  {metric}: {means}; difference {found['difference']:+.3f} {interval}, p {found['p']:.2f}")
        learnt = ", ".join(f"{kind} {sum(pair[kind]['learnt'] for pair in pairs)} of {len(pairs)}" for kind in KINDS)
        lines += [f"  beats the baselines beyond chance: {learnt}", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="print what was measured last")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="pairs of each control")
    arguments = parser.parse_args()
    if not arguments.report:
        results = measure(SEEDS[: arguments.seeds])
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(json.loads(RESULTS.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
