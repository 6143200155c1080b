"""A federation on this machine: clients one after another, or side by side in worker processes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import torch
from torch import nn

from fedunlearn.architecture import Architecture
from fedunlearn.backends.packing import CannotTravel
from fedunlearn.backends.pool import Pool
from fedunlearn.backends.worker import Settings
from fedunlearn.client import Client, View, execute
from fedunlearn.federation import ClientId, Predicate, Program, Reply, Turn
from fedunlearn.requests import held
from fedunlearn.weights import Weights

__all__ = ["InProcess", "best_device"]


class InProcess:
    """All clients on one machine; see `fedunlearn.federation.Federation`.

    On the CPU, one and several workers give the same bits, with dropout too: each worker computes with one
    thread, and all that is random is drawn per turn and client.

    Args:
        build: builds the network, or an `Architecture`.
        clients: who takes part, in this order.
        workers: processes that work side by side. None: as many as cores, but not before about a second of work
            has been done here, so that a short run need not wait for them to start; 1 on a GPU.
        device: where to compute; None: a GPU if there is one.

    Raises:
        ValueError: two clients have the same id.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module] | Architecture,
        clients: Iterable[Client],
        *,
        workers: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        architecture = build if isinstance(build, Architecture) else Architecture(build)
        by_id: dict[ClientId, Client] = {}
        for client in clients:
            if client.id in by_id:
                raise ValueError(f"two clients have the id {client.id!r}: ids must differ")
            by_id[client.id] = client
        device = best_device() if device is None else torch.device(device)
        self._engine = _Engine(architecture, MappingProxyType(by_id), device, workers)
        self._view = View()

    @property
    def architecture(self) -> Architecture:
        """Of the clients' networks."""
        return self._engine.architecture

    @cached_property
    def clients(self) -> tuple[ClientId, ...]:
        """See `Federation.clients`."""
        return tuple(filter(self._trains, self._engine.training))

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        asked = self.clients
        if clients is not None:
            wanted = set(clients)
            if strangers := sorted(wanted.difference(self._position)):
                raise KeyError(f"no such client here: {', '.join(strangers)}")
            asked = tuple(sorted(wanted, key=self._position.__getitem__))
        return self._engine.run(program, weights, turn, self._view, asked)

    def where(self, keeps: Predicate) -> InProcess:
        """See `Federation.where`."""
        return self._viewed(View((*self._view.keeps, keeps), self._view.request))

    def marking(self, request: Predicate) -> InProcess:
        """See `Federation.marking`."""
        return self._viewed(View(self._view.keeps, request))

    def close(self) -> None:
        """End the workers, which all federations of this process share; they start again when they are needed."""
        self._engine.close()

    @cached_property
    def _position(self) -> dict[ClientId, int]:
        return {id: position for position, id in enumerate(self.clients)}

    def _trains(self, id: ClientId) -> bool:
        """Whether a client that has training samples has some in this view; its labels are asked only if need be."""
        whole = held(self._view.keeps, id)
        if whole is not None:
            return whole
        return len(self._view.of(self._engine.clients[id]).positions(None, "train")) > 0

    def _viewed(self, view: View) -> InProcess:
        other = object.__new__(InProcess)
        other._engine, other._view = self._engine, view
        return other


def best_device() -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class _Engine:
    """Executes; shared by all views of a federation."""

    _PATIENCE = 1.0  # seconds of work here before workers are started: about half of what starting them takes

    def __init__(
        self,
        architecture: Architecture,
        clients: Mapping[ClientId, Client],
        device: torch.device,
        workers: int | None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.architecture, self.clients, self.device = architecture, clients, device
        self._patient = workers is None
        self._workers = workers or (min(_cores(), len(clients)) if device.type == "cpu" else 1)
        self._worked = 0.0  # seconds, here
        self._pool: Pool | None = None

    @cached_property
    def training(self) -> tuple[ClientId, ...]:
        """Who has a training sample at all."""
        return tuple(id for id, client in self.clients.items() if not bool(client.validation.all()))

    def run(
        self, program: Program, weights: Weights, turn: Turn, view: View, asked: Sequence[ClientId]
    ) -> Iterator[tuple[ClientId, Reply]]:
        for position, client in enumerate(asked):
            if (pool := self._ready_pool()) is not None:
                yield from pool.run((Settings.here(), program, weights, turn, view), asked[position:])
                return
            started = time.perf_counter()
            reply = execute(program, weights, turn, view, self.clients[client], self.architecture, self.device)
            self._worked += time.perf_counter() - started
            yield client, reply

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _ready_pool(self) -> Pool | None:
        """The workers, once they are worth their start and have started; until then work is done here.

        So it is too while they work on another round, which a reader may have begun and not yet ended.
        """
        if self._workers <= 1:
            return None
        if self._patient and self._worked < self._PATIENCE and not Pool.runs(self._workers):
            return None
        self._pool = Pool.shared(self._workers)
        if self._pool.busy or not self._pool.started(wait=not self._patient):
            return None
        try:
            self._pool.belongs_to(self, lambda: (self.architecture, dict(self.clients), self.device))
        except CannotTravel as error:
            if not self._patient:
                raise
            warnings.warn(f"{error}; going on with one worker", RuntimeWarning, stacklevel=2)
            self._workers = 1
            return None
        return self._pool


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
