"""What is said of methods before they run: what they lack, and what they will cost, to the byte."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fedunlearn.amounts import parse_bytes, scaled, tell_bytes
from fedunlearn.backends.in_process import InProcess
from fedunlearn.contract import size_of, small_task
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.flops import SampleFlops
from fedunlearn.evaluation.follow import require
from fedunlearn.evaluation.rows import Row
from fedunlearn.experiment import Experiment
from fedunlearn.federation import Traffic, Work
from fedunlearn.history import KINDS, HistoryKind
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.methods.fedosd import FedOSD
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.neggrad import NegGradPlus
from fedunlearn.methods.notnot import NotNot
from fedunlearn.methods.pgd import PGD
from fedunlearn.methods.puf import PUF
from fedunlearn.methods.randl import RandL
from fedunlearn.methods.salun import SalUn
from fedunlearn.needs import Circumstances, NeedsError, Size
from fedunlearn.programs import LocalTraining
from fedunlearn.recommend import CANDIDATES, Candidate, Offer, recommend
from fedunlearn.requests import ForgetClass, ForgetClient
from fedunlearn.runner import run
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.task import Method, Task
from tiny import load_tiny

OTHER = (
    *("data.samples=41", "data.proxy=24", "training.rounds=3", "training.batch_size=9"),
    *("training.optimizer.lr=0.02", "recovery.rounds=2"),
)

SHORT = {  # one may stop early, the others take long
    "PGD": PGD(squared_stop_distance=1e9),
    "FedOSD": FedOSD(rounds=2),
    "RandL": RandL(rounds=2),
    "NegGrad+": NegGradPlus(epochs=2),
    "SalUn": SalUn(rounds=2),
}

ALL = Circumstances(history=frozenset(KINDS), proxy=True)
FLOPS = SampleFlops(forward=2, backward=3)
SIZE = Size(  # two stay and one goes; a batch of each
    message=100,
    buffers=7,
    tensors=3,
    training=LocalTraining(batch_size=64),
    retained={"1": 10, "2": 20},
    forgotten={"0": 40},
    proxy=5,
    clients=3,
    rounds=4,
)


def offered(circumstances: Circumstances = ALL, **limits: float) -> list[Offer]:
    return recommend(SIZE, circumstances, FLOPS, 6, training_rounds=4, **limits)  # type: ignore[arg-type]


def can_run(offers: Sequence[Offer]) -> list[str]:
    return [offer.label for offer in offers if not offer.lacking]


def simulated(plan: Experiment) -> tuple[Size, SampleFlops]:
    """The size of the task that an experiment's only seed will have, before it runs."""
    setting = Setting.of(plan, workers=1)
    partition = Simulation(setting, plan.seeds[0]).partition
    weights = setting.architecture.fresh(0)
    held = {client: sum(classes) for client, classes in zip(partition.clients, partition.classes, strict=True)}
    goes = dict(zip(partition.clients, partition.forget, strict=True))
    size = Size(
        weights.parameter_bytes,
        weights.nbytes - weights.parameter_bytes,
        len(weights.parameters),
        plan.training.program(),
        {client: held[client] - goes[client] for client in held if held[client] > goes[client]},
        {client: samples for client, samples in goes.items() if samples},
        proxy=plan.data.proxy,
        clients=len(held),
        rounds=plan.training.rounds,
    )
    return size, setting.flops


@pytest.mark.parametrize(
    ("request_", "epochs"),
    [
        ('{ kind = "Client", client = "0" }', 1.5),
        ('{ kind = "Class", label = 2 }', 2.0),  # in half an epoch it is chance how many MoDE labels
    ],
)
def test_what_is_predicted_is_what_a_run_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: str, epochs: float
) -> None:
    monkeypatch.setattr(Simulation, "score", lambda *_, **__: None)  # takes long, and is in no bill
    plan = load_tiny(tmp_path, *OTHER, f"request={request_}", f"training.epochs={epochs}")
    whole = "Client" in request_
    short = [SHORT.get(c.name, c.method) for c in CANDIDATES if whole or not c.method.needs.whole_clients]
    plan = dataclasses.replace(plan, methods=tuple(short))
    size, flops = simulated(plan)
    if whole:  # 41 samples, of which 8 are kept for validation
        assert (size.retained, size.forgotten) == ({"1": 33, "2": 33, "3": 33}, {"0": 33})
    labelled = [Candidate(label, method) for label, method in zip(plan.labels, plan.methods, strict=True)]
    circumstances = replace(ALL, whole_clients=whole)
    offers = recommend(size, circumstances, flops, 2, training_rounds=3, candidates=labelled)
    rows: dict[str, Row] = {row.method: row for row in run(plan, tmp_path / "run", workers=1)}
    assert len(offers) == len(CANDIDATES) - (0 if whole else 3)
    assert {offer.method.needs.history for offer in offers} == (
        {None, "norms", "updates", "sum", "last_local"} if whole else {None, "norms"}
    )
    for offer in offers:
        row = rows[offer.name]
        assert (row.phase, row.rounds) == ("recover", offer.rounds), offer.label
        # All bytes and passes; of FT there is no unlearning step at all.
        assert offer.unlearning == replace(row.costs.get("unlearn", Cost()), seconds=0.0), offer.label
        assert offer.total == replace(row.bill(), seconds=0.0), offer.label


def test_all_methods_that_unlearn_are_offered_and_variants_that_do_with_less() -> None:
    tests_of_theory = ["NR-Freeze", "P-Freeze", "R-Freeze"]
    assert [c.name for c in CANDIDATES if not c.changed] + tests_of_theory == list(CATALOGUE)
    assert [(one.label, one.method) for one in CANDIDATES if one.changed] == [
        ("MoDE(guide_target=False)", MoDE(guide_target=False)),
        ("PUF(rate=20.0, round=regular)", PUF(rate=20.0, round="regular")),
    ]
    assert sorted(can_run(offered())) == sorted(candidate.label for candidate in CANDIDATES)


def test_prices_by_hand() -> None:
    offers = {offer.label: offer for offer in offered()}
    # A round: two clients get 100 bytes of parameters and 7 of buffers, and send as much; 30 samples there and back.
    a_round = Traffic(200, 200, 214, 214, Work(30, 30))
    assert offers["FT"].total == Cost(a_round * 6, 6 * 30 * (2 + 3))
    assert offers["Retrain"].total == Cost(a_round * 4, 4 * 30 * (2 + 3))
    assert offers["PUF"].unlearning == Cost(Traffic(100, 100, 107, 107, Work(40, 40)), 40 * (2 + 3))
    assert offers["FUKD"].unlearning == Cost(Traffic(work=Work(30, 15)), 30 * 2 + 15 * 3, storage=300)
    assert offers["PGD"].unlearning is not None
    assert offers["PGD"].unlearning.storage == 300
    norms, updates = (offers[name].total for name in ("FedEraser", "FedAccum"))
    assert norms is not None
    assert updates is not None
    assert norms.storage == 100 * (1 + 3) + 3 * 4 * 3 * 4  # of three clients, four rounds, three tensors, four bytes
    assert updates.storage == 100 * (1 + 3 * 4) + 3 * 4 * 3 * 4


def test_recovery_with_local_work_of_its_own() -> None:
    """Three epochs, at three times the operations and the same bytes; Retrain's rounds are those of training."""
    longer = replace(SIZE.training, epochs=3)
    offers = {offer.name: offer.total for offer in recommend(SIZE, ALL, FLOPS, 6, training_rounds=4, recovery=longer)}
    a_round = Traffic(200, 200, 214, 214, Work(90, 90))
    assert offers["FT"] == Cost(a_round * 6, 6 * 90 * (2 + 3))
    assert offers["Retrain"] == Cost(Traffic(200, 200, 214, 214, Work(30, 30)) * 4, 4 * 30 * (2 + 3))


def test_guidance_in_half_an_epoch_labels_the_mean_of_what_chance_gives() -> None:
    # 30 of 90 samples go; one and a half epochs in batches of 10 are 14 batches, 140 passes, a third of them labelled.
    size = replace(SIZE, training=LocalTraining(epochs=1.5, batch_size=10), retained={"0": 60}, forgotten={"0": 30})
    assert MoDE(rounds=1, erasure_rounds=0).cost(size).work == Work(140 + 140 // 3, 140)


def test_by_bytes_then_by_operations() -> None:
    keys = [(offer.total.traffic.both_ways, offer.total.flops) for offer in offered() if offer.total]
    assert keys == sorted(keys)
    assert len(set(keys)) > 8
    assert [offer.name for offer in offered()[:3]] == ["Retrain", "FT", "NoT"]  # four rounds, then six


def test_those_that_cannot_run_come_last_without_a_price() -> None:
    offers = offered(replace(ALL, target_online=False))
    lacking = [bool(offer.lacking) for offer in offers]
    assert lacking == sorted(lacking)
    assert any(lacking)
    assert not all(lacking)
    for offer in offers:
        assert (offer.unlearning is None) == (offer.total is None) == bool(offer.lacking)
        assert offer.summary()["can_run"] == (offer.summary()["total"] is not None) == (not offer.lacking)


@pytest.mark.parametrize(
    ("circumstances", "refused", "says"),
    [
        (replace(ALL, history=frozenset()), {"FedEraser", "FedAccum", "FUKD", "PGD"}, "a history of kind"),
        (
            replace(ALL, history=frozenset({"updates"})),  # which serves norms
            {"FUKD", "PGD"},
            "a history of kind",
        ),
        (replace(ALL, proxy=False), {"FUKD"}, "proxy data at the server"),
        (
            replace(ALL, target_online=False),
            {
                *("PGD", "MoDE", "FCU", "PUF", "PUF(rate=20.0, round=regular)", "FedOSD", "FedQUIT"),
                *("GA", "NegGrad+", "BadT", "SCRUB", "RandL", "SSD", "SalUn"),
            },
            "whose holder has left",
        ),
        (replace(ALL, single_updates=False), {"FedEraser", "FedOSD"}, "single updates, which secure aggregation"),
        (replace(ALL, whole_clients=False), {"FedAccum", "FUKD", "PGD"}, "cannot forget a part of a client"),
        (
            replace(ALL, retain_online=False),
            {
                *("FedEraser", "MoDE", "MoDE(guide_target=False)", "PUF(rate=20.0, round=regular)", "FedOSD"),
                *("NegGrad+", "BadT", "SCRUB", "RandL", "l1-sparse", "SSD", "SalUn"),
            },
            "clients that stay",
        ),
    ],
)
def test_each_refusal_has_its_reason(circumstances: Circumstances, refused: set[str], says: str) -> None:
    lacking = {offer.label: offer.lacking for offer in offered(circumstances) if offer.lacking}
    assert set(lacking) == refused
    assert all(len(reasons) == 1 and says in reasons[0] for reasons in lacking.values())


def test_when_all_are_gone_and_nothing_was_kept() -> None:
    left = offered(Circumstances(target_online=False))
    assert set(can_run(left)) == {"Retrain", "FT", "NoT", "NotNot", "Perturb", "MoDE(guide_target=False)", "l1-sparse"}


def test_what_exceeds_a_limit_comes_after_what_does_not() -> None:
    within = {offer.label: offer.total for offer in offered()}
    negated, retrained = within["NoT"], within["Retrain"]
    assert negated is not None
    assert retrained is not None
    limit = negated.traffic.both_ways
    at, below = ({o.label: o.exceeded for o in offered(max_bytes=most)} for most in (limit, limit - 1))
    assert not at["NoT"]
    assert below["NoT"] == ("2.4 kB sent, more than 2.4 kB",)
    assert not below["Retrain"]
    offers = offered(max_bytes=limit, max_flops=retrained.flops, max_storage=0)
    exceeds = [bool(offer.exceeded) for offer in offers]
    assert exceeds == sorted(exceeds)
    told = {offer.label: offer.exceeded for offer in offers}
    assert not told["Retrain"]
    assert told["NoT"] == ("900 FLOPs, more than 600",)
    assert told["FedAccum"] == ("900 FLOPs, more than 600", "1.44 kB stored, more than 0 B")
    assert len(told["FedEraser"]) == 3


def test_what_lacks_something_exceeds_nothing() -> None:
    offers = {offer.label: offer for offer in offered(replace(ALL, proxy=False), max_bytes=0)}
    assert offers["FUKD"].lacking
    assert offers["FUKD"].exceeded == ()
    assert offers["NoT"].exceeded


def test_what_can_run_is_not_refused_and_what_cannot_is() -> None:
    histories: list[frozenset[HistoryKind]] = [frozenset(), frozenset(KINDS), *(frozenset({kind}) for kind in KINDS)]
    for history, *flags in itertools.product(histories, *[(True, False)] * 5):
        found = Circumstances(history, *flags)
        for offer in offered(found):
            assert refused(offer.method, found) == bool(offer.lacking), (offer.label, found)


def refused(method: Method, found: Circumstances) -> bool:
    try:
        method.needs.require(found, method.name)
    except NeedsError:
        return True
    return False


def test_of_real_tasks_too(one_worker: InProcess) -> None:
    whole, part = small_task(ForgetClient("1"), one_worker), small_task(ForgetClass(2), one_worker)
    gone = Task.of(one_worker, whole.weights, ForgetClient("1"), whole.training, whole.architecture, left=("1",))
    for task in (whole, part, gone, replace(part, single_updates=False), replace(whole, history=None, proxy=None)):
        offers = recommend(size_of(task), task.circumstances, FLOPS, 1, training_rounds=2)
        for offer in offers:
            if offer.lacking:
                with pytest.raises(NeedsError):
                    require(offer.method, task)
            else:  # the small network has no pair of layers
                require(NotNot("conv") if offer.name == "NotNot" else offer.method, task)
    assert len(can_run(recommend(size_of(gone), gone.circumstances, FLOPS, 1, training_rounds=2))) >= 4


def test_a_method_of_ones_own() -> None:
    mine = Candidate("mine", PGD(iterations=1, updates=1))
    (offer,) = recommend(SIZE, ALL, FLOPS, 0, training_rounds=1, candidates=[mine])
    assert offer.label == "mine(iterations=1, updates=1)"
    assert offer.total == offer.unlearning == Cost(Traffic(200, 100, 214, 107, Work(40, 40)), 200, storage=300)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GB", 2 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        (".5kB", 500),
        ("3KB", 3000),
        ("7", 7),
        ("1e3", 1000),
        ("2e-1 PB", 2 * 10**14),
        ("1TiB", 2**40),
        ("0B", 0),
    ],
)
def test_reading_bytes(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "2gb",
            "there is no unit 'gb' of bytes: write B, kB, MB, GB, TB, PB, EB, KiB, MiB, GiB, TiB, PiB, EiB, or none",
        ),
        ("2 parsecs", "no unit 'parsecs'"),
        ("GB", "'GB' is no amount of bytes: write it as 2GB, 500MiB or 2000000"),
        ("-1GB", "is no amount"),
        ("1e999", "is no amount"),
        ("1.2.3GB", "is no amount"),
        ("inf", "is no amount"),
        ("", "is no amount"),
    ],
)
def test_no_amounts_of_bytes(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.9, "1 kB"),
        (999_900, "1 MB"),
        (44_726_568, "44.7 MB"),
        (3e18, "3 EB"),
        (3e21, "3e+03 EB"),
    ],
)
def test_telling_bytes(amount: float, text: str) -> None:
    assert tell_bytes(amount) == text


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, ("0", "")), (0.0123, ("0.0123", "")), (-1500, ("-1.5", "k")), (999_950, ("1", "M")), (2.5e19, ("25", "E"))],
)
def test_scaling_numbers(number: float, told: tuple[str, str]) -> None:
    assert scaled(number) == told
