"""What is on disk of one method at one seed: its rounds, the weights that are kept, and where to go on.

A process may be killed at any instant. What it had written is then found whole: a line that was cut short is taken
away, everything else is renamed into its place. Rounds after the last saved one are done anew, with the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedunlearn.atomic import FileError, atomic_write, make_folder, read_json, sync_folder, write_json
from fedunlearn.checkpoint import CheckpointError, load_weights, read_metadata, save_weights
from fedunlearn.evaluation.rows import Row
from fedunlearn.federation import Phase
from fedunlearn.rounds import Round
from fedunlearn.weights import Weights

__all__ = ["Record", "RecordError", "Saved", "copy_durably"]

_ROWS, _STATE, _COMPLETE, _WEIGHTS = "rows.jsonl", "state.safetensors", "complete.json", "weights"
_META = "fedunlearn.state"


class RecordError(FileError):
    """A run's folder holds what no run has written."""


@dataclass(frozen=True, eq=False)
class Saved:
    """A round that was saved.

    Attributes:
        phase: that it belongs to.
        round: all that going on needs.
        rows: how many rows were written by then.
        digest: of those rows.
        weights: digest of each model that was kept by then.
    """

    phase: Phase
    round: Round
    rows: int
    digest: str
    weights: Mapping[str, str]


@dataclass(frozen=True)
class _Meta:
    """What a state says of itself: of each of its models, the sign history; digests of the rows, of the bits, and of
    the models that were kept by then."""

    phase: Phase
    number: int
    rows: Annotated[int, Ge(0)]
    digest: str
    bits: str
    models: Mapping[str, tuple[tuple[str, ...], ...]]
    weights: Mapping[str, str]


@dataclass(frozen=True)
class _Completion:
    """What is written last: label of the method, number of rows, why it failed; digests of rows and of what is kept."""

    label: str
    rows: Annotated[int, Ge(0)]
    failed: str | None
    digest: str
    weights: Mapping[str, str]
    cached: bool = False


class Record:
    """A folder of its own.

    ``rows.jsonl``: a row a round. ``state.safetensors``: the last saved round, until all is done.
    ``weights/``: models that are kept. ``complete.json``: written last.

    Attributes:
        rows: so far; those after the last saved round are not among them, for they will come again.
        saved: the last saved round, if there is one.
    """

    _SHARE = 50  # of the time, at most one part in so many goes into saving

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._complete = _read_completion(folder / _COMPLETE)
        self.saved = None if self.complete else _read_state(folder / _STATE)
        self.rows = list(_read_rows(folder / _ROWS))
        told = self._complete or self.saved
        # Of what is kept, taken when it is: files that are read again may have changed.
        self._weights = dict(told.weights) if told else {}
        done = told.rows if told else 0
        if len(self.rows) < done:
            raise RecordError(
                f"{folder / _ROWS} has {len(self.rows)} of {done} rows: remove {folder}, to have it done anew"
            )
        del self.rows[done:]
        if told and told.digest != _digest(self.rows):
            raise RecordError(
                f"{folder / _ROWS} was changed since it was written: remove {folder}, to have it done anew"
            )
        self._wait, self._since = 1.0, time.monotonic()  # seconds to the next saving (the first is a guess), and when

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self._complete is not None

    @property
    def failed(self) -> str | None:
        """Why it could not be brought to its end."""
        return self._complete.failed if self._complete else None

    @property
    def label(self) -> str:
        """Of the method, once all is done."""
        assert self._complete is not None, "nobody asks before"
        return self._complete.label

    @property
    def cached(self) -> bool:
        """Whether another run did it."""
        return self._complete is not None and self._complete.cached

    def begin(self) -> None:
        """Make the folder ready for rows after those that there are."""
        make_folder(self.folder)
        with atomic_write(self.folder / _ROWS) as file:
            file.writelines(map(_row_line, self.rows))

    def add(self, row: Row) -> None:
        """Append a row."""
        with open(self.folder / _ROWS, "ab") as file:
            file.write(_row_line(row))
        self.rows.append(row)

    def keep(self, name: str, weights: Weights, about: Mapping[str, object]) -> None:
        """Keep a model, as ``weights/NAME.safetensors``."""
        make_folder(self.folder / _WEIGHTS)
        save_weights(weights, self.folder / _WEIGHTS / f"{name}.safetensors", {k: str(v) for k, v in about.items()})
        self._weights[name] = weights.digest()

    @property
    def models(self) -> tuple[str, ...]:
        """The names of those that were kept, whether they are still there or not."""
        return tuple(self._weights)

    def kept(self, name: str) -> Weights:
        """A model that was kept.

        Raises:
            RecordError: it was changed since.
            CheckpointError: it is gone, or cannot be read.
        """
        path = self.folder / _WEIGHTS / f"{name}.safetensors"
        weights = load_weights(path)
        if weights.digest() != self._weights.get(name):
            raise RecordError(f"{path} was changed since it was written: remove {self.folder}, to have it done anew")
        return weights

    def save(
        self, phase: Phase, round: Round, rows: int, *, now: bool = False, first: Callable[[], None] | None = None
    ) -> None:
        """Save a round, so that a run goes on after it; unless that would take too large a share of the time.

        Args:
            phase, round: that was done.
            rows: how many there were after it.
            now: whatever it takes.
            first: puts on the disk what else must be there before the state says so.
        """
        started = time.monotonic()
        if not now and started - self._since < self._wait:
            return
        if first is not None:
            first()
        with open(self.folder / _ROWS, "rb") as file:
            os.fsync(file.fileno())  # before the state says that they are there
        models = {"": round.after, **round.carry}
        negations = {name: weights.negations for name, weights in models.items()}
        packed, digest = _packed(models), _digest(self.rows[:rows])
        meta = {
            "phase": phase,
            "number": round.number,
            "rows": rows,
            "models": negations,
            "digest": digest,
            "bits": packed.digest(),
            "weights": self._weights,
        }
        save_weights(packed, self.folder / _STATE, {_META: json.dumps(meta)})
        self.saved = Saved(phase, round, rows, digest, dict(self._weights))
        self._since = time.monotonic()
        self._wait = self._SHARE * (self._since - started)

    def finish(self, label: str, failed: str | None = None) -> None:
        """Nothing is left to do.

        Args:
            label: of the method, which may have no row that would tell.
            failed: why it could not be brought to its end.
        """
        with open(self.folder / _ROWS, "rb") as file:
            os.fsync(file.fileno())
        self._complete = _Completion(label, len(self.rows), failed, _digest(self.rows), self._weights)
        write_json(self.folder / _COMPLETE, dataclasses.asdict(self._complete))
        (self.folder / _STATE).unlink(missing_ok=True)
        self.saved = None

    @classmethod
    def adopted(cls, folder: Path, other: Path) -> Record:
        """What another run has done, copied to ``folder``, if it is whole.

        Raises:
            FileError, CheckpointError, OSError: it is not; what was in ``folder`` is as it was.
        """
        found = cls(other)
        if found._complete is None:
            raise RecordError(f"{other} is not complete")
        for name in found.models:
            found.kept(name)  # which looks whether it is as it was
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        copy_durably(other, temporary)
        write_json(temporary / _COMPLETE, {**dataclasses.asdict(found._complete), "cached": True})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
        return cls(folder)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a folder so that all that is in it is on the disk when this returns; its own name need not be."""

    def copied(one: str, other: str) -> None:
        shutil.copyfile(one, other)
        with open(other, "rb+") as file:
            os.fsync(file.fileno())

    shutil.copytree(source, target, copy_function=copied)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        sync_folder(folder)


def _row_line(row: Row) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(dataclasses.asdict(row), separators=(",", ":")).encode() + b"\n"


def _digest(rows: Iterable[Row]) -> str:
    """Of rows: a bit that has flipped on a disk is seldom no JSON, and must not pass for a result."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(_row_line(row))
    return digest.hexdigest()


def _read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file; a last line that was cut short is left out.

    Raises:
        RecordError: another line is no row.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield _adapter().validate_json(line)
        except ValidationError as error:
            raise RecordError(f"{path}, line {number} is no row of a run: {error.errors()[0]['msg']}") from None


@cache
def _adapter() -> TypeAdapter[Row]:
    return TypeAdapter(Row)


def _read_state(path: Path) -> Saved | None:
    if not path.exists():
        return None
    try:
        meta = TypeAdapter(_Meta).validate_json(read_metadata(path)[_META])
        packed = load_weights(path)
        if packed.digest() != meta.bits:
            raise RecordError(f"{path} was changed since it was written: remove it, to begin this part anew")
        models = _unpacked(packed, meta.models)
        return Saved(meta.phase, Round(meta.number, models.pop(""), models), meta.rows, meta.digest, meta.weights)
    except (CheckpointError, KeyError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RecordError(f"{path} is no state of a run ({why}): remove it, to begin this part anew") from None


def _read_completion(path: Path) -> _Completion | None:
    content = read_json(path)
    if not content:
        return None
    try:
        return TypeAdapter(_Completion).validate_json(json.dumps(content), strict=True)
    except ValidationError:
        raise RecordError(f"{path} is not as a run writes it: remove {path.parent}, to have it done anew") from None


def _packed(models: Mapping[str, Weights]) -> Weights:
    """Several models as one, so that one file holds all; names get the model's in front."""

    def named(kind: str) -> dict[str, Tensor]:
        return {
            f"{model}/{name}": tensor.clone()  # two models may hold the same tensor, which the format does not take
            for model, weights in models.items()
            for name, tensor in getattr(weights, kind).items()
        }

    aliases = {f"{m}/{new}": f"{m}/{name}" for m, weights in models.items() for new, name in weights.aliases.items()}
    return Weights(named("parameters"), named("buffers"), aliases)


def _unpacked(packed: Weights, models: Mapping[str, tuple[tuple[str, ...], ...]]) -> dict[str, Weights]:
    def own(model: str, entries: Mapping[str, Any]) -> dict[str, Any]:
        start = f"{model}/"
        return {name.removeprefix(start): value for name, value in entries.items() if name.startswith(start)}

    return {
        model: Weights(
            own(model, packed.parameters),
            own(model, packed.buffers),
            {new: name.removeprefix(f"{model}/") for new, name in own(model, packed.aliases).items()},
            negations,
        )
        for model, negations in models.items()
    }
