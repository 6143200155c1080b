"""Requests that follow one another, clients who have left or do not take part, and epochs as a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedunlearn.checkpoint import load_weights
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.scores import MEASURES
from fedunlearn.evaluation.table import table
from fedunlearn.experiment import Experiment
from fedunlearn.federation import Predicate, Turn
from fedunlearn.methods.federaser import FedEraser
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.pgd import PGD
from fedunlearn.methods.retrain import Retrain
from fedunlearn.needs import Needs, NeedsError
from fedunlearn.negation import negate
from fedunlearn.programs import Diverged, Evaluate
from fedunlearn.report.report import assemble
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.rounds import Round
from fedunlearn.runfolder import folders, runs_in
from fedunlearn.runner import run
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.task import Method, Task
from test_runner import Bursts, Many, reported, weights_of
from tiny import load_tiny


def small(folder: Path, *overrides: str) -> Experiment:
    return load_tiny(folder, "recovery.rounds=2", "recovery.evaluate_every=1", *overrides)


# --- one after another ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    plan = small(tmp_path_factory.mktemp("chain"), "data.samples=100", "recovery.evaluate_every=2")
    methods = (Retrain(), FineTune(), NoT(), NoT(again="same"))
    return replace(plan, methods=methods, then=(ForgetClient("1"), ForgetClass(3)))


@pytest.fixture(scope="module")
def done(chain: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the chain was run."""
    folder = tmp_path_factory.mktemp("done")
    list(run(chain, folder, workers=1))
    return folder


def test_each_method_goes_on_from_its_own_model(chain: Experiment, done: Path) -> None:
    places = folders(chain, done)
    assert [place.name for place in places] == ["request-1", "request-2", "request-3"]
    assert runs_in(done) == places
    assert runs_in(places[0]) == [places[0]]
    network = Setting.of(chain, workers=1).architecture.template
    for part, layer in (("4-NoT", "conv2"), ("5-NoT-again-same", "conv1")):
        last = load_weights(places[0] / "seed-3" / part / "weights" / "recover-0002.safetensors")
        negated = load_weights(places[1] / "seed-3" / part / "weights" / "unlearned.safetensors")
        assert negated.same_bits(negate(last, layer, like=network))
        assert negated.negations == (("conv1.weight",), (f"{layer}.weight",))
    kept = [place / "seed-3" / "3-FT" / "weights" for place in places]
    assert load_weights(kept[1] / "unlearned.safetensors").same_bits(load_weights(kept[0] / "recover-0002.safetensors"))
    assert load_weights(kept[2] / "unlearned.safetensors").same_bits(load_weights(kept[1] / "recover-0002.safetensors"))


def test_who_was_forgotten_takes_no_part_any_more(chain: Experiment) -> None:
    setting = Setting.of(chain, workers=1)
    tasks = []
    for stage in chain.stages:
        simulation = Simulation(replace(setting, experiment=stage), 3)
        tasks.append(simulation.task(simulation.federation, setting.architecture.fresh(0)))
    assert [task.everyone.clients for task in tasks] == [("0", "1", "2", "3"), ("1", "2", "3"), ("2", "3")]
    assert [task.retained.clients for task in tasks] == [("1", "2", "3"), ("2", "3"), ("2", "3")]
    assert [task.targets for task in tasks] == [("0",), ("1",), ()]
    assert tasks[2].forgotten.clients == ("2", "3")
    assert len({task.seed for task in tasks}) == 3  # other draws for each request


def test_a_model_is_held_against_each_request_and_against_all(chain: Experiment, done: Path) -> None:
    reports = list(map(assemble, folders(chain, done)))
    assert [len(report.each()) for report in reports] == [0, 2, 3]
    setting = Setting.of(chain.stages[1], workers=1)
    simulation = Simulation(setting, 3)
    weights = load_weights(done / "request-2/seed-3/4-NoT/weights/recover-0002.safetensors")
    scores = simulation.score(weights, final=False, validation=None)
    # By another way: an experiment with one of the requests alone, on the same model.
    for number, request in enumerate((ForgetClient("0"), ForgetClient("1"))):
        alone = Simulation(replace(setting, experiment=replace(chain, request=request, then=())), 3)
        expected = alone.score(weights, final=False, validation=None)
        assert (scores.sets[number].forget, scores.sets[number].mia) == (expected.forget, expected.mia)
        of = scores.of(number)
        assert [getattr(of, m) for m in MEASURES] == [scores.retain, expected.forget, scores.test, expected.mia]
    lines = {line.method: line for line in reports[1].each()[1]}
    assert lines["NoT"].forget.mean == pytest.approx(scores.sets[1].forget)
    assert lines["NoT"].gap == next(line.gap for line in table(reports[1].compared, request=1) if line.method == "NoT")


def test_stopped_anywhere_a_chain_ends_with_the_same_bits(tmp_path: Path, chain: Experiment) -> None:
    plan = replace(chain, methods=(Retrain(), NoT()), then=chain.then[:1])
    rows = list(run(plan, tmp_path / "whole", workers=1))
    for number in range(5, len(rows), 5):
        reading = run(plan, tmp_path / "often", workers=1, cache=tmp_path / "cache")
        for _ in range(number):
            next(reading)
        reading.close()
    list(run(plan, tmp_path / "often", workers=1))
    assert weights_of(tmp_path / "often") == weights_of(tmp_path / "whole")
    for one, other in zip(*(folders(plan, tmp_path / name) for name in ("often", "whole")), strict=True):
        assert reported(one) == reported(other)


def test_a_history_leads_to_no_later_model_so_who_needs_one_is_refused_at_once(
    tmp_path: Path, chain: Experiment
) -> None:
    with pytest.raises(
        NeedsError, match="FedEraser needs a history that leads to the model at hand, and after a first"
    ):
        list(run(replace(chain, methods=(Retrain(), FedEraser())), tmp_path / "run", workers=1))
    assert not (tmp_path / "run").exists()


def test_a_later_request_that_means_nothing_new_is_refused_at_once(tmp_path: Path, chain: Experiment) -> None:
    with pytest.raises(ValueError, match=r"request 2 means no training sample of anybody: .* forgotten before"):
        list(run(replace(chain, then=(ForgetClient("0"),)), tmp_path / "run", workers=1))
    assert not (tmp_path / "run").exists()


def test_who_diverged_at_an_earlier_request_is_told_at_each_later_one(tmp_path: Path, chain: Experiment) -> None:
    plan = replace(chain, methods=(Retrain(), Bursts()))
    list(run(plan, tmp_path / "run", workers=1))
    failures = [assemble(place).failures[0] for place in folders(plan, tmp_path / "run")]
    assert [failure.method for failure in failures] == ["Bursts"] * 3
    assert failures[1].why.startswith("at an earlier request: ")
    assert "became nan" in failures[2].why


# --- who has left, who takes part -----------------------------------------------------------------------------------


def test_who_has_left_is_forgotten_without_being_asked(tmp_path: Path) -> None:
    plan = small(tmp_path, 'left=["0"]')
    simulation = Simulation(Setting.of(plan, workers=1), 3)
    task = simulation.task(simulation.federation, simulation.setting.architecture.fresh(0))
    assert (task.targets, task.forgotten.clients, task.everyone.clients) == (("0",), (), ("1", "2", "3"))
    rows = list(run(plan, tmp_path / "left", workers=1))
    there = list(run(small(tmp_path), tmp_path / "there", workers=1))
    # Retrain, FT and NoT never ask the leaving client, so nothing is different.
    assert [row.scores for row in rows] == [row.scores for row in there]
    with pytest.raises(NeedsError, match="MoDE needs the data to be forgotten, whose holder has left"):
        list(run(replace(plan, methods=(Retrain(), MoDE())), tmp_path / "mode", workers=1))


def test_a_round_asks_as_many_as_take_part_and_scoring_asks_all(tmp_path: Path) -> None:
    list(run(small(tmp_path), tmp_path / "all", workers=1))
    list(run(small(tmp_path, "training.participation=0.5"), tmp_path / "half", workers=1))
    everybody, half = (assemble(tmp_path / name) for name in ("all", "half"))
    sent = [
        {row.method: row.bill().traffic.down for row in report.rows if row.scores is not None and row.rounds == 2}
        for report in (everybody, half)
    ]
    # 2 rounds of 4 and of 3 clients; of half of them, rounded up, 2 and 2.
    assert [sent[1][m] / sent[0][m] for m in ("Original", "Retrain", "NoT")] == [2 / 4, 2 / 3, 2 / 3]
    counted = [sum(report.rows[-1].scores.losses.retain) for report in (everybody, half)]  # type: ignore[union-attr]
    assert counted[0] == counted[1] == 3 * 32


def test_a_client_is_gone_only_once_its_own_request_is_answered(tmp_path: Path, chain: Experiment) -> None:
    plan = replace(chain, left=("1",), then=(ForgetClient("1"),))
    setting = Setting.of(plan, workers=1)
    first, second = (Simulation(replace(setting, experiment=stage), 3) for stage in plan.stages)
    tasks = [one.task(one.federation, setting.architecture.fresh(0)) for one in (first, second)]
    assert [task.everyone.clients for task in tasks] == [("0", "1", "2", "3"), ("2", "3")]
    assert [task.targets for task in tasks] == [("0",), ("1",)]
    assert tasks[1].forgotten.clients == ()
    list(run(replace(plan, methods=(Retrain(), NoT()), left=("0", "1")), tmp_path / "run", workers=1))
    with pytest.raises(NeedsError, match="MoDE needs the data to be forgotten, whose holder has left"):
        list(run(replace(plan, methods=(Retrain(), MoDE())), tmp_path / "mode", workers=1))


@pytest.mark.parametrize(
    ("left", "request_", "says"),
    [
        ("3", ForgetClient("0"), "left: no request means all data of client 3: ask for that, or let it stay"),
        ("3", ForgetClass(0), "left: no request means all data of client 3"),
        ("77", ForgetClient("0"), "left: there is no client 77; they are 0 to 3"),
        ("0", AnyOf(tuple(map(ForgetClient, "0123"))), "the request leaves nobody's training samples: drop the model"),
    ],
)
def test_who_has_left_must_be_asked_for_and_somebody_must_stay(
    tmp_path: Path, left: str, request_: Predicate, says: str
) -> None:
    plan = replace(small(tmp_path, "data.samples=100"), left=(left,), request=request_)
    with pytest.raises(ValueError, match=says):
        list(run(plan, tmp_path / "run", workers=1))
    assert not (tmp_path / "run").exists()


def test_a_method_that_finds_out_late_what_it_lacks_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    """With one client a round, the last round may have been the leaving client's alone."""
    plan = replace(small(tmp_path, "training.participation=0.25"), methods=(Retrain(), PGD(), NoT()))
    for seed in range(20):
        plan = replace(plan, seeds=(seed,))
        simulation = Simulation(Setting.of(plan, workers=1), seed)
        asked = simulation.taking_part(simulation.federation).run(
            Evaluate(), simulation.setting.architecture.fresh(0), Turn(seed, "train", 1)
        )
        if [client for client, _ in asked] == ["0"]:
            break
    list(run(plan, tmp_path / "run", workers=1))
    report = assemble(tmp_path / "run")
    assert [failure.method for failure in report.failures] == ["PGD"]
    assert "nobody else took part in the last round" in report.failures[0].why
    assert report.methods == ("Retrain", "NoT")


# --- a budget of epochs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Free(Method):
    """Three rounds at the server, which ask nobody."""

    needs = Needs()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        for number in range(resume.number + 1 if resume else 0, 3):
            yield Round(number, task.weights * (1 - number / 10))


@dataclass(frozen=True)
class Breaks(Many):
    """Diverges in its second round."""

    name = "Breaks"

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        yield from list(super().unlearn(task, resume))[:1]
        raise Diverged("the training loss became nan")


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_in_which_clients_work_are_counted_and_scored_whatever_they_are_for(tmp_path: Path, rounds: int) -> None:
    said = ('recovery.budget="all"', f"recovery.rounds={rounds}", "recovery.evaluate_every=1")
    plan = replace(small(tmp_path, *said), methods=(Retrain(), FineTune(), Free(), Many(), Breaks()))
    report = told(run(plan, tmp_path / "run", workers=1))
    many = "test_runner:Original"
    recovery = [("recover", number, True) for number in range(1, rounds + 1)]
    assert report["FT"] == [("unlearn", 0, True), *recovery]
    assert report["Free"] == [*[("unlearn", 0, False)] * 3, ("unlearn", 0, True), *recovery]
    worked = [("unlearn", number, True) for number in range(1, min(rounds, 2) + 1)]  # cut off where all is used up
    assert report[many] == [*worked, worked[-1], *[("recover", number, True) for number in range(3, rounds + 1)]]
    lines = {line.method: line for line in table(assemble(tmp_path / "run").compared)}
    assert lines[many].rounds == lines["FT"].rounds == rounds
    assert lines[many].bytes == lines["FT"].bytes  # the same number of rounds, of the same clients
    assert lines[many].mia_efficacy is not None  # the last model, whatever it is for
    last = tmp_path / "run" / "seed-3" / "5-test_runner-Original" / "weights" / f"recover-{rounds:04d}.safetensors"
    assert last.is_file()


def told(rows: Iterable[Row]) -> dict[str, list[tuple[str, int, bool]]]:
    found: dict[str, list[tuple[str, int, bool]]] = {}
    for row in rows:
        found.setdefault(row.method, []).append((row.phase, row.rounds, row.scores is not None))
    return found


def test_stopped_anywhere_a_budget_is_kept(tmp_path: Path) -> None:
    said = ('recovery.budget="all"', "recovery.rounds=5", "recovery.evaluate_every=2")
    plan = replace(small(tmp_path, *said), methods=(Retrain(), Free(), Many()))
    rows = list(run(plan, tmp_path / "whole", workers=1))
    for number in range(1, len(rows), 3):
        reading = run(plan, tmp_path / "often", workers=1)
        for _ in range(number):
            next(reading)
        reading.close()
    list(run(plan, tmp_path / "often", workers=1))
    assert reported(tmp_path / "often") == reported(tmp_path / "whole")
    assert weights_of(tmp_path / "often") == weights_of(tmp_path / "whole")


def test_a_federation_of_one_forgets_a_share_of_its_samples(tmp_path: Path) -> None:
    said = ("data.clients=1", "data.samples=200", 'request={kind="Share", share=0.1}', 'recovery.budget="all"')
    list(run(small(tmp_path, *said), tmp_path / "run", workers=1))
    report = assemble(tmp_path / "run")
    (partition,) = report.partitions.values()
    assert partition.clients == ("0",)
    assert 10 <= partition.forget[0] <= 20  # of 160 training samples, where 20 of 200 are drawn
    assert {line.method for line in report.table()} == {"Original", "Retrain", "FT", "NoT"}
