"""The audit at the client: by hand, against exact enumeration and scipy, and on models whose memory is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from fedunlearn.audits import recognition
from fedunlearn.audits.certainty import LEVEL, POWER, auc
from fedunlearn.audits.recognition import (
    DRAWS,
    LIMITS,
    Finding,
    Recognised,
    Recognition,
    Said,
    judged,
    recognised,
)
from fedunlearn.audits.signals import confidence
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.evaluation.follow import unlearn
from fedunlearn.federation import ClientError, Predicate, Turn
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.rounds import train
from fedunlearn.task import Task
from fedunlearn.weights import Weights

TURN = Turn(0, "evaluate", 0)


def said(by_class: Mapping[int, Sequence[float]]) -> Said:
    """Samples by class, whose class the model finds where it is surer than even."""
    sure = np.array([value for values in by_class.values() for value in values], dtype=float)
    labels = np.array([label for label, values in by_class.items() for _ in values], dtype=np.int64)
    return Said(sure, labels, sure > 0)


def drawn(
    rng: np.random.Generator, counts: Sequence[tuple[int, int]], shift: float = 0.0, apart: float = 3.0
) -> tuple[Said, Said]:
    """Normal confidences, those of members higher by ``shift``, those of each class by ``apart`` than the last's."""
    members = {c: rng.normal(shift + apart * c, 1, m).tolist() for c, (m, _) in enumerate(counts)}
    unseen = {c: rng.normal(apart * c, 1, u).tolist() for c, (_, u) in enumerate(counts)}
    return said(members), said(unseen)


@pytest.fixture
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that repeat it hundreds of times."""
    monkeypatch.setattr(recognition, "DRAWS", 999)


# --- the comparison -------------------------------------------------------------------------------------------------

HAND = (
    said({0: [1.0, 3.0], 1: [5.0], 2: [9.0, -9.0]}),
    said({0: [2.0, 2.0], 1: [5.0, 4.0, -1.0], 3: [0.5]}),
)
"""In class 0, 3 is above both; in class 1, 5 is above two, and ties with one: 4.5 of 7 pairs."""


def exact(forgotten: Said, unseen: Said) -> tuple[float, float]:
    """p-values of all ways to choose the members of each class, by the larger of both statistics in standard errors."""
    chances, seen = [(0.0, 0.0)], (0.0, 0.0)
    variances = np.zeros(2)
    for label in np.intersect1d(forgotten.labels, unseen.labels):
        ours = forgotten.confidence[forgotten.labels == label].tolist()
        pool = [*ours, *unseen.confidence[unseen.labels == label].tolist()]
        m, n = len(ours), len(pool)
        each = []
        for chosen in itertools.combinations(range(n), m):
            inside, outside = [pool[i] for i in chosen], [pool[i] for i in range(n) if i not in chosen]
            each.append((wins(inside, outside) - m * (n - m) / 2, m * (n - m) / n * lower(inside, outside)))
        seen = (seen[0] + each[0][0], seen[1] + each[0][1])  # the first choice are the members
        chances = [(a + one, b + two) for a, b in chances for one, two in each]
        variances += (m * (n - m) * (n + 1) / 12, np.var([two for _, two in each]))
    spread = np.where(variances > 1e-18, np.sqrt(variances), np.inf)
    best, drawn = (np.array(values) / spread for values in (seen, chances))
    known, shunned = drawn.max(1) >= best.max() - 1e-9, drawn.min(1) <= best.min() + 1e-9
    return float(known.mean()), float(shunned.mean())


def lower(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """By how much the mean loss of ``ours`` is lower: of a confidence c the chance is 1 / (1 + exp(-c))."""
    mine, others = ([-math.log(1 / (1 + math.exp(-c))) for c in side] for side in (ours, theirs))
    return sum(others) / len(others) - sum(mine) / len(mine)


def wins(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum((a > b) + (a == b) / 2 for a in ours for b in theirs)


def near(exactly: float) -> float:
    """How far a p-value of 9,999 draws may be from the exact one."""
    return 4.5 * math.sqrt(exactly * (1 - exactly) / DRAWS) + 2e-4


def test_by_hand() -> None:
    found = recognised(*HAND)
    assert (found.forgotten, found.members, found.unseen, found.pairs) == (5, 3, 5, 4 + 3)
    assert found.area == pytest.approx(4.5 / 7)
    assert (found.accuracy_members, found.accuracy_unseen) == (1.0, 4 / 5)
    assert found.area_error == pytest.approx(math.sqrt(4 * 5 / 12 + 3 * 5 / 12) / 7)
    first, second = lower([1, 3], [2, 2]), lower([5], [5, 4, -1])
    assert found.gap == pytest.approx((1 * first + 0.75 * second) / 1.75)  # 2 x 2 / 4 and 1 x 3 / 4
    assert found.least_p == pytest.approx(1 / (6 * 4))
    known, shunned = exact(*HAND)
    assert found.p_known == pytest.approx(known, abs=near(known))
    assert found.p_shunned == pytest.approx(shunned, abs=near(shunned))


SCORES = st.lists(st.integers(-3, 3).map(float), max_size=4)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=3), st.integers(0, 2**62))
@settings(max_examples=60)
def test_it_is_the_exact_test_within_classes(classes: list[tuple[list[float], list[float]]], seed: int) -> None:
    ours, theirs = ({label: pair[side] for label, pair in enumerate(classes)} for side in (0, 1))
    found = recognised(said(ours), said(theirs), seed)
    both = [label for label in ours if ours[label] and theirs[label]]
    assert found.forgotten == sum(map(len, ours.values()))
    assert found.members == sum(len(ours[label]) for label in both)
    assert found.unseen == sum(len(theirs[label]) for label in both)
    if not both:
        assert found == Recognised(found.forgotten)
        return
    pairs = sum(len(ours[label]) * len(theirs[label]) for label in both)
    assert found.pairs == pairs
    assert found.area == pytest.approx(sum(wins(ours[label], theirs[label]) for label in both) / pairs, abs=1e-12)
    known, shunned = exact(said(ours), said(theirs))
    assert abs(found.p_known - known) <= near(known)
    assert abs(found.p_shunned - shunned) <= near(shunned)
    least = math.prod(math.comb(len(ours[label]) + len(theirs[label]), len(ours[label])) for label in both)
    assert found.least_p == pytest.approx(max(1 / least, 1 / (DRAWS + 1)))
    assert found.area_error == pytest.approx(error_of([(len(ours[label]), len(theirs[label])) for label in both]))


def error_of(counts: Sequence[tuple[int, int]]) -> float:
    return math.sqrt(sum(m * u * (m + u + 1) / 12 for m, u in counts)) / sum(m * u for m, u in counts)


@pytest.mark.parametrize("seed", range(4))
def test_of_one_class_the_area_is_the_statistic_of_mann_and_whitney(seed: int) -> None:
    ours, theirs = drawn(np.random.default_rng(seed), [(70, 50)], shift=0.15 * seed)
    found = recognised(ours, theirs, seed)
    known = stats.mannwhitneyu(
        ours.confidence, theirs.confidence, alternative="greater", method="asymptotic", use_continuity=False
    )
    assert found.area == pytest.approx(known.statistic / (70 * 50), abs=1e-12)
    assert found.area == pytest.approx(float(auc(ours.confidence, theirs.confidence)), abs=1e-12)
    assert stats.norm.sf((found.area - 0.5) / found.area_error) == pytest.approx(known.pvalue, abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_where_losses_say_nothing_p_is_that_of_mann_and_whitney(sign: int) -> None:
    """Of a model that is so sure of all that every loss is 0, in ranks alone."""
    ours, theirs = drawn(np.random.default_rng(2), [(8, 9)], shift=0.7 * sign)
    far = [replace(one, confidence=one.confidence + 5000) for one in (ours, theirs)]
    found = recognised(*far)
    assert (found.gap, found.gap_error, found.smallest_gap()) == (0, 0, None)
    side, p = ("greater", found.p_known) if sign > 0 else ("less", found.p_shunned)
    exactly = stats.mannwhitneyu(ours.confidence, theirs.confidence, alternative=side, method="exact").pvalue
    assert p == pytest.approx(exactly, abs=near(exactly))


@pytest.mark.parametrize("seed", range(3))
def test_memory_in_the_losses_of_few_is_found_where_ranks_see_little(seed: int) -> None:
    """As networks that generalise have it: they are as sure of most, but badly wrong about unseen samples alone."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(4, 1, 100), rng.normal(4, 1, 60)
    theirs[:9] = -3
    found = recognised(said({0: ours.tolist()}), said({0: theirs.tolist()}))
    assert found.p_known <= 0.001 < stats.mannwhitneyu(ours, theirs, alternative="greater").pvalue


@pytest.mark.usefixtures("fewer_draws")
def test_of_samples_that_the_model_has_nothing_to_do_with_p_is_uniform() -> None:
    """However different the classes are, in their confidences and in how many of them were to be forgotten."""
    rng = np.random.default_rng(0)
    found = [recognised(*drawn(rng, [(20, 6), (3, 14), (8, 8)]), seed) for seed in range(500)]
    for values in ([one.p_known for one in found], [one.p_shunned for one in found]):
        assert stats.kstest(values, "uniform").pvalue > 0.01
    assert np.mean([one.area for one in found]) == pytest.approx(0.5, abs=4.5 * found[0].area_error / 500**0.5)
    assert np.std([one.area for one in found]) == pytest.approx(found[0].area_error, rel=0.15)


@pytest.mark.usefixtures("fewer_draws")
def test_an_easy_class_among_the_forgotten_is_no_trace() -> None:
    """Of the easy class many were to be forgotten and few were never seen: without strata that looks like memory."""
    rng, alarms = np.random.default_rng(1), 0
    for seed in range(200):
        ours, theirs = drawn(rng, [(5, 30), (30, 5)])
        pooled = stats.mannwhitneyu(ours.confidence, theirs.confidence, alternative="greater")
        assert pooled.pvalue < 1e-3
        alarms += recognised(ours, theirs, seed).p_known <= LEVEL
    assert alarms <= stats.binom.ppf(0.999, 200, LEVEL)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_better_is_found_and_what_is_known_worse_too(seed: int) -> None:
    ours, theirs = drawn(np.random.default_rng(seed), [(30, 15), (10, 20)], shift=2.5)
    found, turned = recognised(ours, theirs), recognised(mirrored(ours), mirrored(theirs))
    assert (found.p_known, found.p_shunned) == (1 / (DRAWS + 1), 1.0)
    assert (turned.p_known, turned.p_shunned) == (1.0, 1 / (DRAWS + 1))
    assert found.area + turned.area == pytest.approx(1)
    assert turned.gap < 0 < found.gap


def mirrored(one: Said) -> Said:
    return replace(one, confidence=-one.confidence)


def test_the_same_seed_draws_the_same_however_large_a_block_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = drawn(np.random.default_rng(3), [(30, 15)], shift=0.3)
    found = recognised(ours, theirs, 5)
    assert recognised(ours, theirs, 5) == found != recognised(ours, theirs, 6)
    monkeypatch.setattr(recognition, "_BLOCK", 1000)  # 22 rows at a time, and 11 in the last
    assert recognised(ours, theirs, 5) == found


# --- the power ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize(
    ("counts", "tests"),
    [([(20, 20)], 1), ([(20, 20)], 6), ([(24, 8), (12, 6)], 2), ([(8, 4), (3, 9), (15, 2)], 1)],
)
def test_the_smallest_area_is_found_four_times_in_five(counts: list[tuple[int, int]], tests: int) -> None:
    rng, repeats = np.random.default_rng(len(counts) + tests), 500
    smallest = recognised(*drawn(rng, counts)).smallest_area(tests)
    assert smallest is not None
    shift = math.sqrt(2) * float(stats.norm.ppf(smallest))
    found = [recognised(*drawn(rng, counts, shift), seed) for seed in range(repeats)]
    assert np.mean([one.area for one in found]) == pytest.approx(smallest, abs=0.02)
    level = stats.norm.isf(LEVEL / tests / 2)  # the area has half of it
    assert np.mean([one.area - 0.5 >= level * one.area_error for one in found]) == pytest.approx(POWER, abs=0.08)
    assert POWER - 0.08 <= np.mean([one.p_known <= LEVEL / tests for one in found]) <= POWER + 0.15


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("tests", [1, 6])
def test_the_smallest_gap_is_found_four_times_in_five(tests: int) -> None:
    """Losses of 4 for the share that is got wrong, and of about 0 for the rest, whose confidences tell nothing."""
    rng, repeats = np.random.default_rng(tests), 400

    def answered(count: int, wrong: float) -> Said:
        return said({0: np.where(rng.random(count) < wrong, -4, 9 + rng.normal(size=count)).tolist()})

    gap = recognised(answered(80, 0.5), answered(60, 0.5)).smallest_gap(tests)
    assert gap is not None
    half = gap / math.log1p(math.exp(4)) / 2  # of the difference: so the losses' spread stays about the same
    found = [recognised(answered(80, 0.5 - half), answered(60, 0.5 + half), seed) for seed in range(repeats)]
    assert np.mean([one.gap for one in found]) == pytest.approx(gap, abs=0.1)
    level = stats.norm.isf(LEVEL / tests / 2)
    assert np.mean([one.gap >= level * one.gap_error for one in found]) == pytest.approx(POWER, abs=0.1)
    assert np.mean([one.p_known <= LEVEL / tests for one in found]) >= POWER - 0.1


@given(st.lists(st.tuples(st.integers(6, 60), st.integers(6, 60)), min_size=1, max_size=4), st.integers(1, 40))
@settings(max_examples=40)
def test_the_smallest_area_solves_the_equation_of_both_standard_errors(
    counts: list[tuple[int, int]], tests: int
) -> None:
    """Of each class the variance by the chances of two wins at once, from the normal distribution in two dimensions."""
    found = of_counts(counts)
    area = found.smallest_area(tests)
    if area is None:
        assert found.least_p > LEVEL / tests or stats.norm.isf(LEVEL / tests / 2) * found.area_error >= 0.4999
        return
    above = float(stats.norm.ppf(area))
    both = float(stats.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([above, above]))
    variance = sum(m * u * (area * (1 - area) + (m + u - 2) * (both - area**2)) for m, u in counts)
    spread = math.sqrt(variance) / sum(m * u for m, u in counts)
    assert area - 0.5 == pytest.approx(
        stats.norm.isf(LEVEL / tests / 2) * found.area_error + stats.norm.ppf(POWER) * spread, abs=1e-4
    )
    more, doubled = found.smallest_area(tests + 1), of_counts([(2 * m, 2 * u) for m, u in counts]).smallest_area(tests)
    assert more is None or more > area
    assert doubled is not None
    assert doubled < area


def of_counts(counts: Sequence[tuple[int, int]], **others: Any) -> Recognised:
    """Such an answer as ``counts`` by class give."""
    members, unseen = (sum(side) for side in zip(*counts, strict=True))
    least = math.prod(math.comb(m + u, m) for m, u in counts)
    return Recognised(
        members,
        members,
        unseen,
        pairs=sum(m * u for m, u in counts),
        area_error=error_of(counts),
        gap_error=0.1,
        least_p=1 / min(least, DRAWS + 1),
        **others,
    )


def test_of_too_few_samples_or_too_many_tests_nothing_can_be_found() -> None:
    assert of_counts([(1, 1)]).smallest_area() is None
    assert of_counts([(3, 3)]).smallest_area(1) is not None  # all three above: one arrangement in 20
    assert of_counts([(3, 3)]).smallest_area(2) is None
    many = of_counts([(500, 500)])
    assert many.smallest_area(500) is not None
    assert many.smallest_area(501) is None  # each would need a p-value below 1 / 10,000
    assert Recognised(7).smallest_area() is None


# --- the client's numbers, as the server reads them -----------------------------------------------------------------

GOOD = asdict(recognised(*HAND))


def test_the_numbers_survive_the_way() -> None:
    assert Recognised.of(json.loads(json.dumps(GOOD))) == recognised(*HAND)
    assert Recognised.of({name: float(value) for name, value in GOOD.items()}) == recognised(*HAND)
    assert isinstance(Recognised.of({**GOOD, "members": 3.0}).members, int)
    assert Recognised.of(asdict(Recognised(4))) == Recognised(4)
    assert Recognised.of({**GOOD, "more": "said"}) == recognised(*HAND)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in GOOD for value in (float("nan"), float("inf"), -1e8, None, "1", [1], 10**400)),
        {"members": 2.5},
        {"area": 1.01},
        {"area_error": 0.6},
        {"members": 6},  # more than were to be forgotten
        {"pairs": 16},  # more than members times unseen
        {"unseen": 0},
        {"members": 0},
        {"pairs": 0},
        {"area_error": 0},
        {"least_p": 0},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave it out as not audited"):
        Recognised.of({**GOOD, **wrong})


@pytest.mark.parametrize("name", GOOD)
def test_a_number_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a client's {name} must be a"):
        Recognised.of({key: value for key, value in GOOD.items() if key != name})


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.floats())
LIKELY = st.floats(0, 1) | st.integers(0, 100) | ANYTHING


@given(st.dictionaries(st.sampled_from(list(GOOD)), LIKELY, max_size=4), st.integers(1, 10**6))
@settings(max_examples=200)
def test_whatever_a_client_says_the_server_can_judge_or_refuses(metrics: dict[str, Any], tests: int) -> None:
    try:
        found = Recognised.of({**GOOD, **metrics})
    except ValueError:
        return
    area = found.smallest_area(tests)
    assert area is None or 0.5 <= area <= 1
    json.dumps(asdict(judged({"a": found}, {"a": found}, {})), allow_nan=False)


# --- the program ----------------------------------------------------------------------------------------------------


class Memory(nn.Module):
    """Large enough to learn what it is shown by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.relu(self.first(x)))
        return scores


def clients(samples: int = 120) -> list[Client]:
    """Three whose labels have nothing to do with their inputs: what a model knows of them, it remembers."""
    rng = torch.Generator().manual_seed(5)
    return [
        Client.of(
            str(number),
            (torch.randn(samples, 20, generator=rng), torch.randint(3, (samples,), generator=rng)),
            validation=0.5,
        )
        for number in range(3)
    ]


def noise(workers: int = 1, samples: int = 120) -> InProcess:
    return InProcess(Memory, clients(samples), workers=workers, device="cpu")


def answers(
    federation: InProcess, request: Predicate | None, weights: Weights, turn: Turn = TURN, batch_size: int = 500
) -> dict[str, Recognised]:
    view = federation if request is None else federation.marking(request)
    return {client: Recognised.of(reply.metrics) for client, reply in view.run(Recognition(batch_size), weights, turn)}


def test_the_program_compares_flagged_training_samples_with_all_validation_samples() -> None:
    """Whether the request flags these as well (a client's, a class's) or not."""
    federation, client = noise(samples=30), clients(30)[1]
    weights = federation.architecture.fresh(1)
    network = federation.architecture.network(weights, torch.device("cpu"))
    y, kept = client.labels, client.validation.numpy()
    scores = network(client.samples.inputs(client.indices, None, torch.device("cpu"))).detach()
    sure, correct = confidence(scores, y).numpy(), (scores.argmax(1) == y).numpy()
    for request in (ForgetClient("1"), ForgetClass(2), ForgetInstances({"1": (0, 3, 4, 9, 17, 22)})):
        flagged = request("1", y).numpy() & ~kept
        expected = recognised(*(Said(sure[of], y.numpy()[of], correct[of]) for of in (flagged, kept)))
        assert expected.members > 0
        for batch_size in (500, 4):
            found = answers(federation, request, weights, batch_size=batch_size)["1"]
            for name in ("p_known", "p_shunned"):  # of other draws
                assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=0.03)
            assert asdict(replace(found, p_known=0, p_shunned=0)) == pytest.approx(
                asdict(replace(expected, p_known=0, p_shunned=0)), rel=1e-4, abs=1e-5
            )


def test_metrics_alone_leave_the_client() -> None:
    federation = noise(samples=30)
    weights = federation.architecture.fresh(1)
    for client, reply in federation.marking(ForgetClient("0")).run(Recognition(), weights, TURN):
        assert reply.metrics.keys() == {field.name for field in dataclasses.fields(Recognised)}
        assert all(type(value) in (int, float) for value in reply.metrics.values())
        assert (reply.weights, dict(reply.extra), dict(reply.values)) == (None, {}, {})
        assert reply.samples == (15 if client == "0" else 0)
        assert reply.work.backward == 0


def test_one_worker_and_two_say_the_same(one_worker: InProcess, two_workers: InProcess) -> None:
    weights = one_worker.architecture.fresh(4)
    here, there = (answers(federation, ForgetClass(1), weights) for federation in (one_worker, two_workers))
    assert here == there
    assert all(one.pairs for one in here.values())


def test_another_turn_draws_anew() -> None:
    federation = noise()
    weights, request = federation.architecture.fresh(2), ForgetClient("0")
    here, again = (answers(federation, request, weights, Turn(0, "evaluate", n))["0"] for n in (0, 1))
    assert here == answers(federation, request, weights)["0"]
    assert (here.p_known, here.p_shunned) != (again.p_known, again.p_shunned)
    assert replace(here, p_known=0, p_shunned=0) == replace(again, p_known=0, p_shunned=0)


def test_clients_without_such_samples_say_so() -> None:
    federation = noise(samples=12)
    weights = federation.architecture.fresh(1)
    assert answers(federation, None, weights)["0"] == Recognised(0)
    assert answers(federation, ForgetClient("0"), weights)["1"] == Recognised(0)
    alone = replace(clients(12)[0], validation=torch.zeros(12, dtype=torch.bool))
    bare = InProcess(Memory, [alone], workers=1, device="cpu")
    assert answers(bare, ForgetClient("0"), weights) == {"0": Recognised(12)}


def test_a_model_that_has_diverged_is_refused_where_it_is_read() -> None:
    federation = noise(samples=12)
    weights = federation.architecture.fresh(1)
    spoilt = Weights({name: tensor * float("nan") for name, tensor in weights.parameters.items()}, weights.buffers)
    with pytest.raises(ClientError, match=r"client 0.*diverged"):
        answers(federation, ForgetClient("0"), spoilt)


# --- the judgement --------------------------------------------------------------------------------------------------

FOUND = {"area": 0.8, "gap": 0.5, "p_known": 0.0001, "p_shunned": 1.0}
NOT = {"area": 0.51, "gap": 0.01, "p_known": 0.4, "p_shunned": 0.6}
WORSE = {"area": 0.2, "gap": -0.5, "p_known": 1.0, "p_shunned": 0.0001}
TALKS = [(30, 30)]


def model(numbers: Mapping[str, float], counts: Sequence[tuple[int, int]] = TALKS) -> Recognised:
    return of_counts(counts, **numbers)


def test_nothing_is_found_where_it_was_before() -> None:
    found = judged({"a": model(FOUND)}, {"a": model(NOT)}, {})
    smallest = model(NOT).smallest_area(2)
    assert smallest is not None
    assert found.status == "nothing found"
    assert found.sentence == (
        "Nothing found: the model knows 30 samples that were to be forgotten neither better nor worse than 30 unseen "
        "ones of their classes (area 0.510, gap in the loss 0.010), and the same test finds them in the model from "
        f"before (area 0.800, gap in the loss 0.500). With a probability of 80% the test would have found an area of "
        f"{smallest:.3f} or more, or {1 - smallest:.3f} or less (by chance 0.5), or a gap of "
        f"{0.1 * (2.2414 + 0.8416):.3f} either way; less may have gone unnoticed."
    )
    assert found.p == pytest.approx(0.8)
    assert found.limits == LIMITS
    assert found.clients["a"] == Finding(
        "nothing found",
        "the same test finds the samples in the model from before",
        model(FOUND),
        model(NOT),
        pytest.approx(0.8),  # type: ignore[arg-type]
        pytest.approx(0.8),  # type: ignore[arg-type]
        pytest.approx(0.0002),  # type: ignore[arg-type]
        smallest,
        model(NOT).smallest_gap(2),
    )


@pytest.mark.parametrize("before", [{}, {"a": model(FOUND)}, {"a": model(NOT)}])
def test_traces_are_found_whatever_was_before(before: dict[str, Recognised]) -> None:
    found = judged(before, {"a": model(FOUND)}, {})
    assert found.status == "traces found"
    assert found.sentence == (
        "Traces found: at client a the model knows the samples that were to be forgotten better than unseen ones of "
        "their classes (area 0.800, gap in the loss 0.500; p <0.001)."
    )
    shunned = judged(before, {"a": model(WORSE)}, {})
    assert shunned.status == "traces found"
    assert "at client a the model knows the samples that were to be forgotten worse" in shunned.sentence
    assert "which tells them apart too (area 0.200, gap in the loss -0.500; p <0.001)" in shunned.sentence


FEW = [(1, 2)]


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            model({"area": 0.53, "gap": 0.1, "p_known": 0.2, "p_shunned": 0.8}),
            model(NOT),
            "the same test does not find the samples in the model from before, which was trained on them (area 0.530, "
            "gap in the loss 0.100; p 0.400), so that to find nothing in the new one means little",
        ),
        (model(WORSE), model(NOT), "does not find the samples in the model from before"),
        (None, model(NOT), "nothing is known of the model from before"),
        (model(FOUND, FEW), model(NOT), "nothing is known of the model from before"),
        (model(FOUND), model(NOT, FEW), "so few samples, for so many tests, that nothing could have been found"),
        (model(FOUND), Recognised(9), "there is no unseen sample of the classes"),
    ],
)
def test_where_the_test_is_blind_it_cannot_tell(before: Recognised | None, after: Recognised, why: str) -> None:
    found = judged({"a": before} if before else {}, {"a": after}, {})
    assert found.status == "cannot tell"
    assert found.sentence.startswith("Cannot tell: at client a ")
    assert why in found.sentence
    assert ("would have found an area of" in found.sentence) == (after.smallest_area(2) is not None)


@pytest.mark.parametrize(
    ("before", "after", "missing", "sentence"),
    [
        (["a"], {}, {"a": "data already deleted"}, "Not audited: data already deleted."),
        (["a", "b"], {}, dict.fromkeys("ab", "data already deleted"), "Not audited: data already deleted."),
        (["a"], {}, {}, "Not audited: it did not answer."),
        (["a"], {"a": Recognised(0)}, {}, "Not audited: it has none of the samples any more."),
        ([], {"c": Recognised(0)}, {}, "Not audited: no client had such samples."),
        (
            ["b"],
            {"c": Recognised(0)},
            {"a": "data already deleted"},
            "Not audited: data already deleted, at client a; it did not answer, at client b.",
        ),
    ],
)
def test_where_nobody_answers_nothing_is_audited(
    before: list[str], after: dict[str, Recognised], missing: dict[str, str], sentence: str
) -> None:
    found = judged(dict.fromkeys(before, model(FOUND)), after, missing)
    assert (found.status, found.sentence, found.p) == ("not audited", sentence, None)
    assert {client: one.status for client, one in found.clients.items()} == dict.fromkeys(
        {*missing, *before}, "not audited"
    )


def test_the_worst_client_decides_and_who_is_missing_is_named() -> None:
    before = dict.fromkeys("abcd", model(FOUND))
    found = judged(before, {"a": model(NOT), "b": model(NOT)}, {"c": "data already deleted"})
    assert found.status == "nothing found"
    assert "60 samples" in found.sentence
    assert found.sentence.endswith("Not audited: data already deleted, at client c; it did not answer, at client d.")
    blind = judged({**before, "b": model(NOT)}, {"a": model(NOT), "b": model(NOT)}, {})
    assert blind.status == "cannot tell"
    assert [blind.clients[client].status for client in "abcd"] == [
        "nothing found",
        "cannot tell",
        "not audited",
        "not audited",
    ]
    leak = judged({**before, "b": model(NOT)}, {"a": model(NOT), "b": model(NOT), "c": model(FOUND)}, {})
    assert leak.status == "traces found"
    assert leak.sentence.startswith("Traces found: at client c ")


def test_of_many_clients_a_few_are_named_and_all_are_kept() -> None:
    names = [f"hospital {number}" for number in range(9)]
    alike = judged({}, dict.fromkeys(names, model(NOT)), {})
    assert "at clients hospital 0, hospital 1, hospital 2 and 6 more nothing is known" in alike.sentence
    differ = judged({}, {name: replace(model(FOUND), area=0.7 + k / 100) for k, name in enumerate(names)}, {})
    assert "hospital 2" in differ.sentence
    assert "hospital 3" not in differ.sentence
    assert differ.sentence.endswith("; and likewise at 6 more.")
    assert list(differ.clients) == names


def test_p_is_adjusted_for_all_clients_and_both_directions() -> None:
    """0.02 is found alone in two tests, not among four; a test that cannot find anything counts for none."""
    near_level = {"area": 0.65, "p_known": 0.02, "p_shunned": 0.98}
    before = dict.fromkeys("abc", model(FOUND))
    alone = judged(before, {"a": model(near_level)}, {})
    assert (alone.status, alone.p) == ("traces found", pytest.approx(0.04))
    two = judged(before, {"a": model(near_level), "b": model(NOT)}, {})
    assert (two.status, two.p) == ("nothing found", pytest.approx(0.08))
    dumb = judged(before, {"a": model(near_level), "c": model(NOT, FEW)}, {})
    assert (dumb.status, dumb.p) == ("traces found", pytest.approx(0.04))
    assert dumb.clients["c"].p_known is None


CHANCES = st.sampled_from([0.0001, 0.004, 0.02, 0.04, 0.3, 1.0])
ANSWERS = st.builds(
    lambda known, shunned, counts: model({"p_known": known, "p_shunned": shunned}, [counts]),
    CHANCES,
    CHANCES,
    st.sampled_from([(30, 30), (4, 4), (2, 1)]),
) | st.just(Recognised(0)) | st.just(Recognised(3))  # fmt: skip
CLIENTS = st.dictionaries(st.sampled_from("abcde"), ANSWERS)


@given(CLIENTS, CLIENTS, st.dictionaries(st.sampled_from("abcde"), st.just("data already deleted")))
@settings(max_examples=150)
def test_a_judgement_keeps_its_promises(
    before: dict[str, Recognised], after: dict[str, Recognised], missing: dict[str, str]
) -> None:
    found = judged(before, after, missing)
    held = {client: one for client, one in after.items() if one.forgotten}
    tests = [p for one in held.values() if one.least_p <= LEVEL for p in (one.p_known, one.p_shunned)]
    assert (found.status == "traces found") == any(p * len(tests) <= LEVEL for p in tests)
    assert (found.status == "not audited") == (not held)
    if found.status == "nothing found":
        assert all(client in before and before[client].p_known <= LEVEL for client in held)
        assert all(one.smallest_area(len(tests)) is not None for one in held.values())
    assert found.sentence.lower().startswith(found.status)
    assert found.clients.keys() == {*held, *missing, *(client for client, one in before.items() if one.forgotten)}
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["status"] == found.status


# --- models whose memory is known -----------------------------------------------------------------------------------

LEARNING = LocalTraining(SGD(lr=0.1, momentum=0.9, weight_decay=0.0), batch_size=20, epochs=2)
ROUNDS = 20


@pytest.fixture(scope="module")
def memorised() -> tuple[InProcess, Weights]:
    federation = noise()
    return federation, train(federation, federation.architecture.fresh(1), LEARNING, ROUNDS, seed=1)


@pytest.mark.parametrize(
    "request_",
    [ForgetClient("0"), AnyOf((ForgetInstances({"1": tuple(range(100))}), ForgetClient("2")))],
    ids=["one client", "one client and some of another's"],
)
def test_what_was_learnt_by_heart_is_found_until_it_is_forgotten(
    memorised: tuple[InProcess, Weights], request_: Predicate
) -> None:
    federation, weights = memorised
    task = Task.of(federation, weights, request_, LEARNING, federation.architecture, seed=3)
    before = answers(federation, request_, weights, task.turn(phase="evaluate"))
    asked = [client for client, one in before.items() if one.forgotten]
    for client in asked:
        assert before[client].accuracy_members > 0.9
        assert before[client].accuracy_unseen < 0.6
        assert before[client].p_known < 0.001
    statuses = {}
    for method, rounds in ((Retrain(), ROUNDS), (FineTune(), 1)):
        after = answers(federation, request_, unlearn(method, task, rounds), task.turn(phase="evaluate", step="after"))
        found = judged(before, after, {})
        assert found.clients.keys() == set(asked)
        statuses[method.name] = found.status
    assert statuses == {"Retrain": "nothing found", "FT": "traces found"}
    untouched = judged(before, before, {})
    assert untouched.status == "traces found"
