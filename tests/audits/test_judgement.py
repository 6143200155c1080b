"""What the server makes of the clients' answers: in sentences by hand, as properties, and of models whose memory is
known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from answering import answers, noise
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

POWER = {"smallest_area": 0.72, "smallest_gap": 0.31}


def model(area: float, gap: float, p_known: float, p_shunned: float, **others: Any) -> Recognised:
    return Recognised(30, 1.0, area, gap, p_known, p_shunned, 0.9, 0.8, **{**POWER, **others})


FOUND = model(0.8, 0.5, 0.0001, 1.0)
NOT = model(0.5, 0.02, 0.4, 0.6)
WORSE = model(0.2, -0.5, 1.0, 0.0001)
FEW = Recognised(7)
BLIND = replace(NOT, smallest_area=None, smallest_gap=None)


def test_nothing_is_found_where_it_was_before() -> None:
    found = judged({"a": FOUND}, {"a": NOT}, {})
    assert found.status == "nothing found"
    assert found.sentence == (
        "Nothing found: the model was not found to know the 30 samples that were to be forgotten better or worse than "
        "unseen ones of their classes (area 0.50, gap in the loss 0.02; p 0.800 for better, 0.800 for worse), and the "
        "same test finds them in the model from before (area 0.80, gap in the loss 0.50). With a probability of 80% "
        "the test would have found an area of 0.72 or more, or 0.28 or less (by chance 0.5), or a gap of 0.31 either "
        "way; less may have gone unnoticed."
    )
    assert found.p == pytest.approx(0.8)
    assert found.limits == LIMITS
    assert found.clients["a"] == Finding(
        "nothing found",
        "the same test finds the samples in the model from before",
        FOUND,
        NOT,
        pytest.approx(0.8),  # type: ignore[arg-type]
        pytest.approx(0.8),  # type: ignore[arg-type]
        pytest.approx(0.0002),  # type: ignore[arg-type]
    )
    part = judged({"a": FOUND}, {"a": replace(NOT, compared=0.8)}, {})
    assert "the 30 samples that were to be forgotten (of which 80% or more could be compared) better" in part.sentence


@pytest.mark.parametrize(
    ("area", "gap", "status"),
    [
        (0.72, 0.0, "nothing found"),  # as large an area would have been found
        (0.5, 0.31, "nothing found"),  # or as large a gap
        (0.7, 0.3, "cannot tell"),
        (0.2, -0.5, "cannot tell"),  # an area that is far from chance, but no memory
    ],
)
def test_where_the_old_trace_would_go_unnoticed_it_cannot_tell(area: float, gap: float, status: str) -> None:
    found = judged({"a": replace(FOUND, area=area, gap=gap)}, {"a": NOT}, {})
    assert found.status == status
    if status == "cannot tell":
        assert found.sentence.startswith(
            "Cannot tell: at client a the same test finds the samples in the model from before, but so small a trace "
            f"(area {area:.2f}, gap in the loss {gap:.2f}; p <0.001) that as large a one in the new model could have "
            "gone unnoticed, where nothing was found (area 0.50, gap in the loss 0.02; p 0.800 for better, 0.800 for "
            "worse). With a probability of 80% the test would have found an area of 0.72"
        )


@pytest.mark.parametrize("before", [{}, {"a": FOUND}, {"a": NOT}])
def test_traces_are_found_whatever_was_before(before: dict[str, Recognised]) -> None:
    found = judged(before, {"a": FOUND}, {})
    assert found.status == "traces found"
    assert found.sentence == (
        "Traces found: at client a the model knows the samples that were to be forgotten better than unseen ones of "
        "their classes (area 0.80, gap in the loss 0.50; p <0.001)."
    )
    shunned = judged(before, {"a": WORSE}, {})
    assert shunned.status == "traces found"
    assert "at client a the model knows the samples that were to be forgotten worse" in shunned.sentence
    assert "which tells them apart too (area 0.20, gap in the loss -0.50; p <0.001)" in shunned.sentence


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (
            model(0.54, 0.1, 0.2, 0.8),
            NOT,
            "the same test does not find the samples in the model from before, which was trained on them (area 0.54, "
            "gap in the loss 0.10; p 0.400), so that to find nothing in the new one means little",
        ),
        (WORSE, NOT, "does not find the samples in the model from before"),
        (None, NOT, "nothing is known of the model from before"),
        (FEW, NOT, "nothing is known of the model from before"),
        (FOUND, BLIND, "so few samples, for so many tests, that nothing could have been found"),
    ],
)
def test_where_the_test_is_blind_it_cannot_tell(before: Recognised | None, after: Recognised, why: str) -> None:
    found = judged({"a": before} if before else {}, {"a": after}, {})
    assert found.status == "cannot tell"
    assert found.sentence.startswith("Cannot tell: at client a ")
    assert why in found.sentence
    assert ("would have found an area of" in found.sentence) == (after.smallest_area is not None)


@pytest.mark.parametrize(
    ("before", "after", "missing", "sentence"),
    [
        (["a"], {}, {"a": "data already deleted"}, "Not audited: data already deleted."),
        (["a", "b"], {}, dict.fromkeys("ab", "data already deleted"), "Not audited: data already deleted."),
        (["a"], {}, {}, "Not audited: it did not answer."),
        (
            ["a"],
            {"a": FEW},
            {},
            "Not audited: too few samples were to be forgotten, or are unseen ones of their classes, to be measured "
            "without telling of single ones.",
        ),
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
    found = judged(dict.fromkeys(before, FOUND), after, missing)
    assert (found.status, found.sentence, found.p) == ("not audited", sentence, None)
    assert {client: one.status for client, one in found.clients.items()} == dict.fromkeys(
        {*missing, *before}, "not audited"
    )


def test_the_worst_client_decides_and_who_is_missing_is_named() -> None:
    before = dict.fromkeys("abcd", FOUND)
    found = judged(before, {"a": NOT, "b": NOT}, {"c": "data already deleted"})
    assert found.status == "nothing found"
    assert "the 60 samples" in found.sentence
    assert found.sentence.endswith("Not audited: data already deleted, at client c; it did not answer, at client d.")
    blind = judged({**before, "b": NOT}, {"a": NOT, "b": NOT}, {})
    assert blind.status == "cannot tell"
    assert [blind.clients[client].status for client in "abcd"] == [
        "nothing found",
        "cannot tell",
        "not audited",
        "not audited",
    ]
    leak = judged({**before, "b": NOT}, {"a": NOT, "b": NOT, "c": FOUND}, {})
    assert leak.status == "traces found"
    assert leak.sentence.startswith("Traces found: at client c ")


def test_of_many_clients_a_few_are_named_and_all_are_kept() -> None:
    names = [f"hospital {number}" for number in range(9)]
    alike = judged({}, dict.fromkeys(names, NOT), {})
    assert "at clients hospital 0, hospital 1, hospital 2 and 6 more nothing is known" in alike.sentence
    differ = judged({}, {name: replace(FOUND, area=0.7 + k / 100) for k, name in enumerate(names)}, {})
    assert "hospital 2" in differ.sentence
    assert "hospital 3" not in differ.sentence
    assert differ.sentence.endswith("; and likewise at 6 more.")
    assert list(differ.clients) == names


def test_p_is_adjusted_for_all_clients_and_both_directions() -> None:
    """0.02 is found alone in two tests, not among four; a test that cannot find anything counts for none."""
    near_level = model(0.66, 0.1, 0.02, 0.98)
    before = dict.fromkeys("abc", FOUND)
    alone = judged(before, {"a": near_level}, {})
    assert (alone.status, alone.p) == ("traces found", pytest.approx(0.04))
    two = judged(before, {"a": near_level, "b": NOT}, {})
    assert (two.status, two.p) == ("nothing found", pytest.approx(0.08))
    dumb = judged(before, {"a": near_level, "c": FEW}, {})
    assert (dumb.status, dumb.p) == ("traces found", pytest.approx(0.04))
    assert dumb.clients["c"].p_known is None


CHANCES = st.sampled_from([0.0001, 0.004, 0.02, 0.04, 0.3, 1.0])
SMALLEST = st.sampled_from([None, 0.6, 0.9])
ANSWERS = st.builds(
    lambda known, shunned, area, smallest: model(area, 0.0, known, shunned, smallest_area=smallest),
    CHANCES,
    CHANCES,
    st.sampled_from([0.5, 0.7, 0.9]),
    SMALLEST,
) | st.sampled_from([Recognised(0), FEW])  # fmt: skip
CLIENTS = st.dictionaries(st.sampled_from("abcde"), ANSWERS)


@given(CLIENTS, CLIENTS, st.dictionaries(st.sampled_from("abcde"), st.just("data already deleted")))
@settings(max_examples=150)
def test_a_judgement_keeps_its_promises(
    before: dict[str, Recognised], after: dict[str, Recognised], missing: dict[str, str]
) -> None:
    found = judged(before, after, missing)
    held = {client: one for client, one in after.items() if one.forgotten}
    able = {client: one for client, one in held.items() if one.compared}
    tests = [p for one in able.values() for p in (one.p_known, one.p_shunned)]
    assert (found.status == "traces found") == any(p * len(tests) <= LEVEL for p in tests)
    assert (found.status == "not audited") == (not able)
    if found.status == "nothing found":
        for client, one in able.items():
            assert before[client].p_known <= LEVEL
            assert one.smallest_area is not None
            assert before[client].area >= one.smallest_area  # their gaps are 0
    assert found.sentence.lower().startswith(found.status)
    assert found.clients.keys() == {*held, *missing, *(client for client, one in before.items() if one.forgotten)}
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["status"] == found.status


GOOD = FOUND.metrics
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.floats())
LIKELY = st.floats(0, 1) | st.integers(0, 100) | ANYTHING


@given(st.dictionaries(st.sampled_from(list(GOOD)), LIKELY, max_size=4))
@settings(max_examples=200)
def test_whatever_a_client_says_the_server_can_judge_or_refuses(metrics: dict[str, Any]) -> None:
    try:
        found = Recognised.of({**GOOD, **metrics})
    except ValueError:
        return
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
        assert before[client].accuracy_members >= 0.9
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
