"""An interrupted training: lock files, forked helpers, unfinished bundles, and runs that lost their state."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from support.kill_and_resume import CONFIG, candles, digest

from crypto_lstm.callbacks import OutputFolderError
from crypto_lstm.inference.bundle import BundleError, load_bundle, save_bundle, verify_bundle
from crypto_lstm.inference.onnx_file import export_onnx
from crypto_lstm.inference.predictor import Predictor, load_run_predictor
from crypto_lstm.persistence import load_model
from crypto_lstm.storage.lock import LockedError, hash_name, hold_lock, remove_stale_locks
from crypto_lstm.storage.manifest import MANIFEST, encode_manifest
from crypto_lstm.training.checkpointing import _describe_lost_steps
from crypto_lstm.training.run_folder import STATE, STOP_NOTE, lock_run_folder
from crypto_lstm.training.saved_run import NoFinishedEpochError, load_run, verify_run
from crypto_lstm.training.trainer import train
from crypto_lstm.utils.environment import ForkedTensorFlowError

SMALL = CONFIG.replace(sequence_length=4, lstm_units=(4,), dense_units=(), epochs=2, batch_size=320, dropout_rate=0.0)
RANDOM = SMALL.replace(dropout_rate=CONFIG.dropout_rate)  # its random state must be restored as well
HOURLY = candles()
OPTIONS = {"tensorboard": False}

pytestmark = pytest.mark.usefixtures("bare_trainings", "no_graphs")


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


# ---------------------------------------------------------------- unfinished trainings


class Stop(keras.callbacks.Callback):
    """Stop at a step or at the end of an epoch, by the flag of Keras or by a signal, which acts one step later."""

    def __init__(self, epoch: int, batch: int | None, number: int | None = None) -> None:
        super().__init__()
        self.where, self.number, self.epoch = (epoch, batch), number, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._stop_at(batch)

    def on_epoch_end(self, epoch, logs=None):
        self._stop_at(None)

    def _stop_at(self, batch):
        if (self.epoch, batch) != self.where:
            return
        if self.number is None:
            self.model.stop_training = True
        else:
            os.kill(os.getpid(), self.number)


STOPPED = {  # how -> callback, what stopped it, finished epochs
    "a signal inside the second epoch": (Stop(1, 0, signal.SIGTERM), "SIGTERM", 1),
    "a callback at the end of an epoch": (Stop(0, None), "a callback", 1),
}


@pytest.mark.parametrize("name", STOPPED)
def test_the_files_of_a_training_that_was_stopped_early_say_so(name, tmp_path, caplog):
    callback, cause, epochs = STOPPED[name]
    run = train(HOURLY, SMALL.replace(epochs=3), tmp_path / "run", callbacks=[callback], **OPTIONS)
    sentence = f"the training is unfinished: {cause} stopped it after {epochs} of 3 epochs"
    caplog.clear()
    bundle, predictor = load_bundle(run.paths["bundle"]), Predictor.load(run.paths["onnx"])
    assert caplog.messages == [f"bundle: {sentence}", f"model.onnx: {sentence}"]
    expected = {"epochs": epochs, "epochs_wanted": 3, "interrupted": cause}
    assert bundle.metadata["training"] == expected and predictor.metadata["training"] == expected
    assert "unfinished=True" in repr(bundle) and "unfinished=True" in repr(predictor)
    assert sentence in str(predictor) and sentence in predictor._repr_html_()
    one, whole_folder = verify_bundle(run.paths["bundle"]), verify_run(run.output_dir)
    assert one.ok and whole_folder.ok
    assert one.as_dict()["unfinished"] == whole_folder.as_dict()["unfinished"] == sentence
    assert sentence in str(one) and "UNFINISHED" in str(one).splitlines()[0]
    assert "UNFINISHED" in str(whole_folder).splitlines()[0] and "unfinished=True" in repr(one)
    assert f"{epochs} of 3, stopped by {cause}" in str(run)
    now = HOURLY["date"].iloc[-1] + np.timedelta64(1, "h")
    assert bundle.decide(HOURLY, now=now).probabilities is not None  # it is a warning, no refusal


def test_the_last_epoch_and_early_stopping_are_regular_ends(whole, tmp_path, caplog):
    """Relative: a signal in the last step of the last epoch."""
    early = SMALL.replace(epochs=9, early_stopping_patience=1, learning_rate=1e-7)
    runs = [
        (whole, 2, None),
        (train(HOURLY, early, tmp_path / "early", **OPTIONS), 2, "early stopping"),
        (train(HOURLY, SMALL, tmp_path / "c", callbacks=[Stop(1, 2, signal.SIGINT)], **OPTIONS), 2, None),
    ]
    for run, epochs, cause in runs:
        caplog.clear()
        bundle, predictor = load_bundle(run.paths["bundle"]), Predictor.load(run.paths["onnx"])
        wanted = run.config.epochs
        assert bundle.metadata["training"] == {"epochs": epochs, "epochs_wanted": wanted, "interrupted": None}
        assert (run.epochs_finished, run.stopped_by, run.unfinished) == (epochs, cause, None)
        assert caplog.messages == [] and "unfinished" not in repr(bundle) + repr(predictor) + str(predictor)
        assert verify_run(run.output_dir).as_dict()["unfinished"] is None
    again = train(HOURLY, early, tmp_path / "early", **OPTIONS)
    assert (again.resumed_at, again.stopped_by) == ("finished", "early stopping")


def test_a_training_of_no_finished_epoch_makes_no_bundle(whole, tmp_path, caplog):
    run = train(HOURLY, SMALL, tmp_path / "run", callbacks=[Stop(0, 0, signal.SIGTERM)], **OPTIONS)
    assert (run.epochs_finished, run.bundle_sha256, run.unfinished) == (0, None, "SIGTERM")
    assert "no epoch was finished: there is no bundle and no ONNX file" in caplog.text
    assert "no bundle: no epoch was finished" in str(run)
    assert not run.paths["bundle"].exists() and not run.paths["onnx"].exists()
    assert "The training is UNFINISHED" in run.report(tmp_path / "mine.html").read_text(encoding="utf-8")
    with pytest.raises(BundleError, match="no epoch of the training was finished, SIGTERM stopped it"):
        save_bundle(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    for look in (load_run, verify_run):
        with pytest.raises(NoFinishedEpochError, match="'SIGTERM' stopped it: there is no model to use; resume"):
            look(run.output_dir)
    assert load_run_predictor(run.output_dir) is None
    told = "it holds a training that SIGTERM stopped after 0 finished epochs: its state"
    assert_refused_without_state(run.output_dir, tmp_path, told)
    rest = train(HOURLY, SMALL, run.output_dir, **OPTIONS)
    assert rest.epochs_finished == 2 and rest.unfinished is None and verify_run(run.output_dir).ok
    page = rest.paths["report"].read_bytes()
    assert b"UNFINISHED" not in page and rest.report().read_bytes() == page


def change_facts(folder: Path, place: Path, **facts: object) -> Path:
    """A copy of a bundle with other facts under a consistent manifest; a fact of None is left out."""
    target = Path(shutil.copytree(folder, place / "bundle"))
    manifest = json.loads((target / MANIFEST).read_text())
    manifest["facts"] |= facts
    manifest["facts"] = {name: value for name, value in manifest["facts"].items() if value is not None}
    (target / MANIFEST).write_bytes(encode_manifest({k: v for k, v in manifest.items() if k != "seal"}))
    return target


def test_a_bundle_of_an_earlier_version_loads_without_the_fact(whole, tmp_path, caplog):
    bundle = load_bundle(change_facts(whole.paths["bundle"], tmp_path, training=None, expires=None))
    export_onnx(bundle, tmp_path / "model.onnx")
    predictor = Predictor.load(tmp_path / "model.onnx")
    assert predictor.metadata["training"] is None and "unfinished" not in repr(predictor)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "fact",
    [[1], {"epochs": 1}, {"epochs": True, "epochs_wanted": 2, "interrupted": None}]
    + [{"epochs": 1, "epochs_wanted": 2, "interrupted": "\x1b[31m"}],
)
def test_a_bundle_with_an_invalid_fact_is_refused(fact, whole, tmp_path):
    with pytest.raises(BundleError, match="training: expected finished and wanted epochs"):
        load_bundle(change_facts(whole.paths["bundle"], tmp_path, training=fact))


# ---------------------------------------------------------------- errors in callbacks, and state that is lost


EQUAL = {"tensorboard": False, "deterministic": True}


class Failing(keras.callbacks.Callback):
    """Act once in one of its methods, at its call number `count` (from 0)."""

    def __init__(self, method: str, count: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.left = count
        setattr(self, method, partial(self._call, act))

    def _call(self, act, *_, **__):
        self.left -= 1
        if self.left == -1:
            act()


class Failure(Exception):
    pass


def fail() -> None:
    raise Failure


class PredictingFailure(keras.callbacks.Callback):
    """Predict at the end of each epoch, with a callback whose `on_predict_begin` may fail in the second one."""

    def __init__(self, act: Callable[[], object] = fail) -> None:
        super().__init__()
        self.inner = Failing("on_predict_begin", 1, act)

    def on_epoch_end(self, epoch, logs=None):
        shape = (4, SMALL.sequence_length, len(SMALL.features))
        self.model.predict(np.zeros(shape, "float32"), verbose=0, callbacks=[self.inner])


def interrupt() -> None:
    """Press Ctrl-C twice."""
    press = signal.getsignal(signal.SIGINT)  # two signals at once may arrive as one
    press(signal.SIGINT, None)
    press(signal.SIGINT, None)


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """A run that was never stopped, with equal bits."""
    return train(HOURLY, RANDOM, tmp_path_factory.mktemp("equal") / "run", **EQUAL)


def assert_equal_bits(run, expected) -> None:
    assert digest(run.model, run.history) == digest(expected.model, expected.history)
    pairs = [keras.models.load_model(r.paths["checkpoint"]).get_weights() for r in (run, expected)]
    assert all(np.array_equal(one, other) for one, other in zip(*pairs, strict=True))
    assert run.test.as_dict() == expected.test.as_dict()


FAILURES = {
    "on_epoch_end": lambda: Failing("on_epoch_end", 1, fail),
    "on_predict_begin": PredictingFailure,
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_goes_on_with_equal_bits_after_an_error_in_a_callback(name, equal, tmp_path):
    """The same object is passed again. A network draws a seed when it predicts, so the whole run predicts as well."""
    callback = FAILURES[name]()
    with pytest.raises(Failure):
        train(HOURLY, RANDOM, tmp_path / "run", callbacks=[callback], **EQUAL)
    run = train(HOURLY, RANDOM, tmp_path / "run", callbacks=[callback], **EQUAL)
    assert run.resumed_at is not None
    expected = equal
    if name == "on_predict_begin":
        expected = train(HOURLY, RANDOM, tmp_path / "whole", callbacks=[PredictingFailure(lambda: None)], **EQUAL)
    assert_equal_bits(run, expected)


def assert_refused_without_state(run: Path, place: Path, told: str) -> None:
    """Remove the state from a copy of the folder of a run; nothing else is changed there."""
    copy = Path(shutil.copytree(run, place / "without-state"))
    shutil.rmtree(copy / "state")
    before = sorted(copy.rglob("*"))
    with pytest.raises(OutputFolderError) as refused:
        train(HOURLY, SMALL, copy, **OPTIONS)
    message = str(refused.value)
    assert told in message and "is missing, so it can't be resumed. Nothing is overwritten" in message
    assert sorted(copy.rglob("*")) == before


def test_the_run_after_two_interrupts_states_what_it_lost(equal, tmp_path, caplog):
    """Relative: the file of the best model is removed as well."""
    callback = Failing("on_train_batch_end", 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(HOURLY, RANDOM, tmp_path / "run", callbacks=[callback], **EQUAL)
    assert_refused_without_state(tmp_path / "run", tmp_path, "it holds a training whose best epoch was number 1")
    (tmp_path / "run" / "best_model_checkpoint.keras").unlink()
    caplog.clear()
    run = train(HOURLY, RANDOM, tmp_path / "run", **EQUAL)
    place = "KeyboardInterrupt stopped the training in epoch 2, after step 2 of 3"
    assert f"{place}: 2 steps since the last state are lost and done again" in caplog.messages
    assert "best_model_checkpoint.keras was removed: it is written again from the weights" in caplog.text
    assert run.resumed_at == "epoch 2, step 1 of 3"
    assert_equal_bits(run, equal)
    assert not (run.output_dir / "state").exists()


def test_a_folder_that_is_removed_while_the_training_runs_is_made_again(equal, tmp_path, caplog):
    """The second training fails after that, so that a third one tells it too."""
    remove = Failing("on_train_batch_end", 5, lambda: shutil.rmtree(tmp_path / "run"))
    later = Failing("on_train_end", 0, fail)
    with pytest.raises(Failure):
        train(HOURLY, RANDOM, tmp_path / "run", callbacks=[remove, later], **EQUAL)
    told = ["state' was removed before epoch 2: the older states are lost"]
    if equal.history["val_accuracy"][1] <= equal.history["val_accuracy"][0]:
        told.append("was removed before epoch 2: it is written again from the weights of the best epoch")
    assert all(any(text in message for message in caplog.messages) for text in told)
    caplog.clear()
    run = train(HOURLY, RANDOM, tmp_path / "run", **EQUAL)
    assert all(any(text in message for message in caplog.messages) for text in told)
    assert_equal_bits(run, equal)
    assert verify_run(run.output_dir).ok


@pytest.mark.parametrize("note", ["", "[]", '{"epoch": -1}', '{"epoch": 9, "batch": 1, "batches": 4, "error": 1}'])
def test_an_invalid_note_of_a_stop_is_ignored(note, tmp_path):
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / STOP_NOTE).write_text(note)
    assert _describe_lost_steps(tmp_path, SimpleNamespace(epoch=0, batch=0)) == []
