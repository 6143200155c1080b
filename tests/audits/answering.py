"""Answers to the audit at the client: made up, and of clients whose labels can only be learnt by heart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedunlearn.audits.recognition import DRAWS, Recognised, Recognition
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.federation import Predicate, Turn
from fedunlearn.weights import Weights

TURN = Turn(0, "evaluate", 0)


def error_of(counts: Sequence[tuple[int, int]]) -> float:
    return math.sqrt(sum(m * u * (m + u + 1) / 12 for m, u in counts)) / sum(m * u for m, u in counts)


def of_counts(counts: Sequence[tuple[int, int]], **others: Any) -> Recognised:
    """Such an answer as ``counts`` by class give."""
    members, unseen = (sum(side) for side in zip(*counts, strict=True))
    least = math.prod(math.comb(m + u, m) for m, u in counts)
    return Recognised(
        members,
        members,
        unseen,
        pairs=sum(m * u for m, u in counts),
        area_error=error_of(counts),
        gap_error=0.1,
        least_p=1 / min(least, DRAWS + 1),
        **others,
    )


class Memory(nn.Module):
    """Large enough to learn what it is shown by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.relu(self.first(x)))
        return scores


def clients(samples: int = 120) -> list[Client]:
    """Three whose labels have nothing to do with their inputs: what a model knows of them, it remembers."""
    rng = torch.Generator().manual_seed(5)
    return [
        Client.of(
            str(number),
            (torch.randn(samples, 20, generator=rng), torch.randint(3, (samples,), generator=rng)),
            validation=0.5,
        )
        for number in range(3)
    ]


def noise(workers: int = 1, samples: int = 120) -> InProcess:
    return InProcess(Memory, clients(samples), workers=workers, device="cpu")


def answers(
    federation: InProcess, request: Predicate | None, weights: Weights, turn: Turn = TURN, batch_size: int = 500
) -> dict[str, Recognised]:
    view = federation if request is None else federation.marking(request)
    return {client: Recognised.of(reply.metrics) for client, reply in view.run(Recognition(batch_size), weights, turn)}
