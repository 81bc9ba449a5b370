"""The default network in PyTorch, as far as PyTorch has it: `nn.LSTM` has no recurrent dropout. In an environment of its own.

Weights are those of the Keras model. The dropout of a layer's inputs is Keras': one mask for all timesteps of a window. PyTorch's second
bias is zero and is not trained; Adam's epsilon is Keras' 1e-7.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from workers import median_seconds, seconds, serve


class Network(nn.Module):
    """LSTM layers with dropped inputs, then dense layers; answers logits."""

    def __init__(self, weights: list[np.ndarray], lstm_layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lstms, self.dense = nn.ModuleList(), nn.ModuleList()
        for kernel, recurrent, bias in zip(*(weights[n : 3 * lstm_layers : 3] for n in range(3)), strict=True):
            layer = nn.LSTM(kernel.shape[0], recurrent.shape[0], batch_first=True)
            layer.bias_hh_l0.requires_grad_(False)
            self.lstms.append(_filled(layer, weight_ih_l0=kernel.T, weight_hh_l0=recurrent.T, bias_ih_l0=bias, bias_hh_l0=0 * bias))
        for kernel, bias in zip(weights[3 * lstm_layers :: 2], weights[3 * lstm_layers + 1 :: 2], strict=True):
            self.dense.append(_filled(nn.Linear(*kernel.shape), weight=kernel.T, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.lstms:
            mask = nn.functional.dropout(x.new_ones(len(x), 1, x.shape[2]), self.dropout, self.training)
            x, _ = layer(x * mask if self.training else x)
        x = x[:, -1]
        for layer in self.dense[:-1]:
            x = nn.functional.dropout(torch.relu(layer(x)), self.dropout, self.training)
        return self.dense[-1](x)


def _filled(layer: nn.Module, **values: np.ndarray) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return layer


class Peer:
    """The works, on what `peers.py` left in the folder."""

    def __init__(self, folder: str) -> None:
        self.settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
        with np.load(Path(folder, "weights.npz")) as file:
            self.weights = [file[f"arr_{n}"] for n in range(len(file.files))]
        with np.load(Path(folder, "windows.npz")) as file:
            self.windows, self.targets = torch.from_numpy(file["windows"]), torch.from_numpy(file["targets"]).argmax(1)
        self.trained: Network | None = None

    def network(self, dropout: float) -> Network:
        """A new network with the stored weights."""
        return Network(self.weights, len(self.settings["lstm_units"]), dropout)

    def versions(self) -> dict[str, Any]:
        """What it runs on."""
        return {"torch": torch.__version__, "threads of torch": torch.get_num_threads()}

    def probabilities(self, count: int) -> list[list[float]]:
        """Of the first windows."""
        network = self.network(0.0).eval()
        with torch.inference_mode():
            return torch.softmax(network(self.windows[:count]), 1).tolist()

    def decision(self, repeat: int) -> float:
        """Median seconds from one window to its probabilities."""
        network, window = self.network(0.0).eval(), self.windows[:1]
        with torch.inference_mode():
            torch.softmax(network(window), 1)
            return median_seconds(lambda: torch.softmax(network(window), 1).numpy(), repeat)

    def many(self, count: int, batch: int) -> float:
        """Seconds for the probabilities of `count` windows."""
        network = self.network(0.0).eval()
        with torch.inference_mode():
            return seconds(lambda: [torch.softmax(network(x), 1).numpy() for x in self.windows[:count].split(batch)])

    def losses(self, batch: int, steps: int) -> list[float]:
        """Loss of each of the first training steps, without dropout: equal mathematics give equal numbers."""
        return self._fit(self.network(0.0), batch, steps)

    def train(self, batch: int, steps: int) -> float:
        """Seconds of some training steps with the dropout of inputs."""
        self.trained = self.trained or self.network(self.settings["dropout_rate"])
        return seconds(lambda: self._fit(self.trained, batch, steps))

    def _fit(self, network: Network, batch: int, steps: int) -> list[float]:
        network.train()
        if not hasattr(network, "adam"):
            weights = [w for w in network.parameters() if w.requires_grad]
            network.adam = torch.optim.Adam(weights, lr=self.settings["learning_rate"], eps=1e-7)
        losses = []
        for x, y in list(zip(self.windows.split(batch), self.targets.split(batch), strict=True))[:steps]:
            network.adam.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            network.adam.step()
            losses.append(loss.item())
        return losses


if __name__ == "__main__":
    peer = Peer(sys.argv[1])
    serve({name: getattr(peer, name) for name in ("versions", "probabilities", "decision", "many", "losses", "train")})
