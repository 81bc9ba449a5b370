"""Model files from anywhere: attacks that must do nothing, changed bytes that must not be taken, and kills inside a save."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import stat
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faults
import h5py
import keras
import numpy as np
import pytest

from crypto_lstm.architecture import build_model
from crypto_lstm.bundle import load_bundle, save_bundle
from crypto_lstm.commit import manifest_path
from crypto_lstm.config import Config, CryptoLSTMError
from crypto_lstm.network import KerasVersionError
from crypto_lstm.persistence import (
    FORMATS,
    DamagedModelError,
    ModelFileError,
    ModelMismatchError,
    UnsafeModelError,
    load_model,
    load_report,
    save_model,
)
from crypto_lstm.sealed import MANIFEST, DamagedError, seal
from crypto_lstm.synthetic import synthetic_candles
from crypto_lstm.windows import prepare

CONFIG = Config(timeframe="1h", sequence_length=12, future_window=24, lstm_units=(8, 4), dense_units=(4,), batch_size=64)
SEED = 20261123


def digest(folder: Path) -> dict[str, str]:
    """What lies below a folder: links as links, files by their hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "other"
    return found


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """Two generations of the network in each format."""
    place = tmp_path_factory.mktemp("saved")
    other = build_model(CONFIG.replace(seed=7))
    for name in FORMATS:
        save_model(model, place / name / "now" / "model", name, config=CONFIG)
        save_model(other, place / name / "other" / "model", name, config=CONFIG)
    return place


def file_of(folder: Path, format: str) -> Path:
    return folder / f"model{FORMATS[format]}"


# ---------------------------------------------------------------- what Python does meanwhile

FORBIDDEN = (
    *("socket.", "pickle.", "marshal.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork"),
    *("urllib", "exec", "compile", "import"),
)
_events: list[tuple[str, str]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and (event in ("open", "subprocess.Popen") or event.startswith(FORBIDDEN)):
        _events.append((event, repr(arguments)[:500]))


sys.addaudithook(_hook)


@pytest.fixture
def watched(tmp_path) -> Iterator[Callable[[Callable[[], object]], list[tuple[str, str]]]]:
    """Runs something, and gives every event that a reader of a file below `tmp_path` has no reason for."""

    def watch(act: Callable[[], object]) -> list[tuple[str, str]]:
        global _events
        _events = []
        try:
            act()
        finally:
            seen, _events = _events, None
        return [(event, said) for event, said in seen if not _harmless(event, said, tmp_path)]

    yield watch


def _harmless(event: str, said: str, place: Path) -> bool:
    if event == "subprocess.Popen":
        return "from crypto_lstm.hdf5 import _child" in said  # the reader that may open nothing
    if event == "compile":
        return said.endswith("'<unknown>')")  # NumPy reads the header of an array by `ast.literal_eval`: to run it would be another event
    if event != "open":
        return False
    name, _, flags = said.strip("()").rsplit(", ", 2)
    if name.isdigit() or "/dev/null" in name or name == repr(tempfile.gettempdir()):  # the last is a file without a name
        return True
    return not int(flags) & (os.O_WRONLY | os.O_RDWR) and str(place) in name


def test_the_watch_sees_what_it_should(tmp_path, watched):
    (tmp_path / "inside").write_text("x")
    assert watched(lambda: (tmp_path / "inside").read_text()) == []
    assert [event for event, _ in watched(lambda: open("/etc/hostname").close())] == ["open"]
    assert [event for event, _ in watched(lambda: open(tmp_path / "inside", "w").close())] == ["open"]
    assert "exec" in [event for event, _ in watched(lambda: exec("1"))]
    assert [event for event, _ in watched(lambda: pickle.loads(pickle.dumps(Path)))] == ["pickle.find_class"]


# ---------------------------------------------------------------- attacks: harmless stand-ins

Document = dict[str, Any]


def _in(*keys: Any, value: Any) -> Callable[[Document, Path], Document]:
    def change(document: Document, _: Path) -> Document:
        target = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value
        return document

    return change


def _layer(kind: str, module: str = "keras.layers", **config: Any) -> Document:
    return {"module": module, "class_name": kind, "config": {"name": "evil", **config}, "registered_name": None, "name": "evil"}


def _lambda(document: Document, canary: Path) -> Document:
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}}
    document["config"]["layers"][3] = _layer("Lambda", function=code, arguments={"path": str(canary)})
    return document


def _touching(module: str, name: str) -> Callable[[Document, Path], Document]:
    """A layer that would make a file if its class were called."""

    def change(document: Document, canary: Path) -> Document:
        config = {"name": str(canary), "path": str(canary)}
        document["config"]["layers"][3] = {"module": module, "class_name": name, "config": config, "registered_name": None}
        return document

    return change


_LAYER = ("config", "layers", 1)
_FUNCTION = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
CONFIG_ATTACKS: dict[str, Callable[[Document, Path], Document]] = {
    "Lambda": _lambda,
    "TFSMLayer": _in("config", "layers", 3, value=_layer("TFSMLayer", filepath="/etc", call_endpoint="serve")),
    "TorchModuleWrapper": _in("config", "layers", 3, value=_layer("TorchModuleWrapper", module="gASVAA==")),
    "a class of the system": _touching("pathlib", "Path"),
    "os.system as a layer": _touching("os", "system"),
    "subprocess.Popen as a layer": _touching("subprocess", "Popen"),
    "a registered class": _in(*_LAYER, "registered_name", value="evil>LSTM"),
    "a module of Keras itself": _in(*_LAYER, "module", value="keras.utils"),
    "keras.utils.get_file as a layer": _touching("keras.utils", "get_file"),
    "a network inside": _in(*_LAYER, "class_name", value="Functional"),
    "TimeDistributed": _in("config", "layers", 3, value=_layer("TimeDistributed", layer=_layer("Lambda"))),
    "code as activation": _in(*_LAYER, "config", "activation", value=_FUNCTION),
    "code as gate": _in(*_LAYER, "config", "recurrent_activation", value=_FUNCTION),
    "code as initializer": _in(*_LAYER, "config", "kernel_initializer", value=_FUNCTION),
    "initializer from elsewhere": _in(*_LAYER, "config", "kernel_initializer", "module", value="os"),
    "code inside an initializer": _in(*_LAYER, "config", "kernel_initializer", "config", value={"seed": _FUNCTION}),
    "code as regularizer": _in(*_LAYER, "config", "kernel_regularizer", value=_FUNCTION),
    "code as constraint": _in(*_LAYER, "config", "bias_constraint", value=_FUNCTION),
    "dtype policy from elsewhere": _in(*_LAYER, "config", "dtype", value={**_FUNCTION, "module": "os", "config": {"name": "id"}}),
    "quantization": _in("config", "layers", 3, "config", "quantization_config", value=_FUNCTION),
    "call arguments": _in(*_LAYER, "inbound_nodes", 0, "kwargs", value={"training": _FUNCTION}),
    "a loop": _in(*_LAYER, "inbound_nodes", 0, "args", 0, "config", "keras_history", value=["trading_decisions", 0, 0]),
    "the network's class": _in("class_name", value="Lambda"),
    "the network's module": _in("module", value="subprocess"),
    "a billion units": _in(*_LAYER, "config", "units", value=10**9),
    "too many weights": _in(*_LAYER, "config", "units", value=65_536),
    "a window of a billion": _in("config", "layers", 0, "config", "batch_shape", value=[None, 10**9, 8]),
    "unrolled": _in(*_LAYER, "config", "unroll", value=True),
    "ten thousand layers": lambda d, _: _in("config", "layers", value=[d["config"]["layers"][1]] * 10_000)(d, _),
    "a path as name": _in("config", "name", value="../../../evil"),
}


def _text_attacks(text: str) -> dict[str, str]:
    """Descriptions that are no good JSON."""
    return {
        "equal keys": text.replace('"units": 8', '"units": 8, "units": 8'),
        "deep": text.replace('"units": 8', '"units": ' + "[" * 100_000 + "]" * 100_000),
        "a number of a million digits": text.replace('"units": 8', '"units": ' + "9" * 1_000_000),
        "infinity": text.replace('"units": 8', '"units": 1e999'),
        "NaN": text.replace('"units": 8', '"units": NaN'),
        "a list": "[]",
        "nothing": "",
    }


def _archive(members: dict[str, bytes], packed: int = zipfile.ZIP_STORED, **attributes: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = packed
            for key, value in attributes.items():
                setattr(info, key, value)
            file.writestr(info, data)
    return buffer.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class _Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def archive_attacks(data: bytes, canary: Path) -> dict[str, bytes]:
    """Archives that are more than three members."""
    members = _members(data)
    bomb = {**members, "model.weights.h5": bytes(20_000_000)}
    lying = bytearray(data)
    end = data.rfind(b"PK\x01\x02")
    struct.pack_into("<II", lying, end + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    secret = bytearray(data)
    secret[end + 8] |= 1
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as file, pytest.warns(UserWarning):
        for name, content in [*members.items(), ("config.json", b"{}")]:
            file.writestr(name, content)
    return {
        "packed": _archive(members, zipfile.ZIP_DEFLATED),
        "bomb": _archive(bomb, zipfile.ZIP_DEFLATED),
        "bomb, lzma": _archive(bomb, zipfile.ZIP_LZMA),
        "path upwards": _archive({**members, f"../../{canary.name}": b"x"}),
        "path from the root": _archive({**members, str(canary): b"x"}),
        "link": _archive({**members, "model.weights.h5": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16),
        "device": _archive(members, external_attr=(stat.S_IFCHR | 0o666) << 16),
        "a pickle beside": _archive({**members, "data.pkl": pickle.dumps(_Touch(canary))}),
        "a pickle as weights": _archive({**members, "model.weights.h5": pickle.dumps(_Touch(canary))}),
        "a pickle as config": _archive({**members, "config.json": pickle.dumps(_Touch(canary))}),
        "assets": _archive({**members, "assets/layer/evil.py": b"open('x', 'w')"}),
        "npz instead of HDF5": _archive({**{k: v for k, v in members.items() if "h5" not in k}, "model.weights.npz": b""}),
        "a thousand members": _archive({**members, **{f"m{k}": b"" for k in range(1000)}}),
        "one member twice": twice.getvalue(),
        "sizes that lie": bytes(lying),
        "a secret": bytes(secret),
        "no weights": _archive({**members, "model.weights.h5": b""}),
    }


def _hdf5(data: bytes, change: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def hdf5_attacks(place: str, outside: Path) -> dict[str, Callable[[Any], object]]:
    """Changes of an HDF5 file; `place` is the group with a weight called `name`."""
    group, _, name = place.rpartition("/")

    def instead(make: Callable[[Any], object]) -> Callable[[Any], object]:
        def change(file: Any) -> None:
            del file[place]
            make(file[group])

        return change

    return {
        "soft link": instead(lambda g: g.__setitem__(name, h5py.SoftLink("/"))),
        "link to another file": instead(lambda g: g.__setitem__(name, h5py.ExternalLink(str(outside), "/a"))),
        "link beside": lambda f: f.__setitem__("more", h5py.ExternalLink(str(outside), "/a")),
        "a group that holds itself": lambda f: f.create_group("a").__setitem__("b", f["/"]),
        "one array under two names": lambda f: f.__setitem__("again", f[place]),
        "a trillion numbers that are not there": instead(lambda g: g.create_dataset(name, (10**12,), "f4")),
        "packed zeros": instead(lambda g: g.create_dataset(name, data=np.zeros(10**7, "f4"), compression="gzip")),
        "pieces": instead(lambda g: g.create_dataset(name, data=np.zeros((8, 32), "f4"), chunks=(4, 4))),
        "data of another file": instead(lambda g: g.create_dataset(name, (8, 32), "f4", external=[(str(outside), 0, 1024)])),
        "virtual": instead(lambda g: g.create_virtual_dataset(name, h5py.VirtualLayout((8, 32), "f4"))),
        "pickled objects": instead(lambda g: g.create_dataset(name, data=np.void(pickle.dumps(_Touch(outside))))),
        "references": instead(lambda g: g.create_dataset(name, (8, 32), h5py.ref_dtype)),
        "texts": instead(lambda g: g.create_dataset(name, data=["evil"] * 8)),
        "thirty levels": lambda f: f.create_group("/".join("a" * 30)),
        "ten thousand groups": lambda f: [f.create_group(f"g/{k}") for k in range(10_000)],
        "float64": instead(lambda g: g.create_dataset(name, data=np.zeros((8, 32)))),
        "another shape": instead(lambda g: g.create_dataset(name, data=np.zeros((32, 8), "f4"))),
        "missing": instead(lambda g: None),
        "extra": lambda f: f[group].__setitem__("extra", np.zeros(3, "f4")),
        "NaN": lambda f: f[place].__setitem__((0, 0), np.nan),
        "infinity": lambda f: f[place].__setitem__((0, 0), -np.inf),
    }


def resealed(folder: Path, format: str, data: bytes) -> None:
    """Put `data` in the place of a saved model, under a manifest that fits: what an attacker would do."""
    if format == "saved_model":
        inner = folder / "model" / "assets.extra" / "model.keras"
        inner.write_bytes(data)
        manifest, name = folder / "model" / MANIFEST, "assets.extra/model.keras"
        document = json.loads(manifest.read_text())
        document["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    else:
        file_of(folder, format).write_bytes(data)
        manifest = manifest_path(file_of(folder, format))
        document = json.loads(manifest.read_text())
        document["versions"][0] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_bytes(seal({key: value for key, value in document.items() if key != "seal"}))


WEIGHT = {"keras": "layers/lstm/cell/vars/0", "h5": "model_weights/lstm_layer_1_8units/lstm_layer_1_8units/lstm_cell/kernel"}


def all_attacks(saved: Path, canary: Path, outside: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, format and bytes of each attack on a model file."""
    whole = {name: file_of(saved / name / "now", name).read_bytes() for name in ("keras", "h5")}
    members = _members(whole["keras"])
    with h5py.File(io.BytesIO(whole["h5"]), "r") as file:
        described = {"keras": members["config.json"].decode(), "h5": str(file.attrs["model_config"])}
    for format, text in described.items():
        texts = {name: json.dumps(change(json.loads(text), canary)) for name, change in CONFIG_ATTACKS.items()}
        for name, content in {**texts, **_text_attacks(text)}.items():
            if format == "keras":
                yield name, format, _archive({**members, "config.json": content.encode()})
            elif len(content) < 60_000:  # what an attribute holds
                yield name, format, _hdf5(whole["h5"], lambda f, c=content: f.attrs.__setitem__("model_config", c))
        weights = members["model.weights.h5"] if format == "keras" else whole["h5"]
        for name, change in hdf5_attacks(WEIGHT[format], outside).items():
            changed = _hdf5(weights, change)
            yield name, format, _archive({**members, "model.weights.h5": changed}) if format == "keras" else changed
    for name, data in archive_attacks(whole["keras"], canary).items():
        yield name, "keras", data
    yield "a pickle", "keras", pickle.dumps(_Touch(canary))
    yield "a pickle", "h5", pickle.dumps(_Touch(canary))


def attack(path: Path, watched: Any) -> tuple[CryptoLSTMError, list[tuple[str, str]]]:
    """The error of `load_model`, and what was seen meanwhile; the folder must stay as it was."""
    before, caught = digest(path.parent), []

    def act() -> None:
        try:
            load_model(path)
        except CryptoLSTMError as error:
            caught.append(error)

    seen = watched(act)
    assert digest(path.parent) == before
    assert caught, "it was loaded"
    return caught[0], seen


def test_attacks_do_nothing(saved, model, tmp_path, watched):
    """Each as a file of nobody, and under a manifest that fits, as a file and inside a SavedModel folder."""
    canary, outside = tmp_path / "canary", tmp_path / "outside.h5"
    os.mkfifo(outside)  # to open it would take for ever
    load_model(saved / "keras" / "now" / "model.keras")  # what Keras loads late is loaded
    plain = tmp_path / "warm" / "model.keras"
    plain.parent.mkdir()
    shutil.copy(saved / "keras" / "now" / "model.keras", plain)
    load_model(plain)
    done, start = 0, time.monotonic()
    for name, format, data in all_attacks(saved, canary, outside):
        for place in ("nobody's", "resealed", "saved_model"):
            if place == "saved_model" and format == "h5":
                continue
            folder = tmp_path / "place"
            shutil.rmtree(folder, ignore_errors=True)
            if place == "nobody's":
                path = file_of(folder, format)
                folder.mkdir()
                path.write_bytes(data)
            else:
                kind = "saved_model" if place == "saved_model" else format
                shutil.copytree(saved / kind / "now", folder)
                resealed(folder, kind, data)
                path = file_of(folder, kind)
            try:
                error, seen = attack(path, watched)
            except AssertionError as fault:
                raise AssertionError(f"{name} ({format}, {place}): {fault}") from fault
            assert isinstance(error, (DamagedModelError, UnsafeModelError)), (name, format, place, error)
            assert str(path) in str(error) and "; " in str(error), (name, error)
            assert not seen, (name, format, place, seen)
            assert not canary.exists(), (name, format, place)
            done += 1
    print(f"{done} attacks in {time.monotonic() - start:.0f} s")
    assert done > 200


@pytest.mark.parametrize("change", ["loss", "optimizer", "metrics", "hook"])
def test_code_in_compile_settings(saved, tmp_path, watched, change):
    members = _members(file_of(saved / "keras" / "now", "keras").read_bytes())
    document = json.loads(members["config.json"])
    document["compile_config"][change] = copy.deepcopy(_FUNCTION)
    path = tmp_path / "place" / "model.keras"
    path.parent.mkdir()
    path.write_bytes(_archive({**members, "config.json": json.dumps(document).encode()}))
    error, seen = attack(path, watched)
    assert isinstance(error, UnsafeModelError) and "pass compile=False" in str(error) and not [s for s in seen if s[0] != "open"]
    assert load_model(path, compile=False).count_params() == build_model(CONFIG).count_params()


def test_attacks_on_a_bundle(tmp_path, watched, model):
    """Changed files under a manifest that fits."""
    folder, canary = tmp_path / "bundle", tmp_path / "canary"
    save_bundle(SimpleNamespace(config=CONFIG, model=model, data=prepare(synthetic_candles(1600, seed=3, timeframe="1h"), CONFIG)), folder)
    load_bundle(folder)
    good = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}
    arrays = dict(np.load(io.BytesIO(good["weights.npz"])))
    first = next(iter(arrays))

    def npz(packed: bool = False, **change: Any) -> bytes:
        buffer = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(buffer, **{**arrays, **change})
        return buffer.getvalue()

    text = good["config.json"].decode()
    settings = json.loads(text)
    attacks = {
        "pickled objects": ("weights.npz", npz(**{first: np.array([_Touch(canary)], dtype=object)})),
        "a pickle": ("weights.npz", pickle.dumps(_Touch(canary))),
        "pickled golden": ("golden.npz", pickle.dumps(_Touch(canary))),
        "packed zeros": ("weights.npz", npz(packed=True, **{first: np.zeros(10**7, "f4")})),
        "extra": ("weights.npz", npz(extra=np.zeros(3, "f4"))),
        "NaN": ("weights.npz", npz(**{first: arrays[first] * np.nan})),
        "float64": ("weights.npz", npz(**{first: arrays[first].astype("f8")})),
        "other weights": ("weights.npz", npz(**{first: arrays[first] + 1})),
        "equal keys": ("config.json", text.replace('"pair"', '"pair": "x", "pair"').encode()),
        "deep": ("config.json", b"[" * 100_000 + b"]" * 100_000),
        "a billion units": ("config.json", json.dumps({**settings, "lstm_units": [10**9]}).encode()),
        "huge number": ("config.json", text.replace("12", "9" * 10_000).encode()),
        "a window of a billion": ("config.json", json.dumps({**settings, "sequence_length": 10**9}).encode()),
        "unknown setting": ("config.json", json.dumps({**settings, "hook": "os.system"}).encode()),
        "scaler of nobody": ("scaler.json", b"{}"),
        "code beside": ("evil.py", b"open('x', 'w')"),
        "path upwards": ("../evil", b"x"),
    }
    for name, (file, data) in attacks.items():
        target = tmp_path / "place" / "bundle"
        shutil.rmtree(target.parent, ignore_errors=True)
        shutil.copytree(folder, target)
        manifest = json.loads((target / MANIFEST).read_text())
        (target / file).write_bytes(data)
        manifest["files"][file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (target / MANIFEST).write_bytes(seal({key: value for key, value in manifest.items() if key != "seal"}))
        before, caught = digest(target.parent), []

        def act(target: Path = target, caught: list[Any] = caught) -> None:
            try:
                load_bundle(target)
            except CryptoLSTMError as error:
                caught.append(error)

        seen = watched(act)
        assert caught and isinstance(caught[0], DamagedError), (name, caught)
        assert str(target) in str(caught[0]) and not seen and not canary.exists(), (name, caught, seen)
        assert digest(target.parent) == before


# ---------------------------------------------------------------- changed bytes


@dataclass
class MutationReport:
    """What `load_model` made of changed files. Wrong: accepted with other numbers, or another error than the package's, or too slow."""

    seed: int
    done: int = 0
    refused: int = 0
    same: int = 0  # accepted, with the very numbers that were saved
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.done} mutations, {self.refused} refused, {self.same} with equal numbers, {len(self.wrong)} wrong, seed {self.seed}"
        return "\n".join([text, *self.wrong[:5]])


def _try(path: Path, model: keras.Model, said: str, report: MutationReport, exact: bool = True) -> None:
    report.done += 1
    start = time.monotonic()
    try:
        came = load_model(path, compile=False)
    except CryptoLSTMError:
        report.refused += 1
    except Exception as error:
        report.wrong.append(f"{said}: {error!r}")
    else:
        equal = all(np.array_equal(a, b) for a, b in zip(came.get_weights(), model.get_weights(), strict=True))
        if exact and not (equal and came.get_config() == model.get_config()):
            report.wrong.append(f"{said}: accepted with other numbers")
        report.same += 1
    if time.monotonic() - start > 60:
        report.wrong.append(f"{said}: {time.monotonic() - start:.0f} s")


def mutation_rounds(saved: Path, model: keras.Model, format: str, n: int, place: Path, seed: int = SEED) -> MutationReport:
    """`n` changes of a saved model, each of a fresh copy of its folder."""
    chance, report = random.Random(seed), MutationReport(seed)
    while report.done < n:
        folder = place / "mutated" / "now"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(saved / format / "now", folder)
        if said := faults.mutate(folder, saved / format / "other", chance):
            _try(file_of(folder, format), model, said, report)
    return report


def foreign_mutation_rounds(saved: Path, model: keras.Model, format: str, n: int, place: Path, seed: int = SEED) -> MutationReport:
    """`n` changes of a file that has no manifest. A `.keras` file has checksums; of an `.h5` one can only ask that nothing crashes."""
    chance, report = random.Random(seed), MutationReport(seed)
    data = file_of(saved / format / "now", format).read_bytes()
    place.mkdir(exist_ok=True)
    path = file_of(place, format)
    while report.done < n:
        kind = chance.choice(("bit", "truncate", "append", "splice", "zero page"))
        if faults._rewrite(path, data, kind, chance.randrange(len(data)), chance):
            _try(path, model, f"{kind} {report.done}", report, exact=format == "keras")
    return report


@pytest.mark.parametrize("format", FORMATS)
def test_mutations(saved, model, tmp_path, format):
    report = mutation_rounds(saved, model, format, 200, tmp_path)
    print(report)
    assert not report.wrong and report.refused > 80


@pytest.mark.parametrize(("format", "n"), [("keras", 60), ("h5", 20)])
def test_mutations_without_manifest(saved, model, tmp_path, format, n):
    report = foreign_mutation_rounds(saved, model, format, n, tmp_path / "place")
    print(report)
    assert not report.wrong and report.refused


# ---------------------------------------------------------------- kills

WRITER = """
import sys
from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.persistence import save_model
path, format, first = sys.argv[1:]
model = build_model(Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,)), compile_model=False)
for number in range(int(first), int(first) + 10_000):
    for variable in model.weights:
        variable.assign(variable * 0 + number)
    print("begin", number, flush=True)
    save_model(model, path, format, metadata={"number": number})
    print("end", number, flush=True)
"""


def kill_rounds(format: str, kills: int, place: Path, seed: int = SEED) -> faults.KillReport:
    """Kills at random moments of saves; what is found must be one generation in all its parts."""

    def read() -> int | None:
        found = load_model(place / "model", compile=False)
        number = load_report(found).metadata["metadata"]["number"]
        if {float(v) for array in found.get_weights() for v in array.flat} != {float(number)}:
            raise AssertionError("weights and metadata are not of one generation")
        return number

    return faults.kill_rounds([sys.executable, "-c", WRITER, str(place / "model"), format], read, kills=kills, seed=seed, longest_s=1.0)


@pytest.mark.parametrize("format", FORMATS)
def test_kills(tmp_path, format):
    model = build_model(CONFIG, compile_model=False)
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    save_model(model, tmp_path / "model", format, metadata={"number": 0})
    report = kill_rounds(format, 2, tmp_path)
    print(report)
    assert not report.lost and not report.torn


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
    assert "save it again" in refused(copied, DamagedModelError, "expected .* bytes.*, got 0")


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
    assert "save it again" in refused(copied, DamagedModelError, "expected .*(sha256|bytes).*, got .*")


@pytest.mark.parametrize("key", ["features", "classes"])
def test_names_reordered_in_metadata(copied, key):
    """In the copy for people, and in the manifest under a good seal."""
    copy_ = (copied.path if copied.format == "saved_model" else copied.folder) / "model_metadata.json"
    facts = json.loads(copy_.read_text(encoding="utf-8"))
    copy_.write_text(json.dumps({**facts, key: facts[key][::-1]}), encoding="utf-8")
    refused(copied, DamagedModelError, "manifest|expected sha256|expected .* bytes")
    copy_.write_text(json.dumps(facts), encoding="utf-8")
    document = json.loads(manifest_of(copied).read_text())
    noted = document["facts"] if copied.format == "saved_model" else document["versions"][0]["facts"]
    noted[key] = noted[key][::-1]
    if copied.format == "saved_model":
        data = copy_.read_bytes()
        document["files"]["model_metadata.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    else:
        copy_.unlink()
    manifest_of(copied).write_bytes(seal({k: value for k, value in document.items() if k != "seal"}))
    refused(copied, ModelMismatchError, f"{key}: expected .*, got ", config=CONFIG)


def test_other_schema(copied):
    document = json.loads(manifest_of(copied).read_text())
    for schema in (0, 2):
        manifest_of(copied).write_bytes(seal({**{k: v for k, v in document.items() if k != "seal"}, "schema": schema}))
        assert "use the version that wrote it" in refused(copied, DamagedModelError, f"expected schema 1, got {schema}")


def test_link_in_the_place_of_the_file(copied, tmp_path):
    file = numbers_of(copied)
    shutil.move(file, tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    refused(copied, DamagedModelError, "link")


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
    refused(copied, DamagedModelError, "expected the sha256 0000.*than the one you pinned", expected_sha256="0" * 64)


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
    with pytest.raises(DamagedModelError, match="manifest|you pinned"):
        load_model(folder / "model.h5", expected_sha256=pinned)


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_the_seed_s_network_from_plain_keras(tmp_path, format, caplog):
    """The default architecture, saved by `model.save` alone."""
    model = build_model()
    model.save(tmp_path / f"plain{FORMATS[format]}")
    loaded = load_model(tmp_path / f"plain{FORMATS[format]}", config=Config())
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))
    assert "loaded unchecked" in caplog.text and len(load_report(loaded).unchecked) == 3
