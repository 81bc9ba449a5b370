"""Predictor: equality with Keras and with bundles, files that must be refused, and input that must give NO_TRADE."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.quick import skip_boosting, skip_pictures

from crypto_lstm.architecture import build_model
from crypto_lstm.commands.main import main
from crypto_lstm.config import CLASSES, FEATURES, Config, ConfigError
from crypto_lstm.data.candles import read_candles
from crypto_lstm.data.feature_stream import StreamError
from crypto_lstm.data.scaler import Scaler
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import WindowDataset, prediction_windows, prepare
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.inference.decision import NO_TRADE, Decision, InvalidPredictionError
from crypto_lstm.inference.onnx_file import (
    OnnxFileError,
    convert_keras_weights,
    decode_onnx_file,
    encode_onnx_file,
    export_onnx,
    list_onnx_shapes,
    open_session,
)
from crypto_lstm.inference.predictor import Predictor, StateMismatchError, load_run_predictor
from crypto_lstm.storage.manifest import IntegrityError, PinMismatchError, SchemaVersionError
from crypto_lstm.storage.verified import atomic_file, manifest_path
from crypto_lstm.training.saved_run import predict_candles
from crypto_lstm.utils.errors import CryptoLSTMError

DATA = Path(__file__).parents[3] / "shared" / "data" / "BTCUSD-1m-20180101-20190630-bitfinex.feather"
CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, lstm_units=(8, 4), dense_units=(4,), batch_size=64
)
CANDLES = synthetic_candles(1600, seed=3, timeframe="1h")
HOUR = pd.Timedelta(hours=1)
CLOSE = CANDLES["date"].iloc[-1] + HOUR
EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)
SEED = 20260101
SHARES = ["short", "hold", "long"]


def random_network(config: Config, seed: int = 0, size: float = 0.6) -> keras.Model:
    """A network with random weights and biases, large enough that all classes are predicted."""
    model, rng = build_model(config, compile_model=False), np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.normal(0, size, variable.shape))
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that was trained for two epochs, saved as a bundle, and exported from the bundle."""
    data = prepare(CANDLES, CONFIG)
    model = build_model(CONFIG)
    model.fit(data.train, epochs=2, verbose=0)
    place = tmp_path_factory.mktemp("trained")
    save_bundle(SimpleNamespace(config=CONFIG, model=model, data=data), place / "bundle", expires=EXPIRES)
    bundle = load_bundle(place / "bundle")
    sha256 = export_onnx(bundle, place / "model.onnx")
    return SimpleNamespace(bundle=bundle, path=place / "model.onnx", sha256=sha256, model=model, scaler=data.scaler)


@pytest.fixture
def predictor(trained):
    return Predictor.load(trained.path)


# ---------------------------------------------------------------- equality with Keras


@settings(max_examples=12, deadline=None)
@given(
    lstm_units=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    dense_units=st.lists(st.integers(1, 9), max_size=3),
    sequence_length=st.integers(1, 30),
    features=st.integers(1, len(FEATURES)),
    windows=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_any_network_answers_as_keras_does(
    lstm_units, dense_units, sequence_length, features, windows, seed, tmp_path_factory
):
    config = Config(
        lstm_units=lstm_units,
        dense_units=dense_units,
        sequence_length=sequence_length,
        features=FEATURES[:features],
        dropout_rate=0.3,
    )
    model, place = random_network(config, seed, 0.4), tmp_path_factory.mktemp("plan") / "model.onnx"
    export_onnx(model, place, config=config)
    given_windows = np.random.default_rng(seed).standard_normal((windows, sequence_length, features))
    came = Predictor.load(place).probabilities(given_windows)
    expected = np.asarray(model(given_windows.astype(np.float32), training=False))
    np.testing.assert_allclose(came, expected, atol=1e-5)
    assert (came.argmax(axis=1) == expected.argmax(axis=1)).all() or np.diff(np.sort(expected, axis=1))[
        :, 1
    ].min() < 1e-6


def test_layers_of_keras_itself_give_the_same_answers():
    """Layers that this package did not build: the order of gates, the biases and the last timestep are right."""
    rng = np.random.default_rng(1)
    reference = keras.Sequential(
        [keras.Input((120, 8)), *(keras.layers.LSTM(units, return_sequences=units > 32) for units in (128, 64, 32))]
        + [keras.layers.Dense(32, "relu"), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    )
    for variable in reference.weights:
        variable.assign(rng.normal(0, 0.15, variable.shape))
    arrays = convert_keras_weights(Config(), [weight.numpy() for weight in reference.weights])
    windows = rng.standard_normal((40, 120, 8)).astype(np.float32)
    came = open_session(encode_onnx_file(Config(), arrays)).run(None, {"windows": windows})[0]
    np.testing.assert_allclose(came, reference.predict(windows, verbose=0), atol=1e-5)


def test_the_configuration_is_inferred_from_a_keras_model(tmp_path):
    config = Config(sequence_length=9, lstm_units=(5, 3), dense_units=(4, 2))
    export_onnx(random_network(config), tmp_path / "bare.onnx")
    predictor = Predictor.load(tmp_path / "bare.onnx")
    assert predictor.config == config
    assert "no scaler" in predictor.decide(CANDLES).reason
    with pytest.raises(InvalidPredictionError, match="no scaler"):
        predictor.update(CANDLES.iloc[0])
    assert predictor.probabilities(np.zeros((0, 9, 8))).shape == (0, 3)


def test_a_trained_network_decides_as_keras_does(trained, predictor):
    expected = predict_candles(trained.bundle.model, trained.scaler, CONFIG, CANDLES)
    came = pd.DataFrame(predictor.predict(CANDLES))
    assert (came["date"].dt.tz_localize("UTC") == expected["date"]).all()
    np.testing.assert_allclose(came[SHARES], expected[SHARES], atol=1e-5)
    assert (came["decision"] == expected["decision"]).all()


def test_an_answer_does_not_depend_on_the_number_of_windows(predictor):
    windows = np.random.default_rng(0).standard_normal((700, 12, 8))
    whole = predictor.probabilities(windows)
    for rows in (slice(0, 1), slice(5, 20), slice(3, 300)):
        np.testing.assert_allclose(predictor.probabilities(windows[rows]), whole[rows], atol=1e-6)


def test_100_000_real_windows_are_decided_as_keras_does(tmp_path):
    """All probabilities and decisions, on real candles, with weights that predict all three classes."""
    if not DATA.is_file():
        pytest.skip(f"the file of real candles is missing: {DATA.name}")
    config = Config(sequence_length=12, lstm_units=(12, 8), dense_units=(6,), batch_size=2048)
    candles = read_candles(DATA)[:148_000].reset_index(drop=True)
    model = random_network(config, seed=4, size=0.5)
    raw = prediction_windows(candles[:60_000], config, Scaler("none", FEATURES, (0.0,) * 8, (1.0,) * 8, 1e6))[0]
    scaler = Scaler.fit(raw.matrix[raw.rows], config)
    first = prediction_windows(candles[:60_000], config, scaler)[0]
    balance(model, first)
    data = encode_onnx_file(
        config,
        convert_keras_weights(config, [weight.numpy() for layer in model.layers for weight in layer.weights]),
        {"classes": list(CLASSES), "scaler": scaler.as_dict(), "expires": None, "bundle_sha256": None}
        | {
            "golden": {
                name: base64.b64encode(array.astype("<f4").tobytes()).decode()
                for name, array in golden(model, config).items()
            }
        },
    )
    (tmp_path / "model.onnx").write_bytes(data)
    came, expected = (
        Predictor.load(tmp_path / "model.onnx").predict(candles),
        predict_candles(model, scaler, config, candles),
    )
    assert len(expected) >= 100_000
    np.testing.assert_allclose(np.stack([came[name] for name in SHARES], axis=1), expected[SHARES], atol=1e-5)
    differ = came["decision"] != expected["decision"].to_numpy()
    assert not differ.any(), expected[differ]
    assert set(expected["decision"]) == set(CLASSES)


def golden(model: keras.Model, config: Config) -> dict[str, np.ndarray]:
    windows = (
        np.random.default_rng(0).standard_normal((4, config.sequence_length, len(config.features))).astype(np.float32)
    )
    return {"windows": windows, "probabilities": np.asarray(model(windows))}


def balance(model: keras.Model, windows: WindowDataset) -> None:
    """Move the last biases until each class is the most likely for some windows."""
    shares = np.asarray(model(windows.gather(windows.rows[::10]), training=False))
    bias = model.layers[-1].bias
    bias.assign(bias.numpy() - np.median(np.log(shares), axis=0))


# ---------------------------------------------------------------- decide, update and bundle


def test_predictor_and_bundle_reach_the_same_decision(trained, predictor):
    for rows in (1600, 1500, 1234, 900):
        candles = CANDLES[:rows]
        now = candles["date"].iloc[-1] + HOUR
        ours, theirs = predictor.decide(candles, now=now), trained.bundle.decide(candles, now=now)
        assert (ours.action, ours.reason) == (theirs.action, theirs.reason)
        np.testing.assert_allclose(list(ours.probabilities.values()), list(theirs.probabilities.values()), atol=1e-5)


def test_update_and_decide_reach_the_same_decision(predictor):
    rng = np.random.default_rng(5)
    candles = CANDLES[rng.random(1600) > 0.05]
    candles = candles[(candles.index < 1450) | (candles.index > 1453)].reset_index(drop=True)
    predictor.fill_gaps = True
    predictor.warm_up(candles[:1300])
    actions = []
    for row in range(1300, len(candles)):
        now = candles["date"][row] + HOUR
        one, whole = predictor.update(candles.iloc[row], now=now), predictor.decide(candles[: row + 1], now=now)
        assert one == whole, (row, one, whole)
        actions.append(one.action)
    assert NO_TRADE in actions and len(set(actions)) > 1


@pytest.mark.parametrize("shape", ["ccxt", "columns", "structured"])
def test_all_forms_of_candles_give_the_same_decision(shape, predictor):
    milliseconds = (CANDLES["date"].astype("int64") // 10**6).to_numpy()
    numbers = CANDLES[["open", "high", "low", "close", "volume"]].to_numpy()
    ccxt = [[int(time), *row] for time, row in zip(milliseconds, numbers.tolist(), strict=True)]
    given = {
        "ccxt": ccxt,
        "columns": {"date": milliseconds, **{name: CANDLES[name].to_numpy() for name in CANDLES.columns[1:]}},
        "structured": np.array([tuple(row) for row in ccxt], dtype=[(name, "f8") for name in CANDLES.columns]),
    }[shape]
    assert predictor.decide(given, now=CLOSE) == predictor.decide(CANDLES, now=CLOSE)
    assert predictor.warm_up(ccxt[:-1]).update(ccxt[-1], now=CLOSE) == predictor.decide(CANDLES, now=CLOSE)


def drop_rows(rows: range) -> pd.DataFrame:
    return CANDLES.drop(index=rows).reset_index(drop=True)


HISTORIES = {
    "not closed": (CANDLES, CLOSE - pd.Timedelta("3s"), "is not closed yet"),
    "stale": (CANDLES, CLOSE + pd.Timedelta("61min"), "is too old, 1.0 candles since its close"),
    "expired": (CANDLES, EXPIRES + pd.Timedelta("1s"), "expired at 2030-01-01"),
    "naive now": (CANDLES, "2024-03-07", "time zone"),
    "no date": (CANDLES, "soon", "expected a date for now"),
    "NaT": (CANDLES, pd.NaT, "time zone"),
    "a list of pairs": ([[1, 2]], CLOSE, "rows of [ms, open"),
    "None": (None, CLOSE, "rows of [ms, open"),
    "empty": (CANDLES[:0], CLOSE, "at least one candle"),
    "short": (CANDLES[-100:], CLOSE, "does not complete a window, 631 more candles are needed"),
    "no volume": (CANDLES.drop(columns="volume"), CLOSE, "volume"),
    "text": (CANDLES.assign(close="1,234.5"), CLOSE, "close"),
    "reversed": (CANDLES[::-1], CLOSE, "dates must rise"),
    "naive dates": (CANDLES.assign(date=CANDLES["date"].dt.tz_localize(None)), CLOSE, "UTC"),
    "zero price": (CANDLES.assign(close=CANDLES["close"].where(CANDLES.index != 1599, 0.0)), CLOSE, "close must be"),
    "low above high": (CANDLES.assign(low=CANDLES["high"] * 2), CLOSE, "high must be at least open, low and close"),
    "doubled row": (pd.concat([CANDLES, CANDLES[-1:]]), CLOSE, "the same candle twice"),
    "another timeframe": (synthetic_candles(1600, timeframe="30m"), CLOSE, "whole steps of 1h"),
    "a slower timeframe": (synthetic_candles(1600, timeframe="4h"), CLOSE, "most are 4h apart"),
    "a gap": (drop_rows(range(1580, 1590)), CLOSE, "does not complete a window, 3 more"),
    "doubled column": (pd.concat([CANDLES, CANDLES[["close"]]], axis=1), CLOSE, "expected candles with"),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_invalid_candles_give_no_trade(name, predictor):
    candles, now, reason = HISTORIES[name]
    decision = predictor.decide(candles, now=now)
    assert decision.action == NO_TRADE and reason in decision.reason and decision.probabilities is None, str(decision)


def test_a_gap_before_the_window_is_accepted(predictor):
    assert predictor.decide(drop_rows(range(1570, 1580)), now=CLOSE).action in CLASSES


def test_a_candle_that_is_not_finite_gives_no_trade(predictor):
    chance = random.Random(SEED)
    for _ in range(60):
        candles = CANDLES.copy()
        column = chance.choice(["open", "high", "low", "close", "volume"])
        candles.loc[chance.randrange(len(candles)), column] = chance.choice([np.nan, np.inf, -np.inf])
        assert predictor.decide(candles, now=CLOSE).action == NO_TRADE


def test_a_candle_that_cannot_be_next_changes_nothing(predictor):
    last = CANDLES.iloc[-1].to_dict()
    next_ = last | {"date": last["date"] + HOUR}
    soon = CLOSE + HOUR
    with_history = predictor.warm_up(CANDLES)
    before = predictor.stream.state_dict()
    for candle, now, message in [
        (CANDLES.iloc[-5].to_dict(), soon, "comes late"),
        (last | {"close": last["close"] * 1.0001, "high": last["high"] * 2}, soon, "came before with other values"),
        (next_ | {"volume": np.nan}, soon, "volume must be a finite number"),
        (next_ | {"date": last["date"] + HOUR / 2}, soon, "whole steps of 1h"),
        (next_, soon - pd.Timedelta("3s"), "not closed yet"),
    ]:
        with pytest.raises(StreamError, match=message):
            predictor.update(candle, now=now)
    for now in ("soon", "2024-03-07", pd.NaT, 7):
        with pytest.raises(InvalidPredictionError, match="for now"):
            predictor.update(next_, now=now)
    repeated = with_history.update(last, now=CLOSE)
    assert repeated.action == NO_TRADE and "came before" in repeated.reason
    assert all(np.array_equal(array, predictor.stream.state_dict()[name]) for name, array in before.items())
    stale = predictor.update(next_, now=soon + 2 * HOUR)
    assert stale.action == NO_TRADE and "too old" in stale.reason
    assert predictor.update(next_ | {"date": next_["date"] + HOUR}, now=soon + HOUR).action in CLASSES
    gap = predictor.update(next_ | {"date": next_["date"] + 9 * HOUR}, now=soon + 9 * HOUR)
    assert gap.action == NO_TRADE and "7 candles are missing before the newest one" in gap.reason
    expired = predictor.update(next_ | {"date": next_["date"] + 10 * HOUR}, now=EXPIRES + HOUR)
    assert expired.action == NO_TRADE and "expired" in expired.reason


def test_update_gives_no_trade_until_a_window_is_full(predictor):
    decisions = [predictor.update(candle, now=candle["date"] + HOUR) for candle in CANDLES[:740].to_dict("records")]
    full = 719 + 12  # the mean of 30 days, and a window
    assert {decision.action for decision in decisions[: full - 1]} == {NO_TRADE}
    assert "more candles are needed" in decisions[0].reason and decisions[full - 1].action in CLASSES


def test_candles_of_another_timeframe_give_no_trade(tmp_path):
    config = Config(sequence_length=3, lstm_units=(4,), features=("close_change",))
    export_onnx(
        random_network(config),
        tmp_path / "m.onnx",
        config=config,
        scaler=Scaler("robust", ("close_change",), (0.0,), (1.0,), 10.0),
    )
    predictor, hours = Predictor.load(tmp_path / "m.onnx"), synthetic_candles(10, timeframe="1h")
    decisions = [predictor.update(candle, now=candle["date"] + HOUR / 60) for candle in hours.to_dict("records")]
    assert {decision.action for decision in decisions[2:]} == {NO_TRADE}
    assert "60 minutes apart each" in decisions[-1].reason


@pytest.mark.parametrize(
    "answer",
    [
        [np.nan] * 3,
        [np.inf, 0, 0],
        [0.5, 0.6, 0.5],
        [-0.5, 1.0, 0.5],
        [0, 0, 0],
        [0.4, 0.4, 0.2],
        RuntimeError,
        MemoryError,
        "ort",
    ],
)
def test_invalid_network_output_gives_no_trade(answer, predictor):
    class FixedSession:
        def run(self, names, inputs):
            if answer == "ort":
                from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

                raise RuntimeException("bad allocation")
            if isinstance(answer, type):
                raise answer("no more memory")
            return [np.tile(np.float32(answer), (len(inputs["windows"]), 1))]

    predictor._network.session = FixedSession()
    decision = predictor.decide(CANDLES, now=CLOSE)
    assert decision.action == NO_TRADE and decision.reason
    assert predictor.warm_up(CANDLES[:-1]).update(CANDLES.iloc[-1], now=CLOSE).action == NO_TRADE


@pytest.mark.parametrize("shape", [(12, 8), (1, 8, 12), (1, 11, 8), (1, 12, 7), (1, 12, 9), (1, 1, 12, 8)])
def test_invalid_windows_are_refused(shape, predictor):
    with pytest.raises(InvalidPredictionError, match="expected float windows"):
        predictor.probabilities(np.zeros(shape))
    for wrong in (
        np.zeros((1, 12, 8), dtype=int),
        np.full((1, 12, 8), "a"),
        np.full((1, 12, 8), np.nan),
        np.full((1, 12, 8), 1e300),
    ):
        with pytest.raises(InvalidPredictionError), np.errstate(over="ignore"):
            predictor.probabilities(wrong)


# ---------------------------------------------------------------- files


def test_a_loaded_file_names_its_bundle_and_settings(trained, predictor):
    assert predictor.sha256 == trained.sha256 and predictor.verified and predictor.golden_deviation < 1e-6
    assert predictor.metadata["bundle_sha256"] == trained.bundle.sha256 and predictor.config == CONFIG
    assert Predictor.load(trained.path, trained.sha256.upper()).sha256 == trained.sha256
    assert trained.bundle.sha256 in str(predictor) and "model.onnx" in predictor._repr_html_()
    onnx.checker.check_model(onnx.load(trained.path), full_check=True)
    session = onnxruntime.InferenceSession(trained.path)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["crypto_lstm"])
    assert facts["bundle_sha256"] == trained.bundle.sha256 and facts["scaler"]["features"] == list(FEATURES)
    assert [size if isinstance(size, int) else "batch" for size in session.get_inputs()[0].shape] == ["batch", 12, 8]


def test_the_same_network_gives_the_same_bytes(trained, tmp_path):
    assert export_onnx(trained.bundle, tmp_path / "again.onnx") == trained.sha256


def test_a_file_without_a_manifest_loads_unverified(trained, tmp_path):
    shutil.copy(trained.path, tmp_path / "alone.onnx")
    predictor = Predictor.load(tmp_path / "alone.onnx")
    assert not predictor.verified and "no manifest" in str(predictor)
    with pytest.raises(PinMismatchError, match="you pinned"):
        Predictor.load(tmp_path / "alone.onnx", "0" * 64)


def test_any_flipped_bit_is_refused(trained, tmp_path):
    data, chance, path = trained.path.read_bytes(), random.Random(SEED), tmp_path / "model.onnx"
    for _ in range(300):
        at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        with pytest.raises(OnnxFileError):
            Predictor.load(path)
    shutil.copy(manifest_path(trained.path), manifest_path(path))
    with pytest.raises(IntegrityError, match="expected"):
        Predictor.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused(share, trained, tmp_path):
    data = trained.path.read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OnnxFileError, match="take another copy of it"):
        Predictor.load(tmp_path / "model.onnx")


def changed(trained, change) -> bytes:
    model = onnx.load(trained.path)
    change(model)
    return model.SerializeToString()


def external(model) -> None:
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def custom_operator(model) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def one_node_more(model) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["windows"], ["z"]))


def huge(model) -> None:
    model.graph.initializer[-1].dims[:] = [2**40, 2**20]


def another_order(model) -> None:
    facts = json.loads(model.metadata_props[0].value)
    facts["config"]["features"] = facts["config"]["features"][::-1]
    model.metadata_props[0].value = json.dumps(facts)


FOREIGN = {
    "empty": lambda trained: b"",
    "text": lambda trained: b"dear diary",
    "a zip": lambda trained: b"PK\x03\x04" + bytes(100),
    "a Keras file": lambda trained: keras_file(trained),
    "an ONNX file of another program": lambda trained: onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value("x")], [value("y")])
    ).SerializeToString(),
    "an external file": lambda trained: changed(trained, external),
    "a custom operator": lambda trained: changed(trained, custom_operator),
    "a huge shape": lambda trained: changed(trained, huge),
    "another order of features": lambda trained: changed(trained, another_order),
    "no facts": lambda trained: changed(trained, lambda model: model.metadata_props.pop()),
    "one node more": lambda trained: changed(trained, one_node_more),
    "many small fields": lambda trained: b"\x08\x01" * 1_000_000,
    "a deep one": lambda trained: b"\x3a\xff\xff\xff\xff\x0f" * 1000,
}


def value(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 12, 8])


def keras_file(trained) -> bytes:
    path = trained.path.with_name("model.keras")
    trained.model.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_before_it_is_run(name, trained, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(FOREIGN[name](trained))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was given to onnxruntime"))
    with pytest.raises(OnnxFileError) as caught:
        Predictor.load(tmp_path / "model.onnx")
    assert isinstance(caught.value, CryptoLSTMError) and "model.onnx" in str(caught.value) and caught.value.remedy


def forged(trained, change) -> bytes:
    """A consistent file with other metadata or weights."""
    facts, config, arrays = decode_onnx_file(trained.path.read_bytes(), "model.onnx")
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(facts, arrays)
    kept = {name: item for name, item in facts.items() if name not in ("schema", "version", "config")}
    return encode_onnx_file(config, arrays, kept)


def shift_bias(facts: dict, arrays: dict) -> None:
    arrays["trading_decisions.B"] += np.float32([1, 0, 0])


def change_scaler(**changes):
    return lambda facts, arrays: facts["scaler"].update(changes)


def change_golden(**changes):
    return lambda facts, arrays: facts["golden"].update(changes)


def encode(array) -> str:
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


NO_SCALER = "its scaler does not fit its settings"
FORGED = {
    "other weights": (shift_bias, "the golden windows: expected Keras' answers"),
    "NaN in weights": (lambda facts, arrays: arrays["trading_decisions.B"].fill(np.nan), "finite weights"),
    "a scaler without a centre": (lambda facts, arrays: facts["scaler"].pop("center"), NO_SCALER),
    "a scaler as a list": (lambda facts, arrays: facts.update(scaler=[]), NO_SCALER),
    "a scaler of text": (change_scaler(scale=["1"] * 8), NO_SCALER),
    "a scaler of mixed keys": (lambda facts, arrays: facts.update(scaler=["a", 1, None]), NO_SCALER),
    "a scale of zero": (change_scaler(scale=[0.0] * 8), NO_SCALER),
    "a scaler of seven": (change_scaler(scale=[1.0] * 7), NO_SCALER),
    "features of the scaler": (lambda facts, arrays: facts["scaler"]["features"].reverse(), NO_SCALER),
    "classes": (lambda facts, arrays: facts["classes"].reverse(), "expected the classes"),
    "classes as a number": (lambda facts, arrays: facts.update(classes=3), "expected the classes"),
    "an expiry without a zone": (
        lambda facts, arrays: facts.update(expires="2024-03-07"),
        "expires: expected null or a date",
    ),
    "an expiry as a number": (lambda facts, arrays: facts.update(expires=7), "expires: expected null or a date"),
    "no golden windows": (lambda facts, arrays: facts.pop("golden"), "its metadata lacks golden"),
    "golden windows as a list": (lambda facts, arrays: facts.update(golden=[]), "expected golden windows and answers"),
    "golden windows that are not base64": (change_golden(windows="x"), "golden windows: expected rows"),
    "golden windows as a number": (change_golden(windows=7), "golden windows: expected rows"),
    "half a golden window": (change_golden(windows=encode(np.zeros(50))), "golden windows: expected rows"),
    "golden windows without answers": (change_golden(probabilities=encode([])), "expected at least one golden window"),
    "no golden window at all": (
        change_golden(windows=encode([]), probabilities=encode([])),
        "expected at least one golden window",
    ),
    "golden answers of NaN": (change_golden(probabilities=encode(np.full((32, 3), np.nan))), "the golden windows"),
    "no bundle": (lambda facts, arrays: facts.pop("bundle_sha256"), "its metadata lacks bundle_sha256"),
}


@pytest.mark.parametrize("name", FORGED)
def test_invalid_metadata_in_a_consistent_file_is_refused(name, trained, tmp_path):
    change, message = FORGED[name]
    (tmp_path / "model.onnx").write_bytes(forged(trained, change))
    with pytest.raises(OnnxFileError, match=message):
        Predictor.load(tmp_path / "model.onnx")


def test_a_consistent_forgery_is_refused_by_the_pin_alone(trained, tmp_path):
    """As the docstring of `load` states: without `expected_sha256`, a consistent forged file is accepted."""

    def notes(facts, arrays):
        facts["notes"] = {"by": "somebody else"}

    (tmp_path / "model.onnx").write_bytes(forged(trained, notes))
    assert Predictor.load(tmp_path / "model.onnx").metadata["notes"] == {"by": "somebody else"}
    with pytest.raises(PinMismatchError, match="you pinned"):
        Predictor.load(tmp_path / "model.onnx", trained.sha256)


@pytest.mark.parametrize("beside", [True, False])
def test_an_intact_file_of_another_schema_is_told_from_a_damaged_one(beside, trained, tmp_path):
    path, zeros = tmp_path / "model.onnx", b"0" * 64
    changed_schema = trained.path.read_bytes().replace(b'"schema": 1', b'"schema": 2')[:-64]
    sealed = changed_schema + hashlib.sha256(changed_schema + zeros).hexdigest().encode()
    with atomic_file(path) as file:
        file.write_bytes(sealed)
    if not beside:
        manifest_path(path).unlink()
    with pytest.raises(SchemaVersionError, match="expected schema 1, got 2; use the version that exported it"):
        Predictor.load(path)
    path.write_bytes(changed_schema + zeros)
    with pytest.raises(IntegrityError):
        Predictor.load(path)


def test_folders_links_pipes_and_sockets_are_refused(trained, tmp_path):
    (tmp_path / "link.onnx").symlink_to(trained.path)
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s.onnx"))
        for name in ("link", "pipe", "folder", "s"):
            with pytest.raises(IntegrityError):
                Predictor.load(tmp_path / f"{name}.onnx")
    with pytest.raises(OnnxFileError, match="there is no such file"):
        Predictor.load(tmp_path / "nowhere.onnx")


def test_a_network_that_is_too_large_is_refused_before_it_is_built():
    with pytest.raises(ConfigError, match="at most 50,000,000 weights"):
        list_onnx_shapes(Config(lstm_units=(60_000,)))
    with pytest.raises(ConfigError, match="at most 64 layers"):
        list_onnx_shapes(Config(dense_units=(1,) * 80))


def test_a_refused_export_writes_nothing(tmp_path):
    model = random_network(CONFIG)
    model.layers[1].cell.recurrent_activation = keras.activations.hard_sigmoid
    with pytest.raises(OnnxFileError, match="expected Keras' answers within 1e-05"):
        export_onnx(model, tmp_path / "m.onnx", config=CONFIG)
    with pytest.raises(ConfigError, match="the scaler is for the features"):
        export_onnx(
            random_network(CONFIG),
            tmp_path / "m.onnx",
            config=CONFIG,
            scaler=Scaler("none", ("close_change",), (0.0,), (1.0,), 10.0),
        )
    with pytest.raises(ConfigError, match="time zone"):
        export_onnx(random_network(CONFIG), tmp_path / "m.onnx", config=CONFIG, expires=datetime(2030, 1, 1))
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    seven = keras.Sequential([keras.Input((12, 7)), keras.layers.LSTM(4), keras.layers.Dense(3)])
    for other in (dense, seven):
        with pytest.raises(ConfigError, match="give its configuration"):
            export_onnx(other, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the state of a stream


def test_a_restarted_bot_continues_from_its_saved_state(trained, tmp_path):
    first = Predictor.load(trained.path).warm_up(CANDLES[:1590])
    first.save_state(tmp_path / "state.npz")
    second = Predictor.load(trained.path).load_state(tmp_path / "state.npz")
    for candle in CANDLES[1590:].to_dict("records"):
        now = candle["date"] + HOUR
        assert first.update(candle, now=now) == second.update(candle, now=now)


def test_a_damaged_state_and_that_of_another_model_are_refused(trained, tmp_path):
    first = Predictor.load(trained.path).warm_up(CANDLES)
    first.save_state(tmp_path / "state.npz")
    export_onnx(random_network(CONFIG), tmp_path / "other.onnx", config=CONFIG, scaler=trained.scaler)
    other = Predictor.load(tmp_path / "other.onnx")
    with pytest.raises(StateMismatchError, match="expected the state of the model .* got that of another model"):
        other.load_state(tmp_path / "state.npz")
    data = (tmp_path / "state.npz").read_bytes()
    (tmp_path / "state.npz").write_bytes(data[:-100])
    with pytest.raises(IntegrityError):
        first.load_state(tmp_path / "state.npz")
    with pytest.raises(FileNotFoundError):
        first.load_state(tmp_path / "nowhere.npz")
    assert other.stream is None or other.stream.time is None


def test_a_file_that_is_not_a_state_is_refused(trained, tmp_path):
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(3))
    np.savez(archive, ring=np.zeros(3))
    predictor = Predictor.load(trained.path)
    for content in (b"", b"PK", array.getvalue(), archive.getvalue(), trained.path.read_bytes()):
        with atomic_file(tmp_path / "state.npz") as file:
            file.write_bytes(content)
        with pytest.raises(IntegrityError, match="is not the saved state of a predictor.*start again with warm_up"):
            predictor.load_state(tmp_path / "state.npz")


# ---------------------------------------------------------------- in several processes


def answer_in_worker(content: bytes) -> tuple[str, list[float], int | None]:
    """What a predictor that came as a pickle is and answers, in a process of its own."""
    code = """
import pickle, sys
predictor = pickle.loads(sys.stdin.buffer.read())
decision = predictor.decide([[1709805600000 + 3600000 * n, 1, 2, 1, 1 + n % 2, 1] for n in range(900)], now=sys.argv[1])
time = None if predictor.stream is None else predictor.stream.time
print(repr((predictor.sha256, list(decision.probabilities.values()), time)))
"""
    words = [sys.executable, "-c", code, "2024-04-13T22:00:00+00:00"]
    done = subprocess.run(words, input=content, capture_output=True, check=True, cwd="/")
    return eval(done.stdout)


def test_a_pickle_answers_in_another_process_as_the_original_does(trained, monkeypatch):
    monkeypatch.chdir(trained.path.parent)
    predictor = Predictor.load(trained.path.name, threads=2, fill_gaps=True)  # a relative path
    candles = [[1709805600000 + 3600000 * n, 1, 2, 1, 1 + n % 2, 1] for n in range(900)]
    shares = predictor.decide(candles, now="2024-04-13T22:00:00+00:00").probabilities
    assert answer_in_worker(pickle.dumps(predictor)) == (trained.sha256, list(shares.values()), None)
    copied = copy.deepcopy(predictor.warm_up(CANDLES[:-1]))
    assert (copied.threads, copied.fill_gaps, copied.stream.fill_gaps) == (2, True, True)
    assert copied.update(CANDLES.iloc[-1], now=CLOSE) == predictor.update(CANDLES.iloc[-1], now=CLOSE)
    assert copied.stream is not predictor.stream


def test_a_pickle_refuses_a_file_that_changed(trained, tmp_path):
    shutil.copy(trained.path, tmp_path / "m.onnx")
    content = pickle.dumps(Predictor.load(tmp_path / "m.onnx"))
    export_onnx(random_network(CONFIG), tmp_path / "m.onnx", config=CONFIG, scaler=trained.scaler)
    with pytest.raises(PinMismatchError, match="you pinned"):
        pickle.loads(content)
    (tmp_path / "m.onnx").write_bytes(trained.path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        pickle.loads(content)
    manifest_path(tmp_path / "m.onnx").unlink()
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(OnnxFileError, match="there is no such file"):
        pickle.loads(content)


# ---------------------------------------------------------------- the run and the command line

SETTINGS = [
    "timeframe=1h",
    "sequence_length=12",
    "future_window=24",
    "lstm_units=8,4",
    "dense_units=4",
    "batch_size=64",
    "epochs=1",
]
SETTINGS += ["long_tp_pct=2", "short_tp_pct=2", "long_sl_pct=2", "short_sl_pct=2"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    synthetic_candles(3000, seed=3, timeframe="1h").to_feather(place / "candles.feather")
    words = ["train", "--candles", str(place / "candles.feather"), "--output", str(place / "run"), "--no-tensorboard"]
    with skip_pictures(), skip_boosting():
        assert main([*words, "--set", *SETTINGS]) == 0
    return place / "run"


def test_a_run_answers_as_its_bundle_does(run_folder):
    candles = pd.read_feather(run_folder.parent / "candles.feather")
    bundle = load_bundle(run_folder / "bundle")
    expected = bundle.policy.choose_rows(bundle.probabilities(candles))
    came = load_run_predictor(run_folder).predict(candles)
    for name in (*SHARES, "expected_long", "expected_short"):
        np.testing.assert_allclose(came[name], expected[name], atol=1e-5)
    assert (came["decision"] == expected["decision"]).all()


def test_the_pin_of_a_run_is_that_of_its_bundle(run_folder):
    pin = load_bundle(run_folder / "bundle").sha256
    assert load_run_predictor(run_folder, pin.upper()).metadata["bundle_sha256"] == pin
    with pytest.raises(PinMismatchError, match="expected the sha256 0000.*you pinned"):
        load_run_predictor(run_folder, "0" * 64)


def test_predict_needs_no_tensorflow(run_folder, tmp_path):
    words = ["predict", "--model", str(run_folder), "--candles", str(run_folder.parent / "candles.feather"), "--json"]
    code = f"""
import sys
from crypto_lstm.commands.main import main
code = main({words!r})
print(sorted({{"tensorflow", "keras", "sklearn", "onnx"}} & set(sys.modules)), code, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[] 0"
    assert json.loads(done.stdout)["rows"] == 3000 - 719 - 11


def test_export_and_predict_with_the_file(run_folder, tmp_path, capsys):
    pin = json.loads((run_folder / "metadata.json").read_text())["sha256"]
    made, candles = tmp_path / "copy.onnx", str(run_folder.parent / "candles.feather")
    assert main(["export", "--model", str(run_folder), "--sha256", pin["bundle"], "--output", str(made), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"output": str(made), "sha256": pin["onnx"], "bundle_sha256": pin["bundle"]}
    assert main(["export", "--model", str(run_folder / "bundle"), "--output", str(made)]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err
    for model in (run_folder, made, run_folder / "bundle"):
        assert (
            main(
                [
                    "predict",
                    "--model",
                    str(model),
                    "--candles",
                    candles,
                    "--output",
                    str(tmp_path / f"{model.name}.parquet"),
                ]
            )
            == 0
        )
    tables = [pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("run", "copy.onnx", "bundle")]
    assert set(tables[0].pop("part")) > {"train", "test"}
    for table in tables[1:]:  # a file without its run knows less of its training
        table.pop("part")
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2], atol=1e-5, rtol=0)
    capsys.readouterr()
    assert main(["predict", "--model", str(made), "--sha256", "0" * 64, "--candles", candles]) == 1
    assert "you pinned" in capsys.readouterr().err
    assert main(["verify", str(made), "--json"]) == 0 and json.loads(capsys.readouterr().out)["ok"] is True
    made.write_bytes(made.read_bytes()[:-1])
    assert main(["verify", str(made)]) == 1 and main(["predict", "--model", str(made), "--candles", candles]) == 1


def spoil_onnx(run: Path) -> None:
    data = (run / "model.onnx").read_bytes()
    (run / "model.onnx").write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])


def exchange_onnx(run: Path) -> None:
    """An intact file of another network, with its own manifest."""
    export_onnx(
        random_network(CONFIG),
        run / "model.onnx",
        config=CONFIG,
        scaler=Scaler("robust", FEATURES, (0.0,) * 8, (1.0,) * 8, 10.0),
    )


def repinned(run: Path) -> None:
    """The same, and metadata of the run that names it; the bundle is still the old one."""
    exchange_onnx(run)
    metadata = json.loads((run / "metadata.json").read_text())
    metadata["sha256"]["onnx"] = Predictor.load(run / "model.onnx").sha256
    (run / "metadata.json").write_text(json.dumps(metadata))


SPOILT = {
    "a flipped bit": (spoil_onnx, "expected"),
    "another network": (exchange_onnx, "you pinned"),
    "another bundle's network": (repinned, "expected the network of the bundle"),
    "no file": (lambda run: (run / "model.onnx").unlink(), "no such file"),
    "no file, no manifest": (
        lambda run: ((run / "model.onnx").unlink(), manifest_path(run / "model.onnx").unlink()),
        "no such file",
    ),
    "a spoilt bundle": (lambda run: (run / "bundle" / "scaler.json").write_text("{}"), "scaler.json"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_predict_refuses_a_run_whose_parts_do_not_fit(name, run_folder, tmp_path, capsys):
    spoil, message = SPOILT[name]
    copy = shutil.copytree(run_folder, tmp_path / "run")
    spoil(copy)
    assert main(["predict", "--model", str(copy), "--candles", str(run_folder.parent / "candles.feather")]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert main(["verify", str(copy)]) == 1


def test_keras_answers_for_a_bundle_and_a_run_must_have_its_onnx_file(run_folder, tmp_path, capsys):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    for path in (copy / "model.onnx", manifest_path(copy / "model.onnx")):
        path.unlink()
    candles = str(run_folder.parent / "candles.feather")
    assert load_run_predictor(copy / "bundle") is None and load_run_predictor(tmp_path / "nowhere") is None
    assert main(["predict", "--model", str(copy / "bundle"), "--candles", candles, "--json"]) == 0
    capsys.readouterr()
    assert main(["predict", "--model", str(copy), "--candles", candles]) == 1
    assert "model.onnx" in capsys.readouterr().err
    assert main(["verify", str(copy)]) == 1


def test_import_and_decision_load_no_heavy_package(trained):
    code = """
import sys
from crypto_lstm.inference.predictor import Predictor
loaded = {"onnxruntime"} & set(sys.modules)
predictor = Predictor.load(sys.argv[1])
history = [[1709805600000 + 3600000 * n, 1, 1, 1, 1, 1] for n in range(800)]
decision = predictor.decide(history, now="2024-04-09T18:00+00:00")
again = predictor.warm_up(history[:-1]).update(history[-1], now="2024-04-09T18:00+00:00")
assert decision == again and decision.probabilities, (decision, again)
heavy = {"tensorflow", "keras", "pandas", "pyarrow", "sklearn", "onnx", "matplotlib", "psutil", "tensorboard"}
print(sorted(heavy & set(sys.modules)), loaded)
"""
    done = subprocess.run([sys.executable, "-c", code, trained.path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] set()"


def test_a_state_whose_header_promises_too_much_is_refused_before_it_is_allocated(predictor, tmp_path):
    from crypto_lstm.storage.verified import atomic_file

    header = io.BytesIO()
    facts = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, facts)
    with atomic_file(tmp_path / "state.npz") as path, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ring.npy", header.getvalue())
    with pytest.raises(IntegrityError, match="state.npz"):
        predictor.load_state(tmp_path / "state.npz")


def test_update_waits_for_missing_candles_and_says_which(predictor):
    predictor.warm_up(CANDLES[:1590])
    for row in range(1595, 1600):
        decision = predictor.update(CANDLES.iloc[row], now=CANDLES["date"][row] + HOUR)
        assert decision.action == NO_TRADE
        assert "5 candles are missing before the newest one" in decision.reason
    for row in (1593, 1590, 1594, 1591):
        assert "missing" in predictor.update(CANDLES.iloc[row], now=CLOSE).reason
    assert predictor.update(CANDLES.iloc[1592], now=CLOSE) == predictor.decide(CANDLES, now=CLOSE)


def test_a_decision_on_filled_candles_counts_them(predictor):
    gappy = CANDLES.drop(index=1595).reset_index(drop=True)
    decision = predictor.decide(gappy, now=CLOSE)
    assert decision.reason.endswith("1 of the 12 candles of the window were missing and are filled")
    assert predictor.predict(gappy)["filled"][-1] == 1
    predictor.fill_gaps = True
    predictor.warm_up(gappy[:-1])
    assert predictor.update(gappy.iloc[-1], now=CLOSE) == decision


def test_bundle_and_predictor_share_the_rules_of_a_decision():
    from crypto_lstm.inference import bundle, decision, predictor

    for name in (
        "Decision",
        "InvalidPredictionError",
        "convert_windows",
        "decide_newest",
        "require_probabilities",
    ):
        shared = getattr(decision, name)
        assert getattr(bundle, name) is shared and getattr(predictor, name) is shared
    expected = {"action": "HOLD", "probabilities": None, "reason": "x", "expected_pct": None, "barrier_scale": None}
    assert Decision("HOLD", None, "x").as_dict() == expected


def test_a_history_with_an_open_candle_is_refused(predictor):
    message = "15:00:00.* is not closed yet: .*the clock of this machine says.*: leave it out"
    with pytest.raises(StreamError, match=message):
        predictor.warm_up(CANDLES, now=CLOSE - pd.Timedelta("3s"))
    assert predictor.stream.time is None
    with pytest.raises(StreamError, match="is not closed yet"):
        predictor.warm_up(CANDLES.assign(date=CANDLES["date"] + pd.Timedelta(days=36_500)))  # by the clock
    with pytest.raises(InvalidPredictionError, match="for now"):
        predictor.warm_up(CANDLES, now="soon")
    assert predictor.warm_up(CANDLES[:-1], now=CLOSE).update(CANDLES.iloc[-1], now=CLOSE) == predictor.decide(
        CANDLES, now=CLOSE
    )


@pytest.mark.parametrize("age", ["1", None, -1, math.nan, True, [1]])
def test_an_invalid_age_adds_no_candle(age, predictor):
    predictor.warm_up(CANDLES[:-1])
    with pytest.raises(InvalidPredictionError, match="expected max_age_candles as a number of candles"):
        predictor.update(CANDLES.iloc[-1], now=CLOSE, max_age_candles=age)
    assert predictor.update(CANDLES.iloc[-1], now=CLOSE).action in CLASSES
    assert "max_age_candles" in predictor.decide(CANDLES, now=CLOSE, max_age_candles=age).reason


@pytest.mark.parametrize("beside", [True, False])
def test_an_empty_pin_is_refused(beside, trained, tmp_path):
    shutil.copy(trained.path, tmp_path / "m.onnx")
    if beside:
        shutil.copy(manifest_path(trained.path), manifest_path(tmp_path / "m.onnx"))
    assert Predictor.load(tmp_path / "m.onnx", trained.sha256.upper()).verified is beside
    with pytest.raises(PinMismatchError, match="expected the sha256 , got"):
        Predictor.load(tmp_path / "m.onnx", "")


def test_the_earlier_of_two_expiries_holds(trained, tmp_path):
    for year, holds in ((2029, "2029-01-01"), (2031, "2030-01-01"), (None, "2030-01-01")):
        export_onnx(trained.bundle, tmp_path / "m.onnx", expires=year and datetime(year, 1, 1, tzinfo=UTC))
        assert Predictor.load(tmp_path / "m.onnx").metadata["expires"].startswith(holds)
    for bad in ("2030-01-01T00:00:00+00:00", datetime(2030, 1, 1), 7):
        with pytest.raises(ConfigError, match="expires must be a date with a time zone"):
            export_onnx(trained.bundle, tmp_path / "m.onnx", expires=bad)


def test_an_export_is_compared_without_tf32(trained, tmp_path, monkeypatch):
    """Simulates a GPU that multiplies in TF32: the answers are coarse while TensorFlow allows it."""
    allowed, asked = tf.config.experimental.tensor_float_32_execution_enabled, []

    class Coarse:
        layers, weights = trained.model.layers, trained.model.weights

        def __call__(self, windows, training):
            asked.append(allowed())
            return np.asarray(trained.model(windows, training=training)) + (1e-3 if allowed() else 0)

    assert allowed()
    export_onnx(Coarse(), tmp_path / "m.onnx", config=CONFIG)
    assert asked == [False] and allowed()
