"""Stock Keras against ours on a GPU: windows a second with the seed's recurrent dropout on, and whether cuDNN ran. Needs no network.

    python benchmarks/gpu.py                   the first of TensorFlow, JAX and PyTorch that is installed and sees a GPU, as Keras' backend
    python benchmarks/gpu.py --backend jax     this one
    python benchmarks/gpu.py --cpu             a small network, few steps, no GPU: runs the same lines, its numbers mean nothing

It needs this repository (installed or in PYTHONPATH), Keras, NumPy and one backend. Without a GPU it says so and exits with 0. A run on
a GPU writes gpu_results.json, from which `bench.py --report` renders its part of RESULTS.md. cuDNN shows in the operations of a step:
`CudnnRNN` in TensorFlow's graph, `cudnn_rnn` in JAX' lowered module and in PyTorch's profile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
from typing import Any

import numpy as np
from report import GPU_RESULTS, number, table
from stock import to_keras_model
from workers import in_turn, seconds

from crypto_lstm.config import Config

BACKENDS = ("tensorflow", "jax", "torch")
STOCK, OURS = "Keras, recurrent dropout", "ours, per_batch"


def gpu_name(backend: str) -> str | None:
    """Name of the GPU that the backend sees; None if it sees none, or is not installed."""
    if importlib.util.find_spec(backend) is None:
        return None
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        return tf.config.experimental.get_device_details(found[0]).get("device_name", "GPU") if found else None
    if backend == "jax":
        import jax

        return next((d.device_kind for d in jax.devices() if d.platform == "gpu"), None)
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def chosen(backends: list[str], cpu: bool) -> tuple[str, str] | None:
    """Backend and device."""
    for backend in backends:
        if cpu and importlib.util.find_spec(backend):
            return backend, "CPU"
        if not cpu and (name := gpu_name(backend)):
            return backend, name
    return None


# ---------------------------------------------------------------- what ran


def operations(model: Any, x: np.ndarray, backend: str) -> set[str]:
    """Names of the operations of a training step's forward pass; of JAX one string, the lowered module."""
    return {"tensorflow": _tensorflow_operations, "jax": _jax_operations, "torch": _torch_operations}[backend](model, x)


def _tensorflow_operations(model: Any, x: np.ndarray) -> set[str]:
    import tensorflow as tf

    graph = tf.function(lambda batch: model(batch, training=True)).get_concrete_function(tf.constant(x)).graph.as_graph_def()
    return {node.op for node in (*graph.node, *(node for function in graph.library.function for node in function.node_def))}


def _jax_operations(model: Any, x: np.ndarray) -> set[str]:
    import jax

    weights = [[v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables)]
    return {jax.jit(lambda w, o, batch: model.stateless_call(w, o, batch, training=True)).lower(*weights, x).as_text()}


def _torch_operations(model: Any, x: np.ndarray) -> set[str]:
    from torch.profiler import profile

    with profile() as seen:
        model(x, training=True)
    return {event.key for event in seen.key_averages()}


def cudnn_ran(names: set[str]) -> bool:
    """Whether cuDNN's recurrent kernel is among them."""
    return any("cudnnrnn" in name.lower().replace("_", "") for name in names)


# ---------------------------------------------------------------- measurement


def models(config: Config) -> dict[str, Any]:
    """Kind -> new network."""
    from crypto_lstm.architecture import build_model

    return {
        STOCK: to_keras_model(config, config.recurrent_rate),
        OURS: build_model(config.replace(recurrent_dropout="per_batch")),
        "ours, per_sample": build_model(config.replace(recurrent_dropout="per_sample")),
        "Keras, none": to_keras_model(config, 0.0),
    }


def loss_difference(config: Config, x: np.ndarray, y: np.ndarray) -> float:
    """Largest relative difference of ours to stock over three steps with all dropout off and equal weights."""
    kinds = models(config.replace(dropout_rate=0.0))
    weights = kinds[STOCK].get_weights()
    losses = {}
    for name, model in kinds.items():
        model.set_weights(weights)
        losses[name] = np.array([float(model.train_on_batch(x, y, return_dict=True)["loss"]) for _ in range(3)])
    return max(float(np.abs(values / losses[STOCK] - 1).max()) for values in losses.values())


def measure(config: Config, backend: str, steps: int, rounds: int) -> dict[str, Any]:
    """Windows a second of each kind, in turn, and whether cuDNN ran."""
    batch, random = config.batch_windows, np.random.default_rng(0)
    x = random.normal(size=(steps * batch, config.sequence_length, len(config.features))).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[random.integers(0, 3, len(x))]
    kinds = models(config)

    def rate(model: Any) -> float:
        return len(x) / seconds(lambda: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0))

    rates = in_turn({name: lambda model=model: rate(model) for name, model in kinds.items()}, rounds)
    shown = {
        name: {"windows_s": statistics.median(values), "rounds": values, "cudnn": cudnn_ran(operations(kinds[name], x[:batch], backend))}
        for name, values in rates.items()
    }
    return {"kinds": shown, "loss_difference": loss_difference(config, x[:batch], y[:batch])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, help="default: the first that is installed and sees a GPU")
    parser.add_argument("--cpu", action="store_true", help="small and without a GPU")
    arguments = parser.parse_args()
    found = chosen([arguments.backend] if arguments.backend else list(BACKENDS), arguments.cpu)
    if found is None:
        print(
            f"no GPU is visible to {arguments.backend or ', '.join(BACKENDS)}: nothing to measure (--cpu runs the same lines without one)"
        )
        return
    backend, device = found
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tiny = Config(sequence_length=12, lstm_units=(4, 4), dense_units=(4,), batch_size=16)
    results = measure(tiny if arguments.cpu else Config(), backend, *((2, 2) if arguments.cpu else (20, 7)))
    kinds = results["kinds"]
    rows = [
        [name, number(r["windows_s"]), number(r["windows_s"] / kinds[STOCK]["windows_s"]), "yes" if r["cudnn"] else "no"]
        for name, r in kinds.items()
    ]
    print(f"{device}, Keras on {backend}; losses without dropout differ by at most {results['loss_difference']:.1e}\n")
    print(table(["kind", "windows a second", "of stock", "cuDNN ran"], rows))
    print(f"\n{OURS} over {STOCK}: {number(kinds[OURS]['windows_s'] / kinds[STOCK]['windows_s'])}")
    if not arguments.cpu:
        GPU_RESULTS.write_text(json.dumps({"device": device, "backend": backend, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
