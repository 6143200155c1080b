"""Signs of numbers that are given as bytes (little-endian, as in a safetensors file).

All functions take whole numbers of one dtype, by torch's name of it, one of `fedunlearn.names.SIGNED`.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fedunlearn.checkpoint.disk import Bytes
from fedunlearn.names import NO_NEGATIVE_ZERO, SIGNED

__all__ = ["checksum", "flip", "read_signs", "set_signs"]


def flip(numbers: Bytes, dtype: str) -> None:
    """Negate them where they are."""
    words, sign = _words(numbers, dtype)
    if dtype in NO_NEGATIVE_ZERO:
        words[(words & ~sign) != 0] ^= sign  # zero has no sign, and the sign bit alone is NaN
    else:
        words ^= sign


def read_signs(numbers: Bytes, dtype: str) -> Bytes:
    """Their sign bits, eight in a byte."""
    words, sign = _words(numbers, dtype)
    return np.packbits((words & sign) != 0)


def set_signs(numbers: Bytes, signs: Bytes, dtype: str) -> None:
    """Give them these sign bits, where they are."""
    words, sign = _words(numbers, dtype)
    negative = np.unpackbits(signs, count=len(words)).astype(bool)
    words &= ~sign
    words[negative] |= sign


def checksum(numbers: Bytes, dtype: str) -> int:
    """A CRC-32 of all but their sign bits: the same before, after, and amid a negation."""
    words, sign = _words(numbers, dtype)
    return zlib.crc32((words & ~sign).data)


def _words(numbers: Bytes, dtype: str) -> tuple[npt.NDArray[Any], Any]:
    size = SIGNED[dtype]
    words = numbers.view(f"<u{size}")
    return words, words.dtype.type(1 << (8 * size - 1))
