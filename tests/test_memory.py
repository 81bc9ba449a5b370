"""The closed form against traced steps, exact; and against forty measured trainings, as they were recorded."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import keras
import numpy as np
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.memory import Variant, estimate_memory, lstm_activation_bytes
from crypto_lstm.trace import trace_memory, traced_loops

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
GRID = json.loads((BENCHMARKS / "memory_grid.json").read_text(encoding="utf-8"))
RESULTS = json.loads((BENCHMARKS / "memory_results.json").read_text(encoding="utf-8"))
PAIRS = [(0.3, 0.3), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0)]


@pytest.mark.parametrize("rates", PAIRS)
@pytest.mark.parametrize(("units", "timesteps", "batch"), [((6,), 7, 5), ((9, 4), 40, 3), ((5, 5, 3), 1, 2)])
def test_the_formula_is_what_the_traced_loops_keep_to_the_byte(rates, units, timesteps, batch):
    config = Config(
        sequence_length=timesteps,
        lstm_units=units,
        dense_units=(4,),
        dropout_rate=rates[0],
        recurrent_dropout_rate=rates[1],
        batch_size=batch,
    )
    widths = (len(config.features), *units)
    for number, (loop, inputs, width) in enumerate(zip(traced_loops(build_model(config), batch), widths, units, strict=False)):
        formula = lstm_activation_bytes(
            batch, timesteps, inputs, width, dropout=rates[0] > 0, recurrent_dropout=rates[1] > 0, first=number == 0
        )
        unmasked = loop.input_list_bytes if rates[0] > 0 and number > 0 else 0  # kept beside the masked copies
        assert loop.kept_bytes == formula + unmasked


@pytest.mark.parametrize("rates", PAIRS)
def test_a_traced_step_gives_the_estimate_of_the_closed_form(rates):
    config = Config(dropout_rate=rates[0], recurrent_dropout_rate=rates[1], batch_size=32)
    traced, formula = trace_memory(build_model(config), 32), estimate_memory(config)
    assert traced.tensor_peak_mb == pytest.approx(formula.tensor_peak_mb, rel=1e-9)
    assert (traced.process_peak_mb, traced.upper_mb) == pytest.approx((formula.process_peak_mb, formula.upper_mb), rel=1e-9)


def test_half_precision_keeps_the_weights_that_it_casts():
    before = keras.config.dtype_policy().name
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for rate in (0.0, 0.3):
            config = Config(
                sequence_length=7, lstm_units=(6, 4), dense_units=(), dropout_rate=0.0, recurrent_dropout_rate=rate, batch_size=5
            )
            for number, (loop, inputs, width) in enumerate(zip(traced_loops(build_model(config), 5), (8, 6), (6, 4), strict=True)):
                formula = lstm_activation_bytes(
                    5, 7, inputs, width, dropout=False, recurrent_dropout=rate > 0, first=number == 0, item_bytes=2
                )
                assert loop.kept_bytes == formula
    finally:
        keras.config.set_dtype_policy(before)


def forecast(entry):
    return estimate_memory(Config.from_dict(entry["config"]), variant=Variant(**entry["variant"]))


def test_no_recorded_training_passed_its_upper_bound_and_the_mean_errors_are_those_that_are_claimed():
    assert len(GRID["grid"]) == 40 and len({json.dumps(e["config"]) + json.dumps(e["variant"]) for e in GRID["grid"] + GRID["fit"]}) == 55
    truths = [RESULTS[entry["name"]] for entry in GRID["grid"]]
    forecasts = [forecast(entry) for entry in GRID["grid"]]
    assert all(f.upper_mb > t["process_peak_mb"] for f, t in zip(forecasts, truths, strict=True))
    for quantity, bound in (("tensor_peak_mb", 0.05), ("process_peak_mb", 0.04)):
        errors = [abs(getattr(f, quantity) / t[quantity] - 1) for f, t in zip(forecasts, truths, strict=True)]
        assert statistics.mean(errors) < bound
    assert statistics.median(f.upper_mb / t["process_peak_mb"] for f, t in zip(forecasts, truths, strict=True)) < 1.10


def test_a_forecast_grows_with_batch_and_window_and_never_falls():
    for rates in PAIRS:
        sizes = [1, 2, 3, 7, 16, 31, 32, 33, 64, 257, 1024, 9999]
        config = Config(dropout_rate=rates[0], recurrent_dropout_rate=rates[1])
        for forecasts in ([estimate_memory(config, n) for n in sizes], [estimate_memory(config.replace(sequence_length=n)) for n in sizes]):
            assert np.all(np.diff([f.upper_mb for f in forecasts]) > 0)
