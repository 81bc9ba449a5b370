"""The closed form against traced steps, exact; and against forty measured trainings, as they were recorded."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import keras
import numpy as np
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.memory import Variant, estimate_memory, low_memory_activation_bytes, lstm_activation_bytes
from crypto_lstm.layers import to_keras_model
from support.traced_graph import trace_memory, traced_loops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GRID = json.loads((BENCHMARKS / "memory_grid.json").read_text(encoding="utf-8"))
RESULTS = json.loads((BENCHMARKS / "memory_results.json").read_text(encoding="utf-8"))
PAIRS = [(0.3, 0.3), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0)]


KINDS = ["stock", "per_sample", "per_batch"]
SHAPES = [((6,), 7, 5), ((9, 4), 40, 3), ((5, 5, 3), 1, 2)]


def network(kind: str, config: Config) -> tuple[keras.Model, Variant]:
    """The network in layers of this kind, Keras' own or the package's, and what the forecast has to know of it."""
    model = build_model(config)
    return (to_keras_model(model), Variant(stock=True)) if kind == "stock" else (model, Variant())


def dropped(kind: str, rates: tuple[float, float], **settings) -> Config:
    """A configuration with these rates; the recurrent one of this kind."""
    recurrent = "per_batch" if kind == "per_batch" else "per_sample"
    return Config(dropout_rate=rates[0], recurrent_dropout_rate=rates[1], recurrent_dropout=recurrent, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rates", PAIRS)
@pytest.mark.parametrize(("units", "timesteps", "batch"), SHAPES)
def test_the_formula_is_what_the_traced_loops_keep_to_the_byte(rates, units, timesteps, batch, kind):
    config = dropped(kind, rates, sequence_length=timesteps, lstm_units=units, dense_units=(4,), batch_size=batch)
    widths = (len(config.features), *units)
    loops = traced_loops(network(kind, config)[0], batch)
    assert [loop.lean for loop in loops] == [kind != "stock"] * len(units)
    for number, (loop, inputs, width) in enumerate(zip(loops, widths, units, strict=False)):
        if kind != "stock":
            masks = 4 if kind == "per_sample" and rates[1] > 0 else 1
            assert loop.kept_bytes == low_memory_activation_bytes(batch, timesteps, inputs, width, masks=masks)
            continue
        formula = lstm_activation_bytes(
            batch, timesteps, inputs, width, dropout=rates[0] > 0, recurrent_dropout=rates[1] > 0, first=number == 0
        )
        unmasked = loop.input_list_bytes if rates[0] > 0 and number > 0 else 0  # kept beside the masked copies
        assert loop.kept_bytes == formula + unmasked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rates", PAIRS)
def test_a_traced_step_gives_the_estimate_of_the_closed_form(rates, kind):
    config = dropped(kind, rates, batch_size=32)
    model, variant = network(kind, config)
    traced, formula = trace_memory(model, 32), estimate_memory(config, variant=variant)
    assert traced.tensor_peak_mb == pytest.approx(formula.tensor_peak_mb, rel=1e-9)
    assert (traced.process_peak_mb, traced.upper_mb) == pytest.approx((formula.process_peak_mb, formula.upper_mb), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("units", "timesteps", "batch"), SHAPES)
def test_layer_by_layer_the_trace_of_the_packages_loops_is_the_closed_form(units, timesteps, batch, kind):
    for rates in PAIRS:
        config = dropped(kind, rates, sequence_length=timesteps, lstm_units=units, dense_units=(4,), batch_size=batch)
        traced, formula = trace_memory(build_model(config), batch), estimate_memory(config)
        assert traced.tensor_peak_mb == pytest.approx(formula.tensor_peak_mb, rel=1e-9)
        for read, known in zip(traced.activations, formula.activations, strict=False):
            assert read[1:] == pytest.approx(known[1:], rel=1e-9)


def test_rows_dropped_per_batch_cost_keras_loops_nothing():
    for rate in (0.0, 0.3):
        config = dropped("per_batch", (0.3, rate), batch_size=8, sequence_length=12)
        model = build_model(config)
        with pytest.MonkeyPatch.context() as patch:  # as where another backend, or a GPU, has loops of its own
            patch.setattr("crypto_lstm.layers.obstacle", lambda *_: "by the word of the test")
            loops = traced_loops(model, 8)
            traced, formula = trace_memory(model, 8), estimate_memory(config, variant=Variant(stock=True))
        assert not any(loop.lean or loop.masked_states for loop in loops)
        assert traced.upper_mb == pytest.approx(formula.upper_mb, rel=1e-9)


def test_half_precision_keeps_the_weights_that_it_casts():
    before = keras.config.dtype_policy().name
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for rate, kind in ((0.0, "stock"), (0.3, "stock"), (0.3, "per_batch")):
            config = dropped(kind, (0.0, rate), sequence_length=7, lstm_units=(6, 4), dense_units=(), batch_size=5)
            for number, (loop, inputs, width) in enumerate(zip(traced_loops(build_model(config), 5), (8, 6), (6, 4), strict=True)):
                masked, thinned = rate > 0 and kind == "stock", kind == "per_batch"
                formula = lstm_activation_bytes(
                    5, 7, inputs, width, dropout=False, recurrent_dropout=masked, first=number == 0, item_bytes=2, thinned=thinned
                )
                assert not loop.lean
                assert loop.kept_bytes == formula
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("kind", ["lean", "stock"])
def test_no_recorded_training_passed_its_upper_bound_and_the_mean_errors_are_those_that_are_claimed(kind):
    assert len(GRID["grid"]) == 40 and len({json.dumps(e["config"]) + json.dumps(e["variant"]) for e in GRID["grid"] + GRID["fit"]}) == 55
    prefix = "stock/" if kind == "stock" else ""
    truths = [RESULTS[prefix + entry["name"]] for entry in GRID["grid"]]
    cases = [(Config.from_dict(entry["config"]), Variant(**entry["variant"], stock=kind == "stock")) for entry in GRID["grid"]]
    forecasts = [estimate_memory(config, variant=variant) for config, variant in cases]
    assert all(f.upper_mb > t["process_peak_mb"] for f, t in zip(forecasts, truths, strict=True))
    for quantity, bound in (("tensor_peak_mb", 0.05), ("process_peak_mb", 0.04)):
        errors = [abs(getattr(f, quantity) / t[quantity] - 1) for f, t in zip(forecasts, truths, strict=True)]
        assert statistics.mean(errors) < bound
    assert statistics.median(f.upper_mb / t["process_peak_mb"] for f, t in zip(forecasts, truths, strict=True)) < 1.10


def test_a_forecast_grows_with_batch_and_window_and_never_falls():
    sizes = [1, 2, 3, 7, 16, 31, 32, 33, 64, 257, 1024, 9999]
    for rates, kind in itertools.product(PAIRS, KINDS):
        config, variant = dropped(kind, rates), Variant(stock=kind == "stock")
        batches = [estimate_memory(config, n, variant=variant) for n in sizes]
        for forecasts in (batches, [estimate_memory(config.replace(sequence_length=n), variant=variant) for n in sizes]):
            assert np.all(np.diff([f.upper_mb for f in forecasts]) > 0)
