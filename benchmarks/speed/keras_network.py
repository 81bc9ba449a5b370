"""The network of `build_model` in Keras' own layers, as one writes it without this package; on any backend of Keras."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crypto_lstm.config import Config

if TYPE_CHECKING:
    import keras


def build_keras_network(config: Config, recurrent_dropout: float) -> keras.Model:
    """Same widths, dropout, loss, optimizer and metrics as `build_model`; weights are initialised by Keras."""
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((config.sequence_length, len(config.features)))])
    rates = {"dropout": config.dropout_rate, "recurrent_dropout": recurrent_dropout}
    for number, units in enumerate(config.lstm_units, 1):
        model.add(layers.LSTM(units, return_sequences=number < len(config.lstm_units), **rates))
    for units in config.dense_units:
        model.add(layers.Dense(units, activation="relu"))
        model.add(layers.Dropout(config.dropout_rate))
    model.add(layers.Dense(3, activation="softmax"))
    optimizer = keras.optimizers.Adam(config.learning_rate)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy", "categorical_accuracy"])
    return model
