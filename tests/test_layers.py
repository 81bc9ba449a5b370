"""The recurrent layer against Keras' own: answers, every gradient, masks, weights, files for others, and what a GPU would be given."""

import json
import logging
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import save_checkpoint
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.gpu import GpuStatus
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.layers import LowMemoryLSTM, find_fallback_reason, to_keras_model

RATES = [(0.3, 0.3), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0)]


def network(make, steps, units, rates, **settings):
    answer = inputs = keras.Input((steps, 8))
    for place, width in enumerate(units):
        answer = make(
            width,
            return_sequences=place < len(units) - 1,
            dropout=rates[0],
            recurrent_dropout=rates[1],
            kernel_initializer=keras.initializers.GlorotUniform(seed=place),
            recurrent_initializer=keras.initializers.Orthogonal(seed=place),
            seed=place,
            **settings,
        )(answer)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", kernel_initializer=keras.initializers.GlorotUniform(seed=9))(answer))


def judged(model, windows, graph):
    """Answers and all gradients of one training step, those of the windows first."""

    def step(given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            answers = model(given, training=True)
            total = tf.reduce_mean(-tf.math.log(answers[:, 1]))
        return answers, tape.gradient(total, [given, *model.trainable_variables])

    answers, gradients = (tf.function(step) if graph else step)(tf.constant(windows))
    return [answers.numpy(), *(gradient.numpy() for gradient in gradients)]


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize(
    ("batch", "steps", "units", "graph"),
    [(1, 1, (3,), False), (7, 5, (6, 4), True), (16, 12, (10, 6, 4), True), (3, 4, (1, 1, 1), False)],
)
def test_equal_to_keras_with_the_same_masks(rates, batch, steps, units, graph):
    windows = np.random.default_rng(0).normal(size=(batch, steps, 8)).astype("float32")
    ours, theirs = (judged(network(make, steps, units, rates), windows, graph) for make in (LowMemoryLSTM, keras.layers.LSTM))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    assert max(np.abs(gradient).max() for gradient in ours[1:]) > 1e-3  # something was compared


@pytest.mark.parametrize("sequences", [True, False])
def test_dropped_rows_equal_keras_with_a_thinned_kernel(sequences):
    windows = np.random.default_rng(1).normal(size=(5, 7, 3)).astype("float32")
    layer = LowMemoryLSTM(6, kind="per_batch", recurrent_dropout=0.4, return_sequences=sequences, seed=3)
    stock = keras.layers.LSTM(6, return_sequences=sequences)
    layer.build(windows.shape), stock.build(windows.shape)
    mask = tf.constant(keras.random.dropout(np.ones((6, 1), "float32"), 0.4, seed=keras.random.SeedGenerator(3)))
    stock.set_weights(layer.get_weights()[:3])
    stock.cell.recurrent_kernel.assign(stock.cell.recurrent_kernel * mask)
    found = []
    for model in (layer, stock):
        with tf.GradientTape() as tape:
            answers = model(windows, training=True)
            total = tf.reduce_sum(tf.sin(answers))
        found.append([answers, *tape.gradient(total, model.trainable_variables)])
    (ours, kernel, rows, bias), (theirs, *expected) = found
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(kernel, expected[0], atol=1e-5)
    np.testing.assert_allclose(rows, expected[1] * mask, atol=1e-5)  # the chain rule through the mask
    np.testing.assert_allclose(bias, expected[2], atol=1e-5)
    assert not np.any(rows.numpy()[mask.numpy().ravel() == 0]) and (mask.numpy() == 0).any()


def test_rows_are_drawn_anew_each_step_and_the_seed_is_state():
    layer = LowMemoryLSTM(8, kind="per_batch", recurrent_dropout=0.5, seed=5)
    windows = np.ones((2, 4, 3), "float32")
    layer.build(windows.shape)
    state = np.array(layer.cell.seed_generator.state)
    first, second = layer(windows, training=True).numpy(), layer(windows, training=True).numpy()
    assert not np.allclose(first, second)
    layer.cell.seed_generator.state.assign(state)
    assert np.array_equal(layer(windows, training=True).numpy(), first)
    assert np.array_equal(layer(windows).numpy(), layer(windows).numpy())  # nothing is dropped outside training


@pytest.mark.parametrize("kind", ["per_sample", "per_batch"])
def test_states_that_are_given_and_returned(kind):
    """A second call goes on where the first ended, as in Keras; gradients reach what came first."""
    windows = np.random.default_rng(2).normal(size=(4, 6, 3)).astype("float32")
    layer, stock = LowMemoryLSTM(5, kind=kind, return_state=True), keras.layers.LSTM(5, return_state=True)
    layer.build(windows.shape), stock.build(windows.shape)
    stock.set_weights(layer.get_weights())
    found = []
    for model in (layer, stock):
        with tf.GradientTape() as tape:
            _, *state = model(windows[:, :3], training=True)
            answers, h, c = model(windows[:, 3:], initial_state=state, training=True)
            total = tf.reduce_sum(tf.sin(answers) + tf.cos(c) * h)
        found.append([answers, h, c, *tape.gradient(total, model.trainable_variables)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["per_sample", "per_batch"])
def test_the_network_is_that_of_keras(kind):
    config = Config(recurrent_dropout=kind)
    model, stock = build_model(config), to_keras_model(build_model(config))
    assert [v.path for v in model.trainable_variables] == [v.path for v in stock.trainable_variables]
    assert [v.shape for v in model.variables if "seed" not in v.path] == [v.shape for v in stock.variables if "seed" not in v.path]
    assert model.count_params() == stock.count_params() == 133_603
    lstms = [layer for layer in stock.layers if "lstm_layer" in layer.name]
    assert {type(layer) for layer in lstms} == {keras.layers.LSTM}
    assert [(layer.dropout, layer.recurrent_dropout) for layer in lstms] == [(0.3, 0.3)] * 3


def test_other_precisions_and_unknown_lengths_go_keras_way():
    windows = np.random.default_rng(3).normal(size=(4, 6, 3)).astype("float32")
    for kind in ("per_sample", "per_batch"):
        half = LowMemoryLSTM(5, kind=kind, dropout=0.2, recurrent_dropout=0.2, dtype="mixed_bfloat16", seed=1)
        assert find_fallback_reason(half, windows, None, training=False) is not None
        assert np.isfinite(np.array(half(windows, training=True), "float32")).all()
        assert find_fallback_reason(half, windows, None, training=True) == "it computes in float32"
        open_ended = keras.Sequential([keras.Input((None, 3)), LowMemoryLSTM(5, kind=kind, recurrent_dropout=0.2, seed=1), keras.layers.Dense(3)])
        open_ended.compile("adam", "mse")
        assert np.isfinite(open_ended.train_on_batch(windows, np.zeros((4, 3))))


OTHERS = """
import json, sys
sys.modules["crypto_lstm"] = None  # cannot be imported
import numpy as np
path, windows = sys.argv[1], np.load(sys.argv[2])
if sys.argv[3] == "saved_model":
    import tensorflow as tf
    loaded = tf.saved_model.load(path)  # holds the variables
    answers = loaded.serve(windows).numpy()
    kinds = []
else:
    import keras
    model = keras.saving.load_model(path)
    answers = model.predict(windows, verbose=0)
    loops = [layer for layer in model.layers if hasattr(layer, "cell")]
    kinds = [[type(layer).__module__.split(".")[0], type(layer).__name__, layer.recurrent_dropout] for layer in loops]
    if sys.argv[3] == "keras":  # Keras 3.15.1 can't go on with any .h5: it builds the optimizer without the weights
        model.fit(windows, np.eye(3)[np.arange(len(windows)) % 3], verbose=0)
print(json.dumps([answers.tolist(), kinds]))
"""


@pytest.mark.parametrize("kind", ["per_sample", "per_batch"])
@pytest.mark.parametrize("format", ["keras", "h5", "saved_model"])
def test_a_saved_model_holds_stock_layers_and_loads_without_this_package(tmp_path, kind, format):
    config = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), recurrent_dropout=kind)
    model = build_model(config)
    windows = np.random.default_rng(0).normal(size=(16, 12, 8)).astype("float32")
    model.fit(windows, np.eye(3)[np.arange(16) % 3], verbose=0)
    before = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    saved = save_model(model, tmp_path / "model", format=format, config=config)
    assert [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)] == before  # saving changes nothing
    np.save(tmp_path / "windows.npy", windows)
    words = [sys.executable, "-c", OTHERS, str(saved.model), str(tmp_path / "windows.npy"), format]
    answers, kinds = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    np.testing.assert_allclose(answers, model.predict(windows, verbose=0), atol=1e-6)
    assert kinds == ([] if format == "saved_model" else [["keras", "LSTM", 0.3]] * 2)
    loaded = load_model(saved, config)
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]
    if format != "h5":
        assert [v.numpy().tobytes() for v in loaded.optimizer.variables] == [v.numpy().tobytes() for v in model.optimizer.variables]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_own_save_names_keras_own_layer(tmp_path, suffix):
    model = build_model(Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), recurrent_dropout="per_batch"))
    model.save(tmp_path / f"plain{suffix}")
    loaded = keras.saving.load_model(tmp_path / f"plain{suffix}")
    assert {type(layer) for layer in loaded.layers if hasattr(layer, "cell")} == {keras.layers.LSTM}
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("write", [save_model, lambda model, path: save_checkpoint(model, path, {})])
def test_a_file_names_keras_own_layer_whatever_name_keras_would_look_up(tmp_path, monkeypatch, write, named):
    from keras.src import api_export

    if not named:
        monkeypatch.delitem(api_export.REGISTERED_OBJS_TO_NAMES, LowMemoryLSTM)
    model = build_model(Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,)))
    write(model, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    assert {layer["module"] for layer in layers} == {"keras.layers"}
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]


@pytest.mark.parametrize(
    ("settings", "told"), [({}, True), ({"recurrent_dropout": "per_batch"}, False), ({"recurrent_dropout_rate": 0}, False)]
)
def test_a_training_on_a_gpu_says_what_loses_cudnn(settings, told, tmp_path, monkeypatch, caplog):
    from crypto_lstm.training import trainer as training

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    monkeypatch.setattr(training, "setup_gpu_memory", lambda **_: GpuStatus(available=True, reason="a double", devices=("GPU:0",)))
    monkeypatch.setattr(training, "run_identity", stop)
    config = Config(**{"recurrent_dropout": "per_sample", **settings})
    with caplog.at_level(logging.WARNING), pytest.raises(Stop):
        training.train(synthetic_candles(100, seed=1), config, tmp_path / "run")
    lines = [record.message for record in caplog.records if "cuDNN" in record.message]
    expected = ["recurrent dropout of 0.3 per sample loses the cuDNN kernel: recurrent_dropout=per_batch keeps it"]
    assert lines == (expected if told else [])


@pytest.mark.parametrize("kind", ["per_sample", "per_batch"])
def test_a_network_and_what_is_saved_of_it_answer_alike_to_the_last_bit(kind):
    model = build_model(Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), recurrent_dropout=kind))
    windows = np.random.default_rng(3).normal(size=(225, 12, 8)).astype("float32")
    assert model.predict(windows, verbose=0).tobytes() == to_keras_model(model).predict(windows, verbose=0).tobytes()


def test_masks_of_inputs_gate_by_gate():
    windows = np.random.default_rng(1).normal(size=(6, 9, 5)).astype("float32")
    settings = {"implementation": 1, "dropout": 0.3, "use_cudnn": False, "seed": 5}
    layer, stock = LowMemoryLSTM(4, **settings), keras.layers.LSTM(4, **settings)
    layer.build(windows.shape), stock.build(windows.shape)
    stock.set_weights(layer.get_weights())
    np.testing.assert_allclose(layer(windows, training=True), stock(windows, training=True), atol=1e-6)


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"recurrent_dropout": 1.0}, {"use_cudnn": True}])
def test_settings_that_are_left_to_keras(settings):
    layer, windows = LowMemoryLSTM(4, **settings), np.ones((2, 3, 5), "float32")
    layer.build(windows.shape)
    assert find_fallback_reason(layer, windows, None, True)


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.5, float("nan")])
def test_rows_of_which_none_would_be_left(rate):
    with pytest.raises(ConfigError, match="recurrent_dropout per_batch must be at least 0 and below 1, got"):
        LowMemoryLSTM(4, kind="per_batch", recurrent_dropout=rate)
