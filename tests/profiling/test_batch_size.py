"""A training that does not fit is refused before it starts, and the advice works; in a process that may hold 2 GiB."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.memory_limit import run_limited

from crypto_lstm.profiling import batch_size as budget
from crypto_lstm.architecture import build_model
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.utils.errors import CryptoLSTMError
from crypto_lstm.memory import BUILT_MB, UnsupportedMemoryError, Variant, estimate_memory
from crypto_lstm.profiling.measure import ProbeError, measure_memory, probe_memory

COMMAND = str(Path(sys.executable).with_name("crypto-lstm"))
LIMIT_MB = 2048
LARGE = [
    "timeframe=1h", "sequence_length=240", "future_window=24", "lstm_units=64,64,64,64", "dense_units=16", "balance=none", "epochs=1",
    "test_split=0.1",
]  # fmt: skip
TINY = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), batch_size=16)
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of control groups and processes are read on Linux")


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "candles.feather"
    hourly = synthetic_candles(24_000, seed=3, edge=0.5)
    hourly["date"] = hourly["date"].iloc[0] + (hourly["date"] - hourly["date"].iloc[0]) * 60
    hourly.to_feather(path)
    return path


def train(candles: Path, output: Path, *words: str):
    command = [COMMAND, "train", "--json", "--no-tensorboard", "--candles", str(candles), "--output", str(output), "--set", *LARGE, *words]
    return run_limited(command, LIMIT_MB, env=ENVIRONMENT)


def test_auto_trains_to_the_end_within_2_gib_and_a_larger_batch_is_refused(candles, tmp_path):
    done, _, limited_by = train(candles, tmp_path / "auto", "batch_size=auto")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    size, memory = told["config"]["batch_size"], told["memory"]
    windows = sum(told["windows"]["class_counts"]["train"].values())
    assert 32 < size < windows // budget.AUTO_STEPS, "memory limits the batch, not the data"
    assert memory["measured_peak_mb"] < memory["estimate"]["upper_mb"] < LIMIT_MB
    print(f"limited by {limited_by}: batch_size auto became {size}, peak {memory['measured_peak_mb']:.0f} MB of {LIMIT_MB}")
    refused, highest, _ = train(candles, tmp_path / "above", f"batch_size={round(1.1 * size)}")
    assert refused.returncode == 1 and json.loads(refused.stdout)["error"]["type"] == "MemoryBudgetError"
    assert not (tmp_path / "above").exists()
    assert highest < memory["measured_peak_mb"]


def test_a_refusal_comes_before_anything_is_allocated_and_its_advice_works_word_for_word(candles, tmp_path):
    refused, _, _ = train(candles, tmp_path / "refused", "batch_size=1024")
    assert refused.returncode == 1
    message = json.loads(refused.stdout)["error"]["message"]
    assert re.search(
        r"training with batch_size 1024 may take the process to [\d,]+ MB \(forecast [\d,]+\), but [\d,]+ MB may be used", message
    )
    assert "Traceback" not in refused.stderr and not (tmp_path / "refused").exists()
    advice = re.search(r"--set (batch_size=(\d+) gradient_accumulation_steps=(\d+)) ", message)
    assert advice and int(advice[2]) * int(advice[3]) == 1024
    done, _, _ = train(candles, tmp_path / "advised", *advice[1].split(), "--last", "10000")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["memory"]["measured_peak_mb"] < told["memory"]["estimate"]["upper_mb"] < LIMIT_MB


def test_refused_in_a_process_that_has_done_nothing_yet():
    script = """
from crypto_lstm.training.trainer import train
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import Config
from crypto_lstm.utils.system import *
candles = synthetic_candles(2000)
before = process_memory_mb()
reset_peak_memory()
try:
    train(candles, Config(batch_size=10**6), "never")
except MemoryError as error:
    print(type(error).__name__, round(peak_memory_mb() - before))
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, env=ENVIRONMENT)
        name, grown = done.stdout.split()
        assert name == "MemoryBudgetError" and not any(Path(folder).iterdir())
        assert int(grown) < 60  # TensorFlow looks for devices; a network, windows or a step would take hundreds


# accumulate, force, and memory that runs out all the same


@pytest.fixture(scope="module")
def hourly(candles):
    import pandas as pd

    return pd.read_feather(candles).tail(4000).reset_index(drop=True)


SMALL = Config.from_text([*LARGE, "sequence_length=12", "lstm_units=8,4", "dense_units=4", "batch_size=256", "validation_split=0.2"])


def no_room(monkeypatch, allowed_mb):
    """What the process may hold, by the word of the test."""
    monkeypatch.setattr(budget, "memory_budget_mb", lambda: float(allowed_mb))


def fitting_budget(config):
    """A budget between what this batch and half of it need, for a process as large as this one and its data."""
    from crypto_lstm.utils.system import process_memory_mb

    resident = max(BUILT_MB, process_memory_mb())
    whole, half = estimate_memory(config, None, resident).upper_mb, estimate_memory(config, config.batch_windows // 2, resident).upper_mb
    return (whole + half) / 2


def test_accumulate_trains_in_smaller_batches_and_force_as_asked(hourly, tmp_path, monkeypatch, caplog):
    from crypto_lstm.training import trainer as training

    config = SMALL.replace(batch_size=2048, sequence_length=60)
    monkeypatch.setattr(training, "resume_fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))  # what is asked for is enough
    seen = []
    monkeypatch.setattr(training, "build_model", lambda config: seen.append(config) or build_model(config))
    no_room(monkeypatch, fitting_budget(config))
    with pytest.raises(budget.MemoryBudgetError, match="on_memory='accumulate'"):
        training.train(hourly, config, tmp_path / "refuse")
    for way in ("accumulate", "force"):
        with pytest.raises(KeyboardInterrupt):
            training.train(hourly, config, tmp_path / way, on_memory=way)
    accumulated, forced = seen
    assert accumulated.batch_size * accumulated.gradient_accumulation_steps == 2048 and accumulated.gradient_accumulation_steps >= 2
    assert forced == config
    assert "trained all the same" in caplog.text
    with pytest.raises(ConfigError, match="on_memory must be one of refuse, accumulate, force, got 'ask'"):
        training.train(hourly, config, tmp_path / "ask", on_memory="ask")


def test_memory_that_runs_out_in_fit_gives_advice_and_names_what_is_kept(hourly, tmp_path):
    import keras
    import tensorflow as tf

    from crypto_lstm.training.trainer import train as train_here

    class RunsOut(keras.callbacks.Callback):
        """A double of a GPU whose memory ends in the second epoch."""

        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() > self.params["steps"] + 1:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[256,12,8]")

    with pytest.raises(budget.OutOfMemoryError) as caught:
        train_here(hourly, SMALL.replace(epochs=3), tmp_path / "run", callbacks=[RunsOut()], tensorboard=False)
    saved = tmp_path / "run" / "best_model_checkpoint.keras"
    assert saved.exists() and str(saved) in str(caught.value)
    assert "pass batch_size=128, gradient_accumulation_steps=2" in str(caught.value)
    assert isinstance(caught.value.__cause__, tf.errors.ResourceExhaustedError)


# bad input


@pytest.mark.parametrize("bad", [0, -5, float("nan"), float("inf"), "2000", True, None.__class__])
def test_a_budget_is_a_number_above_zero(bad):
    for ask in (lambda: budget.max_batch_size(TINY, bad), lambda: budget.require_memory(TINY, bad)):
        with pytest.raises(ConfigError, match="budget_mb must be a number above 0, got"):
            ask()


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "256", 10**12])
def test_a_batch_size_is_a_whole_number(bad):
    for ask in (estimate_memory, measure_memory, probe_memory):
        with pytest.raises(ConfigError, match="batch_size must be a whole number"):
            ask(TINY, bad)


def test_what_is_not_described_is_refused():
    with pytest.raises(UnsupportedMemoryError, match="got 'muon'"):
        Variant(optimizer="muon")
    with pytest.raises(ConfigError, match="steps must be a whole number of at least 1, got 0"):
        measure_memory(TINY, steps=0)


@pytest.mark.parametrize(
    ("child", "timeout_s", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 60, "was killed, as the kernel does when memory runs out"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60, "died by signal 11"),
        ("import time; time.sleep(600)", 1, "gave no answer within 1 s and was stopped"),
        ("print('measured:{')", 60, "answered nonsense"),
        ("print('measured:[]')", 60, "answered nonsense"),
        ("print('nothing')", 60, "failed with exit code 0"),
        ("raise SystemExit('no TensorFlow here')", 60, "failed with exit code 1: no TensorFlow here"),
    ],
)
def test_a_probe_that_dies_or_hangs_leaves_nothing(monkeypatch, tmp_path, child, timeout_s, message):
    from crypto_lstm.profiling import measure as probe

    monkeypatch.setattr(probe, "_CHILD", child)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is asked for again
    environment = dict(os.environ)
    with pytest.raises(ProbeError, match=re.escape(message)) as caught:
        probe_memory(TINY, 256, cache=tmp_path / "cache", timeout_s=timeout_s)
    assert isinstance(caught.value, CryptoLSTMError) and "batch size 32" in str(caught.value)
    assert dict(os.environ) == environment and not (tmp_path / "cache").exists()
    assert tempfile.gettempdir() == str(tmp_path / "temporary") and not any((tmp_path / "temporary").iterdir())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert all(Path(f"/proc/{child}/cmdline").read_bytes().find(b"import") < 0 for child in children)


def test_a_probe_ends_when_its_caller_is_killed():
    job = "{'config': p.Config(batch_size=64).as_dict(), 'variant': {}, 'steps': 10**5}"
    script = f"import crypto_lstm.profiling.measure as p; p._in_fresh_process({job}, {{}}, 600)"
    caller = subprocess.Popen([sys.executable, "-c", script], env=ENVIRONMENT)
    try:
        import time

        children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
        for _ in range(600):
            time.sleep(0.1)
            if found := children.read_text().split():
                break
        time.sleep(1)
    finally:
        caller.kill()
        caller.wait()
    for _ in range(600):
        time.sleep(0.1)
        if not any(Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2] for child in found):
            return
    pytest.fail("the measurement went on without its caller")
