"""Model files from any source that are attacks, damaged, mixed up or replaced. All attacks run in the benchmarks."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from support.attacks import (
    _FUNCTION,
    CONFIG,
    WEIGHT,
    _archive,
    _hdf5,
    _members,
    attack,
    digest,
    file_of,
    resealed,
    save_all,
    watched,
)

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.persistence import FORMATS, load_model, save_model
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.saving.model_file import load_report
from crypto_lstm.saving.model_schema import (
    KerasVersionError,
    ModelFileError,
    ModelIntegrityError,
    OldModelError,
    UnsafeModelError,
)
from crypto_lstm.storage.manifest import MANIFEST, encode_manifest
from crypto_lstm.storage.verified import manifest_path


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG)


# ---------------------------------------------------------------- files of Keras 2


def write_in_keras_2(description: dict[str, Any]) -> None:
    """Change the description of a network to the form that Keras 2 writes."""
    for layer in description["config"]["layers"]:
        layer.pop("build_config", None)
        settings = layer["config"]
        settings["dtype"] = "float32"
        if layer["class_name"] == "InputLayer":
            settings["batch_input_shape"] = settings.pop("batch_shape", None)
        if layer["class_name"] == "LSTM":
            settings |= {"time_major": False, "implementation": 2}


def keras_2_file(folder: Path, format: str, version: str) -> bytes:
    """A saved model of Keras 3 with the form and the version of Keras 2."""
    data = file_of(folder, format).read_bytes()
    if format == "keras":
        members = _members(data)
        description = json.loads(members["config.json"])
        write_in_keras_2(description)
        metadata = json.loads(members["metadata.json"]) | {"keras_version": version}
        changed = {"config.json": json.dumps(description).encode(), "metadata.json": json.dumps(metadata).encode()}
        return _archive(members | changed)

    def change(file: Any) -> None:
        description = json.loads(file.attrs["model_config"])
        write_in_keras_2(description)
        file.attrs["model_config"] = json.dumps(description)
        file.attrs["keras_version"] = version

    return _hdf5(data, change)


@pytest.mark.parametrize("format", ["keras", "h5"])
@pytest.mark.parametrize("version", ["2.15.0", "2.4.0-tf", "1.2.2"])
def test_a_file_of_keras_2_is_called_old_and_not_unsafe(format, version, saved, tmp_path):
    path = tmp_path / file_of(saved, format).name
    path.write_bytes(keras_2_file(saved / format / "now", format, version))
    with pytest.raises(OldModelError) as caught:
        load_model(path)
    assert f"is an old file: Keras {version} wrote it" in str(caught.value)
    assert "keras.saving.load_model" in str(caught.value) and not isinstance(caught.value, UnsafeModelError)


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_the_same_form_that_claims_keras_3_is_refused_as_before(format, saved, tmp_path):
    path = tmp_path / file_of(saved, format).name
    path.write_bytes(keras_2_file(saved / format / "now", format, "3.15.1"))
    with pytest.raises(UnsafeModelError):
        load_model(path)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """Two saves of the network in each format."""
    place = tmp_path_factory.mktemp("saved")
    save_all(place, model)
    return place


# ---------------------------------------------------------------- attacks


def test_the_audit_hook_reports_opens_code_and_pickles(tmp_path):
    (tmp_path / "inside").write_text("x")
    assert watched(lambda: (tmp_path / "inside").read_text(), tmp_path) == []
    assert [event for event, _ in watched(lambda: open("/etc/hostname").close(), tmp_path)] == ["open"]
    assert [event for event, _ in watched(lambda: open(tmp_path / "inside", "w").close(), tmp_path)] == ["open"]
    assert "exec" in [event for event, _ in watched(lambda: exec("1"), tmp_path)]
    assert [event for event, _ in watched(lambda: pickle.loads(pickle.dumps(Path)), tmp_path)] == ["pickle.find_class"]


def test_an_attack_that_succeeds_is_reported(saved, tmp_path):
    path = tmp_path / "place" / "model.keras"
    shutil.copytree(saved / "keras" / "now", path.parent)
    canary = tmp_path / "canary"
    assert attack(lambda: load_model(path), path, tmp_path, canary)[1] == "it was loaded"
    path.write_bytes(b"PK")
    error, fault = attack(lambda: load_model(path), path, tmp_path, canary)
    assert isinstance(error, ModelIntegrityError) and fault is None

    def load_and_write():
        canary.touch()
        load_model(path)

    assert attack(load_and_write, path, tmp_path, canary)[1] == "files were written"


@pytest.mark.parametrize("change", ["loss", "optimizer", "metrics", "hook"])
def test_code_in_compile_settings_does_not_run(saved, tmp_path, change):
    members = _members(file_of(saved / "keras" / "now", "keras").read_bytes())
    document = json.loads(members["config.json"])
    document["compile_config"][change] = copy.deepcopy(_FUNCTION)
    path = tmp_path / "place" / "model.keras"
    path.parent.mkdir()
    path.write_bytes(_archive({**members, "config.json": json.dumps(document).encode()}))
    load_model(saved / "keras" / "now" / "model.keras")  # Keras imports some modules only now
    error, fault = attack(lambda: load_model(path), path, tmp_path, tmp_path / "canary")
    assert isinstance(error, UnsafeModelError) and "pass compile=False" in str(error)
    assert fault is None or "'open'" in fault
    assert load_model(path, compile=False).count_params() == build_model(CONFIG).count_params()


# ---------------------------------------------------------------- other faults of files


@pytest.fixture(params=FORMATS)
def copied(request, saved, tmp_path):
    """A copy of a saved model: its format, its folder and its path."""
    folder = tmp_path / "place"
    shutil.copytree(saved / request.param / "now", folder)
    return SimpleNamespace(format=request.param, folder=folder, path=file_of(folder, request.param))


def manifest_of(copied: SimpleNamespace) -> Path:
    return copied.path / MANIFEST if copied.format == "saved_model" else manifest_path(copied.path)


def seal(document: dict[str, Any]) -> bytes:
    """A manifest with a correct seal, as an attacker would write it."""
    return encode_manifest({key: value for key, value in document.items() if key != "seal"})


def weights_file(copied: SimpleNamespace) -> Path:
    return copied.path / "assets.extra" / "model.keras" if copied.format == "saved_model" else copied.path


def assert_refused(copied: SimpleNamespace, error: type[Exception], fault: str, **arguments: Any) -> str:
    """The message of the refusal. The load must change nothing."""
    before = digest(copied.folder)
    with pytest.raises(error, match=fault) as caught:
        load_model(copied.path, **arguments)
    assert type(caught.value) is error and digest(copied.folder) == before
    return str(caught.value)


def test_a_missing_file_is_an_error(copied):
    copied.path = copied.folder / "nothing"
    assert "check the path" in assert_refused(copied, ModelFileError, "nothing': there is no such file or folder")


def test_an_empty_file_is_refused(copied):
    weights_file(copied).write_bytes(b"")
    assert "save it again" in assert_refused(copied, ModelIntegrityError, "expected .* bytes.*, got 0")


def test_a_file_without_manifest_loads_with_a_warning_and_a_folder_does_not(copied, caplog):
    manifest_of(copied).unlink()
    if copied.format == "saved_model":
        message = assert_refused(copied, UnsafeModelError, "it has no manifest.json")
        assert "rebuild the network with build_model" in message
        return
    (copied.folder / "model_metadata.json").unlink()
    report = load_report(load_model(copied.path))
    assert not report.verified and len(report.unchecked) == 4 and "loaded unchecked" in caplog.text


def test_weights_of_another_save_are_refused(copied, saved):
    theirs = saved / copied.format / "other"
    source = weights_file(SimpleNamespace(format=copied.format, path=file_of(theirs, copied.format)))
    shutil.copy(source, weights_file(copied))
    assert "save it again" in assert_refused(copied, ModelIntegrityError, "expected .*(sha256|bytes).*, got .*")


@pytest.mark.parametrize("key", ["features", "classes"])
def test_reordered_names_in_the_metadata_are_refused(copied, key):
    """In the copy beside the model, and in a manifest with a correct seal."""
    metadata = (copied.path if copied.format == "saved_model" else copied.folder) / "model_metadata.json"
    facts = json.loads(metadata.read_text(encoding="utf-8"))
    metadata.write_text(json.dumps({**facts, key: facts[key][::-1]}), encoding="utf-8")
    assert_refused(copied, ModelIntegrityError, "manifest|expected sha256|expected .* bytes")
    metadata.write_text(json.dumps(facts), encoding="utf-8")
    document = json.loads(manifest_of(copied).read_text())
    noted = document["facts"] if copied.format == "saved_model" else document["versions"][0]["facts"]
    noted[key] = noted[key][::-1]
    if copied.format == "saved_model":
        data = metadata.read_bytes()
        document["files"]["model_metadata.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    else:
        metadata.unlink()
    manifest_of(copied).write_bytes(seal(document))
    assert_refused(copied, ModelMismatchError, f"{key}: expected .*, got ", config=CONFIG)


def test_another_schema_is_refused(copied):
    document = json.loads(manifest_of(copied).read_text())
    for schema in (0, 2):
        manifest_of(copied).write_bytes(seal({**document, "schema": schema}))
        message = assert_refused(copied, ModelIntegrityError, f"expected schema 1, got {schema}")
        assert "use the version that wrote it" in message


def test_a_link_in_the_place_of_the_file_is_refused(copied, tmp_path):
    file = weights_file(copied)
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert_refused(copied, ModelIntegrityError, "link")


def test_the_bytes_that_were_hashed_are_parsed(copied, saved, model, monkeypatch):
    """They are in memory, so replacing the file between check and use has no effect."""
    from crypto_lstm import persistence

    other = file_of(saved / copied.format / "other", copied.format)
    parse = persistence.parse_model_file

    def replace_and_parse(data: bytes, *args: Any, **kwargs: Any) -> Any:
        if copied.path.is_dir():
            shutil.rmtree(copied.path)
            shutil.copytree(other, copied.path)
        else:
            shutil.copy(other, copied.path)
        return parse(data, *args, **kwargs)

    monkeypatch.setattr(persistence, "parse_model_file", replace_and_parse)
    assert np.array_equal(load_model(copied.path).get_weights()[0], model.get_weights()[0])


def test_a_file_with_another_hash_than_the_pinned_one_is_refused(copied, saved):
    expected = load_report(load_model(copied.path)).sha256
    assert load_report(load_model(copied.path, expected_sha256=expected.upper())).sha256 == expected
    fault = "expected the sha256 0000.*than the one you pinned"
    assert_refused(copied, ModelIntegrityError, fault, expected_sha256="0" * 64)


def test_a_keras_that_is_too_old_is_refused(copied, model, monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.15.0")
    assert_refused(copied, KerasVersionError, "expected Keras 3.15.1 or newer, got 3.15.0; pip install")
    before = digest(copied.folder)
    with pytest.raises(KerasVersionError):
        save_model(model, copied.path, copied.format)
    assert digest(copied.folder) == before


def test_a_pinned_hash_detects_a_model_with_a_matching_manifest(saved, tmp_path):
    """Other weights of the same shape under a correct manifest are found only by a hash that was kept elsewhere."""
    data = file_of(saved / "h5" / "now", "h5").read_bytes()
    folder = tmp_path / "place"
    shutil.copytree(saved / "h5" / "now", folder)
    pinned = hashlib.sha256(data).hexdigest()
    resealed(folder, "h5", _hdf5(data, lambda f: f[WEIGHT["h5"]].write_direct(np.zeros((8, 32), "f4"))))
    with pytest.raises(ModelIntegrityError, match="manifest|you pinned"):
        load_model(folder / "model.h5", expected_sha256=pinned)


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_the_default_network_loads_from_a_file_of_plain_keras(tmp_path, format, caplog):
    model = build_model()
    model.save(tmp_path / f"plain{FORMATS[format]}")
    loaded = load_model(tmp_path / f"plain{FORMATS[format]}", config=Config())
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))
    assert "loaded unchecked" in caplog.text and len(load_report(loaded).unchecked) == 3
