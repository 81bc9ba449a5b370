"""A training that was stopped, killed or damaged resumes with equal bits, or is refused with the reason."""

import json
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from support import forked, kill_and_resume
from support.kill_and_resume import SAVE_EVERY, candles, digest

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import NonFiniteError, OutputFolderError, create_callbacks
from crypto_lstm.commands.main import main
from crypto_lstm.config import ConfigError
from crypto_lstm.data.windows import prepare
from crypto_lstm.memory import estimate_memory
from crypto_lstm.profiling.batch_size import MemoryBudgetError
from crypto_lstm.saving.model_schema import ModelFileError
from crypto_lstm.storage.lock import LockedError
from crypto_lstm.storage.manifest import IntegrityError, PinMismatchError
from crypto_lstm.training import trainer
from crypto_lstm.training.checkpointing import (
    TrainingBackup,
    make_deterministic,
    read_state,
    restore_training,
    resume_fit,
)
from crypto_lstm.training.run_folder import (
    ResumeMismatchError,
    delete_training_state,
    is_finished_run,
    lock_run_folder,
    run_identity,
)
from crypto_lstm.training.saved_run import load_run, verify_run
from crypto_lstm.training.trainer import train

CONFIG = kill_and_resume.CONFIG.replace(lstm_units=(4,), dense_units=())  # two layers: `benchmarks reliability`
HOURLY = candles()
OPTIONS = {"tensorboard": False, "save_every_batches": SAVE_EVERY, "deterministic": True}
SETTINGS = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in CONFIG.as_dict().items()]

pytestmark = pytest.mark.usefixtures("bare_trainings")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never stopped."""
    return train(HOURLY, CONFIG, tmp_path_factory.mktemp("whole") / "run", **OPTIONS)


@pytest.fixture(scope="module")
def candle_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("candles") / "candles.feather"
    HOURLY.to_feather(path)
    return path


class At(keras.callbacks.Callback):
    """Call `act(model)` after a step of an epoch, both from 0."""

    def __init__(self, epoch, batch, act):
        super().__init__()
        self.where, self.act, self.epoch = (epoch, batch), act, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.where:
            self.act(self.model)


class Crash(Exception):
    pass


def crash(model):
    raise Crash


class CopyingBackup(TrainingBackup):
    """Keep a copy of the folder for each state."""

    def save(self, epoch, batch, over=False):
        super().save(epoch, batch, over)
        shutil.copytree(self.folder, self.folder.parent / f"at-{epoch}-{batch}")


def test_a_training_resumes_with_equal_bits_from_every_step_of_every_epoch(tmp_path):
    """All trainings share one network, so a resume must set everything: whatever it leaves comes from the last one."""
    make_deterministic(CONFIG.seed)
    config = CONFIG.replace(epochs=2, batch_size=320)
    data = prepare(HOURLY, config)
    model = build_model(config)
    steps = len(data.train)
    facts = {"identity": {}, "config": config.as_dict()}

    def fit(folder, saved, backup_class=TrainingBackup):
        callbacks = create_callbacks(config, folder, tensorboard=False)
        backup = backup_class(folder, facts, callbacks, steps, None if saved else 1, saved)
        if saved:
            restore_training(saved, model, callbacks, folder)
        history = resume_fit(model, data.train, data.validation, backup, config.epochs, saved)
        return digest(model, history), callbacks[-2].memory_history

    expected, _ = fit(tmp_path / "run", None, CopyingBackup)
    places = [(epoch, batch) for epoch in range(2) for batch in range(steps)] + [(2, 0)]
    for epoch, batch in places:
        folder = tmp_path / f"at-{epoch}-{batch}"
        saved = read_state(folder)
        assert (saved.epoch, saved.batch) == (epoch, batch)
        found, memory_history = fit(folder, saved)
        assert found == expected, f"from epoch {epoch}, batch {batch}"
        assert [record["epoch"] for record in memory_history] == [0, 1]


def test_a_run_with_a_nan_and_a_signal_ends_with_the_bits_of_an_undisturbed_run(whole, tmp_path, caplog):
    run = tmp_path / "run"

    def poison(model):
        model.layers[-1].bias.assign([np.nan, 0.0, 0.0])

    with pytest.raises(NonFiniteError) as stopped:
        train(HOURLY, CONFIG, run, callbacks=[At(1, 3, poison)], **OPTIONS)
    message = str(stopped.value)
    assert "loss is nan in epoch 2, batch 5 (step 13 of the training, learning rate 0.01, gradient norm nan" in message
    assert "The last finite state, after step 3 of epoch 2, is kept in" in message
    assert str(run / "state") in message
    saved = read_state(run)
    assert (saved.epoch, saved.batch) == (1, 3)
    assert all(np.isfinite(array).all() for array in saved.arrays.values() if array.dtype.kind == "f")
    assert not (run / "metadata.json").exists()
    best = keras.models.load_model(run / "best_model_checkpoint.keras")
    assert all(np.isfinite(array).all() for array in best.get_weights())

    with caplog.at_level("INFO", logger="crypto_lstm.training.trainer"):
        terminate = At(2, 1, lambda model: os.kill(os.getpid(), signal.SIGTERM))
        second = train(HOURLY, CONFIG, run, callbacks=[terminate], **OPTIONS)
    assert "resuming at epoch 2, step 4 of 8" in caplog.text
    assert (second.interrupted, second.epochs_run) == ("SIGTERM", 3)
    assert [name for name, path in second.paths.items() if not path.exists()] == []
    assert load_run(run).metadata["interrupted"] == "SIGTERM"
    assert str(read_state(run))[:13] == "epoch 3, step"

    third = train(HOURLY, CONFIG, run, **OPTIONS)
    assert third.resumed_at[:13] == "epoch 3, step" and third.interrupted is None
    assert digest(third.model, third.history) == digest(whole.model, whole.history)
    assert [record["epoch"] for record in third.memory_history] == list(range(whole.epochs_run))
    one, other = (keras.models.load_model(r.paths["checkpoint"]).get_weights() for r in (third, whole))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (run / "state").exists()


def test_an_optimizer_that_is_not_finite_is_not_saved(tmp_path):
    """A gradient beyond float32 is seen in the optimizer one step before it is seen in the weights."""

    def explode(model):
        gradients = [np.full(v.shape, 1e25, "float32") for v in model.trainable_variables]
        model.optimizer.apply(gradients, model.trainable_variables)
        assert all(np.isfinite(w).all() for w in model.get_weights())
        assert not all(np.isfinite(v.numpy()).all() for v in model.optimizer.variables)

    with pytest.raises(NonFiniteError, match="The last finite state, after step 3 of epoch 1, is kept"):
        train(HOURLY, CONFIG, tmp_path / "run", callbacks=[At(0, 5, explode)], **OPTIONS)
    assert all(np.isfinite(array).all() for array in read_state(tmp_path / "run").arrays.values())


def test_a_finished_run_is_loaded_and_not_changed(whole):
    before = contents(whole.output_dir)
    again = train(HOURLY, CONFIG, whole.output_dir, callbacks=[At(0, 0, crash)], **OPTIONS)
    assert (again.resumed_at, again.history, again.test.as_dict()) == ("finished", whole.history, whole.test.as_dict())
    assert contents(whole.output_dir) == before


def test_a_training_that_asks_whether_it_is_finished_deletes_nothing(whole, crashed, tmp_path):
    run = shutil.copytree(whole.output_dir, tmp_path / "run")
    shutil.copytree(crashed / "state", run / "state")
    before = contents(run)
    identity = run_identity(HOURLY, CONFIG, True, whole.gpu)
    assert is_finished_run(run, identity)
    assert contents(run) == before
    train(HOURLY, CONFIG, run, **OPTIONS)  # deletes the state that a killed process has left
    assert not (run / "state").exists()


def changed_history(run):
    path = run / "history.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val_accuracy": [0.99]}))


def linked_settings(run):
    (run / "config.toml").rename(run.parent / "aside.toml")
    (run / "config.toml").symlink_to(run.parent / "aside.toml")


def pipe_for_settings(run):
    (run / "config.toml").unlink()
    os.mkfifo(run / "config.toml")  # opening it without a check waits for ever


@pytest.mark.parametrize("change", [changed_history, linked_settings, pipe_for_settings])
def test_files_beside_the_bundle_are_verified(change, whole, tmp_path):
    run = shutil.copytree(whole.output_dir, tmp_path / "run")
    assert verify_run(run).ok
    change(run)
    report = verify_run(run)
    bad = [name for name, fault in report.faults.items() if fault]
    assert not report.ok
    assert bad == ["history.json" if change is changed_history else "config.toml"]
    if change is changed_history:
        with pytest.raises(IntegrityError, match="history.json.*expected sha256"):
            train(HOURLY, CONFIG, run, **OPTIONS)


def test_changed_metadata_of_a_finished_run_is_refused(whole, tmp_path):
    run = shutil.copytree(whole.output_dir, tmp_path / "run")
    text = (run / "metadata.json").read_text()
    (run / "metadata.json").write_text(text.replace('"accuracy": 0.', '"accuracy": 0.9', 1))
    with pytest.raises(IntegrityError, match="metadata.json.*with sha256"):
        train(HOURLY, CONFIG, run, **OPTIONS)
    for look in (verify_run, load_run):
        with pytest.raises(ModelFileError, match="no metadata of a run.*with sha256"):
            look(run)


@pytest.mark.parametrize("change", [{"data": None}, {"data": [1]}, {"identity": [1]}, {"identity": None}])
def test_incomplete_metadata_without_a_manifest_is_refused(change, whole, tmp_path):
    """Older versions wrote no manifest, so the fields of the metadata are checked one by one."""
    run = shutil.copytree(whole.output_dir, tmp_path / "run")
    (run / "metadata.json.manifest.json").unlink()
    (run / "metadata.json").write_text(json.dumps(json.loads((run / "metadata.json").read_text()) | change))
    before = contents(run)
    with pytest.raises(IntegrityError, match="is no metadata of a finished run"):
        train(HOURLY, CONFIG, run, **OPTIONS)
    assert contents(run) == before


def test_a_pinned_sha256_may_be_in_capitals(whole):
    sha256 = whole.bundle_sha256
    assert load_run(whole.output_dir, sha256.upper()).bundle.sha256 == sha256
    assert verify_run(whole.output_dir, sha256.upper()).ok
    with pytest.raises(PinMismatchError):
        load_run(whole.output_dir, "0" * 64)


def crash_in_first_epoch(folder: Path) -> Path:
    """The folder of a run that crashed in its first epoch."""
    with pytest.raises(Crash):
        train(HOURLY, CONFIG, folder, callbacks=[At(0, 4, crash)], **OPTIONS)
    assert [path.name for path in folder.glob(".lock-*")] == []
    return folder


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    return crash_in_first_epoch(tmp_path_factory.mktemp("crashed") / "run")


OTHER_RUNS = {
    "settings": (
        {"config": CONFIG.replace(learning_rate=0.02, epochs=7)},
        ("config.learning_rate is 0.01 there and 0.02 here", "config.epochs is 6 there and 7 here"),
    ),
    "candles": ({"candles": HOURLY[:-1]}, ("data.sha256", "data.candles is 3000 there and 2999 here", "data.last")),
    "one price": ({"candles": HOURLY.assign(volume=HOURLY["volume"] + (HOURLY.index == 7))}, ("data.sha256",)),
    "not deterministic": ({"deterministic": False}, ("deterministic is True there and False here", "device")),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
@pytest.mark.parametrize("kind", ["unfinished", "finished"])
def test_another_run_is_refused_with_all_differences(name, kind, whole, crashed):
    change, expected = OTHER_RUNS[name]
    folder = whole.output_dir if kind == "finished" else crashed
    before = contents(folder)
    with pytest.raises(ResumeMismatchError) as refused:
        train(**{"candles": HOURLY, "config": CONFIG, "output_dir": folder, **OPTIONS, **change})
    assert isinstance(refused.value, ValueError) and len(refused.value.differences) == len(expected)
    for text, difference in zip(expected, refused.value.differences, strict=True):
        assert difference.startswith(text) and difference in str(refused.value)
    assert contents(folder) == before


def test_other_versions_are_refused(crashed, monkeypatch):
    monkeypatch.setattr("crypto_lstm.training.run_folder.version", lambda name: "0.1")
    before = contents(crashed)
    with pytest.raises(ResumeMismatchError, match="versions.tensorflow is '2.* there and '0.1' here"):
        train(HOURLY, CONFIG, crashed, **OPTIONS)
    assert contents(crashed) == before


def test_a_state_without_an_intact_checkpoint_is_refused(crashed, tmp_path):
    run = shutil.copytree(crashed, tmp_path / "run")
    for arrays in run.glob("state/checkpoint-*/arrays.npz"):
        data = bytearray(arrays.read_bytes())
        data[len(data) // 2] ^= 4
        arrays.write_bytes(data)
    with pytest.raises(IntegrityError, match="none of the 2 checkpoints is as it was saved.*arrays.npz"):
        train(HOURLY, CONFIG, run, **OPTIONS)


def test_a_state_of_another_network_is_refused(crashed, tmp_path):
    saved = read_state(crashed)
    model = build_model(CONFIG.replace(lstm_units=(5,)))
    fault = r"model/0000: expected \(\(8, 20\), 'float32'\), got \(\(8, 16\), 'float32'\)"
    with pytest.raises(IntegrityError, match=fault):
        restore_training(saved, model, [], crashed)


@pytest.mark.parametrize("where", ["unfinished", "finished", "foreign"])
def test_the_option_no_resume_overwrites_nothing(where, whole, crashed, tmp_path, candle_file, capsys):
    (tmp_path / "model.keras").write_text("mine")
    folder = {"unfinished": crashed, "finished": whole.output_dir, "foreign": tmp_path}[where]
    before = contents(folder)
    words = ["train", "--candles", str(candle_file), "--output", str(folder), "--no-resume", "--set", *SETTINGS]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert "nothing is overwritten" in message
    assert ("leave out --no-resume" in message) == (where != "foreign")
    assert contents(folder) == before


def test_a_second_training_in_a_folder_is_refused_and_names_the_first(crashed, tmp_path, candle_file, capsys):
    for folder in (crashed, tmp_path / "new"):
        with lock_run_folder(folder):
            before = contents(folder)
            with pytest.raises(LockedError) as refused:
                train(HOURLY, CONFIG, folder, **OPTIONS)
            assert (refused.value.pid, refused.value.path) == (os.getpid(), folder)
            assert main(["train", "--candles", str(candle_file), "--output", str(folder), "--set", *SETTINGS]) == 1
            assert f"process {os.getpid()} on " in capsys.readouterr().err
            assert contents(folder) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_the_interval_of_saves_must_be_a_whole_number_above_zero(every, tmp_path):
    expected = "save_every_batches must be none or a whole number of at least 1"
    with pytest.raises(ConfigError, match=expected) as refused:
        train(HOURLY, CONFIG, tmp_path / "run", save_every_batches=every)
    assert refused.value.settings == ("save_every_batches",)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_command_resumes_when_it_is_repeated(whole, candle_file, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "--candles", str(candle_file), "--output", str(run), "--save-every", "3", "--deterministic"]
    words += ["--no-tensorboard", "--json", "--set", *SETTINGS]
    process = forked.start(forked.MAIN, *words)
    for line in process.stderr:
        if line.startswith("epoch 1"):
            break
    process.kill()
    process.wait()
    state = read_state(run)
    assert (state.epoch, state.batch) > (0, 0)
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert f"resuming at {state}" in err
    result = json.loads(out)
    assert result["resumed_at"] == str(state) and result["interrupted"] is None
    assert json.loads((run / "history.json").read_text()) == whole.history
    for a, b in zip(load_run(run).model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert main(words) == 0  # a third time, when the run is finished
    out, err = capsys.readouterr()
    assert "holds the finished run: nothing is trained" in err and json.loads(out)["resumed_at"] == "finished"


def test_a_state_folder_of_another_program_is_no_run(tmp_path):
    (tmp_path / "state" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "state" / "checkpoint-1" / "population.json").write_text("three weeks")
    (tmp_path / "state" / "checkpoint-000002").mkdir()
    (tmp_path / "config.toml").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(OutputFolderError, match="is not empty: nothing is overwritten"):
        train(candles(), CONFIG, tmp_path)
    assert contents(tmp_path) == before


def test_a_file_of_the_user_in_the_state_folder_stays(tmp_path, crashed):
    folder = Path(shutil.copytree(crashed, tmp_path / "run"))
    (folder / "state" / "notes.txt").write_text("mine")
    delete_training_state(folder)
    assert contents(folder / "state") == {"notes.txt": b"mine"}
    (folder / "state" / "notes.txt").unlink()
    delete_training_state(folder)
    assert not (folder / "state").exists()


LARGE = {
    "layers": {"dense_units": (4,) * 32},
    "weights": {"lstm_units": (4096, 4)},
    "window": {"sequence_length": 5000, "lstm_units": (1000, 4)},
}


@pytest.mark.parametrize("name", LARGE)
def test_a_network_that_is_too_large_to_save_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(ConfigError, match="expected at most 64 layers|expected a network of at most"):
        train(candles(), CONFIG.replace(**LARGE[name]), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("on_memory", ["accumulate", "refuse"])
def test_a_resumed_training_keeps_its_batch_size(on_memory, crashed, tmp_path, monkeypatch, caplog):
    """Steps of smaller batches would be other steps, so a resume with too little memory is refused."""
    folder = Path(shutil.copytree(crashed, tmp_path / "run"))
    before = contents(folder)

    def no_memory(config, on_memory, **_):
        if on_memory == "accumulate":
            return config.replace(batch_size=config.batch_windows // 2, gradient_accumulation_steps=2)
        raise MemoryBudgetError(estimate_memory(config), 100.0, None)

    monkeypatch.setattr(trainer, "fit_to_memory", no_memory)
    with pytest.raises(MemoryBudgetError):
        train(HOURLY, CONFIG, folder, on_memory=on_memory, **OPTIONS)
    warning = "a resumed training keeps its batch size: free memory, or pass on_memory='force' (--force)"
    assert warning in caplog.text
    assert contents(folder) == before


def test_a_run_that_a_callback_stops_inside_an_epoch_can_be_resumed_without_logs(whole, tmp_path):
    """Callbacks are matched by their class, since the list of callbacks is another one after the resume."""

    def stop(model):
        model.stop_training = True

    logged = {**OPTIONS, "tensorboard": True}
    cut = train(HOURLY, CONFIG, tmp_path / "run", callbacks=[At(1, 3, stop)], **logged)
    assert cut.interrupted == "a callback"
    assert "stopped by a callback: the same call resumes it" in str(cut)
    rest = train(HOURLY, CONFIG, tmp_path / "run", **OPTIONS)
    assert rest.resumed_at.startswith("epoch 2, step 5 of") and rest.interrupted is None
    assert digest(rest.model, rest.history) == digest(whole.model, whole.history)
    assert [record["epoch"] for record in rest.memory_history] == list(range(rest.epochs_run))


class StatefulCallback(keras.callbacks.Callback):
    def __init__(self, state=None):
        super().__init__()
        if state is not None:
            self.state_dict = lambda: state


@pytest.mark.parametrize("state", [{"best": float("inf")}, {"best": np.float32(1)}, {"best": np.zeros(2)}])
def test_a_callback_state_that_cannot_be_saved_is_refused(state, tmp_path):
    fault = "StatefulCallback.state_dict must return finite numbers, texts, lists of them, or lists of arrays"
    with pytest.raises(ConfigError, match=fault):
        train(HOURLY, CONFIG, tmp_path / "run", callbacks=[StatefulCallback(state)], **OPTIONS)


def test_callbacks_that_lose_their_state_in_a_resume_are_named(crashed, tmp_path, caplog):
    folder = Path(shutil.copytree(crashed, tmp_path / "run"))
    others = [StatefulCallback(), StatefulCallback({"a": 1}), keras.callbacks.LambdaCallback()]
    with pytest.raises(Crash):
        train(HOURLY, CONFIG, folder, callbacks=[*others, At(1, 3, crash)], **OPTIONS)
    assert [message for message in caplog.messages if "has no state_dict" in message] == [
        f"{name} has no state_dict: it does not know the epochs before the resume"
        for name in ("StatefulCallback", "At")
    ]


def test_a_hidden_folder_of_the_user_is_no_leftover(tmp_path):
    (tmp_path / ".writing-novel").mkdir()
    (tmp_path / ".writing-novel" / "chapter").write_text("mine")
    with pytest.raises(OutputFolderError, match="is not empty"):
        train(HOURLY, CONFIG, tmp_path)
    assert contents(tmp_path) == {".writing-novel/chapter": b"mine"}
