"""Matrices that are larger than memory may be."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["paged"]


def paged(path: Path, rows: int, like: Tensor) -> Tensor:
    """Zeros ``(rows, len(like))`` in a new file at ``path``, which the system pages in and out as it has memory.

    In ``like``'s dtype, float32 at least.
    """
    path.unlink(missing_ok=True)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.from_file(str(path), shared=True, size=rows * len(like), dtype=dtype).view(rows, len(like))
