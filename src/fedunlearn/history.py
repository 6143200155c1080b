"""What a server may have kept of its training: some methods need it, NoT does not.

A history is a folder, written by `fedunlearn.backends.recorded` while a federation trains and read here lazily, one
model at a time. It is worth something only for the model that its training led to: `Task` refuses any other.
"""

from __future__ import annotations

import hashlib
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

from fedunlearn.atomic import FileError, atomic_write, read_json, write_json
from fedunlearn.checkpoint import CheckpointError, load_weights, read_metadata, save_weights
from fedunlearn.federation import ClientId
from fedunlearn.weights import Weights

__all__ = [
    "FORMAT",
    "KINDS",
    "ROWS",
    "History",
    "HistoryError",
    "HistoryKind",
    "Kept",
    "Layout",
    "kept_bytes",
    "norms_of",
    "read_about",
    "read_tensors",
    "write_initial",
    "write_tensors",
]

HistoryKind = Literal["norms", "sum", "last_local", "updates"]
KINDS: tuple[HistoryKind, ...] = get_args(HistoryKind)
"""``norms``: of each client's updates, with the first round's updates; ``sum``: over rounds of share times update;
``last_local``: each client's last local model; ``updates``: all of them, which serves ``norms`` too."""

FORMAT = 1
_NORM_BYTES = 4  # float32
_DIGEST = "fedunlearn.digest"  # metadata key of each file's own, so that a flipped bit is no other history

ROWS: tuple[Literal["sum", "last_local"], ...] = ("sum", "last_local")
_ENTRIES = ("clients", "samples", "norms")
"""What a segment holds of each update: of whom (position), behind it, and ``(L,)``; beside them the kept rounds'
``numbers`` and ``counts`` of updates. So whoever took no part takes no space."""


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
    def flushed(self) -> Path:
        """After how many rounds training can go on: those of the last two flushes."""
        return self.folder / "flushed.json"

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
        """Norms of several rounds each, named by the last round at the time; one for all once training has ended."""
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
        """A client's, as it was after a round that it took part in."""
        return self.rows(kind) / f"{client}@{number:06d}.safetensors"

    def versions(self, kind: Literal["sum", "last_local"]) -> dict[int, list[tuple[int, Path]]]:
        """Each client's, by round."""
        found: dict[int, list[tuple[int, Path]]] = {}
        for path in self.rows(kind).glob("*@*.safetensors"):
            client, _, number = path.stem.partition("@")
            found.setdefault(int(client), []).append((int(number), path))
        return {client: sorted(found[client]) for client in sorted(found)}

    def sweep(self) -> None:
        """Remove what killed processes have left of files that they were writing."""
        for path in self.folder.rglob(".*.tmp"):
            path.unlink()


class History:
    """What a server kept of one training.

    Args:
        folder: that `fedunlearn.backends.recorded.Recorder` has written.

    Raises:
        HistoryError: it is none, or it was cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(Path(folder))
        self._about = read_about(self.layout.complete)
        if not self._about and self.layout.begun.exists():
            raise HistoryError(
                f"the history in {folder} was cut short: let its training go on to its end, or train anew"
            )
        if not self._about:
            raise HistoryError(f"there is no history in {folder}: train with a Recorder")
        if self._about.get("format") != FORMAT:
            found = self._about.get("format")
            raise HistoryError(
                f"the history in {folder} has format {found!r}, not {FORMAT}: train anew with a Recorder"
            )
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
        path = self.layout.initial
        try:
            weights, told = load_weights(path), read_metadata(path)
        except (CheckpointError, OSError) as error:
            raise self._broken(path) from error
        if told.get(_DIGEST) != weights.digest():
            raise self._broken(path)
        return weights

    @cached_property
    def rounds(self) -> Sequence[Kept]:
        """The kept rounds, in order."""
        self._require("norms")
        content = self._read(self.layout.segment(self._about["rounds"] - 1))
        each = [torch.split(content[name], content["counts"].tolist()) for name in _ENTRIES]
        return tuple(self._kept(*kept) for kept in zip(content["numbers"].tolist(), *each, strict=True))

    @property
    def sums(self) -> Mapping[ClientId, Weights]:
        """Sum over rounds of each client's share times its update; read when asked for."""
        return self._rows("sum", lambda content, _: self.initial.with_vector(content["row"]))

    @property
    def last(self) -> Mapping[ClientId, tuple[Weights, float]]:
        """Each client's last local model with its share in the last round; buffers are the initial model's.

        Of who had no part in that round the share is 0: its older model is not in the mean that training ended with.
        """
        final = self._about["rounds"] - 1

        def made(content: dict[str, Tensor], number: int) -> tuple[Weights, float]:
            return self.initial.with_vector(content["row"]), float(content["share"]) if number == final else 0.0

        return self._rows("last_local", made)

    def nbytes(self, kind: HistoryKind) -> int:
        """Bytes of storage that a kind takes, headers of files left out: those that a method which needs it pays.

        A model counts as the bytes of its parameters, an update's norms as float32; whose they are and the samples
        behind them count as headers. (A half-precision model's sum and last local models lie on the disk in float32.)

        Raises:
            HistoryError: it was not kept.
        """
        self._require(kind)
        model = self.initial.parameter_bytes
        if kind in ("sum", "last_local"):
            return len(self.sums if kind == "sum" else self.last) * model
        updates = sum(len(kept.updates) for kept in (self.rounds if kind == "updates" else self.rounds[:1]))
        entries = sum(len(kept.samples) for kept in self.rounds)
        return (1 + updates) * model + entries * len(self.initial.parameters) * _NORM_BYTES

    def forget(self, clients: Iterable[ClientId], weights: Weights) -> History:
        """What is left after these clients were forgotten and ``weights`` is the model: all that is theirs is erased.

        Norms and updates are worth as much for a second request as for the first: FedEraser's replay starts from the
        initial model and asks for nothing that came later. Sums and last local models are not: what a client added
        to a model that has since been changed and trained on cannot be subtracted from it, so both are dropped.
        A process that is killed meanwhile leaves a history that finishes erasing when it is opened. Ids stay, so that
        the history can say of whom it knows nothing any more.

        Raises:
            TypeError: ``clients`` is one string, each of whose letters might be a client.
            HistoryError: it knows no such client, or nothing would be left.
        """
        if isinstance(clients, str):
            raise TypeError(f"clients are several: write [{clients!r}]")
        gone = sorted(set(clients))
        if strangers := sorted(set(gone) - set(self.clients)):
            raise HistoryError(f"the history knows no client {', '.join(strangers)}")
        kinds = [kind for kind in self._about["kinds"] if kind in ("norms", "updates")]
        if not kinds:
            raise HistoryError(
                "sums and last local models are worth nothing once the model was changed: "
                f"remove {self.layout.folder}, and record anew where training goes on"
            )
        about = {
            **self._about,
            "kinds": kinds,
            "took_part": {},
            "forgotten": [*self._about["forgotten"], *gone],
            "unlearnings": self._about["unlearnings"] + 1,
            "model": weights.digest(),
        }
        write_json(self.layout.complete, about)
        return History(self.layout.folder)

    def _erase_leftovers(self) -> None:
        if not self._about["unlearnings"]:
            return
        self.layout.sweep()
        for kind in ROWS:
            if kind not in self._about["kinds"] and self.layout.rows(kind).exists():
                shutil.rmtree(self.layout.rows(kind))
        lost = [self._about["clients"].index(client) for client in self._about["forgotten"]]
        for client in lost:
            for path in (self.layout.folder / "updates").glob(f"*/{client}.safetensors"):
                path.unlink()
        path = self.layout.segment(self._about["rounds"] - 1)
        content = self._read(path)
        stays = ~torch.isin(content["clients"], torch.tensor(lost, dtype=torch.int64))
        if not stays.all():
            counts = content["counts"]
            owners = torch.arange(len(counts)).repeat_interleave(counts)[stays]
            left = {name: content[name][stays] for name in _ENTRIES}
            write_tensors(path, {**content, **left, "counts": owners.bincount(minlength=len(counts))})

    def _kept(self, number: int, clients: Tensor, samples: Tensor, norms: Tensor) -> Kept:
        there = {at: self._about["clients"][at] for at in clients.tolist()}
        names = list(self.initial.parameters)
        lengths = [dict(zip(names, row, strict=True)) for row in norms.tolist()]
        with_updates = number == 0 or "updates" in self._about["kinds"]
        paths = {client: self.layout.updates(number) / f"{at}.safetensors" for at, client in there.items()}
        return Kept(
            number,
            dict(zip(there.values(), samples.tolist(), strict=True)),
            dict(zip(there.values(), lengths, strict=True)),
            _Lazy(paths if with_updates else {}, lambda path: self.initial.with_vector(self._read(path)["row"])),
        )

    def _rows(
        self, kind: Literal["sum", "last_local"], made: Callable[[dict[str, Tensor], int], Any]
    ) -> Mapping[Any, Any]:
        self._require(kind)
        took_part = self._about["took_part"]
        paths = {
            client: self.layout.row(kind, at, took_part[client])
            for at, client in enumerate(self._about["clients"])
            if client in took_part
        }
        numbers = {paths[client]: number for client, number in took_part.items() if client in paths}
        return _Lazy(paths, lambda path: made(self._read(path), numbers[path]))

    def _require(self, kind: HistoryKind) -> None:
        if kind not in self.kinds:
            kept = ", ".join(sorted(self.kinds))
            raise HistoryError(f"the history in {self.layout.folder} has {kept}, no {kind}: record it while training")

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            return read_tensors(path)
        except HistoryError as error:
            raise self._broken(path) from error

    def _broken(self, path: Path) -> HistoryError:
        name = path.relative_to(self.layout.folder)
        return HistoryError(f"{name} of the history in {self.layout.folder} is broken or not there: train anew")


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


def read_about(path: Path) -> dict[str, Any]:
    """What a file tells of a history; nothing where there is none.

    Raises:
        HistoryError: it is broken.
    """
    try:
        return read_json(path)
    except FileError as error:
        raise HistoryError(f"{error}: train anew") from error


def write_initial(path: Path, weights: Weights) -> None:
    """Write the model before the first round.

    Raises:
        CheckpointError: the file cannot be written.
    """
    save_weights(weights, path, {_DIGEST: weights.digest()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file as a whole, in a folder that is there: to make one syncs those above it."""
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as file:
        file.write(save(content, {_DIGEST: _digest(content)}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, copied out of it.

    Raises:
        HistoryError: it is not as `write_tensors` has written it, or not there.
    """
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            content = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise HistoryError(f"{path} is broken or not there ({error}): train anew") from error
    if told.get(_DIGEST) != _digest(content):
        raise HistoryError(f"{path} is broken, for it was changed since it was written: train anew")
    return content


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Lazy(Mapping[ClientId, Any]):
    """Files that are read when they are asked for, and not kept."""

    def __init__(self, paths: Mapping[ClientId, Path], read: Callable[[Path], Any]) -> None:
        self._paths, self._read = paths, read

    def __getitem__(self, client: ClientId) -> Any:
        return self._read(self._paths[client])

    def __contains__(self, client: object) -> bool:
        return client in self._paths  # the mapping's own would read the file

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def norms_of(update: Weights) -> Tensor:
    """Euclidean norm of each tensor, ``(L,)`` float32."""
    return torch.stack([tensor.double().norm() for tensor in update.parameters.values()]).float()
