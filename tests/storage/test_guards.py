"""Rare refusals of the code that saves and loads: each is triggered here, and its message is checked."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import stat
import struct
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from support.answers import replace_answers
from support.attacks import _archive, _members, digest
from support.kill_and_resume import CONFIG, candles

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import OutputFolderError
from crypto_lstm.config import ConfigError
from crypto_lstm.data.candles import fill_gaps
from crypto_lstm.data.readers import CandleError
from crypto_lstm.data.windows import prepare
from crypto_lstm.inference import bundle
from crypto_lstm.inference.bundle import (
    BundleError,
    decode_weights,
    encode_weights,
    list_weight_shapes,
    load_bundle,
    save_bundle,
)
from crypto_lstm.persistence import ModelFormatError, load_model, save_model
from crypto_lstm.saving import hdf5
from crypto_lstm.saving import model_file as foreign
from crypto_lstm.saving.hdf5 import Hdf5Error, read_arrays, read_arrays_in_sandbox
from crypto_lstm.saving.model_schema import (
    ModelFileError,
    ModelIntegrityError,
    UnsafeModelError,
    check_network,
    compile_network,
)
from crypto_lstm.storage import atomic
from crypto_lstm.storage.atomic import SaveError, atomic_path, write_text
from crypto_lstm.storage.checkpoints import CheckpointStore
from crypto_lstm.storage.lock import hold_lock
from crypto_lstm.storage.manifest import MANIFEST, IntegrityError, encode_manifest, read_manifest
from crypto_lstm.storage.verified import atomic_file, atomic_folder, manifest_path, read_file
from crypto_lstm.training.checkpointing import StopOnSignal, read_state
from crypto_lstm.training.run_folder import STATE, lock_run_folder

HOURLY = candles()


@pytest.fixture(scope="module")
def run():
    return SimpleNamespace(config=CONFIG, model=build_model(CONFIG), data=prepare(HOURLY, CONFIG))


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """A model file, with its manifest and its copies."""
    return save_model(run.model, tmp_path_factory.mktemp("saved") / "model", config=CONFIG).model


@pytest.fixture
def path(saved, tmp_path):
    shutil.copytree(saved.parent, tmp_path / "model")
    return tmp_path / "model" / saved.name


# ---------------------------------------------------------------- saves


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can exchange two names")
def test_an_exchange_that_the_system_refuses_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic._exchange(tmp_path / "one", tmp_path / "other")


def test_a_renamed_checkpoint_is_refused(tmp_path):
    with CheckpointStore(tmp_path / "state").save() as folder:
        (folder / "a").write_text("a")
    (tmp_path / "state" / "checkpoint-000001").rename(tmp_path / "state" / "checkpoint-000007")
    with pytest.raises(IntegrityError, match="expected checkpoint 7, got 1: the folder was renamed"):
        CheckpointStore(tmp_path / "state").read()


@pytest.mark.parametrize(
    "versions", [None, {}, [1], [{}], [{"size": 1, "sha256": "0"}], [{"size": "1", "sha256": "0", "created": ""}]]
)
def test_a_manifest_that_describes_no_file_is_refused(versions, tmp_path):
    with atomic_file(tmp_path / "a") as new:
        new.write_text("a")
    manifest_path(tmp_path / "a").write_bytes(encode_manifest({"versions": versions}))
    with pytest.raises(IntegrityError, match="is not the manifest of a file"):
        read_file(tmp_path / "a")


def test_a_bundle_that_answers_differently_from_the_model_in_memory_is_refused(run, tmp_path, monkeypatch):
    replace_answers(monkeypatch, run.model, lambda windows: np.tile(np.float32([1, 0, 0]), (len(windows), 1)))
    with pytest.raises(BundleError, match="the golden windows: expected the answers of the saved network"):
        save_bundle(run, tmp_path / "btc")
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_cannot_be_read_back_is_not_put_in_place(run, tmp_path, monkeypatch):
    def spoilt(arrays):
        return encode_weights(
            {name: array * np.float32(np.nan) if name == "windows" else array for name, array in arrays.items()}
        )

    monkeypatch.setattr(bundle, "encode_weights", spoilt)
    with pytest.raises(BundleError, match="windows: expected finite numbers, got"):
        save_bundle(run, tmp_path / "btc")
    assert not list(tmp_path.iterdir())


def test_filled_candles_are_checked_for_order(run, tmp_path):
    save_bundle(run, tmp_path / "btc")
    with pytest.raises(CandleError, match="dates must rise"):
        load_bundle(tmp_path / "btc").probabilities(fill_gaps(HOURLY, timeframe="1h")[::-1].reset_index(drop=True))


# ---------------------------------------------------------------- training


def test_a_second_signal_stops_immediately():
    stopper = StopOnSignal()
    with stopper.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stopper.signal_name == "SIGTERM"


@pytest.mark.parametrize("kind", ["no facts", "packed arrays", "no archive"])
def test_a_checkpoint_that_holds_no_training_state_is_refused(kind, tmp_path):
    facts = {"epoch": 1, "batch": 0, "batches": 3, "over": False, "config": CONFIG.as_dict(), "identity": {}}
    with CheckpointStore(tmp_path / STATE).save(facts={} if kind == "no facts" else facts) as folder:
        (folder / "values.json").write_text("{}")
        with open(folder / "arrays.npz", "wb") as file:
            (np.savez_compressed if kind == "packed arrays" else np.savez)(file, a=np.zeros(3))
        if kind == "no archive":
            (folder / "arrays.npz").write_bytes(b"PK")
    fault = "expected arrays that are not compressed" if kind == "packed arrays" else "is no state of a training"
    with pytest.raises(IntegrityError, match=fault):
        read_state(tmp_path)


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(
            OutputFolderError, match="expected a folder to write results to, got .*Not a directory; choose another"
        ),
        lock_run_folder(tmp_path / "file" / "run"),
    ):
        pytest.fail("the block must not run")


# ---------------------------------------------------------------- HDF5


def _file(make: Any) -> bytes:
    with h5py.File(buffer := io.BytesIO(), "w") as file:
        make(file)
    return buffer.getvalue()


def test_two_hdf5_arrays_on_the_same_bytes_are_refused():
    """Each array is within the file, and both together are larger than the file."""
    offsets: list[int] = []

    def make(file: Any) -> None:
        for name in "ab":
            file[name] = np.ones(50_000, "f4")
            offsets.append(file[name].id.get_offset())

    data = _file(make)
    assert data.count(struct.pack("<Q", offsets[1])) == 1 and offsets[1] + 200_000 == len(data), (
        "the second lies at the end"
    )
    forged = bytearray(data[: offsets[1]].replace(struct.pack("<Q", offsets[1]), struct.pack("<Q", offsets[0])))
    struct.pack_into("<Q", forged, 40, len(forged))  # where the file ends
    with pytest.raises(Hdf5Error, match="^by their headers its arrays are larger than the file"):
        read_arrays(bytes(forged))


@pytest.mark.parametrize(
    "make", [lambda f: f.__setitem__("t", np.dtype("f4")), lambda f: f.create_dataset("t", data=h5py.Empty("f4"))]
)
def test_hdf5_objects_that_are_no_arrays_are_refused(make):
    with pytest.raises(Hdf5Error, match="t is neither a group nor an array"):
        read_arrays(_file(make))


def test_bytes_that_are_no_hdf5_are_refused():
    with pytest.raises(Hdf5Error, match="^h5py can't read it as HDF5"):
        read_arrays(b"no HDF5 at all")


def test_chunked_arrays_are_refused():
    """Chunks can be compressed. These are not, and are refused as well."""
    with pytest.raises(Hdf5Error, match="stored otherwise"):
        read_arrays(_file(lambda f: f.create_dataset("a", data=np.ones((4, 4), "f4"), chunks=(4, 4))))


def test_the_number_of_hdf5_objects_is_limited(monkeypatch):
    monkeypatch.setattr(hdf5, "MAX_OBJECTS", 3)
    assert len(read_arrays(_file(lambda f: f.update({n: np.zeros(1, "f4") for n in "abc"})))[1]) == 3
    with pytest.raises(Hdf5Error, match="breaks a limit: at most 3 objects"):
        read_arrays(_file(lambda f: f.update({n: np.zeros(1, "f4") for n in "abcd"})))


def test_the_length_of_hdf5_texts_is_limited(monkeypatch):
    monkeypatch.setattr(hdf5, "_MAX_TEXT", 10)
    with pytest.raises(Hdf5Error, match="model_config: expected at most 10 characters"):
        read_arrays(_file(lambda f: f.attrs.__setitem__("model_config", "x" * 11)))


def test_a_reader_process_that_dies_is_an_error(monkeypatch):
    data = _file(lambda f: None)
    monkeypatch.setattr(hdf5, "_CHILD_CODE", "raise SystemExit('out of order')")
    with pytest.raises(Hdf5Error, match=r"the child process that read it ended with 1 \(out of order\)"):
        read_arrays_in_sandbox(data)
    monkeypatch.setattr(sys, "executable", "/nothing/python")
    with pytest.raises(Hdf5Error, match="the child process that reads it could not be started"):
        read_arrays_in_sandbox(data)


# ---------------------------------------------------------------- networks and model files


def _change(*keys: Any, value: Any) -> Any:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def _without_units(document: Any) -> None:
    del document["config"]["layers"][1]["config"]["units"]


LAYERS = ("config", "layers")


def _second_input(document: Any) -> None:
    document["config"]["layers"][2] = document["config"]["layers"][0]


NETWORKS = {
    "a class that is no network": (
        _change("class_name", value="Lambda"),
        "expected a Functional or Sequential network, got 'Lambda'",
    ),
    "no settings": (_change("config", value=[]), "expected a Functional or Sequential network"),
    "another module": (_change("module", value="subprocess"), "the network: module 'subprocess' is not allowed"),
    "a path as name": (_change("config", "name", value="../evil"), "the network: name '../evil' is not allowed"),
    "layers that are no list": (_change(*LAYERS, value="abc"), "expected 2 to 64 layers, got 'abc'"),
    "no layers": (_change(*LAYERS, value=[]), "expected 2 to 64 layers, got 0"),
    "too many weights": (_change(*LAYERS, 1, "config", "units", value=65_536), "expected at most 50,000,000 weights"),
    "a layer without a class": (
        _change(*LAYERS, 1, "class_name", value=["LSTM"]),
        r"expected InputLayer first, .*; got \['LSTM'\]",
    ),
    "a layer of an unknown class": (
        _change(*LAYERS, 1, "class_name", value="GRU"),
        "expected InputLayer first, .*; got 'GRU'",
    ),
    "a second input": (_second_input, "layer 2: expected InputLayer first, .*; got 'InputLayer'"),
    "a layer of another module": (
        _change(*LAYERS, 1, "module", value="os"),
        r"layer 1 \(LSTM\): module 'os' is not allowed",
    ),
    "a registered layer": (
        _change(*LAYERS, 1, "registered_name", value="evil>LSTM"),
        "registered_name 'evil>LSTM' is not allowed",
    ),
    "a setting that is not known": (_change(*LAYERS, 1, "config", "hook", value=1), "hook 1 is not allowed"),
    "a window that is too large": (
        _change(*LAYERS, 0, "config", "batch_shape", value=[None, 4_000_000, 8]),
        "at most 4,000,000 values",
    ),
    "a layer that reads another": (
        _change(
            *LAYERS, 3, "inbound_nodes", 0, "args", 0, "config", "keras_history", value=["lstm_layer_1_8units", 0, 0]
        ),
        "expected the layer before it as its only input",
    ),
    "a registered network": (
        _change("registered_name", value="evil>Net"),
        "the network: registered_name 'evil>Net' is not allowed",
    ),
    "settings that are none": (
        _change(*LAYERS, 1, "config", value=[]),
        r"expected settings with name, units, got \[\]",
    ),
    "settings that are names": (
        _change(*LAYERS, 1, "config", value=["name", "units"]),
        r"expected settings with name, units, got \['name'",
    ),
    "settings without units": (_without_units, "expected settings with name, units"),
    "one name twice": (
        _change(*LAYERS, 2, "config", "name", value="lstm_layer_1_8units"),
        "the name 'lstm_layer_1_8units' occurs twice",
    ),
    "an LSTM that reads no sequence": (
        _change(*LAYERS, 1, "config", "return_sequences", value=False),
        r"expected a sequence to read, got \(8,\)",
    ),
    "two names of one layer": (
        _change(*LAYERS, 2, "name", value="other"),
        r"expected the name '\w+' and a list inbound_nodes, got 'other'",
    ),
    "no inbound nodes": (_change(*LAYERS, 2, "inbound_nodes", value=None), "and a list inbound_nodes"),
    "another end": (
        _change("config", "output_layers", value=["lstm_layer_1_8units", 0, 0]),
        "the network: output_layers .* is not allowed",
    ),
    "another beginning": (
        _change("config", "input_layers", value=[["dropout_1", 0, 0]]),
        "the network: input_layers .* is not allowed",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_not_allowed_is_refused(name, saved):
    change, fault = NETWORKS[name]
    document = json.loads(_members(saved.read_bytes())["config.json"])
    assert check_network(document, "x").parameters == build_model(CONFIG).count_params()
    change(document)
    with pytest.raises(UnsafeModelError, match=fault):
        check_network(document, "x")


def test_settings_that_keras_refuses_are_refused(saved):
    document = json.loads(_members(saved.read_bytes())["config.json"])
    document["config"]["layers"][1]["config"]["kernel_initializer"]["config"] = {"gain": 1}
    network = check_network(document, "x")
    with pytest.raises(UnsafeModelError, match="its network can't be built"):
        foreign.build_model_from_content(foreign.ModelContent(network, (), {}, ""), "x")


def test_a_model_file_above_the_size_limit_is_refused(path, monkeypatch):
    monkeypatch.setattr(foreign, "MAX_BYTES", 10)
    with pytest.raises(UnsafeModelError, match="expected at most 10 bytes"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "fault"), [("/", "needs a name"), ("model.KERAS", "Keras wants the suffix in lower case")]
)
def test_a_name_that_no_model_can_have_is_refused(name, fault, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFormatError, match=fault):
        save_model(run.model, Path(name))
    assert not list(tmp_path.iterdir())


def test_a_saved_folder_without_its_model_is_refused(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "saved_model.pb").write_bytes(b"")
    with pytest.raises(
        ModelFileError, match="is a folder that this package saved, but holds no assets.extra/model.keras"
    ):
        load_model(tmp_path / "model")


def test_metadata_that_is_a_list_is_refused(path):
    manifest_path(path).unlink()
    path.with_name("model_metadata.json").write_text("[]")
    with pytest.raises(ModelIntegrityError, match="expected an object, got a list"):
        load_model(path)


def test_a_configuration_of_another_version_needs_config(path):
    path.with_name("model_metadata.json").unlink()
    document = json.loads(manifest_path(path).read_text())
    document["versions"][0]["facts"]["config"] = {"hyperdrive": True}
    unsealed = {key: value for key, value in document.items() if key != "seal"}
    manifest_path(path).write_bytes(encode_manifest(unsealed))
    message = "its metadata holds a configuration that this version can't use .*hyperdrive.*pass config="
    with pytest.raises(ModelFileError, match=message):
        load_model(path)
    assert load_model(path, config=CONFIG)


# ---------------------------------------------------------------- guards that mutation tests found untested


def test_a_lock_that_the_system_refuses_is_not_reported_as_another_writer(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available") as caught, hold_lock(tmp_path / "a"):
        pytest.fail("the block must not run")
    assert type(caught.value) is OSError


@pytest.fixture
def synced(monkeypatch) -> list[tuple[int, bool]]:
    """Inode of each file and folder that is synced, and whether it is a folder."""
    seen, real = list[tuple[int, bool]](), os.fsync

    def note(descriptor: int) -> None:
        info = os.fstat(descriptor)
        seen.append((info.st_ino, stat.S_ISDIR(info.st_mode)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return seen


def test_a_text_is_synced_and_then_its_folder(synced, tmp_path):
    write_text(tmp_path / "a.txt", "a")
    file, folder = ((path.stat().st_ino, path.is_dir()) for path in (tmp_path / "a.txt", tmp_path))
    assert file in synced and folder in synced
    last_sync_of_folder = len(synced) - 1 - synced[::-1].index(folder)
    assert synced.index(file) < last_sync_of_folder


def test_a_folder_and_a_file_never_replace_each_other(tmp_path):
    with atomic_path(tmp_path / "folder") as new:
        new.mkdir()
        (new / "a.txt").write_text("a")
    with pytest.raises(SaveError, match="is a folder, and a file should go there"):
        write_text(tmp_path / "folder", "a text")
    write_text(tmp_path / "a.txt", "a text")
    refused = pytest.raises(SaveError, match="is a file, and a folder should go there")
    with refused, atomic_path(tmp_path / "a.txt") as new:
        new.mkdir()
    with pytest.raises(SaveError, match="the block wrote nothing"), atomic_path(tmp_path / "a.txt"):
        pass
    assert digest(tmp_path / "folder") and (tmp_path / "a.txt").read_text() == "a text"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_text_that_the_disk_changes_is_not_put_in_place(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(Path, "write_text", lambda self, text, **options: self.write_bytes(text.upper().encode()))
    with pytest.raises(SaveError, match="the text that was read back differs from the text that was written"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_bytes() == b"old"


def test_folders_that_a_save_makes_are_synced(synced, tmp_path):
    with atomic_folder(tmp_path / "a" / "b" / "model") as folder:
        (folder / "x").write_text("x")
    assert {(path.stat().st_ino, True) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")} <= set(synced)


def test_an_empty_folder_may_be_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "model" / "x").read_text() == "x"


def test_a_file_replaces_a_link_to_a_folder(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    with atomic_file(tmp_path / "a") as new:
        new.write_text("a")
    assert (tmp_path / "a").read_text() == "a" and not list((tmp_path / "theirs").iterdir())


def test_a_changed_file_is_reported_as_damage_before_its_pin(tmp_path):
    with atomic_file(tmp_path / "a") as new:
        new.write_text("a")
    (tmp_path / "a").write_text("b")
    with pytest.raises(IntegrityError, match="expected 1 bytes with sha256 .*, got 1 bytes with sha256"):
        read_file(tmp_path / "a", expected_sha256="0" * 64)


def test_the_size_of_a_window_is_limited():
    with pytest.raises(ConfigError, match="4,000,000 values of a layer for one window, got .* and 8,000,000"):
        list_weight_shapes(CONFIG.replace(sequence_length=1_000_000))


def _stored(array: np.ndarray) -> bytes:
    np.savez(buffer := io.BytesIO(), a=array)
    return buffer.getvalue()


def test_the_size_of_bundle_arrays_is_checked_before_they_are_read():
    with pytest.raises(BundleError, match=r"a: expected \(3,\) numbers, not compressed, got 4,\d+ bytes"):
        decode_weights(_stored(np.zeros(1000, "f4")), {"a": (3,)}, "x")
    with pytest.raises(BundleError, match="^'x': expected the arrays b, got a"):
        decode_weights(_stored(np.zeros(3, "f4")), {"b": (3,)}, "x")


def test_a_scaler_of_another_model_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    other = SimpleNamespace(**{**vars(run.data), "scaler": replace(run.data.scaler, kind="minmax")})
    with pytest.raises(BundleError) as caught:
        save_bundle(SimpleNamespace(config=CONFIG, model=run.model, data=other), tmp_path / "btc")
    assert str(caught.value).startswith(repr(str(tmp_path / "btc" / "scaler.json")))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda f: f.attrs.__setitem__("model_config", ["{}", "{}"]), "^model_config: expected one text, got object"),
        (lambda f: f.attrs.__setitem__("model_config", 3), "^model_config: expected one text, got int64"),
        (
            lambda f: f.update({"a": np.zeros(3, "f4"), "b": h5py.SoftLink("/a")}),
            "^b is a link to another place or file",
        ),
        (lambda f: (f.update({"a": np.zeros(3, "f4")}), f.__setitem__("b", f["a"])), "objects with one name each"),
        (lambda f: f.create_dataset("a", data=np.void(b"12345")), "^a: expected plain numbers, got .V5"),
        (
            lambda f: f.create_dataset("a", (3,), "f4"),
            "^a: expected 12 bytes in one piece, not compressed, in this file; got 0",
        ),
        (lambda f: f.create_dataset("a", data=np.zeros(3, np.longdouble)), "^a: expected plain numbers, got float128"),
        (
            lambda f: f.create_dataset("a", (3,), h5py.enum_dtype({"x": 1}, "i1")),
            "^a: expected plain numbers, got int8",
        ),
    ],
)
def test_hdf5_content_other_than_plain_arrays_is_refused(make, fault):
    with pytest.raises(Hdf5Error, match=fault):
        read_arrays(_file(make))


def test_a_network_description_that_is_a_list_is_refused():
    with pytest.raises(UnsafeModelError, match=r"expected a Functional or Sequential network, got \[1\]"):
        check_network([1], "x")


MODE = "expected a file, got a link, a special file or an encrypted member"
MEMBERS_SPOILT = {
    "packed": (lambda m: _archive(m, zipfile.ZIP_DEFLATED), "expected a member that is not compressed"),
    "a link": (lambda m: _archive(m, external_attr=(stat.S_IFLNK | 0o777) << 16), MODE),
    "a device": (lambda m: _archive(m, external_attr=(stat.S_IFCHR | 0o666) << 16), MODE),
    "one more": (lambda m: _archive({**m, "evil.py": b""}), "expected an archive of config.json"),
    "one missing": (lambda m: _archive({"config.json": b""}), "expected an archive of config.json"),
    "a secret": (lambda m: _with_flag(_archive(m)), MODE),
    "sizes that differ": (lambda m: _with_size(_archive(m)), "expected a member that is not compressed"),
}


def _with_flag(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[data.rfind(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def _with_size(data: bytes) -> bytes:
    changed, place = bytearray(data), data.rfind(b"PK\x01\x02") + 24
    struct.pack_into("<I", changed, place, struct.unpack_from("<I", changed, place)[0] - 1)
    return bytes(changed)


@pytest.mark.parametrize("name", MEMBERS_SPOILT)
def test_an_archive_with_other_members_is_refused(name, saved):
    make, fault = MEMBERS_SPOILT[name]
    with pytest.raises(UnsafeModelError, match=fault):
        foreign.read_archive(make(_members(saved.read_bytes())), "x")


def test_a_compressed_member_of_equal_size_is_refused(saved):
    """The compressed size equals the plain size, and the member is compressed nevertheless."""
    text = next(b"a" * k for k in range(1, 99) if len(zlib.compress(b"a" * k, wbits=-15)) == k)
    members = _members(saved.read_bytes())
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as file:
        for name, data in members.items():
            packed = name == "metadata.json"
            file.writestr(name, text if packed else data, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    with pytest.raises(UnsafeModelError, match="metadata.json: expected a member that is not compressed"):
        foreign.read_archive(buffer.getvalue(), "x")


def test_the_error_names_the_optimizer_that_is_not_allowed(run):
    with pytest.raises(UnsafeModelError, match="^'x': the optimizer 'evil' is not allowed"):
        compile_network(run.model, {"optimizer": "evil"}, "x")


def test_archives_of_other_writers_are_accepted_and_broken_ones_refused(saved):
    members = _members(saved.read_bytes())
    for attribute in (0, 0o600 << 16, (stat.S_IFREG | 0o644) << 16):
        assert foreign.read_archive(_archive(members, external_attr=attribute), "x") == members
    with pytest.raises(ModelIntegrityError, match="its archive is broken"):
        foreign.read_archive(saved.read_bytes()[:-10], "x")


MATCHES = {
    "missing": ({}, "missing a, not expected none"),
    "extra": ({"a": np.zeros(3, "f4"), "b": np.zeros(3, "f4")}, "missing none, not expected b"),
    "another shape": ({"a": np.zeros((3, 1), "f4")}, r"a: expected float32 \(3,\), got float32 \(3, 1\)"),
    "another type": ({"a": np.zeros(3, "f8")}, r"a: expected float32 \(3,\), got float64"),
    "NaN": ({"a": np.float32([0, np.nan, 1])}, "a: expected finite weights, got 1"),
}


@pytest.mark.parametrize("name", MATCHES)
def test_weights_that_do_not_fit_the_network_are_refused(name):
    found, fault = MATCHES[name]
    with pytest.raises(ModelIntegrityError, match=fault):
        foreign._select_weights(found, {"a": (3,)}, "x")


@pytest.mark.parametrize("text", ["5", '"schema"', "[]", "{}"])
def test_a_manifest_without_schema_is_refused(text, tmp_path):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(IntegrityError, match="is not a manifest: it has no field schema"):
        read_manifest(tmp_path / MANIFEST)


def test_an_unknown_suffix_stays_in_the_name(run, tmp_path):
    assert save_model(run.model, tmp_path / "model.V2", overwrite=False).model.name == "model.V2.keras"
    with pytest.raises(ModelFileError, match="already exists; choose another path or pass overwrite=True"):
        save_model(run.model, tmp_path / "model.V2", overwrite=False)


def test_a_saved_model_replaces_only_a_saved_model(run, tmp_path):
    save_bundle(run, tmp_path / "btc")
    before = digest(tmp_path)
    message = "exists and is no SavedModel folder of this package; saving would remove it"
    with pytest.raises(ModelFileError, match=message):
        save_model(run.model, tmp_path / "btc", "saved_model")
    assert digest(tmp_path) == before
    for _ in range(2):
        assert save_model(run.model, tmp_path / "model", "saved_model").model.is_dir()


def test_a_file_with_the_metadata_of_another_file_is_refused(path):
    manifest_path(path).unlink()
    copy = path.with_name("model_metadata.json")
    copy.write_text(json.dumps(json.loads(copy.read_text()) | {"sha256": "0" * 64}))
    message = "is not the file that model_metadata.json describes: expected sha256 0000"
    with pytest.raises(ModelIntegrityError, match=message):
        load_model(path)
