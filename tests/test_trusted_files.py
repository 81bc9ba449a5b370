"""Sealed files are read as strictly as they were written, and no file makes the reader work without limit."""

import datetime as dt
import io
import json
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.answers import replace_answers

from benchmarks.reliability.golden import change_weights
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.data.scaler import Scaler, ScalerError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference.bundle import (
    TOLERANCE,
    BundleError,
    _choose_tolerance,
    encode_weights,
    load_bundle,
    save_bundle,
)
from crypto_lstm.inference.onnx_file import (
    OnnxFileError,
    decode_onnx_file,
    encode_onnx_file,
    export_onnx,
    make_probe_rows,
)
from crypto_lstm.inference.predictor import Predictor
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.storage.arrays import decode_npz
from crypto_lstm.storage.manifest import (
    MANIFEST,
    IntegrityError,
    SchemaVersionError,
    describe_file,
    encode_manifest,
    parse_json,
)

CONFIG = Config(
    timeframe="1h", sequence_length=24, future_window=24, lstm_units=(16, 8), dense_units=(8,), batch_size=64
)
SECONDS = 2.0


@pytest.fixture(scope="module")
def run():
    data = prepare(synthetic_candles(1600, seed=3, timeframe="1h"), CONFIG)
    model = build_model(CONFIG)
    model.fit(data.train, epochs=1, verbose=0)
    return SimpleNamespace(config=CONFIG, model=model, data=data)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "btc"
    save_bundle(run, path)
    return path


@pytest.fixture(scope="module")
def bundle(saved):
    return load_bundle(saved)


@pytest.fixture(scope="module")
def onnx_file(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "model.onnx"
    export_onnx(bundle, path)
    return path


def seal(folder: Path, **changes) -> Path:
    """Write a manifest that fits the files of the folder."""
    document = json.loads((folder / MANIFEST).read_text())
    document = {name: value for name, value in document.items() if name != "seal"}
    document["files"] = {name: describe_file(folder / name) for name in document["files"]}
    (folder / MANIFEST).write_bytes(encode_manifest(document | changes))
    return folder


def forge(saved: Path, place: Path, files: dict[str, bytes] | None = None, facts: dict | None = None) -> Path:
    target = place / "btc"
    shutil.copytree(saved, target)
    for name, content in (files or {}).items():
        (target / name).write_bytes(content)
    old = json.loads((target / MANIFEST).read_text())["facts"]
    return seal(target, facts=old | (facts or {}))


def swap_centers(scaler: Scaler) -> dict:
    values = scaler.as_dict()
    values["center"][0], values["center"][1] = values["center"][1], values["center"][0]
    return values


# ---------------------------------------------------------------- golden windows


def test_swapped_centers_are_noticed_in_a_bundle_whose_parts_agree(bundle, saved, tmp_path):
    values = swap_centers(bundle.scaler)
    forged = forge(saved, tmp_path, {"scaler.json": json.dumps(values).encode()}, {"scaler": values})
    with pytest.raises(BundleError, match="its scaler scales .* otherwise than when it was saved"):
        load_bundle(forged)


def test_swapped_centers_are_noticed_in_an_onnx_file(bundle, onnx_file, tmp_path):
    facts, config, arrays = decode_onnx_file(onnx_file.read_bytes(), onnx_file)
    path = tmp_path / "model.onnx"
    path.write_bytes(encode_onnx_file(config, arrays, facts))
    assert Predictor.load(path).golden_deviation < 1e-5
    path.write_bytes(encode_onnx_file(config, arrays, facts | {"scaler": swap_centers(bundle.scaler)}))
    with pytest.raises(OnnxFileError, match="its scaler scales .* otherwise than when it was saved"):
        Predictor.load(path)


def test_every_large_change_of_one_weight_is_seen(bundle):
    for windows in (bundle.golden_windows, bundle.golden_windows[::2]):  # of a bundle, and of an ONNX file
        assert change_weights(bundle.model, windows, 125).max(axis=1).min() > TOLERANCE


def test_every_large_change_of_one_weight_is_seen_in_the_default_network():
    config = Config(sequence_length=24)  # 128, 64 and 32 units
    windows = np.repeat(make_probe_rows(config)[:, None], 24, axis=1)
    changes = change_weights(build_model(config), windows, 50).max(axis=1)
    assert min(changes) > TOLERANCE and min(changes) < 1e-3  # the tolerance of earlier versions


def test_a_change_of_one_weight_is_refused(bundle, saved, tmp_path):
    weights = {f"{layer.name}.{v.name}": v.numpy() for layer in bundle.model.layers for v in layer.weights}
    weights["lstm_layer_1_16units.recurrent_kernel"][3, 5] += 1
    with pytest.raises(BundleError, match="the golden windows: .* within 0.0001"):
        load_bundle(forge(saved, tmp_path, {"weights.npz": encode_weights(weights)}))


@pytest.mark.parametrize(("gain", "tolerance"), [(1, TOLERANCE), (1000, 6e-4), (10**6, 1e-3)])
def test_a_network_that_magnifies_rounding_has_a_larger_tolerance(gain, tolerance, monkeypatch):
    def answer(windows):
        rise = 1 / (1 + np.exp(-gain * (windows[:, -1, :1].astype(float) - 1.0)))
        return np.concatenate([rise, 1 - rise, 0 * rise], axis=1)

    windows = np.ones((16, 2, 1), np.float32)  # one bit more is 1.2e-7
    model = object()
    replace_answers(monkeypatch, model, answer)
    assert _choose_tolerance(model, windows, answer(windows)) == pytest.approx(tolerance, rel=0.01)


def test_a_bundle_of_an_earlier_version_is_read(run, bundle, saved, tmp_path):
    windows = run.data.test.gather(run.data.test.rows[:16])
    golden = encode_weights({"windows": windows, "probabilities": run.model.predict(windows, verbose=0)})
    old = load_bundle(forge(saved, tmp_path, {"golden.npz": golden}))
    assert old.golden_windows.shape == (16, 24, 8) and old.golden_deviation < 1e-5
    export_onnx(old, tmp_path / "model.onnx")
    facts, config, arrays = decode_onnx_file((tmp_path / "model.onnx").read_bytes(), "model.onnx")
    del facts["golden"]["raw"]  # as an earlier version exported it
    (tmp_path / "old.onnx").write_bytes(encode_onnx_file(config, arrays, facts))
    assert Predictor.load(tmp_path / "old.onnx").golden_deviation < 1e-5


# ---------------------------------------------------------------- values of another type


@pytest.mark.parametrize("schema", [True, 1.0, "1", None, [1]])
def test_another_kind_of_schema_is_refused(schema, saved, tmp_path):
    target = forge(saved, tmp_path)
    with pytest.raises(SchemaVersionError, match="expected schema 1, got"):
        load_bundle(seal(target, schema=schema))


@pytest.mark.parametrize("schema", [True, 1.0])
def test_another_kind_of_schema_in_an_onnx_file_is_refused(schema, onnx_file, monkeypatch):
    facts, config, arrays = decode_onnx_file(onnx_file.read_bytes(), onnx_file)
    monkeypatch.setattr("crypto_lstm.inference.onnx_file.SCHEMA", schema)
    data = encode_onnx_file(config, arrays, facts)
    monkeypatch.undo()
    with pytest.raises(SchemaVersionError):
        decode_onnx_file(data, "model.onnx")


@pytest.mark.parametrize(
    "facts", [{"sequence_length": 24.0}, {"sequence_length": "24"}, {"features": [1] * 8}, {"labels": {"tie": True}}]
)
def test_facts_of_another_type_are_refused(facts, saved, tmp_path):
    with pytest.raises(BundleError, match="the files say"):
        load_bundle(forge(saved, tmp_path, facts=facts))


SCALER = Scaler("robust", ("close_change", "volume_change"), (0.1, 0.2), (2.0, 3.0), 10.0)
WRONG_SCALERS = [
    *({"clip": value} for value in (0, -1, True, "10", None, [10])),
    *({"scale": value} for value in ([2.0, -3.0], [2.0, 0], [2.0, True], [2.0, "3"], "23", {"a": 1}, [2.0])),
    *({"center": value} for value in ([0.1, None], [0.1, False], ["0.1", 0.2], 0.1, [[0.1], [0.2]])),
    *({"features": value} for value in ([1, 2], ["close_change"] * 2, "ab", None, [["a"], ["b"]])),
    *({"kind": value} for value in (1, None, True)),
    {"more": 1},
]


@pytest.mark.parametrize("change", WRONG_SCALERS)
def test_a_file_with_an_invalid_scaler_is_refused(change, tmp_path):
    path = tmp_path / "scaler.json"
    path.write_text(json.dumps(SCALER.as_dict() | change))
    with pytest.raises(ScalerError, match="can't read a scaler"):
        Scaler.load(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "null", "[" * 100_000, '{"clip": 1, "clip": 1}', "\ufeff{}", '{"clip": NaN}', '{"clip": 1e999}'),
        json.dumps(SCALER.as_dict()).replace("10.0", "1" * 5000),
        json.dumps(SCALER.as_dict()).replace('{"kind"', '{"kind": "robust", "kind"'),
    ],
)
def test_a_file_that_is_no_scaler_is_refused(text, tmp_path):
    path = tmp_path / "scaler.json"
    path.write_text(text)
    for place in (path, tmp_path, tmp_path / "none.json", "a\0b"):
        with pytest.raises(ScalerError, match="can't read a scaler"):
            Scaler.load(place)


# ---------------------------------------------------------------- models that differ from their configuration


def build_with(policy: str = "float32", **changes) -> keras.Model:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return build_model(CONFIG.replace(**changes))
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("model", "config", "fault"),
    [
        (lambda: build_with("mixed_bfloat16"), CONFIG, "expected dtype policy float32, got mixed_bfloat16"),
        (lambda: build_with("mixed_float16"), CONFIG, "expected dtype policy float32, got mixed_float16"),
        (
            lambda: build_with("mixed_bfloat16"),
            CONFIG.replace(mixed_precision=True),
            "expected dtype policy float32 or mixed_float16, got mixed_bfloat16",
        ),
        (lambda: build_with(dropout_rate=0.1), CONFIG, "dropout_1: expected dropout 0.3, got 0.1"),
        (lambda: build_with(recurrent_dropout_rate=0.2), CONFIG, "expected recurrent dropout 0.3, got 0.2"),
        (lambda: build_with(sequence_length=36), CONFIG, "input shape: expected"),
    ],
)
def test_a_model_that_differs_from_its_configuration_is_refused(model, config, fault, tmp_path):
    built = model()
    built.save(tmp_path / "other.keras")
    with pytest.raises(ModelMismatchError, match=fault):
        load_model(tmp_path / "other.keras", config)
    with pytest.raises(ModelMismatchError, match=fault):
        save_model(built, tmp_path / "mine", config=config)


def test_a_model_of_its_configuration_is_read(tmp_path):
    for policy in ("float32", "mixed_float16"):
        path = tmp_path / f"{policy}.keras"
        build_with(policy).save(path)
        assert load_model(path, CONFIG.replace(mixed_precision=True)).output_shape == (None, 3)
    save_model(build_with(dropout_rate=0.1), tmp_path / "own", config=CONFIG.replace(dropout_rate=0.1))
    assert load_model(tmp_path / "own").output_shape == (None, 3)


# ---------------------------------------------------------------- sizes and work


def npz_with_header(names: list[str], shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(1000000, 1000000, 1000000)", f"({10**30},)", f"({10**30}, 0)"])
def test_a_header_that_promises_too_many_rows_is_refused(shape, saved, tmp_path):
    with pytest.raises(IntegrityError):
        decode_npz(npz_with_header(["a"], shape), "arrays.npz")
    names = [name.removesuffix(".npy") for name in zipfile.ZipFile(saved / "weights.npz").namelist()]
    with pytest.raises(BundleError):
        load_bundle(forge(saved, tmp_path, {"weights.npz": npz_with_header(names, shape)}))


def field(number: int, content: bytes) -> bytes:
    size, encoded = len(content), bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*encoded, size]) + content


def facts_of(text: bytes) -> bytes:
    return field(14, field(1, b"crypto_lstm") + field(2, text))


HUGE_FILES = {
    "tiny fields": lambda: b"\x08\x01" * 90_000_000,
    "tiny fields in many graphs": lambda: field(7, b"\x08\x01" * 9_000) * 9_000,
    "tiny fields in many tensors": lambda: field(7, field(5, b"\x40\x01" * 9_000) * 9_000),
    "brackets": lambda: facts_of(b"[" * 15_000_000 + b"]" * 15_000_000),
    "pairs of brackets": lambda: facts_of(b"[" + b"[]," * 15_000_000 + b"[]]"),
    "numbers": lambda: facts_of(b"[" + b"1," * 30_000_000 + b"1]"),
    "texts": lambda: facts_of(b"[" + b'"",' * 20_000_000 + b'""]'),
    "one long text": lambda: facts_of(b'["' + b"[" * 30_000_000 + b'"]'),
}


@pytest.mark.parametrize("name", HUGE_FILES)
def test_a_huge_onnx_file_is_refused_quickly(name):
    data = HUGE_FILES[name]()
    start = time.process_time()
    with pytest.raises(IntegrityError):
        decode_onnx_file(data, "model.onnx")
    assert time.process_time() - start < SECONDS


def test_json_of_a_million_values_is_still_read():
    text = json.dumps(list(range(500_000))).encode()
    assert len(parse_json(text, "values.json")) == 500_000


# ---------------------------------------------------------------- expiry


class NoOffset(dt.tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, moment):
        return None


class Raising(dt.tzinfo):
    """A time zone that fails."""

    def utcoffset(self, moment):
        raise RuntimeError("no zone data")


EAST, WEST = (dt.timezone(dt.timedelta(hours=hours)) for hours in (14, -12))
WRONG_EXPIRY = [
    *(dt.datetime(1, 1, 1, tzinfo=EAST), dt.datetime.max.replace(tzinfo=WEST)),
    *(dt.datetime(2030, 1, 1, tzinfo=NoOffset()), dt.datetime(2030, 1, 1, tzinfo=Raising())),
    *(dt.datetime(2030, 1, 1), dt.date(2030, 1, 1), "2030-01-01T00:00+00:00", 5),
]


@pytest.mark.parametrize("expires", WRONG_EXPIRY)
def test_an_expiry_that_is_no_moment_is_not_written(expires, run, bundle, tmp_path):
    with pytest.raises(BundleError, match="expected a date with a time zone"):
        save_bundle(run, tmp_path / "btc", expires=expires)
    with pytest.raises(ConfigError, match="expires must"):
        export_onnx(bundle, tmp_path / "model.onnx", expires=expires)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2030-01-01\n+00:00", "\x1b[2J"]
)
def test_an_expiry_outside_the_calendar_is_not_read(text, saved, onnx_file, tmp_path):
    with pytest.raises(BundleError, match="expires: expected null or a date"):
        load_bundle(forge(saved, tmp_path, facts={"expires": text}))
    facts, config, arrays = decode_onnx_file(onnx_file.read_bytes(), onnx_file)
    path = tmp_path / "model.onnx"
    path.write_bytes(encode_onnx_file(config, arrays, facts | {"expires": text}))
    with pytest.raises(OnnxFileError, match="expires: expected null or a date"):
        Predictor.load(path)
