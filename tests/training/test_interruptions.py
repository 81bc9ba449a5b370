"""What an interrupted training leaves: lock files, forked helpers, unfinished bundles, and runs that lost their state."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from support.kill_and_resume import CONFIG, candles

from crypto_lstm.inference.bundle import load_bundle, verify_bundle
from crypto_lstm.inference.predictor import Predictor, load_run_predictor
from crypto_lstm.persistence import load_model
from crypto_lstm.storage.lock import LockedError, hash_name, hold_lock, remove_stale_locks
from crypto_lstm.training.run_folder import lock_run_folder
from crypto_lstm.training.saved_run import load_run, verify_run
from crypto_lstm.training.trainer import train
from crypto_lstm.utils.environment import ForkedTensorFlowError

SMALL = CONFIG.replace(lstm_units=(4,), dense_units=(), epochs=2, batch_size=320)
HOURLY = candles()
OPTIONS = {"tensorboard": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    return train(HOURLY, SMALL, tmp_path_factory.mktemp("whole") / "run", **OPTIONS)


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole.output_dir, tmp_path / "run"))


def run_in_fork(act: Callable[[], object], limit_s: int = 60) -> str:
    """What `act` returns or raises in a forked process, as text; "killed" if it does not end in time."""
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(limit_s)
        try:
            text = str(act())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(sending, text.encode())
        os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as pipe:
        text = pipe.read().decode()
    return "killed" if os.waitpid(child, 0)[1] else text


# ---------------------------------------------------------------- lock files


def leave_lock(target: Path) -> None:
    """Kill a process while it holds the lock of `target`."""
    if (child := os.fork()) == 0:
        with hold_lock(target):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def list_locks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".lock-*"))


LOOKS = {
    "train": lambda folder: train(HOURLY, SMALL, folder, **OPTIONS),
    "load": load_run,
    "verify": verify_run,
    "load a predictor": load_run_predictor,
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_next_call_removes_the_locks_that_a_killed_process_left(name, copied):
    for target in ("bundle", "model.onnx", "metadata.json", "history.json", "training", "state"):
        leave_lock(copied / target)
    assert len(list_locks(copied)) == 6
    with hold_lock(copied / "training_curves.png") if name != "train" else lock_run_folder(copied.parent / "other"):
        LOOKS[name](copied)
        held = [f".lock-{hash_name('training_curves.png')}"] if name != "train" else []
        assert list_locks(copied) == held


def test_a_lock_file_of_somebody_else_stays(tmp_path):
    """Relatives: a file with other content, a folder, a link, a pipe, and a file that may not be opened."""
    (tmp_path / ".lock-00000000").write_text("mine")
    (tmp_path / ".lock-00000001").mkdir()
    (tmp_path / ".lock-00000002").symlink_to(tmp_path / ".lock-00000000")
    os.mkfifo(tmp_path / ".lock-00000003")
    (tmp_path / ".lock-notes").write_text("")
    before = sorted(tmp_path.iterdir())
    assert remove_stale_locks(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_writer_is_not_refused_while_a_stale_lock_is_examined(tmp_path):
    """`remove_stale_locks` holds each lock for an instant: a writer waits that long, also without `wait_s`."""
    leave_lock(tmp_path / "model")
    child = os.fork()
    if child == 0:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            remove_stale_locks(tmp_path)
        os._exit(0)
    try:
        for _ in range(200):
            with hold_lock(tmp_path / "model"):
                pass
    finally:
        os.waitpid(child, 0)


def test_a_forked_helper_does_not_keep_the_lock_of_a_killed_training(tmp_path):
    """The helper may also leave the block of the lock itself: the lock is not its own."""
    receiving, sending = os.pipe()
    if (training := os.fork()) == 0:
        with lock_run_folder(tmp_path / "run"):
            (tmp_path / "run" / "content").write_text("")
            if (helper := os.fork()) == 0:
                os.write(sending, b"ready")
                time.sleep(60)
                os._exit(0)
            os.write(sending, f" {helper} ".encode())
            time.sleep(60)
    text = b""
    while b"ready" not in text or text.count(b" ") < 2:
        text += os.read(receiving, 100)
    helper = int(text.replace(b"ready", b""))
    try:
        with pytest.raises(LockedError, match=f"process {training} on"), lock_run_folder(tmp_path / "run"):
            pytest.fail("the block must not run")
        os.kill(training, signal.SIGKILL)
        os.waitpid(training, 0)
        os.kill(helper, 0)  # it lives
        with lock_run_folder(tmp_path / "run"):
            pass
        assert list_locks(tmp_path / "run") == []
    finally:
        os.kill(helper, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_does_not_unlock_it(tmp_path):
    try:
        with hold_lock(tmp_path / "model"):
            if (child := os.fork()) == 0:
                raise InterruptedError
            assert os.waitpid(child, 0)[1] == 0
    except InterruptedError:  # only the child comes here
        os._exit(0 if len(list_locks(tmp_path)) == 1 else 1)
    assert list_locks(tmp_path) == []


# ---------------------------------------------------------------- TensorFlow after a fork


FORKED = {
    "load_model": lambda run: load_model(run.paths["model"]),
    "load_bundle": lambda run: load_bundle(run.paths["bundle"]),
    "load_run": lambda run: load_run(run.output_dir),
    "verify_bundle": lambda run: verify_bundle(run.paths["bundle"]),
    "verify_run": lambda run: verify_run(run.output_dir),
    "predict": lambda run: run.predict(HOURLY),
    "train": lambda run: train(HOURLY, SMALL, run.output_dir.parent / "forked", **OPTIONS),
}


@pytest.mark.parametrize("name", FORKED)
def test_a_fork_of_a_process_that_used_tensorflow_gets_an_error(name, whole):
    """It would hang. `load_run`, `predict` and `train` are relatives."""
    answer = run_in_fork(lambda: FORKED[name](whole))
    assert answer.startswith(f"{ForkedTensorFlowError.__name__}: process ")
    assert f"is a fork of process {os.getpid()}, which had used TensorFlow" in answer
    assert not (whole.output_dir.parent / "forked").exists()


def test_a_bundle_that_was_loaded_before_the_fork_makes_no_trade(whole):
    bundle = load_bundle(whole.paths["bundle"])
    now = HOURLY["date"].iloc[-1] + np.timedelta64(1, "h")
    assert run_in_fork(lambda: bundle.decide(HOURLY, now=now)).startswith("NO_TRADE: process ")


def test_a_predictor_decides_in_a_forked_process(whole):
    """Relative: 100 windows, which several threads answer."""
    predictor = Predictor.load(whole.paths["onnx"])
    expected = predictor.predict(HOURLY)["long"]
    answer = run_in_fork(lambda: float(np.abs(predictor.predict(HOURLY)["long"] - expected).max()))
    assert float(answer) < 1e-6
