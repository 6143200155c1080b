"""Which files a checkpoint consists of: one, or the shards that an index names; and what they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedunlearn.checkpoint.disk import File, Stamp
from fedunlearn.checkpoint.errors import CheckpointError, refusing
from fedunlearn.checkpoint.header import (
    ALIASES,
    DTYPES,
    NEGATIONS,
    Header,
    History,
    as_history,
    history,
    once_each,
    opened,
    texts,
)
from fedunlearn.checkpoint.journal import INDEX, LARGEST, settle
from fedunlearn.checkpoint.note import noted
from fedunlearn.names import Layer, guess_kinds

__all__ = [
    "PICKLED",
    "Checkpoint",
    "Index",
    "Member",
    "find",
    "read_layers",
    "read_metadata",
    "real",
    "told_by_an_index",
]

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""How names of pickled checkpoints end."""


@dataclass(frozen=True)
class Member:
    """A file of a checkpoint, as it was when it was found.

    Attributes:
        noted: what the note beside it tells of its sign history, after what its metadata do.
    """

    path: Path
    header: Header
    stamp: Stamp
    noted: History

    @property
    def history(self) -> History:
        """The negations of this file."""
        return history(self.path, self.header.metadata) + self.noted


@dataclass(frozen=True)
class Index:
    """The file that says which shard holds which tensor."""

    path: Path
    text: str
    content: Mapping[str, Any]

    @property
    def history(self) -> History:
        """The negations of the whole set: an index can grow where the shards' headers cannot."""
        return as_history(self.path, self.content["metadata"].get(NEGATIONS, []))

    def with_history(self, names: History) -> str:
        """The text with another history; all else stays."""
        metadata = {**self.content["metadata"], NEGATIONS: names}
        return json.dumps({**self.content, "metadata": metadata}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """A file (``index`` is None), or a sharded set.

    Attributes:
        history: of all: the index's, then what was negated in single shards.
    """

    members: tuple[Member, ...]
    index: Index | None
    history: History

    @property
    def path(self) -> Path:
        """The file, or the index."""
        return self.members[0].path if self.index is None else self.index.path

    @property
    def layers(self) -> list[Layer]:
        """All tensors, shard by shard in the order of their bytes; their kinds are guessed."""
        entries = {name: entry for member in self.members for name, entry in member.header.tensors.items()}
        kinds = guess_kinds({name: tuple(entry["shape"]) for name, entry in entries.items()})
        return [
            Layer(place, name, tuple(entry["shape"]), DTYPES.get(entry["dtype"], entry["dtype"]), kinds[name])
            for place, (name, entry) in enumerate(entries.items())
        ]

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of tied tensors."""
        found: dict[str, str] = {}
        for member in self.members:
            found |= texts(member.path, member.header.metadata, ALIASES, {})
        held = {name for member in self.members for name in member.header.tensors}
        if odd := sorted(set(found.values()) - held):
            raise CheckpointError(f"{self.path}: its metadata {ALIASES!r} leads to {odd[0]}, which it lacks: mend it")
        return found


def find(path: Path) -> Checkpoint:
    """The checkpoint that a file, an index, or a folder with one of either is.

    Raises:
        CheckpointError: there is none or more than one; a file is no sound one; or files and index disagree.
    """
    path = _meant(path) if path.is_dir() else path
    if path.name.endswith(INDEX):
        return _sharded(path)
    member = _member(path)
    return Checkpoint((member,), None, member.history)


def read_layers(path: Path | str) -> list[Layer]:
    """The tensors of a checkpoint in the order of their bytes; their kinds are guessed.

    What a negation in place left behind when it was killed is undone first, as by all that read a checkpoint here.

    Args:
        path: a safetensors file, the index of a sharded set, or a folder with one of either.

    Raises:
        CheckpointError: it is no sound checkpoint.
    """
    return find(Path(path)).layers


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        CheckpointError: it is no sound safetensors file.
    """
    with opened(Path(path)) as (_, header):
        return dict(header.metadata)


def told_by_an_index(path: Path) -> History:
    """What the index of a set tells, of which a file that was named alone is a shard; a broken one tells nothing."""
    told: History = ()
    for beside in sorted(path.parent.glob(f"*{INDEX}")):
        with suppress(CheckpointError):
            index = _index(beside)
            told += index.history if path.name in index.content["weight_map"].values() else ()
    return told


def real(path: Path, folder: Path) -> Path:
    """Where a name in a folder leads to.

    A link may lead into the folder itself; or, from a snapshot of Hugging Face's cache, to the blobs beside it.

    Raises:
        CheckpointError: it leads elsewhere.
    """
    resolved, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(resolved.is_relative_to(one) for one in homes):
        raise CheckpointError(f"{path} leads out of {folder}, to {resolved}: put the file itself there")
    return resolved


def _meant(folder: Path) -> Path:
    """The one index, or else the one safetensors file, in a folder."""
    with refusing("read", folder):
        names = sorted(os.listdir(folder))
    found = [name for name in names if name.endswith(INDEX)] or [n for n in names if n.endswith(".safetensors")]
    if not found and any(name.endswith((*PICKLED, ".bin.index.json")) for name in names):
        raise CheckpointError(f"{folder} holds a pickled checkpoint: save it with safe_serialization=True first")
    if not found:
        raise CheckpointError(f"{folder} holds no safetensors file: name a checkpoint")
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds {', '.join(found[:3])}{', ...' * (len(found) > 3)}: name one of them")
    real(folder / found[0], folder)
    return folder / found[0]


def _sharded(path: Path) -> Checkpoint:
    index = _index(path)
    shards: dict[str, set[str]] = {}
    for tensor, name in index.content["weight_map"].items():
        shards.setdefault(name, set()).add(tensor)
    for name in shards:
        _require_plain(path, name)
    members = []
    for name in sorted(shards):
        member = _member(path.parent / name)
        held = member.header.tensors.keys()
        if odd := sorted(shards[name] ^ held):
            promised = "lacks" if odd[0] in shards[name] else "also holds"
            raise CheckpointError(f"{member.path} {promised} {odd[0]}, unlike {path.name}: fetch both again")
        members.append(member)
    past = index.history
    for member in members:
        past += member.history
    return Checkpoint(tuple(members), index, past)


def _index(path: Path) -> Index:
    settle(path)
    with File.opened(path) as file:
        if file.size > LARGEST:
            raise CheckpointError(f"{path} is no index of shards: it has {file.size:,} bytes")
        content = file.read(0, file.size).tobytes()
    wrong = CheckpointError(f"{path} is no index of shards: fetch or save it again")
    try:
        text = content.decode()
        entries = json.loads(text, object_pairs_hook=once_each)
        json.dumps(entries, ensure_ascii=False).encode()  # half a surrogate pair is JSON, and cannot be written back
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of shards ({error}): fetch or save it again") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("weight_map"), dict) or not entries["weight_map"]:
        raise wrong
    entries.setdefault("metadata", {})
    names = entries["weight_map"].values()
    if not isinstance(entries["metadata"], dict) or not all(isinstance(name, str) for name in names):
        raise wrong
    if not isinstance(entries["metadata"].get(NEGATIONS, []), list):
        raise CheckpointError(f"{path}: its metadata {NEGATIONS!r} is no list of lists of names: remove or mend it")
    return Index(path, text, entries)


def _require_plain(index: Path, name: str) -> None:
    if name.endswith(PICKLED):
        raise CheckpointError(f"{index} names the pickled shard {name!r}: save the set as safetensors first")
    if not name.endswith(".safetensors") or Path(name).name != name or "\0" in name:
        raise CheckpointError(f"{index} names the shard {name!r}: a shard is a .safetensors file in the index's folder")
    real(index.parent / name, index.parent)


def _member(path: Path) -> Member:
    with opened(path) as (file, header):
        return Member(path, header, file.stamp, noted(file, header))
