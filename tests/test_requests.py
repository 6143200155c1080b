"""What is asked to be forgotten."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.requests import ForgetShare


@given(
    share=st.floats(0.01, 0.99),
    samples=st.integers(0, 200),
    seed=st.integers(0, 5),
    labels=st.lists(st.integers(0, 9), min_size=200, max_size=200),
)
def test_a_share_is_as_large_as_it_says_and_knows_no_labels(
    share: float, samples: int, seed: int, labels: list[int]
) -> None:
    meant = ForgetShare(share, seed)("a", torch.tensor(labels[:samples], dtype=torch.int64))
    assert meant.dtype == torch.bool
    assert int(meant.sum()) == math.floor(round(share * samples, 9))
    assert torch.equal(meant, ForgetShare(share, seed)("a", torch.zeros(samples, dtype=torch.int64)))


def test_ten_percent_of_160_are_16_drawn_by_seed_and_client() -> None:
    labels = torch.zeros(160, dtype=torch.int64)
    drawn = [ForgetShare(0.1, seed)(client, labels) for seed in (0, 1) for client in ("0", "1")]
    assert [int(meant.sum()) for meant in drawn] == [16] * 4
    assert len({tuple(meant.nonzero().flatten().tolist()) for meant in drawn}) == 4


def test_a_larger_share_holds_the_smaller_one() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    small, large = ForgetShare(0.1)("0", labels), ForgetShare(0.5)("0", labels)
    assert bool((large | ~small).all())
