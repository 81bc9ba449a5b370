"""Settings of Keras that forbid a training are one sentence before the first epoch, and a fault of `doctor`."""

import json
import os
import subprocess
import sys

import keras
import pytest

from crypto_lstm.config import Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.training.trainer import train
from crypto_lstm.utils.environment import KerasEnvironmentError, find_environment_fault

KERAS_JSON = {  # content of keras.json -> words of the fault
    '{"backend": "theano"}': "names the backend 'theano'",
    '{"backend": "jax", "floatx": "float32"}': "names the backend 'jax'",
    '{"backend": null}': "names the backend None",
    '{"floatx": "float64"}': "sets floatx to 'float64'",
    '{"floatx": "float16"}': "sets floatx to 'float16'",
    '{"floatx": "float8"}': "sets floatx to 'float8'",
    '{"epsilon": 1}': "sets epsilon to 1",
    '{"image_data_format": "rows"}': "sets image_data_format to 'rows'",
    '{"nnx_enabled": true}': "enables nnx",
    "[1, 2]": "must hold names and values",
}
VARIABLES = {
    "KERAS_BACKEND": ("torch", "KERAS_BACKEND names the backend 'torch'"),
    "KERAS_MAX_EPOCHS": ("2", "KERAS_MAX_EPOCHS=2 limits the epochs"),
    "KERAS_MAX_STEPS_PER_EPOCH": ("many", "KERAS_MAX_STEPS_PER_EPOCH=many limits the steps"),
    "KERAS_NNX_ENABLED": ("true", "KERAS_NNX_ENABLED enables nnx"),
}


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    for name in ("KERAS_BACKEND", "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path


def run_main(*words: str) -> subprocess.CompletedProcess:
    script = "import sys; from crypto_lstm.commands.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)


@pytest.mark.parametrize("content", KERAS_JSON)
def test_a_setting_in_keras_json_is_named_with_its_file(content, keras_home):
    (keras_home / "keras.json").write_text(content)
    fault, remedy = find_environment_fault()
    assert KERAS_JSON[content] in fault and str(keras_home / "keras.json") in fault and remedy


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_is_named(name, keras_home, monkeypatch):
    value, words = VARIABLES[name]
    monkeypatch.setenv(name, value)
    fault, remedy = find_environment_fault()
    assert words in fault and name in remedy


@pytest.mark.parametrize("content", [None, "{}", "no JSON", '{"backend": "tensorflow", "floatx": "float32"}'])
def test_what_keras_accepts_is_no_fault(content, keras_home):
    if content is not None:
        (keras_home / "keras.json").write_text(content)
    assert find_environment_fault() is None


@pytest.mark.parametrize("setting", ["backend", "floatx"])
def test_the_command_and_doctor_report_it_without_a_traceback(setting, keras_home, tmp_path):
    (keras_home / "keras.json").write_text(json.dumps({setting: "theano"}))
    done = run_main("train", "--candles", "no.csv", "--output", str(tmp_path / "run"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "keras.json" in done.stderr
    done = run_main("doctor")
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    assert f'keras settings: write "{setting}"' in done.stdout and "force-reinstall" not in done.stdout


@pytest.mark.parametrize("code", ["import crypto_lstm as cl; cl.train", "from crypto_lstm import builder"])
def test_the_import_names_the_file_in_one_sentence(code, keras_home):
    (keras_home / "keras.json").write_text('{"backend": "theano"}')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "KerasEnvironmentError" in last and "keras.json" in last


BUILD = "import crypto_lstm as cl; cl.build_model(cl.Config(sequence_length=4, lstm_units=(2,), dense_units=()))"
# Reports the level of messages at the import of TensorFlow, which reads it then, and ends there.
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            print(os.environ.get("TF_CPP_MIN_LOG_LEVEL"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
"""


def run_without_level(code: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_a_use_shows_no_notes_of_tensorflow():
    done = run_without_level(BUILD)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "code",
    [
        BUILD,
        "from crypto_lstm.builder import DualWindowLSTMBuilder",
        "from crypto_lstm.training.saved_run import load_run",
        "import crypto_lstm.layers",
        "import crypto_lstm.data.windows",
    ],
)
def test_the_notes_are_off_before_tensorflow_is_imported(code):
    done = run_without_level(WATCH + code)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "3", "")


@pytest.mark.parametrize(
    ("change", "restore", "words"),
    [
        (lambda: keras.config.set_floatx("float64"), lambda: keras.config.set_floatx("float32"), "floatx is 'float64'"),
        (
            lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
            lambda: keras.config.set_dtype_policy("float32"),
            "dtype policy is 'mixed_bfloat16'",
        ),
    ],
)
def test_a_number_format_of_the_session_is_refused_before_anything_is_written(change, restore, words, tmp_path):
    change()
    try:
        with pytest.raises(KerasEnvironmentError, match=words):
            train(synthetic_candles(2000, seed=1), Config(), tmp_path / "run")
    finally:
        restore()
    assert not (tmp_path / "run").exists()
