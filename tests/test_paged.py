from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedunlearn.paged import paged


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
