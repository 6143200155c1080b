"""Files that are whole or not there, and what is read of them."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["FileError", "atomic_write", "make_folder", "read_json", "sync_folder", "write_json"]


class FileError(ValueError):
    """A file is not as this package writes it."""


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Write a file beside ``path``, then put it in its place: readers see the old one or the new one.

    The file can be read back while it is written. It is on the disk, with its folder's entry, when this returns. On any
    error nothing is left behind and what was at ``path`` is untouched (a process that is killed leaves a hidden
    ``.tmp`` file). A symbolic link stays one: what it points to is replaced.

    Args:
        path: of the file.
        mode: its permissions, less the umask's.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; or the disk failed after the new file was
            put in its place, which a power cut may then undo.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    # Not tempfile: its files are for the owner's eyes only (mode 0600), and would stay so after the rename.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, as `atomic_write` writes."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A table in a file; empty where there is none.

    Raises:
        FileError: it is no JSON, or no table.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no table")
    return content


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder that may be there, and those above it that are not; its name is on the disk when this returns.

    What is synced in a folder whose own name is not would be lost with it.

    Args:
        folder: to make.
        mode: of the folder itself, less the umask's; those above it have those of any new folder.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(mode, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable: what was made, renamed or removed in it.

    A system that cannot open a folder (Windows) does so by itself, and so does a file system that syncs none.

    Raises:
        OSError: the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows' answer
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
