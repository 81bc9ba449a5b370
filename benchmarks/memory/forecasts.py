"""How far forecasts of memory are from measurements: 40 configurations, each trained for ten steps in fresh processes.

    python -m benchmarks memory             measure everything and report (more than an hour on two cores)
    python -m benchmarks memory --quick     four configurations, a few minutes; --quick 1: one
    python -m benchmarks memory --report    report the stored results, memory.json
    python -m benchmarks memory --fit       fit the constants of crypto_lstm.memory on 15 other configurations

All of it is anonymous memory; file pages are recorded beside it. The forecasts add the growth to the base of the
machine, which `find_base_memory` measures in a process of its own: `base` in memory.json.

memory.json also holds measurements of the same configurations in Keras' own layers: `stock/...`. They check the formula
for Keras' loops. They are measured with `--stock`; those without `base_mb` are older, and hold the tensor peak alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.memory.measurements import GRID, REPEATS, measure, parse_entry
from benchmarks.paths import RESULTS
from crypto_lstm import memory
from crypto_lstm.architecture import build_model, layer_plan
from crypto_lstm.config import Config
from crypto_lstm.memory import MemoryEstimate, Variant, estimate_memory
from crypto_lstm.profiling.measure import extrapolate_memory, probe_sizes
from crypto_lstm.utils.base_memory import find_base_memory
from crypto_lstm.utils.system import MB

KERAS_LAYERS = "stock/"
BASE = "base"  # key of the base of the machine that measured the rest
FLOAT = 4  # bytes of a float32
MEMORY_RESULTS = RESULTS / "memory.json"
ENTRIES = {entry["name"]: entry for entry in (*GRID["fit"], *GRID["grid"])}
QUANTITIES = {"tensor_peak_mb": "tensor peak", "process_peak_mb": "process peak", "growth_mb": "growth"}


def relative_errors(guesses: Sequence[float], truths: Sequence[float]) -> np.ndarray:
    """Relative errors in percent, with their sign."""
    return 100 * (np.asarray(guesses) / np.asarray(truths) - 1)


# ---------------------------------------------------------------- other estimates of the tensor peak, MB


def estimate_by_original(config: Config, variant: Variant) -> float:
    """The formula that this package began with: 8 inputs for every layer, five times the weights, one batch."""
    lstm = sum(units * (8 + units + 1) * 4 for units in config.lstm_units)
    widths = (config.lstm_units[-1], *config.dense_units, 3)
    dense = sum((inputs + 1) * outputs for inputs, outputs in zip(widths, widths[1:], strict=False))
    return (5 * FLOAT * (lstm + dense) + FLOAT * config.batch_windows * config.sequence_length * 8) / MB


def estimate_by_summary(config: Config, variant: Variant) -> float:
    """The total size that `model.summary()` prints: weights and optimizer of the built and compiled model."""
    model = build_model(config, inputs=variant.inputs)
    if variant.optimizer != "adam":
        model.compile(variant.optimizer)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    return sum(v.value.numpy().nbytes for v in variables if "seed" not in v.path) / MB


def estimate_by_weights(config: Config, variant: Variant) -> float:
    """Weights, gradients and two slots of the optimizer."""
    return 4 * FLOAT * layer_plan(config, variant.inputs).parameters / MB


def estimate_by_outputs(config: Config, variant: Variant) -> float:
    """Outputs of each layer, forward and backward, and the weights (as torchinfo counts)."""
    plan = layer_plan(config, variant.inputs)
    values = 0
    for layer in plan:
        values += int(np.prod([size for size in layer.output_shape if size])) * config.batch_windows
    return FLOAT * (2 * values + plan.parameters) / MB


PEERS: dict[str, Callable[[Config, Variant], float]] = {
    "original formula": estimate_by_original,
    "Keras summary": estimate_by_summary,
    "four times the weights": estimate_by_weights,
    "outputs times two": estimate_by_outputs,
}

# ---------------------------------------------------------------- comparison


def get_case(name: str, prefix: str) -> tuple[Config, Variant]:
    """Configuration and variant; with the prefix `stock/` in Keras' own layers."""
    config, variant = parse_entry(ENTRIES[name])
    return config, replace(variant, keras_layers=prefix == KERAS_LAYERS)


@dataclass(frozen=True)
class Comparison:
    """Forecasts and measurements of some configurations; errors in percent, by quantity."""

    names: Sequence[str]
    cases: list[tuple[Config, Variant]]
    truths: list[dict[str, float]]
    errors: dict[str, np.ndarray]
    upper: np.ndarray  # `upper_mb` over the measured process peak
    probe_process: np.ndarray  # error of the probe; NaN where it was not measured
    probe_growth: np.ndarray

    @property
    def has_probe(self) -> bool:
        return not np.isnan(self.probe_growth).all()


def compare(names: Sequence[str], results: dict[str, Any], prefix: str = "") -> Comparison:
    """Compare forecasts and probes with measurements."""
    truths = [results[prefix + name] for name in names]
    cases = [get_case(name, prefix) for name in names]
    base_mb = results[BASE]["anonymous_mb"]
    forecasts = [estimate_memory(config, base_mb=base_mb, variant=variant) for config, variant in cases]
    errors = {}
    for quantity in QUANTITIES:
        guesses = [getattr(forecast, quantity) for forecast in forecasts]
        errors[quantity] = relative_errors(guesses, [truth.get(quantity, np.nan) for truth in truths])
    process = np.array([truth.get("process_peak_mb", np.nan) for truth in truths])
    bases = np.array([truth.get("base_mb", np.nan) for truth in truths])
    probes = np.array([extrapolate_probe(name, results, prefix) for name in names])
    return Comparison(
        names,
        cases,
        truths,
        errors,
        upper=np.array([forecast.upper_mb for forecast in forecasts]) / process,
        probe_process=relative_errors(probes + bases, process),
        probe_growth=relative_errors(probes, [truth.get("growth_mb", np.nan) for truth in truths]),
    )


def extrapolate_probe(name: str, results: dict[str, Any], prefix: str) -> float:
    """The growth that `probe_memory` returns, from stored measurements; NaN where they are missing."""
    config, variant = get_case(name, prefix)
    keys = {size: f"{prefix}{name}/probe/{size}" for size in probe_sizes(config.batch_windows)}
    if not all(key in results for key in keys.values()):
        return float("nan")
    measured = {size: results[key]["growth_mb"] for size, key in keys.items()}

    def forecast(size: int) -> float:
        return estimate_memory(config, size, results[BASE]["anonymous_mb"], variant).growth_mb

    return extrapolate_memory(config.batch_windows, measured, forecast)


# ---------------------------------------------------------------- reports


def report(names: Sequence[str], results: dict[str, Any], prefix: str = "") -> None:
    """Print each configuration, then the summary."""
    found = compare(names, results, prefix)
    print_configurations(found)
    print()
    print_summary(found)


def print_configurations(found: Comparison) -> None:
    """A line for each configuration: measured MB, and errors in percent; a dash stands for what was not measured."""
    print(f"{'':28}{'tensor peak':>20}{'process peak':>20}{'growth':>20}{'probe':>9}{'upper':>8}")
    patterns = {"tensor_peak_mb": ".1f", "process_peak_mb": ".0f", "growth_mb": ".0f"}
    for n, name in enumerate(found.names):
        truth, cells = found.truths[n], []
        for quantity, pattern in patterns.items():
            cells.append(format_cell(truth.get(quantity, np.nan), pattern, " MB", 11))
            cells.append(format_cell(found.errors[quantity][n], "+.1f", " %", 9))
        cells.append(format_cell(found.probe_process[n], "+.1f", " %", 9))
        cells.append(format_cell(found.upper[n], ".2f", "", 8))
        print(f"{name:28}{''.join(cells)}")


def format_cell(value: float, pattern: str, unit: str, width: int) -> str:
    """The value with its unit, or a dash for NaN, set to the right."""
    text = "-" if np.isnan(value) else f"{value:{pattern}}{unit}"
    return f"{text:>{width}}"


def print_summary(found: Comparison) -> None:
    """Mean and worst errors of the closed form, the probe and the peers."""
    for quantity, title in QUANTITIES.items():
        print_errors(f"closed form, {title}", found.errors[quantity])
    if found.has_probe:
        high = np.nanpercentile(abs(found.probe_process), 95)
        print_errors("probe, process peak", found.probe_process, f"95th percentile {high:.1f} %")
        print_errors("probe, growth", found.probe_growth)
    upper = found.upper[~np.isnan(found.upper)]
    if not len(upper):
        return
    print(f"{'measurements above upper_mb':50} {int((upper < 1).sum()):6d} of {len(upper)}")
    print(
        f"{'upper_mb over the measurement, median':50} {np.median(upper):6.2f}     "
        f"{upper.min():.2f} to {upper.max():.2f}"
    )
    truths = [truth["tensor_peak_mb"] for truth in found.truths]
    for peer, formula in PEERS.items():
        guesses = [formula(config, variant) for config, variant in found.cases]
        print_errors(f"{peer}, tensor peak", relative_errors(guesses, truths))
    seconds = min(timeit.repeat(lambda: estimate_memory(Config()), number=200, repeat=5)) / 200
    print(f"{'closed form, time of one':50} {1e3 * seconds:6.2f} ms")


def print_errors(title: str, errors: np.ndarray, other: str = "") -> None:
    """A line with the mean absolute error, and the worst or another figure."""
    known = abs(errors[~np.isnan(errors)])
    if not len(known):
        return
    worst = other or f"worst {known.max():.1f} %"
    print(f"{title + ', mean abs. error':50} {known.mean():6.1f} %   {worst}; of {len(known)}")


def report_noise(results: dict[str, Any], prefix: str = "") -> None:
    """Print the differences between repeats of one measurement. No forecast can be closer than that."""
    print(
        f"\nnoise: {len(GRID['noise'])} configurations, {REPEATS} repeats; "
        "span: (max - min) / mean, deviation: standard deviation / mean"
    )
    for quantity in QUANTITIES:
        spans, deviations = [], []
        for name in GRID["noise"]:
            keys = [name, *(f"{name}/repeat/{number}" for number in range(1, REPEATS))]
            values = [results[prefix + key].get(quantity, np.nan) for key in keys]
            if np.isnan(values).any():
                continue
            mean = statistics.mean(values)
            spans.append(100 * (max(values) - min(values)) / mean)
            deviations.append(100 * statistics.stdev(values) / mean)
        if not spans:
            continue
        span = f"span: mean {statistics.mean(spans):.1f} %, worst {max(spans):.1f} %"
        print(f"  {quantity:16} {span};  deviation: mean {statistics.mean(deviations):.1f} %")


# ---------------------------------------------------------------- fit of the constants

FITTED = {"LOW_MEMORY_COPIES": (0, 3), "LOW_MEMORY_BASE_MB": (0, 6)}
FITTED_PROCESS = {"LOW_MEMORY_ALLOCATOR": (1, 1.5), "LOW_MEMORY_MB": (0, 100)}


def fit(results: dict[str, Any]) -> None:
    """Least squares of relative errors over the constants, tensors first; prints them beside those in use."""
    names = [entry["name"] for entry in GRID["fit"]]
    truths = {name: results[name] for name in names}
    print("constants fitted on 15 configurations:")
    fit_constants(FITTED, "tensor_peak_mb", truths)
    fit_constants(FITTED_PROCESS, "growth_mb", truths)
    base_mb = statistics.median(truth["base_mb"] for truth in truths.values())
    print(f"  {'base, median':20} {base_mb:8.1f}   of a process of its own {results[BASE]['anonymous_mb']:.1f}\n")
    report(names, results)


def fit_constants(bounds: dict[str, tuple[float, float]], quantity: str, truths: dict[str, dict[str, float]]) -> None:
    """Fit the constants on one quantity, with robust least squares, and print them. The module keeps its values."""
    from scipy.optimize import least_squares

    used = {name: getattr(memory, name) for name in bounds}

    def set_constants(values: Sequence[float]) -> None:
        for name, value in zip(bounds, values, strict=True):
            setattr(memory, name, float(value))

    def residuals(values: np.ndarray) -> np.ndarray:
        set_constants(values)
        return np.array([getattr(forecast(name), quantity) / truth[quantity] - 1 for name, truth in truths.items()])

    low, high = zip(*bounds.values(), strict=True)
    options = {"loss": "soft_l1", "f_scale": 0.05, "diff_step": 0.02}
    try:
        found = least_squares(residuals, list(used.values()), bounds=(low, high), **options)
    finally:
        set_constants(list(used.values()))
    for name, value in zip(bounds, found.x, strict=True):
        print(f"  {name:20} {value:8.3f}   in use {used[name]}")


def forecast(name: str) -> MemoryEstimate:
    """The forecast for a configuration of the grid, without a base: the fit needs the growth and the tensors."""
    config, variant = parse_entry(ENTRIES[name])
    return estimate_memory(config, base_mb=0.0, variant=variant)


# ---------------------------------------------------------------- command


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", nargs="?", type=int, const=4, metavar="N", help="N configurations, by default four; writes nothing"
    )
    parser.add_argument("--report", action="store_true", help="report the stored results, measure nothing")
    parser.add_argument("--fit", action="store_true", help="fit the constants; with --report on stored results")
    parser.add_argument("--stock", action="store_true", help="measure Keras' own layers too")
    parser.add_argument("--workers", type=int, default=1, help="measurements at the same time")
    parser.add_argument("--resume", action="store_true", help="keep the results in memory.json, measure the rest")
    arguments = parser.parse_args(words)
    known = json.loads(MEMORY_RESULTS.read_text(encoding="utf-8")) if MEMORY_RESULTS.exists() else {}
    if not (arguments.report or arguments.resume or arguments.fit):
        known = {key: reading for key, reading in known.items() if key.startswith(KERAS_LAYERS)}
    if not arguments.report:
        base = find_base_memory()
        known[BASE] = {"anonymous_mb": base.anonymous_mb, "file_mb": base.file_mb}
    if arguments.quick:
        measure(["quick"], known, None, arguments.workers, arguments.quick)
        report(GRID["quick"][: arguments.quick], known)
    elif arguments.fit:
        run_unless(arguments.report, ["fit"], known, arguments.workers)
        fit(known)
    else:
        parts = ["grid", "probe", "noise", "stock"] if arguments.stock else ["grid", "probe", "noise"]
        run_unless(arguments.report, parts, known, arguments.workers)
        report_all(known)


def run_unless(
    report_only: bool, parts: Sequence[str], known: dict[str, Any], workers: int, path: Path = MEMORY_RESULTS
) -> None:
    """Measure the parts and store them, unless a report of stored results was asked for."""
    if not report_only:
        measure(parts, known, path, workers)


def report_all(known: dict[str, Any]) -> None:
    """Report our layers, then Keras' own."""
    grid = [entry["name"] for entry in GRID["grid"]]
    report(grid, known)
    if all(f"{name}/repeat/{REPEATS - 1}" in known for name in GRID["noise"]):
        report_noise(known)
    print("\nthe same in Keras' own layers:")
    report(grid, known, KERAS_LAYERS)
    report_noise(known, KERAS_LAYERS)
