"""Matrices that are larger than memory may be."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["paged", "reserve"]


def paged(path: Path, rows: int, like: Tensor) -> Tensor:
    """Zeros ``(rows, len(like))`` in a new file at ``path``, which the system pages in and out as it has memory.

    In ``like``'s dtype, float32 at least.

    Raises:
        OSError: the file cannot be made, or not be mapped.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:  # torch would make it too, but tells of a full disk in an error of its own
        file.truncate(rows * len(like) * dtype.itemsize)
    try:
        whole = torch.from_file(str(path), shared=True, size=rows * len(like), dtype=dtype)
    except RuntimeError as error:  # the disk, which between the two calls has become read-only, say
        raise OSError(str(error).strip()) from None
    return whole.view(rows, len(like))


def reserve(path: Path, matrix: Tensor, row: int) -> None:
    """Set a row's bytes aside on the disk, before it is written: on a full one, writing it would end the process.

    Args:
        path: of the file.
        matrix: that `paged` has made of it.
        row: from 0.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        width = matrix.shape[1] * matrix.element_size()
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), row * width, width)
