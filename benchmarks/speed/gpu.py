"""Keras against ours on a GPU: windows a second with recurrent dropout, and whether cuDNN ran.

    python -m benchmarks gpu                   on the first of TensorFlow, JAX and PyTorch that sees a GPU
    python -m benchmarks gpu --backend jax     on this backend of Keras
    python -m benchmarks gpu --cpu             a self-check without a GPU: a small network; its figures mean nothing

It needs this repository, Keras, NumPy and one backend, and no network. Without a GPU it prints that and exits with 0.
A run on a GPU writes gpu.json, which `python -m benchmarks speed --report` renders into RESULTS.md. The operations of
a step show whether cuDNN ran: `CudnnRNN` in TensorFlow's graph, `cudnn_rnn` in JAX' lowered module and in PyTorch's
profile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.speed.keras_network import build_keras_network
from benchmarks.speed.report import GPU_RESULTS, format_number, markdown_table
from benchmarks.speed.workers import measure_in_turn, time_call
from crypto_lstm.config import Config

BACKENDS = ("tensorflow", "jax", "torch")
KERAS, OURS = "Keras, recurrent dropout", "ours, per_batch"


def find_gpu_name(backend: str) -> str | None:
    """Name of the GPU that the backend sees; None if it sees none, or is not installed."""
    if importlib.util.find_spec(backend) is None:
        return None
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        if not found:
            return None
        return tf.config.experimental.get_device_details(found[0]).get("device_name", "GPU")
    if backend == "jax":
        import jax

        return next((d.device_kind for d in jax.devices() if d.platform == "gpu"), None)
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def choose_device(backends: list[str], cpu: bool) -> tuple[str, str] | None:
    """The first backend that can be used, and its device."""
    for backend in backends:
        if importlib.util.find_spec(backend) is None:
            continue
        name = "CPU" if cpu else find_gpu_name(backend)
        if name:
            return backend, name
    return None


# ---------------------------------------------------------------- operations of a step


def list_operations(model: Any, x: np.ndarray, backend: str) -> set[str]:
    """Names of the operations of a training step's forward pass; of JAX one string, the lowered module."""
    return {"tensorflow": _tensorflow_operations, "jax": _jax_operations, "torch": _torch_operations}[backend](model, x)


def _tensorflow_operations(model: Any, x: np.ndarray) -> set[str]:
    import tensorflow as tf

    step = tf.function(lambda batch: model(batch, training=True))
    graph = step.get_concrete_function(tf.constant(x)).graph.as_graph_def()
    found = {node.op for node in graph.node}
    for function in graph.library.function:
        found |= {node.op for node in function.node_def}
    return found


def _jax_operations(model: Any, x: np.ndarray) -> set[str]:
    import jax

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    step = jax.jit(lambda w, o, batch: model.stateless_call(w, o, batch, training=True))
    return {step.lower(trainable, others, x).as_text()}


def _torch_operations(model: Any, x: np.ndarray) -> set[str]:
    from torch.profiler import profile

    with profile() as seen:
        model(x, training=True)
    return {event.key for event in seen.key_averages()}


def has_cudnn(names: set[str]) -> bool:
    """Whether cuDNN's recurrent kernel is among them."""
    return any("cudnnrnn" in name.lower().replace("_", "") for name in names)


# ---------------------------------------------------------------- measurement


def build_networks(config: Config) -> dict[str, Any]:
    """A new network of each kind."""
    from crypto_lstm.architecture import build_model

    return {
        KERAS: build_keras_network(config, config.recurrent_rate),
        OURS: build_model(config.replace(recurrent_dropout="per_batch")),
        "ours, per_sample": build_model(config.replace(recurrent_dropout="per_sample")),
        "Keras, none": build_keras_network(config, 0.0),
    }


def loss_difference(config: Config, x: np.ndarray, y: np.ndarray) -> float:
    """Largest relative difference of losses to Keras, over three steps with all dropout off and equal weights."""
    kinds = build_networks(config.replace(dropout_rate=0.0))
    weights = kinds[KERAS].get_weights()
    losses = {}
    for name, model in kinds.items():
        model.set_weights(weights)
        steps = [model.train_on_batch(x, y, return_dict=True) for _ in range(3)]
        losses[name] = np.array([float(step["loss"]) for step in steps])
    return max(float(np.abs(values / losses[KERAS] - 1).max()) for values in losses.values())


def measure(config: Config, backend: str, steps: int, rounds: int) -> dict[str, Any]:
    """Windows a second of each kind, in turn, and whether cuDNN ran."""
    batch, random = config.batch_windows, np.random.default_rng(0)
    x = random.normal(size=(steps * batch, config.sequence_length, len(config.features))).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[random.integers(0, 3, len(x))]
    kinds = build_networks(config)

    def rate(model: Any) -> float:
        return len(x) / time_call(lambda: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0))

    rates = measure_in_turn({name: lambda model=model: rate(model) for name, model in kinds.items()}, rounds)
    shown = {}
    for name, values in rates.items():
        cudnn = has_cudnn(list_operations(kinds[name], x[:batch], backend))
        shown[name] = {"windows_s": statistics.median(values), "rounds": values, "cudnn": cudnn}
    return {"kinds": shown, "loss_difference": loss_difference(config, x[:batch], y[:batch])}


def print_results(results: dict[str, Any], backend: str, device: str) -> None:
    """Print a table of the kinds and the ratio of ours to Keras."""
    kinds = results["kinds"]
    theirs = kinds[KERAS]["windows_s"]
    rows = []
    for name, found in kinds.items():
        rate = found["windows_s"]
        rows.append([name, format_number(rate), format_number(rate / theirs), "yes" if found["cudnn"] else "no"])
    difference = f"losses without dropout differ by at most {results['loss_difference']:.1e}"
    print(f"{device}, Keras on {backend}; {difference}\n")
    print(markdown_table(["kind", "windows a second", "of Keras", "cuDNN ran"], rows))
    print(f"\n{OURS} over {KERAS}: {format_number(kinds[OURS]['windows_s'] / theirs)}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, help="default: the first that is installed and sees a GPU")
    parser.add_argument("--cpu", action="store_true", help="small and without a GPU")
    arguments = parser.parse_args(words)
    backends = [arguments.backend] if arguments.backend else list(BACKENDS)
    found = choose_device(backends, arguments.cpu)
    if found is None:
        print(f"no GPU is visible to {', '.join(backends)}: nothing to measure (--cpu runs the self-check without one)")
        return
    backend, device = found
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.cpu:
        tiny = Config(sequence_length=12, lstm_units=(4,), dense_units=(), batch_size=16)
        results = measure(tiny, backend, steps=2, rounds=2)
    else:
        results = measure(Config(), backend, steps=20, rounds=7)
    print_results(results, backend, device)
    if not arguments.cpu:
        stored = {"device": device, "backend": backend, **results}
        GPU_RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
