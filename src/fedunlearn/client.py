"""A client, and the only place where one works: `execute`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fedunlearn.architecture import Architecture
from fedunlearn.federation import (
    Batch,
    Choose,
    ClientError,
    ClientId,
    Part,
    Predicate,
    Program,
    Reply,
    Turn,
    Work,
    require_id,
)
from fedunlearn.randomness import generator, seeded
from fedunlearn.samples import Samples, as_samples, batch_count
from fedunlearn.weights import Weights

__all__ = ["Client", "Selected", "View", "execute"]


@dataclass(frozen=True, eq=False)
class Client:
    """A client's slice of a root data set: two small tensors, whatever the size of its samples.

    Attributes:
        id: unique within its federation.
        samples: the root data, shared by all clients.
        indices: of its samples in the root, ``(n,)`` int64.
        validation: which of them it keeps for validation, ``(n,)`` bool.
    """

    id: ClientId
    samples: Samples
    indices: Tensor
    validation: Tensor

    @classmethod
    def of(
        cls,
        id: ClientId,
        data: Any,
        indices: Sequence[int] | Tensor | None = None,
        *,
        validation: float = 0.2,
        seed: int = 0,
    ) -> Client:
        """A client that keeps a share of its samples for validation, drawn by ``seed`` and its id.

        Args:
            id: of the client.
            data: whatever `as_samples` takes.
            indices: of its samples within ``data``, or a mask over ``data``, ``(N,)`` bool; all if None.
            validation: share in [0, 1); the paper keeps 20 % (rounded down).
            seed: of the draw.
        """
        require_id(id)
        if not 0 <= validation < 1:
            raise ValueError(f"the share kept for validation must be in [0, 1), not {validation}")
        samples = as_samples(data)
        own = _indices(id, len(samples.labels), indices)
        kept = torch.zeros(len(own), dtype=torch.bool)
        drawn = torch.randperm(len(own), generator=generator(seed, id, "validation"))
        kept[drawn[: math.floor(round(validation * len(own), 9))]] = True
        return cls(id, samples, own, kept)

    @property
    def labels(self) -> Tensor:
        """Classes of all its samples, ``(n,)`` int64."""
        return self.samples.labels[self.indices]


@dataclass(frozen=True)
class View:
    """What is left of clients' samples after `Federation.where`, and what `Federation.marking` flags."""

    keeps: tuple[Predicate, ...] = ()
    request: Predicate | None = None

    def of(self, client: Client) -> Selected:
        """The samples of ``client`` in this view."""
        labels = client.labels
        kept = torch.ones(len(labels), dtype=torch.bool)
        for predicate in self.keeps:
            kept &= _asked(predicate, client.id, labels)
        flags = torch.zeros_like(kept) if self.request is None else _asked(self.request, client.id, labels)
        return Selected(client, kept, flags)


@dataclass(frozen=True, eq=False)
class Selected:
    """A client's samples in a view: ``kept`` and ``forget``, each ``(n,)`` bool over all its samples."""

    client: Client
    kept: Tensor
    forget: Tensor

    def positions(self, of: Choose | None, part: Part) -> Tensor:
        """Positions, among the client's samples, of those in ``part`` that are kept and chosen."""
        chosen = self.kept.clone()
        if part != "all":
            chosen &= self.client.validation == (part == "validation")
        positions = chosen.nonzero().squeeze(1)
        return positions if of is None else positions[of(self.forget[positions])]


def execute(
    program: Program,
    weights: Weights,
    turn: Turn,
    view: View,
    client: Client,
    architecture: Architecture,
    device: torch.device,
) -> Reply:
    """Run a program at a client, seeded by (turn, client), its passes through networks counted.

    On the CPU it computes with one thread, wherever it is executed: bits would change with the number, and the threads
    of clients side by side get in each other's way.

    Raises:
        ClientError: the user's code failed: the program, a predicate, or the function that builds the network.
    """
    try:
        with _one_thread(device), seeded(turn.seed_for(client.id, "global"), device):
            context = _Context(weights, turn, view.of(client), architecture, device)
            reply = program(context)
    except Exception as error:
        told = str(error) or type(error).__name__
        raise ClientError(f"client {client.id}, {turn.phase} round {turn.number}: {told}") from error
    return replace(reply, work=context.passes.work)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Context:
    """See `fedunlearn.federation.ClientContext`."""

    def __init__(
        self,
        weights: Weights,
        turn: Turn,
        selected: Selected,
        architecture: Architecture,
        device: torch.device,
    ) -> None:
        self.turn = turn
        self.device = device
        self.passes = _Passes()
        self.rng: Generator = generator(turn.seed_for(selected.client.id, "program"))
        self._weights, self._selected, self._architecture = weights, selected, architecture
        self.model = self.passes.counted(architecture.network(weights, device))

    def frozen(self, weights: Weights | None = None) -> nn.Module:
        network = self._architecture.network(weights or self._weights, self.device)
        return self.passes.counted(network.eval().requires_grad_(False))

    def fresh(self, seed: int) -> nn.Module:
        return self.frozen(self._architecture.fresh(seed))

    def samples(self, of: Choose | None = None, part: Part = "train") -> int:
        return len(self._selected.positions(of, part))

    def batches(
        self, epoch: int, size: int, *, of: Choose | None = None, part: Part = "train", train: bool = True
    ) -> Iterator[Batch]:
        client, positions = self._selected.client, self._selected.positions(of, part)
        rng = generator(self.turn.seed_for(client.id, f"epoch {epoch}")) if train else None
        if rng is not None:
            positions = positions[torch.randperm(len(positions), generator=rng)]
        for batch in _cut(positions, size):
            indices = client.indices[batch]
            yield Batch(
                self._architecture.laid_out(client.samples.inputs(indices, rng, self.device)),
                client.samples.labels[indices].to(self.device),
                self._selected.forget[batch].to(self.device),
            )


class _Passes:
    """Counts samples on their way through networks, forward and backward."""

    def __init__(self) -> None:
        self.work = Work()

    def counted(self, network: nn.Module) -> nn.Module:
        waiting = 0  # samples of a forward pass whose way back is not yet hooked

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal waiting
            waiting = next((len(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), 0)
            self.work += Work(forward=waiting)

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            # The first output that needs a gradient lies on the way back from any loss, also from one on the
            # features of an inner layer, which the network's own output would miss.
            nonlocal waiting
            if waiting and isinstance(output, Tensor) and output.requires_grad:
                backward = Work(backward=waiting)
                waiting = 0

                def count(_: Tensor) -> None:
                    self.work += backward

                output.register_hook(count)  # type: ignore[no-untyped-call]

        network.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        for module in network.modules():
            if module is network or not list(module.children()):
                module.register_forward_hook(hook)
        return network


def _cut(positions: Tensor, size: int) -> list[Tensor]:
    count = batch_count(len(positions), size)
    return [positions[i * size : (i + 1) * size if i + 1 < count else None] for i in range(count)]


def _indices(id: ClientId, total: int, indices: Sequence[int] | Tensor | None) -> Tensor:
    if indices is None:
        return torch.arange(total)
    own = torch.as_tensor(indices)
    if own.is_floating_point():
        raise ValueError(f"client {id}'s indices must be whole numbers or a mask, not {own.dtype}")
    if own.dtype == torch.bool:
        if own.shape != (total,):
            raise ValueError(f"client {id}'s mask has shape {tuple(own.shape)}, its data {total} samples")
        return own.nonzero().squeeze(1)
    own = own.to(torch.int64)
    if len(own) and (own.min() < 0 or own.max() >= total):
        raise ValueError(
            f"client {id} has indices from {int(own.min())} to {int(own.max())}, its data 0 to {total - 1}"
        )
    if len(set(own.tolist())) < len(own):
        raise ValueError(f"client {id} has a sample twice: indices must differ")
    return own


def _asked(predicate: Predicate, client: ClientId, labels: Tensor) -> Tensor:
    answer = predicate(client, labels)
    if answer.shape != labels.shape or answer.dtype != torch.bool:
        raise TypeError(
            f"{type(predicate).__name__} must answer with {len(labels)} booleans for client {client}, "
            f"not with {answer.dtype} of shape {tuple(answer.shape)}"
        )
    return answer
