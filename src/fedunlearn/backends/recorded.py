"""Recording a history while a federation trains: around any federation, on disk, and safe from being killed.

    recorder = Recorder(folder, {"norms"}, federation.clients)
    weights = train(Recorded(federation, recorder), initial, training, rounds=60)
    history = recorder.finish(weights)

What is recorded changes no bit of the training.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fedunlearn.atomic import make_folder, write_json
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.federation import ClientId, Federation, Program, Reply, Turn
from fedunlearn.history import (
    FORMAT,
    KINDS,
    ROWS,
    History,
    HistoryError,
    HistoryKind,
    Layout,
    norms_of,
    read_about,
    read_tensors,
    write_initial,
    write_tensors,
)
from fedunlearn.paged import paged, reserve
from fedunlearn.weights import Weights

__all__ = ["Recorded", "Recorder"]

_NORMS: tuple[HistoryKind, ...] = ("norms", "updates")  # kinds with norms


class Recorder:
    """Writes a history, round by round.

    What changes in every round (sums, last local models) lies in memory-mapped matrices, which the system pages out
    where they are large: the server holds two models, whatever the number of clients. `flush` writes it down for
    good beside what the flush before wrote, so that a training which is resumed from either finds its own. When, and
    how often, changes no byte of the finished history.

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
            raise ValueError(f"say what is to be kept, of {', '.join(KINDS)}" + (f", not {strangers}" if kinds else ""))
        if not clients or len(set(clients)) < len(clients):
            raise ValueError(f"name the clients that may take part, each once, not {list(clients)}")
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self._layout, self._kinds, self._clients, self._every = Layout(Path(folder)), set(kinds), tuple(clients), every
        self._position = {client: at for at, client in enumerate(self._clients)}
        self._rows = [kind for kind in ROWS if kind in self._kinds]
        self._ready = False  # whether the folder is ours to write to
        self._restart(0)

    def _restart(self, rounds: int) -> None:
        """Remember nothing but what is on the disk after so many rounds."""
        self._matrices: dict[str, Tensor] = {}
        self._shares = torch.zeros(len(self._clients), dtype=torch.float64)
        self._pending: list[dict[str, Tensor]] = []  # of rounds since the last flush
        # Of each client, the rounds whose models are on the disk: folders of ten thousand clients are not listed anew
        # at each flush.
        self._versions = {kind: self._on_the_disk(kind) if rounds else {} for kind in self._rows}
        self._changed: dict[int, int] = {}  # clients since the last flush, with the last round that they took part in
        self._open: dict[int, int] = {}  # samples by client, of the round under way
        self._slots: dict[int, int] = {}  # and rows of what has arrived: as many as take part, not as there are clients
        self._norms: dict[int, Tensor] = {}  # by client, of the round under way
        self._done: int = rounds - 1  # the last round that was recorded
        self._flushed: int = self._done  # and that is on the disk

    @property
    def rounds(self) -> int:
        """How many are recorded."""
        return self._done + 1

    def rewind(self, rounds: int) -> None:
        """Be as after ``rounds`` rounds: before training begins, or goes on.

        Only the last two flushes can be gone back to, and only the end once training has ended. At 0 whatever
        history there was is removed.

        Raises:
            HistoryError: what is in the folder is not of this training, not enough of it, or no history at all.
        """
        self._ready = False
        if rounds == 0:
            self._begin_anew()
        else:
            self._go_back(rounds)
        self._restart(rounds)
        self._ready = True

    def begin(self, number: int, weights: Weights) -> None:
        """A round begins with these weights.

        Raises:
            HistoryError: rounds are missing in between, or the folder holds a history that nobody has rewound.
        """
        if number == 0 and not self._ready:
            if self._layout.begun.exists() or self._layout.complete.exists():
                folder = self._layout.folder
                raise HistoryError(f"there is a history in {folder} already: remove it, or rewind it to 0 rounds")
            self.rewind(0)
        if not self._ready or number != self._done + 1:
            raise HistoryError(
                f"round {number} does not follow on what was recorded in {self._layout.folder}: "
                "rewind it to the rounds that are done before training goes on"
            )
        if number == 0:
            write_initial(self._layout.initial, weights)
        if self._rows and not self._matrices:
            self._map(weights)
        self._open, self._norms, self._slots = {}, {}, {}
        _remove(self._layout.updates(number))  # of the same round, broken off by its reader

    def take(self, number: int, before: Weights, client: ClientId, reply: Reply) -> None:
        """A client's reply has come.

        Raises:
            HistoryError: it is of none of those that may take part.
        """
        if reply.weights is None or not reply.samples:
            return
        if client not in self._position:
            raise HistoryError(f"client {client} takes part and is not recorded: make the Recorder with all clients")
        at = self._position[client]
        self._open[at] = reply.samples
        if self._keeps(number):
            update = reply.weights - before
            self._norms[at] = norms_of(update)
            if number == 0 or "updates" in self._kinds:
                if len(self._norms) == 1:  # once a round
                    make_folder(self._layout.updates(number))
                write_tensors(self._layout.updates(number) / f"{at}.safetensors", {"row": update.vector()})
        if self._rows:
            slot = self._slots.setdefault(at, len(self._slots))
            for name, matrix in self._matrices.items():  # all: when all replies are there is no time for a full disk
                reserve(self._layout.work / name, matrix, slot if name == "arrived" else at)
            self._matrices["arrived"][slot] = reply.weights.vector()

    def commit(self, number: int, before: Weights) -> None:
        """All replies of the round were taken: now each client's share is known."""
        if not self._open:
            return  # nobody trained, so that there is nothing to average either
        there, total = sorted(self._open), sum(self._open.values())
        if self._keeps(number):
            self._pending.append(
                {
                    "numbers": torch.tensor([number]),
                    "counts": torch.tensor([len(there)]),
                    "clients": torch.tensor(there),
                    "samples": torch.tensor([self._open[at] for at in there]),
                    "norms": torch.stack([self._norms[at] for at in there]),
                }
            )
        vector = before.vector() if "sum" in self._kinds else None
        for at in there if self._rows else ():
            arrived, share = self._matrices["arrived"][self._slots[at]], self._open[at] / total
            if vector is not None:
                self._matrices["sum"][at] += share * (arrived - vector)
            if "last_local" in self._kinds:
                self._matrices["last_local"][at] = arrived
                self._shares[at] = share
            self._changed[at] = number
        self._done = number

    def flush(self) -> None:
        """Put all on the disk. What the flush before had put there stays until the next one."""
        if self._done == self._flushed:
            return
        if self._pending:
            make_folder(self._layout.segments)
            write_tensors(self._layout.segment(self._done), _joined(self._pending))
            self._pending = []
        for kind in self._rows:
            make_folder(self._layout.rows(kind))
            for at, number in self._changed.items():
                share = {"share": self._shares[at]} if kind == "last_local" else {}
                write_tensors(self._layout.row(kind, at, number), {"row": self._matrices[kind][at], **share})
                self._versions[kind].setdefault(at, []).append(number)
        self._changed = {}
        self._can_go_back_to(self._flushed + 1, self._done + 1)
        self._prune(self._flushed)
        self._flushed = self._done

    def finish(self, weights: Weights) -> History:
        """Training ended with these weights, and its last round was saved: there is no going back to an earlier one.

        Raises:
            HistoryError: no round was recorded.
        """
        if self._done < 0:
            raise HistoryError(f"nothing was recorded in {self._layout.folder}: train around a Recorded federation")
        self.flush()
        self._can_go_back_to(self._done + 1)
        self._prune(self._done)
        if not self._kinds.isdisjoint(_NORMS):
            self._merge()
        self._matrices = {}
        _remove(self._layout.work)
        rows = self._layout.versions(self._rows[0]) if self._rows else {}
        about = {
            **self._begun,
            "rounds": self._done + 1,
            "took_part": {self._clients[at]: versions[-1][0] for at, versions in rows.items()},  # last in which round
            "model": weights.digest(),
            "forgotten": [],
            "unlearnings": 0,
        }
        write_json(self._layout.complete, about)
        self._ready = False
        return History(self._layout.folder)

    @property
    def _begun(self) -> dict[str, Any]:
        kinds = [kind for kind in KINDS if kind in self._kinds]
        return {"format": FORMAT, "kinds": kinds, "every": self._every, "clients": list(self._clients)}

    def _keeps(self, number: int) -> bool:
        return not self._kinds.isdisjoint(_NORMS) and number % self._every == 0

    def _begin_anew(self) -> None:
        folder, ours = self._layout.folder, self._layout.begun.exists() or self._layout.complete.exists()
        found = [path for path in folder.iterdir() if path != self._layout.begun] if folder.exists() else []
        if not ours and any(path.suffix != ".tmp" for path in found):
            raise HistoryError(f"{folder} holds something else than a history: choose another folder")
        # First what would tell, if this were killed, of a history that can be read or gone on with.
        self._layout.complete.unlink(missing_ok=True)
        self._layout.flushed.unlink(missing_ok=True)
        make_folder(folder)
        write_json(self._layout.begun, self._begun)
        for path in found:
            _remove(path)

    def _go_back(self, rounds: int) -> None:
        folder = self._layout.folder
        if read_about(self._layout.begun) != self._begun:
            raise HistoryError(
                f"what was recorded in {folder} is not of this training (other kinds, clients or every): "
                "train anew from round 0, or record in another folder"
            )
        if read_about(self._layout.complete).get("unlearnings"):
            raise HistoryError(f"the history in {folder} has forgotten somebody: no training goes on from it")
        if rounds not in (possible := read_about(self._layout.flushed).get("rounds", [])):
            there = " and ".join(map(str, possible)) or "no"
            raise HistoryError(
                f"the history in {folder} is there after {there} rounds, not after {rounds}: train anew from round 0"
            )
        self._layout.complete.unlink(missing_ok=True)
        self._can_go_back_to(rounds)
        self._layout.sweep()
        late = [path for path in self._layout.segments.glob("*.safetensors") if int(path.stem) >= rounds]
        late += [path for path in (folder / "updates").glob("*") if int(path.name) >= rounds]
        for kind in self._rows:
            for versions in self._layout.versions(kind).values():
                late += [path for number, path in versions if number >= rounds]
        for path in late:
            _remove(path)

    def _can_go_back_to(self, *rounds: int) -> None:
        write_json(self._layout.flushed, {"rounds": [number for number in rounds if number]})

    def _prune(self, until: int) -> None:
        """Remove versions that a training resumed after round ``until``, or later, does not read."""
        for kind in self._rows:
            for at, numbers in self._versions[kind].items():
                for number in [number for number in numbers if number <= until][:-1]:
                    self._layout.row(kind, at, number).unlink()
                    numbers.remove(number)

    def _on_the_disk(self, kind: Literal["sum", "last_local"]) -> dict[int, list[int]]:
        versions = self._layout.versions(kind)
        return {client: [number for number, _ in found] for client, found in versions.items()}

    def _merge(self) -> None:
        """Make one segment of all, which takes the last one's place."""
        segments = sorted(self._layout.segments.glob("*.safetensors"), key=lambda path: int(path.stem))
        found: list[dict[str, Tensor]] = []
        for path in segments:
            content = read_tensors(path)
            if not content["numbers"][0]:  # it holds all rounds so far: the others were left by a process killed here
                found = []
            found.append(content)
        merged = self._layout.segment(self._done)
        write_tensors(merged, _joined(found))
        for path in segments:
            if path != merged:
                path.unlink()

    def _map(self, weights: Weights) -> None:
        width = weights.vector()
        self._layout.work.mkdir(exist_ok=True)
        for name in ("arrived", *self._rows):
            self._matrices[name] = paged(self._layout.work / name, len(self._clients), width)
        if "sum" in self._matrices:  # of last local models, none is written but those that are still to come
            for at, versions in self._layout.versions("sum").items():
                reserve(self._layout.work / "sum", self._matrices["sum"], at)
                self._matrices["sum"][at] = read_tensors(versions[-1][1])["row"]


def _joined(contents: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([content[name] for content in contents]) for name in contents[0]}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
