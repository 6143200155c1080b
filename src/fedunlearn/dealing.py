"""Who holds what of one seed's data; and twins: for a sample that was dealt out, one like it that nobody holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedunlearn.client import Client, View
from fedunlearn.data.datasets import DataSet
from fedunlearn.experiment import Data
from fedunlearn.federation import ClientId, Predicate
from fedunlearn.randomness import generator, stable_seed

__all__ = ["Deal", "Partition"]


@dataclass(frozen=True)
class Partition:
    """Who holds what of one seed's data.

    Attributes:
        clients: their ids.
        classes: of each client the training samples of each class, ``clients x classes``; validation not counted.
        forget: how many of each client's training samples are to be forgotten.
        validation: how many samples each client keeps for validation.
    """

    clients: tuple[ClientId, ...]
    classes: tuple[tuple[int, ...], ...]
    forget: tuple[int, ...]
    validation: tuple[int, ...]

    @classmethod
    def of(cls, clients: Sequence[Client], meant: View, classes: int) -> Partition:
        """Of these clients; ``meant``: what is left of their samples is what is to be forgotten."""
        return cls(
            tuple(client.id for client in clients),
            tuple(
                tuple(torch.bincount(client.labels[~client.validation], minlength=classes).tolist())
                for client in clients
            ),
            tuple(len(meant.of(client).positions(None, "train")) for client in clients),
            tuple(int(client.validation.sum()) for client in clients),
        )


@dataclass(frozen=True, eq=False)
class Deal:
    """Samples dealt out.

    Attributes:
        plan: how.
        data: of which.
        seed: of the draw.
        held: of each client, the indices of its samples in its order.
        server: of the samples that the server holds.
        free: of those that nobody holds, in random order.
    """

    plan: Data
    data: DataSet
    seed: int
    held: tuple[Tensor, ...]
    server: Tensor
    free: Tensor

    @classmethod
    def of(cls, plan: Data, data: DataSet, seed: int) -> Deal:
        """Deal out.

        Raises:
            ValueError: the data do not suffice, or a treatment is for nobody.
        """
        labels = data.train.labels
        wanted = len(labels) - plan.proxy if plan.samples is None else plan.clients * plan.samples
        if wanted < 0 or wanted + plan.proxy > len(labels):
            held = f"{plan.clients} clients" + (
                f" with {plan.samples} samples each" if plan.samples is not None else ""
            )
            served = f" and {plan.proxy} at the server" if plan.proxy else ""
            lower = "data.clients, data.samples or data.proxy" if plan.proxy else "data.clients or data.samples"
            raise ValueError(
                f"{held}{served} need {max(wanted, 0) + plan.proxy}, but {data.name} has {len(labels)}: lower {lower}"
            )
        if strangers := sorted(plan.treatment.keys() - {str(k) for k in range(plan.clients)}):
            raise ValueError(
                f"data.treatment names no client: {', '.join(strangers)}; they are 0 to {plan.clients - 1}"
            )
        order = torch.randperm(len(labels), generator=generator(seed, "samples"))
        # Those at the server come after the clients', so that adding them changes nobody's data where samples are left.
        used, server, free = order.tensor_split([wanted, wanted + plan.proxy])
        parts = plan.partition(labels[used], plan.clients, seed)
        return cls(plan, data, seed, tuple(used[part] for part in parts), server, free)

    def clients(self, held: Sequence[Tensor] | None = None) -> list[Client]:
        """The clients; ``held``: with these samples instead, position by position."""
        return [self._client(str(number), own) for number, own in enumerate(self.held if held is None else held)]

    def twins(self, request: Predicate) -> tuple[Tensor, ...]:
        """Of each client, position by position, the index of a sample of the same class that nobody holds; or -1.

        Both are drawn from the same data by chance alone, so that before training nothing tells a sample from its
        twin. Only training samples have twins, each another one; where a class has too few left, what ``request``
        means comes first.
        """
        labels, clients = self.data.train.labels, self.clients()
        meant = [View((request,)).of(client).kept for client in clients]
        twins = tuple(torch.full_like(own, -1) for own in self.held)
        free = {label: iter(self.free[labels[self.free] == label].tolist()) for label in range(self.data.classes)}
        for first in (True, False):
            for client, asked, twin in zip(clients, meant, twins, strict=True):
                for position in ((asked == first) & ~client.validation).nonzero().flatten().tolist():
                    label = int(labels[client.indices[position]])  # as it is, not as a treatment says
                    twin[position] = next(free[label], -1)
        return twins

    def mixed(self, twins: Sequence[Tensor], seed: int) -> Iterator[Tensor]:
        """Of each client, the sample itself or its twin at each position, by the toss of a coin."""
        for number, (own, twin) in enumerate(zip(self.held, twins, strict=True)):
            heads = torch.rand(len(own), generator=generator(seed, "coins", number)) < 0.5
            yield torch.where(heads & (twin >= 0), twin, own)

    def _client(self, id: ClientId, held: Tensor) -> Client:
        samples = self.data.train
        if id in self.plan.treatment:
            samples = self.plan.treatment[id](samples, held, stable_seed(self.seed, id, "treatment"))
        return Client.of(id, samples, held, validation=self.plan.validation, seed=self.seed)
