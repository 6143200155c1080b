"""What is asked to be forgotten."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.client import View
from fedunlearn.federation import Predicate
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetClient, ForgetInstances, ForgetShare, Rest, resolved


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


@dataclass(frozen=True)
class Both:
    pair: tuple[Predicate, Predicate]


def test_what_a_client_asked_for_means_nothing_of_others_and_only_it_can_say_what_of_its_own() -> None:
    labels = torch.tensor([0, 1, 2])
    assert AskedFor("1", "ab")("0", labels).tolist() == [False] * 3
    assert Rest(AskedFor("1", "ab"))("0", labels).tolist() == [True] * 3
    with pytest.raises(ValueError, match="only client 1 can say"):
        AskedFor("1", "ab")("1", labels)
    with pytest.raises(TypeError, match="write '1'"):
        AskedFor(1, "ab")  # type: ignore[arg-type]


def test_requests_are_resolved_however_deep_they_stand() -> None:
    def known(request: str) -> Predicate:
        return {"ab": ForgetClass(2), "cd": ForgetClient("1")}[request]

    mine, other, others = AskedFor("1", "ab"), AskedFor("1", "cd"), AskedFor("2", "ab")
    view = View((Rest(AnyOf((mine, others))), ForgetClass(0)), other)
    assert resolved(view, "1", known) == View(
        (Rest(AnyOf((ForgetClass(2), others))), ForgetClass(0)), ForgetClient("1")
    )
    assert resolved(Both((mine, Rest(other))), "1", known) == Both((ForgetClass(2), Rest(ForgetClient("1"))))
    with pytest.raises(KeyError):
        resolved(view, "1", {}.__getitem__)


def test_what_holds_no_request_of_the_client_stays_the_same_object() -> None:
    view = View((Rest(AskedFor("2", "ab")), ForgetInstances({"1": (3,)})), ForgetClass(1))
    assert resolved(view, "1", {}.__getitem__) is view
