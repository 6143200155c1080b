from __future__ import annotations

from copy import deepcopy
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import NODES, SERVER, at, signed, story

from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Enrolled,
    Event,
    EventProblem,
    Fault,
    Filed,
    Opened,
    Recovered,
    Refused,
    Rotated,
    RoundDone,
    Waited,
    event_of,
    plain,
)
from fedunlearn.deletion.standing import Costs, Standing, State, fold, standing

ONE, TWO = "1" * 32, "2" * 32
STATES = get_args(State)
SIGNED = {id: signed(id, "client", None, NODES["a"]) for id in "0123456789abcdef"}


def filed(id: str) -> Filed:
    return Filed(id * 32, "a", SIGNED[id].json)


def began(number: int, *requests: str) -> Began:
    return Began(number, list(requests), {"name": "NoT"}, "m", "m.safetensors", None, {})


def round_done(phase: Any, number: int, unlearning: int | None) -> RoundDone:
    return RoundDone(phase, number, unlearning, f"{phase}{number}", "m.safetensors", [])


def after(events: int) -> Standing:
    return standing(story()[:events])


def test_a_story_by_hand() -> None:
    assert after(0) == Standing()
    assert [after(n).requests[ONE].state for n in range(4, 14)] == [
        *("filed", "acknowledged", "acknowledged", "acknowledged"),
        *("unlearning", "unlearning", "recovering", "recovering", "recovering", "verified"),
    ]
    assert [entry.request for entry in after(6).waiting] == [ONE, TWO]
    assert after(7).current is None
    assert [when for when, _ in after(7).refused] == [at(7)]
    now = after(13)
    assert now.waiting == []
    assert now.current is now.unlearnings[0]
    assert (now.trained, len(now.rounds), len(now.unlearnings[0].rounds)) == (2, 5, 3)
    assert now.last is not None
    assert now.last.model == "r2"
    assert isinstance(now.opened, Opened)
    entry = now.requests[ONE]
    assert (entry.client, entry.scope, entry.reason, entry.data) == ("a", "instances", "reason 1", "here")
    assert (entry.key, entry.unlearning) == (NODES["a"].public.text, 0)
    assert now.requests[TWO].key == SERVER.public.text
    now = standing([*story(), (at(20), Done(TWO, {"receipt": 1}))])
    assert now.current is now.unlearnings[0]  # the other has no receipt yet
    fold(now, at(21), Done(ONE, {"receipt": 2}))
    assert now.current is None
    assert now.requests[ONE].receipt == {"receipt": 2}
    assert (now.requests[ONE].times["done"], now.requests[TWO].times["done"]) == (at(21), at(20))


def test_an_unlearning_is_added_up() -> None:
    (one,) = standing(story()).unlearnings
    head, conv1 = ["head.weight", "head.bias"], ["conv1.weight"]
    assert [done.model for done in one.own] == ["n1"]
    assert [done.model for done in one.recovery] == ["r1", "r2"]
    assert one.costs == Costs(bytes_down=150, bytes_up=135, forward=108, backward=90, seconds=4.0)
    assert (one.negations, one.negated) == ([head, conv1], [conv1])
    before, *_ = standing(story()[:8]).unlearnings
    assert (before.negations, before.negated, before.costs) == ([head], [], Costs(0, 0, 0, 0, 0.0))


def test_told_late_a_request_does_not_go_back() -> None:
    events: list[Event] = [filed("1"), began(0, ONE), Acknowledged(ONE)]
    now = standing((at(second), event) for second, event in enumerate(events))
    assert now.requests[ONE].state == "unlearning"
    assert now.requests[ONE].times == {"filed": at(0), "unlearning": at(1), "acknowledged": at(2)}


def test_one_refused_on_the_way_neither_goes_on_nor_holds_the_other_up() -> None:
    events: list[Event] = [filed("1"), filed("2"), began(0, ONE, TWO), Refused(ONE, "a", "it has no such samples")]
    events += [round_done("recover", 1, 0), Recovered(0, "limit"), Audited(0, {}), Done(TWO, {})]
    now = standing((at(second), event) for second, event in enumerate(events))
    refused = now.requests[ONE]
    assert (refused.state, refused.why) == ("refused", "it has no such samples")
    assert refused.times == {"filed": at(0), "unlearning": at(2), "refused": at(3)}
    assert now.unlearnings[0].done


def test_an_unlearning_ends_also_with_a_refusal() -> None:
    events: list[Event] = [filed("1"), filed("2"), began(0, ONE, TWO), Done(ONE, {}), Refused(TWO, "a", "no")]
    assert standing((at(0), event) for event in events).current is None


def test_nothing_comes_after_the_end() -> None:
    events: list[Event] = [filed("1"), Refused(ONE, "a", "no"), Refused(ONE, None, "again"), Done(ONE, {})]
    now = standing((at(0), event) for event in events)
    assert (now.requests[ONE].state, now.requests[ONE].why, now.requests[ONE].receipt) == ("refused", "no", None)
    assert len(now.refused) == 2


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (Acknowledged(ONE), LookupError),
        (Done(ONE, {}), LookupError),
        (began(0, ONE), LookupError),
        (began(1), EventProblem),
        (began(-1), EventProblem),
        (Recovered(0, "limit"), EventProblem),
        (Audited(-1, {}), EventProblem),
        (round_done("recover", 1, -1), EventProblem),
    ],
    ids=repr,
)
def test_what_does_not_follow(event: Event, error: type[Exception]) -> None:
    with pytest.raises(error):
        standing([(at(0), event)])


def test_what_is_there_already_is_not_filed_or_begun_again() -> None:
    with pytest.raises(EventProblem, match=f"request {ONE} is filed twice"):
        standing([(at(0), filed("1")), (at(1), filed("1"))])
    begun = [(at(0), began(0)), (at(1), began(0))]
    with pytest.raises(EventProblem, match="unlearning 0 begins where 1 is the next"):
        standing(begun)
    with pytest.raises(EventProblem, match="unlearning -1 has not begun"):
        standing([*begun[:1], (at(1), Audited(-1, {}))])


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Event]]:
    """What a server may write: each event allowed by those before it."""
    events: list[Event] = [Opened({"a": "key"}, "key", {})]
    ids = iter("0123456789abcdef")
    listed = {"a"}
    known: list[str] = []  # requests that are open and that no unlearning answers
    open_ones: list[str] = []  # of the unlearning
    unlearning, phase, rounds = -1, "train", 0
    for _ in range(draw(st.integers(0, 40))):
        kinds = ["fault", "waited", "stranger", "rotated", "enrolled"]
        kinds += ["file"] if len(known) + len(open_ones) < 6 else []
        kinds += ["acknowledge", "refuse"] if known or open_ones else []
        if phase == "train":
            kinds += ["round", *(["begin"] if known else [])]
        elif phase == "verified":
            kinds += ["done"] if open_ones else []
        else:
            kinds += ["round", "recovered"] if phase == "recover" else ["round", "recover"]
        match draw(st.sampled_from(kinds)):
            case "fault":
                events.append(Fault("a", "silent", "it gave no answer", phase, rounds))
            case "waited":
                events.append(Waited(phase, rounds, "too few"))
            case "stranger":
                events.append(Refused(draw(st.sampled_from(["", "not an id"])), None, "nobody knows this key"))
            case "rotated":
                events.append(Rotated("key", "signature"))
            case "enrolled":
                gone = draw(st.sets(st.sampled_from(sorted(listed))))
                listed = (listed - gone) | {f"{len(events)}"}
                events.append(Enrolled({str(len(events)): f"key {len(events)}"}, sorted(gone)))
            case "file":
                if (id := next(ids, None)) is not None:
                    events.append(filed(id))
                    known.append(id * 32)
            case "acknowledge":
                events.append(Acknowledged(draw(st.sampled_from(known + open_ones))))
            case "refuse":
                id = draw(st.sampled_from(known + open_ones))
                events.append(Refused(id, "a", "no"))
                (known if id in known else open_ones).remove(id)
            case "begin":
                unlearning, phase = unlearning + 1, "unlearn"
                open_ones = draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
                known = [id for id in known if id not in open_ones]
                events.append(began(unlearning, *open_ones))
            case "round":
                rounds += 1
                events.append(round_done(phase, rounds, None if phase == "train" else unlearning))
            case "recover":
                phase = "recover"
            case "recovered":
                events += [Recovered(unlearning, "limit"), Audited(unlearning, {})]
                phase = "verified"
            case "done":
                id = draw(st.sampled_from(open_ones))
                events.append(Done(id, {"receipt": id}))
                open_ones.remove(id)
        if phase == "verified" and not open_ones:
            phase = "train"
    return [(at(second % 60), event) for second, event in enumerate(events)]


@given(histories())
def test_whatever_a_server_writes(events: list[tuple[str, Event]]) -> None:
    now, last = Standing(), Standing()
    for number, (when, event) in enumerate(events, 1):
        fold(now, when, event)
        assert now == standing(events[:number])  # what is folded on the way is what is read again
        for id, entry in now.requests.items():
            if id in last.requests:
                before = last.requests[id]
                assert STATES.index(entry.state) >= STATES.index(before.state)
                assert before.times.items() <= entry.times.items()
                assert not before.settled or entry == before
        for one in now.unlearnings:
            states = {now.requests[id].state for id in one.began.requests}
            assert one.done == (states <= {"done", "refused"})
        last = deepcopy(now)
    kinds = [event for _, event in events]
    expected: dict[str, str] = {}
    for event in kinds:
        if isinstance(event, Opened | Enrolled):
            gone = event.left if isinstance(event, Enrolled) else []
            expected = {name: key for name, key in {**expected, **event.clients}.items() if name not in gone}
    assert now.clients == expected
    assert now.enrolled == set(now.holders.values())
    assert now.trained == sum(isinstance(event, RoundDone) and event.phase == "train" for event in kinds)
    assert sum(map(len, (now.faults, now.waits, now.rotations, now.refused))) == sum(
        isinstance(event, Fault | Waited | Rotated | Refused) for event in kinds
    )
    assert {entry.request for entry in now.waiting} == {
        id for id, entry in now.requests.items() if entry.unlearning is None and entry.state != "refused"
    }


@given(histories())
def test_events_travel_as_plain_values(events: list[tuple[str, Event]]) -> None:
    for _, event in events:
        assert event_of(event.kind, plain(event)) == event


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (RoundDone("train", 0, None, "m", "c", []), {"absent": 3}),
        (RoundDone("train", 0, None, "m", "c", []), {"bytes_down": {"a": 1}}),
        (RoundDone("train", 0, None, "m", "c", []), {"bytes_up": True}),
        (RoundDone("train", 0, None, "m", "c", []), {"phase": "tuned"}),
        (RoundDone("train", 0, None, "m", "c", []), {"negations": ["conv"]}),
        (Waited("train", 0, "nobody was there"), {"number": "0"}),
        (Waited("train", 0, "nobody was there"), {"why": None}),
    ],
)
def test_an_event_with_values_of_other_types_is_none(event: Event, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(EventProblem, match=f"the {name} of an event of the kind '{event.kind}': Input should be"):
        event_of(event.kind, {**plain(event), **changes})


def test_a_text_that_cannot_be_printed_is_one() -> None:
    event = Waited("train", 0, "\ud800")
    assert event_of("waited", plain(event)) == event


def test_no_other_event() -> None:
    for kind, body in (("nothing", {}), ("done", {}), ("done", {"request": "", "receipt": {}, "more": 1})):
        with pytest.raises(EventProblem, match="is none of ours"):
            event_of(kind, body)
