"""How far forecasts of memory are from the truth: 40 configurations, each trained for ten steps in fresh processes.

python benchmarks/memory.py             measure everything and report (more than an hour on two cores)
python benchmarks/memory.py --quick     four configurations, a few minutes
python benchmarks/memory.py --report    report what was measured last, memory_results.json
python benchmarks/memory.py --fit       fit the constants of crypto_lstm.memory on 15 other configurations

memory_results.json also has what the same configurations took in Keras' own layers, when `build_model` made those: `stock/...`.
They judge the formula for Keras' loops, and are not measured again.
"""

import argparse
import json
import os
import statistics
import timeit
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from memory_measure import GRID, HERE, REPEATS, measure, settings

from crypto_lstm import memory
from crypto_lstm.architecture import build_model, layer_plan
from crypto_lstm.config import Config
from crypto_lstm.memory import FLOAT32_BYTES as FLOAT
from crypto_lstm.memory import Variant, estimate_memory
from crypto_lstm.profiling.measure import extrapolate_memory, probe_sizes
from crypto_lstm.utils.system import MB

STOCK = "stock/"
RESULTS = HERE / "memory_results.json"
ENTRIES = {entry["name"]: entry for part in ("fit", "grid") for entry in GRID[part]}


def errors(guesses: Sequence[float], truths: Sequence[float]) -> np.ndarray:
    """Relative errors in percent, with their sign."""
    return 100 * (np.asarray(guesses) / np.asarray(truths) - 1)


# what others would say of the tensor peak


def original_formula(config: Config, variant: Variant) -> float:
    """The code that this package grew from: 8 inputs for every layer, five times the weights, one batch."""
    lstm = sum(units * (8 + units + 1) * 4 for units in config.lstm_units)
    widths = (config.lstm_units[-1], *config.dense_units, 3)
    dense = sum((a + 1) * b for a, b in zip(widths, widths[1:], strict=False))
    return (5 * FLOAT * (lstm + dense) + FLOAT * config.batch_windows * config.sequence_length * 8) / MB


def keras_summary(config: Config, variant: Variant) -> float:
    """What `model.summary()` prints as the total size: weights and optimizer of the built and compiled model."""
    model = build_model(config, inputs=variant.inputs)
    if variant.optimizer != "adam":
        model.compile(variant.optimizer)
    model.optimizer.build(model.trainable_variables)
    return sum(v.value.numpy().nbytes for v in (*model.variables, *model.optimizer.variables) if "seed" not in v.path) / MB


def four_weights(config: Config, variant: Variant) -> float:
    """Weights, gradients and two slots."""
    return 4 * FLOAT * layer_plan(config, variant.inputs).parameters / MB


def outputs_twice(config: Config, variant: Variant) -> float:
    """What leaves each layer, forward and backward, and the weights (as torchinfo counts)."""
    plan = layer_plan(config, variant.inputs)
    values = sum(int(np.prod([size for size in layer.output_shape if size])) for layer in plan) * config.batch_windows
    return FLOAT * (2 * values + plan.parameters) / MB


PEERS: dict[str, Callable[[Config, Variant], float]] = {
    "original formula": original_formula,
    "Keras summary": keras_summary,
    "four times the weights": four_weights,
    "outputs times two": outputs_twice,
}


def cases_of(names: Sequence[str], prefix: str) -> list[tuple[Config, Variant]]:
    """Configurations and variants; with the prefix `stock/` of Keras' own layers."""
    return [(config, replace(variant, keras_layers=prefix == STOCK)) for config, variant in (settings(ENTRIES[name]) for name in names)]


def probed_growth(name: str, results: dict[str, Any], prefix: str) -> float:
    """What `probe_memory` answers, from its measurements."""
    ((config, variant),) = cases_of([name], prefix)
    measured = {size: results[f"{prefix}{name}/probe/{size}"]["growth_mb"] for size in probe_sizes(config.batch_windows)}
    return extrapolate_memory(config.batch_windows, measured, lambda size: estimate_memory(config, size, variant=variant).growth_mb)


def report(names: Sequence[str], results: dict[str, Any], prefix: str = "") -> None:
    """Each configuration, then the summary."""
    truths = [results[prefix + name] for name in names]
    cases = cases_of(names, prefix)
    forecasts = [estimate_memory(config, variant=variant) for config, variant in cases]
    tensor = errors([f.tensor_peak_mb for f in forecasts], [t["tensor_peak_mb"] for t in truths])
    process = errors([f.process_peak_mb for f in forecasts], [t["process_peak_mb"] for t in truths])
    growth = errors([f.growth_mb for f in forecasts], [t["growth_mb"] for t in truths])
    upper = np.array([f.upper_mb / t["process_peak_mb"] for f, t in zip(forecasts, truths, strict=True)])
    has_probe = all(
        f"{prefix}{name}/probe/{size}" in results for name in names for size in probe_sizes(ENTRIES[name]["config"]["batch_size"])
    )
    probes = np.array([probed_growth(name, results, prefix) for name in names]) if has_probe else np.full(len(names), np.nan)
    resident = np.array([t["resident_mb"] for t in truths])
    probe_process = errors(probes + resident, [t["process_peak_mb"] for t in truths])
    probe_growth = errors(probes, [t["growth_mb"] for t in truths])
    print(f"{'':28}{'tensor peak':>20}{'process peak':>20}{'growth':>18}{'probe':>9}{'upper':>8}")
    for n, name in enumerate(names):
        t = truths[n]
        print(
            f"{name:28}{t['tensor_peak_mb']:9.1f} MB {tensor[n]:+6.1f} %{t['process_peak_mb']:10.0f} MB {process[n]:+5.1f} %"
            f"{t['growth_mb']:8.0f} MB {growth[n]:+5.1f} %{probe_process[n]:+7.1f} %{upper[n]:8.2f}"
        )
    print(f"\n{'closed form, tensor peak, mean abs. error':50} {abs(tensor).mean():6.1f} %   worst {abs(tensor).max():.1f} %")
    print(f"{'closed form, process peak, mean abs. error':50} {abs(process).mean():6.1f} %   worst {abs(process).max():.1f} %")
    print(f"{'closed form, growth, mean abs. error':50} {abs(growth).mean():6.1f} %   worst {abs(growth).max():.1f} %")
    if has_probe:
        worst = np.percentile(abs(probe_process), 95)
        print(f"{'probe, process peak, mean abs. error':50} {abs(probe_process).mean():6.1f} %   95th percentile {worst:.1f} %")
        print(f"{'probe, growth, mean abs. error':50} {abs(probe_growth).mean():6.1f} %   worst {abs(probe_growth).max():.1f} %")
    print(f"{'truth above upper_mb':50} {int((upper < 1).sum()):6d} of {len(upper)}")
    print(f"{'upper_mb over the truth, median':50} {np.median(upper):6.2f}     {upper.min():.2f} to {upper.max():.2f}")
    for peer, formula in PEERS.items():
        others = errors([formula(config, variant) for config, variant in cases], [t["tensor_peak_mb"] for t in truths])
        print(f"{peer + ', tensor peak, mean abs. error':50} {abs(others).mean():6.1f} %   worst {abs(others).max():.1f} %")
    seconds = min(timeit.repeat(lambda: estimate_memory(Config()), number=200, repeat=5)) / 200
    print(f"{'closed form, time of one':50} {1e3 * seconds:6.2f} ms")


def report_noise(results: dict[str, Any], prefix: str = "") -> None:
    """How far repeats of the same measurement are apart: no forecast can be closer than that."""
    print(f"\nnoise: {len(GRID['noise'])} configurations, {REPEATS} repeats; (max - min) / mean, and standard deviation / mean")
    for quantity in ("tensor_peak_mb", "process_peak_mb", "growth_mb"):
        spans, deviations = [], []
        for name in GRID["noise"]:
            values = [results[prefix + key][quantity] for key in (name, *(f"{name}/repeat/{n}" for n in range(1, REPEATS)))]
            spans.append(100 * (max(values) - min(values)) / statistics.mean(values))
            deviations.append(100 * statistics.stdev(values) / statistics.mean(values))
        mean = statistics.mean(deviations)
        print(f"  {quantity:16} span: mean {statistics.mean(spans):.1f} %, worst {max(spans):.1f} %;  deviation: mean {mean:.1f} %")


FITTED = {"LOW_MEMORY_COPIES": (0, 3), "LOW_MEMORY_BASE_MB": (0, 6)}
FITTED_PROCESS = {"LOW_MEMORY_ALLOCATOR": (1, 1.5), "LOW_MEMORY_MB": (0, 100)}


def fit(results: dict[str, Any]) -> None:
    """Least squares of relative errors over the constants, tensors first; prints them beside those in use."""
    from scipy.optimize import least_squares

    truths = {name: results[name] for name in (entry["name"] for entry in GRID["fit"])}

    def solve(constants: dict[str, tuple[float, float]], quantity: str) -> None:
        def residuals(values: np.ndarray) -> np.ndarray:
            for name, value in zip(constants, values, strict=True):
                setattr(memory, name, float(value))
            return np.array([getattr(_forecast(name), quantity) / truth[quantity] - 1 for name, truth in truths.items()])

        start, used = [getattr(memory, name) for name in constants], [getattr(memory, name) for name in constants]
        low, high = zip(*constants.values(), strict=True)
        found = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.05, diff_step=0.02)
        for name, value, before in zip(constants, found.x, used, strict=True):
            print(f"  {name:14} {value:8.3f}   in use {before}")
        for name, before in zip(constants, used, strict=True):
            setattr(memory, name, before)

    print("constants fitted on 15 configurations:")
    solve(FITTED, "tensor_peak_mb")
    solve(FITTED_PROCESS, "growth_mb")
    print(f"  {'BUILT_MB':14} {statistics.median(t['resident_mb'] for t in truths.values()):8.1f}   in use {memory.BUILT_MB}\n")
    report(list(truths), results)


def _forecast(name: str) -> memory.MemoryEstimate:
    config, variant = settings(ENTRIES[name])
    return estimate_memory(config, variant=variant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quick", "report", "fit"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="measurements at the same time")
    parser.add_argument("--resume", action="store_true", help="keep what memory_results.json has, measure the rest")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not (arguments.report or arguments.resume or arguments.fit):
        known = {key: reading for key, reading in known.items() if key.startswith(STOCK)}
    if arguments.quick:
        measure(["quick"], known, None, arguments.workers)
        return report(GRID["quick"], known)
    if arguments.fit:
        if not arguments.report:
            measure(["fit"], known, RESULTS, arguments.workers)
        return fit(known)
    if not arguments.report:
        measure(["grid", "probe", "noise"], known, RESULTS, arguments.workers)
    grid = [entry["name"] for entry in GRID["grid"]]
    report(grid, known)
    if all(f"{name}/repeat/{REPEATS - 1}" in known for name in GRID["noise"]):
        report_noise(known)
    print("\nthe same in Keras' own layers, as it was measured when build_model made them:")
    report(grid, known, STOCK)
    return report_noise(known, STOCK)


if __name__ == "__main__":
    main()
