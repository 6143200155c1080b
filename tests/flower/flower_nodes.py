"""Nodes for the tests: the contract's four small clients behind a grid, and an outbox without files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Context

from fedunlearn import denials
from fedunlearn.backends.in_process import InProcess
from fedunlearn.contract import SmallNet, small_federation
from fedunlearn.flower.client import client_app
from fedunlearn.flower.federation import Flower, greet
from fedunlearn.flower.local import Hook, LocalGrid

OF_DENIALS = (denials.Nobody, denials.Everything, denials.Counting, denials.WithoutLabels)

HERE = small_federation()


def samples(context: Context) -> Any:
    client = HERE._engine.clients[str(context.node_config["partition-id"])]
    return client.samples.values[client.indices], client.samples.labels[client.indices]


def local_grid(clients: int = 4, *, hook: Hook | None = None, keep: bool = False, **settings: Any) -> LocalGrid:
    settings = {"programs": OF_DENIALS, **settings}
    app = client_app(SmallNet, settings.pop("data", samples), **settings)
    return LocalGrid(app, [{"partition-id": k} for k in range(clients)], hook=hook, keep=keep)


def over_flower(grid: LocalGrid | None = None, **settings: Any) -> Flower:
    grid = grid or local_grid()
    return Flower(grid, greet(grid, None, deadline=5).nodes, HERE.architecture, **settings)


def in_process() -> InProcess:
    return small_federation()


@dataclass(frozen=True)
class Meant:
    scope: str
    instances: tuple[int, ...] = ()


def with_outbox(monkeypatch: pytest.MonkeyPatch, meant: dict[str, Meant], open: Iterable[Any] = ()) -> list[Any]:
    """An outbox that knows these requests; what it is told is in the list that is returned."""
    told: list[Any] = []

    class Outbox:
        def __init__(self, folder: Any) -> None:
            self.folder = folder

        def meant(self, request: str) -> Meant:
            if request not in meant:
                raise ValueError(f"{self.folder} knows no request {request}")
            return meant[request]

        def places(self, request: str, labels: bytes) -> tuple[int, ...]:
            return meant[request].instances

        def exchange(self, answers: list[Any]) -> list[Any]:
            told.extend(answers)
            return list(open)

    module = ModuleType("fedunlearn.deletion.outbox")
    module.Outbox, module.OtherData = Outbox, OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fedunlearn.deletion.outbox", module)
    return told
