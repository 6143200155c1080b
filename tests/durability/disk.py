"""What a disk may hold after a power cut, from the recorded write steps of a process (`shim.c`).

The model is POSIX's, which promises less than any file system keeps: of a file's data that was not synced any part may
be there, the last write torn; of names (creations, renames, removals) that were not followed by a sync of their folder
any subset. A rename is whole or not at all.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Cut", "Disk", "How", "Step", "read_log"]

How = Literal["nothing", "everything", "in order", "anything"]
"""Of what was not synced: no byte, all, names up to some instant with any data, any names with any data."""

_HEAD = struct.Struct("<c7xQqIIII")


@dataclass(frozen=True)
class Step:
    """A system call: C created, W wrote, T cut to a length, S synced, R renamed, L linked, U removed, D made a folder.

    M is no step but a mark: something that the process said at that instant.
    """

    kind: str
    node: int
    offset: int
    path: str
    other: str
    data: bytes


def read_log(path: Path) -> list[Step]:
    """The steps that a process has done, and its marks, in order."""
    raw, at, found = path.read_bytes(), 0, []
    while at + _HEAD.size <= len(raw):
        kind, node, offset, *lengths, _ = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        parts = []
        for length in lengths:
            parts.append(raw[at : at + length])
            at += length
        name, other = (part.decode("utf-8", "surrogateescape") for part in parts[:2])
        found.append(Step(kind.decode(), node, offset, name, other, parts[2]))
    return found


@dataclass
class _Node:
    """A file or a folder: as it is, as it is on the disk for sure, and what lies in between."""

    folder: bool
    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut to this length


@dataclass(eq=False)
class _Change:
    """Names that change together: (folder, name) to a node, or to nothing where it was that node's."""

    names: list[tuple[int, str, int, bool]]  # folder, name, node, whether it is there afterwards
    safe: bool = False


@dataclass(frozen=True)
class Cut:
    """A disk after a power cut: files by path, None for a folder."""

    entries: dict[str, bytes | None]

    def lay_out(self, folder: Path) -> None:
        """Write it, for the owner's eyes only, as the keys and the outboxes want it."""
        folder.mkdir(mode=0o700)
        for name, content in self.entries.items():
            path = folder / name
            if content is None:
                path.mkdir(mode=0o700)
            else:
                path.touch(mode=0o600)
                path.write_bytes(content)


class Disk:
    """A folder whose steps are followed one by one.

    Args:
        root: as the process knew it.
        before: where a copy of it lies as it was before the first step; all of that is safe.
    """

    def __init__(self, root: Path, before: Path) -> None:
        self._root = str(root)
        self._nodes: list[_Node] = [_Node(folder=True)]
        self._by_number: dict[int, int] = {}
        self._live: dict[tuple[int, str], int] = {}
        self._safe: dict[tuple[int, str], int] = {}
        self._changes: list[_Change] = []
        for path in sorted(before.rglob("*")):
            content = None if path.is_dir() else path.read_bytes()
            node = self._new(content is None)
            if content is not None:
                self._nodes[node].data, self._nodes[node].safe = bytearray(content), content
            self._live[self._place(f"{root}/{path.relative_to(before).as_posix()}")] = node
        self._safe = dict(self._live)

    def follow(self, step: Step) -> None:
        """Do one step."""
        match step.kind:
            case "C" | "D":
                node = self._new(step.kind == "D")
                self._by_number[step.node] = node
                self._change((*self._place(step.path), node, True))
            case "W" | "T":
                node = self._nodes[self._of(step)]
                change = (step.offset, step.data if step.kind == "W" else None)
                node.pending.append(change)
                _apply(node.data, change)
            case "S":
                self._sync(self._of(step))
            case "R":
                node = self._find(step.path)
                self._change((*self._place(step.path), node, False), (*self._place(step.other), node, True))
            case "L":
                self._change((*self._place(step.other), self._find(step.path), True))
            case "U":
                self._change((*self._place(step.path), self._find(step.path), False))

    @property
    def live(self) -> Cut:
        """As every process sees it: what is left by one that was killed."""
        return Cut(dict(self._walk(self._live, [bytes(node.data) for node in self._nodes])))

    def cut(self, how: How, rng: random.Random) -> Cut:
        """As it may be when the power comes back."""
        waiting = [change for change in self._changes if not change.safe]
        if how == "in order":
            kept = set(waiting[: rng.randint(0, len(waiting))])
        else:
            kept = {change for change in waiting if how == "everything" or (how == "anything" and rng.random() < 0.5)}
        names = dict(self._safe)
        for change in self._changes:
            if change.safe or change in kept:
                _rename(names, change)
        return Cut(dict(self._walk(names, [_torn(node, how, rng) for node in self._nodes])))

    def _new(self, folder: bool) -> int:
        self._nodes.append(_Node(folder))
        return len(self._nodes) - 1

    def _place(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self._find(folder), name

    def _find(self, path: str) -> int:
        node = 0
        for name in path.removeprefix(self._root).strip("/").split("/"):
            node = self._live[node, name] if name else node
        return node

    def _of(self, step: Step) -> int:
        if step.node not in self._by_number:  # it was there before
            self._by_number[step.node] = self._find(step.path)
        return self._by_number[step.node]

    def _change(self, *names: tuple[int, str, int, bool]) -> None:
        change = _Change(list(names))
        self._changes.append(change)
        _rename(self._live, change)

    def _sync(self, number: int) -> None:
        node = self._nodes[number]
        if not node.folder:
            node.safe = bytes(node.data)
            node.pending.clear()
            return
        for change in self._changes:
            change.safe = change.safe or any(folder == number for folder, *_ in change.names)
        while self._changes and self._changes[0].safe:  # in order, so that later ones find what they replace
            _rename(self._safe, self._changes.pop(0))

    def _walk(
        self, names: dict[tuple[int, str], int], contents: Sequence[bytes], folder: int = 0, start: str = ""
    ) -> Iterator[tuple[str, bytes | None]]:
        for (parent, name), node in sorted(names.items()):
            if parent != folder:
                continue
            path = f"{start}{name}"
            yield path, None if self._nodes[node].folder else contents[node]
            if self._nodes[node].folder:
                yield from self._walk(names, contents, node, f"{path}/")


def _rename(names: dict[tuple[int, str], int], change: _Change) -> None:
    for folder, name, node, there in change.names:
        if there:
            names[folder, name] = node
        elif names.get((folder, name)) == node:
            del names[folder, name]


def _apply(data: bytearray, change: tuple[int, bytes | None]) -> None:
    offset, written = change
    end = offset + len(written or b"")
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    if written is None:
        del data[offset:]
    else:
        data[offset:end] = written


def _torn(node: _Node, how: How, rng: random.Random) -> bytes:
    if how == "everything":
        return bytes(node.data)
    data = bytearray(node.safe)
    if how != "nothing":
        for offset, written in node.pending:
            chance = rng.random()
            if chance < 0.4 or (written is None and chance < 0.7):
                _apply(data, (offset, written))
            elif written and chance < 0.7:
                _apply(data, (offset, written[: rng.randrange(len(written))]))
    return bytes(data)
