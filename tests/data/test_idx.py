"""The IDX reader: what it reads, and that it refuses everything else."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from fedunlearn.data import idx

CONTENT = b"\x00\x00\x08\x03" + struct.pack(">III", 2, 3, 2) + bytes(range(244, 256))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_values_lie_as_the_header_says(tmp_path: Path) -> None:
    read = idx.read(write(tmp_path, CONTENT))
    assert read.dtype == torch.uint8
    assert torch.equal(read, torch.arange(244, 256, dtype=torch.uint8).reshape(2, 3, 2))


def test_gzip_is_known_by_content_not_by_name(tmp_path: Path) -> None:
    read = idx.read(write(tmp_path, gzip.compress(CONTENT, mtime=0)))
    assert torch.equal(read, idx.read(write(tmp_path, CONTENT)))


def test_dimensions_are_big_endian_and_may_be_zero(tmp_path: Path) -> None:
    assert idx.read(write(tmp_path, b"\x00\x00\x08\x01\x00\x00\x01\x00" + bytes(256))).shape == (256,)
    assert idx.read(write(tmp_path, b"\x00\x00\x08\x02" + struct.pack(">II", 0, 28))).shape == (0, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x89PNG" + bytes(20), "no IDX file of unsigned bytes: it starts with 89 50 4e 47"),
        (b"\x00\x00\x0d" + CONTENT[3:], "no IDX file of unsigned bytes"),
        (CONTENT[:3], "cut short within its header"),
        (CONTENT[:10], "cut short within its header"),
        (CONTENT[:-1], r"cut short: shape \(2, 3, 2\) needs 12 values, it has 11"),
        (CONTENT + b"\x00", "goes on after its last value"),
        (gzip.compress(CONTENT, mtime=0)[:-9], "damaged gzip"),
        (gzip.compress(CONTENT, mtime=0)[:12] + bytes(20), "damaged gzip"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        idx.read(write(tmp_path, content))
