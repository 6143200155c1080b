"""The bytes of checkpoints on the disk: every one that is written, copied or made durable goes through here.

New files beside that are put in their place by `fedunlearn.atomic`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedunlearn.checkpoint.errors import CheckpointError, refusing

__all__ = ["CHUNK", "Bytes", "File", "Stamp", "copy", "remove", "sync_folder", "text_of"]

Bytes = npt.NDArray[np.uint8]
Stamp = tuple[int, int, int, int]
"""Device, inode, bytes and time of the last change: a file with the same ones was not changed in between."""

CHUNK = 1 << 20
"""Bytes that are in memory at once; a multiple of eight of every element."""

_BLOCK = 4096  # what file systems that share blocks between files share: at the same place within a block in both
_RANGE = 1 << 28  # bytes that the kernel copies at once, so that Ctrl-C is heard
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}


class File:
    """An open file, read and written at places. The system's errors are `CheckpointError`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    @classmethod
    @contextmanager
    def opened(cls, path: Path, *, write: bool = False, links: bool = True) -> Iterator[File]:
        """A regular file; to write, or without ``links``, no link to one: what it leads to is others' as well."""
        flags = os.O_RDWR if write else os.O_RDONLY
        if write or not links:
            flags |= os.O_NOFOLLOW
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link: put the file itself there")
        with refusing("write" if write else "read", path):
            # O_NONBLOCK: opening a pipe would wait for who writes into it.
            descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind):
                why = os.strerror(errno.EISDIR) if stat.S_ISDIR(kind) else "it is no regular file"
                raise CheckpointError(f"cannot read {path}: {why}")
            yield cls(path, descriptor)
        finally:
            os.close(descriptor)

    @classmethod
    @contextmanager
    def created(cls, path: Path, *, mode: int = 0o666) -> Iterator[File]:
        """A file that was not there."""
        with refusing("write", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            yield cls(path, descriptor)
        finally:
            os.close(descriptor)

    @property
    def size(self) -> int:
        """Its bytes."""
        return os.fstat(self.descriptor).st_size

    @property
    def stamp(self) -> Stamp:
        """Which file it is, and when it was changed."""
        found = os.fstat(self.descriptor)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def read(self, start: int, size: int) -> Bytes:
        """Exactly so many bytes, in an array of their own."""
        content = np.empty(size, np.uint8)
        done = 0
        with refusing("read", self.path):
            while done < size:
                read = os.preadv(self.descriptor, [content[done:].data], start + done)
                if read == 0:
                    raise CheckpointError(f"{self.path} changed while it was read: try again")
                done += read
        return content

    def write(self, start: int, content: bytes | Bytes) -> None:
        """All of it, from ``start`` on."""
        rest = memoryview(content if isinstance(content, bytes) else content.data)
        with refusing("write", self.path):
            while len(rest):
                written = os.pwrite(self.descriptor, rest, start)
                rest, start = rest[written:], start + written

    def sync(self) -> None:
        """Return once it is on the disk."""
        with refusing("write", self.path):
            os.fsync(self.descriptor)


def text_of(path: Path, most: int) -> str | None:
    """What a small file says, None where there is none.

    Raises:
        CheckpointError: it has more than ``most`` bytes, is a link or no regular file, no UTF-8, or cannot be read.
    """
    if not os.path.lexists(path):
        return None
    with File.opened(path, links=False) as file:
        if file.size > most:
            raise CheckpointError(f"{path} has {file.size:,} bytes, more than belong there: move it away")
        content = file.read(0, file.size).tobytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text: move it away") from error


def copy(source: File, target: File, start: int, stop: int, to: int) -> None:
    """Copy bytes ``start`` to ``stop`` to ``to``, by the file system's own means where it has any.

    ``copy_file_range`` lets file systems that can (Btrfs, XFS, NFS) share the blocks of both files, or copy them on
    the server; others copy within the kernel. They share whole blocks only, so a first piece ends with its block.
    """
    while start < stop:
        size = min(stop - start, -start % _BLOCK or _RANGE)
        done = _copied_by_the_kernel(source, target, start, size, to)
        if not done:
            done = min(size, CHUNK)
            target.write(to, source.read(start, done))
        start, to = start + done, to + done


def _copied_by_the_kernel(source: File, target: File, start: int, size: int, to: int) -> int:
    """How many bytes it copied: none where it cannot, or where there are none."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source.descriptor, target.descriptor, size, start, to)
    except OSError as error:
        if error.errno in _CANNOT:
            return 0
        raise CheckpointError(f"cannot write {target.path}: {error.strerror}") from error


def remove(path: Path) -> None:
    """Take a file out of its folder; durable after `sync_folder`."""
    with refusing("remove", path):
        os.unlink(path)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk."""
    with refusing("write", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
