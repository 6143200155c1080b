"""Files of data sets: IDX, and CIFAR's pickles, of which nothing is to be run."""

from __future__ import annotations

import functools
import gzip
import pickle
from collections.abc import Sequence

import numpy as np

from fedunlearn.data import cifar, idx
from fuzzing.mutation import bytes_changed
from fuzzing.target import Target, folder

__all__ = ["CIFAR", "IDX"]


@functools.cache
def _idx() -> Sequence[bytes]:
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4) for size in (2, 3, 4))
    return [header + bytes(24), gzip.compress(header + bytes(24), mtime=0), b"\0\0\x08\x01\0\0\0\x02\x05\x07"]


def _read_idx(data: bytes) -> None:
    with folder() as place:
        path = place / "images"
        path.write_bytes(data)
        idx.read(path)


@functools.cache
def _cifar() -> Sequence[bytes]:
    pixels = np.zeros((2, 3072), np.uint8)
    batch = {b"data": pixels, b"labels": [3, 9], b"filenames": [b"a.png", b"b.png"]}
    return [pickle.dumps(batch, protocol) for protocol in (0, 2, 4)]


def _read_cifar(data: bytes) -> None:
    with folder() as place:
        path = place / "data_batch_1"
        path.write_bytes(data)
        cifar.read([path], "labels", 10)


IDX = Target("idx", _read_idx, (ValueError,), _idx, bytes_changed)
CIFAR = Target("cifar", _read_cifar, (ValueError,), _cifar, bytes_changed)
