"""The same methods on many machines, over Flower: a ClientApp for those who hold data, and a server that forgets.

Each name below is imported when it is first used: a client that only answers a question does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedunlearn.deletion.plan import Plan as Plan
    from fedunlearn.flower.client import client_app as client_app
    from fedunlearn.flower.federation import Flower as Flower
    from fedunlearn.flower.federation import greet as greet
    from fedunlearn.flower.local import LocalGrid as LocalGrid
    from fedunlearn.flower.server import serve as serve

_HOMES = {
    "Flower": "flower.federation",
    "LocalGrid": "flower.local",
    "Plan": "deletion.plan",
    "client_app": "flower.client",
    "greet": "flower.federation",
    "serve": "flower.server",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fedunlearn.{_HOMES[name]}"), name)
