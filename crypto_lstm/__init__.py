"""An LSTM classifier for crypto candles: size it, train it, evaluate it, and use it in a bot.

`import crypto_lstm as cl` gives the names of a first day. Each is imported from its module when it is first used
(PEP 562), so the import itself loads neither NumPy, pandas nor TensorFlow. `__init__.pyi` repeats the names for type
checkers and completion.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {  # name -> module that defines it
    "Config": "config",
    "CryptoLSTMError": "utils.errors",
    "Decision": "inference.decision",
    "DualWindowLSTMBuilder": "builder",
    "Judgement": "evaluation.judgement",
    "LiveRunner": "inference.live",
    "Predictor": "inference.predictor",
    "TradeRule": "inference.rule",
    "build_model": "architecture",
    "check_candles": "data.candle_report",
    "create_callbacks": "callbacks",
    "estimate_memory": "memory",
    "evaluate": "evaluation.metrics",
    "export_onnx": "inference.onnx_file",
    "load_bundle": "inference.bundle",
    "load_model": "persistence",
    "load_run": "training.saved_run",
    "make_features": "data.features",
    "make_labels": "data.labels",
    "max_batch_size": "profiling.batch_size",
    "predict_candles": "training.saved_run",
    "prepare": "data.windows",
    "read_candles": "data.candles",
    "save_bundle": "inference.bundle",
    "save_model": "persistence",
    "setup_gpu_memory": "gpu",
    "synthetic_candles": "data.synthetic",
    "train": "training.trainer",
}

__all__ = ["__version__", *_HOMES]

_KERAS_HOMES = (  # modules that load Keras or TensorFlow when they are imported or used
    "architecture",
    "builder",
    "callbacks",
    "data.windows",
    "gpu",
    "inference.bundle",
    "persistence",
    "training.saved_run",
    "training.trainer",
)


def __getattr__(name: str) -> Any:
    """Import a name of the table from its module, and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    extras = import_module(f"{__name__}.utils.extras")
    with extras.require_extra(f"{__name__}.{name}"):
        if _HOMES[name] in _KERAS_HOMES:  # a bad keras.json is one sentence, and TensorFlow's notes are hidden
            import_module(f"{__name__}.utils.environment").load_tensorflow()
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the table, and what is loaded already."""
    return sorted({*globals(), *_HOMES})
