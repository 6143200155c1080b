"""Recording a history while a federation trains: around any federation, on disk, and safe from being killed.

recorder = Recorder(folder, {"norms"}, federation.clients)
weights = train(Recorded(federation, recorder), initial, training, rounds=60)
history = recorder.finish(weights)
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fedunlearn.atomic import read_json, write_json
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.checkpoint import save_weights
from fedunlearn.federation import ClientId, Federation, Program, Reply, Turn
from fedunlearn.history import (
    FORMAT,
    KINDS,
    History,
    HistoryError,
    HistoryKind,
    Layout,
    norms_of,
    read_tensors,
    write_tensors,
)
from fedunlearn.weights import Weights

__all__ = ["Recorded", "Recorder"]

_ROWS: tuple[Literal["sum", "last_local"], ...] = ("sum", "last_local")


class Recorder:
    """Writes a history, round by round.

    What changes in every round (sums, last local models) lies in memory-mapped matrices, which the system pages out
    where they are large: the server holds two models, whatever the number of clients. `flush` writes it down for
    good beside what the flush before wrote, so that a training which is resumed from either finds its own.

    Args:
        folder: of the history.
        kinds: to be kept.
        clients: all that may take part.
        every: of which rounds norms and updates are kept: the first, and each so-manieth after it.

    Raises:
        ValueError: a kind is none, or there is nothing to record.
    """

    def __init__(
        self, folder: Path, kinds: Collection[HistoryKind], clients: Sequence[ClientId], every: int = 1
    ) -> None:
        if not kinds or (strangers := sorted(set(kinds) - set(KINDS))):
            raise ValueError(f"say what is to be kept, of {', '.join(KINDS)}" + (f", not {strangers}" * bool(kinds)))
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self._layout, self._kinds, self._clients, self._every = Layout(folder), set(kinds), tuple(clients), every
        self._position = {client: at for at, client in enumerate(self._clients)}
        self._rows = [kind for kind in _ROWS if kind in self._kinds]
        self._matrices: dict[str, Tensor] = {}
        self._shares = torch.zeros(len(self._clients), dtype=torch.float64)
        self._pending: list[dict[str, Tensor]] = []  # norms of rounds since the last flush
        self._changed: set[int] = set()  # clients since the last flush
        self._done = self._flushed = -1  # the last round that was recorded, and that is on the disk
        self._open: dict[int, int] = {}  # samples by client, of the round under way
        self._norms = torch.zeros(0)

    @property
    def rounds(self) -> int:
        """How many are recorded."""
        return self._done + 1

    def rewind(self, rounds: int) -> None:
        """Be as after ``rounds`` rounds: before training begins, or goes on.

        Raises:
            HistoryError: what is in the folder is not of this training, or not enough of it.
        """
        if rounds == 0:
            shutil.rmtree(self._layout.folder, ignore_errors=True)
            self._layout.folder.mkdir(parents=True)
            write_json(self._layout.begun, self._begun)
            return
        folder = self._layout.folder
        if read_json(self._layout.begun) != self._begun:
            raise HistoryError(f"the history in {folder} is not of this training: remove the training's folder too")
        self._layout.complete.unlink(missing_ok=True)
        self._done = self._flushed = rounds - 1
        for path in self._layout.segments.glob("*.safetensors"):
            if int(path.stem) >= rounds:
                path.unlink()
        for path in (folder / "updates").glob("*"):
            if int(path.name) >= rounds:
                shutil.rmtree(path)
        for kind in self._rows:
            for client in range(len(self._clients)):
                for number, path in self._layout.versions(kind, client):
                    if number >= rounds:
                        path.unlink()

    def begin(self, number: int, weights: Weights) -> None:
        """A round begins with these weights.

        Raises:
            HistoryError: rounds are missing in between.
        """
        if number != self._done + 1:
            raise HistoryError(
                f"round {number} follows on round {self._done} in the history in {self._layout.folder}: "
                "rewind it to the rounds that are done before training goes on"
            )
        if number == 0 and not self._layout.begun.exists():
            self.rewind(0)
        if number == 0:
            save_weights(weights, self._layout.initial)
        if self._rows and not self._matrices:
            self._map(weights)
        self._open = {}
        self._norms = torch.zeros(len(self._clients), len(weights.parameters))

    def take(self, number: int, before: Weights, client: ClientId, reply: Reply) -> None:
        """A client's reply has come."""
        if reply.weights is None or not reply.samples:
            return
        at = self._position[client]
        self._open[at] = reply.samples
        if self._keeps(number):
            update = reply.weights - before
            self._norms[at] = norms_of(update)
            if number == 0 or "updates" in self._kinds:
                write_tensors(self._layout.updates(number) / f"{at}.safetensors", {"row": update.vector()})
        if self._rows:
            self._matrices["arrived"][at] = reply.weights.vector()

    def commit(self, number: int, before: Weights) -> None:
        """All replies of the round were taken: now each client's share is known."""
        total = sum(self._open.values())
        if self._keeps(number):
            samples = torch.zeros(len(self._clients), dtype=torch.int64)
            samples[list(self._open)] = torch.tensor(list(self._open.values()), dtype=torch.int64)
            self._pending.append({"numbers": torch.tensor(number), "samples": samples, "norms": self._norms})
        vector = before.vector() if "sum" in self._kinds else None
        for at, samples_there in self._open.items() if self._rows else ():
            arrived = self._matrices["arrived"][at]
            if vector is not None:
                self._matrices["sum"][at] += samples_there / total * (arrived - vector)
            if "last_local" in self._kinds:
                self._matrices["last_local"][at] = arrived
                self._shares[at] = samples_there / total
            self._changed.add(at)
        self._done = number

    def flush(self) -> None:
        """Put all on the disk. What the flush before had put there stays until the next one."""
        if self._pending:
            stacked = {name: torch.stack([kept[name] for kept in self._pending]) for name in self._pending[0]}
            write_tensors(self._layout.segment(self._done), stacked)
            self._pending = []
        for kind in self._rows:
            for at in self._changed:
                share = {"share": self._shares[at]} if kind == "last_local" else {}
                write_tensors(self._layout.row(kind, at, self._done), {"row": self._matrices[kind][at], **share})
        self._changed = set()
        self._prune(self._flushed)
        self._flushed = self._done

    def finish(self, weights: Weights) -> History:
        """Training ended with these weights."""
        self.flush()
        self._prune(self._done)
        self._matrices = {}
        shutil.rmtree(self._layout.work, ignore_errors=True)
        about = {**self._begun, "rounds": self._done + 1, "model": weights.digest(), "forgotten": []}
        write_json(self._layout.complete, about)
        return History(self._layout.folder)

    @property
    def _begun(self) -> dict[str, Any]:
        kinds = [kind for kind in KINDS if kind in self._kinds]
        return {"format": FORMAT, "kinds": kinds, "every": self._every, "clients": list(self._clients)}

    def _keeps(self, number: int) -> bool:
        return not self._kinds.isdisjoint(("norms", "updates")) and number % self._every == 0

    def _prune(self, until: int) -> None:
        """Remove versions that a training resumed after round ``until``, or later, does not read."""
        for kind in self._rows:
            for client in range(len(self._clients)):
                for _, path in [v for v in self._layout.versions(kind, client) if v[0] <= until][:-1]:
                    path.unlink()

    def _map(self, weights: Weights) -> None:
        width = weights.vector()
        dtype = torch.promote_types(width.dtype, torch.float32)
        self._layout.work.mkdir(exist_ok=True)
        for name in ("arrived", *self._rows):
            path = self._layout.work / name
            path.unlink(missing_ok=True)
            size = len(self._clients) * len(width)
            flat = torch.from_file(str(path), shared=True, size=size, dtype=dtype)  # made full of zeros
            self._matrices[name] = flat.view(len(self._clients), -1)
        for kind in self._rows:
            for at in range(len(self._clients)):
                for _, path in self._layout.versions(kind, at)[-1:]:
                    content = read_tensors(path)
                    self._matrices[kind][at] = content["row"]
                    if kind == "last_local":
                        self._shares[at] = content["share"]


class Recorded(Wrapper):
    """A federation around another whose training rounds are recorded, each once its reader has taken all of it."""

    def __init__(self, inner: Federation, recorder: Recorder) -> None:
        super().__init__(inner)
        self.recorder = recorder

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self.recorder)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`."""
        replies = self.inner.run(program, weights, turn, clients)
        if turn.phase != "train":
            yield from replies
            return
        self.recorder.begin(turn.number, weights)
        for client, reply in replies:
            self.recorder.take(turn.number, weights, client, reply)
            yield client, reply
        self.recorder.commit(turn.number, weights)
