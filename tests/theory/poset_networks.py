"""Small networks of every shape, for the tests of the theory."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn


class Skip(nn.Module):
    """The counter-example to chains of the order: x + w x."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.layer.weight.data.fill_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class RandomDag(nn.Module):
    """Layers that each read earlier values, one alone, the sum of two, or two side by side; the last is the output."""

    def __init__(self, seed: int, layers: int = 5, width: int = 3) -> None:
        super().__init__()
        rng = random.Random(seed)
        torch_rng = torch.Generator().manual_seed(seed)
        self.activations = [
            rng.choice((torch.relu, torch.tanh, torch.sigmoid, nn.functional.gelu)) for _ in range(layers)
        ]
        self.reads: list[tuple[str, tuple[int, ...]]] = []
        modules = []
        for number in range(layers):
            how = rng.choice(("one", "sum", "beside", "skip"))
            sources = tuple(rng.randrange(number + 1) for _ in range(1 if how == "one" else 2))
            self.reads.append((how, sources))
            modules.append(nn.Linear(2 * width if how == "beside" else width, width))
        self.steps = nn.ModuleList(modules)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=torch_rng) * rng.choice((0.3, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (how, sources), step, activation in zip(self.reads, self.steps, self.activations, strict=True):
            read = [values[source] for source in sources]
            if how == "beside":
                values.append(activation(step(torch.cat(read, 1))))
            elif how == "skip":
                values.append(activation(step(read[0])) + read[1])
            else:
                values.append(activation(step(sum(read[1:], read[0]))))
        return torch.cat(values[-2:], 1)


def brute_paths(nodes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Every path to the last node, as the nodes on it, by going back from it."""

    def back(index: int) -> list[tuple[int, ...]]:
        if not nodes[index]:
            return [(index,)]
        return [(*path, index) for source in nodes[index] for path in back(source)]

    return back(len(nodes) - 1)
