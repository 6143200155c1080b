"""CIFAR-10 and CIFAR-100 in their own files: pickles, of which nothing but arrays of bytes is ever built."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedunlearn.amounts import brief

__all__ = ["read"]


def read(paths: Sequence[Path], entry: str, classes: int) -> tuple[Tensor, Tensor]:
    """Read files as Krizhevsky (2009) distributes them, whichever Python has written them.

    Args:
        paths: of the files, whose images follow one another.
        entry: that holds the labels: ``labels`` of CIFAR-10, ``fine_labels`` of CIFAR-100.
        classes: their number.

    Returns:
        Images, ``(N, 3, 32, 32)`` uint8, red, green, blue; and labels, ``(N,)`` int64.

    Raises:
        ValueError: a file is none of these, or asks for anything but arrays of bytes. Nothing of it has been run.
    """
    images, labels = zip(*(_batch(path, entry, classes) for path in paths), strict=True)
    return torch.from_numpy(np.concatenate(images).reshape(-1, 3, 32, 32)), torch.cat(labels)


def _batch(path: Path, entry: str, classes: int) -> tuple[NDArray[np.uint8], Tensor]:
    try:
        content = path.read_bytes()
        _require_numbers_in_turn(content)
        # Python 2's text comes as bytes; so do its arrays' values, which are no text in any encoding.
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise whatever they run into
        raise ValueError(f"{path} is no file of CIFAR's ({brief(str(error), 200)}): fetch it again") from None
    named = {_text(name): value for name, value in found.items()} if isinstance(found, dict) else {}
    pixels, labels = named.get("data"), named.get(entry)
    if not isinstance(pixels, _Array) or not isinstance(labels, list):
        raise ValueError(f"{path} is no file of CIFAR's: it has no images, or no {entry}; fetch it again")
    images = pixels.values
    if images.shape != (len(labels), 3 * 32 * 32):
        raise ValueError(f"{path} has {len(labels)} {entry}, but images of shape {images.shape}: fetch it again")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise ValueError(f"{path} has {entry} that are not 0 to {classes - 1}: fetch it again")
    return images, torch.tensor(labels)


def _require_numbers_in_turn(content: bytes) -> None:
    """A pickle numbers the values that it will come back to, and for a large number as much memory is set aside."""
    for count, (opcode, number, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(number, int) and number > count:
            raise pickle.UnpicklingError(f"it numbers a value {number}, and has fewer")


def _text(name: object) -> object:
    return name.decode("latin1") if isinstance(name, bytes) else name


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, and stand-ins of ours where a file asks for NumPy: it cannot call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for an object that a file names."""
        found = _STAND_INS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array of bytes needs")
        return found


class _Array:
    """Stands in for an array, and takes in what NumPy's own would be told."""

    values: NDArray[np.uint8] = np.empty((0, 0), np.uint8)  # of an array that a file makes and tells nothing of

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Bytes, bool, bytes]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Bytes) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it has an array of other things than bytes")
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Bytes:
    """Stands in for the type uint8; what a file adds to it, its byte order, means nothing for bytes."""

    def __setstate__(self, state: object) -> None:
        pass


def _array(*arguments: object) -> _Array:
    """For ``numpy.core.multiarray._reconstruct``, which makes an array of no size, to be told the rest later."""
    return _Array()


def _dtype(code: object, *flags: object) -> _Bytes:
    """For ``numpy.dtype``."""
    if _text(code) not in ("u1", "|u1", "uint8"):
        raise pickle.UnpicklingError(f"it has an array of {_text(code)}, not of bytes")
    return _Bytes()


def _encode(text: str, encoding: str) -> bytes:
    """For ``_codecs.encode``, as which Python 3 writes bytes where the pickle's protocol has none."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it has bytes in {_text(encoding)}")
    return text.encode("latin1")


class _StandIn(NamedTuple):
    """What a file may name, and call. It is a tuple since pickles can set attributes of whatever has some."""

    make: Callable[..., Any]

    def __call__(self, *arguments: object) -> Any:
        return self.make(*arguments)


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_array),  # until NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _StandIn(_array),  # since NumPy 2
    ("numpy", "ndarray"): _StandIn(_array),
    ("numpy", "dtype"): _StandIn(_dtype),
    ("_codecs", "encode"): _StandIn(_encode),
}
