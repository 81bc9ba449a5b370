"""The closed form of memory: against traced steps, exactly; and against forty recorded measurements of trainings."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.traced_graph import LoopTrace, trace_loops, trace_memory

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.layers import to_keras_model
from crypto_lstm.memory import (
    MemoryEstimate,
    Variant,
    estimate_memory,
    keras_activation_bytes,
    low_memory_activation_bytes,
)


def read_benchmark(name: str) -> Any:
    """The content of a JSON file of the benchmarks."""
    return json.loads((Path(__file__).parents[1] / "benchmarks" / name).read_text(encoding="utf-8"))


GRID = read_benchmark("memory/grid.json")
RESULTS = read_benchmark("results/memory.json")
MEASURED_PROCESSES = {"": 40, "stock/": 0}  # trainings whose anonymous memory was measured; tensor peaks are all known
RATES = [(0.3, 0.3), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0)]  # dropout, recurrent dropout
KINDS = ["keras", "per_sample", "per_batch"]  # layers of Keras, and the two kinds of recurrent dropout of this package
SHAPES = [((6,), 7, 5), ((5, 5, 3), 1, 2)]  # units, timesteps, batch size
LONG = ((9, 4), 40, 3)  # more timesteps than a loop of Keras runs ahead
CASES = [*((rates, LONG) for rates in RATES), *((RATES[number], shape) for number in (0, 3) for shape in SHAPES)]
CASES = [  # without recurrent dropout its two kinds are one
    (*case, kind) for case in CASES for kind in KINDS if kind != "per_batch" or case[0][1]
]


def build_network(kind: str, config: Config) -> tuple[keras.Model, Variant]:
    """The network in layers of this kind, and its variant."""
    model = build_model(config)
    if kind == "keras":
        return to_keras_model(model), Variant(keras_layers=True)
    return model, Variant()


def make_config(kind: str, rates: tuple[float, float], **settings: Any) -> Config:
    """A configuration with these rates; the recurrent dropout is of this kind."""
    recurrent = "per_batch" if kind == "per_batch" else "per_sample"
    return Config(
        dropout_rate=rates[0], recurrent_dropout_rate=rates[1], recurrent_dropout=recurrent, **settings
    )


@functools.cache
def trace_small_network(
    kind: str, rates: tuple[float, float], units: tuple[int, ...], timesteps: int, batch: int
) -> tuple[Config, tuple[LoopTrace, ...], MemoryEstimate]:
    """A configuration, and the loops and the memory of its network, from one trace of a step."""
    sizes = {"sequence_length": timesteps, "lstm_units": units, "batch_size": batch}
    config = make_config(kind, rates, dense_units=(4,), **sizes)
    model, _ = build_network(kind, config)
    loops = trace_loops(model, batch)
    return config, loops, trace_memory(model, batch, loops=loops)


@pytest.mark.parametrize(("rates", "shape", "kind"), CASES)
def test_the_formula_equals_the_kept_bytes_of_the_traced_loops(rates, shape, kind):
    units, timesteps, batch = shape
    config, loops, _ = trace_small_network(kind, rates, units, timesteps, batch)
    inputs = (len(config.features), *units[:-1])
    assert [loop.low_memory for loop in loops] == [kind != "keras"] * len(units)
    has_dropout, has_recurrent_dropout = (rate > 0 for rate in rates)
    for number, (loop, read, width) in enumerate(zip(loops, inputs, units, strict=True)):
        if kind != "keras":
            masks = 4 if kind == "per_sample" and has_recurrent_dropout else 1
            assert loop.kept_bytes == low_memory_activation_bytes(batch, timesteps, read, width, masks=masks)
            continue
        formula = keras_activation_bytes(
            batch,
            timesteps,
            read,
            width,
            dropout=has_dropout,
            recurrent_dropout=has_recurrent_dropout,
            first=number == 0,
        )
        unmasked = loop.input_list_bytes if has_dropout and number > 0 else 0  # kept beside the masked copies
        assert loop.kept_bytes == formula + unmasked


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_step_of_the_default_network_gives_the_estimate_of_the_closed_form(kind):
    config = make_config(kind, RATES[0], batch_size=32)  # all rates: with small networks, below
    model, variant = build_network(kind, config)
    traced, formula = trace_memory(model, 32), estimate_memory(config, variant=variant)
    assert traced.tensor_peak_mb == pytest.approx(formula.tensor_peak_mb, rel=1e-9)
    assert traced.process_peak_mb == pytest.approx(formula.process_peak_mb, rel=1e-9)
    assert traced.upper_mb == pytest.approx(formula.upper_mb, rel=1e-9)


@pytest.mark.parametrize(("rates", "shape", "kind"), CASES)
def test_layer_by_layer_the_trace_equals_the_closed_form(rates, shape, kind):
    config, _, traced = trace_small_network(kind, rates, *shape)
    formula = estimate_memory(config, variant=Variant(keras_layers=kind == "keras"))
    assert traced.tensor_peak_mb == pytest.approx(formula.tensor_peak_mb, rel=1e-9)
    assert traced.upper_mb == pytest.approx(formula.upper_mb, rel=1e-9)
    for read, known in zip(traced.activations, formula.activations, strict=False):
        if kind == "keras":  # an unmasked input list is kept by the one and beside the other
            assert read.kept_mb + read.beside_mb == pytest.approx(known.kept_mb + known.beside_mb, rel=1e-9)
        else:
            assert read[1:] == pytest.approx(known[1:], rel=1e-9)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_kernel_rows_dropped_per_batch_cost_keras_loops_nothing(rate):
    config = make_config("per_batch", (0.3, rate), batch_size=8, sequence_length=12)
    model = build_model(config)
    with pytest.MonkeyPatch.context() as patch:  # as with another backend or a GPU, where Keras' loops run
        patch.setattr("crypto_lstm.layers.find_fallback_reason", lambda *_: "set by the test")
        loops = trace_loops(model, 8)
        traced = trace_memory(model, 8)
    formula = estimate_memory(config, variant=Variant(keras_layers=True))
    assert not any(loop.low_memory or loop.masked_states for loop in loops)
    assert traced.upper_mb == pytest.approx(formula.upper_mb, rel=1e-9)


@pytest.mark.parametrize(("rate", "kind"), [(0.0, "keras"), (0.3, "keras"), (0.3, "per_batch")])
def test_mixed_precision_keeps_the_weights_that_it_casts(rate, kind):
    before = keras.config.dtype_policy().name
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        config = make_config(kind, (0.0, rate), sequence_length=7, lstm_units=(6, 4), dense_units=(), batch_size=5)
        loops = trace_loops(build_model(config), 5)
    finally:
        keras.config.set_dtype_policy(before)
    for number, (loop, inputs, width) in enumerate(zip(loops, (8, 6), (6, 4), strict=True)):
        formula = keras_activation_bytes(
            5,
            7,
            inputs,
            width,
            dropout=False,
            recurrent_dropout=rate > 0 and kind == "keras",
            first=number == 0,
            item_bytes=2,
            kernel_rows_dropped=kind == "per_batch",
        )
        assert not loop.low_memory
        assert loop.kept_bytes == formula


def test_the_measured_configurations_are_forty_and_differ_from_those_of_the_fit():
    assert len(GRID["grid"]) == 40
    entries = GRID["grid"] + GRID["fit"]
    assert len({json.dumps([entry["config"], entry["variant"]]) for entry in entries}) == 55


@pytest.mark.parametrize("keras_layers", [False, True])
def test_no_measured_training_exceeds_its_upper_bound_and_mean_errors_are_small(keras_layers):
    # the base is that of a process of its own on the machine that measured the trainings
    base_mb, prefix = RESULTS["base"]["anonymous_mb"], "stock/" if keras_layers else ""  # stock/: Keras' own layers
    pairs = []
    for entry in GRID["grid"]:
        variant = Variant(**entry["variant"], keras_layers=keras_layers)
        forecast = estimate_memory(Config.from_dict(entry["config"]), base_mb=base_mb, variant=variant)
        pairs.append((forecast, RESULTS[prefix + entry["name"]]))
    in_process = [(forecast, reading) for forecast, reading in pairs if "base_mb" in reading]
    assert len(in_process) == MEASURED_PROCESSES[prefix]
    assert all(forecast.upper_mb > reading["process_peak_mb"] for forecast, reading in in_process)
    for quantity, bound, known in (("tensor_peak_mb", 0.05, pairs), ("process_peak_mb", 0.04, in_process)):
        errors = [abs(getattr(forecast, quantity) / reading[quantity] - 1) for forecast, reading in known]
        assert not errors or statistics.mean(errors) < bound
    file_mb = RESULTS["base"]["file_mb"]  # with file pages, which the system counts as memory of the process
    ratios = []
    for forecast, reading in in_process:
        ratios.append((forecast.upper_mb + file_mb) / (reading["process_peak_mb"] + file_mb))
    assert not ratios or statistics.median(ratios) < 1.10


def test_a_forecast_grows_with_batch_and_window():
    sizes = [1, 2, 3, 7, 16, 31, 32, 33, 64, 257, 1024, 9999]
    for rates, kind in itertools.product(RATES, KINDS):
        config, variant = make_config(kind, rates), Variant(keras_layers=kind == "keras")
        by_batch = [estimate_memory(config, size, variant=variant).upper_mb for size in sizes]
        by_window = [
            estimate_memory(config.replace(sequence_length=size), variant=variant).upper_mb for size in sizes
        ]
        assert np.all(np.diff(by_batch) > 0) and np.all(np.diff(by_window) > 0)
