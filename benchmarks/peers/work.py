"""The work that all do: ten clients with 600 images, batches of 64, one epoch, SGD with momentum, FedAvg.

This file is read in each peer's environment, so it knows torch and nothing else. `run.py` names the folder in which
processes tell what they have done: a byte for each batch that the network was trained on, whatever process it was in,
and when each round was over.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BATCH", "CLIENTS", "IMAGES", "LR", "MOMENTUM", "Clock", "Cnn", "cores", "images", "rounds", "trained"]

CLIENTS, IMAGES, BATCH, LR, MOMENTUM = 10, 600, 64, 0.05, 0.9


class Cnn(nn.Sequential):
    """That of `benchmarks/engine.py`: 96,938 parameters, 28x28 inputs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 160),
            nn.ReLU(),
            nn.Linear(160, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            os.write(_batches(), bytes([len(x)]))
        return super().forward(x)


@cache
def images(client: int) -> tuple[Tensor, Tensor]:
    """Images ``(600, 1, 28, 28)`` and labels ``(600,)`` of a client: noise, and in it a pattern for each label.

    A process makes them once.
    """
    patterns = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1 + client)
    y = torch.randint(10, (IMAGES,), generator=rng)
    return torch.randn(IMAGES, 1, 28, 28, generator=rng) + patterns[y], y


def trained(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One client's epoch, as people write it by hand."""
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    model.train()
    for part in torch.randperm(len(y)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()


class Clock:
    """When rounds were over, in seconds since 1970, as other processes of this machine count them."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def round_over(self) -> None:
        self._ends.append(time.time())

    def tell(self, state: Mapping[str, Tensor], ends: Sequence[float] | None = None) -> None:
        """Write down the rounds, and of the model that they have led to the size and the loss on all images."""
        model = Cnn().eval()
        model.load_state_dict(dict(state))
        x, y = (torch.cat(part) for part in zip(*(images(client) for client in range(CLIENTS)), strict=True))
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(x), y).item()
        found: dict[str, Any] = {"ends": self._ends if ends is None else list(ends), "loss": loss}
        found |= {"parameters": sum(tensor.numel() for tensor in state.values()), "torch": torch.__version__}
        (_folder() / "told.json").write_text(json.dumps(found))


def rounds() -> int:
    """How many to do."""
    return int(os.environ["PEERS_ROUNDS"])


def cores() -> int:
    """How many a peer may use."""
    return int(os.environ["PEERS_CORES"])


def _folder() -> Path:
    return Path(os.environ["PEERS_FOLDER"])


@cache
def _batches() -> int:
    return os.open(_folder() / "batches", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
