"""A training that does not fit is refused before it starts, and the advice works, in a process limited to 1 GiB."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import keras
import pandas as pd
import pytest
import tensorflow as tf
from support.memory_limit import run_limited

from crypto_lstm.architecture import build_model
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.memory import UnsupportedMemoryError, Variant, estimate_memory
from crypto_lstm.profiling import batch_size, measure
from crypto_lstm.profiling.measure import ProbeError, measure_memory, probe_memory
from crypto_lstm.training import trainer
from crypto_lstm.utils.errors import CryptoLSTMError
from crypto_lstm.utils.system import anonymous_memory_mb

COMMAND = str(Path(sys.executable).with_name("crypto-lstm"))
LIMIT_MB = 1024
LARGE = [
    "timeframe=1h",
    "sequence_length=240",
    "future_window=24",
    "lstm_units=64,64,64,64",
    "dense_units=16",
    "balance=none",
    "epochs=1",
    "validation_split=0.1",
    "test_split=0.1",
]
SMALL = Config.from_text(
    [*LARGE, "sequence_length=12", "lstm_units=8,4", "dense_units=4", "batch_size=256", "validation_split=0.2"]
)
TINY = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), batch_size=16)
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of control groups and processes are read on Linux"),
    pytest.mark.usefixtures("bare_trainings"),
]


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "candles.feather"
    hourly = synthetic_candles(13_000, seed=3, edge=0.5)
    first = hourly["date"].iloc[0]
    hourly["date"] = first + (hourly["date"] - first) * 60
    hourly.to_feather(path)
    return path


@pytest.fixture(scope="module")
def few_candles(candles: Path) -> pd.DataFrame:
    return pd.read_feather(candles).tail(4000).reset_index(drop=True)


# ---------------------------------------------------------------- the command under a limit


def run_train(candles: Path, output: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], float, str]:
    """`crypto-lstm train` with the large network under the limit; see `run_limited`."""
    command = [COMMAND, "train", "--json", "--no-tensorboard", "--candles", str(candles), "--output", str(output)]
    return run_limited([*command, "--set", *LARGE, *words], LIMIT_MB, env=ENVIRONMENT)


# A training in a new process under the limit. It first refuses a batch that is far too large, then trains with
# batch_size=auto; a callback stops it after 4 steps, since the peak is reached after the first ones.
AUTO = """
import json, sys
import keras
import pandas as pd
from support.quick import skip_boosting, skip_pictures
from crypto_lstm.config import Config
from crypto_lstm.training.trainer import train
from crypto_lstm.utils.system import AnonymousPeak, anonymous_memory_mb

class StopEarly(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch >= 3

candles, config = pd.read_feather(sys.argv[1]), Config.from_text(sys.argv[3:])
before, watch = anonymous_memory_mb(), AnonymousPeak()
watch.start()
try:
    train(candles, config.replace(batch_size=10**6), "never")
except MemoryError as error:
    refusal = type(error).__name__
grown = watch.read() - before
watch.stop()
with skip_pictures(), skip_boosting():
    run = train(candles, config, sys.argv[2], callbacks=[StopEarly()], tensorboard=False)
print(json.dumps({**run.as_dict(), "refusal": refusal, "grown_mb": grown}))
"""


def test_auto_trains_within_the_limit_and_a_larger_batch_is_refused_with_advice_that_trains(candles, tmp_path):
    command = [sys.executable, "-c", AUTO, str(candles), str(tmp_path / "auto"), *LARGE, "batch_size=auto"]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]  # for `support`
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    done, _, limited_by = run_limited(command, LIMIT_MB, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["refusal"] == "MemoryBudgetError" and not (tmp_path / "never").exists()
    assert result["grown_mb"] < 60  # TensorFlow looks for devices; a network, windows or a step would take hundreds
    size, memory = result["config"]["batch_size"], result["memory"]
    windows = sum(result["windows"]["class_counts"]["train"].values())
    assert 32 < size < windows // batch_size.AUTO_STEPS, "the memory limits the batch size, not the data"
    assert memory["measured_peak_mb"] < memory["estimate"]["upper_mb"] < LIMIT_MB
    peak = f"{memory['measured_peak_mb']:.0f} MB of {LIMIT_MB}"
    print(f"limited by {limited_by}: batch_size auto became {size}, peak {peak}")

    larger = 4 * round(1.1 * size / 4) + 4
    refused, _, _ = run_train(candles, tmp_path / "refused", f"batch_size={larger}")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    error = json.loads(refused.stdout)["error"]
    assert error["type"] == "MemoryBudgetError" and not (tmp_path / "refused").exists()
    assert re.search(
        rf"training with batch_size {larger} may take the process to [\d,]+ MB \(forecast [\d,]+\), "
        r"but [\d,]+ MB may be used",
        error["message"],
    )
    advice = re.search(r"--set (batch_size=(\d+) gradient_accumulation_steps=(\d+)) ", error["message"])
    assert advice and int(advice[2]) * int(advice[3]) == larger
    few = [*advice[1].split(), "validation_split=0.2", "--last", "2500"]
    done, _, _ = run_train(candles, tmp_path / "advised", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    memory = json.loads(done.stdout)["memory"]
    assert memory["measured_peak_mb"] < memory["estimate"]["upper_mb"] < LIMIT_MB


# ---------------------------------------------------------------- accumulate, force, and memory that runs out


def set_budget(monkeypatch: pytest.MonkeyPatch, budget_mb: float) -> None:
    monkeypatch.setattr(batch_size, "memory_budget_mb", lambda: float(budget_mb))


def budget_for_half(config: Config) -> float:
    """A budget between the needs of this batch size and of half of it, for a process as large as this one."""
    base_mb = anonymous_memory_mb()
    whole = estimate_memory(config, None, base_mb).upper_mb
    half = estimate_memory(config, config.batch_windows // 2, base_mb).upper_mb
    return (whole + half) / 2


def test_accumulate_trains_in_smaller_batches_and_force_as_requested(few_candles, tmp_path, monkeypatch, caplog):
    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    built = []

    def record_and_build(config: Config) -> keras.Model:
        built.append(config)
        return build_model(config)

    monkeypatch.setattr(trainer, "resume_fit", interrupt)  # the configuration of the network is enough
    monkeypatch.setattr(trainer, "build_model", record_and_build)
    config = SMALL.replace(batch_size=2048, sequence_length=120, lstm_units=(32, 16))
    set_budget(monkeypatch, budget_for_half(config))
    with pytest.raises(batch_size.MemoryBudgetError, match="on_memory='accumulate'"):
        trainer.train(few_candles, config, tmp_path / "refuse")
    for on_memory in ("accumulate", "force"):
        with pytest.raises(KeyboardInterrupt):
            trainer.train(few_candles, config, tmp_path / on_memory, on_memory=on_memory)
    accumulated, forced = built
    assert accumulated.batch_size * accumulated.gradient_accumulation_steps == 2048
    assert accumulated.gradient_accumulation_steps >= 2
    assert forced == config
    assert "training in spite of the forecast" in caplog.text
    with pytest.raises(ConfigError, match="on_memory must be one of refuse, accumulate, force, got 'ask'"):
        trainer.train(few_candles, config, tmp_path / "ask", on_memory="ask")


def test_memory_that_runs_out_in_fit_gives_advice_and_names_the_saved_model(few_candles, tmp_path):
    class RunsOut(keras.callbacks.Callback):
        """A double of a GPU whose memory runs out in the second epoch."""

        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() > self.params["steps"] + 1:
                message = "OOM when allocating tensor with shape[256,12,8]"
                raise tf.errors.ResourceExhaustedError(None, None, message)

    config = SMALL.replace(epochs=3)
    with pytest.raises(batch_size.OutOfMemoryError) as caught:
        trainer.train(few_candles, config, tmp_path / "run", callbacks=[RunsOut()], tensorboard=False)
    saved = tmp_path / "run" / "best_model_checkpoint.keras"
    assert saved.exists() and str(saved) in str(caught.value)
    assert "pass batch_size=128, gradient_accumulation_steps=2" in str(caught.value)
    assert isinstance(caught.value.__cause__, tf.errors.ResourceExhaustedError)


# ---------------------------------------------------------------- invalid arguments


@pytest.mark.parametrize("bad", [0, -5, float("nan"), float("inf"), "2000", True, None.__class__])
@pytest.mark.parametrize("function", [batch_size.max_batch_size, batch_size.require_memory])
def test_a_budget_is_a_number_above_zero(function, bad):
    with pytest.raises(ConfigError, match="budget_mb must be a number above 0, got"):
        function(TINY, bad)


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "256", 10**12])
@pytest.mark.parametrize("function", [estimate_memory, measure_memory, probe_memory])
def test_a_batch_size_is_a_whole_number(function, bad):
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        function(TINY, bad)


def test_an_unknown_optimizer_and_zero_steps_are_refused():
    with pytest.raises(UnsupportedMemoryError, match="got 'muon'"):
        Variant(optimizer="muon")
    with pytest.raises(ConfigError, match="steps must be a whole number of at least 1, got 0"):
        measure_memory(TINY, steps=0)


# ---------------------------------------------------------------- the process of a measurement

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
CRASHED = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
BAD_CHILDREN = [
    (KILLED, 60, "was killed, as the kernel does when memory runs out"),
    (CRASHED, 60, "died by signal 11"),
    ("import time; time.sleep(600)", 1, "gave no result within 1 s and was stopped"),
    ("print('measured:{')", 60, "where its readings as JSON were expected"),
    ("print('measured:[]')", 60, "where its readings as JSON were expected"),
    ("""print('measured:{"device": "CPU"}')""", 60, "where its readings as JSON were expected"),
    ("print('nothing')", 60, "failed with exit code 0"),
    ("raise SystemExit('no TensorFlow here')", 60, "failed with exit code 1: no TensorFlow here"),
]


@pytest.mark.parametrize(("child", "timeout_s", "message"), BAD_CHILDREN)
def test_a_measurement_that_fails_leaves_no_process_and_no_file(monkeypatch, tmp_path, child, timeout_s, message):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(measure, "_CHILD", child)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # tempfile reads TMPDIR again
    environment = dict(os.environ)
    with pytest.raises(ProbeError, match=re.escape(message)) as caught:
        probe_memory(TINY, 256, cache=tmp_path / "cache", timeout_s=timeout_s)
    assert isinstance(caught.value, CryptoLSTMError) and "batch size 32" in str(caught.value)
    assert dict(os.environ) == environment
    assert not (tmp_path / "cache").exists()
    assert tempfile.gettempdir() == str(temporary) and not any(temporary.iterdir())
    for running in read_children(os.getpid()):
        assert b"import" not in Path(f"/proc/{running}/cmdline").read_bytes()


def test_a_measurement_ends_when_its_caller_is_killed():
    script = """
import crypto_lstm.profiling.measure as m
m._CHILD = m._CHILD.partition("from crypto_lstm")[0] + "import time; time.sleep(600)"  # the part that ends the process
job = {"config": m.Config(batch_size=64).as_dict(), "variant": {}, "steps": 10**5}
m._run_in_new_process(job, {}, 600)
"""
    caller = subprocess.Popen([sys.executable, "-c", script], env=ENVIRONMENT)
    children: list[str] = []
    try:
        deadline = time.monotonic() + 60
        while not children and time.monotonic() < deadline:
            time.sleep(0.1)
            children = read_children(caller.pid)
        time.sleep(1)
    finally:
        caller.kill()
        caller.wait()
    assert children
    deadline = time.monotonic() + 60
    while any(map(is_running, children)):
        assert time.monotonic() < deadline, "the measurement continued without its caller"
        time.sleep(0.1)


def read_children(pid: int) -> list[str]:
    """Ids of the child processes of a process that has one thread."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_running(pid: str) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
