"""Harmless versions of the published attacks on model files, and the reader's actions, seen by an audit hook.

`on_model_files` and `on_folders` run all attacks. Each must be refused by an error that names the path. The reader must
run no code, open no other file and no socket, start no process except the reader of HDF5, and change nothing.
"""

from __future__ import annotations

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
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras
import numpy as np

from crypto_lstm.architecture import build_model
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.persistence import FORMATS, load_model, save_model
from crypto_lstm.saving.model_schema import ModelIntegrityError, UnsafeModelError
from crypto_lstm.storage.manifest import MANIFEST, IntegrityError, encode_manifest
from crypto_lstm.storage.verified import manifest_path
from crypto_lstm.training.checkpointing import read_state
from crypto_lstm.utils.errors import CryptoLSTMError
from support import save_load_cases as saves

CONFIG = saves.CONFIG.replace(sequence_length=12, lstm_units=(8, 4), dense_units=(4,))


def digest(folder: Path) -> dict[str, str]:
    """Name of everything below a folder, with the hash of a file or the target of a link."""
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


def file_of(folder: Path, format: str) -> Path:
    return folder / f"model{FORMATS[format]}"


def save_all(place: Path, model: keras.Model) -> None:
    """Two saves of a network in each format: `FORMAT/now` and `FORMAT/other`."""
    other = build_model(CONFIG.replace(seed=7))
    for name in FORMATS:
        save_model(model, place / name / "now" / "model", name, config=CONFIG)
        save_model(other, place / name / "other" / "model", name, config=CONFIG)


# ---------------------------------------------------------------- the audit hook

FORBIDDEN = (
    *("socket.", "pickle.", "marshal.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork"),
    *("urllib", "exec", "compile", "import"),
)
_events: list[tuple[str, str]] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and (event in ("open", "subprocess.Popen") or event.startswith(FORBIDDEN)):
        _events.append((event, repr(arguments)[:500]))


def watched(act: Callable[[], object], place: Path) -> list[tuple[str, str]]:
    """Run a function; return every audit event that a reader of a file below `place` has no reason for.

    The hook stays installed in this process.
    """
    global _events, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _events = []
    try:
        act()
    finally:
        seen, _events = _events, None
    return [(event, arguments) for event, arguments in seen if not _is_harmless(event, arguments, place)]


def _is_harmless(event: str, arguments: str, place: Path) -> bool:
    if event == "subprocess.Popen":
        return "from crypto_lstm.saving.hdf5 import _run_child" in arguments  # the sandboxed reader of HDF5
    if event == "compile":
        return arguments.endswith("'<unknown>')")  # `ast.literal_eval`, with which NumPy reads a header
    if event != "open":
        return False
    name, _, flags = arguments.strip("()").rsplit(", ", 2)
    is_unnamed = name == repr(tempfile.gettempdir())  # a temporary file without a name
    if name.isdigit() or "/dev/null" in name or is_unnamed:
        return True
    return not int(flags) & (os.O_WRONLY | os.O_RDWR) and str(place) in name


# ---------------------------------------------------------------- attacks, harmless versions

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
    settings = {"name": "evil", **config}
    return {"module": module, "class_name": kind, "config": settings, "registered_name": None, "name": "evil"}


def _lambda(document: Document, canary: Path) -> Document:
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}}
    document["config"]["layers"][3] = _layer("Lambda", function=code, arguments={"path": str(canary)})
    return document


def _touching(module: str, name: str) -> Callable[[Document, Path], Document]:
    """A layer that would make a file if its class were called."""

    def change(document: Document, canary: Path) -> Document:
        config = {"name": str(canary), "path": str(canary)}
        layer = {"module": module, "class_name": name, "config": config, "registered_name": None}
        document["config"]["layers"][3] = layer
        return document

    return change


_LAYER = ("config", "layers", 1)
_FUNCTION = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
_POLICY = {**_FUNCTION, "module": "os", "config": {"name": "id"}}
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
    "dtype policy from elsewhere": _in(*_LAYER, "config", "dtype", value=_POLICY),
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
    """Descriptions that are not valid JSON, or not an object."""
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
    """Archives that differ from three stored members."""
    members = _members(data)
    bomb = {**members, "model.weights.h5": bytes(20_000_000)}
    lying = bytearray(data)
    end = data.rfind(b"PK\x01\x02")
    struct.pack_into("<II", lying, end + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    encrypted = bytearray(data)
    encrypted[end + 8] |= 1
    without_weights = {name: content for name, content in members.items() if "h5" not in name}
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as file, warnings.catch_warnings(action="ignore"):
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
        "npz instead of HDF5": _archive({**without_weights, "model.weights.npz": b""}),
        "a thousand members": _archive({**members, **{f"m{k}": b"" for k in range(1000)}}),
        "one member twice": twice.getvalue(),
        "sizes that lie": bytes(lying),
        "encrypted": bytes(encrypted),
        "no weights": _archive({**members, "model.weights.h5": b""}),
    }


def _hdf5(data: bytes, change: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def hdf5_attacks(place: str, outside: Path) -> dict[str, Callable[[Any], object]]:
    """Changes of an HDF5 file; `place` is the path of a weight."""
    group, _, name = place.rpartition("/")

    def instead(make: Callable[[Any], object]) -> Callable[[Any], object]:
        def change(file: Any) -> None:
            del file[place]
            make(file[group])

        return change

    def point_outside(group: Any) -> object:
        return group.create_dataset(name, (8, 32), "f4", external=[(str(outside), 0, 1024)])

    return {
        "soft link": instead(lambda g: g.__setitem__(name, h5py.SoftLink("/"))),
        "link to another file": instead(lambda g: g.__setitem__(name, h5py.ExternalLink(str(outside), "/a"))),
        "link beside": lambda f: f.__setitem__("more", h5py.ExternalLink(str(outside), "/a")),
        "a group that holds itself": lambda f: f.create_group("a").__setitem__("b", f["/"]),
        "one array under two names": lambda f: f.__setitem__("again", f[place]),
        "a trillion numbers that are not there": instead(lambda g: g.create_dataset(name, (10**12,), "f4")),
        "packed zeros": instead(lambda g: g.create_dataset(name, data=np.zeros(10**7, "f4"), compression="gzip")),
        "pieces": instead(lambda g: g.create_dataset(name, data=np.zeros((8, 32), "f4"), chunks=(4, 4))),
        "data of another file": instead(point_outside),
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
    """Replace a saved model by `data` and write a matching manifest, as an attacker would."""
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
    manifest.write_bytes(encode_manifest({key: value for key, value in document.items() if key != "seal"}))


WEIGHT = {
    "keras": "layers/lstm/cell/vars/0",
    "h5": "model_weights/lstm_layer_1_8units/lstm_layer_1_8units/lstm_cell/kernel",
}


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
            elif len(content) < 60_000:  # the size limit of an attribute
                yield name, format, _hdf5(whole["h5"], lambda f, c=content: f.attrs.__setitem__("model_config", c))
        weights = members["model.weights.h5"] if format == "keras" else whole["h5"]
        for name, change in hdf5_attacks(WEIGHT[format], outside).items():
            changed = _hdf5(weights, change)
            if format == "keras":
                changed = _archive({**members, "model.weights.h5": changed})
            yield name, format, changed
    for name, data in archive_attacks(whole["keras"], canary).items():
        yield name, "keras", data
    yield "a pickle", "keras", pickle.dumps(_Touch(canary))
    yield "a pickle", "h5", pickle.dumps(_Touch(canary))


def resealed_part(folder: Path, name: str, data: bytes) -> None:
    """Replace one file of a saved folder by `data` and write a matching manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / name).write_bytes(data)
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_bytes(encode_manifest({key: value for key, value in manifest.items() if key != "seal"}))


def bundle_attacks(folder: Path, canary: Path) -> dict[str, tuple[str, bytes]]:
    """File and bytes of each attack on a bundle."""
    good = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}
    arrays = dict(np.load(io.BytesIO(good["weights.npz"])))
    first = next(iter(arrays))

    def npz(packed: bool = False, **change: Any) -> bytes:
        buffer = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(buffer, **{**arrays, **change})
        return buffer.getvalue()

    text = good["config.json"].decode()
    settings = json.loads(text)
    huge = text.replace('"sequence_length": 6', '"sequence_length": ' + "9" * 10_000)
    return {
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
        "huge number": ("config.json", huge.encode()),
        "a window of a billion": ("config.json", json.dumps({**settings, "sequence_length": 10**9}).encode()),
        "unknown setting": ("config.json", json.dumps({**settings, "hook": "os.system"}).encode()),
        "an empty scaler": ("scaler.json", b"{}"),
        "code beside": ("evil.py", b"open('x', 'w')"),
        "path upwards": ("../evil", b"x"),
    }


def state_attacks(folder: Path, canary: Path) -> dict[str, tuple[str, bytes]]:
    """File and bytes of each attack on one checkpoint of a training."""
    arrays, text = dict(np.load(folder / "arrays.npz")), (folder / "values.json").read_text()
    first = next(iter(arrays))

    def npz(packed: bool = False, **change: Any) -> bytes:
        buffer = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(buffer, **{**arrays, **change})
        return buffer.getvalue()

    return {
        "pickled objects": ("arrays.npz", npz(**{first: np.array([_Touch(canary)], dtype=object)})),
        "a pickle": ("arrays.npz", pickle.dumps(_Touch(canary))),
        "a bomb": ("arrays.npz", npz(packed=True, **{first: np.zeros(10**7, "f4")})),
        "equal keys": ("values.json", text.replace('"callbacks"', '"callbacks": [], "callbacks"').encode()),
        "deep": ("values.json", b"[" * 100_000 + b"]" * 100_000),
        "huge number": ("values.json", b'{"callbacks": ' + b"9" * 10_000 + b"}"),
        "a pickle as values": ("values.json", pickle.dumps(_Touch(canary))),
        "path upwards": ("../evil", b"x"),
    }


# ---------------------------------------------------------------- running the attacks


@dataclass
class AttackReport:
    """The number of attacks on each format, and those that had an effect."""

    done: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, format: str, fault: str | None) -> None:
        self.done[format] = self.done.get(format, 0) + 1
        if fault:
            self.wrong.append(fault)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.done.items())
        head = f"{sum(self.done.values())} attacks ({counts}), {len(self.wrong)} did something"
        return "\n".join([head, *self.wrong[:5]])


def attack(
    read: Callable[[], object], path: Path, place: Path, canary: Path
) -> tuple[CryptoLSTMError | None, str | None]:
    """The error of the reader, and its fault: a missing part of the message, a forbidden event, or a changed file."""
    before, caught = digest(path.parent), list[CryptoLSTMError]()

    def act() -> None:
        try:
            read()
        except CryptoLSTMError as error:
            caught.append(error)

    try:
        seen = watched(act, place)
    except Exception as error:
        return None, f"the error is not one of the package's: {error!r}"
    if not caught:
        return None, "it was loaded"
    is_complete = str(path) in str(caught[0]) and "; " in str(caught[0])
    is_expected = isinstance(caught[0], ModelIntegrityError | UnsafeModelError | IntegrityError)
    fault = None
    if not is_complete or not is_expected:
        fault = f"{caught[0]!r}: the message lacks the fault, the path or the remedy"
    elif seen:
        fault = f"seen: {seen}"
    if canary.exists() or digest(path.parent) != before:
        fault = "files were written"
    return caught[0], fault


def on_model_files(tmp_path: Path, dice: random.Random | None = None) -> AttackReport:
    """Each attack without a manifest, and with a matching one as a file and inside a SavedModel folder.

    With `dice`, each attack at one of these places, which they choose.
    """
    saved, canary, outside = tmp_path / "saved", tmp_path / "canary", tmp_path / "outside.h5"
    report = AttackReport()
    save_all(saved, build_model(CONFIG))
    os.mkfifo(outside)  # opening it would block for ever
    load_model(saved / "keras" / "now" / "model.keras")  # Keras imports some modules only now
    plain = tmp_path / "warm" / "model.keras"
    plain.parent.mkdir()
    shutil.copy(saved / "keras" / "now" / "model.keras", plain)
    load_model(plain)
    folder = tmp_path / "place"
    for name, format, data in all_attacks(saved, canary, outside):
        places = ["without a manifest", "resealed"] + ["saved_model"] * (format != "h5")
        for place in places if dice is None else [dice.choice(places)]:
            shutil.rmtree(folder, ignore_errors=True)
            kind = "saved_model" if place == "saved_model" else format
            path = file_of(folder, kind)
            if place == "without a manifest":
                folder.mkdir()
                path.write_bytes(data)
            else:
                shutil.copytree(saved / kind / "now", folder)
                resealed(folder, kind, data)
            _, fault = attack(lambda path=path: load_model(path), path, tmp_path, canary)
            report.add(kind, fault and f"{name} ({format}, {place}): {fault}")
    return report


def on_folders(tmp_path: Path) -> AttackReport:
    """Changed files of a bundle and of a training checkpoint, with a matching manifest."""
    canary, report = tmp_path / "canary", AttackReport()
    run = SimpleNamespace(config=saves.CONFIG, model=saves.model(), data=saves.data())
    save_bundle(run, bundle := tmp_path / "bundle" / "model")
    saves.state(tmp_path / "run")[0](1)
    checkpoint = next((tmp_path / "run" / "state").glob("checkpoint-*"))
    load_bundle(bundle)
    read_state(tmp_path / "run")
    for format, source, attacks in (
        ("bundle", bundle, bundle_attacks(bundle, canary)),
        ("training state", checkpoint, state_attacks(checkpoint, canary)),
    ):
        for name, (file, data) in attacks.items():
            shutil.rmtree(tmp_path / "place", ignore_errors=True)
            target = tmp_path / "place" / "state" / source.name
            shutil.copytree(source, target)
            resealed_part(target, file, data)
            if format == "bundle":
                _, fault = attack(lambda path=target: load_bundle(path), target, tmp_path, canary)
            else:
                _, fault = attack(lambda: read_state(tmp_path / "place"), target.parent, tmp_path, canary)
            report.add(format, fault and f"{name} ({format}): {fault}")
    return report
