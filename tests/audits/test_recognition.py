"""The audit at the client: by hand, against exact enumeration and scipy, and as a program."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from fedunlearn.audits.recognition import DRAWS, FEWEST, Comparison, Recognised, Recognition, Said, compared
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
            ahead = (wins(inside, outside) - m * (n - m) / 2) / (n + 1)  # as van Elteren weighs classes
            each.append((ahead, m * (n - m) / n * lower(inside, outside)))
        seen = (seen[0] + each[0][0], seen[1] + each[0][1])  # the first choice are the members
        chances = [(a + one, b + two) for a, b in chances for one, two in each]
        variances += (m * (n - m) / (n + 1) / 12, np.var([two for _, two in each]))
    spread = np.where(variances > 1e-18, np.sqrt(variances), np.inf)
    best, drawn = (np.array(values) / spread for values in (seen, chances))
    known, shunned = drawn.max(1) >= best.max() - 1e-9, drawn.min(1) <= best.min() + 1e-9
    return float(known.mean()), float(shunned.mean())


def lower(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """By how much the mean loss of ``ours`` is lower (at most 4.6 each): a chance is 1 / (1 + exp(-c))."""
    mine, others = ([min(4.6, -math.log(1 / (1 + math.exp(-c)))) for c in side] for side in (ours, theirs))
    return sum(others) / len(others) - sum(mine) / len(mine)


def wins(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum((a > b) + (a == b) / 2 for a in ours for b in theirs)


def near(exactly: float) -> float:
    """How far a p-value of 9,999 draws may be from the exact one."""
    return 4.5 * math.sqrt(exactly * (1 - exactly) / DRAWS) + 2e-4


def test_by_hand() -> None:
    found = compared(*HAND)
    assert (found.forgotten, found.counts) == (5, ((2, 2), (1, 3)))
    assert found.area == pytest.approx((4 / 5 * 2 / 4 + 3 / 5 * 2.5 / 3) / (4 / 5 + 3 / 5))
    assert found.weight == pytest.approx(4 / 4 + 3 / 4)
    assert found.accuracy_members == 1
    assert found.accuracy_unseen == pytest.approx((1 * 2 / 2 + 0.75 * 2 / 3) / 1.75)
    assert found.area_error == pytest.approx(math.sqrt(4 / 5 / 12 + 3 / 5 / 12) / (4 / 5 + 3 / 5))
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
    found = compared(said(ours), said(theirs), seed)
    both = [label for label in ours if ours[label] and theirs[label]]
    assert found.forgotten == sum(map(len, ours.values()))
    counts = [(len(ours[label]), len(theirs[label])) for label in both]
    assert found.counts == tuple(counts)
    if not both:
        assert found == Comparison(found.forgotten)
        return
    weights = [m * u / (m + u + 1) for m, u in counts]
    chances = [wins(ours[label], theirs[label]) / m / u for label, (m, u) in zip(both, counts, strict=True)]
    assert found.area == pytest.approx(np.average(chances, weights=weights), abs=1e-12)
    known, shunned = exact(said(ours), said(theirs))
    assert abs(found.p_known - known) <= near(known)
    assert abs(found.p_shunned - shunned) <= near(shunned)
    least = math.prod(math.comb(len(ours[label]) + len(theirs[label]), len(ours[label])) for label in both)
    assert found.least_p == pytest.approx(max(1 / least, 1 / (DRAWS + 1)))
    assert found.area_error == pytest.approx(error_of([(len(ours[label]), len(theirs[label])) for label in both]))


@pytest.mark.parametrize("seed", range(4))
def test_of_one_class_the_area_is_the_statistic_of_mann_and_whitney(seed: int) -> None:
    ours, theirs = drawn(np.random.default_rng(seed), [(70, 50)], shift=0.15 * seed)
    found = compared(ours, theirs, seed)
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
    found = compared(*far)
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
    found = compared(said({0: ours.tolist()}), said({0: theirs.tolist()}))
    assert found.p_known <= 0.001 < stats.mannwhitneyu(ours, theirs, alternative="greater").pvalue


@pytest.mark.usefixtures("fewer_draws")
def test_of_samples_that_the_model_has_nothing_to_do_with_p_is_uniform() -> None:
    """However different the classes are, in their confidences and in how many of them were to be forgotten."""
    rng = np.random.default_rng(0)
    found = [compared(*drawn(rng, [(20, 6), (3, 14), (8, 8)]), seed) for seed in range(500)]
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
        alarms += compared(ours, theirs, seed).p_known <= LEVEL
    assert alarms <= stats.binom.ppf(0.999, 200, LEVEL)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_better_is_found_and_what_is_known_worse_too(seed: int) -> None:
    ours, theirs = drawn(np.random.default_rng(seed), [(30, 15), (10, 20)], shift=2.5)
    found, turned = compared(ours, theirs), compared(mirrored(ours), mirrored(theirs))
    assert (found.p_known, found.p_shunned) == (1 / (DRAWS + 1), 1.0)
    assert (turned.p_known, turned.p_shunned) == (1.0, 1 / (DRAWS + 1))
    assert found.area + turned.area == pytest.approx(1)
    assert turned.gap < 0 < found.gap


def mirrored(one: Said) -> Said:
    return replace(one, confidence=-one.confidence)


def test_the_same_seed_draws_the_same_however_large_a_block_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = drawn(np.random.default_rng(3), [(30, 15)], shift=0.3)
    found = compared(ours, theirs, 5)
    assert compared(ours, theirs, 5) == found != compared(ours, theirs, 6)
    monkeypatch.setattr(recognition, "_BLOCK", 1000)  # 22 rows at a time, and 11 in the last
    assert compared(ours, theirs, 5) == found


# --- the power ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize(
    ("counts", "tests"),
    [([(20, 20)], 1), ([(20, 20)], 6), ([(24, 8), (12, 6)], 2), ([(8, 4), (3, 9), (15, 2)], 1)],
)
def test_the_smallest_area_is_found_four_times_in_five(counts: list[tuple[int, int]], tests: int) -> None:
    rng, repeats = np.random.default_rng(len(counts) + tests), 500
    smallest = compared(*drawn(rng, counts)).smallest_area(tests)
    assert smallest is not None
    shift = math.sqrt(2) * float(stats.norm.ppf(smallest))
    found = [compared(*drawn(rng, counts, shift), seed) for seed in range(repeats)]
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

    gap = compared(answered(80, 0.5), answered(60, 0.5)).smallest_gap(tests)
    assert gap is not None
    half = gap / math.log1p(math.exp(4)) / 2  # of the difference: so the losses' spread stays about the same
    found = [compared(answered(80, 0.5 - half), answered(60, 0.5 + half), seed) for seed in range(repeats)]
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
    weights = [m * u / (m + u + 1) for m, u in counts]
    variances = [(area * (1 - area) + (m + u - 2) * (both - area**2)) / (m * u) for m, u in counts]
    spread = math.sqrt(sum(w**2 * v for w, v in zip(weights, variances, strict=True))) / sum(weights)
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
    assert Comparison(7).smallest_area() is None


# --- what is told ---------------------------------------------------------------------------------------------------

LABELS, SURE = st.integers(0, 2), st.floats(-8, 8)
ONE = st.tuples(LABELS, SURE)


def these(samples: Sequence[tuple[int, float]]) -> Said:
    return Said(
        np.array([sure for _, sure in samples], dtype=float),
        np.array([label for label, _ in samples], dtype=np.int64),
        np.array([sure > 0 for _, sure in samples], dtype=np.bool_),
    )


def test_it_is_told_in_steps() -> None:
    full = Comparison(
        forgotten=45,
        counts=((20, 20), (20, 20)),
        area=0.644,
        gap=-0.149,
        p_known=0.01234,
        p_shunned=0.98765,
        accuracy_members=0.925,
        accuracy_unseen=0.88,
        gap_error=0.1,
    )
    area, gap = full.smallest_area(2), full.smallest_gap(2)
    assert area is not None
    assert gap == pytest.approx(0.1 * (2.2414 + 0.8416), abs=1e-4)
    assert full.weight == 20  # so a step is 0.1: three samples of 2 x 20
    told = full.told(2)
    assert told == Recognised(45, 0.9, 0.6, -0.1, 0.013, 0.99, 0.9, 0.9, told.smallest_area, 0.31)
    assert told.smallest_area == pytest.approx(math.ceil(100 * area) / 100)
    assert replace(full, p_known=0.0001, p_shunned=1.0).told().p_known == 0.0001
    large = replace(full, forgotten=400, counts=((400, 400),), gap_error=0).told()
    assert (large.area, large.gap, large.accuracy_members, large.smallest_gap) == (0.64, -0.15, 0.92, None)


@pytest.mark.parametrize(
    ("counts", "forgotten", "told"),
    [
        ([(1, 100)], 1, False),
        ([(19, 1000)], 19, False),
        ([(20, 20)], 20, True),
        ([(20, 19)], 20, False),
        ([(1000, 9)], 1000, False),  # few unseen ones are single ones too
        ([(500, 1), (20, 21)], 520, True),
        ([(5, 100), (5, 100)], 900, False),  # for most there is nothing to compare with
    ],
)
def test_of_few_samples_nothing_is_told(counts: list[tuple[int, int]], forgotten: int, told: bool) -> None:
    full = replace(of_counts(counts), forgotten=forgotten, area=0.9, gap=1.0, p_known=0.001, accuracy_members=1.0)
    assert (full.told() != Recognised(forgotten)) == told
    assert bool(full.told().compared) == told


@pytest.mark.usefixtures("fewer_draws")
@given(st.lists(ONE, min_size=1, max_size=FEWEST - 1), st.lists(ONE, max_size=40))
@settings(max_examples=20)
def test_what_is_told_of_fewer_than_twenty_does_not_depend_on_them(
    ours: list[tuple[int, float]], theirs: list[tuple[int, float]]
) -> None:
    assert compared(these(ours), these(theirs)).told() == Recognised(len(ours))


@pytest.mark.usefixtures("fewer_draws")
@given(st.integers(0, 2**32), st.integers(FEWEST, 120), st.integers(0, 2**32), ONE, st.sampled_from([0, 2]))
@settings(max_examples=25, deadline=None)
def test_one_sample_moves_what_is_told_by_little(
    seed: int, size: int, which: int, other: tuple[int, float], classes: int
) -> None:
    """Or a few, whatever its class, and whether it is right."""
    rng = np.random.default_rng(seed)
    ours, theirs = (
        list(zip(rng.integers(0, classes + 1, n).tolist(), rng.normal(1, 3, n).tolist(), strict=True))
        for n in (size, 90)
    )
    changed = [*ours]
    changed[which % size] = (other[0] % (classes + 1), other[1])
    full, near = (compared(these(samples), these(theirs)) for samples in (ours, changed))
    one, two = full.told(), near.told()
    if not (one.compared and two.compared):
        assert abs(full.weight - near.weight) <= 1
        return
    step = max(0.01, 1.5 / min(full.weight, near.weight))
    for name in ("compared", "area", "accuracy_members", "accuracy_unseen"):
        before, after = getattr(full, name, None), getattr(near, name, None)
        if before is not None:
            assert abs(before - after) <= 2.5 / min(full.weight, near.weight)  # what a change of class moves
        assert abs(getattr(one, name) - getattr(two, name)) <= 4 * step
    assert abs(full.gap - near.gap) <= 2.5 * 4.6 / min(full.weight, near.weight)


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("size", [20, 33, 57, 120, 400])
def test_all_right_and_all_but_one_right_look_alike(size: int) -> None:
    """In one class or in three; and so do all wrong and all but one wrong."""
    rng = np.random.default_rng(size)
    for classes in (1, 3):
        ours, theirs = (
            Said(rng.normal(size=n), np.arange(n) % classes, np.ones(n, dtype=bool)) for n in (size, max(size, 40))
        )
        for right in (True, False):
            every = replace(ours, correct=np.full(size, right))
            told = compared(every, theirs).told()
            assert told.accuracy_members == right
            for one in range(0, size, 7):
                but = every.correct.copy()
                but[one] = not right
                assert compared(replace(every, correct=but), theirs).told() == told


# --- the client's numbers, as the server reads them -----------------------------------------------------------------

TOLD = Comparison(45, ((20, 20), (20, 20)), 0.7, 0.3, 0.01, 1.0, 0.9, 0.8, 0.1).told()
GOOD = TOLD.metrics


def test_the_numbers_survive_the_way() -> None:
    assert GOOD.keys() == {field.name for field in dataclasses.fields(Recognised)}
    assert Recognised.of(json.loads(json.dumps(GOOD))) == TOLD
    assert Recognised.of({name: float(value) for name, value in GOOD.items()}) == TOLD
    assert isinstance(Recognised.of({**GOOD, "forgotten": 45.0}).forgotten, int)
    assert Recognised.of(Recognised(4).metrics) == Recognised(4)
    assert Recognised.of(replace(TOLD, smallest_gap=None).metrics) == replace(TOLD, smallest_gap=None)
    assert Recognised.of({**GOOD, "more": "said"}) == TOLD


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in GOOD for value in (float("nan"), float("inf"), -1e8, None, "1", [1], 10**400)),
        {"forgotten": 45.5},
        {"area": 1.01},
        {"gap": 4.7},
        {"smallest_area": 0.4},
        {"forgotten": 19},  # of so few nothing may be measured
        {"compared": 0},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leave it out as not audited"):
        Recognised.of({**GOOD, **wrong})


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"smallest_area", "smallest_gap"}))
def test_a_number_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a client's {name} must be a"):
        Recognised.of({key: value for key, value in GOOD.items() if key != name})


# --- the program ----------------------------------------------------------------------------------------------------


def test_the_program_compares_flagged_training_samples_with_all_validation_samples() -> None:
    """Whether the request flags these as well (a client's, a class's) or not."""
    federation, client = noise(samples=240), clients(240)[1]
    weights = federation.architecture.fresh(1)
    network = federation.architecture.network(weights, torch.device("cpu"))
    y, kept = client.labels, client.validation.numpy()
    scores = network(client.samples.inputs(client.indices, None, torch.device("cpu"))).detach()
    sure, correct = confidence(scores, y).numpy(), (scores.argmax(1) == y).numpy()
    for request in (ForgetClient("1"), ForgetClass(2), ForgetInstances({"1": tuple(range(140))})):
        flagged = request("1", y).numpy() & ~kept
        expected = compared(*(Said(sure[of], y.numpy()[of], correct[of]) for of in (flagged, kept)))
        assert expected.told(6).compared > 0
        for batch_size in (500, 4):
            view = federation.marking(request)
            found = {c: Recognised.of(r.metrics) for c, r in view.run(Recognition(batch_size, 6), weights, TURN)}["1"]
            for name in ("p_known", "p_shunned"):  # of other draws
                assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=0.04)
            assert replace(found, p_known=0, p_shunned=0) == replace(expected.told(6), p_known=0, p_shunned=0)


def test_metrics_alone_leave_the_client() -> None:
    federation = noise()
    weights = federation.architecture.fresh(1)
    for client, reply in federation.marking(ForgetClient("0")).run(Recognition(), weights, TURN):
        assert reply.metrics.keys() <= {field.name for field in dataclasses.fields(Recognised)}
        assert all(type(value) in (int, float) for value in reply.metrics.values())
        assert (reply.weights, dict(reply.extra), dict(reply.values)) == (None, {}, {})
        assert reply.samples == (60 if client == "0" else 0)
        assert reply.work.backward == 0


def test_of_one_sample_a_client_answers_that_it_was_one() -> None:
    """Whichever it is: so neither its class nor whether it is right is told."""
    federation = noise()
    weights = federation.architecture.fresh(1)
    trained = (~clients()[0].validation).nonzero().flatten().tolist()
    for place in trained[:10]:
        view = federation.marking(ForgetInstances({"0": (place,)}))
        (reply,) = [reply for client, reply in view.run(Recognition(), weights, TURN) if client == "0"]
        assert Recognised.of(reply.metrics) == Recognised(1)


def test_one_worker_and_two_say_the_same() -> None:
    one, two = noise(), noise(workers=2)
    weights = one.architecture.fresh(4)
    here, there = (answers(federation, ForgetClient("1"), weights) for federation in (one, two))
    two.close()
    assert here == there
    assert here["1"].compared


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
