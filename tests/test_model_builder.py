"""One test for each part of the model builder, and its three usage examples."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from crypto_lstm.builder import DualWindowLSTMBuilder
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.data.windows import prepare
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.profiling.memory_monitor import MemoryMonitorCallback
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.saving.model_file import load_report

SMALL = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def builder():
    return DualWindowLSTMBuilder()


@pytest.fixture(scope="module")
def model(builder):
    return builder.build_model(compile_model=True)


def test_the_defaults_are_those_of_the_original_model():
    expected = [
        "pair=BTCUSDT",
        "timeframe=1m",
        "sequence_length=120",
        "lstm_units=128,64,32",
        "dense_units=32,16",
        "dropout_rate=0.3",
        "learning_rate=0.001",
        "epochs=100",
        "batch_size=256",
        "validation_split=0.2",
        "early_stopping_patience=10",
        "reduce_lr_patience=5",
        "reduce_lr_factor=0.5",
        "min_learning_rate=1e-7",
        "long_tp_pct=1.0",
        "short_tp_pct=1.0",
        "long_sl_pct=0.5",
        "short_sl_pct=0.5",
        "future_window=120",
        "seed=42",
        "scaler=robust",
    ]
    assert Config.from_text(expected) == Config()
    assert CLASSES == ("SHORT", "HOLD", "LONG") and len(Config().features) == 8


def test_build_model_builds_the_original_architecture(model):
    assert model.name == "CryptoTradingLSTM_V3" and model.count_params() == 133_603
    assert [layer.name for layer in model.layers] == [
        "lstm_input",
        "lstm_layer_1_128units",
        "lstm_layer_2_64units",
        "lstm_layer_3_32units",
        "dense_layer_1_32units",
        "dropout_1",
        "dense_layer_2_16units",
        "dropout_2",
        "trading_decisions",
    ]
    assert model.input_shape == (None, 120, 8) and model.output_shape == (None, 3)
    lstms = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    assert [layer.return_sequences for layer in lstms] == [True, True, False]
    assert {(layer.dropout, layer.recurrent_dropout) for layer in lstms} == {(0.3, 0.3)}
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.3, 0.3]
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.activation.__name__ for layer in dense] == ["relu", "relu", "softmax"]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.001)
    assert model.loss == "categorical_crossentropy"


def test_a_compiled_model_has_the_original_metrics():
    model = DualWindowLSTMBuilder(SMALL).build_model()
    model.run_eagerly = True
    metrics = model.evaluate(np.zeros((4, 12, 8)), np.eye(3)[[0, 1, 2, 0]], return_dict=True, verbose=0)
    assert set(metrics) == {"loss", "accuracy", "categorical_accuracy"}
    assert not DualWindowLSTMBuilder(SMALL).build_model(compile_model=False).compiled


def test_setup_gpu_memory_agrees_with_the_device_that_tensorflow_uses(builder):
    status = builder.setup_gpu_memory()
    has_gpu = bool(status)
    assert status.reason
    assert has_gpu == bool(tf.config.get_visible_devices("GPU"))
    assert ("GPU" in tf.matmul([[2.0]], [[3.0]]).device) == has_gpu  # the device on which TensorFlow computes
    assert bool(builder.setup_gpu_memory()) == has_gpu  # a second call, after TensorFlow has started
    assert builder.gpu_available == has_gpu


def test_estimate_model_memory_has_the_original_keys_and_values(builder, model):
    info = builder.estimate_model_memory(batch_size=256)
    keys = {
        "model_parameters",
        "model_memory_mb",
        "training_memory_mb",
        "batch_memory_mb",
        "total_estimated_mb",
        "total_estimated_gb",
        "batch_size",
    }
    assert set(info) >= keys and info["batch_size"] == 256
    assert info["model_parameters"] == model.count_params()
    assert info["model_memory_mb"] == pytest.approx(133_603 * 4 / 2**20)
    assert info["batch_memory_mb"] == pytest.approx(256 * (120 * 8 + 3) * 4 / 2**20)
    assert info["total_estimated_gb"] == pytest.approx(info["total_estimated_mb"] / 1024)
    assert info["total_estimated_mb"] > 400  # the activations count; four times the weights would be 2.8 MB


def test_create_callbacks_has_the_original_callbacks(builder, tmp_path):
    callbacks = builder.create_callbacks(tmp_path)
    kinds = keras.callbacks
    checkpoint, stopping, plateau, board = (
        next(c for c in callbacks if isinstance(c, kind))
        for kind in (kinds.ModelCheckpoint, kinds.EarlyStopping, kinds.ReduceLROnPlateau, kinds.TensorBoard)
    )
    assert checkpoint.monitor == "val_accuracy" and checkpoint.save_best_only and not checkpoint.save_weights_only
    assert str(checkpoint.filepath) == str(tmp_path / "best_model_checkpoint.keras")
    assert (stopping.monitor, stopping.patience, stopping.restore_best_weights) == ("val_accuracy", 10, True)
    assert (plateau.monitor, plateau.factor, plateau.patience, plateau.min_lr) == ("val_loss", 0.5, 5, 1e-7)
    assert str(board.log_dir) == str(tmp_path / "logs")
    assert any(isinstance(callback, MemoryMonitorCallback) for callback in callbacks)


def batches(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    windows = generator.normal(size=(64, 12, 8)).astype("float32")
    return windows, np.eye(3, dtype="float32")[generator.integers(0, 3, 64)]


def test_the_memory_monitor_records_each_epoch():
    monitor, model = MemoryMonitorCallback(), DualWindowLSTMBuilder(SMALL).build_model()
    model.run_eagerly = True  # no graph is traced
    history = model.fit(*batches(), validation_data=batches(1), epochs=2, callbacks=[monitor], verbose=0).history
    assert [record["epoch"] for record in monitor.memory_history] == [0, 1]
    assert [record["val_loss"] for record in monitor.memory_history] == pytest.approx(history["val_loss"])
    assert [record["val_accuracy"] for record in monitor.memory_history] == pytest.approx(history["val_accuracy"])
    assert all(record["peak_mb"] >= record["memory_mb"] * 0.99 > 100 for record in monitor.memory_history)


@pytest.fixture(scope="module")
def predicting():
    """A small network and what it predicts."""
    model = DualWindowLSTMBuilder(SMALL).build_model()
    model.run_eagerly = True  # the graphs of loaded models: usage example 3
    return model, model.predict(batches()[0], verbose=0)


@pytest.mark.parametrize("format", ["saved_model", "keras", "h5"])
def test_a_saved_model_loads_with_equal_predictions_and_is_checked_against_the_configuration(
    format, predicting, tmp_path
):
    model, expected = predicting
    saved = save_model(model, tmp_path / "deep.keras.h5.folder" / "model", format=format, config=SMALL)
    assert saved.model.name == {"saved_model": "model", "keras": "model.keras", "h5": "model.h5"}[format]
    assert "trading_decisions" in saved.summary.read_text(encoding="utf-8")
    assert json.loads(saved.metadata.read_text(encoding="utf-8"))["format"] == format
    loaded = DualWindowLSTMBuilder(SMALL).load_model(saved.model)
    assert isinstance(loaded, keras.Model)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    loaded.run_eagerly = True
    assert np.array_equal(loaded.predict(batches()[0], verbose=0), expected)
    with pytest.raises(ModelMismatchError, match="input shape"):
        load_model(saved.model, config=SMALL.replace(sequence_length=24))


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="saved_model"):
        builder = DualWindowLSTMBuilder(SMALL)
        builder.save_model(builder.build_model(), tmp_path / "model", format="pickle")
    assert list(tmp_path.iterdir()) == []


def test_a_new_builder_has_every_method_and_no_model(builder):
    fresh = DualWindowLSTMBuilder(SMALL)
    assert fresh.model is None and fresh.training_history is None and isinstance(fresh.gpu_available, bool)
    for name in ("build_model", "setup_gpu_memory", "estimate_model_memory"):
        assert callable(getattr(fresh, name))
    for name in ("create_callbacks", "save_model", "load_model"):
        assert callable(getattr(fresh, name))


def test_usage_example_1_builds_a_model_and_estimates_its_memory(capsys):
    model_builder = DualWindowLSTMBuilder()
    model = model_builder.build_model(compile_model=True)
    model.summary()
    memory_info = model_builder.estimate_model_memory(batch_size=256)
    assert "133,603" in capsys.readouterr().out and memory_info["model_parameters"] == 133_603


def test_usage_examples_2_and_3_train_save_load_and_predict(tmp_path):
    config = SMALL.replace(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2)
    config = config.replace(long_sl_pct=2, short_sl_pct=2)
    data = prepare(synthetic_candles(2500, seed=3, timeframe="1h"), config)
    train_generator, val_generator = data.train, data.validation
    model_output_dir, save_path = tmp_path, tmp_path / "model"
    model_builder = DualWindowLSTMBuilder(config)
    model = model_builder.build_model()

    callbacks = model_builder.create_callbacks(model_output_dir)
    history = model.fit(
        train_generator, validation_data=val_generator, epochs=config.epochs, callbacks=callbacks, verbose=1
    )
    model_builder.save_model(model, save_path, format="keras")

    assert model_builder.training_history is history and len(history.history["val_loss"]) == 2
    assert (tmp_path / "best_model_checkpoint.keras").exists() and any((tmp_path / "logs").rglob("events.*"))

    sequences = data.test.gather(data.test.rows)
    expected = model.predict(sequences, verbose=0)
    for format, name in {"keras": "model.keras", "h5": "model.h5", "saved_model": "served"}.items():
        model_builder.save_model(model, tmp_path / name, format=format)
        loaded_model = model_builder.load_model(tmp_path / name)
        predictions = loaded_model.predict(sequences)
        decisions = np.argmax(predictions, axis=1)

        assert predictions.shape == (len(sequences), 3) and set(decisions) <= {0, 1, 2}
        assert np.array_equal(predictions, expected)
        assert load_report(loaded_model).verified


ORIGINAL_WINDOWS = np.random.default_rng(0).normal(size=(8, 120, 8)).astype("float32")


@pytest.fixture(scope="module")
def plain():
    """The original network in plain Keras, trained for two steps, and what it predicts."""
    layers = keras.layers
    inputs = layers.Input(shape=(120, 8), name="lstm_input")
    x = inputs
    for i, units in enumerate([128, 64, 32]):
        name = f"lstm_layer_{i + 1}_{units}units"
        x = layers.LSTM(units=units, return_sequences=i < 2, dropout=0.3, recurrent_dropout=0.3, name=name)(x)
    for i, units in enumerate([32, 16]):
        x = layers.Dense(units=units, activation="relu", name=f"dense_layer_{i + 1}_{units}units")(x)
        x = layers.Dropout(rate=0.3, name=f"dropout_{i + 1}")(x)
    outputs = layers.Dense(units=3, activation="softmax", name="trading_decisions")(x)
    model = keras.Model(inputs=inputs, outputs=outputs, name="CryptoTradingLSTM_V3")
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=0.001),
        loss="categorical_crossentropy",
        metrics=["accuracy", "categorical_accuracy"],
    )
    labels = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2, 0, 1]]
    model.fit(ORIGINAL_WINDOWS, labels, batch_size=4, verbose=0)
    return model, model.predict(ORIGINAL_WINDOWS, verbose=0)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_trained_model_of_plain_keras_loads_unverified(suffix, plain, tmp_path, caplog):
    model, expected = plain
    model.save(tmp_path / f"theirs{suffix}")

    loaded = DualWindowLSTMBuilder().load_model(tmp_path / f"theirs{suffix}")
    assert np.array_equal(loaded.predict(ORIGINAL_WINDOWS, verbose=0), expected)
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())
    report = load_report(loaded)
    assert not report.verified
    assert "which features it was trained on" in str(report)
    assert "there is no manifest beside it" in caplog.text
