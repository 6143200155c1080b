"""A negated checkpoint beside its source: the file system copies, and only what is negated passes through here."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from fedunlearn.checkpoint.choice import Choice
from fedunlearn.checkpoint.disk import File, copy, sync_folder
from fedunlearn.checkpoint.errors import CheckpointError, refusing
from fedunlearn.checkpoint.found import PICKLED, Checkpoint, Member, real
from fedunlearn.checkpoint.header import opened
from fedunlearn.checkpoint.journal import JOURNAL, chunks
from fedunlearn.checkpoint.note import note_of
from fedunlearn.checkpoint.signs import flip

__all__ = ["files_of", "mode_of", "negated_file", "negated_folder"]

_WEIGHTS = (".safetensors", *PICKLED, ".h5", ".keras", ".msgpack", ".gguf", ".onnx", ".onnx_data")
"""How names of files end that hold a model, or an optimiser's averages over its gradients."""

_OTHERS = ("training_args.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""Pickles that Hugging Face's trainer writes, which hold none."""

_LEFT_BEHIND = re.compile(r"\.[0-9a-f]{16}\.tmp")
"""What a process that was killed has half-written: by `fedunlearn.atomic`'s name for it."""


def negated_file(choice: Choice, member: Member, target: File) -> None:
    """Write one file of a checkpoint, negated, into an empty one."""
    text = choice.header_text(member)
    moved = len(text) - len(member.header.text)
    with opened(member.path) as (file, header):
        if file.stamp != member.stamp:
            raise CheckpointError(f"{member.path} changed while it was read: try again")
        copy(file, target, 0 if not moved else header.start, file.size, 0 if not moved else header.start + moved)
        if text != header.text:
            target.write(0, len(text).to_bytes(8, "little") + text)
    for stretch in choice.stretches(member):
        for start, size in chunks(stretch):
            numbers = target.read(start + moved, size)
            flip(numbers, stretch.dtype)
            target.write(start + moved, numbers)


def negated_folder(choice: Choice, output: Path) -> int:
    """Write a checkpoint's whole folder, negated, into a new one: all of it, or nothing.

    Returns:
        The bytes of its files with tensors.

    Raises:
        CheckpointError: it cannot be read or written, or it holds the model a second time.
    """
    checkpoint = choice.checkpoint
    folder = checkpoint.path.parent
    if os.path.lexists(output):
        raise CheckpointError(f"{output} exists: choose another name, or remove it first")
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
        raise CheckpointError(f"{output} lies in {folder} itself: write beside it")
    names = list(files_of(checkpoint))
    members = {member.path.name: member for member in checkpoint.members}
    size = 0
    with _built(output) as new:
        for name in names:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            with File.created(new / name, mode=mode_of(folder / name)) as target:
                if str(name) in members:
                    negated_file(choice, members[str(name)], target)
                    size += target.size
                elif checkpoint.index is not None and str(name) == checkpoint.index.path.name:
                    target.write(0, choice.index_text(checkpoint.index).encode())
                else:
                    with File.opened(real(folder / name, folder)) as file:
                        copy(file, target, 0, file.size, 0)
                target.sync()
    return size


def mode_of(path: Path) -> int:
    """A file's permissions, which its negated copy is not to exceed."""
    with refusing("read", path):
        return stat.S_IMODE(path.stat().st_mode)


def files_of(checkpoint: Checkpoint) -> Iterator[Path]:
    """The files of a checkpoint's folder that belong to it, by their names in it.

    Raises:
        CheckpointError: one may hold the model a second time, or a folder cannot be read.
    """
    folder = checkpoint.path.parent
    own = {member.path for member in checkpoint.members}
    left_out = {folder / JOURNAL, *map(note_of, own)}  # the history goes where all readers of the new file find it
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise CheckpointError(f"{Path(place) / name} is a link to a folder: put the folder itself there")
        # Those of version control and of download caches hold the weights that are to be negated, or vouch for them.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place) / name
            if path in left_out or _LEFT_BEHIND.fullmatch(name):
                continue
            known = path in own or any(fnmatchcase(name, pattern) for pattern in _OTHERS)
            if not known and name.endswith(_WEIGHTS):
                raise CheckpointError(f"{path} may hold the same model, and would not be negated: move it away first")
            yield path.relative_to(folder)


def _unreadable(error: OSError) -> None:
    with refusing("read", Path(error.filename)):
        raise error


@contextmanager
def _built(output: Path) -> Iterator[Path]:
    """A folder beside ``output``, which is put in its place once all is in it."""
    new = output.parent / f".{secrets.token_hex(8)}.tmp"
    with refusing("write", output):
        new.mkdir()
        try:
            yield new
            for place, _, _ in os.walk(new):
                sync_folder(Path(place))
            os.rename(new, output)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    sync_folder(output.parent)
