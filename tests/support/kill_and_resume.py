"""Kill trainings at random moments, start them again, and compare the results with an uninterrupted training.

`python -m support.kill_and_resume RUNS KILLS [SEED]` in `tests` prints one line of JSON for each run. All children are
forked from one process that has imported TensorFlow and not used it yet, so a start costs no import.
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

import keras
import numpy as np

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.training import checkpointing
from crypto_lstm.training.checkpointing import make_deterministic
from crypto_lstm.training.trainer import train
from support import crash_injection as faults

CONFIG = Config(
    timeframe="1h",
    sequence_length=12,
    future_window=24,
    lstm_units=(8, 4),
    dense_units=(4,),
    batch_size=128,
    epochs=6,
    learning_rate=0.01,
    long_tp_pct=2.0,
    long_sl_pct=2.0,
    short_tp_pct=2.0,
    short_sl_pct=2.0,
    early_stopping_patience=3,
    reduce_lr_patience=1,
)
SAVE_EVERY = 3
KINDS = ("batch", "save", "resume", "time")  # where a kill happens, see `plan_kill`


def candles():
    return synthetic_candles(3000, seed=3, timeframe="1h")


def digest(model: keras.Model, history: dict[str, list[float]]) -> dict[str, str | int]:
    """SHA-256 of all variables (with the random state), of the optimizer and of the history; the number of epochs."""
    text = json.dumps({name: [float(value) for value in values] for name, values in sorted(history.items())})
    return {
        "model": hash_variables(model.variables),
        "optimizer": hash_variables(model.optimizer.variables),
        "history": hashlib.sha256(text.encode()).hexdigest(),
        "epochs": len(history["loss"]),
    }


def hash_variables(variables) -> str:
    return hashlib.sha256(b"".join(variable.value.numpy().tobytes() for variable in variables)).hexdigest()


class Final(keras.callbacks.Callback):
    """Write the digest of a training to a file when it ends."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self, logs=None):
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(digest(self.model, self.model.history.history)))
        new.replace(self.path)


class KillAtBatch(keras.callbacks.Callback):
    """Kill the process after a number of steps."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            die()


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


calls = [0]  # of all functions that `counted` wraps


def counted(function: Callable, count: int) -> Callable:
    """The function; its process is killed in call number `count` of all wrapped functions.

    An odd `count` kills before the function runs, an even one after it.
    """
    kills_before = count % 2

    def call(*words, **named):
        calls[0] += 1
        if calls[0] == count and kills_before:
            die()
        answer = function(*words, **named)
        if calls[0] == count:
            die()
        return answer

    return call


def plan_kill(kind: str, dice: random.Random) -> list[keras.callbacks.Callback]:
    """Arrange a kill of this process: after a step, inside a save, inside a resume, or after a random time.

    Returns the callbacks that the training needs for it.
    """
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
        for name in ("_assign_variables", "_restore_callbacks", "read_state"):
            setattr(checkpointing, name, counted(getattr(checkpointing, name), count))
    return []


def one_process(folder: Path, kind: str | None, seed: str) -> bool:
    """Train in a forked child until it ends or is killed. Returns whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            killers = plan_kill(kind, random.Random(seed)) if kind else []
            train(
                candles(),
                CONFIG,
                folder / "run",
                callbacks=[Final(folder / "final.json"), *killers],
                tensorboard=False,
                save_every_batches=SAVE_EVERY,
                deterministic=True,
            )
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the training failed in {folder}, {kind}, seed {seed}")
    return os.WIFSIGNALED(status)


def plain_process(folder: Path, kill: bool, seed: str) -> bool:
    """Train the same network with Keras' own `fit` and `BackupAndRestore` in a forked child.

    Returns whether it was killed, which happens after a random step.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train_with_keras(folder, [KillAtBatch(random.Random(seed).randint(1, 40))] if kill else [])
            code = 0
        except BaseException as error:  # the child reports a backup that can't be read, and ends
            (folder / "error.txt").write_text(repr(error))
        finally:
            os._exit(code)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def train_with_keras(folder: Path, killers: list[keras.callbacks.Callback]) -> None:
    make_deterministic(CONFIG.seed)
    data = prepare(candles(), CONFIG)
    model = build_model(CONFIG)
    patience = CONFIG.early_stopping_patience
    callbacks = [
        keras.callbacks.EarlyStopping(monitor="val_accuracy", patience=patience, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=CONFIG.reduce_lr_patience, factor=CONFIG.reduce_lr_factor),
        keras.callbacks.BackupAndRestore(folder / "backup", save_freq=SAVE_EVERY),
        *killers,
    ]
    options = {"epochs": CONFIG.epochs, "verbose": 0, "shuffle": False}
    model.fit(data.train, validation_data=data.validation, callbacks=callbacks, **options)
    (folder / "final.json").write_text(json.dumps(digest(model, model.history.history)))


def plain_runs(runs: int, kills: int, seed: int, folder: Path) -> Iterator[dict]:
    """As `killed_runs`, for plain Keras; `equal` compares the weights and the optimizer only."""
    (folder / "whole").mkdir()
    plain_process(folder / "whole", False, "")
    expected = json.loads((folder / "whole" / "final.json").read_text())
    for number in range(runs):
        place = folder / f"run-{number}"
        place.mkdir()
        killed = sum(plain_process(place, True, f"{seed}-{number}-{kill}") for kill in range(kills))
        plain_process(place, False, "")
        final = place / "final.json"
        found = json.loads(final.read_text()) if final.exists() else {}
        differs = [name for name in ("model", "optimizer") if found.get(name) != expected[name]]
        yield {"run": number, "seed": seed, "killed": killed, "equal": not differs, "ended": bool(found)}


def read_result(folder: Path) -> dict:
    """The digest, the history and the names of the files of a finished training."""
    history = json.loads((folder / "run" / "history.json").read_text())
    files = sorted(path.name for path in (folder / "run").iterdir())
    return {**json.loads((folder / "final.json").read_text()), "history.json": history, "files": files}


def killed_runs(runs: int, kills: int, seed: int, folder: Path) -> Iterator[dict]:
    """For each run: the kinds of its kills, and whether its result equals that of an uninterrupted run."""
    (folder / "whole").mkdir()
    one_process(folder / "whole", None, "")
    expected = read_result(folder / "whole")
    for number in range(runs):
        place = folder / f"run-{number}"
        place.mkdir()
        killed = []
        for kill in range(kills):
            kind = KINDS[(number + kill) % len(KINDS)]
            if one_process(place, kind, f"{seed}-{number}-{kill}"):
                killed.append(kind)
        one_process(place, None, "")
        found = read_result(place)
        differs = [name for name in expected if found[name] != expected[name]]
        result = {"run": number, "seed": seed, "killed": killed, "epochs": found["epochs"]}
        yield {**result, "equal": not differs, "differs": differs}


def main() -> None:
    runs, kills = map(int, sys.argv[1:3])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else int(np.random.SeedSequence().entropy % 10**6)
    with tempfile.TemporaryDirectory() as folder:
        for result in killed_runs(runs, kills, seed, Path(folder)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
