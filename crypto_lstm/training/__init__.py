"""A whole training: run folder, checkpoints, trainer, and the saved run."""

from crypto_lstm.utils.environment import load_tensorflow

load_tensorflow()  # before Keras is imported: a bad keras.json is one sentence, and TensorFlow's notes are hidden
