"""Negating files of a folder in place, so that a crash at any instant leaves the old model or the new one.

Negation changes sign bits only, so the sign bits are all that has to be kept to undo it: a 32nd of float32 numbers, and
no assumption on how much of a write a disk keeps whole. They are on the disk, in a journal beside the files, before
the first byte changes; the journal's removal is what makes the change valid. A process that finds one whose writer is
gone undoes the change, as a database does: a command that did not come to its end did nothing. Undoing, not going on,
because whoever was told nothing will give the command again.

The journal: 8 bytes that are written last, 8 of the plan's length, 32 of a SHA-256 of all that follows: the plan as
JSON, then for each chunk of each stretch a CRC-32 of what is not sign bits, and the sign bits.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedunlearn.atomic import atomic_write
from fedunlearn.checkpoint.disk import CHUNK, Bytes, File, Stamp, remove, sync_folder, text_of
from fedunlearn.checkpoint.errors import CheckpointError, refusing
from fedunlearn.checkpoint.signs import checksum, flip, read_signs, set_signs
from fedunlearn.names import SIGNED

__all__ = [
    "INDEX",
    "JOURNAL",
    "LARGEST",
    "NOTE",
    "Change",
    "Note",
    "Plan",
    "Stretch",
    "at_work",
    "carry_out",
    "chunks",
    "settle",
]

JOURNAL = "fedunlearn-negation.journal"
"""Its name in the folder of the files. There is one a folder, so that every reader knows where to look."""

INDEX = ".safetensors.index.json"
"""How the name of an index of shards ends."""

NOTE = ".negations.json"
"""What the name of a file's note has after the file's."""

LARGEST = 100_000_000
"""Bytes of an index or a note: what the format allows a header."""

_READY = b"fedneg 1"
_HEAD = 8 + 8 + 32
_LARGEST_PLAN = 1 << 30  # bytes; a plan holds headers, of which the format allows 100 MB each


@dataclass(frozen=True)
class Stretch:
    """Bytes ``start`` to ``stop`` of a file, whole numbers of one dtype, that are negated."""

    start: int
    stop: int
    dtype: str


@dataclass(frozen=True)
class Change:
    """What happens to a file: stretches are negated, and the header's JSON becomes another of the same length."""

    name: str
    size: int
    before: str
    after: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Note:
    """A small file that is replaced as a whole: an index, or the note of a file that is changed.

    ``before`` is None where there is none yet, ``after`` where it goes.
    """

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Plan:
    """All that happens to a folder: altogether, or not at all."""

    changes: tuple[Change, ...]
    notes: tuple[Note, ...]

    @property
    def names(self) -> set[str]:
        """The files that it changes."""
        return {change.name for change in self.changes} | {note.name for note in self.notes}


@contextmanager
def at_work(folder: Path) -> Iterator[File]:
    """A new journal, empty and locked. No other process negates in the folder before this context is left.

    Who plans does so in this context: what another has done since would not be in the history.

    Raises:
        CheckpointError: another process is at work in this folder; or it cannot be written.
    """
    with _left_behind(folder) as (old, alone):
        if old is not None:
            if not alone:
                raise _busy(folder)
            if _is_ready(old):
                _undo(old, folder)
            else:
                remove(old.path)
    with _created(folder) as journal:
        _lock(journal, wait=True)  # for a reader who looks into it just now
        if not _is_in_its_place(journal):
            raise _busy(folder)  # who took it for a dead one's
        try:
            yield journal
        finally:
            with suppress(CheckpointError):
                if not _is_ready(journal):  # nothing was changed
                    remove(journal.path)


def carry_out(journal: File, plan: Plan) -> None:
    """Do what is planned; on any error, undo it. What is interrupted (Ctrl-C) is undone, or was done.

    Args:
        journal: from `at_work`.
        plan: what is to happen in its folder.

    Raises:
        CheckpointError: a file cannot be written or is another than the plan's.
    """
    folder = journal.path.parent
    try:
        stamps = _record(journal, folder, plan)
        sync_folder(folder)
    except BaseException:
        with suppress(CheckpointError):  # nothing was changed yet: undoing would change nothing either
            journal.write(0, bytes(len(_READY)))
        raise
    try:
        for change, stamp in zip(plan.changes, stamps, strict=True):
            _apply(folder, change, stamp)
        for note in plan.notes:
            _put(folder / note.name, note.after)
        remove(journal.path)
    except BaseException:
        if _is_in_its_place(journal):  # else it was done: without a journal, undoing could be broken off half-way
            _undo(journal, folder)
        raise
    try:
        sync_folder(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{', '.join(sorted(plan.names))} in {folder} were negated, but a power cut may still undo it: {error}"
        ) from error


def settle(path: Path) -> None:
    """Undo what a killed process did to a file that is about to be read.

    Raises:
        CheckpointError: a living process is at work on it; or it cannot be undone, and why.
    """
    path = Path(os.path.realpath(path))
    with _left_behind(path.parent) as (journal, alone):
        if journal is None or not _is_ready(journal):  # then its writer has changed nothing yet
            return
        if path.name not in _plan(journal).names:
            return
        if not alone:
            raise _busy(path.parent)
        _undo(journal, path.parent)


def chunks(stretch: Stretch) -> Iterator[tuple[int, int]]:
    """The places that a stretch is read and written by: starts, and bytes."""
    for start in range(stretch.start, stretch.stop, CHUNK):
        yield start, min(CHUNK, stretch.stop - start)


@contextmanager
def _created(folder: Path) -> Iterator[File]:
    with ExitStack() as stack:
        try:
            # For its owner alone: whoever cannot read it cannot read a half-negated model either.
            journal = stack.enter_context(File.created(folder / JOURNAL, mode=0o600))
        except CheckpointError as error:
            raise (_busy(folder) if isinstance(error.__cause__, FileExistsError) else error) from error.__cause__
        yield journal


@contextmanager
def _left_behind(folder: Path) -> Iterator[tuple[File | None, bool]]:
    """The journal of a folder, if there is one, and whether no living process works by it."""
    if not os.path.lexists(folder / JOURNAL):
        yield None, True
        return
    with _opened_if_there(folder / JOURNAL) as journal:
        alone = journal is not None and _lock(journal, wait=False)
        there = journal is not None and _is_in_its_place(journal)  # else its writer has just come to its end
        yield journal if there else None, alone


@contextmanager
def _opened_if_there(path: Path) -> Iterator[File | None]:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags)  # NFS locks none that is open for reading only
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            descriptor = os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        # Whoever may write into a shared folder could have others' files changed by a journal that lies.
        if hasattr(os, "geteuid") and os.fstat(descriptor).st_uid != os.geteuid():
            raise CheckpointError(
                f"{path} is another user's, who alone can undo what was begun: ask them to, or move it"
            )
        yield File(path, descriptor)
    finally:
        os.close(descriptor)


def _lock(journal: File, *, wait: bool) -> bool:
    """Whether it is ours until it is closed. The system lifts the lock of a process that dies."""
    import fcntl  # not on Windows, where nothing is negated in place

    try:
        with refusing("lock", journal.path):
            fcntl.flock(journal.descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except CheckpointError as error:
        if isinstance(error.__cause__, BlockingIOError):
            return False
        raise
    return True


def _is_in_its_place(journal: File) -> bool:
    try:
        return os.path.samestat(os.stat(journal.path, follow_symlinks=False), os.fstat(journal.descriptor))
    except FileNotFoundError:
        return False


def _busy(folder: Path) -> CheckpointError:
    return CheckpointError(f"another process negates in place in {folder}: try again when it is done")


def _record(journal: File, folder: Path, plan: Plan) -> list[Stamp]:
    """Write the journal, and return once it is on the disk; the stamps of the files that are to be changed."""
    text = json.dumps(dataclasses.asdict(plan)).encode()
    digest, place, stamps = hashlib.sha256(text), _HEAD + len(text), []
    journal.write(_HEAD, text)
    for change in plan.changes:
        with File.opened(folder / change.name, write=True) as file:
            before = change.before.encode()
            if file.size != change.size or file.read(8, len(before)).tobytes() != before:
                raise CheckpointError(f"{file.path} changed while it was read: try again")
            for stretch in change.stretches:
                for start, size in chunks(stretch):
                    numbers = file.read(start, size)
                    kept = checksum(numbers, stretch.dtype).to_bytes(4, "little")
                    kept += read_signs(numbers, stretch.dtype).tobytes()
                    digest.update(kept)
                    journal.write(place, kept)
                    place += len(kept)
            stamps.append(file.stamp)
    journal.write(8, len(text).to_bytes(8, "little") + digest.digest())
    journal.sync()
    journal.write(0, _READY)  # what has this is whole: a damaged journal is told from one that never was
    journal.sync()
    return stamps


def _apply(folder: Path, change: Change, stamp: Stamp) -> None:
    with File.opened(folder / change.name, write=True) as file:
        if file.stamp != stamp:
            raise CheckpointError(f"{file.path} changed while it was read: try again")
        if change.after != change.before:
            file.write(8, change.after.encode())
        for stretch in change.stretches:
            for start, size in chunks(stretch):
                numbers = file.read(start, size)
                flip(numbers, stretch.dtype)
                file.write(start, numbers)
        file.sync()


def _put(path: Path, text: str | None) -> None:
    if text is None:
        remove(path)
        sync_folder(path.parent)  # before the journal goes, or a power cut could bring back the one without the other
        return
    with refusing("write", path), atomic_write(path) as file:
        if path.exists():  # whoever might not read the old one is not to read the new one
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        file.write(text.encode())


def _is_ready(journal: File) -> bool:
    return journal.size > _HEAD and journal.read(0, 8).tobytes() == _READY


def _undo(journal: File, folder: Path) -> None:
    """Put everything back that a journal tells of. Killed in the middle, it is done anew."""
    plan = _plan(journal)
    try:
        for change, kept in _kept(journal, plan):  # all of it first: what cannot be undone is not begun
            _check(folder, change, kept)
        for note in plan.notes:
            _check_note(folder, note)
        for change, kept in _kept(journal, plan):
            _restore(folder, change, kept)
        for note in plan.notes:
            _restore_note(folder, note)
        remove(journal.path)
    except CheckpointError as error:
        raise CheckpointError(
            f"a negation in {folder} that was broken off, of {', '.join(sorted(plan.names))}, could not be undone: "
            f"{error} (the next command that reads them undoes it; or replace them, and then remove {journal.path})"
        ) from error
    sync_folder(folder)


def _plan(journal: File) -> Plan:
    """What a journal, which may be anybody's, says that it is about."""
    from pydantic import TypeAdapter

    damaged = CheckpointError(
        f"the journal {journal.path} of a negation that was broken off is damaged: restore the files beside it, "
        "and then remove it"
    )
    head = journal.read(0, _HEAD).tobytes()
    length = int.from_bytes(head[8:16], "little")
    if length > min(_LARGEST_PLAN, journal.size - _HEAD):
        raise damaged
    digest = hashlib.sha256()
    for start, size in chunks(Stretch(_HEAD, journal.size, "")):
        digest.update(journal.read(start, size).data)
    if digest.digest() != head[16:48]:
        raise damaged
    try:
        plan: Plan = TypeAdapter(Plan).validate_json(journal.read(_HEAD, length).tobytes())
        length += sum(_kept_bytes(stretch) for change in plan.changes for stretch in change.stretches)
    except (ValueError, KeyError):  # pydantic's error is a ValueError
        raise damaged from None
    if not _is_sound(plan) or length + _HEAD != journal.size:
        raise damaged
    return plan


def _is_sound(plan: Plan) -> bool:
    """Whether it is about what a negation changes, and nothing else: a folder that was sent may lie."""
    noted = {f"{change.name}{NOTE}" for change in plan.changes}
    return (
        len(plan.names) == len(plan.changes) + len(plan.notes)
        and all(Path(name).name == name and "\0" not in name for name in plan.names)
        and all(note.name in noted or note.name.endswith(INDEX) for note in plan.notes)
        and all(map(_fits, plan.changes))
    )


def _fits(change: Change) -> bool:
    header = len(change.before.encode())
    return len(change.after.encode()) == header and all(
        8 + header <= one.start <= one.stop <= change.size and (one.stop - one.start) % SIGNED[one.dtype] == 0
        for one in change.stretches
    )


def _kept_bytes(stretch: Stretch) -> int:
    whole, rest = divmod(stretch.stop - stretch.start, CHUNK)  # by a formula: a stretch may claim to be endless
    return whole * (4 + _sign_bytes(CHUNK, stretch.dtype)) + (4 + _sign_bytes(rest, stretch.dtype) if rest else 0)


def _sign_bytes(size: int, dtype: str) -> int:
    return -(-size // SIGNED[dtype] // 8)


def _kept(journal: File, plan: Plan) -> Iterator[tuple[Change, Iterator[Any]]]:
    """Each change, and of each of its chunks: start, bytes, dtype, CRC-32 and sign bits, as the journal keeps them."""
    place = _HEAD + int.from_bytes(journal.read(8, 8).tobytes(), "little")

    def of(change: Change) -> Iterator[tuple[int, int, str, int, Bytes]]:
        nonlocal place
        for stretch in change.stretches:
            for start, size in chunks(stretch):
                kept = journal.read(place, 4 + _sign_bytes(size, stretch.dtype))
                place += len(kept)
                yield start, size, stretch.dtype, int.from_bytes(kept[:4].tobytes(), "little"), kept[4:]

    for change in plan.changes:
        yield change, of(change)


def _check(folder: Path, change: Change, kept: Iterator[Any]) -> None:
    """Whether a file is the one that was changed: old, new, or any mixture of the two."""
    path = folder / change.name
    other = CheckpointError(f"{path} is another file than the one that was negated")
    before, after = (np.frombuffer(text.encode(), np.uint8) for text in (change.before, change.after))
    with File.opened(path) as file:
        if file.size != change.size:
            raise other
        now = file.read(8, len(before))
        if not np.all((now == before) | (now == after)):
            raise other
        for start, size, dtype, crc, _ in kept:
            if checksum(file.read(start, size), dtype) != crc:
                raise other


def _restore(folder: Path, change: Change, kept: Iterator[Any]) -> None:
    with File.opened(folder / change.name, write=True) as file:
        if change.after != change.before:
            file.write(8, change.before.encode())
        for start, size, dtype, _, signs in kept:
            numbers = file.read(start, size)
            set_signs(numbers, signs, dtype)
            file.write(start, numbers)
        file.sync()


def _check_note(folder: Path, note: Note) -> None:
    if text_of(folder / note.name, LARGEST) not in (note.before, note.after):
        raise CheckpointError(f"{folder / note.name} was changed since")


def _restore_note(folder: Path, note: Note) -> None:
    if text_of(folder / note.name, LARGEST) != note.before:
        _put(folder / note.name, note.before)
