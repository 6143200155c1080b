"""What the server makes of the clients' answers: in sentences by hand, as properties, and of models whose memory is
known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
from answering import answers, noise, of_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.audits.certainty import LEVEL
from fedunlearn.audits.judgement import LIMITS, Finding, judged
from fedunlearn.audits.recognition import Recognised
from fedunlearn.backends.in_process import InProcess
from fedunlearn.evaluation.follow import unlearn
from fedunlearn.federation import Predicate
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClient, ForgetInstances
from fedunlearn.rounds import train
from fedunlearn.task import Task
from fedunlearn.weights import Weights

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


GOOD = asdict(model(FOUND))
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
