"""Every part of the model builder, one test a part, and the three usage examples as a user writes them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from crypto_lstm.builder import DualWindowLSTMBuilder
from crypto_lstm.profiling.memory_monitor import MemoryMonitorCallback
from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.config import CLASSES, Config
from crypto_lstm.persistence import load_model, save_model
from crypto_lstm.saving.compatibility import ModelMismatchError
from crypto_lstm.saving.model_file import load_report
from crypto_lstm.data.windows import prepare

SMALL = Config(sequence_length=12, lstm_units=(8, 4), dense_units=(4,), epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def builder():
    return DualWindowLSTMBuilder()


@pytest.fixture(scope="module")
def model(builder):
    return builder.build_model(compile_model=True)


def test_defaults():
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


def test_part_1_build_model(model):
    assert model.name == "CryptoTradingLSTM_V3" and model.count_params() == 133_603
    assert [layer.name for layer in model.layers] == [
        "lstm_input", "lstm_layer_1_128units", "lstm_layer_2_64units", "lstm_layer_3_32units", "dense_layer_1_32units", "dropout_1",
        "dense_layer_2_16units", "dropout_2", "trading_decisions",
    ]  # fmt: skip
    assert model.input_shape == (None, 120, 8) and model.output_shape == (None, 3)
    lstms = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    assert [layer.return_sequences for layer in lstms] == [True, True, False]
    assert {(layer.dropout, layer.recurrent_dropout) for layer in lstms} == {(0.3, 0.3)}
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [0.3, 0.3]
    assert [layer.activation.__name__ for layer in model.layers if isinstance(layer, keras.layers.Dense)] == ["relu", "relu", "softmax"]
    assert isinstance(model.optimizer, keras.optimizers.Adam) and float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.001)
    assert model.loss == "categorical_crossentropy"


def test_part_1_metrics_and_uncompiled(builder):
    history = (
        DualWindowLSTMBuilder(SMALL).build_model().evaluate(np.zeros((4, 12, 8)), np.eye(3)[[0, 1, 2, 0]], return_dict=True, verbose=0)
    )
    assert set(history) == {"loss", "accuracy", "categorical_accuracy"}
    assert not DualWindowLSTMBuilder(SMALL).build_model(compile_model=False).compiled


def test_part_2_setup_gpu_memory(builder):
    status = builder.setup_gpu_memory()
    assert status.reason and bool(status) == bool(tf.config.get_visible_devices("GPU"))
    assert ("GPU" in tf.matmul([[2.0]], [[3.0]]).device) == bool(status)  # where TensorFlow really computes
    assert bool(builder.setup_gpu_memory()) == builder.gpu_available == bool(status)  # a second time, after TensorFlow has started


def test_part_3_estimate_model_memory(builder, model):
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
    assert info["total_estimated_mb"] > 400  # the activations alone: the formula of four times the weights says 2.8


def test_part_4_create_callbacks(builder, tmp_path):
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
    return generator.normal(size=(64, 12, 8)).astype("float32"), np.eye(3, dtype="float32")[generator.integers(0, 3, 64)]


def test_part_5_memory_monitor():
    monitor, model = MemoryMonitorCallback(), DualWindowLSTMBuilder(SMALL).build_model()
    history = model.fit(*batches(), validation_data=batches(1), epochs=2, callbacks=[monitor], verbose=0).history
    assert [record["epoch"] for record in monitor.memory_history] == [0, 1]
    assert [record["val_loss"] for record in monitor.memory_history] == pytest.approx(history["val_loss"])
    assert [record["val_accuracy"] for record in monitor.memory_history] == pytest.approx(history["val_accuracy"])
    assert all(record["peak_mb"] >= record["memory_mb"] * 0.99 > 100 for record in monitor.memory_history)


@pytest.mark.parametrize("format", ["saved_model", "keras", "h5"])
def test_parts_6_7_8_save_load_validate(format, tmp_path):
    model = DualWindowLSTMBuilder(SMALL).build_model()
    saved = save_model(model, tmp_path / "deep.keras.h5.folder" / "model", format=format, config=SMALL)
    assert saved.model.name == {"saved_model": "model", "keras": "model.keras", "h5": "model.h5"}[format]
    assert "trading_decisions" in saved.summary.read_text(encoding="utf-8")
    assert json.loads(saved.metadata.read_text(encoding="utf-8"))["format"] == format
    loaded = DualWindowLSTMBuilder(SMALL).load_model(saved.model)
    assert isinstance(loaded, keras.Model) and [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    windows = batches()[0]
    assert np.array_equal(loaded.predict(windows, verbose=0), model.predict(windows, verbose=0))
    with pytest.raises(ModelMismatchError, match="input shape"):
        load_model(saved.model, config=SMALL.replace(sequence_length=24))


def test_part_6_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="saved_model"):
        DualWindowLSTMBuilder(SMALL).save_model(DualWindowLSTMBuilder(SMALL).build_model(), tmp_path / "model", format="pickle")
    assert list(tmp_path.iterdir()) == []


def test_part_9_the_object(builder):
    fresh = DualWindowLSTMBuilder(SMALL)
    assert fresh.model is None and fresh.training_history is None and isinstance(fresh.gpu_available, bool)
    methods = ("build_model", "setup_gpu_memory", "estimate_model_memory", "create_callbacks", "save_model", "load_model")
    assert all(callable(getattr(fresh, name)) for name in methods)


def test_part_10_example_1(capsys):
    model_builder = DualWindowLSTMBuilder()
    model = model_builder.build_model(compile_model=True)
    model.summary()
    memory_info = model_builder.estimate_model_memory(batch_size=256)
    assert "133,603" in capsys.readouterr().out and memory_info["model_parameters"] == 133_603


def test_part_10_examples_2_and_3(tmp_path):
    config = SMALL.replace(timeframe="1h", future_window=24, long_tp_pct=2, short_tp_pct=2, long_sl_pct=2, short_sl_pct=2)
    data = prepare(synthetic_candles(4000, seed=3, timeframe="1h"), config)
    train_generator, val_generator, model_output_dir, save_path = data.train, data.validation, tmp_path, tmp_path / "model"
    model_builder = DualWindowLSTMBuilder(config)
    model = model_builder.build_model()

    callbacks = model_builder.create_callbacks(model_output_dir)
    history = model.fit(train_generator, validation_data=val_generator, epochs=config.epochs, callbacks=callbacks, verbose=1)
    model_builder.save_model(model, save_path, format="keras")

    assert model_builder.training_history is history and len(history.history["val_loss"]) == 2
    assert (tmp_path / "best_model_checkpoint.keras").exists() and any((tmp_path / "logs").rglob("events.*"))

    sequences, wanted = data.test.gather(data.test.rows), model.predict(data.test.gather(data.test.rows), verbose=0)
    for format, name in {"keras": "model.keras", "h5": "model.h5", "saved_model": "served"}.items():
        model_builder.save_model(model, tmp_path / name, format=format)
        loaded_model = model_builder.load_model(tmp_path / name)
        predictions = loaded_model.predict(sequences)
        decisions = np.argmax(predictions, axis=1)

        assert predictions.shape == (len(sequences), 3) and set(decisions) <= {0, 1, 2}
        assert np.array_equal(predictions, wanted) and load_report(loaded_model).verified


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_part_7_a_trained_model_of_plain_keras_loads_with_a_note(suffix, tmp_path, caplog):
    layers = keras.layers  # the seed's architecture as its document writes it, nothing of this package
    inputs = layers.Input(shape=(120, 8), name="lstm_input")
    x = inputs
    for i, units in enumerate([128, 64, 32]):
        x = layers.LSTM(units=units, return_sequences=i < 2, dropout=0.3, recurrent_dropout=0.3, name=f"lstm_layer_{i + 1}_{units}units")(x)
    for i, units in enumerate([32, 16]):
        x = layers.Dense(units=units, activation="relu", name=f"dense_layer_{i + 1}_{units}units")(x)
        x = layers.Dropout(rate=0.3, name=f"dropout_{i + 1}")(x)
    outputs = layers.Dense(units=3, activation="softmax", name="trading_decisions")(x)
    model = keras.Model(inputs=inputs, outputs=outputs, name="CryptoTradingLSTM_V3")
    metrics = ["accuracy", "categorical_accuracy"]
    model.compile(optimizer=keras.optimizers.Adam(learning_rate=0.001), loss="categorical_crossentropy", metrics=metrics)
    windows = np.random.default_rng(0).normal(size=(8, 120, 8)).astype("float32")
    model.fit(windows, np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2, 0, 1]], batch_size=4, verbose=0)
    model.save(tmp_path / f"theirs{suffix}")

    loaded = DualWindowLSTMBuilder().load_model(tmp_path / f"theirs{suffix}")
    assert np.array_equal(loaded.predict(windows, verbose=0), model.predict(windows, verbose=0))
    for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(ours.numpy(), theirs.numpy())
    report = load_report(loaded)
    assert not report.verified and "which features it was trained on" in str(report) and "there is no manifest beside it" in caplog.text
