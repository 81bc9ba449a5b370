"""A training that starts from an earlier run: the rule of its dates, a resume, and runs that can't be started from."""

from __future__ import annotations

import signal
from datetime import timedelta

import keras
import numpy as np
import pytest

from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.saving.model_schema import ModelFileError
from crypto_lstm.training import starting_point
from crypto_lstm.training.saved_run import LoadedRun, load_run
from crypto_lstm.training.starting_point import (
    StartingPoint,
    StartingPointError,
    read_starting_point,
    require_later_parts,
)
from crypto_lstm.training.trainer import train

pytestmark = pytest.mark.usefixtures("bare_trainings")

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, lstm_units=(4,), dense_units=(), epochs=1, batch_size=64,
    long_tp_pct=2, long_sl_pct=2, short_tp_pct=2, short_sl_pct=2,
)  # fmt: skip
CANDLES = synthetic_candles(3_400, seed=3, timeframe="1h")
PURGE = CONFIG.future_window + CONFIG.sequence_length - 1


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def options(place):
    return {"tensorboard": False, "ledger": place / "ledger.jsonl", "deterministic": True}


@pytest.fixture(scope="module")
def first(place, options):
    return train(CANDLES[:2_800], CONFIG, place / "first", **options)


def make_start(first, **changes) -> StartingPoint:
    dates = [first.data.dates[first.data.parts[name].rows[-1]].to_pydatetime() for name in ("train", "validation")]
    facts = {"trained_until": dates[0], "validated_until": dates[1], "purge_candles": PURGE, **changes}
    return StartingPoint(weights=first.model.get_weights(), scaler=first.data.scaler, bundle_sha256="0" * 64, **facts)


def test_the_point_holds_weights_scaler_and_dates_of_the_run(first, place):
    start = read_starting_point(place / "first", CONFIG)
    expected = make_start(first)
    for name in ("scaler", "trained_until", "validated_until", "purge_candles"):
        assert getattr(start, name) == getattr(expected, name)
    assert all(np.array_equal(a, b) for a, b in zip(start.weights, expected.weights, strict=True))


@pytest.mark.parametrize("part", ["trained_until", "validated_until"])
def test_the_rule_allows_a_part_from_the_first_candle_after_the_purge_gap_on(first, part):
    data = prepare(CANDLES[:3_000], CONFIG, first.data.scaler)
    name = "validation" if part == "trained_until" else "test"
    row = int(data.parts[name].rows[0])
    latest = data.dates[row - PURGE - 1].to_pydatetime()  # so many candles lie between both
    early = data.dates[0].to_pydatetime()
    limits = {"trained_until": early, "validated_until": early, part: latest}
    require_later_parts(make_start(first, **limits), data)
    limits[part] += timedelta(hours=1)
    with pytest.raises(StartingPointError, match=f"the {name} part begins at .* would look ahead"):
        require_later_parts(make_start(first, **limits), data)


def test_the_limits_of_a_chain_of_runs_are_the_latest_dates_of_all(first, place, monkeypatch):
    start = read_starting_point(place / "first", CONFIG)
    loaded = load_run(place / "first")
    later = start.validated_until + timedelta(days=300)
    facts = {**start.as_dict(), "trained_until": "2001-01-01T00:00:00+00:00", "validated_until": later.isoformat()}
    metadata = {**loaded.metadata, "identity": {"start_from": {**facts, "purge_candles": 1}}}
    monkeypatch.setattr(starting_point, "load_run", lambda run: LoadedRun(loaded.bundle, metadata))
    chained = read_starting_point(place / "first", CONFIG)
    limits = (chained.trained_until, chained.validated_until, chained.purge_candles)
    assert limits == (start.trained_until, later, PURGE)


class PressStop(keras.callbacks.Callback):
    """Press Ctrl-C after the fourth step."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_resumes_from_its_state_and_equals_one_in_one_go(first, place, options):
    two = CONFIG.replace(epochs=2)
    arguments = {"start_from": place / "first", **options}
    stopped = train(CANDLES[:2_800], two, place / "stopped", callbacks=[PressStop()], **arguments)
    assert stopped.interrupted == "SIGINT"
    resumed = train(CANDLES[:2_800], two, place / "stopped", **arguments)
    whole = train(CANDLES[:2_800], two, place / "whole", **arguments)
    assert resumed.history == whole.history
    pairs = zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["timeframe", "sequence_length", "features", "lstm_units", "dense_units", "scaler"])
def test_another_network_or_scaler_is_refused_by_the_name_of_the_setting(first, place, name):
    values = {
        "timeframe": "2h", "sequence_length": 13, "features": CONFIG.features[:-1], "lstm_units": (5,),
        "dense_units": (3,), "scaler": "standard",
    }  # fmt: skip
    with pytest.raises(StartingPointError, match=f"{name} is .* there"):
        read_starting_point(place / "first", CONFIG.replace(**{name: values[name]}))


@pytest.mark.parametrize("spans", [None, [], {}, {"train": None}, {"train": ["a", 3], "validation": ["a", "b"]}])
def test_metadata_without_the_dates_is_refused(spans, tmp_path):
    for windows in ({"spans": spans}, spans):
        with pytest.raises(ModelFileError, match="in its metadata"):
            starting_point._read_end({"windows": windows}, "train", tmp_path)


def test_a_folder_that_holds_no_run_is_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(ModelFileError, match="no finished run"):
        train(CANDLES[:2_800], CONFIG, tmp_path / "new", start_from=tmp_path / "nothing", **options)
    assert not (tmp_path / "new").exists()
