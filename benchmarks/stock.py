"""The network of `build_model` from Keras' own layers, as one writes it without this package; on any of Keras' backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crypto_lstm.config import Config

if TYPE_CHECKING:
    import keras


def to_keras_model(config: Config, recurrent_dropout: float) -> keras.Model:
    """Equal in widths, dropout, loss, optimizer and metrics; weights as Keras draws them."""
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((config.sequence_length, len(config.features)))])
    for n, units in enumerate(config.lstm_units, 1):
        more = n < len(config.lstm_units)
        model.add(layers.LSTM(units, return_sequences=more, dropout=config.dropout_rate, recurrent_dropout=recurrent_dropout))
    for units in config.dense_units:
        model.add(layers.Dense(units, activation="relu"))
        model.add(layers.Dropout(config.dropout_rate))
    model.add(layers.Dense(3, activation="softmax"))
    adam = keras.optimizers.Adam(config.learning_rate)
    model.compile(adam, loss="categorical_crossentropy", metrics=["accuracy", "categorical_accuracy"])
    return model
