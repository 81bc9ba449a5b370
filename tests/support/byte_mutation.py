"""Changed bytes in everything that is saved: do the readers refuse them?

`rounds` changes a fresh copy of a saved folder and lets another process read it. The result is refused, the same
numbers, or wrong: other numbers, an error that is not the package's, or a process that died or did not answer in time.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from crypto_lstm.architecture import build_model
from crypto_lstm.inference.bundle import load_bundle, save_bundle
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.training.checkpointing import TrainingBackup, read_state
from crypto_lstm.utils.errors import CryptoLSTMError
from support import attacks
from support import crash_injection as faults
from support import save_load_cases as saves

BYTES = ("bit", "truncate", "append", "splice", "zero page")


@dataclass
class MutationReport:
    """Counts of results. `same`: accepted, with exactly the saved numbers. A mutation without effect is not counted."""

    seed: int
    done: int = 0
    refused: int = 0
    same: int = 0
    other: int = 0  # accepted with other numbers
    wrong: list[str] = field(default_factory=list)

    def add(self, result: str, mutation: str) -> None:
        self.done += 1
        if result == "refused":
            self.refused += 1
        elif result == "same":
            self.same += 1
        else:
            self.other += result == "other numbers"
            self.wrong.append(f"{mutation}: {result}")

    def __str__(self) -> str:
        text = f"{self.done} mutations, {self.refused} refused, {self.same} with equal numbers"
        text += f", {len(self.wrong)} wrong, seed {self.seed}"
        return "\n".join([text, *self.wrong[:5]])


@dataclass(frozen=True)
class Subject:
    """How to save a network, and how to read it as a list that can be compared."""

    save: Callable[[Path, int], object]  # into a folder, from a seed
    read: Callable[[Path], list[Any]]
    kinds: tuple[str, ...] = faults.MUTATIONS
    errors: type[Exception] = CryptoLSTMError  # accepted as a refusal
    only: str | None = None  # the only file that is changed


def _network(seed: int) -> keras.Model:
    return build_model(saves.CONFIG.replace(seed=seed), compile_model=False)


def _save_bundle(folder: Path, seed: int) -> None:
    tf.config.run_functions_eagerly(True)
    save_bundle(SimpleNamespace(config=saves.CONFIG, model=_network(seed), data=saves.data()), folder / "bundle")


def _read_bundle(folder: Path) -> list[Any]:
    found = load_bundle(folder / "bundle")
    names = [found.metadata["features"], found.metadata["classes"]]
    return [*found.model.get_weights(), found.config, found.scaler, *names]


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


def _list_content(model: keras.Model) -> list[Any]:
    return [*model.get_weights(), str(model.get_config())]


def _model(format: str, sealed: bool = True) -> Subject:
    def save(folder: Path, seed: int) -> None:
        if sealed:
            save_model(_network(seed), folder / "model", format)
        else:
            _network(seed).save(attacks.file_of(folder, format))

    def read(folder: Path) -> list[Any]:
        return _list_content(load_model(attacks.file_of(folder, format), compile=False))

    if sealed:
        return Subject(save, read, faults.MUTATIONS)
    return Subject(save, read, BYTES, only=f"model.{format}")


def _plain(format: str) -> Subject:
    def read(folder: Path) -> list[Any]:
        return _list_content(keras.saving.load_model(attacks.file_of(folder, format), compile=False))

    return Subject(_model(format, sealed=False).save, read, BYTES, Exception, f"model.{format}")


SUBJECTS = {
    "bundle": Subject(_save_bundle, _read_bundle),
    **{format: _model(format) for format in ("keras", "h5", "saved_model")},
    "training state": Subject(_save_state, _read_state),
    "keras, no manifest": _model("keras", sealed=False),
    "h5, no manifest": _model("h5", sealed=False),
}
PLAIN = {"keras": _plain("keras"), "h5": _plain("h5")}


def _is_equal(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other):
        return False
    for left, right in zip(one, other, strict=True):
        is_equal = np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right
        if not is_equal:
            return False
    return True


def _reader(subject: Subject, place: Path, seed: int) -> Callable[[int], tuple[str, str] | None]:
    """Make a function that applies mutation `number`; it returns the mutation and its result, None without effect."""
    saved, folder = place / "saved", place / "place" / "now"
    for name, number in (("now", 1), ("other", 2)):
        (saved / name).mkdir(parents=True, exist_ok=True)
        subject.save(saved / name, number)
    expected = subject.read(saved / "now")
    assert not _is_equal(expected, subject.read(saved / "other"))

    def mutate_and_read(number: int) -> tuple[str, str] | None:
        dice = random.Random(f"{seed}-{number}")
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(saved / "now", folder)
        mutation = _change(subject, folder, saved / "other", dice)
        if mutation is None:
            return None
        try:
            found = subject.read(folder)
        except (subject.errors, FileNotFoundError):
            return mutation, "refused"
        except Exception as error:
            return mutation, repr(error)
        return mutation, "same" if _is_equal(found, expected) else "other numbers"

    return mutate_and_read


def _change(subject: Subject, folder: Path, other: Path, dice: random.Random) -> str | None:
    kind = dice.choice(subject.kinds)
    if subject.only is None:
        return faults.mutate(folder, other, dice, kind)
    path = folder / subject.only
    data = path.read_bytes()
    where = dice.randrange(len(data))
    return f"{kind} at {where}" if faults._rewrite(path, data, kind, where, dice) else None


def rounds(subject: Subject, n: int, place: Path, seed: int, timeout_s: float = 60.0) -> MutationReport:
    """Apply `n` mutations. TensorFlow runs only in the process that reads, so this process may fork."""
    report, number = MutationReport(seed), 0
    with faults.Apart(lambda: _reader(subject, place, seed), timeout_s) as read:
        while report.done < n:
            try:
                found = read(number)
            except faults.Died as error:
                found = f"mutation {number}", str(error)
                shutil.rmtree(place / "saved", ignore_errors=True)  # the next process saves again
            if found:
                report.add(found[1], f"seed {seed}-{number}, {found[0]}")
            number += 1
    return report
