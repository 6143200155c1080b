from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from fedunlearn.paged import paged, reserve


def test_it_is_zeros_that_can_be_written_row_by_row(tmp_path: Path) -> None:
    matrix = paged(tmp_path / "rows", 3, torch.zeros(4))
    assert matrix.tolist() == [[0] * 4] * 3
    matrix[1] = torch.arange(4.0)
    matrix[2, 0] = 7
    assert matrix.tolist() == [[0, 0, 0, 0], [0, 1, 2, 3], [7, 0, 0, 0]]


def test_what_is_written_lies_in_the_file_and_not_in_memory_alone(tmp_path: Path) -> None:
    matrix = paged(tmp_path / "rows", 2, torch.zeros(3))
    matrix[1] = torch.tensor([1.0, 2.0, 3.0])
    assert (tmp_path / "rows").stat().st_size == 2 * 3 * 4
    again = torch.from_file(str(tmp_path / "rows"), shared=True, size=6)
    assert again.tolist() == [0, 0, 0, 1, 2, 3]


def test_a_file_that_is_there_is_made_anew(tmp_path: Path) -> None:
    """Larger or smaller, with whatever in it; and who still reads the old one goes on reading it."""
    old = paged(tmp_path / "rows", 2, torch.zeros(3))
    old[:] = 5
    for rows in (1, 4):
        assert not paged(tmp_path / "rows", rows, torch.zeros(3)).any()
        assert (tmp_path / "rows").stat().st_size == rows * 3 * 4
    assert (old == 5).all()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_it_keeps_float32_at_least(tmp_path: Path, given: torch.dtype, kept: torch.dtype) -> None:
    assert paged(tmp_path / "rows", 2, torch.zeros(3, dtype=given)).dtype == kept


def test_it_may_be_empty(tmp_path: Path) -> None:
    assert paged(tmp_path / "none", 0, torch.zeros(3)).shape == (0, 3)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="what cannot be set aside is not")
def test_a_row_that_is_set_aside_has_room_on_the_disk_and_no_other_has(tmp_path: Path) -> None:
    matrix, row = paged(tmp_path / "rows", 8, torch.zeros(2**20)), 4 * 2**20
    matrix[0] = 1
    for number in (0, 3):
        reserve(tmp_path / "rows", matrix, number)
    assert 2 * row <= 512 * (tmp_path / "rows").stat().st_blocks <= 4 * row
    assert matrix.sum(1).tolist() == [2**20, *[0] * 7]  # nothing is changed
    assert (tmp_path / "rows").stat().st_size == 8 * row


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="what cannot be set aside is not")
def test_without_room_a_row_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = paged(tmp_path / "rows", 2, torch.zeros(4))

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        reserve(tmp_path / "rows", matrix, 1)


def test_a_file_that_torch_cannot_map_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, **_: object) -> None:
        raise RuntimeError(f"unable to open file <{path}> in read-write mode: Read-only file system (30)\n")

    monkeypatch.setattr(torch, "from_file", refused)
    with pytest.raises(OSError, match=r"Read-only file system \(30\)$"):
        paged(tmp_path / "rows", 1, torch.zeros(3))


def test_a_file_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paged(tmp_path / "nowhere" / "rows", 1, torch.zeros(3))
