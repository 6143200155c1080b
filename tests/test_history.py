"""What a server keeps of its training: that it is true, that recording it changes nothing, that nothing gets lost."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn import history as history_of
from fedunlearn.atomic import make_folder
from fedunlearn.backends import recorded as recorded_of
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.backends.sampled import Sampled
from fedunlearn.checkpoint import load_weights, read_metadata, save_weights
from fedunlearn.contract import small_federation
from fedunlearn.federation import ClientId, Federation, Predicate, Program, Reply, Turn
from fedunlearn.history import KINDS, History, HistoryError, HistoryKind, kept_bytes
from fedunlearn.programs import SGD, Evaluate, LocalTraining
from fedunlearn.randomness import generator
from fedunlearn.requests import ForgetClient
from fedunlearn.rounds import fedavg, train
from fedunlearn.task import Task
from fedunlearn.weights import Weights
from snapshots import Snapshots

TRAINING = LocalTraining(SGD(lr=0.05, momentum=0.9, weight_decay=0.0), batch_size=8)
EACH_SET = [kinds for size in range(1, 5) for kinds in combinations(KINDS, size)]
NAMES = [str(number) for number in range(4)]


class Walk:
    """A federation without data: each client answers with a step that depends on round and client alone."""

    clients: tuple[ClientId, ...] = ("a", "b", "c")
    samples: Mapping[ClientId, int] = MappingProxyType({"a": 1, "b": 2, "c": 5})

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.start = Weights(
            {"w": torch.zeros(3, 2, dtype=dtype), "v": torch.ones(4, dtype=dtype)}, {"count": torch.tensor(7)}
        )

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        for client in self.clients:
            if clients is None or client in clients:
                yield client, Reply(self.answer(weights, turn.number, client), self.samples[client])

    def answer(self, weights: Weights, number: int, client: ClientId) -> Weights:
        rng = generator("walk", number, client)
        return weights.map(lambda tensor: tensor + torch.randn(tensor.shape, generator=rng).to(tensor.dtype))

    def where(self, keeps: Predicate) -> Walk:
        return self

    def marking(self, request: Predicate) -> Walk:
        return self


def recorded(
    folder: Path,
    kinds: Collection[HistoryKind] = KINDS,
    rounds: int = 3,
    federation: Federation | None = None,
    *,
    start: Weights | None = None,
    every: int = 1,
) -> History:
    """The history of a short training."""
    federation = federation or Walk()
    recorder = Recorder(folder, kinds, federation.clients, every)
    start = start or (federation.start if isinstance(federation, Walk) else Walk().start)
    return recorder.finish(train(Recorded(federation, recorder), start, TRAINING, rounds))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def close(some: Weights, other: Weights) -> bool:
    return torch.allclose(some.vector(), other.vector(), atol=1e-6)


# --- what is kept is true -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A training of three rounds, recorded, and done again by hand: the model before each round, and the replies."""

    history: History
    models: list[Weights]
    replies: list[dict[ClientId, Reply]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    federation = small_federation()
    models, replies = [federation.architecture.fresh(1)], []
    for done in fedavg(federation, models[0], TRAINING, 0, "train"):
        replies.append(dict(federation.run(TRAINING, models[-1], Turn(0, "train", done.number))))
        models.append(done.after)
        if done.number == 2:
            break
    history = recorded(tmp_path_factory.mktemp("known") / "history", federation=federation, start=models[0])
    return Known(history, models, replies)


def test_a_history_tells_what_it_is_of(known: Known) -> None:
    assert known.history.kinds == set(KINDS)
    assert known.history.clients == ("0", "1", "2", "3")
    assert known.history.initial.same_bits(known.models[0])
    assert known.history.leads_to(known.models[-1])
    assert not known.history.leads_to(known.models[-2])
    assert [kept.number for kept in known.history.rounds] == [0, 1, 2]


def test_the_initial_model_and_all_sums_are_the_final_model(known: Known) -> None:
    total = known.history.initial
    for client in known.history.clients:
        total = total + known.history.sums[client]
    assert close(total, known.models[-1])


def test_a_clients_sum_is_its_share_times_its_update_over_rounds(known: Known) -> None:
    for client in NAMES:
        expected = known.models[0] * 0.0
        for before, replies in zip(known.models, known.replies, strict=False):
            share = replies[client].samples / sum(reply.samples for reply in replies.values())
            expected = expected + (replies[client].weights - before) * share
        assert close(known.history.sums[client], expected), client
        assert expected.norm() > 0.01


def test_samples_are_those_behind_each_update(known: Known) -> None:
    for kept, replies in zip(known.history.rounds, known.replies, strict=True):
        assert kept.samples == {client: reply.samples for client, reply in replies.items()}
    assert len(set(kept.samples.values())) == 4  # of four sizes, so that none is taken for another


def test_the_last_local_model_is_that_of_the_last_round_with_its_share(known: Known) -> None:
    total = sum(reply.samples for reply in known.replies[-1].values())
    for client, reply in known.replies[-1].items():
        model, share = known.history.last[client]
        assert model.same_bits(Weights(reply.weights.parameters, known.models[0].buffers))
        assert share == reply.samples / total


def test_updates_are_local_minus_global_and_norms_are_theirs(known: Known) -> None:
    for before, kept, replies in zip(known.models, known.history.rounds, known.replies, strict=False):
        assert list(kept.updates) == list(kept.norms) == NAMES
        for client, update in kept.updates.items():
            expected = replies[client].weights - before
            assert torch.equal(update.vector(), expected.vector())
            lengths = {name: float(tensor.norm()) for name, tensor in expected.parameters.items()}
            assert kept.norms[client] == pytest.approx(lengths, rel=1e-5)


def test_norms_come_with_the_first_rounds_updates_only(tmp_path: Path) -> None:
    history = recorded(tmp_path, {"norms"})
    assert [list(kept.updates) for kept in history.rounds] == [["a", "b", "c"], [], []]
    assert [list(kept.norms) for kept in history.rounds] == [["a", "b", "c"]] * 3


def test_updates_serve_norms_too(tmp_path: Path) -> None:
    history = recorded(tmp_path / "updates", {"updates"})
    assert history.kinds == {"updates", "norms"}
    assert [list(kept.updates) for kept in history.rounds] == [["a", "b", "c"]] * 3
    norms = recorded(tmp_path / "norms", {"norms"})
    assert [kept.norms for kept in history.rounds] == [kept.norms for kept in norms.rounds]


@pytest.mark.parametrize("kind", ["norms", "updates"])
def test_every_other_round(tmp_path: Path, kind: HistoryKind) -> None:
    every, all_of_them = recorded(tmp_path / "some", {kind}, 5, every=2), recorded(tmp_path / "all", {kind}, 5)
    assert [kept.number for kept in every.rounds] == [0, 2, 4]
    assert [kept.norms for kept in every.rounds] == [kept.norms for kept in all_of_them.rounds[::2]]
    assert [len(kept.updates) for kept in every.rounds] == [3, *([0, 0] if kind == "norms" else [3, 3])]


def test_sums_and_last_local_models_are_of_all_rounds_whatever_is_kept_of_them(tmp_path: Path) -> None:
    some, every = recorded(tmp_path / "some", rounds=4, every=3), recorded(tmp_path / "every", rounds=4)
    for client in some.clients:
        assert some.sums[client].same_bits(every.sums[client])
        assert some.last[client][0].same_bits(every.last[client][0])


@pytest.mark.parametrize("sampled_inside", [True, False])
def test_only_of_those_who_took_part_something_is_kept(tmp_path: Path, sampled_inside: bool) -> None:
    walk = Walk()
    took_part: dict[int, set[ClientId]] = {}
    recorder = Recorder(tmp_path, KINDS, walk.clients)
    federation: Federation = (
        Recorded(Sampled(walk, 0.5), recorder) if sampled_inside else Sampled(Recorded(walk, recorder), 0.5)
    )
    for done in fedavg(federation, walk.start, TRAINING, 4, "train"):
        took_part[done.number] = {
            c for c, _ in Sampled(walk, 0.5).run(TRAINING, walk.start, Turn(4, "train", done.number))
        }
        if done.number == 3:
            break
    history = recorder.finish(done.after)
    assert len(set(map(frozenset, took_part.values()))) > 1  # not the same in all rounds
    for kept in history.rounds:
        assert set(kept.samples) == set(kept.norms) == set(kept.updates) == took_part[kept.number]
    total = history.initial
    for update in history.sums.values():
        total = total + update
    assert close(total, done.after)
    for client, (_, share) in history.last.items():
        there = took_part[max(took_part)]  # of the last round: an older model is in no mean any more
        total_there = sum(walk.samples[other] for other in there)
        assert share == (walk.samples[client] / total_there if client in there else 0.0)


def test_who_never_took_part_has_no_sum(tmp_path: Path) -> None:
    walk = Walk()
    recorder = Recorder(tmp_path, {"sum", "last_local"}, ("a", "b", "c", "absent"))
    history = recorder.finish(train(Recorded(walk, recorder), walk.start, TRAINING, 1))
    assert list(history.sums) == list(history.last) == ["a", "b", "c"]
    assert history.clients == ("a", "b", "c", "absent")
    with pytest.raises(KeyError):
        history.sums["absent"]


def test_a_round_whose_reader_stops_early_is_not_kept(tmp_path: Path) -> None:
    walk = Walk()
    recorder = Recorder(tmp_path, KINDS, walk.clients)
    federation = Recorded(walk, recorder)
    weights = train(federation, walk.start, TRAINING, 1)
    broken_off = federation.run(TRAINING, weights, Turn(0, "train", 1))
    next(broken_off)
    broken_off.close()
    history = recorder.finish(weights)
    assert [kept.number for kept in history.rounds] == [0]
    expected = recorded(tmp_path / "whole", rounds=1)
    assert all(history.sums[client].same_bits(expected.sums[client]) for client in walk.clients)


def test_a_round_that_was_broken_off_can_be_done_again_by_others(tmp_path: Path) -> None:
    walk = Walk()
    recorder = Recorder(tmp_path / "twice", KINDS, walk.clients)
    federation = Recorded(walk, recorder)
    broken_off = federation.run(TRAINING, walk.start, Turn(0, "train", 0))
    assert next(broken_off)[0] == "a"
    broken_off.close()
    weights = train(Recorded(Only(walk, ("b", "c")), recorder), walk.start, TRAINING, 1)
    recorder.finish(weights)
    once = Recorder(tmp_path / "once", KINDS, walk.clients)
    once.finish(train(Recorded(Only(walk, ("b", "c")), once), walk.start, TRAINING, 1))
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


class Only(Sampled):
    """A federation of which these take part."""

    def __init__(self, inner: Federation, who: tuple[ClientId, ...]) -> None:
        super().__init__(inner, 1.0)
        self.who = who

    def _drawn(self, turn: Turn) -> tuple[ClientId, ...]:
        return self.who


# --- recording leaves the training as it is -------------------------------------------------------------------------


def test_recording_changes_no_bit_and_writes_the_same_with_workers(
    tmp_path: Path, one_worker: InProcess, two_workers: InProcess
) -> None:
    start = one_worker.architecture.fresh(1)
    plain = train(one_worker, start, TRAINING, 2)
    for name, federation in (("one", one_worker), ("two", two_workers)):
        assert recorded(tmp_path / name, rounds=2, federation=federation, start=start).leads_to(plain)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_only_training_is_recorded(tmp_path: Path, one_worker: InProcess) -> None:
    recorder = Recorder(tmp_path / "history", KINDS, one_worker.clients)
    federation = Recorded(one_worker, recorder).where(ForgetClient("1"))
    for phase in ("unlearn", "recover", "evaluate"):
        assert len(list(federation.run(Evaluate(), one_worker.architecture.fresh(1), Turn(0, phase, 0)))) == 1
    assert not (tmp_path / "history").exists()


def test_a_view_is_recorded_too(tmp_path: Path, one_worker: InProcess) -> None:
    recorder = Recorder(tmp_path, {"norms"}, one_worker.clients)
    view = Recorded(one_worker, recorder).where(ForgetClient("1"))
    history = recorder.finish(train(view, one_worker.architecture.fresh(1), TRAINING, 1))
    assert list(history.rounds[0].norms) == ["1"]


def test_matrices_are_files_while_training_lasts_and_one_version_is_left(tmp_path: Path) -> None:
    walk = Walk()
    recorder = Recorder(tmp_path, KINDS, walk.clients)
    for done in fedavg(Recorded(walk, recorder), walk.start, TRAINING, 0, "train"):
        recorder.flush()
        sizes = {path.name: path.stat().st_size for path in (tmp_path / ".work").iterdir()}
        assert sizes == dict.fromkeys(("arrived", "sum", "last_local"), 3 * walk.start.parameter_bytes)
        for kind in ("sum", "last_local"):
            assert len(list((tmp_path / kind).iterdir())) == 3 * min(done.number + 1, 2)
        if done.number == 3:
            break
    recorder.finish(done.after)
    assert not (tmp_path / ".work").exists()
    for kind in ("sum", "last_local"):
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == [
            f"{at}@000003.safetensors" for at in range(3)
        ]


def test_the_rows_that_are_written_are_those_that_were_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has arrived goes by its order in the round, and takes no more room than a round's models."""
    aside: list[tuple[str, int]] = []
    monkeypatch.setattr(recorded_of, "reserve", lambda path, matrix, row: aside.append((path.name, row)))
    federation = Walk()
    recorder = Recorder(tmp_path, {"sum"}, federation.clients)
    around, turns = Recorded(federation, recorder), [Turn(0, "train", number) for number in range(2)]
    for turn, client in zip(turns, "cb", strict=True):
        list(around.run(TRAINING, federation.start, turn, [client]))
    assert aside == [("arrived", 0), ("sum", 2), ("arrived", 0), ("sum", 1)]


def test_a_folder_is_made_once_a_round_and_not_for_each_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make one syncs the folder above it, which costs as much as the file itself."""
    made: list[str] = []

    def counted(folder: Path) -> None:
        made.append(folder.relative_to(tmp_path).as_posix())
        make_folder(folder)

    for module in (recorded_of, history_of):
        monkeypatch.setattr(module, "make_folder", counted, raising=False)
    federation = Walk()
    recorder = Recorder(tmp_path, {"sum", "updates"}, federation.clients)
    around = Recorded(federation, recorder)
    for number in range(2):
        list(around.run(TRAINING, federation.start, Turn(0, "train", number)))
        recorder.flush()
    assert made == [".", "updates/000000", "norms", "sum", "updates/000001", "norms", "sum"]


def test_norms_alone_need_no_matrix(tmp_path: Path) -> None:
    walk = Walk()
    train(Recorded(walk, Recorder(tmp_path, {"norms", "updates"}, walk.clients)), walk.start, TRAINING, 1)
    assert not (tmp_path / ".work").exists()


# --- killed anywhere ------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The process is gone, with all that it held in memory."""


@dataclass(frozen=True)
class Runner:
    """A training that saves its state after some rounds, and goes on from it: what a recorder is made for."""

    home: Path
    kinds: Collection[HistoryKind]
    rounds: int = 4
    federation: Federation | None = None
    every: int = 1
    saves: frozenset[int] = frozenset(range(100))

    @property
    def folder(self) -> Path:
        return self.home / "history"

    def go_on(self, die: Callable[[str, int], None] = lambda where, number: None) -> dict[str, bytes]:
        """To the end, or to where ``die`` raises; the files of the history."""
        walk = Walk()
        state, done, weights = self.home / "state.safetensors", 0, walk.start
        if state.exists():
            done, weights = int(read_metadata(state)["rounds"]), load_weights(state)
        recorder = Recorder(self.folder, self.kinds, walk.clients, self.every)
        recorder.rewind(done)
        federation = Recorded(Dying(self.federation or walk, die), recorder)
        for round in fedavg(federation, weights, TRAINING, 0, "train", done) if done < self.rounds else ():
            done, weights = round.number + 1, round.after
            die("trained", round.number)
            if done == self.rounds or round.number in self.saves:
                recorder.flush()
                die("flushed", round.number)
                save_weights(weights, state, {"rounds": str(done)})
                die("saved", round.number)
            if done == self.rounds:
                break
        recorder.finish(weights)
        return contents(self.folder)


class Dying(Sampled):
    """A federation around another that may be killed after any reply."""

    def __init__(self, inner: Federation, die: Callable[[str, int], None]) -> None:
        super().__init__(inner, 1.0)
        self.die = die

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        for client, reply in self.inner.run(program, weights, turn, clients):
            yield client, reply
            self.die(client, turn.number)


def at(where: str, number: int) -> Callable[[str, int], None]:
    def die(here: str, now: int) -> None:
        if (here, now) == (where, number):
            raise Killed

    return die


@pytest.mark.parametrize("kinds", EACH_SET, ids="+".join)
@pytest.mark.parametrize("where", ["saved", "flushed", "trained", "b"])
def test_killed_and_resumed_it_ends_with_the_same_files(
    tmp_path: Path, kinds: Collection[HistoryKind], where: str
) -> None:
    """Once after each round: with its state saved, between flush and state, before the flush, amid its replies."""
    expected = Runner(tmp_path / "whole", kinds).go_on()
    often = Runner(tmp_path / "often", kinds)
    for number in range(4):
        with pytest.raises(Killed):
            often.go_on(at(where, number))
    assert often.go_on() == expected


PLACES = st.sampled_from(["a", "b", "c", "trained", "flushed", "saved"])
SAVES = st.frozensets(st.integers(0, 5))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(EACH_SET),
    st.lists(st.tuples(PLACES, st.integers(0, 5), SAVES), max_size=3),
    SAVES,
    st.sampled_from([0.3, 0.6, 1.0]),
    st.integers(1, 3),
)
def test_neither_kills_nor_flushes_change_a_byte(
    kinds: Collection[HistoryKind],
    kills: list[tuple[str, int, frozenset[int]]],
    saves: frozenset[int],
    fraction: float,
    every: int,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        whole = Runner(Path(name) / "whole", kinds, 6, Sampled(Walk(), fraction), every, frozenset())
        often, expected = replace(whole, home=Path(name) / "often"), whole.go_on()
        for where, number, others in kills:
            with suppress(Killed):
                assert replace(often, saves=others).go_on(at(where, number)) == expected
        assert replace(often, saves=saves).go_on() == expected


def test_what_was_flushed_and_not_saved_leaves_nothing_behind(tmp_path: Path) -> None:
    """Nor does it where the training that is resumed flushes at other rounds."""
    expected = Runner(tmp_path / "whole", KINDS).go_on()
    often = Runner(tmp_path / "often", KINDS)
    with pytest.raises(Killed):
        often.go_on(at("flushed", 1))
    assert replace(often, saves=frozenset()).go_on() == expected


def test_to_flush_twice_is_to_flush_once(tmp_path: Path) -> None:
    walk, recorder = Walk(), Recorder(tmp_path, KINDS, Walk.clients)
    for done in fedavg(Recorded(walk, recorder), walk.start, TRAINING, 0, "train"):
        recorder.flush()
        if done.number == 1:
            break
    before = contents(tmp_path)
    recorder.flush()
    assert contents(tmp_path) == before
    Recorder(tmp_path, KINDS, Walk.clients).rewind(1)


def test_killed_before_any_write_it_ends_with_the_same_files(tmp_path: Path) -> None:
    watched, target = tmp_path / "watched", tmp_path / "killed"
    watched.mkdir()
    runner = Runner(watched, KINDS, 3, Sampled(Walk(), 0.5))
    recorded(runner.folder, {"last_local"}, 1)  # whatever was there is removed
    with Snapshots(watched, target) as snapshots:
        expected = runner.go_on()
    assert snapshots.count > 100
    for number in range(snapshots.count):
        assert replace(runner, home=target / str(number)).go_on() == expected, number


def test_a_training_that_has_ended_or_was_killed_at_its_end_can_go_on_for_longer(tmp_path: Path) -> None:
    expected = Runner(tmp_path / "whole", KINDS, 5).go_on()
    short = Runner(tmp_path / "short", KINDS, 2)
    with pytest.raises(Killed):
        short.go_on(at("saved", 1))
    with Snapshots(short.home, tmp_path / "killed") as snapshots:
        short.go_on()
    assert snapshots.count > 5
    for home in (short.home, *(tmp_path / "killed").iterdir()):
        assert Runner(home, KINDS, 5).go_on() == expected, home


def test_a_training_that_ends_earlier_than_it_was_to_keeps_nothing_of_the_round_under_way(tmp_path: Path) -> None:
    expected = Runner(tmp_path / "whole", KINDS, 3).go_on()
    longer = Runner(tmp_path / "longer", KINDS, 4)
    with pytest.raises(Killed):
        longer.go_on(at("b", 3))
    assert replace(longer, rounds=3).go_on() == expected


def test_one_recorder_serves_a_training_that_is_gone_on_with_in_the_same_process(tmp_path: Path) -> None:
    walk, recorder = Walk(), Recorder(tmp_path / "again", KINDS, ("a", "b", "c"))
    train(Recorded(walk, recorder), walk.start, TRAINING, 3)
    recorder.flush()
    train(Recorded(walk, recorder), walk.start, TRAINING, 0)
    recorder.rewind(0)
    recorder.finish(train(Recorded(walk, recorder), walk.start, TRAINING, 2))
    recorded(tmp_path / "once", rounds=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "once")


def test_rounds_must_follow_on_what_was_recorded(tmp_path: Path) -> None:
    walk, recorder = Walk(), Recorder(tmp_path, KINDS, ("a", "b", "c"))
    federation = Recorded(walk, recorder)
    with pytest.raises(HistoryError, match=r"round 2 does not follow .* rewind it to the rounds that are done"):
        list(federation.run(TRAINING, walk.start, Turn(0, "train", 2)))
    train(federation, walk.start, TRAINING, 2)
    with pytest.raises(HistoryError, match="round 0 does not follow"):
        train(federation, walk.start, TRAINING, 1)


def test_only_what_is_on_the_disk_can_be_gone_back_to(tmp_path: Path) -> None:
    runner = Runner(tmp_path, set(KINDS), 5, saves=frozenset({0, 1, 3}))
    with pytest.raises(Killed):
        runner.go_on(at("trained", 4))
    for rounds in (1, 3, 5, -1):
        with pytest.raises(HistoryError, match=f"is there after 2 and 4 rounds, not after {rounds}: train anew"):
            Recorder(runner.folder, KINDS, Walk.clients).rewind(rounds)
    Recorder(runner.folder, KINDS, Walk.clients).rewind(2)
    with pytest.raises(HistoryError, match="is there after 2 rounds, not after 4"):
        Recorder(runner.folder, KINDS, Walk.clients).rewind(4)
    with pytest.raises(HistoryError, match="not of this training"):
        Recorder(tmp_path / "nowhere", KINDS, Walk.clients).rewind(4)


@pytest.mark.parametrize(
    "other",
    [({"norms"}, Walk.clients, 1), (KINDS, ("a", "c", "b"), 1), (KINDS, ("a", "b"), 1), (KINDS, Walk.clients, 2)],
)
def test_a_history_with_other_kinds_clients_or_rounds_is_not_gone_on_with(tmp_path: Path, other: Any) -> None:
    recorded(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(HistoryError, match=r"not of this training .*: train anew from round 0, or record in another"):
        Recorder(tmp_path, *other).rewind(3)
    assert contents(tmp_path) == before


def test_a_history_is_not_written_over_unless_that_is_said(tmp_path: Path) -> None:
    recorded(tmp_path, rounds=1)
    before = contents(tmp_path)
    with pytest.raises(HistoryError, match=r"there is a history in .* already: remove it, or rewind it to 0 rounds"):
        recorded(tmp_path, rounds=2)
    assert contents(tmp_path) == before
    recorder = Recorder(tmp_path, KINDS, Walk.clients)
    recorder.rewind(0)
    recorder.finish(train(Recorded(Walk(), recorder), Walk().start, TRAINING, 2))
    recorded(tmp_path / "another", rounds=2)
    shutil.move(tmp_path / "another", tmp_path.with_name("another"))
    assert contents(tmp_path) == contents(tmp_path.with_name("another"))


def test_killed_while_a_history_is_replaced_it_does_not_pass_for_whole(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    recorded(watched, rounds=1)
    old = contents(watched)
    with Snapshots(watched, tmp_path / "killed") as snapshots:
        Recorder(watched, KINDS, Walk.clients).rewind(0)
    assert set(contents(watched)) == {"begun.json"}
    assert snapshots.count > 10
    for home in (tmp_path / "killed").iterdir():
        there = contents(home)
        try:
            History(home)
        except HistoryError:
            old_but_for_its_end = {name: text for name, text in old.items() if name != "history.json"}
            if there != old_but_for_its_end:
                with pytest.raises(HistoryError, match="is there after no rounds, not after 1"):
                    Recorder(home, KINDS, Walk.clients).rewind(1)
        else:
            assert there == old


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    for start in (lambda: recorded(tmp_path), lambda: Recorder(tmp_path, KINDS, ("a",)).rewind(0)):
        with pytest.raises(HistoryError, match="holds something else than a history: choose another folder"):
            start()
    assert contents(tmp_path) == {"thesis.tex": b"all of it"}


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"say what is to be kept, of norms, sum, last_local, updates$"):
        Recorder(tmp_path, set(), ["a"])
    with pytest.raises(ValueError, match=r"updates, not \['everything'\]"):
        Recorder(tmp_path, {"norms", "everything"}, ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every must be at least 1, not 0"):
        Recorder(tmp_path, {"norms"}, ["a"], every=0)
    for clients in ([], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="name the clients that may take part, each once"):
            Recorder(tmp_path, {"norms"}, clients)
    with pytest.raises(HistoryError, match="client c takes part and is not recorded: make the Recorder with all"):
        train(Recorded(Walk(), Recorder(tmp_path, {"norms"}, ["a", "b"])), Walk().start, TRAINING, 1)
    with pytest.raises(HistoryError, match=r"nothing was recorded in .*: train around a Recorded federation"):
        Recorder(tmp_path / "nothing", {"norms"}, ["a", "b"]).finish(Walk().start)


# --- histories that are of no use -----------------------------------------------------------------------------------


def test_no_history_and_one_that_was_cut_short(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"there is no history in .*nowhere: train with a Recorder"):
        History(tmp_path / "nowhere")
    walk = Walk()
    train(Recorded(walk, Recorder(tmp_path, KINDS, walk.clients)), walk.start, TRAINING, 2)
    with pytest.raises(HistoryError, match="was cut short: let its training go on to its end, or train anew"):
        History(tmp_path)


def test_a_history_that_is_gone_on_with_is_cut_short_again(tmp_path: Path) -> None:
    recorded(tmp_path)
    Recorder(tmp_path, KINDS, Walk.clients).rewind(3)
    with pytest.raises(HistoryError, match="was cut short"):
        History(tmp_path)


def test_a_task_refuses_the_history_of_another_training(known: Known, one_worker: InProcess) -> None:
    def task(weights: Weights) -> Task:
        request, architecture = ForgetClient("1"), one_worker.architecture
        return Task.of(one_worker, weights, request, TRAINING, architecture, history=known.history)

    assert task(known.models[-1]).circumstances.history == set(KINDS)
    with pytest.raises(ValueError, match="does not lead to this model: give the history of the training that ended"):
        task(known.models[-2])


@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("initial.safetensors", lambda history: history.initial),
        ("norms/000002.safetensors", lambda history: history.rounds),
        ("updates/000001/2.safetensors", lambda history: history.rounds[1].updates["c"]),
        ("sum/0@000002.safetensors", lambda history: history.sums["a"]),
        ("last_local/1@000002.safetensors", lambda history: history.last["b"]),
    ],
)
def test_a_file_that_is_broken_or_gone_is_named(
    tmp_path: Path, name: str, read: Callable[[History], object], harm: str
) -> None:
    read(recorded(tmp_path))
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[:-1] if harm == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HistoryError, match=f"{name} of the history in .* is broken or not there: train anew"):
        read(History(tmp_path))


def test_tables_that_are_none_are_named(tmp_path: Path) -> None:
    recorded(tmp_path)
    (tmp_path / "history.json").write_text("{")
    with pytest.raises(HistoryError, match=r"history\.json is no JSON: .*: train anew"):
        History(tmp_path)
    (tmp_path / "begun.json").write_text("[]")
    with pytest.raises(HistoryError, match=r"begun\.json holds no table: train anew"):
        Recorder(tmp_path, KINDS, Walk.clients).rewind(3)


def test_another_versions_history_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path)
    about = json.loads((tmp_path / "history.json").read_text())
    (tmp_path / "history.json").write_text(json.dumps({**about, "format": 0}))
    with pytest.raises(HistoryError, match="has format 0, not 1: train anew with a Recorder"):
        History(tmp_path)


def test_a_kind_that_was_not_kept_is_refused(tmp_path: Path) -> None:
    norms, sums = recorded(tmp_path / "norms", {"norms"}), recorded(tmp_path / "sums", {"sum"})
    asked: list[tuple[History, str, Callable[[History], object]]] = [
        (norms, "norms, no sum", lambda history: history.sums),
        (norms, "norms, no last_local", lambda history: history.last),
        (norms, "norms, no updates", lambda history: history.nbytes("updates")),
        (sums, "sum, no norms", lambda history: history.rounds),
        (sums, "sum, no norms", lambda history: history.nbytes("norms")),
        (sums, "sum, no last_local", lambda history: history.nbytes("last_local")),
    ]
    for history, says, read in asked:
        with pytest.raises(HistoryError, match=f"has {says}: record it while training"):
            read(history)


def test_whether_a_client_is_there_is_told_without_reading_its_model(tmp_path: Path) -> None:
    history = recorded(tmp_path)
    shutil.rmtree(tmp_path / "sum")
    assert "a" in history.sums
    assert "x" not in history.sums
    assert len(history.sums) == 3


# --- what it takes --------------------------------------------------------------------------------------------------


def test_bytes_are_the_closed_form_and_those_on_the_disk(tmp_path: Path) -> None:
    class Large(Walk):
        def __init__(self) -> None:
            self.start = Weights({f"{n}": torch.zeros(50, 40) for n in range(12)})

    message, rounds = 12 * 50 * 40 * 4, 30
    federation = Large()
    history = recorded(tmp_path, rounds=rounds, federation=federation)
    small = recorded(tmp_path.with_name(tmp_path.name + "-norms"), {"norms"}, rounds, federation)
    found = {
        "norms": ([small.layout.initial, small.layout.segments, small.layout.folder / "updates"], small),
        "updates": ([history.layout.initial, history.layout.segments, history.layout.folder / "updates"], history),
        "sum": ([history.layout.rows("sum")], history),
        "last_local": ([history.layout.rows("last_local")], history),
    }
    for kind in KINDS:
        paths, kept = found[kind]
        expected = kept_bytes(kind, message=message, tensors=12, clients=3, rounds=rounds)
        assert kept.nbytes(kind) == expected, kind
        assert history.nbytes(kind) == expected, kind
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.safetensors"))]
        on_disk = sum(file.stat().st_size for file in files)
        who = 16 * (3 + 1) * rounds if kind in ("norms", "updates") else 0  # numbers of rounds, clients and samples
        headers = 200 * len(files) + 6100  # the first model's has room to grow
        assert 0 <= on_disk - expected - who <= headers, kind


def test_whoever_takes_no_part_takes_no_space(tmp_path: Path) -> None:
    def size(*others: str) -> int:
        walk, folder = Walk(), tmp_path / str(len(others))
        recorder = Recorder(folder, {"norms"}, ("a", "b", "c", *others))
        history = recorder.finish(train(Recorded(walk, recorder), walk.start, TRAINING, 3))
        return history.layout.segment(2).stat().st_size

    assert size(*map(str, range(1000))) == size()


def test_norms_of_resnet18_in_800_rounds_of_10_clients_take_half_a_gigabyte() -> None:
    """Ten clients' first updates and the initial model are 492 MB; all norms together 2 MB."""
    norms = kept_bytes("norms", message=4 * 11_181_642, tensors=62, clients=10, rounds=800)
    assert 0.492e9 < norms < 0.5e9
    assert kept_bytes("updates", message=4 * 11_181_642, tensors=62, clients=10, rounds=800) > 700 * norms


# --- forgetting -----------------------------------------------------------------------------------------------------


class Marked(Walk):
    """Each client's update is one number of its own, in whatever file it gets."""

    numbers: Mapping[ClientId, float] = MappingProxyType({"a": 1.2345678, "b": 2.3456789, "c": 3.4567891})

    def answer(self, weights: Weights, number: int, client: ClientId) -> Weights:
        return weights.map(lambda tensor: torch.full_like(tensor, self.numbers[client]))


def traces(folder: Path, start: Weights) -> dict[ClientId, list[str]]:
    """In which files each client's first update, or its norm, can be found."""
    found = {}
    for client, number in Marked.numbers.items():
        values = [torch.full_like(tensor, number) - tensor for tensor in start.parameters.values()]
        needles = [value[:1].flatten()[:1] for value in values] + [value.double().norm().float() for value in values]
        patterns = [needle.reshape(-1).numpy().tobytes() for needle in needles]
        found[client] = [name for name, text in contents(folder).items() if any(p in text for p in patterns)]
    return found


@pytest.mark.parametrize("kinds", [kinds for kinds in EACH_SET if {"norms", "updates"} & {*kinds}], ids="+".join)
def test_all_that_is_a_forgotten_clients_is_erased(tmp_path: Path, kinds: Collection[HistoryKind]) -> None:
    federation = Marked()
    history = recorded(tmp_path, kinds, federation=federation)
    assert all(len(files) >= 2 for files in traces(tmp_path, federation.start).values())
    before = {kept.number: (dict(kept.norms), dict(kept.updates), dict(kept.samples)) for kept in history.rounds}
    old, new = train(federation, federation.start, TRAINING, 3), federation.start

    left = history.forget(["b"], new)

    there = traces(tmp_path, federation.start)
    assert there["b"] == []
    assert len(there["a"]) >= 2
    assert len(there["c"]) >= 2
    assert left.clients == ("a", "c")
    assert left.kinds == History(tmp_path).kinds == history.kinds - {"sum", "last_local"}
    assert left.leads_to(new)
    assert not left.leads_to(old)
    assert left.initial.same_bits(history.initial)
    for kept in left.rounds:
        norms, updates, samples = before[kept.number]
        assert kept.norms == {client: norms[client] for client in ("a", "c")}
        assert kept.samples == {client: samples[client] for client in ("a", "c")}
        assert list(kept.updates) == [client for client in updates if client != "b"]
        assert all(update.same_bits(updates[client]) for client, update in kept.updates.items())
    assert not (tmp_path / "sum").exists()
    assert not (tmp_path / "last_local").exists()
    assert json.loads((tmp_path / "history.json").read_text())["took_part"] == {}  # nor when it did so last


def test_rounds_of_nobody_who_stays_are_still_counted(tmp_path: Path) -> None:
    """A replay numbers its rounds as the training did."""
    walk, recorder = Walk(), Recorder(tmp_path, {"norms"}, Walk.clients)
    weights = train(Recorded(Only(walk, ("b",)), recorder), walk.start, TRAINING, 2)
    for number in (2, 3):
        list(Recorded(walk, recorder).run(TRAINING, weights, Turn(0, "train", number)))
    left = recorder.finish(weights).forget(["b"], weights)
    assert [(kept.number, list(kept.norms)) for kept in left.rounds] == [
        (0, []),
        (1, []),
        (2, ["a", "c"]),
        (3, ["a", "c"]),
    ]


def test_a_second_request_finds_what_the_first_has_left(tmp_path: Path) -> None:
    walk = Walk()
    history = recorded(tmp_path, {"norms"})
    again = history.forget(["b"], walk.start).forget(["a"], walk.start * 2.0)
    assert again.clients == ("c",)
    assert [list(kept.norms) for kept in again.rounds] == [["c"]] * 3
    assert again.leads_to(walk.start * 2.0)
    with pytest.raises(HistoryError, match="the history knows no client b"):
        again.forget(["b", "c"], walk.start)
    assert History(tmp_path).clients == ("c",)


def test_a_request_for_no_whole_client_drops_only_what_the_model_has_outgrown(tmp_path: Path) -> None:
    left = recorded(tmp_path).forget([], Walk().start)
    assert left.kinds == {"norms", "updates"}
    assert [list(kept.updates) for kept in left.rounds] == [["a", "b", "c"]] * 3
    assert not (tmp_path / "sum").exists()


def test_killed_at_any_write_of_forgetting_it_is_finished_when_the_history_is_opened(tmp_path: Path) -> None:
    federation, watched = Marked(), tmp_path / "watched"
    history = recorded(watched, federation=federation)
    with Snapshots(watched, tmp_path / "killed") as snapshots:
        history.forget(["b"], federation.start)
    expected, finished = contents(watched), 0
    assert snapshots.count > 8
    for number in range(snapshots.count):
        home = tmp_path / "killed" / str(number)
        if History(home).leads_to(federation.start):
            finished += 1
            assert contents(home) == expected, number
        assert History(home).forget(["b"] * ("b" in History(home).clients), federation.start).clients == ("a", "c")
        assert traces(home, federation.start)["b"] == [], number
    assert finished >= snapshots.count - 3  # all but those before history.json was in its place


def test_what_cannot_be_erased_is_an_error_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if not options.get("ignore_errors"):
            raise PermissionError(path)

    history = recorded(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(PermissionError):
        history.forget(["b"], Walk().start)


@pytest.mark.parametrize("kinds", [{"sum"}, {"last_local"}, {"sum", "last_local"}])
def test_what_is_worth_nothing_afterwards_is_not_kept_for_a_second_request(
    tmp_path: Path, kinds: Collection[HistoryKind]
) -> None:
    history, before = recorded(tmp_path, kinds), contents(tmp_path)
    says = "worth nothing once the model was changed: remove .*, and record anew where training goes on"
    with pytest.raises(HistoryError, match=says):
        history.forget(["b"], Walk().start)
    assert contents(tmp_path) == before


def test_whom_a_history_does_not_know_it_does_not_forget(tmp_path: Path) -> None:
    history, before = recorded(tmp_path), contents(tmp_path)
    with pytest.raises(HistoryError, match="the history knows no client x, y"):
        history.forget(["y", "a", "x"], Walk().start)
    with pytest.raises(TypeError, match=r"clients are several: write \['abc'\]"):
        history.forget("abc", Walk().start)
    assert contents(tmp_path) == before


def test_no_training_goes_on_from_a_history_that_has_forgotten(tmp_path: Path) -> None:
    recorded(tmp_path).forget(["b"], Walk().start)
    with pytest.raises(HistoryError, match="has forgotten somebody: no training goes on from it"):
        Recorder(tmp_path, KINDS, Walk.clients).rewind(3)
    assert History(tmp_path).clients == ("a", "c")


# --- weights as vectors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.float32, torch.float64),
     (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)  # fmt: skip
def test_a_vector_leads_back_to_the_bit(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    rng = generator("vectors")
    first, second = (torch.randn(shape, generator=rng).to(d) for shape, d in zip([(2, 3), (4,)], dtypes, strict=True))
    weights = Weights({"w": first, "scale": torch.tensor(0.5).to(dtypes[0]), "v": second}, {"count": torch.tensor(3)})
    zeros = weights.map(torch.zeros_like)
    assert weights.vector().shape == (11,)
    assert zeros.with_vector(weights.vector()).same_bits(weights)
    assert not zeros.same_bits(weights)


@pytest.mark.parametrize("shape", [(9,), (11,), (10, 1), ()])
def test_a_vector_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of another architecture: 10 parameters, not"):
        Walk().start.with_vector(torch.zeros(shape))


def test_a_column_makes_contiguous_weights() -> None:
    column = torch.arange(20.0).reshape(10, 2)[:, 1]
    made = Walk().start.with_vector(column)
    assert torch.equal(made.vector(), column)
    assert all(tensor.is_contiguous() for tensor in made.parameters.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_precision_are_recorded(tmp_path: Path, dtype: torch.dtype) -> None:
    federation = Walk(dtype)
    history = recorded(tmp_path, rounds=2, federation=federation)
    before = train(federation, federation.start, TRAINING, 1)
    for client, (model, _) in history.last.items():
        assert model.same_bits(federation.answer(before, 1, client))
    total = history.initial.vector().double() + sum(update.vector().double() for update in history.sums.values())
    after = train(federation, federation.start, TRAINING, 2).vector().double()
    assert torch.allclose(total, after, atol=1e-12 if dtype == torch.float64 else 0.05)
    assert {t.dtype for t in history.sums["a"].parameters.values()} == {dtype}


def test_sums_of_a_half_precision_model_are_kept_in_float32(tmp_path: Path) -> None:
    """In bfloat16, whose numbers have 8 bits, steps of a thousandth would be lost on a sum of one."""
    federation, recorder = Steps(torch.bfloat16), Recorder(tmp_path, {"sum"}, ("a", "b", "c"))
    for number in range(20):
        list(Recorded(federation, recorder).run(TRAINING, federation.start, Turn(0, "train", number)))
    history = recorder.finish(federation.start)
    expected = (1 + 19 * 2**-10) * Walk.samples["a"] / 8
    assert torch.equal(history.sums["a"].vector(), torch.full((10,), expected).to(torch.bfloat16))


class Steps(Walk):
    """From a model of zeros, one step of 1 and then steps of 2**-10."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.start = self.start * 0.0

    def answer(self, weights: Weights, number: int, client: ClientId) -> Weights:
        return weights.map(lambda tensor: tensor + (1.0 if number == 0 else 2**-10))


def test_a_digest_is_of_names_dtypes_shapes_and_bits() -> None:
    one = Weights({"w": torch.tensor([[0.0, 1.0]]), "v": torch.tensor(2.0)}, {"count": torch.tensor(3)})
    same = Weights({"v": torch.tensor(2.0), "w": torch.tensor([[0.0, 1.0]])}, {"count": torch.tensor(3)})
    others = [
        Weights({"w": torch.tensor([[-0.0, 1.0]]), "v": torch.tensor(2.0)}, one.buffers),
        Weights({"w": torch.tensor([0.0, 1.0]), "v": torch.tensor(2.0)}, one.buffers),
        Weights({"w": torch.tensor([[0.0], [1.0]]), "v": torch.tensor(2.0)}, one.buffers),
        Weights({"u": torch.tensor([[0.0, 1.0]]), "v": torch.tensor(2.0)}, one.buffers),
        Weights({"w": torch.tensor([[0.0, 1.0]]).view(torch.int32), "v": torch.tensor(2.0)}, one.buffers),
        Weights(one.parameters, {"count": torch.tensor(4)}),
        Weights(one.parameters),
    ]
    assert one.digest() == same.digest()
    assert len({weights.digest() for weights in (one, *others)}) == 8
    not_contiguous = Weights({"w": torch.tensor([[0.0], [1.0]]).t(), "v": torch.tensor(2.0)}, one.buffers)
    assert not_contiguous.digest() == one.digest()


def test_a_digest_is_the_same_for_ever() -> None:
    """A history that was written by one version is read by the next."""
    weights = Weights({"w": torch.tensor([1.0, -2.0])}, {"count": torch.tensor(3)})
    assert weights.digest() == "2de3d76a86dcc7adaa443f179cffbc85"
