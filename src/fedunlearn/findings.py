"""What a diagnosis of the theory has found: kept seed by seed in a file, and the mean over seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from fedunlearn.atomic import FileError, read_json, write_json
from fedunlearn.theory.bound import Bound

__all__ = ["FOLDER", "Found", "averaged", "plain", "read_found"]

FOLDER = "theory"
"""Of a run, where its diagnoses are kept."""

_FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """What a diagnosis found.

    Attributes:
        name: of the diagnosis.
        about: the run, or the network, in a line.
        command: that asked for it.
        seeds: of the run; none where a network alone was looked at.
        results: one for each seed, or one.
        decides: what else decides the numbers: samples, options, versions.
    """

    name: str
    about: str
    command: str
    seeds: tuple[int, ...]
    results: tuple[T, ...]
    decides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> T:
        """Over seeds."""
        return averaged(self.results)

    def summary(self) -> dict[str, Any]:
        """What a script would want of it, and what `read_found` reads.

        JSON has no NaN and no infinity: they are texts, ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
        """
        return {"format": _FORMAT, **plain(dataclasses.asdict(self))}

    def write(self, folder: Path) -> Path:
        """As JSON, ``theory/NAME.json`` in a folder; gives the file.

        Raises:
            OSError: it cannot be written.
        """
        path = folder / FOLDER / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.summary())
        return path


def read_found(path: Path, kind: type[T]) -> Found[T]:
    """What `Found.write` has written.

    Args:
        path: of the file.
        kind: of the results.

    Raises:
        FileError: it is none of ours.
    """
    content = read_json(path)
    try:
        if content.pop("format", None) != _FORMAT:
            raise FileError(f"{path} is no diagnosis of this version: remove it, to have it anew")
        results = TypeAdapter(tuple[kind, ...]).validate_python(content.pop("results"))  # type: ignore[valid-type]
        said = TypeAdapter(Found[Any]).validate_python({**content, "results": ()})
    except (ValidationError, KeyError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"it lacks {error}"
        raise FileError(f"{path} is no diagnosis ({told}): remove it, to have it anew") from None
    return replace(said, results=results)


def averaged(results: Sequence[T]) -> T:
    """The mean of results that are built alike: of every real number in them.

    What one of them does not have, the mean does not have either; sentences are those of all; whole numbers and names
    are the first one's. The moments of a `Bound` are of each way by itself, and not in the mean of several.

    Raises:
        ValueError: they are not built alike.
    """
    return cast(T, _averaged(results)) if len(results) > 1 else results[0]


def _averaged(results: Sequence[Any]) -> Any:
    first = results[0]
    if any(one is None for one in results):
        return None
    if any(type(one) is not type(first) for one in results):
        raise ValueError("the seeds' results differ in kind: look at each seed by itself, with --seed")
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        own: dict[str, Any] = {"checkpoints": ()} if isinstance(first, Bound) else {}
        names = [field.name for field in dataclasses.fields(first) if field.name not in own]
        return replace(first, **own, **{name: _averaged([getattr(one, name) for one in results]) for name in names})
    if isinstance(first, Mapping):
        if any(one.keys() != first.keys() for one in results):
            raise ValueError("the seeds' results differ in what they are of: look at each seed by itself, with --seed")
        return {key: _averaged([one[key] for one in results]) for key in first}
    if isinstance(first, tuple):
        if all(isinstance(part, str) for one in results for part in one):
            return tuple(dict.fromkeys(chain.from_iterable(results)))
        if any(len(one) != len(first) for one in results):
            raise ValueError("the seeds' results differ in length: look at each seed by itself, with --seed")
        return tuple(_averaged(parts) for parts in zip(*results, strict=True))
    if isinstance(first, float):
        return fmean(results) if all(map(isfinite, results)) else sum(results)  # fmean cannot add infinities up
    return first


def plain(value: Any) -> Any:
    """As JSON has it: lists, and texts for numbers that it does not know."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return json.dumps(value) if isinstance(value, float) and not isfinite(value) else value
