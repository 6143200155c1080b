"""The IDX format, in which MNIST and its successors are distributed."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read"]

_GZIP = b"\x1f\x8b"
_UBYTE = b"\x00\x00\x08"
_MOST_DIMENSIONS = 8


def read(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped (whatever its name) or not.

    The format (http://yann.lecun.com/exdb/mnist): two zero bytes, the type (8 is unsigned byte), the number
    of dimensions, each dimension as a big-endian 32-bit integer, then the values, the last index running
    fastest.

    Returns:
        uint8, of the shape in the header.

    Raises:
        ValueError: the file is of another format or type, is cut short, or goes on after its last value.
    """
    content = path.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}): fetch it again") from None
    if not content.startswith(_UBYTE):
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it starts with {content[:4].hex(' ')}")
    dimensions = int.from_bytes(content[3:4])
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"{path} has {dimensions} dimensions, which no images have: fetch it again")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} is cut short within its header: fetch it again")
    shape = tuple(int.from_bytes(content[at : at + 4]) for at in range(4, start, 4))
    found, expected = len(content) - start, math.prod(shape)
    if found != expected:
        fault = "is cut short" if found < expected else "goes on after its last value"
        raise ValueError(f"{path} {fault}: shape {shape} needs {expected} values, it has {found}; fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
