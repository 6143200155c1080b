"""What a server may have kept of its training: some methods need it, NoT does not.

A history is a folder, written by `fedunlearn.backends.recorded` while a federation trains and read here lazily, one
model at a time. It is worth something only for the model that its training led to: `Task` refuses any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedunlearn.atomic import atomic_write, read_json, write_json
from fedunlearn.checkpoint import CheckpointError, load_weights
from fedunlearn.federation import ClientId
from fedunlearn.weights import Weights

__all__ = [
    "FORMAT",
    "KINDS",
    "History",
    "HistoryError",
    "HistoryKind",
    "Kept",
    "Layout",
    "kept_bytes",
    "norms_of",
    "read_tensors",
    "write_tensors",
]

HistoryKind = Literal["norms", "sum", "last_local", "updates"]
KINDS: tuple[HistoryKind, ...] = get_args(HistoryKind)
"""``norms``: of each client's updates, with the first round's updates; ``sum``: over rounds of share times update;
``last_local``: each client's last local model; ``updates``: all of them, which serves ``norms`` too."""

FORMAT = 1
_NORM_BYTES = 4  # float32


class HistoryError(ValueError):
    """There is no history, it was cut short, or it is of another training; the sentence says what to do."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What was kept of one round.

    Attributes:
        number: of the round.
        samples: behind each client's update; only of those that took part.
        norms: Euclidean norm of each client's update, by tensor.
        updates: local minus global model, read when asked for; of the first kept round only, or of all with kind
            "updates".
    """

    number: int
    samples: Mapping[ClientId, int]
    norms: Mapping[ClientId, Mapping[str, float]]
    updates: Mapping[ClientId, Weights]


@dataclass(frozen=True)
class Layout:
    """Where things lie in a history's folder; clients go by their position, since their ids may be any text."""

    folder: Path

    @property
    def begun(self) -> Path:
        """What is recorded, and of whom."""
        return self.folder / "begun.json"

    @property
    def complete(self) -> Path:
        """Written last: what the history leads to."""
        return self.folder / "history.json"

    @property
    def initial(self) -> Path:
        """The model before the first round."""
        return self.folder / "initial.safetensors"

    @property
    def work(self) -> Path:
        """Matrices of the recording that is under way."""
        return self.folder / ".work"

    @property
    def segments(self) -> Path:
        """Norms of several rounds each, named by the last of them."""
        return self.folder / "norms"

    def segment(self, until: int) -> Path:
        """Norms of the rounds after the segment before, up to ``until``."""
        return self.segments / f"{until:06d}.safetensors"

    def updates(self, number: int) -> Path:
        """The updates of a round."""
        return self.folder / "updates" / f"{number:06d}"

    def rows(self, kind: Literal["sum", "last_local"]) -> Path:
        """One model a client, each in the versions of a few rounds."""
        return self.folder / kind

    def row(self, kind: Literal["sum", "last_local"], client: int, number: int) -> Path:
        """A client's, as it was after a round."""
        return self.rows(kind) / f"{client}@{number:06d}.safetensors"

    def versions(self, kind: Literal["sum", "last_local"], client: int) -> list[tuple[int, Path]]:
        """Those that there are, by round."""
        found = self.rows(kind).glob(f"{client}@*.safetensors")
        return sorted((int(path.stem.partition("@")[2]), path) for path in found)


class History:
    """What a server kept of one training.

    Args:
        folder: that `fedunlearn.backends.recorded.Recorder` has written.

    Raises:
        HistoryError: it is none, or it was cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(Path(folder))
        self._about = read_json(self.layout.complete)
        if not self._about:
            how = "was cut short: let its training go on to its end" if self.layout.begun.exists() else "is none"
            raise HistoryError(f"the history in {folder} {how}, or train anew with a Recorder")
        if self._about.get("format") != FORMAT:
            raise HistoryError(f"the history in {folder} has format {self._about.get('format')!r}, not {FORMAT}")
        self._erase_leftovers()

    @property
    def kinds(self) -> frozenset[HistoryKind]:
        """What was kept; "updates" serves "norms" too."""
        kinds = frozenset[HistoryKind](self._about["kinds"])
        return kinds | {"norms"} if "updates" in kinds else kinds

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """Of whom something is kept."""
        gone = set(self._about["forgotten"])
        return tuple(client for client in self._about["clients"] if client not in gone)

    def leads_to(self, weights: Weights) -> bool:
        """Whether this is the history of the training that ended with these weights."""
        return bool(self._about["model"] == weights.digest())

    @cached_property
    def initial(self) -> Weights:
        """The model before the first kept round."""
        try:
            return load_weights(self.layout.initial)
        except (CheckpointError, OSError) as error:
            raise self._broken(self.layout.initial) from error

    @cached_property
    def rounds(self) -> Sequence[Kept]:
        """The kept rounds, in order."""
        if "norms" not in self.kinds:
            raise HistoryError(f"the history in {self.layout.folder} has no norms and no updates")
        every = "updates" in self._about["kinds"]
        found: list[Kept] = []
        for path in sorted(self.layout.segments.glob("*.safetensors")):
            content = self._read(path)
            for number, samples, norms in zip(*(content[n] for n in ("numbers", "samples", "norms")), strict=True):
                found.append(self._kept(int(number), samples, norms, updates=every or not found))
        return tuple(found)

    @property
    def sums(self) -> Mapping[ClientId, Weights]:
        """Sum over rounds of each client's share times its update; read when asked for."""
        return self._rows("sum", lambda content: self.initial.with_vector(content["row"]))

    @property
    def last(self) -> Mapping[ClientId, tuple[Weights, float]]:
        """Each client's last local model (parameters; buffers are the initial model's) with its share in that round."""
        return self._rows(
            "last_local", lambda content: (self.initial.with_vector(content["row"]), float(content["share"]))
        )

    def nbytes(self, kind: HistoryKind) -> int:
        """Bytes of storage that a kind takes, headers of files left out: those that a method which needs it pays."""
        if kind in ("norms", "updates"):
            rounds = self.rounds if kind == "updates" and kind in self.kinds else self.rounds[:1]
            models = 1 + sum(len(kept.updates) for kept in rounds)
            norms = sum(len(kept.samples) for kept in self.rounds) * len(self.initial.parameters) * _NORM_BYTES
            return models * self.initial.parameter_bytes + norms
        return len(self.sums if kind == "sum" else self.last) * self.initial.parameter_bytes

    def forget(self, clients: Iterable[ClientId], weights: Weights) -> History:
        """What is left after these clients were forgotten and ``weights`` is the model: all that is theirs is erased.

        Norms and updates are worth as much for a second request as for the first: FedEraser's replay starts from the
        initial model and asks for nothing that came later. Sums and last local models are not: what a client added
        to a model that has since been changed and trained on cannot be subtracted from it, so both are dropped.
        A process that is killed meanwhile leaves a history that finishes erasing when it is opened.

        Raises:
            HistoryError: it knows no such client, or nothing would be left.
        """
        gone = sorted(set(clients))
        if strangers := sorted(set(gone) - set(self.clients)):
            raise HistoryError(f"the history knows no client {', '.join(strangers)}")
        kinds = [kind for kind in self._about["kinds"] if kind in ("norms", "updates")]
        if not kinds:
            raise HistoryError(
                "sums and last local models are worth nothing once the model was changed: "
                f"remove {self.layout.folder}, and record anew where training goes on"
            )
        forgotten = [*self._about["forgotten"], *gone]
        write_json(
            self.layout.complete, {**self._about, "kinds": kinds, "forgotten": forgotten, "model": weights.digest()}
        )
        return History(self.layout.folder)

    def _erase_leftovers(self) -> None:
        for kind in ("sum", "last_local"):
            if kind not in self._about["kinds"]:
                shutil.rmtree(self.layout.folder / kind, ignore_errors=True)
        lost = [self._about["clients"].index(client) for client in self._about["forgotten"]]
        for client in lost:
            for path in (self.layout.folder / "updates").glob(f"*/{client}.safetensors"):
                path.unlink()
        for path in self.layout.segments.glob("*.safetensors") if lost else ():
            content = self._read(path)
            if content["samples"][:, lost].any():
                content["samples"][:, lost], content["norms"][:, lost] = 0, 0.0
                write_tensors(path, content)

    def _kept(self, number: int, samples: Tensor, norms: Tensor, *, updates: bool) -> Kept:
        names = list(self.initial.parameters)
        there = [(at, client) for at, client in enumerate(self._about["clients"]) if samples[at]]
        lengths = {client: dict(zip(names, norms[at].tolist(), strict=True)) for at, client in there}
        paths = {client: self.layout.updates(number) / f"{at}.safetensors" for at, client in there} if updates else {}
        read = _Lazy(paths, lambda path: self.initial.with_vector(self._read(path)["row"]))
        return Kept(number, {client: int(samples[at]) for at, client in there}, lengths, read)

    def _rows(self, kind: Literal["sum", "last_local"], made: Callable[[dict[str, Tensor]], Any]) -> Mapping[Any, Any]:
        if kind not in self.kinds:
            raise HistoryError(f"the history in {self.layout.folder} has no {kind}")
        found = {
            client: self.layout.versions(kind, at)[-1:]
            for at, client in enumerate(self._about["clients"])
            if client in self.clients
        }
        paths = {client: versions[0][1] for client, versions in found.items() if versions}
        return _Lazy(paths, lambda path: made(self._read(path)))

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            return read_tensors(path)
        except (SafetensorError, OSError) as error:
            raise self._broken(path) from error

    def _broken(self, path: Path) -> HistoryError:
        return HistoryError(f"{path.name} of the history in {self.layout.folder} is broken or not there: train anew")


def kept_bytes(kind: HistoryKind, *, message: int, tensors: int, clients: int, rounds: int) -> int:
    """What `History.nbytes` will be, before anything was trained.

    Args:
        kind: of history.
        message: bytes of a model's parameters.
        tensors: that the network has.
        clients: that take part in every round.
        rounds: of which something is kept.
    """
    norms = clients * rounds * tensors * _NORM_BYTES
    return {
        "norms": message * (1 + clients) + norms,
        "updates": message * (1 + clients * rounds) + norms,
        "sum": message * clients,
        "last_local": message * clients,
    }[kind]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, copied out of it."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping


class _Lazy(Mapping[ClientId, Any]):
    """Files that are read when they are asked for, and not kept."""

    def __init__(self, paths: Mapping[ClientId, Path], read: Callable[[Path], Any]) -> None:
        self._paths, self._read = paths, read

    def __getitem__(self, client: ClientId) -> Any:
        return self._read(self._paths[client])

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def norms_of(update: Weights) -> Tensor:
    """Euclidean norm of each tensor, ``(L,)`` float32."""
    return torch.stack([tensor.double().norm() for tensor in update.parameters.values()]).float()
