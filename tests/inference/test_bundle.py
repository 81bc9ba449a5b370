"""Bundles: save and load, forged parts under a consistent manifest, and input that must give NO_TRADE."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import shutil
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from support import crash_injection as faults
from support.answers import replace_answers

from crypto_lstm.architecture import build_model
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prediction_windows, prepare
from crypto_lstm.inference.bundle import (
    GOLDEN,
    BundleError,
    decode_weights,
    encode_weights,
    list_weight_shapes,
    load_bundle,
    save_bundle,
    verify_bundle,
)
from crypto_lstm.inference.decision import NO_TRADE
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.storage import verified
from crypto_lstm.storage.atomic import SaveError
from crypto_lstm.storage.manifest import MANIFEST, IntegrityError, PinMismatchError, encode_manifest
from crypto_lstm.storage.verified import verify_folder
from crypto_lstm.utils.errors import CryptoLSTMError

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, lstm_units=(8, 4), dense_units=(4,), batch_size=64
)
CANDLES = synthetic_candles(1600, seed=3, timeframe="1h")
CLOSE = CANDLES["date"].iloc[-1] + pd.Timedelta(hours=1)
EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)
SEED = 20260101


@pytest.fixture(scope="module")
def run():
    return SimpleNamespace(config=CONFIG, model=build_model(CONFIG), data=prepare(CANDLES, CONFIG))


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "btc"
    save_bundle(run, path, expires=EXPIRES)
    return path


@pytest.fixture(scope="module")
def bundle(saved):
    return load_bundle(saved)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def forged(saved: Path, place: Path, name: str, data: bytes | None = None, facts: dict | None = None) -> Path:
    """A copy with one file or some facts changed, and a consistent manifest."""
    target = place / "btc"
    shutil.copytree(saved, target)
    manifest = json.loads((target / MANIFEST).read_text())
    manifest["facts"] |= facts or {}
    if data is not None:
        (target / name).write_bytes(data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (target / MANIFEST).write_bytes(encode_manifest({key: value for key, value in manifest.items() if key != "seal"}))
    assert verify_folder(target).ok
    return target


# ---------------------------------------------------------------- save and load


def test_a_loaded_bundle_equals_what_was_saved(run, saved, bundle):
    assert all(np.array_equal(a, b) for a, b in zip(bundle.model.get_weights(), run.model.get_weights(), strict=True))
    assert (bundle.config, bundle.scaler) == (CONFIG, run.data.scaler)
    assert bundle.metadata["features"] == list(CONFIG.features) and bundle.metadata["classes"] == list(CLASSES)
    assert bundle.metadata["data"]["last_candle"] == CANDLES["date"].iloc[-1].isoformat()
    assert verify_bundle(saved).ok and verify_bundle(saved).as_dict()["folder"]["sha256"] == bundle.sha256
    assert load_bundle(saved, expected_sha256=bundle.sha256).sha256 == bundle.sha256
    with pytest.raises(PinMismatchError, match="you pinned"):
        load_bundle(saved, expected_sha256="0" * 64)
    windows, _ = prediction_windows(CANDLES, CONFIG, run.data.scaler)
    assert np.allclose(bundle.probabilities(CANDLES), run.model.predict(windows, verbose=0), atol=1e-5)


def test_an_answer_does_not_depend_on_the_other_windows(run, bundle):
    windows = run.data.test.gather(run.data.test.rows[: GOLDEN + 5])
    together = bundle.probabilities(windows)
    for number in (0, 7, GOLDEN - 1, GOLDEN, GOLDEN + 4):
        assert np.array_equal(bundle.probabilities(windows[number : number + 1])[0], together[number])
    assert np.array_equal(bundle.probabilities(windows[::-1])[::-1], together)
    assert bundle.probabilities(windows[:0]).shape == (0, 3)


def test_weight_shapes_equal_those_of_keras():
    for config in (CONFIG, Config(), Config(lstm_units=(5,), dense_units=(), features=["close_change"])):
        layers = build_model(config, compile_model=False).layers
        assert list_weight_shapes(config) == {
            f"{layer.name}.{v.name}": tuple(v.shape) for layer in layers for v in layer.weights
        }


# ---------------------------------------------------------------- saves that must be refused


def test_a_refused_save_leaves_the_old_bundle(run, saved, tmp_path, monkeypatch):
    shutil.copytree(saved, target := tmp_path / "btc")
    before = read_tree(tmp_path)
    broken = build_model(CONFIG)
    broken.layers[1].weights[0].assign(np.full((8, 32), np.inf, "f4"))
    other = SimpleNamespace(**{**vars(run), "config": CONFIG.replace(lstm_units=[8, 5])})
    scaler = SimpleNamespace(**{**vars(run.data), "scaler": replace(run.data.scaler, kind="minmax")})
    for bad, error, fault in [
        (SimpleNamespace(config=CONFIG, model=broken, data=run.data), ModelMismatchError, "expected finite weights"),
        (other, ModelMismatchError, "expected"),
        (
            SimpleNamespace(config=CONFIG, model=run.model, data=scaler),
            BundleError,
            "kind: expected robust, got minmax",
        ),
    ]:
        with pytest.raises(error, match=fault):
            save_bundle(bad, target)
    with pytest.raises(BundleError, match="expected a date with a time zone"):
        save_bundle(run, target, expires=datetime(2030, 1, 1))
    with pytest.raises(ValueError, match="JSON"):
        save_bundle(run, target, notes={"loss": float("nan")})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verified.os, "fsync", full)
    with pytest.raises(SaveError, match="the disk is full") as caught:
        save_bundle(run, target)
    assert caught.value.needed_bytes > 1000 and read_tree(tmp_path) == before


# ---------------------------------------------------------------- changed and forged


def test_changed_bundles_are_refused(saved, tmp_path):
    chance, tried = random.Random(SEED), 0
    for _ in range(150):
        shutil.copytree(saved, tmp_path / "btc")
        if said := faults.mutate(
            tmp_path / "btc", saved, chance, chance.choice([k for k in faults.MUTATIONS if k != "other save"])
        ):
            tried += 1
            with pytest.raises(IntegrityError):
                load_bundle(tmp_path / "btc")
                pytest.fail(f"seed {SEED}: {said}")
            assert not verify_bundle(tmp_path / "btc").ok
        shutil.rmtree(tmp_path / "btc")
    assert tried > 120


def weights_of(bundle) -> dict[str, np.ndarray]:
    return {f"{layer.name}.{v.name}": v.numpy() for layer in bundle.model.layers for v in layer.weights}


def zipped(arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED, twice: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in [*arrays, *([twice] if twice else [])]:
            content = io.BytesIO()
            np.lib.format.write_array(content, arrays[name], allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
    return buffer.getvalue()


class Trap:
    """Unpickling it would set `sys.trapped`."""

    def __reduce__(self):
        return (exec, ("import sys; sys.trapped = True",))


FIRST = "lstm_layer_1_8units.kernel"
WEIGHTS = {
    "missing": (lambda w: zipped({k: v for k, v in w.items() if k != FIRST}), "expected the arrays"),
    "extra": (lambda w: zipped(w | {"extra": np.zeros(1, "f4")}), "expected the arrays"),
    "twice": (lambda w: zipped(w, twice=FIRST), "expected the arrays"),
    "transposed": (lambda w: zipped(w | {FIRST: w[FIRST].T.copy()}), "expected float32 (8, 32), got float32 (32, 8)"),
    "float64": (lambda w: zipped(w | {FIRST: w[FIRST].astype("f8")}), FIRST),
    "float16": (lambda w: zipped(w | {FIRST: w[FIRST].astype("f2")}), "got float16"),
    "big-endian": (lambda w: zipped(w | {FIRST: w[FIRST].astype(">f4")}), "got >f4"),
    "NaN": (
        lambda w: zipped(w | {FIRST: np.full((8, 32), np.nan, "f4")}),
        "expected finite numbers, got 256 that are not",
    ),
    "infinity": (lambda w: zipped(w | {FIRST: np.full((8, 32), -np.inf, "f4")}), "expected finite numbers"),
    "compressed": (lambda w: zipped(w, zipfile.ZIP_DEFLATED), "not compressed"),
    "a bomb": (
        lambda w: zipped(w | {FIRST: np.zeros(3_000_000, "f4")}, zipfile.ZIP_DEFLATED),
        "not compressed, got 12,000,",
    ),
    "pickle": (lambda w: zipped(w | {FIRST: np.array([Trap()], dtype=object)}), "is not a readable .npz file"),
    "no archive": (lambda w: b"\x80\x04N.", "is not a readable .npz file"),
    "swapped": (
        lambda w: zipped(
            w | {FIRST: w["lstm_layer_1_8units.recurrent_kernel"], "lstm_layer_1_8units.recurrent_kernel": w[FIRST]}
        ),
        "golden",
    ),
    "scaled": (lambda w: zipped(w | {"trading_decisions.kernel": -w["trading_decisions.kernel"]}), "golden windows"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_forged_weights_are_refused(name, saved, bundle, tmp_path):
    make, fault = WEIGHTS[name]
    target = forged(saved, tmp_path, "weights.npz", make(weights_of(bundle)))
    with pytest.raises(BundleError) as caught:
        load_bundle(target)
    assert fault in str(caught.value) and not hasattr(sys, "trapped")


def test_a_copy_without_a_change_is_accepted(saved, bundle, tmp_path):
    """Control of the tests above: `forged` itself is not what the loader refuses."""
    copy = load_bundle(forged(saved, tmp_path, "weights.npz", zipped(weights_of(bundle))))
    assert copy.golden_deviation == bundle.golden_deviation


def scaler_with(**changes):
    return lambda b: json.dumps(b.scaler.as_dict() | changes).encode()


def config_with(**changes):
    return lambda b: json.dumps(b.config.as_dict() | changes).encode()


PARTS = {
    "scaler moved": ("scaler.json", scaler_with(center=[0.0] * 8), "scaler: the files say"),
    "scaler of other features": (
        "scaler.json",
        scaler_with(features=list(CONFIG.features[::-1])),
        "features: expected",
    ),
    "scaler of another kind": ("scaler.json", scaler_with(kind="minmax"), "kind: expected robust, got minmax"),
    "scaler wider": ("scaler.json", scaler_with(clip=1e6), "clip: expected 10.0"),
    "scale 0": ("scaler.json", scaler_with(scale=[0.0] * 8), "its scaler is invalid"),
    "scale below 0": ("scaler.json", scaler_with(scale=[-1.0] * 8), "its scaler is invalid"),
    "scaler of 7": ("scaler.json", scaler_with(center=[0.0] * 7), "its scaler is invalid"),
    "scaler of text": ("scaler.json", scaler_with(center=["0"] * 8), "its scaler is invalid"),
    "scaler a list of names": ("scaler.json", lambda b: b'["a", 1]', "its scaler is invalid"),
    "scaler a list": ("scaler.json", lambda b: b"[]", "its scaler is invalid"),
    "scaler NaN": (
        "scaler.json",
        lambda b: json.dumps(b.scaler.as_dict() | {"clip": float("nan")}).encode(),
        "expected finite numbers",
    ),
    "config reordered": ("config.json", config_with(features=list(CONFIG.features[::-1])), "another model"),
    "config other barriers": ("config.json", config_with(long_tp_pct=9.0), "labels: the files say"),
    "config other pair": ("config.json", config_with(pair="DOGE"), "pair: the files say DOGE, the manifest BTCUSDT"),
    "config other timeframe": ("config.json", config_with(timeframe="1d"), "timeframe: the files say"),
    "config giant": ("config.json", config_with(lstm_units=[65_536] * 3), "at most 50,000,000 weights"),
    "config 1e9": ("config.json", config_with(lstm_units=[10**9]), "its settings are invalid"),
    "config unknown": ("config.json", config_with(hook="os.system"), "unknown setting"),
    "config a list": ("config.json", lambda b: b"[1]", "its settings are not names and values"),
    "config twice": ("config.json", lambda b: b'{"seed": 1, "seed": 2}', "occurs twice"),
    "config deep": ("config.json", lambda b: b'{"a":' * 9999, "levels"),
    "golden NaN": (
        "golden.npz",
        lambda b: encode_weights({"windows": np.zeros((16, 12, 8)), "probabilities": np.full((16, 3), np.nan)}),
        "finite",
    ),
    "golden other": (
        "golden.npz",
        lambda b: encode_weights({"windows": np.zeros((16, 12, 8)), "probabilities": np.eye(3)[[0] * 16]}),
        "golden windows",
    ),
    "golden few": (
        "golden.npz",
        lambda b: encode_weights({"windows": np.zeros((0, 12, 8)), "probabilities": np.zeros((0, 3))}),
        "expected float32",
    ),
    "one more": ("run.py", lambda b: b"print()", "expected the files"),
}


@pytest.mark.parametrize("name", PARTS)
def test_forged_parts_are_refused(name, saved, bundle, tmp_path):
    file, make, fault = PARTS[name]
    with pytest.raises(IntegrityError) as caught:
        load_bundle(forged(saved, tmp_path, file, make(bundle)))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", list(CONFIG.features[::-1])),
        ("classes", list(CLASSES[::-1])),
        ("sequence_length", 13),
        ("architecture_sha256", "0" * 64),
        ("labels", {}),
        ("pair", None),
    ],
)
def test_forged_facts_are_refused(name, value, saved, tmp_path):
    with pytest.raises(BundleError, match=f"{name}: the files say"):
        load_bundle(forged(saved, tmp_path, "", facts={name: value}))


@pytest.mark.parametrize("value", ["soon", "2030-01-01", 5, True, [], {}])
def test_an_invalid_expiry_in_the_manifest_is_refused(value, saved, tmp_path):
    with pytest.raises(BundleError, match="expires: expected null or a date with a time zone, got"):
        load_bundle(forged(saved, tmp_path, "", facts={"expires": value}))


@pytest.mark.parametrize("expires", [datetime(2030, 1, 1), "2030-01-01"])
def test_an_expiry_without_a_time_zone_is_not_saved(expires, run, tmp_path):
    with pytest.raises(BundleError, match="expected a date with a time zone, got .*add tzinfo"):
        save_bundle(run, tmp_path / "btc", expires=expires)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [float("nan"), object(), 2**70, "x" * (1 << 20), [[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]
)
def test_notes_that_cannot_be_read_back_are_not_saved(value, run, tmp_path):
    with pytest.raises(BundleError, match="'notes': expected names and plain JSON values"):
        save_bundle(run, tmp_path / "btc", notes={"mine": value})
    assert list(tmp_path.iterdir()) == []


def test_decoded_weights_equal_the_encoded_ones():
    arrays = {"a": np.random.default_rng(0).normal(size=(3, 4)).astype("f4"), "b": np.float32([1])}
    again = decode_weights(encode_weights(arrays), {"a": (3, 4), "b": (1,)}, "x")
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays) and encode_weights(
        arrays
    ) == encode_weights(arrays)


# ---------------------------------------------------------------- decisions


def test_a_decision_equals_that_of_the_trained_model(run, bundle):
    decision = bundle.decide(CANDLES, now=CLOSE)
    windows, _ = prediction_windows(CANDLES, CONFIG, run.data.scaler)
    expected = run.model.predict(windows, verbose=0)[-1]
    assert decision.action == CLASSES[int(expected.argmax())]
    assert list(decision.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert decision.as_dict()["reason"] and "highest probability" in decision._repr_html_()


def frame(**changes):
    return CANDLES.assign(**changes)


FILLED = fill_gaps(CANDLES, 60, "1h")
APART = CANDLES[(CANDLES.index < 1560) | (CANDLES.index % 2 == 1)].reset_index(drop=True)
FAR = pd.Timestamp("2500-01-01", tz="UTC").as_unit("s")
INPUTS = {
    "not closed": (CANDLES, CLOSE - pd.Timedelta("3s"), "is not closed yet"),
    "stale": (CANDLES, CLOSE + pd.Timedelta("61min"), "is too old, 1.0 candles since its close"),
    "years later": (CANDLES, EXPIRES - pd.Timedelta(days=1), "is too old"),
    "expired": (CANDLES, EXPIRES + pd.Timedelta("1s"), "expired at 2030-01-01"),
    "naive now": (CANDLES, "2024-03-07", "time zone"),
    "no date": (CANDLES, "soon", "expected a date for now"),
    "NaT": (CANDLES, pd.NaT, "time zone"),
    "the end of time": (CANDLES, datetime.max.replace(tzinfo=UTC), "expired at 2030-01-01"),
    "the beginning of time": (CANDLES, datetime.min.replace(tzinfo=UTC), "says 0001-01-01"),
    "a frame of lists": ([[1, 2]], CLOSE, "expected rows of [ms, open, high, low, close, volume], got [1, 2] in row 0"),
    "None": (None, CLOSE, "expected rows of"),
    "empty": (CANDLES[:0], CLOSE, "expected at least one candle"),
    "short": (CANDLES[-100:].reset_index(drop=True), CLOSE, ""),
    "no volume": (CANDLES.drop(columns="volume"), CLOSE, "no column volume"),
    "text": (frame(close="1,234.5"), CLOSE, "expected close as a number in each row, got the text"),
    "reversed": (CANDLES[::-1].reset_index(drop=True), CLOSE, ""),
    "naive dates": (frame(date=CANDLES["date"].dt.tz_localize(None)), CLOSE, "UTC"),
    "zero price": (frame(close=CANDLES["close"].where(CANDLES.index != 1599, 0.0)), CLOSE, ""),
    "low above high": (frame(low=CANDLES["high"] * 2), CLOSE, ""),
    "doubled row": (pd.concat([CANDLES, CANDLES[-1:]], ignore_index=True), CLOSE, ""),
    "another timeframe": (synthetic_candles(1600, timeframe="30m"), CLOSE, ""),
    "the year 2500": (
        frame(date=CANDLES["date"].dt.as_unit("s").where(CANDLES.index != 1599, FAR)),
        CLOSE,
        "1678 to 2261",
    ),
    "two hours apart, at the end": (APART, CLOSE, "120 minutes apart"),
    "two hours apart, and filled": (fill_gaps(APART, 60, "1h"), CLOSE, "120 minutes apart"),
    "filled, and a gap since": (
        FILLED.drop(index=range(1585, 1596)).reset_index(drop=True),
        CLOSE,
        "does not complete a window",
    ),
    "an age that is none": (CANDLES, CLOSE, "expected max_age_candles", "1"),
    "a gap": (CANDLES.drop(index=range(1580, 1590)).reset_index(drop=True), CLOSE, "does not complete a window"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_invalid_candles_give_no_trade(name, bundle):
    candles, now, reason, *age = INPUTS[name]
    decision = bundle.decide(candles, now, *age)
    assert (
        decision.action == NO_TRADE and reason in decision.reason and decision.reason and decision.probabilities is None
    ), str(decision)


def test_a_frame_that_was_filled_in_part_is_filled_anew(bundle):
    mixed = pd.concat([FILLED[:1590], CANDLES[1590:]], ignore_index=True)
    assert bundle.decide(mixed, CLOSE) == bundle.decide(CANDLES, CLOSE)


@pytest.mark.parametrize(
    "answer",
    [
        [np.nan] * 3,
        [np.nan, 0.5, 0.5],
        [np.inf, 0, 0],
        [0.5, 0.6, 0.5],
        [-0.5, 1.0, 0.5],
        [0, 0, 0],
        [0.4, 0.4, 0.2],
        tf.errors.ResourceExhaustedError,
    ],
)
def test_invalid_network_output_gives_no_trade(answer, bundle, monkeypatch):
    def said(windows):
        if isinstance(answer, type):
            raise answer(None, None, "OOM when allocating tensor")
        return np.tile(np.float32(answer), (len(windows), 1))

    replace_answers(monkeypatch, bundle.model, said)
    decision = bundle.decide(CANDLES, now=CLOSE)
    assert decision.action == NO_TRADE and decision.reason


def test_weights_that_become_invalid_in_memory_give_no_trade(saved):
    chance, bad = random.Random(SEED), load_bundle(saved)
    for variable in bad.model.weights:
        good = variable.numpy().copy()
        spoilt = good.copy().ravel()
        spoilt[chance.randrange(spoilt.size)] = chance.choice([np.nan, np.inf])
        variable.assign(spoilt.reshape(good.shape))
        decision = bad.decide(CANDLES, now=CLOSE)
        assert decision.action == NO_TRADE and "not finite" in decision.reason
        variable.assign(good)
    assert bad.decide(CANDLES, now=CLOSE).action in CLASSES


@pytest.mark.parametrize("shape", [(12, 8), (1, 8, 12), (1, 11, 8), (1, 12, 7), (1, 12, 9), (1, 1, 12, 8)])
def test_windows_of_another_shape_are_refused(shape, bundle):
    with pytest.raises(CryptoLSTMError, match="expected float windows of the shape"):
        bundle.probabilities(np.zeros(shape, "f4"))


def test_windows_that_are_not_finite_are_refused(bundle):
    with pytest.raises(CryptoLSTMError, match="got 1 values that are not"):
        bundle.probabilities(np.where(np.arange(96).reshape(1, 12, 8) == 5, np.nan, 0.0))
    for large in (1e39, -1e300):  # finite, but not as float32: the network would saturate and answer
        with pytest.raises(CryptoLSTMError, match="got 1 values that are not"):
            bundle.probabilities(np.where(np.arange(96).reshape(1, 12, 8) == 5, large, 0.0))
    with pytest.raises(CryptoLSTMError, match="expected float windows"):
        bundle.probabilities(np.zeros((1, 12, 8), dtype=object))


def test_loading_restores_the_global_dtype_policy(saved):
    before = keras.config.dtype_policy().name
    keras.config.set_dtype_policy("mixed_float16")
    try:
        assert load_bundle(saved).model.layers[1].dtype_policy.name == "float32"
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy(before)


def test_folders_without_a_bundle_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_bundle(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IntegrityError, match="there is no manifest"):
        load_bundle(tmp_path / "empty")
    assert not verify_bundle(tmp_path / "empty").ok
    assert not list((tmp_path / "empty").iterdir())


def test_additional_columns_do_not_change_a_decision(bundle):
    expected = bundle.decide(CANDLES, now=CLOSE)
    for name in ("segment", "signal"):
        assert bundle.decide(CANDLES.assign(**{name: 0}), now=CLOSE) == expected
    assert bundle.decide(FILLED, now=CLOSE) == expected
