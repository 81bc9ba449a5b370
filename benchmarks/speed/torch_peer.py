"""The default network in PyTorch, without recurrent dropout, which `nn.LSTM` lacks. Runs in an environment of its own.

    .venv-torch/bin/python -m benchmarks.speed.torch_peer FOLDER

Weights are those of the Keras model. The dropout of a layer's inputs is that of Keras: one mask for all timesteps of a
window. PyTorch's second bias is zero and is not trained. Adam's epsilon is that of Keras, 1e-7.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.speed.workers import serve, time_call, time_median


class Network(nn.Module):
    """LSTM layers with dropout of their inputs, then dense layers; returns logits."""

    def __init__(self, weights: list[np.ndarray], lstm_layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lstms = nn.ModuleList()
        self.dense = nn.ModuleList()
        recurrent_weights, dense_weights = weights[: 3 * lstm_layers], weights[3 * lstm_layers :]
        for n in range(0, len(recurrent_weights), 3):
            self.lstms.append(_make_lstm(*recurrent_weights[n : n + 3]))
        for n in range(0, len(dense_weights), 2):
            kernel, bias = dense_weights[n : n + 2]
            self.dense.append(_fill(nn.Linear(*kernel.shape), weight=kernel.T, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.lstms:
            if self.training:
                x = x * nn.functional.dropout(x.new_ones(len(x), 1, x.shape[2]), self.dropout, True)
            x, _ = layer(x)
        x = x[:, -1]
        for layer in self.dense[:-1]:
            x = nn.functional.dropout(torch.relu(layer(x)), self.dropout, self.training)
        return self.dense[-1](x)


def _make_lstm(kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> nn.LSTM:
    layer = nn.LSTM(kernel.shape[0], recurrent.shape[0], batch_first=True)
    layer.bias_hh_l0.requires_grad_(False)
    return _fill(layer, weight_ih_l0=kernel.T, weight_hh_l0=recurrent.T, bias_ih_l0=bias, bias_hh_l0=0 * bias)


def _fill(layer: nn.Module, **values: np.ndarray) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return layer


class Peer:
    """The measurements, on the files that `peers.py` wrote to the folder."""

    def __init__(self, folder: str) -> None:
        self.settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
        with np.load(Path(folder, "weights.npz")) as file:
            self.weights = [file[f"arr_{n}"] for n in range(len(file.files))]
        with np.load(Path(folder, "windows.npz")) as file:
            self.windows = torch.from_numpy(file["windows"])
            self.targets = torch.from_numpy(file["targets"]).argmax(1)
        self.trained: Network | None = None

    def network(self, dropout: float) -> Network:
        """A new network with the stored weights."""
        return Network(self.weights, len(self.settings["lstm_units"]), dropout)

    def versions(self) -> dict[str, Any]:
        """Version and threads of PyTorch."""
        return {"torch": torch.__version__, "threads of torch": torch.get_num_threads()}

    def probabilities(self, count: int) -> list[list[float]]:
        """Probabilities of the first windows."""
        network = self.network(0.0).eval()
        with torch.inference_mode():
            return torch.softmax(network(self.windows[:count]), 1).tolist()

    def decision(self, repeat: int) -> float:
        """Median seconds from one window to its probabilities."""
        network, window = self.network(0.0).eval(), self.windows[:1]
        with torch.inference_mode():
            torch.softmax(network(window), 1)
            return time_median(lambda: torch.softmax(network(window), 1).numpy(), repeat)

    def many(self, count: int, batch: int) -> float:
        """Seconds for the probabilities of `count` windows."""
        network = self.network(0.0).eval()
        batches = self.windows[:count].split(batch)
        with torch.inference_mode():
            return time_call(lambda: [torch.softmax(network(x), 1).numpy() for x in batches])

    def losses(self, batch: int, steps: int) -> list[float]:
        """Loss of each of the first training steps, without dropout: equal arithmetic gives equal numbers."""
        return self._fit(self.network(0.0), batch, steps)

    def train(self, batch: int, steps: int) -> float:
        """Seconds of some training steps with dropout of the inputs."""
        if self.trained is None:
            self.trained = self.network(self.settings["dropout_rate"])
        return time_call(lambda: self._fit(self.trained, batch, steps))

    def _fit(self, network: Network, batch: int, steps: int) -> list[float]:
        network.train()
        if not hasattr(network, "adam"):
            weights = [w for w in network.parameters() if w.requires_grad]
            network.adam = torch.optim.Adam(weights, lr=self.settings["learning_rate"], eps=1e-7)
        batches = list(zip(self.windows.split(batch), self.targets.split(batch), strict=True))
        losses = []
        for x, y in batches[:steps]:
            network.adam.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            network.adam.step()
            losses.append(loss.item())
        return losses


if __name__ == "__main__":
    peer = Peer(sys.argv[1])
    serve({name: getattr(peer, name) for name in ("versions", "probabilities", "decision", "many", "losses", "train")})
