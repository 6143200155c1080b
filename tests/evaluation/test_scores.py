"""Following, scoring and tabulating: numbers by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Metered
from fedunlearn.contract import small_task
from fedunlearn.evaluation.cost import Account, Cost
from fedunlearn.evaluation.flops import SampleFlops
from fedunlearn.evaluation.follow import follow, unlearn
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.scores import LOSS_EDGES, MEASURES, Scores, average_gap, score, validate
from fedunlearn.evaluation.table import table
from fedunlearn.federation import Phase, Traffic
from fedunlearn.methods.negation import NoT
from fedunlearn.requests import ForgetClass, ForgetClient
from fedunlearn.rounds import Round
from fedunlearn.task import Task

CPU = torch.device("cpu")


def scores(retain: float, forget: float = 0.0, test: float = 0.0, mia: float = 0.0) -> Scores:
    return Scores(retain, forget, test, mia, 0.0)


def test_the_gap_has_two_readings() -> None:
    """Retain 90 and 94 against 92 and 92: the means agree, so 0; but each seed is 2 off, over four measures 0.5."""
    gap = average_gap([scores(90), scores(94)], [scores(92), scores(92)])
    assert (gap.of_means, gap.mean) == (0, 0.5)


def test_the_papers_row() -> None:
    """Table 1, CIFAR-10 with the CNN: NoT against Retrain, printed gap 0.29."""
    retrain, negated = scores(91.66, 83.05, 82.32, 50.23), scores(91.69, 83.86, 82.65, 50.23)
    assert round(average_gap([negated], [retrain]).of_means, 2) == 0.29


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 8), min_size=1, max_size=5))
def test_the_mean_of_gaps_is_never_below_the_gap_of_means(rows: list[tuple[float, ...]]) -> None:
    gap = average_gap([scores(*row[:4]) for row in rows], [scores(*row[4:]) for row in rows])
    assert gap.mean >= gap.of_means - 1e-9
    assert average_gap([scores(*row[:4]) for row in rows], [scores(*row[:4]) for row in rows]).mean == 0


def test_a_gap_needs_as_many_retrained_models() -> None:
    with pytest.raises(ValueError, match="one seed at least"):
        average_gap([], [])
    with pytest.raises(ValueError, match="zip"):
        average_gap([scores(1)], [scores(1), scores(2)])


def test_scores_are_what_a_plain_pass_gives(one_worker: InProcess) -> None:
    task = small_task(ForgetClass(1), one_worker)
    found = score(task.weights, task.everyone, one_worker, seed=0)
    net = task.architecture.network(task.weights, torch.device("cpu")).eval()
    right: dict[str, list[bool]] = {"retain": [], "forget": [], "test": []}
    for client in one_worker._engine.clients.values():
        with torch.no_grad():
            correct = net(client.samples.inputs(client.indices, None, CPU)).argmax(1) == client.labels
        for hit, label, kept_out in zip(correct.tolist(), client.labels, client.validation, strict=True):
            right["test"].append(hit)  # here: all samples of everybody
            if not kept_out:
                right["forget" if label == 1 else "retain"].append(hit)
    for name, hits in right.items():
        assert getattr(found, name) == pytest.approx(100 * sum(hits) / len(hits))
    assert 0 <= found.mia <= 100
    assert found.mia_efficacy is not None
    assert 0 <= found.mia_efficacy <= 100
    assert found.losses is not None
    for name, hits in right.items():
        assert sum(getattr(found.losses, name)) == len(hits)
    plain = score(task.weights, task.everyone, one_worker, 0, final=False, validation=7.0)
    assert plain == replace(found, mia_efficacy=None, losses=None, validation=7.0)


def test_losses_are_counted_between_the_edges() -> None:
    """Below the first edge in the first bin, above the last in the last, 1.0 where it belongs."""
    from fedunlearn.evaluation.scores import _counts

    assert (len(LOSS_EDGES), LOSS_EDGES[0], LOSS_EDGES[36], LOSS_EDGES[-1]) == (49, 1e-6, 1.0, 100.0)
    counts = _counts(torch.tensor([0.0, 1e-9, 1.01, 1.02, 1e9]))
    assert (sum(counts), counts[0], counts[36], counts[47]) == (5, 2, 2, 1)
    losses = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double() * 3
    expected, _ = np.histogram(losses.numpy(), LOSS_EDGES)
    assert _counts(losses) == tuple(expected)


def test_validation_is_the_share_of_all_samples_that_are_right(one_worker: InProcess) -> None:
    task = small_task(ForgetClass(1), one_worker)
    net = task.architecture.network(task.weights, torch.device("cpu")).eval()
    hits = []
    for client in one_worker._engine.clients.values():
        mine = client.validation & (client.labels != 1)
        with torch.no_grad():
            hits += (net(client.samples.inputs(client.indices, None, CPU)).argmax(1) == client.labels)[mine].tolist()
    assert validate(task.retained, task.weights, 0) == pytest.approx(100 * sum(hits) / len(hits))
    assert validate(one_worker.where(ForgetClient("nobody")), task.weights, 0) is None


def test_scoring_changes_nothing_and_repeats(one_worker: InProcess) -> None:
    task = small_task(ForgetClass(1), one_worker)
    assert score(task.weights, task.everyone, one_worker, 0) == score(task.weights, task.everyone, one_worker, 0)


def test_time_between_steps_is_in_nobodys_seconds(one_worker: InProcess) -> None:
    class Slow(NoT):
        def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
            time.sleep(0.05)
            yield Round(0, task.weights)

    seconds = []
    for step in follow(Slow(), small_task(ForgetClient("1"), one_worker), 1):
        seconds.append(step.seconds)
        time.sleep(0.5)
    assert 0.05 <= seconds[0] < 0.4
    assert seconds[1] < 0.4


def test_unlearn_is_the_last_step(one_worker: InProcess) -> None:
    task = small_task(ForgetClient("1"), one_worker)
    assert unlearn(NoT(), task, 2).same_bits(list(follow(NoT(), task, 2))[-1].round.after)
    with pytest.warns(UserWarning, match="nothing is to be forgotten"):
        assert unlearn(NoT(), small_task(ForgetClient("nobody"), one_worker), 2).same_bits(task.weights)


def test_an_account_of_two_phases(one_worker: InProcess) -> None:
    """Two rounds of three clients with 16 + 18 + 19 training samples; 10 operations there and 20 back for each."""
    account = Account(SampleFlops(10, 20), storage=5)
    task = small_task(ForgetClient("1"), one_worker)
    metered = replace(task, retained=Metered(task.retained, account.ledger))
    for step in follow(NoT(), metered, 2):
        account.add(step.phase, step.seconds)
    negation, recovery = (account.costs()[phase] for phase in ("unlearn", "recover"))  # type: ignore[index]
    assert negation.traffic == Traffic()
    assert (negation.flops, negation.storage) == (0, 5)
    assert recovery.flops == 2 * 53 * 30
    assert recovery.traffic.down == recovery.traffic.up == 2 * 3 * task.weights.parameter_bytes
    both = negation + recovery
    assert (both.flops, both.storage) == (recovery.flops, 5)
    assert both.seconds == negation.seconds + recovery.seconds
    again = Account(SampleFlops(10, 20), storage=5, paid=account.costs())
    assert again.costs() == account.costs()
    again.add("recover", 2.0)
    again.ledger.phases["recover"] += Traffic(down=7)
    assert again.costs()["recover"].seconds == recovery.seconds + 2
    assert again.costs()["recover"].traffic == recovery.traffic + Traffic(down=7)
    assert again.costs()["unlearn"] == negation


def row(seed: int, method: str, rounds: int, retain: float | None, **more: float) -> Row:
    found = None if retain is None else scores(retain)
    costs: dict[Phase, Cost] = {"unlearn": Cost(Traffic(4, 5), 3, 0.5), "recover": Cost(Traffic(10, 20), 7, 1.0, 8)}
    if "seconds" in more:
        costs["recover"] = replace(costs["recover"], seconds=more["seconds"])
    return Row(seed, method, "recover", rounds, costs, found)


def test_the_table_by_hand() -> None:
    """FT: 80 and 90 at round 10, so 85 ± 7.07, 10 from Retrain's 95; over four measures 2.5."""
    rows = [
        *(row(seed, "Retrain", 20, 95) for seed in (0, 1)),
        *(row(0, "FT", rounds, retain) for rounds, retain in ((1, None), (5, 92), (10, 80))),
        *(row(1, "FT", rounds, retain, seconds=3.0) for rounds, retain in ((5, 94), (10, 90))),
    ]
    retrain, tuned = table(rows)
    assert (retrain.method, retrain.rounds, retrain.gap.of_means) == ("Retrain", 20, 0)
    assert tuned.retain.mean == 85
    assert tuned.retain.sd == pytest.approx(7.0710678)
    assert tuned.retain.distance == 10
    assert (tuned.gap.of_means, tuned.gap.mean) == (2.5, 2.5)
    assert tuned.storage == 8
    assert (tuned.seeds, tuned.rounds, tuned.bytes, tuned.flops, tuned.seconds) == (2, 10, 39, 10, 2.5)


def test_there_is_no_table_without_the_reference() -> None:
    with pytest.raises(ValueError, match="no gap without Retrain"):
        table([row(0, "FT", 1, 90)])


def test_the_measures_are_those_of_the_scores() -> None:
    assert set(MEASURES) < set(Scores.__dataclass_fields__)
