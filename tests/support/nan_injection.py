"""Put NaN and infinity everywhere, before a decision and in a training, and count the wrong results.

Before a decision: into candles, windows, weights, outputs and files. In a training: into data, gradients, losses and
weights. Each function returns a `Count`. A result is wrong if a decision other than NO_TRADE is made, if a probability
is returned, or if a network that is not finite is kept as the best.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import CHECKPOINT_NAME, CarefulEarlyStopping, create_callbacks
from crypto_lstm.data.windows import WindowDataset
from crypto_lstm.inference.bundle import encode_weights, load_bundle, save_bundle
from crypto_lstm.inference.predictor import NO_TRADE
from crypto_lstm.persistence import load_model
from crypto_lstm.training.checkpointing import TrainingBackup, read_state, resume_fit
from crypto_lstm.training.trainer import train
from crypto_lstm.utils.errors import CryptoLSTMError
from support import save_load_cases as saves
from support.answers import replace_answers
from support.attacks import resealed_part

BAD = (np.nan, np.inf, -np.inf)


@dataclass
class Count:
    """Results of a kind. `harmless`: the bad value had no visible effect, and everything that was kept is finite."""

    done: int = 0
    harmless: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, fault: str | None) -> None:
        self.done += 1
        if fault == "harmless":
            self.harmless += 1
        elif fault:
            self.wrong.append(fault)


# ---------------------------------------------------------------- before a decision


class DecisionCases:
    """A bundle, the newest candles that it needs, and the time when the last one closes.

    Each method with a `dice` puts one bad value in and returns a text if the result is wrong.
    """

    def __init__(self, place: Path) -> None:
        tf.config.run_functions_eagerly(True)
        self.place, self.path = place, place / "bundle"
        model = build_model(saves.CONFIG, compile_model=False)
        save_bundle(SimpleNamespace(config=saves.CONFIG, model=model, data=saves.data()), self.path)
        self.bundle = load_bundle(self.path)
        self.candles = saves.candles()[-760:].reset_index(drop=True)
        self.now = self.candles["date"].iloc[-1] + pd.Timedelta(hours=1)
        self.windows = saves.data().test.gather(saves.data().test.rows[:4])
        good = self.bundle.decide(self.candles, self.now)
        assert good.action != NO_TRADE, good.reason

    def _check_decision(self, candles: pd.DataFrame, change: str) -> str | None:
        decision = self.bundle.decide(candles, self.now)
        return None if decision.action == NO_TRADE and decision.reason else f"{change}: {decision}"

    def candle(self, dice: random.Random) -> str | None:
        """One cell of the newest candles."""
        row, column, bad = dice.randrange(len(self.candles)), dice.choice(self.candles.columns), dice.choice(BAD)
        candles = self.candles.copy()
        candles.loc[row, column] = pd.NaT if column == "date" else bad
        return self._check_decision(candles, f"{column} of candle {row} is {bad}")

    def window(self, dice: random.Random) -> str | None:
        """One value of a scaled window that is passed to the network."""
        windows, bad = self.windows.copy(), dice.choice(BAD)
        windows[tuple(dice.randrange(size) for size in windows.shape)] = bad
        try:
            return f"a window with {bad} has the probabilities {self.bundle.probabilities(windows)}"
        except CryptoLSTMError:
            return None

    def weight(self, dice: random.Random) -> str | None:
        """One weight of the network in memory."""
        variable, bad = dice.choice(self.bundle.model.weights), dice.choice(BAD)
        good = variable.numpy()
        poisoned = good.copy()
        poisoned[tuple(dice.randrange(size) for size in good.shape)] = bad
        variable.assign(poisoned)
        try:
            return self._check_decision(self.candles, f"{variable.path} holds {bad}")
        finally:
            variable.assign(good)

    def output(self, dice: random.Random) -> str | None:
        """One or more of the three outputs of the network."""
        model, bad, places = self.bundle.model, dice.choice(BAD), dice.sample(range(3), dice.randint(1, 3))

        def predict(windows: np.ndarray) -> np.ndarray:
            answers = np.array(model.predict_on_batch(windows))
            answers[0, places] = bad
            return answers

        with pytest.MonkeyPatch.context() as patch:
            replace_answers(patch, model, predict)
            return self._check_decision(self.candles, f"output {places} is {bad}")

    def layer(self, dice: random.Random) -> str | None:
        """The output of one layer."""
        layer, bad = dice.choice(self.bundle.model.layers[1:]), dice.choice(BAD)
        real = layer.call

        def call(*words: Any, **named: Any) -> tf.Tensor:
            out = real(*words, **named)
            return tf.concat([out[:, :1] * 0 + bad, out[:, 1:]], axis=1)

        layer.call = call
        try:
            return self._check_decision(self.candles, f"the output of {layer.name} holds {bad}")
        finally:
            layer.call = real

    def file(self, dice: random.Random) -> str | None:
        """A number in a bundle's files, under a manifest that fits: the bundle must not load."""
        target, bad = self.place / "forged", dice.choice(BAD)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.path, target)
        name = dice.choice(("weights.npz", "golden.npz", "scaler.json"))
        if name == "scaler.json":
            values = json.loads((target / name).read_text())
            values[dice.choice(("center", "scale"))][dice.randrange(8)] = bad
            resealed_part(target, name, json.dumps(values).encode())
        else:
            arrays = dict(np.load(io.BytesIO((target / name).read_bytes())))
            array = arrays[dice.choice(sorted(arrays))]
            array[tuple(dice.randrange(size) for size in array.shape)] = bad
            resealed_part(target, name, encode_weights(arrays))
        try:
            load_bundle(target)
        except CryptoLSTMError:
            return None
        return f"{name} with {bad} was loaded"


DECIDING = ("candle", "window", "weight", "output", "layer", "file")


def decisions(shares: dict[str, int], seed: int) -> dict[str, Count]:
    """Decisions with bad values; `shares`: kind -> number of cases."""
    with tempfile.TemporaryDirectory() as folder:
        place = DecisionCases(Path(folder))
        counts = {kind: _count_cases(getattr(place, kind), n, f"{seed}-{kind}") for kind, n in shares.items()}
        assert place.bundle.decide(place.candles, place.now).action != NO_TRADE, "a case has changed the bundle"
        return counts


def _count_cases(act: Callable[[random.Random], str | None], n: int, seed: str) -> Count:
    count = Count()
    for number in range(n):
        try:
            count.add(act(random.Random(f"{seed}-{number}")))
        except Exception as error:
            count.add(f"seed {seed}-{number}: raised {error!r}")
    return count


# ---------------------------------------------------------------- in training


class PoisonedAdam(keras.optimizers.Adam):
    """Adam; one gradient of one step is not finite."""

    def __init__(self, gradients: int) -> None:
        super().__init__(0.01)
        self.bad = tf.Variable(0.0, trainable=False)  # the value
        self.step = tf.Variable(-1, trainable=False)  # the step, from 0; -1: none
        self.which = tf.Variable(-1, trainable=False)  # the gradient; -2: the loss
        self.count = gradients

    def is_poisoned(self, which: int) -> tf.Tensor:
        """Whether the gradient (or the loss, -2) of the current step is not finite."""
        is_step = tf.equal(tf.cast(self.iterations.value, tf.int32), self.step)
        return is_step & tf.equal(self.which, which)

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        poisoned = []
        for number, gradient in enumerate(grads):
            poisoned.append(tf.where(self.is_poisoned(number), gradient * 0 + self.bad, gradient))
        return super().apply(poisoned, trainable_variables)


class _PoisonedLabels(WindowDataset):
    """Windows; one number in the labels of one batch is not finite."""

    place: tuple[int, int, float] | None = None

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        windows, targets, *rest = super().__getitem__(index)
        if self.place and self.place[0] == index:
            targets[0, self.place[1]] = self.place[2]
        return (windows, targets, *rest)


class _PoisonWeight(keras.callbacks.Callback):
    """Put a bad value into a weight after a step."""

    def __init__(self, step: int, dice: random.Random, bad: float) -> None:
        super().__init__()
        self.left, self.dice, self.bad = step + 1, dice, bad

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            variable = self.dice.choice(self.model.trainable_variables)
            array = variable.numpy()
            array[tuple(self.dice.randrange(size) for size in array.shape)] = self.bad
            variable.assign(array)


def _finite(arrays: Any) -> bool:
    return all(np.isfinite(array).all() for array in arrays if np.asarray(array).dtype.kind == "f")


class TrainingCases:
    """One network that is trained many times from the same start, by this package's `resume_fit` or by plain Keras."""

    EPOCHS = 2

    def __init__(self, place: Path) -> None:
        self.place, data = place, saves.data()
        config = saves.CONFIG
        part = data.train
        self.matrix = part.matrix.copy()
        rows = part.rows[:: max(1, len(part.rows) // 200)]
        kept = {"sequence_length": config.sequence_length, "batch_size": 64}
        self.train = _PoisonedLabels(
            self.matrix, rows, part.labels[:: max(1, len(part.rows) // 200)], shuffle_seed=1, **kept
        )
        self.validation = WindowDataset(self.matrix, data.validation.rows[:64], data.validation.labels[:64], **kept)
        self.steps = len(self.train)
        self.model = build_model(config)
        self.optimizer = PoisonedAdam(len(self.model.trainable_variables))
        self.model.compile(self.optimizer, loss=self._loss, metrics=["accuracy"])
        self.optimizer.build(self.model.trainable_variables)
        self.start = [np.array(v) for v in (*self.model.variables, *self.optimizer.variables)]

    def _loss(self, expected: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        loss = keras.losses.categorical_crossentropy(expected, predicted)
        return tf.where(self.optimizer.is_poisoned(-2), loss * 0 + self.optimizer.bad, loss)

    def _reset(self) -> None:
        for variable, array in zip((*self.model.variables, *self.optimizer.variables), self.start, strict=True):
            variable.assign(array)
        self.optimizer.step.assign(-1)
        self.optimizer.which.assign(-1)
        self.train.place, self.train.epoch = None, -1
        shutil.rmtree(self.place / "run", ignore_errors=True)
        (self.place / "run").mkdir()

    @contextlib.contextmanager
    def _poisoned(self, kind: str, dice: random.Random):
        """Put a bad value in, and yield the callbacks that this needs.

        Every step may be hit, the first too: a naive callback takes its first value as the best.
        """
        self._reset()
        bad = dice.choice(BAD)
        step = dice.randrange(self.steps * self.EPOCHS)
        callbacks: list[keras.callbacks.Callback] = []
        cell = None
        if kind in ("training window", "validation window"):
            rows = (self.train if kind == "training window" else self.validation).rows
            row = dice.choice(rows.tolist()) - dice.randrange(saves.CONFIG.sequence_length)
            cell = row, dice.randrange(self.matrix.shape[1])
            good, self.train.matrix[cell] = self.train.matrix[cell], bad
            self.validation.matrix[cell] = bad
        elif kind == "label":
            self.train.place = dice.randrange(self.steps), dice.randrange(3), bad
        elif kind in ("gradient", "loss"):
            self.optimizer.bad.assign(bad)
            self.optimizer.step.assign(step)
            self.optimizer.which.assign(dice.randrange(self.optimizer.count) if kind == "gradient" else -2)
        else:
            callbacks.append(_PoisonWeight(step, dice, bad))
        try:
            yield callbacks
        finally:
            if cell:
                self.train.matrix[cell] = self.validation.matrix[cell] = good

    def ours(self, kind: str, dice: random.Random) -> str | None:
        """This package's callbacks and `resume_fit`."""
        run = self.place / "run"
        facts = {"identity": {}, "config": saves.CONFIG.as_dict()}
        with self._poisoned(kind, dice) as more:
            callbacks = [*more, *create_callbacks(saves.CONFIG, run, tensorboard=False, memory_monitor=False)]
            backup = TrainingBackup(run, facts, callbacks, self.steps, 2)
            try:
                resume_fit(self.model, self.train, self.validation, backup, self.EPOCHS)
                raised = False
            except CryptoLSTMError:
                raised = True
        early = next(callback for callback in callbacks if isinstance(callback, CarefulEarlyStopping))
        fault = _find_kept_fault(early, run)
        if fault:
            return f"{kind}: {fault}"
        if raised:
            return None
        if _finite(self.model.get_weights()):
            return "harmless"
        return f"{kind}: nothing was raised, and the weights are not finite"

    def plain(self, kind: str, dice: random.Random) -> str | None:
        """Keras' own callbacks, with the same bad values. Wrong: a kept model that is not finite."""
        path = self.place / "run" / "best.keras"
        with self._poisoned(kind, dice) as more:
            early = keras.callbacks.EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True)
            best = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
            self.model.stop_training = False
            options = {"epochs": self.EPOCHS, "verbose": 0, "shuffle": False}
            self.model.fit(self.train, validation_data=self.validation, callbacks=[*more, best, early], **options)
        if path.exists() and not _finite(keras.saving.load_model(path, compile=False).get_weights()):
            return f"{kind}: the checkpoint is not finite"
        if early.best_weights is not None and not _finite(early.best_weights):
            return f"{kind}: the best weights in memory are not finite"
        if _finite(self.model.get_weights()):
            return None
        return f"{kind}: the weights after `fit` are not finite, and nothing was raised"


def _find_kept_fault(early: CarefulEarlyStopping, run: Path) -> str | None:
    """The first of the kept models that is not finite: in memory, in the state, in the file of the best model."""
    if early.best_weights is not None and not _finite(early.best_weights):
        return "the best weights in memory are not finite"
    state = read_state(run)
    arrays = state.arrays if state else {}
    if not _finite(array for name, array in arrays.items() if name.startswith(("model/", "callback/"))):
        return "the saved state is not finite"
    fault = _find_file_fault(run / CHECKPOINT_NAME)
    return f"the checkpoint {fault}" if fault else None


def _find_file_fault(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        model = load_model(path, compile=False)
    except CryptoLSTMError as error:
        return f"can't be loaded: {error}"
    return None if _finite(model.get_weights()) else "is not finite"


TRAINING = ("training window", "validation window", "label", "gradient", "loss", "weight in training")


def trainings(shares: dict[str, int], seed: int, plain: bool = False) -> dict[str, Count]:
    """Trainings with bad values; `shares`: kind -> number of cases; `plain`: with Keras' callbacks."""
    with tempfile.TemporaryDirectory() as folder:
        place = TrainingCases(Path(folder))
        fit = place.plain if plain else place.ours
        counts = {}
        for kind, n in shares.items():
            counts[kind] = _count_cases(lambda dice, kind=kind: fit(kind, dice), n, f"{seed}-{kind}")
        return counts


def market(n: int, seed: int) -> Count:
    """Candles with one bad cell must be refused by `train` before a file is written."""
    candles = saves.candles()

    def act(dice: random.Random) -> str | None:
        column, bad = dice.choice(["open", "high", "low", "close", "volume"]), dice.choice(BAD)
        poisoned = candles.copy()
        poisoned.loc[dice.randrange(len(candles)), column] = bad
        with tempfile.TemporaryDirectory() as folder:
            try:
                train(poisoned, saves.CONFIG.replace(epochs=1), Path(folder) / "run", tensorboard=False)
            except CryptoLSTMError:
                return None if not list(Path(folder).iterdir()) else f"{column} {bad}: files were written"
            return f"{column} {bad}: the candles were accepted"

    return _count_cases(act, n, f"{seed}-market")


def plain_decisions(n: int, seed: int) -> tuple[Count, int]:
    """Decisions by `argmax` of a plain model whose window has one bad value, and how many of them are SHORT."""
    model = build_model(saves.CONFIG, compile_model=False)
    windows = saves.data().test.gather(saves.data().test.rows[:1])
    shorts = 0

    def act(dice: random.Random) -> str | None:
        nonlocal shorts
        poisoned = windows.copy()
        poisoned[tuple(dice.randrange(size) for size in windows.shape)] = dice.choice(BAD)
        answer = model.predict_on_batch(poisoned)
        shorts += int(answer.argmax()) == 0
        return f"a decision, from {answer}"

    return _count_cases(act, n, f"{seed}-plain"), shorts
