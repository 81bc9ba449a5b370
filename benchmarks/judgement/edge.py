"""Planted edges: whether the network or a simpler model is found to have learnt, and whether it pays.

    python -m benchmarks edge                                          all; writes results/edge.json
    python -m benchmarks edge --edges 0.6 --candles 250000 --no-network
    python -m benchmarks edge --report                                 the table of the stored results

The markets are `synthetic_candles` of one minute with an edge. Features are those without the means of 30 days, as in
`python -m benchmarks baselines`. The network is a small one that trains in minutes on two cores; it is judged beside
the simpler models by `train`. Each simpler model is judged as if it were the model, with the models that are simpler
than itself as rivals. Results are kept by edge, candles and seed; a later run adds to them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS
from crypto_lstm.config import FEATURES, Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.evaluation.judgement import Judgement, judge
from crypto_lstm.training.judging import answer_with_baselines
from crypto_lstm.utils.display import text_table

EDGE_RESULTS = RESULTS / "edge.json"
EDGES = (0.3, 0.6)
CANDLES = (100_000, 250_000)
SEEDS = 6
CONFIG = Config(features=tuple(name for name in FEATURES if "43200" not in name), test_split=0.2)
NETWORK = CONFIG.replace(sequence_length=60, lstm_units=(32, 16), dense_units=(16,), epochs=6, monitor="val_loss")
LEARNERS = ("logistic regression", "gradient boosting", "LightGBM")


def list_facts(judged: Judgement, seconds: float) -> dict[str, Any]:
    """The figures of one model."""
    figures = judged.model.simulation.figures
    return {
        "model": judged.model.name,
        "learnt": judged.learnt,
        "pays": judged.pays,
        "balanced_accuracy": judged.model.balanced_accuracy,
        "log_loss": judged.model.log_loss,
        "trades": figures["trades"],
        "mean_net_pct": figures["mean_net_pct"],
        "total_return_pct": figures["total_return_pct"],
        "deflated": None if judged.luck is None else judged.luck.deflated,
        "verdict": list(judged.sentences),
        "seconds": seconds,
    }


def judge_simpler_models(edge: float, candles: int, seed: int, config: Config = CONFIG) -> list[dict[str, Any]]:
    """Each simpler model of one market, judged with the simpler ones as rivals."""
    history = synthetic_candles(candles, seed=seed, edge=edge)
    started = time.perf_counter()
    data = prepare(history, config)
    answers = answer_with_baselines(data)
    found = []
    for place, answer in enumerate(answers):
        if answer.name in LEARNERS:
            judged = judge("test", history, data.outcomes_of("test"), answer, config, answers[:place], data.warnings)
            found.append(list_facts(judged, time.perf_counter() - started))
    return found


def judge_network(edge: float, candles: int, seed: int) -> list[dict[str, Any]]:
    """The small network of one market, trained and judged by `train`."""
    from crypto_lstm.training.trainer import train

    history = synthetic_candles(candles, seed=seed, edge=edge)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.jsonl"
        run = train(history, NETWORK.replace(seed=seed), Path(folder) / "run", tensorboard=False, ledger=ledger)
    return [list_facts(run.judgement, time.perf_counter() - started)]


def load_results() -> dict[str, Any]:
    """Stored results: "edge candles seed" -> a list of models."""
    return json.loads(EDGE_RESULTS.read_text(encoding="utf-8")) if EDGE_RESULTS.exists() else {}


def store(key: str, models: Sequence[dict[str, Any]]) -> None:
    """Add the models of one market to the stored results, in place of those with the same names."""
    stored = load_results()
    names = {model["model"] for model in models}
    kept = [model for model in stored.get(key, []) if model["model"] not in names]
    stored[key] = [*kept, *models]
    EDGE_RESULTS.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n", encoding="utf-8")


def render_results(stored: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each edge, length and model, and one for the best of each market."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for key, models in stored.items():
        edge, candles, _ = key.split()
        for model in models:
            groups.setdefault((edge, candles, model["model"]), []).append(model)
        best = {"learnt": any(model["learnt"] for model in models), "pays": any(model["pays"] for model in models)}
        groups.setdefault((edge, candles, "any of them"), []).append(best)
    rows = [[*_name(group), *_list_cells(models)] for group, models in sorted(groups.items())]
    header = ["edge", "candles", "model", "learnt", "pays", "balanced", "trades", "a trade", "seconds"]
    return text_table(header, rows, width=100)


def _name(group: tuple[str, str, str]) -> list[str]:
    return [group[0], f"{int(group[1]):,}", group[2]]


def _list_cells(models: Sequence[dict[str, Any]]) -> list[str]:
    """Counts, and means over the seeds."""
    counts = [f"{sum(model[name] for model in models)} of {len(models)}" for name in ("learnt", "pays")]
    if "trades" not in models[0]:
        return [*counts, "", "", "", ""]
    trades = sum(model["trades"] for model in models)
    net = sum(model["trades"] * (model["mean_net_pct"] or 0.0) for model in models)
    accuracy, seconds = (
        sum(model[name] for model in models) / len(models) for name in ("balanced_accuracy", "seconds")
    )
    mean = f"{net / trades:+.3f} %" if trades else "-"
    return [*counts, f"{accuracy:.3f}", f"{trades / len(models):.1f}", mean, f"{seconds:.0f}"]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks edge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edges", type=float, nargs="+", default=EDGES)
    parser.add_argument("--candles", type=int, nargs="+", default=CANDLES)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="markets of each kind")
    parser.add_argument("--no-network", action="store_true", help="judge the simpler models alone")
    parser.add_argument("--network-only", action="store_true", help="judge the network alone")
    parser.add_argument("--report", action="store_true", help="show the stored results")
    options = parser.parse_args(words)
    if not options.report:
        for edge in options.edges:
            for candles in options.candles:
                for seed in range(options.seeds):
                    measure_market(edge, candles, seed, options)
    print(render_results(load_results()))
    return 0


def measure_market(edge: float, candles: int, seed: int, options: argparse.Namespace) -> None:
    """Judge the models of one market, and store them."""
    models = [] if options.network_only else judge_simpler_models(edge, candles, seed)
    if not options.no_network:
        models += judge_network(edge, candles, seed)
    store(f"{edge:g} {candles} {seed}", models)
    for model in models:
        print(
            f"edge {edge:g}, {candles:,} candles, seed {seed}, {model['model']}: {' '.join(model['verdict'])}",
            flush=True,
        )
