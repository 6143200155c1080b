"""A round of FedAvg, ours against what people write by hand: `python benchmarks/engine.py`.

Ten clients with 600 images each, batches of 64, one epoch, SGD with momentum, on the 97k-parameter CNN. Three
ways to do it, in turns within one run, so that a noisy machine is noisy for all:

- plain: a loop over clients and shuffled slices of tensors, with torch's default number of threads;
- loader: the same loop over `DataLoader(TensorDataset(...), shuffle=True)`;
- fedunlearn: `aggregate` on `InProcess`.

Medians of seconds a round, and the medians of the ratios of neighbouring rounds, are what to read.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedunlearn import SGD, Client, InProcess, LocalTraining
from fedunlearn.federation import Turn
from fedunlearn.rounds import aggregate
from fedunlearn.samples import TensorSamples

CLIENTS, IMAGES, BATCH, LR, MOMENTUM = 10, 600, 64, 0.05, 0.9


class Cnn(nn.Sequential):
    """96,938 parameters, 28x28 inputs."""

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


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def trained(model: nn.Module, batches: object) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)
    model.train()
    for x, y in batches:  # type: ignore[attr-defined]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def plain(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = Cnn()
    state = copy.deepcopy(model.state_dict())

    def batches(start: int) -> object:
        order = start + torch.randperm(IMAGES)
        return ((x[part], y[part]) for part in order.split(BATCH))

    def once() -> None:
        nonlocal state
        results = []
        for client in range(CLIENTS):
            model.load_state_dict(state)
            results.append(trained(model, batches(client * IMAGES)))
        state = averaged(results)

    return once


def loader(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = Cnn()
    state = copy.deepcopy(model.state_dict())
    loaders = [
        DataLoader(TensorDataset(xs, ys), BATCH, shuffle=True)
        for xs, ys in zip(x.split(IMAGES), y.split(IMAGES), strict=True)
    ]

    def once() -> None:
        nonlocal state
        results = []
        for batches in loaders:
            model.load_state_dict(state)
            results.append(trained(model, batches))
        state = averaged(results)

    return once


def ours(x: Tensor, y: Tensor) -> Callable[[], None]:
    samples = TensorSamples(x, y)
    clients = [Client.of(str(k), samples, range(k * IMAGES, (k + 1) * IMAGES), validation=0) for k in range(CLIENTS)]
    federation = InProcess(Cnn, clients, workers=torch.get_num_threads(), device="cpu")
    training = LocalTraining(SGD(LR, MOMENTUM, 0.0), batch_size=BATCH)
    weights, number = federation.architecture.fresh(0), 0

    def once() -> None:
        nonlocal weights, number
        weights = aggregate(federation, weights, training, Turn(0, "train", number))
        number += 1

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds of each (default 15)")
    parser.add_argument("--output", type=Path, help="write the raw seconds as JSON")
    options = parser.parse_args()

    rng = torch.Generator().manual_seed(0)
    x = torch.randn(CLIENTS * IMAGES, 1, 28, 28, generator=rng)
    y = torch.randint(10, (CLIENTS * IMAGES,), generator=rng)
    ways = {"plain": plain(x, y), "loader": loader(x, y), "fedunlearn": ours(x, y)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for counted in [False, False, *[True] * options.rounds]:  # two rounds to warm up
        for name, once in ways.items():
            started = time.perf_counter()
            once()
            if counted:
                seconds[name].append(time.perf_counter() - started)

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{CLIENTS} clients x {IMAGES} images, batch {BATCH}; {options.rounds} rounds of each, in turns; {machine}")
    for name, values in seconds.items():
        ratios = {
            other: statistics.median(a / b for a, b in zip(values, seconds[other], strict=True))
            for other in ("plain", "loader")
        }
        spread = f"{min(values):.2f} to {max(values):.2f}"
        against = ", ".join(f"{ratio:.2f} of {other}" for other, ratio in ratios.items() if other != name)
        print(f"{name:>10}: {statistics.median(values):.3f} s a round ({spread}); {against}")
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
