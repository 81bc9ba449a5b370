"""LowMemoryLSTM against keras.layers.LSTM: outputs, all gradients, masks, weights, files, and the loop for a GPU."""

from __future__ import annotations

import functools
import json
import logging
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import forked, quick

from crypto_lstm.architecture import build_model
from crypto_lstm.callbacks import save_checkpoint
from crypto_lstm.config import Config, ConfigError
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.gpu import GpuStatus
from crypto_lstm.layers import LowMemoryLSTM, find_fallback_reason, to_keras_model
from crypto_lstm.persistence import load_model, save_model

SMALL = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,))
RATES = [(0.3, 0.3), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0)]


def build_network(layer_class, steps, units, rates, **settings):
    outputs = inputs = keras.Input((steps, 8))
    for position, width in enumerate(units):
        outputs = layer_class(
            width,
            return_sequences=position < len(units) - 1,
            dropout=rates[0],
            recurrent_dropout=rates[1],
            kernel_initializer=keras.initializers.GlorotUniform(seed=position),
            recurrent_initializer=keras.initializers.Orthogonal(seed=position),
            seed=position,
            **settings,
        )(outputs)
    last = keras.layers.Dense(3, "softmax", kernel_initializer=keras.initializers.GlorotUniform(seed=9))
    return keras.Model(inputs, last(outputs))


def outputs_and_gradients(model, windows, graph):
    """Outputs and all gradients of one training step, those of the windows first."""

    def step(given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = model(given, training=True)
            total = tf.reduce_mean(-tf.math.log(outputs[:, 1]))
        return outputs, tape.gradient(total, [given, *model.trainable_variables])

    run = tf.function(step) if graph else step
    outputs, gradients = run(tf.constant(windows))
    return [outputs.numpy(), *(gradient.numpy() for gradient in gradients)]


def build_pair(windows, layer_class=LowMemoryLSTM, **settings):
    """A layer of `layer_class` and Keras' LSTM with the same settings and weights, both built."""
    ours, theirs = layer_class(**settings), keras.layers.LSTM(**settings)
    ours.build(windows.shape), theirs.build(windows.shape)
    theirs.set_weights(ours.get_weights())
    return ours, theirs


@pytest.mark.parametrize(
    ("rates", "batch", "steps", "units", "graph"),
    [
        *((rates, 7, 5, (6, 4), True) for rates in RATES[:2]),
        *((rates, 7, 5, (6, 4), False) for rates in RATES),
        *((rates, 1, 1, (3,), False) for rates in RATES),
        (RATES[0], 16, 12, (10, 6, 4), False),
        (RATES[0], 3, 4, (1, 1, 1), False),
    ],
)
def test_outputs_and_gradients_equal_keras_with_the_same_masks(rates, batch, steps, units, graph):
    windows = np.random.default_rng(0).normal(size=(batch, steps, 8)).astype("float32")
    models = [build_network(layer_class, steps, units, rates) for layer_class in (LowMemoryLSTM, keras.layers.LSTM)]
    ours, theirs = (outputs_and_gradients(model, windows, graph) for model in models)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    assert max(np.abs(gradient).max() for gradient in ours[1:]) > 1e-3  # not all of them are zero


@pytest.mark.parametrize("sequences", [True, False])
def test_dropped_rows_equal_keras_with_rows_dropped_by_hand(sequences):
    windows = np.random.default_rng(1).normal(size=(5, 7, 3)).astype("float32")
    layer = LowMemoryLSTM(6, kind="per_batch", recurrent_dropout=0.4, return_sequences=sequences, seed=3)
    keras_layer = keras.layers.LSTM(6, return_sequences=sequences)
    layer.build(windows.shape), keras_layer.build(windows.shape)
    mask = tf.constant(keras.random.dropout(np.ones((6, 1), "float32"), 0.4, seed=keras.random.SeedGenerator(3)))
    keras_layer.set_weights(layer.get_weights()[:3])
    keras_layer.cell.recurrent_kernel.assign(keras_layer.cell.recurrent_kernel * mask)
    found = []
    for model in (layer, keras_layer):
        with tf.GradientTape() as tape:
            outputs = model(windows, training=True)
            total = tf.reduce_sum(tf.sin(outputs))
        found.append([outputs, *tape.gradient(total, model.trainable_variables)])
    (ours, kernel, rows, bias), (theirs, *expected) = found
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(kernel, expected[0], atol=1e-5)
    np.testing.assert_allclose(rows, expected[1] * mask, atol=1e-5)  # the chain rule through the mask
    np.testing.assert_allclose(bias, expected[2], atol=1e-5)
    assert not np.any(rows.numpy()[mask.numpy().ravel() == 0]) and (mask.numpy() == 0).any()


def test_each_step_drops_other_rows_and_the_seed_restores_them():
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
def test_a_second_call_continues_from_the_returned_state(kind):
    """Outputs equal Keras', and the gradients reach the timesteps of the first call."""
    windows = np.random.default_rng(2).normal(size=(4, 6, 3)).astype("float32")
    make = functools.partial(LowMemoryLSTM, kind=kind)
    found = []
    for model in build_pair(windows, make, units=5, return_state=True):
        with tf.GradientTape() as tape:
            _, *state = model(windows[:, :3], training=True)
            outputs, h, c = model(windows[:, 3:], initial_state=state, training=True)
            total = tf.reduce_sum(tf.sin(outputs) + tf.cos(c) * h)
        found.append([outputs, h, c, *tape.gradient(total, model.trainable_variables)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["per_sample", "per_batch"])
def test_the_network_has_the_variables_and_settings_of_keras(kind):
    config = Config(recurrent_dropout=kind)
    model, copy = build_model(config), to_keras_model(build_model(config))
    assert [v.path for v in model.trainable_variables] == [v.path for v in copy.trainable_variables]
    shapes = [[v.shape for v in each.variables if "seed" not in v.path] for each in (model, copy)]
    assert shapes[0] == shapes[1]
    assert model.count_params() == copy.count_params() == 133_603
    lstms = [layer for layer in copy.layers if "lstm_layer" in layer.name]
    assert {type(layer) for layer in lstms} == {keras.layers.LSTM}
    assert [(layer.dropout, layer.recurrent_dropout) for layer in lstms] == [(0.3, 0.3)] * 3


def test_other_precisions_and_unknown_lengths_use_keras_loop():
    windows = np.random.default_rng(3).normal(size=(4, 6, 3)).astype("float32")
    for kind in ("per_sample", "per_batch"):
        half = LowMemoryLSTM(5, kind=kind, dropout=0.2, recurrent_dropout=0.2, dtype="mixed_bfloat16", seed=1)
        assert find_fallback_reason(half, windows, None, training=False) is not None
        assert np.isfinite(np.array(half(windows, training=True), "float32")).all()
        reason = find_fallback_reason(half, windows, None, training=True)
        assert reason == "the layer does not compute in float32"
        layer = LowMemoryLSTM(5, kind=kind, recurrent_dropout=0.2, seed=1)
        any_length = keras.Sequential([keras.Input((None, 3)), layer, keras.layers.Dense(3)])
        any_length.compile("adam", "mse")
        assert np.isfinite(any_length.train_on_batch(windows, np.zeros((4, 3))))


WITHOUT_THIS_PACKAGE = """
import json, sys
assert not [name for name in sys.modules if name.startswith("crypto_lstm")]
sys.modules["crypto_lstm"] = None  # cannot be imported
import keras
import numpy as np
import tensorflow as tf

windows = np.load(sys.argv[1])


def load(path, format):
    if format == "saved_model":
        loaded = tf.saved_model.load(path)  # holds the variables
        return loaded.serve(windows).numpy(), []
    model = keras.saving.load_model(path)
    outputs = model.predict(windows, verbose=0)
    lstms = [layer for layer in model.layers if hasattr(layer, "cell")]
    layers = [[type(x).__module__.split(".")[0], type(x).__name__, x.recurrent_dropout] for x in lstms]
    if format == "keras":  # Keras 3.15.1 can't continue from any .h5: it builds the optimizer without the weights
        model.fit(windows, np.eye(3)[np.arange(len(windows)) % 3], verbose=0)
    return outputs, layers


for name, (path, format) in json.loads(sys.argv[2]).items():
    outputs, layers = load(path, format)
    print(json.dumps([name, outputs.tolist(), layers]))
"""
SAVED_FORMATS = ["keras", "h5", "saved_model"]
DROPOUT_KINDS = ["per_sample", "per_batch"]


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """By kind of dropout and format: configuration, trained model, path, and the state before and after the save."""
    found = {}
    for kind in DROPOUT_KINDS:
        config = SMALL.replace(recurrent_dropout=kind)
        model = build_model(config)
        with quick.skip_graphs():
            model.fit(saved_windows(), np.eye(3)[np.arange(16) % 3], verbose=0)
        for format in SAVED_FORMATS:
            before = variable_bytes(model)
            saved = save_model(model, tmp_path_factory.mktemp("saved") / "model", format=format, config=config)
            found[f"{kind} {format}"] = (config, model, saved, before, variable_bytes(model))
    return found


@pytest.fixture(scope="module")
def loaded_without_this_package(saved_models, tmp_path_factory):
    """Outputs and LSTM layers of each saved model in one process that cannot import this package."""
    windows = tmp_path_factory.mktemp("windows") / "windows.npy"
    np.save(windows, saved_windows())
    jobs = {name: (str(saved.model), name.split()[1]) for name, (_, _, saved, _, _) in saved_models.items()}
    with quick.skip_graphs():
        done = forked.run(WITHOUT_THIS_PACKAGE, windows, json.dumps(jobs))
    done.check_returncode()
    results = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return {name: (outputs, layers) for name, outputs, layers in results}


def saved_windows():
    return np.random.default_rng(0).normal(size=(16, 12, 8)).astype("float32")


def variable_bytes(model):
    return [v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.parametrize("kind", DROPOUT_KINDS)
@pytest.mark.parametrize("format", SAVED_FORMATS)
def test_a_saved_model_has_keras_layers_and_loads_without_this_package(
    saved_models, loaded_without_this_package, kind, format
):
    config, model, saved, before, after = saved_models[f"{kind} {format}"]
    assert after == before  # saving does not change the model
    outputs, layers = loaded_without_this_package[f"{kind} {format}"]
    np.testing.assert_allclose(outputs, model.predict(saved_windows(), verbose=0), atol=1e-6)
    assert layers == ([] if format == "saved_model" else [["keras", "LSTM", 0.3]] * 2)
    loaded = load_model(saved, config)
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]
    if format != "h5":
        pairs = zip(loaded.optimizer.variables, model.optimizer.variables, strict=True)
        assert all(one.numpy().tobytes() == other.numpy().tobytes() for one, other in pairs)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_model_save_of_keras_writes_keras_layers(tmp_path, suffix):
    model = build_model(SMALL.replace(recurrent_dropout="per_batch"))
    model.save(tmp_path / f"plain{suffix}")
    loaded = keras.saving.load_model(tmp_path / f"plain{suffix}")
    assert {type(layer) for layer in loaded.layers if hasattr(layer, "cell")} == {keras.layers.LSTM}
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("write", [save_model, lambda model, path: save_checkpoint(model, path, {})])
def test_a_file_names_keras_layers_also_without_the_registered_name(tmp_path, monkeypatch, write, named):
    from keras.src import api_export

    if not named:
        monkeypatch.delitem(api_export.REGISTERED_OBJS_TO_NAMES, LowMemoryLSTM)
    model = build_model(SMALL)
    write(model, tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
    assert {layer["module"] for layer in layers} == {"keras.layers"}
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [w.tobytes() for w in loaded.get_weights()] == [w.tobytes() for w in model.get_weights()]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({}, True), ({"recurrent_dropout": "per_batch"}, False), ({"recurrent_dropout_rate": 0}, False)],
)
def test_a_training_on_a_gpu_warns_when_cudnn_is_lost(settings, warned, tmp_path, monkeypatch, caplog):
    from crypto_lstm.training import trainer

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    gpu = GpuStatus(available=True, reason="a double", devices=("GPU:0",))
    monkeypatch.setattr(trainer, "setup_gpu_memory", lambda **_: gpu)
    monkeypatch.setattr(trainer, "run_identity", stop)
    config = Config(**{"recurrent_dropout": "per_sample", **settings})
    with caplog.at_level(logging.WARNING), pytest.raises(Stop):
        trainer.train(synthetic_candles(100, seed=1), config, tmp_path / "run")
    lines = [record.message for record in caplog.records if "cuDNN" in record.message]
    expected = ["recurrent dropout of 0.3 per sample loses the cuDNN kernel: recurrent_dropout=per_batch keeps it"]
    assert lines == (expected if warned else [])


@pytest.mark.parametrize("kind", ["per_sample", "per_batch"])
def test_a_network_and_its_keras_copy_predict_the_same_bits(kind):
    model = build_model(SMALL.replace(recurrent_dropout=kind))
    windows = np.random.default_rng(3).normal(size=(225, 12, 8)).astype("float32")
    copy = to_keras_model(model)
    assert model.predict(windows, verbose=0).tobytes() == copy.predict(windows, verbose=0).tobytes()


def test_each_gate_can_have_its_own_input_mask():
    windows = np.random.default_rng(1).normal(size=(6, 9, 5)).astype("float32")
    layer, keras_layer = build_pair(windows, units=4, implementation=1, dropout=0.3, use_cudnn=False, seed=5)
    np.testing.assert_allclose(layer(windows, training=True), keras_layer(windows, training=True), atol=1e-6)


@pytest.mark.parametrize("settings", [{"dropout": 1.0}, {"recurrent_dropout": 1.0}, {"use_cudnn": True}])
def test_settings_with_a_loop_of_keras_fall_back(settings):
    layer, windows = LowMemoryLSTM(4, **settings), np.ones((2, 3, 5), "float32")
    layer.build(windows.shape)
    assert find_fallback_reason(layer, windows, None, True)


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.5, float("nan")])
def test_a_rate_that_would_drop_all_rows_is_refused(rate):
    with pytest.raises(ConfigError, match="recurrent_dropout per_batch must be at least 0 and below 1, got"):
        LowMemoryLSTM(4, kind="per_batch", recurrent_dropout=rate)
