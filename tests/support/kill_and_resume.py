"""Trainings that are killed at random moments and started again: does each end as if nothing had happened?

`python tests/resuming.py RUNS KILLS [SEED]` prints a line of JSON for each run. All children are forked from one process that has imported
TensorFlow and not used it yet, so that a start costs no import.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from support import crash_injection as faults
import keras
import numpy as np

from crypto_lstm.training import checkpointing as resume
from crypto_lstm.architecture import build_model
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import Config
from crypto_lstm.training.checkpointing import make_deterministic
from crypto_lstm.training.trainer import train
from crypto_lstm.data.windows import prepare

CONFIG = Config(
    timeframe="1h", sequence_length=12, future_window=24, lstm_units=(8, 4), dense_units=(4,), batch_size=128, epochs=6, learning_rate=0.01,
    long_tp_pct=2.0, long_sl_pct=2.0, short_tp_pct=2.0, short_sl_pct=2.0, early_stopping_patience=3, reduce_lr_patience=1,
)  # fmt: skip
SAVE_EVERY = 3
KINDS = ("batch", "save", "resume", "time")


def candles():
    return synthetic_candles(3000, seed=3, timeframe="1h")


def digest(model: keras.Model, history: dict[str, list[float]]) -> dict[str, str | int]:
    """SHA-256 of all variables (random state included), of the optimizer and of the history; and the number of epochs."""

    def sha256(variables) -> str:
        return hashlib.sha256(b"".join(v.value.numpy().tobytes() for v in variables)).hexdigest()

    told = json.dumps({name: [float(v) for v in values] for name, values in sorted(history.items())})
    parts = {"model": sha256(model.variables), "optimizer": sha256(model.optimizer.variables)}
    return parts | {"history": hashlib.sha256(told.encode()).hexdigest(), "epochs": len(history["loss"])}


class Final(keras.callbacks.Callback):
    """Writes down what the training came to, when it ends."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self, logs=None):
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(digest(self.model, self.model.history.history)))
        new.replace(self.path)


class KillAtBatch(keras.callbacks.Callback):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            die()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(function: Callable, count: int) -> Callable:
    """The function, and in the count-th call of all that share `count` the end: before, or after it has done its work."""
    before = count % 2

    def call(*words, **named):
        calls[0] += 1
        if calls[0] == count and before:
            die()
        answer = function(*words, **named)
        if calls[0] == count:
            die()
        return answer

    return call


calls = [0]


def plan(kind: str, dice: random.Random) -> list[keras.callbacks.Callback]:
    """Arrange a death in this process; the callbacks that the training needs for it."""
    if kind == "batch":
        return [KillAtBatch(dice.randint(1, 8))]
    if kind == "time":
        timer = threading.Timer(dice.uniform(0.5, 6.0), die)
        timer.daemon = True
        timer.start()
    if kind == "save":
        count = dice.randint(1, 30)
        steps = ("sync_to_disk", "write_new_file", "move_into_place", "delete_old_checkpoints", "exchange")
        for module, name in faults.places(*steps):
            setattr(module, name, counted(getattr(module, name), count))
    if kind == "resume":
        count = dice.randint(1, 6)
        for name in ("_assign", "_unpack", "read_state"):
            setattr(resume, name, counted(getattr(resume, name), count))
    return []


def one_process(folder: Path, kind: str | None, seed: str) -> bool:
    """Train in a forked child, as far as it comes; whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            killers = plan(kind, random.Random(seed)) if kind else []
            train(candles(), CONFIG, folder / "run", callbacks=[Final(folder / "final.json"), *killers], tensorboard=False,
                  save_every_batches=SAVE_EVERY, deterministic=True)  # fmt: skip
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the training failed in {folder}, {kind}, seed {seed}")
    return os.WIFSIGNALED(status)


def plain_process(folder: Path, kill: bool, seed: str) -> bool:
    """The same network and data by Keras' own `fit` with `BackupAndRestore`; whether it was killed, after a random step."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_deterministic(CONFIG.seed)
            data, model = prepare(candles(), CONFIG), build_model(CONFIG)
            killers = [KillAtBatch(random.Random(seed).randint(1, 40))] if kill else []
            callbacks = [
                keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=CONFIG.early_stopping_patience, restore_best_weights=True),
                keras.callbacks.ReduceLROnPlateau(patience=CONFIG.reduce_lr_patience, factor=CONFIG.reduce_lr_factor),
                keras.callbacks.BackupAndRestore(folder / "backup", save_freq=SAVE_EVERY),
                *killers,
            ]
            model.fit(data.train, validation_data=data.validation, epochs=CONFIG.epochs, callbacks=callbacks, verbose=0, shuffle=False)
            (folder / "final.json").write_text(json.dumps(digest(model, model.history.history)))
            code = 0
        except BaseException as error:  # a backup that can't be read: the training does not go on
            (folder / "error.txt").write_text(repr(error))
        finally:
            os._exit(code)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def plain_runs(runs: int, kills: int, seed: int, folder: Path) -> Iterator[dict]:
    """As `killed_runs`, for plain Keras; `equal` asks for the weights and the optimizer only."""
    (folder / "whole").mkdir()
    plain_process(folder / "whole", False, "")
    wanted = json.loads((folder / "whole" / "final.json").read_text())
    for number in range(runs):
        place = folder / f"run-{number}"
        place.mkdir()
        hit = sum(plain_process(place, True, f"{seed}-{number}-{kill}") for kill in range(kills))
        plain_process(place, False, "")
        final = place / "final.json"
        found = json.loads(final.read_text()) if final.exists() else {}
        differs = [name for name in ("model", "optimizer") if found.get(name) != wanted[name]]
        yield {"run": number, "seed": seed, "killed": hit, "equal": not differs, "ended": bool(found)}


def came_to(folder: Path) -> dict:
    """What was left by the training that came to its end."""
    history = json.loads((folder / "run" / "history.json").read_text())
    files = sorted(path.name for path in (folder / "run").iterdir())
    return {**json.loads((folder / "final.json").read_text()), "history.json": history, "files": files}


def killed_runs(runs: int, kills: int, seed: int, folder: Path) -> Iterator[dict]:
    """For each run: the kinds of kills that hit, and whether it ended as the run that was never stopped."""
    (folder / "whole").mkdir()
    one_process(folder / "whole", None, "")
    wanted = came_to(folder / "whole")
    for number in range(runs):
        place, hit = folder / f"run-{number}", []
        place.mkdir()
        for kill in range(kills):
            kind = KINDS[(number + kill) % len(KINDS)]
            if one_process(place, kind, f"{seed}-{number}-{kill}"):
                hit.append(kind)
        one_process(place, None, "")
        found = came_to(place)
        differs = [name for name in wanted if found[name] != wanted[name]]
        yield {"run": number, "seed": seed, "killed": hit, "epochs": found["epochs"], "equal": not differs, "differs": differs}


def main() -> None:
    runs, kills = map(int, sys.argv[1:3])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else int(np.random.SeedSequence().entropy % 10**6)
    with tempfile.TemporaryDirectory() as folder:
        for result in killed_runs(runs, kills, seed, Path(folder)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
