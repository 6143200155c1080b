"""The audit at the client: by hand, against exact enumeration and scipy, and as a program."""

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
from answering import TURN, Memory, answers, clients, error_of, noise, of_counts
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedunlearn.audits import recognition
from fedunlearn.audits.certainty import LEVEL, POWER, auc
from fedunlearn.audits.recognition import DRAWS, Recognised, Recognition, Said, recognised
from fedunlearn.audits.signals import confidence
from fedunlearn.backends.in_process import InProcess
from fedunlearn.federation import ClientError, Turn
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances
from fedunlearn.weights import Weights


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


# --- the program ----------------------------------------------------------------------------------------------------


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
