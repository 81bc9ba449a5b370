"""Changed bytes in everything that is saved: what do the readers make of them?

`rounds` changes a fresh copy of a saved folder and lets a process of its own read it: refused, the same numbers, or wrong (other numbers,
an error that is not the package's, a process that died or gave no answer in time).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support import attacks
from support import crash_injection as faults
import keras
import numpy as np
from support import save_load_cases as saves
import tensorflow as tf

from crypto_lstm.architecture import build_model
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.utils.errors import CryptoLSTMError
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.training.checkpointing import TrainingBackup, read_state

BYTES = ("bit", "truncate", "append", "splice", "zero page")


@dataclass
class MutationReport:
    """`same`: accepted, with the very numbers that were saved. A mutation that changed nothing is not counted."""

    seed: int
    done: int = 0
    refused: int = 0
    same: int = 0
    other: int = 0  # accepted with other numbers
    wrong: list[str] = field(default_factory=list)

    def add(self, verdict: str, said: str) -> None:
        self.done += 1
        if verdict in ("refused", "same"):
            setattr(self, verdict, getattr(self, verdict) + 1)
            return
        self.other += verdict == "other numbers"
        self.wrong.append(f"{said}: {verdict}")

    def __str__(self) -> str:
        text = f"{self.done} mutations, {self.refused} refused, {self.same} with equal numbers, {len(self.wrong)} wrong, seed {self.seed}"
        return "\n".join([text, *self.wrong[:5]])


@dataclass(frozen=True)
class Subject:
    """How to save two networks, and what a reader gets: something to compare."""

    save: Callable[[Path, int], object]  # into a folder, from a seed
    read: Callable[[Path], list[Any]]
    kinds: tuple[str, ...] = faults.MUTATIONS
    errors: type[Exception] = CryptoLSTMError  # the good ones
    only: str | None = None  # the one file that is changed


def _network(seed: int) -> keras.Model:
    return build_model(saves.CONFIG.replace(seed=seed), compile_model=False)


def _save_bundle(folder: Path, seed: int) -> None:
    tf.config.run_functions_eagerly(True)
    save_bundle(SimpleNamespace(config=saves.CONFIG, model=_network(seed), data=saves.data()), folder / "bundle")


def _read_bundle(folder: Path) -> list[Any]:
    found = load_bundle(folder / "bundle")
    return [*found.model.get_weights(), found.config, found.scaler, found.metadata["features"], found.metadata["classes"]]


def _save_state(folder: Path, seed: int) -> None:
    network = build_model(saves.CONFIG.replace(seed=seed))
    network.optimizer.build(network.trainable_variables)
    keeper = TrainingBackup(folder, {"identity": {"seed": seed}, "config": saves.CONFIG.as_dict()}, [], 8)
    keeper.set_model(network)
    keeper.save(1, 0)


def _read_state(folder: Path) -> list[Any]:
    found = read_state(folder)
    if found is None:
        raise CryptoLSTMError("there is no state")
    return [*found.arrays.values(), found.identity, found.config, found.epoch, found.batch]


def _described(model: keras.Model) -> list[Any]:
    return [*model.get_weights(), str(model.get_config())]


def _model(format: str, sealed: bool = True) -> Subject:
    def save(folder: Path, seed: int) -> None:
        if sealed:
            save_model(_network(seed), folder / "model", format)
        else:
            _network(seed).save(attacks.file_of(folder, format))

    name = None if sealed else f"model.{format}"
    kinds = faults.MUTATIONS if sealed else BYTES
    return Subject(save, lambda folder: _described(load_model(attacks.file_of(folder, format), compile=False)), kinds, only=name)


def _plain(format: str) -> Subject:
    def read(folder: Path) -> list[Any]:
        return _described(keras.saving.load_model(attacks.file_of(folder, format), compile=False))

    return Subject(_model(format, sealed=False).save, read, BYTES, Exception, f"model.{format}")


SUBJECTS = {
    "bundle": Subject(_save_bundle, _read_bundle),
    **{format: _model(format) for format in ("keras", "h5", "saved_model")},
    "training state": Subject(_save_state, _read_state),
    "keras, no manifest": _model("keras", sealed=False),
    "h5, no manifest": _model("h5", sealed=False),
}
PLAIN = {"keras": _plain("keras"), "h5": _plain("h5")}


def _equal(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True)
    )


def _reader(subject: Subject, place: Path, seed: int) -> Callable[[int], tuple[str, str] | None]:
    """What was done, and what came of it, for mutation `number`; None where it changed nothing."""
    saved, folder = place / "saved", place / "place" / "now"
    for name, number in (("now", 1), ("other", 2)):
        (saved / name).mkdir(parents=True, exist_ok=True)
        subject.save(saved / name, number)
    wanted = subject.read(saved / "now")
    assert not _equal(wanted, subject.read(saved / "other"))

    def one(number: int) -> tuple[str, str] | None:
        dice = random.Random(f"{seed}-{number}")
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(saved / "now", folder)
        if not (said := _change(subject, folder, saved / "other", dice)):
            return None
        try:
            came = subject.read(folder)
        except subject.errors:
            return said, "refused"
        except OSError as error:
            return said, "refused" if isinstance(error, FileNotFoundError) else repr(error)
        except Exception as error:
            return said, repr(error)
        return said, "same" if _equal(came, wanted) else "other numbers"

    return one


def _change(subject: Subject, folder: Path, other: Path, dice: random.Random) -> str | None:
    kind = dice.choice(subject.kinds)
    if subject.only is None:
        return faults.mutate(folder, other, dice, kind)
    path = folder / subject.only
    data = path.read_bytes()
    where = dice.randrange(len(data))
    return f"{kind} at {where}" if faults._rewrite(path, data, kind, where, dice) else None


def rounds(subject: Subject, n: int, place: Path, seed: int, timeout_s: float = 60.0) -> MutationReport:
    """`n` mutations. TensorFlow is used only in the process that reads: this one may fork."""
    report, number = MutationReport(seed), 0
    with faults.Apart(lambda: _reader(subject, place, seed), timeout_s) as read:
        while report.done < n:
            try:
                found = read(number)
            except faults.Died as error:
                found = f"mutation {number}", str(error)
                shutil.rmtree(place / "saved", ignore_errors=True)  # the next process saves anew
            if found:
                report.add(found[1], f"seed {seed}-{number}, {found[0]}")
            number += 1
    return report
