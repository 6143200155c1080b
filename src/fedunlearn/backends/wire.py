"""Programs and predicates as JSON: a type's name and its fields. Never pickle: what comes from elsewhere is not run.

    >>> encode(ForgetClass(3))[0]
    {'type': 'fedunlearn.requests:ForgetClass', 'fields': {'label': 3}}

`Weights` and tensors in fields travel beside the JSON, which holds their position among those beside it.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fedunlearn.amounts import brief
from fedunlearn.importing import path_of
from fedunlearn.weights import Weights

__all__ = ["WireError", "decode", "encode", "weights_in"]


_VOCABULARY = (
    "fedunlearn.federation",
    "fedunlearn.requests",
    "fedunlearn.programs",
    "fedunlearn.audits.signals",
    "fedunlearn.audits.probe",
    "fedunlearn.audits.recognition",
)


class WireError(ValueError):
    """A message that cannot be sent, or that is refused."""

    def __init__(self, sentence: str) -> None:
        super().__init__(brief(sentence))  # it quotes the message


def encode(value: object) -> tuple[Any, list[Weights | Tensor]]:
    """JSON of a frozen dataclass (nested ones, tuples, mappings and plain values too), and what goes beside it.

    Raises:
        WireError: it holds something that does not travel.
    """
    beside: list[Weights | Tensor] = []
    return _encode(value, beside), beside


def decode(message: Any, beside: Sequence[Weights | Tensor] = (), allow: Iterable[type] = ()) -> Any:
    """What `encode` was given. Only programs and predicates of this package and those in ``allow`` are made.

    Raises:
        WireError: the message is malformed or names another type.
    """
    allowed = {path_of(kind): kind for kind in allow}
    try:
        return _decode(message, beside, allowed)
    except WireError:
        raise
    except Exception as error:  # whatever a type thinks of the fields that it is given
        raise WireError(f"a malformed message: {error!r}") from error


def weights_in(value: object) -> list[Weights]:
    """All weights in the fields of a program, nested ones too."""
    if isinstance(value, Weights):
        return [value]
    if dataclasses.is_dataclass(value):
        return [w for f in dataclasses.fields(value) for w in weights_in(getattr(value, f.name))]
    if isinstance(value, Mapping):
        return [w for item in value.values() for w in weights_in(item)]
    if isinstance(value, (tuple, list)):
        return [w for item in value for w in weights_in(item)]
    return []


def _encode(value: object, beside: list[Weights | Tensor]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # for which JSON has no form
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Weights, Tensor)):
        beside.append(value)
        return {"weights" if isinstance(value, Weights) else "tensor": len(beside) - 1}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name), beside) for f in dataclasses.fields(value) if f.init}
        return {"type": path_of(type(value)), "fields": fields}
    if isinstance(value, (tuple, list)):
        return [_encode(item, beside) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[_encode(key, beside), _encode(item, beside)] for key, item in value.items()]}
    raise WireError(f"{type(value).__name__} does not travel: use a frozen dataclass of plain values and weights")


def _decode(message: Any, beside: Sequence[Weights | Tensor], allowed: Mapping[str, type]) -> Any:
    if message is None or isinstance(message, (bool, int, float, str)):
        return message
    if isinstance(message, list):
        return tuple(_decode(item, beside, allowed) for item in message)
    if message.keys() == {"weights"}:
        return _beside(message["weights"], Weights, beside)
    if message.keys() == {"tensor"}:
        return _beside(message["tensor"], Tensor, beside)
    if message.keys() == {"float"}:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[message["float"]]
    if message.keys() == {"map"}:
        return {_decode(key, beside, allowed): _decode(item, beside, allowed) for key, item in message["map"]}
    if message.keys() != {"type", "fields"}:
        raise KeyError(*message)
    kind = allowed.get(message["type"]) or _own(message["type"])
    return kind(**{name: _decode(item, beside, allowed) for name, item in message["fields"].items()})


def _beside(position: int, kind: type, beside: Sequence[Weights | Tensor]) -> Weights | Tensor:
    if not 0 <= position < len(beside) or not isinstance(beside[position], kind):
        raise IndexError(position)
    return beside[position]


def _own(name: str) -> type:
    """A program, predicate or part of one that is defined in this package, by its full name."""
    module, _, attribute = name.partition(":")
    ours = module in _VOCABULARY or module.startswith("fedunlearn.methods.")
    if ours and attribute.isidentifier() and not attribute.startswith("_"):
        try:
            kind = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            kind = None
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module:
            return kind
    raise WireError(f"{name} is refused: it is neither of fedunlearn nor on the list of allowed programs")
