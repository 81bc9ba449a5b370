"""NaN and infinity, put everywhere: into candles, windows, weights, answers and files before a decision; into data, gradients, losses and
weights in training.

Each function returns a `Count`. Wrong: a decision other than NO_TRADE, a number given for an answer, or a network kept as best that is not
finite.
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
from support import save_load_cases as saves
import tensorflow as tf
from support.attacks import resealed_part

from crypto_lstm.architecture import build_model
from crypto_lstm.inference.bundle import load_bundle, encode_weights, save_bundle
from crypto_lstm.inference.predictor import NO_TRADE
from crypto_lstm.callbacks import CHECKPOINT_NAME, CarefulEarlyStopping, create_callbacks
from crypto_lstm.utils.errors import CryptoLSTMError
from crypto_lstm.persistence import load_model
from crypto_lstm.training.checkpointing import TrainingBackup, resume_fit, read_state
from crypto_lstm.training.trainer import train
from crypto_lstm.data.windows import WindowDataset

BAD = (np.nan, np.inf, -np.inf)


@dataclass
class Count:
    """`harmless`: had no effect that could be seen, and all that was kept is finite."""

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


class Deciding:
    """A bundle, the newest candles that it needs, and the moment of their close."""

    def __init__(self, place: Path) -> None:
        tf.config.run_functions_eagerly(True)
        self.place, self.path = place, place / "bundle"
        save_bundle(
            SimpleNamespace(config=saves.CONFIG, model=build_model(saves.CONFIG, compile_model=False), data=saves.data()), self.path
        )
        self.bundle = load_bundle(self.path)
        self.candles = saves.candles()[-760:].reset_index(drop=True)
        self.now = self.candles["date"].iloc[-1] + pd.Timedelta(hours=1)
        self.windows = saves.data().test.gather(saves.data().test.rows[:4])
        good = self.bundle.decide(self.candles, self.now)
        assert good.action != NO_TRADE, good.reason

    def _judged(self, candles: pd.DataFrame, what: str) -> str | None:
        decision = self.bundle.decide(candles, self.now)
        return None if decision.action == NO_TRADE and decision.reason else f"{what}: {decision}"

    def candle(self, dice: random.Random) -> str | None:
        """One cell of the newest candles."""
        row, column, bad = dice.randrange(len(self.candles)), dice.choice(self.candles.columns), dice.choice(BAD)
        candles = self.candles.copy()
        candles.loc[row, column] = pd.NaT if column == "date" else bad
        return self._judged(candles, f"{column} of candle {row} is {bad}")

    def window(self, dice: random.Random) -> str | None:
        """One value of a scaled window, given directly."""
        windows, bad = self.windows.copy(), dice.choice(BAD)
        windows[tuple(dice.randrange(size) for size in windows.shape)] = bad
        try:
            return f"a window with {bad} got the answer {self.bundle.probabilities(windows)}"
        except CryptoLSTMError:
            return None

    def weight(self, dice: random.Random) -> str | None:
        """One weight of the network in memory."""
        variable, bad = dice.choice(self.bundle.model.weights), dice.choice(BAD)
        good = variable.numpy()
        spoilt = good.copy()
        spoilt[tuple(dice.randrange(size) for size in good.shape)] = bad
        variable.assign(spoilt)
        try:
            return self._judged(self.candles, f"{variable.path} holds {bad}")
        finally:
            variable.assign(good)

    def output(self, dice: random.Random) -> str | None:
        """One or more of the three numbers that the network answers."""
        model, bad, places = self.bundle.model, dice.choice(BAD), dice.sample(range(3), dice.randint(1, 3))
        real = model.predict_on_batch

        def spoilt(windows: np.ndarray) -> np.ndarray:
            answers = np.array(real(windows))
            answers[0, places] = bad
            return answers

        model.predict_on_batch = spoilt
        try:
            return self._judged(self.candles, f"answer {places} is {bad}")
        finally:
            model.predict_on_batch = real

    def layer(self, dice: random.Random) -> str | None:
        """What one layer hands to the next."""
        layer, bad = dice.choice(self.bundle.model.layers[1:]), dice.choice(BAD)
        real = layer.call

        def spoilt(*words: Any, **named: Any) -> tf.Tensor:
            out = real(*words, **named)
            return tf.concat([out[:, :1] * 0 + bad, out[:, 1:]], axis=1)

        layer.call = spoilt
        try:
            return self._judged(self.candles, f"{layer.name} gives {bad}")
        finally:
            layer.call = real

    def file(self, dice: random.Random) -> str | None:
        """A number in a bundle's files, under a manifest that fits: it must not load."""
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
    """`shares`: kind -> how many."""
    with tempfile.TemporaryDirectory() as folder:
        place = Deciding(Path(folder))
        counts = {kind: _counted(getattr(place, kind), n, f"{seed}-{kind}") for kind, n in shares.items()}
        assert place.bundle.decide(place.candles, place.now).action != NO_TRADE, "the bundle is not as it was"
        return counts


def _counted(act: Callable[[random.Random], str | None], n: int, seed: str) -> Count:
    count = Count()
    for number in range(n):
        try:
            count.add(act(random.Random(f"{seed}-{number}")))
        except Exception as error:
            count.add(f"seed {seed}-{number}: raised {error!r}")
    return count


# ---------------------------------------------------------------- in training


class Poisoned(keras.optimizers.Adam):
    """In one step, one gradient is not finite."""

    def __init__(self, gradients: int) -> None:
        super().__init__(0.01)
        self.bad, self.step, self.which = (tf.Variable(value, trainable=False) for value in (0.0, -1, -1))
        self.count = gradients

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        now = tf.equal(tf.cast(self.iterations.value, tf.int32), self.step)
        spoilt = [tf.where(now & tf.equal(self.which, k), g * 0 + self.bad, g) for k, g in enumerate(grads)]
        return super().apply(spoilt, trainable_variables)


class _Spoilt(WindowDataset):
    """One number of the labels of one batch is not finite."""

    place: tuple[int, int, float] | None = None

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        windows, targets, *rest = super().__getitem__(index)
        if self.place and self.place[0] == index:
            targets[0, self.place[1]] = self.place[2]
        return (windows, targets, *rest)


class _At(keras.callbacks.Callback):
    """Puts a number into a weight after a step."""

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


class Training:
    """One network that is trained again and again from the same start: this package's `resume_fit`, or plain Keras."""

    EPOCHS = 2

    def __init__(self, place: Path) -> None:
        self.place, data = place, saves.data()
        config = saves.CONFIG
        part = data.train
        self.matrix = part.matrix.copy()
        rows = part.rows[:: max(1, len(part.rows) // 200)]
        kept = {"sequence_length": config.sequence_length, "batch_size": 64}
        self.train = _Spoilt(self.matrix, rows, part.labels[:: max(1, len(part.rows) // 200)], shuffle_seed=1, **kept)
        self.validation = WindowDataset(self.matrix, data.validation.rows[:64], data.validation.labels[:64], **kept)
        self.steps = len(self.train)
        self.model = build_model(config)
        self.optimizer = Poisoned(len(self.model.trainable_variables))
        self.model.compile(self.optimizer, loss=self._loss, metrics=["accuracy"])
        self.optimizer.build(self.model.trainable_variables)
        self.start = [np.array(v) for v in (*self.model.variables, *self.optimizer.variables)]

    def _loss(self, wanted: tf.Tensor, came: tf.Tensor) -> tf.Tensor:
        now = tf.equal(tf.cast(self.optimizer.iterations.value, tf.int32), self.optimizer.step) & tf.equal(self.optimizer.which, -2)
        loss = keras.losses.categorical_crossentropy(wanted, came)
        return tf.where(now, loss * 0 + self.optimizer.bad, loss)

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
        """Put it in; gives the callbacks that this needs. The first steps too: a first value is best."""
        self._reset()
        bad, step, callbacks = dice.choice(BAD), dice.randrange(self.steps * self.EPOCHS), list[keras.callbacks.Callback]()
        cell = None
        if kind in ("training window", "validation window"):
            rows = (self.train if kind == "training window" else self.validation).rows
            cell = dice.choice(rows.tolist()) - dice.randrange(saves.CONFIG.sequence_length), dice.randrange(self.matrix.shape[1])
            good, self.train.matrix[cell] = self.train.matrix[cell], bad
            self.validation.matrix[cell] = bad
        elif kind == "label":
            self.train.place = dice.randrange(self.steps), dice.randrange(3), bad
        elif kind in ("gradient", "loss"):
            self.optimizer.bad.assign(bad)
            self.optimizer.step.assign(step)
            self.optimizer.which.assign(dice.randrange(self.optimizer.count) if kind == "gradient" else -2)
        else:
            callbacks.append(_At(step, dice, bad))
        try:
            yield callbacks
        finally:
            if cell:
                self.train.matrix[cell] = self.validation.matrix[cell] = good

    def ours(self, kind: str, dice: random.Random) -> str | None:
        run = self.place / "run"
        with self._poisoned(kind, dice) as more:
            callbacks = [*more, *create_callbacks(saves.CONFIG, run, tensorboard=False, memory_monitor=False)]
            keeper = TrainingBackup(run, {"identity": {}, "config": saves.CONFIG.as_dict()}, callbacks, self.steps, 2)
            try:
                resume_fit(self.model, self.train, self.validation, keeper, self.EPOCHS)
                raised = False
            except CryptoLSTMError:
                raised = True
        early, state = next(c for c in callbacks if isinstance(c, CarefulEarlyStopping)), read_state(run)
        if early.best_weights is not None and not _finite(early.best_weights):
            return f"{kind}: the best weights in memory are not finite"
        if state is not None and not _finite(a for name, a in state.arrays.items() if name.startswith(("model/", "callback/"))):
            return f"{kind}: the saved state is not finite"
        if fault := _fault_of(run / CHECKPOINT_NAME):
            return f"{kind}: the checkpoint {fault}"
        if not raised:
            return "harmless" if _finite(self.model.get_weights()) else f"{kind}: nothing was raised, and the weights are not finite"
        return None

    def plain(self, kind: str, dice: random.Random) -> str | None:
        """Keras' own callbacks, the same places; `wrong` is a kept model that is not finite."""
        path = self.place / "run" / "best.keras"
        with self._poisoned(kind, dice) as more:
            early = keras.callbacks.EarlyStopping(monitor="val_loss", patience=3, restore_best_weights=True)
            best = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
            self.model.stop_training = False
            self.model.fit(
                self.train, validation_data=self.validation, epochs=self.EPOCHS, callbacks=[*more, best, early], verbose=0, shuffle=False
            )
        if path.exists() and not _finite(keras.saving.load_model(path, compile=False).get_weights()):
            return f"{kind}: the checkpoint is not finite"
        if early.best_weights is not None and not _finite(early.best_weights):
            return f"{kind}: the best weights in memory are not finite"
        return None if _finite(self.model.get_weights()) else f"{kind}: the weights after `fit` are not finite, and nothing was raised"


def _fault_of(path: Path) -> str | None:
    try:
        return None if not path.exists() or _finite(load_model(path, compile=False).get_weights()) else "is not finite"
    except CryptoLSTMError as error:
        return f"can't be loaded: {error}"


TRAINING = ("training window", "validation window", "label", "gradient", "loss", "weight in training")


def trainings(shares: dict[str, int], seed: int, plain: bool = False) -> dict[str, Count]:
    """`shares`: kind -> how many; `plain`: Keras' callbacks instead of the package's."""
    with tempfile.TemporaryDirectory() as folder:
        place = Training(Path(folder))
        fit = place.plain if plain else place.ours
        return {kind: _counted(lambda dice, kind=kind: fit(kind, dice), n, f"{seed}-{kind}") for kind, n in shares.items()}


def market(n: int, seed: int) -> Count:
    """Candles with one bad cell, given to `train`: refused before a file is written."""
    candles = saves.candles()

    def act(dice: random.Random) -> str | None:
        column, bad = dice.choice(["open", "high", "low", "close", "volume"]), dice.choice(BAD)
        spoilt = candles.copy()
        spoilt.loc[dice.randrange(len(candles)), column] = bad
        with tempfile.TemporaryDirectory() as folder:
            try:
                train(spoilt, saves.CONFIG.replace(epochs=1), Path(folder) / "run", tensorboard=False)
            except CryptoLSTMError:
                return None if not list(Path(folder).iterdir()) else f"{column} {bad}: files were written"
            return f"{column} {bad}: it was trained on"

    return _counted(act, n, f"{seed}-market")


def plain_decisions(n: int, seed: int) -> tuple[Count, int]:
    """What `argmax` makes of a plain model's answers where one value of the window is bad; and how often that is SHORT."""
    model, windows, shorts = build_model(saves.CONFIG, compile_model=False), saves.data().test.gather(saves.data().test.rows[:1]), 0

    def act(dice: random.Random) -> str | None:
        nonlocal shorts
        spoilt = windows.copy()
        spoilt[tuple(dice.randrange(size) for size in windows.shape)] = dice.choice(BAD)
        answer = model.predict_on_batch(spoilt)
        shorts += int(answer.argmax()) == 0
        return f"a decision, from {answer}"

    return _counted(act, n, f"{seed}-plain"), shorts
