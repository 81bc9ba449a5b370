"""Model files: round trips in three formats; damaged files, foreign files, and files at the target path."""

from __future__ import annotations

import errno
import json
import re
import time
from unittest import mock

import keras
import numpy as np
import pytest
from support import forked

from crypto_lstm import persistence
from crypto_lstm.architecture import build_model, layer_plan
from crypto_lstm.callbacks import save_checkpoint
from crypto_lstm.config import Config
from crypto_lstm.persistence import FORMATS, ModelFormatError, load_model, read_metadata, save_model
from crypto_lstm.saving.compatibility import ModelMismatchError, validate_model
from crypto_lstm.saving.model_file import load_report
from crypto_lstm.saving.model_schema import ModelFileError, ModelIntegrityError, UnsafeModelError
from crypto_lstm.storage.atomic import SaveError, sha256_file
from crypto_lstm.storage.manifest import IntegrityError, PinMismatchError, SchemaVersionError, encode_manifest
from crypto_lstm.storage.verified import manifest_path
from crypto_lstm.utils.errors import CryptoLSTMError

CONFIG = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,))
RNG = np.random.default_rng(0)
WINDOWS = RNG.normal(size=(16, 12, 8)).astype("float32")
LABELS = np.eye(3, dtype="float32")[np.arange(16) % 3]


@pytest.fixture(scope="module")
def model():
    """A small network after two epochs: its weights and its optimizer have moved."""
    trained = build_model(CONFIG)
    trained.run_eagerly = True  # spares the tests the tracing of graphs, which takes longer than they do
    trained.fit(WINDOWS, LABELS, epochs=2, verbose=0)
    return trained


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The network in each format, in folders of their own."""
    folder = tmp_path_factory.mktemp("saved")
    given = {"config": CONFIG, "metadata": {"note": "żółw"}}
    return {name: save_model(model, folder / name / "model", name, **given) for name in FORMATS}


# the layer plan and the formats


def test_the_layer_plan_counts_the_weights_that_keras_builds():
    narrow = CONFIG.replace(features=["close_change"], lstm_units=[3])
    for config in (Config(), CONFIG, CONFIG.replace(dense_units=[]), narrow):
        planned = [layer.parameters for layer in layer_plan(config)]
        assert planned == [layer.count_params() for layer in build_model(config).layers]


@pytest.mark.parametrize("format", FORMATS)
def test_a_save_writes_summary_and_metadata(saved, model, format):
    files = saved[format]
    suffix = FORMATS[format]
    folder = files.model if format == "saved_model" else files.model.parent
    assert files.model.name == "model" + suffix
    assert (files.summary, files.metadata) == (folder / "model_summary.txt", folder / "model_metadata.json")
    assert "trading_decisions" in files.summary.read_text(encoding="utf-8")
    facts = read_metadata(files.model)
    assert (facts["format"], facts["parameters"], facts["metadata"]) == (format, model.count_params(), {"note": "żółw"})
    assert Config.from_dict(facts["config"]) == CONFIG


def test_an_unknown_format_is_refused_before_anything_is_written(model, tmp_path):
    with pytest.raises(ModelFormatError, match="keras, h5, saved_model, got 'onnx'"):
        save_model(model, tmp_path / "model", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_loaded_model_has_the_same_bits_and_trains_on(saved, model, format):
    loaded = load_model(saved[format])
    loaded.run_eagerly = True
    assert loaded.predict(WINDOWS, verbose=0).tobytes() == model.predict(WINDOWS, verbose=0).tobytes()
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    pairs = zip(loaded.optimizer.variables, model.optimizer.variables, strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    assert np.isfinite(loaded.fit(WINDOWS, LABELS, epochs=1, verbose=0).history["loss"]).all()


def test_the_content_decides_the_format(saved, model, tmp_path):
    for format in ("keras", "h5"):
        odd = tmp_path / f"{format} without its name.dat"
        odd.write_bytes(saved[format].model.read_bytes())
        assert load_model(odd, config=CONFIG).count_params() == model.count_params()
        assert load_model(saved[format].model.with_suffix("")).count_params() == model.count_params()


def test_a_mismatch_lists_all_differences(saved, model):
    validate_model(model, CONFIG)
    with pytest.raises(ModelMismatchError) as caught:
        load_model(saved["keras"], config=CONFIG.replace(sequence_length=24, lstm_units=[8, 5]))
    text = str(caught.value)
    assert "input shape: expected (None, 24, 8), got (None, 12, 8)" in text
    assert "layer lstm_layer_2_5units: expected units 5, got 4" in text
    assert re.search(r"parameters: expected [\d,]+, got 787", text)


def test_changed_metadata_is_refused(saved, tmp_path, model):
    files = save_model(model, tmp_path / "model", config=CONFIG)
    facts = read_metadata(files.model)
    facts["config"]["sequence_length"] = 24
    files.metadata.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ModelIntegrityError, match="differs from the manifest of model.keras"):
        load_model(files)
    manifest_path(files.model).unlink()  # now the copy is the only metadata
    with pytest.raises(ModelMismatchError, match="expected \\(None, 24, 8\\)"):
        load_model(files)


# places


@pytest.mark.parametrize("format", FORMATS)
def test_folders_keep_their_names_whatever_their_suffix(model, tmp_path, format):
    folder = tmp_path / "runs.keras" / "a.h5" / "żółw 亀"
    files = save_model(model, folder / "model.v2", format)
    assert files.model == folder / f"model.v2{FORMATS[format]}"
    assert load_model(files).count_params() == model.count_params()
    assert [p.name for p in (tmp_path / "runs.keras").iterdir()] == ["a.h5"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_path_that_cannot_be_written_is_an_error(model, tmp_path, format):
    """A path below a file stands for a read-only folder, in which root could write."""
    (tmp_path / "a file").write_text("x")
    with pytest.raises(ModelFileError, match="was not saved") as caught:
        save_model(model, tmp_path / "a file" / "model", format)
    assert isinstance(caught.value, OSError) and isinstance(caught.value, CryptoLSTMError)


def test_a_save_replaces_no_foreign_folder(model, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").write_text("years of work")
    (tmp_path / "model.keras").mkdir()
    for path, format in [("results", "saved_model"), ("model", "keras")]:
        with pytest.raises(ModelFileError, match="choose a"):
            save_model(model, tmp_path / path, format)
    assert (tmp_path / "results" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "model.keras").is_dir()


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_the_old_model(model, tmp_path, format):
    files = save_model(model, tmp_path / "model", format)
    before = {p: sha256_file(p) for p in tmp_path.rglob("*") if p.is_file()}

    def full(model, path, format):
        (path / "half" if path.is_dir() else path).write_bytes(b"half a mod")
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        mock.patch("crypto_lstm.persistence._write_model", side_effect=full),
        pytest.raises(ModelFileError, match="No space left on device"),
    ):
        save_model(model, tmp_path / "model", format)
    assert {p: sha256_file(p) for p in tmp_path.rglob("*") if p.is_file()} == before
    load_model(files)


def test_a_stop_between_model_and_copies_loses_nothing(tmp_path):
    """Metadata and summary are in the manifest. Older copies state another hash and are ignored."""
    first, second = (build_model(CONFIG.replace(seed=seed)) for seed in (1, 2))
    files = save_model(first, tmp_path / "model", metadata={"number": 1})
    stop = mock.patch("crypto_lstm.persistence._write_sidecars", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(KeyboardInterrupt):
        save_model(second, tmp_path / "model", metadata={"number": 2})
    loaded = load_model(files)
    assert np.array_equal(loaded.get_weights()[0], second.get_weights()[0])
    assert load_report(loaded).metadata["metadata"] == read_metadata(files)["metadata"] == {"number": 2}
    assert json.loads(files.metadata.read_text())["metadata"] == {"number": 1}
    save_model(second, tmp_path / "model", metadata={"number": 3})
    assert json.loads(files.metadata.read_text())["metadata"] == {"number": 3}


def test_a_model_is_saved_although_its_copies_cannot_be_written(tmp_path, monkeypatch, caplog):
    def full(path, value):
        raise SaveError(path, "it was not saved, the disk is full", "make room")

    model = build_model(CONFIG)
    save_model(model, tmp_path / "model", format="h5", config=CONFIG)
    model.layers[-1].bias.assign([0.1, 0.2, 0.3])
    monkeypatch.setattr(persistence, "write_json", full)
    saved = save_model(model, tmp_path / "model", format="h5", config=CONFIG)
    assert "model.h5 is saved, a copy of its summary or metadata beside it is not" in caplog.text
    assert "the disk is full" in caplog.text
    loaded = load_model(saved)
    assert np.array_equal(loaded.layers[-1].bias.numpy(), np.float32([0.1, 0.2, 0.3]))
    assert load_report(loaded).verified


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    broken = build_model(CONFIG)
    broken.get_layer("trading_decisions").set_weights([np.full((4, 3), np.inf), np.zeros(3)])
    with pytest.raises(ModelMismatchError, match="trading_decisions/kernel: expected finite weights, got 12"):
        save_model(broken, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_save_as_h5_leaves_the_compile_settings(model, tmp_path):
    """Keras 3.15.1 removes the optimizer from the compile settings; a .keras saved later would load with RMSprop."""
    save_model(model, tmp_path / "first", "h5")
    assert type(load_model(save_model(model, tmp_path / "second")).optimizer).__name__ == "Adam"


# damaged and foreign files


def cut_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = [cut_half, flip_bit, lambda _: b"", lambda _: b"<html>404", lambda content: content[:8]]


@pytest.mark.parametrize("format", ["keras", "h5"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_its_path(saved, tmp_path, format, damage):
    good = saved[format]
    file = tmp_path / good.model.name
    file.write_bytes(damage(good.model.read_bytes()))
    (tmp_path / good.metadata.name).write_bytes(good.metadata.read_bytes())
    with pytest.raises(ModelFileError, match=re.escape(str(file))):
        load_model(file)
    if damage is not flip_bit:  # without the metadata a flipped bit in HDF5 can't be found
        (tmp_path / good.metadata.name).unlink()
        with pytest.raises(ModelFileError, match=re.escape(str(file))):
            load_model(file)


def test_a_damaged_saved_model_is_refused(model, tmp_path):
    files = save_model(model, tmp_path / "model", "saved_model")
    inner = files.model / "assets.extra" / "model.keras"
    inner.write_bytes(flip_bit(inner.read_bytes()))
    with pytest.raises(ModelFileError, match="assets.extra/model.keras: expected sha256 "):
        load_model(files)


def test_folders_without_a_model_of_this_package_are_refused(model, tmp_path):
    model.export(tmp_path / "foreign", verbose=False)
    with pytest.raises(ModelFileError, match="another program wrote.*rebuild the network with build_model"):
        load_model(tmp_path / "foreign")
    with pytest.raises(ModelFileError, match="holds no model .it holds foreign"):
        load_model(tmp_path)
    with pytest.raises(ModelFileError, match="there is no such file"):
        load_model(tmp_path / "nothing")


def test_metadata_that_is_not_json_is_refused(model, tmp_path):
    files = save_model(model, tmp_path / "model")
    files.metadata.write_text("{", encoding="utf-8")
    with pytest.raises(ModelFileError, match="is not valid JSON"):
        load_model(files)
    files.metadata.unlink()
    assert load_model(files).count_params() == model.count_params()


def test_code_in_a_file_does_not_run(tmp_path):
    import keras

    network = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x + 1)])
    for name in ("model.keras", "model.h5"):
        network.save(tmp_path / name)
        fault = "layer 1: expected InputLayer first, then LSTM, Dense, Dropout; got 'Lambda'"
        with pytest.raises(ModelFileError, match=fault):
            load_model(tmp_path / name)


def test_a_mixed_precision_model_loads_in_another_process(tmp_path):
    """A SavedModel of this package holds a `.keras` file, which is read."""
    script = """
import sys, keras, numpy as np
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.persistence import save_model
keras.config.set_dtype_policy("mixed_float16")
config = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), mixed_precision=True)
model = build_model(config)
model.run_eagerly = True
model.fit(np.ones((8, 12, 8)), np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]], verbose=0)
np.save(sys.argv[2], model.predict(np.ones((2, 12, 8)), verbose=0))
save_model(model, sys.argv[1], format="saved_model", config=config)
"""
    forked.run(script, tmp_path / "mixed", tmp_path / "outputs.npy").check_returncode()
    model = load_model(tmp_path / "mixed")
    model.run_eagerly = True
    assert np.array_equal(model.predict(np.ones((2, 12, 8)), verbose=0), np.load(tmp_path / "outputs.npy"))
    assert type(model.optimizer).__name__ == "LossScaleOptimizer" and int(model.optimizer.iterations.numpy()) == 1
    assert keras.config.dtype_policy().name == "float32"


def test_a_model_that_plain_keras_wrote_untrained_loads(tmp_path, caplog):
    config = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,))
    build_model(config).save(tmp_path / "plain.keras")
    model = load_model(tmp_path / "plain.keras", config=config)
    assert model.compiled and "optimizer starts with a new state" in caplog.text


def test_a_checkpoint_loads_and_is_verified(model, tmp_path):
    """Its manifest contains an epoch and a metric, and there is no metadata file beside it."""
    save_checkpoint(model, tmp_path / "best.keras", {"epoch": 3, "val_accuracy": 0.5})
    loaded = load_model(tmp_path / "best.keras", config=CONFIG)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))
    assert load_report(loaded).verified and load_report(loaded).metadata["epoch"] == 3


@pytest.mark.parametrize("name", ["btc_metadata.json", "btc_summary.txt", "btc.keras.manifest.json"])
def test_a_save_replaces_no_foreign_file_beside_the_model(name, model, tmp_path):
    (tmp_path / name).write_text("mine: trades of 2024")
    with pytest.raises(ModelFileError, match=f"{name} beside it was not written by this package, .*; move it away"):
        save_model(model, tmp_path / "btc", config=CONFIG)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine: trades of 2024")]
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ModelFileError, match=name):
        save_model(model, tmp_path / "btc", config=CONFIG)
    (tmp_path / name).rmdir()
    for _ in range(2):
        save_model(model, tmp_path / "btc", config=CONFIG)
    assert load_model(tmp_path / "btc.keras", CONFIG)


def test_copies_of_an_earlier_save_of_the_same_bytes_are_ignored(model, tmp_path, monkeypatch):
    path = save_model(model, tmp_path / "btc", "h5", config=CONFIG).model
    old = (tmp_path / "btc_metadata.json").read_bytes()
    facts = json.loads(old)
    monkeypatch.setattr(persistence, "_write_sidecars", lambda *_: None)  # the process ends before them
    time.sleep(1.1)  # the manifest stores the time in seconds
    assert save_model(model, tmp_path / "btc", "h5", config=CONFIG, metadata={"run": 2}).sha256 == facts["sha256"]
    assert (tmp_path / "btc_metadata.json").read_bytes() == old
    load_model(path, CONFIG)
    assert read_metadata(path)["metadata"] == {"run": 2}


@pytest.mark.parametrize(("format", "kind"), [*((format, "per_sample") for format in FORMATS), ("keras", "per_batch")])
def test_a_loaded_model_trains_on_with_the_dropout_of_its_configuration(format, kind, tmp_path):
    config = CONFIG.replace(recurrent_dropout=kind)
    first = build_model(config)
    saved = save_model(first, tmp_path / "model", format, config=config)
    for loaded in (load_model(saved), load_model(saved, config)):
        assert [layer.kind for layer in loaded.layers if hasattr(layer, "cell")] == [kind] * 2
        assert [layer.recurrent_dropout for layer in loaded.layers if hasattr(layer, "cell")] == [0.3] * 2
    bare = load_model(save_model(first, tmp_path / "bare", format))  # without a configuration
    assert {type(layer) for layer in bare.layers if hasattr(layer, "cell")} == {keras.layers.LSTM}


# errors


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the `.keras` model with its manifest."""
    for file in saved["keras"].model.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model.keras"


def rewrite_manifest(path, **changes):
    """Change the manifest of a model file and seal it again, as an attacker or another release would."""
    document = json.loads(manifest_path(path).read_text())
    plain = {key: value for key, value in document.items() if key != "seal"}
    manifest_path(path).write_bytes(encode_manifest(plain | changes))


def test_a_changed_byte_is_an_integrity_error(copied):
    copied.write_bytes(flip_bit(copied.read_bytes()))
    with pytest.raises(ModelIntegrityError, match="expected .* got .* with sha256") as caught:
        load_model(copied)
    assert type(caught.value.__cause__) is IntegrityError
    assert caught.value.path == copied and caught.value.fault and caught.value.remedy
    assert isinstance(caught.value, ModelFileError) and isinstance(caught.value, CryptoLSTMError)


def test_a_manifest_of_another_schema_is_a_schema_version_error(copied):
    rewrite_manifest(copied, schema=2)
    with pytest.raises(ModelIntegrityError, match="expected schema 1, got 2; use the version that wrote it") as caught:
        load_model(copied)
    assert type(caught.value.__cause__) is SchemaVersionError


def test_another_intact_file_is_a_pin_mismatch(copied):
    with pytest.raises(ModelIntegrityError, match="this is another file than the one you pinned") as caught:
        load_model(copied, expected_sha256="0" * 64)
    assert type(caught.value.__cause__) is PinMismatchError


@pytest.mark.parametrize("facts", [["format"], "keras", 3, None])
def test_a_manifest_without_metadata_is_refused(copied, facts):
    document = json.loads(manifest_path(copied).read_text())
    document["versions"][0]["facts"] = facts
    rewrite_manifest(copied, versions=document["versions"])
    for read in (load_model, read_metadata):
        with pytest.raises(ModelIntegrityError, match="its manifest has no metadata: expected an object, got a"):
            read(copied)


@pytest.mark.parametrize("metadata", [{"mcc": float("nan")}, {"when": object()}, {("a", "b"): 1}])
def test_metadata_that_json_cannot_hold_is_refused(model, tmp_path, metadata):
    with pytest.raises(ModelFileError, match="JSON can't hold its metadata .*; pass texts, finite numbers"):
        save_model(model, tmp_path / "model", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyError, AttributeError, TypeError])
def test_an_error_of_this_package_is_not_reported_as_a_bad_file(copied, model, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error("a mistake in the package")

    monkeypatch.setattr(persistence, "_collect_facts", fail)
    before = {path: sha256_file(path) for path in tmp_path.iterdir()}
    with pytest.raises(error, match="a mistake in the package"):
        save_model(model, copied)
    assert {path: sha256_file(path) for path in tmp_path.iterdir()} == before
    for name in ("parse_model_file", "build_model_from_content", "_config_of"):
        with monkeypatch.context() as patch, pytest.raises(error, match="a mistake in the package"):
            patch.setattr(persistence, name, fail)
            load_model(copied)


def test_a_network_of_other_layers_is_not_saved(tmp_path):
    other = keras.Sequential([keras.Input((12, 8)), keras.layers.GRU(4), keras.layers.Dense(3)])
    with pytest.raises(UnsafeModelError, match="this package could not read it back.*use model.save of Keras"):
        save_model(other, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
