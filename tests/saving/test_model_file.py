"""Model files from anywhere that are not what they should be. Attacks, changed bytes and kills in number: benchmarks/trust.py."""

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
from support.attacks import _FUNCTION, CONFIG, WEIGHT, _archive, _hdf5, _members, attack, digest, file_of, resealed, save_all, watched

from crypto_lstm.architecture import build_model
from crypto_lstm.storage.verified import manifest_path
from crypto_lstm.config import Config
from crypto_lstm.saving.model_schema import KerasVersionError
from crypto_lstm.persistence import FORMATS, load_model, save_model
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.saving.model_file import load_report
from crypto_lstm.saving.model_schema import ModelIntegrityError, ModelFileError, UnsafeModelError
from crypto_lstm.storage.manifest import MANIFEST, encode_manifest


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """Two generations of the network in each format."""
    place = tmp_path_factory.mktemp("saved")
    save_all(place, model)
    return place


# ---------------------------------------------------------------- attacks (all of them: benchmarks/trust.py)


def test_the_watch_sees_what_it_should(tmp_path):
    (tmp_path / "inside").write_text("x")
    assert watched(lambda: (tmp_path / "inside").read_text(), tmp_path) == []
    assert [event for event, _ in watched(lambda: open("/etc/hostname").close(), tmp_path)] == ["open"]
    assert [event for event, _ in watched(lambda: open(tmp_path / "inside", "w").close(), tmp_path)] == ["open"]
    assert "exec" in [event for event, _ in watched(lambda: exec("1"), tmp_path)]
    assert [event for event, _ in watched(lambda: pickle.loads(pickle.dumps(Path)), tmp_path)] == ["pickle.find_class"]


def test_an_attack_that_gets_through_is_told(saved, tmp_path):
    path = tmp_path / "place" / "model.keras"
    shutil.copytree(saved / "keras" / "now", path.parent)
    canary = tmp_path / "canary"
    assert attack(lambda: load_model(path), path, tmp_path, canary)[1] == "it was loaded"
    path.write_bytes(b"PK")
    error, fault = attack(lambda: load_model(path), path, tmp_path, canary)
    assert isinstance(error, ModelIntegrityError) and fault is None

    def touched():
        canary.touch()
        load_model(path)

    assert attack(touched, path, tmp_path, canary)[1] == "files were written"


@pytest.mark.parametrize("change", ["loss", "optimizer", "metrics", "hook"])
def test_code_in_compile_settings(saved, tmp_path, change):
    members = _members(file_of(saved / "keras" / "now", "keras").read_bytes())
    document = json.loads(members["config.json"])
    document["compile_config"][change] = copy.deepcopy(_FUNCTION)
    path = tmp_path / "place" / "model.keras"
    path.parent.mkdir()
    path.write_bytes(_archive({**members, "config.json": json.dumps(document).encode()}))
    load_model(saved / "keras" / "now" / "model.keras")  # what Keras loads late is loaded
    error, fault = attack(lambda: load_model(path), path, tmp_path, tmp_path / "canary")
    assert isinstance(error, UnsafeModelError) and "pass compile=False" in str(error) and (fault is None or "'open'" in fault)
    assert load_model(path, compile=False).count_params() == build_model(CONFIG).count_params()


# ---------------------------------------------------------------- the other faults of files


@pytest.fixture(params=FORMATS)
def copied(request, saved, tmp_path):
    """A copy of a saved model: its format, its folder and its path."""
    folder = tmp_path / "place"
    shutil.copytree(saved / request.param / "now", folder)
    return SimpleNamespace(format=request.param, folder=folder, path=file_of(folder, request.param))


def manifest_of(copied: SimpleNamespace) -> Path:
    return copied.path / MANIFEST if copied.format == "saved_model" else manifest_path(copied.path)


def numbers_of(copied: SimpleNamespace) -> Path:
    return copied.path / "assets.extra" / "model.keras" if copied.format == "saved_model" else copied.path


def refused(copied: SimpleNamespace, error: type[Exception], fault: str, **arguments: Any) -> str:
    """The message of the refusal; it names place, cause and remedy, and nothing is changed."""
    before = digest(copied.folder)
    with pytest.raises(error, match=fault) as caught:
        load_model(copied.path, **arguments)
    assert type(caught.value) is error and digest(copied.folder) == before
    return str(caught.value)


def test_file_missing(copied):
    copied.path = copied.folder / "nothing"
    assert "check the path" in refused(copied, ModelFileError, "nothing': there is no such file or folder")


def test_file_empty(copied):
    numbers_of(copied).write_bytes(b"")
    assert "save it again" in refused(copied, ModelIntegrityError, "expected .* bytes.*, got 0")


def test_file_without_manifest(copied, caplog):
    manifest_of(copied).unlink()
    if copied.format == "saved_model":
        assert "rebuild the network with build_model" in refused(copied, UnsafeModelError, "it has no manifest.json")
        return
    (copied.folder / "model_metadata.json").unlink()
    report = load_report(load_model(copied.path))
    assert not report.verified and len(report.unchecked) == 4 and "loaded unchecked" in caplog.text


def test_generations_mixed(copied, saved):
    theirs = saved / copied.format / "other"
    source = numbers_of(SimpleNamespace(format=copied.format, path=file_of(theirs, copied.format)))
    shutil.copy(source, numbers_of(copied))
    assert "save it again" in refused(copied, ModelIntegrityError, "expected .*(sha256|bytes).*, got .*")


@pytest.mark.parametrize("key", ["features", "classes"])
def test_names_reordered_in_metadata(copied, key):
    """In the copy for people, and in the manifest under a good seal."""
    copy_ = (copied.path if copied.format == "saved_model" else copied.folder) / "model_metadata.json"
    facts = json.loads(copy_.read_text(encoding="utf-8"))
    copy_.write_text(json.dumps({**facts, key: facts[key][::-1]}), encoding="utf-8")
    refused(copied, ModelIntegrityError, "manifest|expected sha256|expected .* bytes")
    copy_.write_text(json.dumps(facts), encoding="utf-8")
    document = json.loads(manifest_of(copied).read_text())
    noted = document["facts"] if copied.format == "saved_model" else document["versions"][0]["facts"]
    noted[key] = noted[key][::-1]
    if copied.format == "saved_model":
        data = copy_.read_bytes()
        document["files"]["model_metadata.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    else:
        copy_.unlink()
    manifest_of(copied).write_bytes(encode_manifest({k: value for k, value in document.items() if k != "seal"}))
    refused(copied, ModelMismatchError, f"{key}: expected .*, got ", config=CONFIG)


def test_other_schema(copied):
    document = json.loads(manifest_of(copied).read_text())
    for schema in (0, 2):
        manifest_of(copied).write_bytes(encode_manifest({**{k: v for k, v in document.items() if k != "seal"}, "schema": schema}))
        assert "use the version that wrote it" in refused(copied, ModelIntegrityError, f"expected schema 1, got {schema}")


def test_link_in_the_place_of_the_file(copied, tmp_path):
    file = numbers_of(copied)
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused(copied, ModelIntegrityError, "link")


def test_replaced_between_check_and_read(copied, saved, model, monkeypatch):
    """What is parsed is what was hashed: the bytes in memory, whatever happens to the file."""
    from crypto_lstm import persistence

    other = file_of(saved / copied.format / "other", copied.format)
    real = persistence.read_content

    def late(data: bytes, *args: Any, **kwargs: Any) -> Any:
        if copied.path.is_dir():
            shutil.rmtree(copied.path)
            shutil.copytree(other, copied.path)
        else:
            shutil.copy(other, copied.path)
        return real(data, *args, **kwargs)

    monkeypatch.setattr(persistence, "read_content", late)
    assert np.array_equal(load_model(copied.path).get_weights()[0], model.get_weights()[0])


def test_pinned(copied, saved):
    wanted = load_report(load_model(copied.path)).sha256
    assert load_report(load_model(copied.path, expected_sha256=wanted.upper())).sha256 == wanted
    refused(copied, ModelIntegrityError, "expected the sha256 0000.*than the one you pinned", expected_sha256="0" * 64)


def test_keras_too_old(copied, model, monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.15.0")
    refused(copied, KerasVersionError, "expected Keras 3.15.1 or newer, got 3.15.0; pip install")
    before = digest(copied.folder)
    with pytest.raises(KerasVersionError):
        save_model(model, copied.path, copied.format)
    assert digest(copied.folder) == before


def test_weights_swapped(saved, tmp_path):
    """Two weights of one shape that changed places under a good seal are found only by a hash that was kept elsewhere."""
    data = file_of(saved / "h5" / "now", "h5").read_bytes()
    folder = tmp_path / "place"
    shutil.copytree(saved / "h5" / "now", folder)
    pinned = hashlib.sha256(data).hexdigest()
    resealed(folder, "h5", _hdf5(data, lambda f: f[WEIGHT["h5"]].write_direct(np.zeros((8, 32), "f4"))))
    with pytest.raises(ModelIntegrityError, match="manifest|you pinned"):
        load_model(folder / "model.h5", expected_sha256=pinned)


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_the_seed_s_network_from_plain_keras(tmp_path, format, caplog):
    """The default architecture, saved by `model.save` alone."""
    model = build_model()
    model.save(tmp_path / f"plain{FORMATS[format]}")
    loaded = load_model(tmp_path / f"plain{FORMATS[format]}", config=Config())
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))
    assert "loaded unchecked" in caplog.text and len(load_report(loaded).unchecked) == 3
