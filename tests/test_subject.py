"""What a diagnosis looks at: a run's models and samples, and which runs have none to be looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diagnosed import LABELS, ROUNDS
from fedunlearn.checkpoint import CheckpointError, load_weights
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.federation import Turn
from fedunlearn.methods.negation import NoT
from fedunlearn.requests import Rest
from fedunlearn.runfolder import FolderError
from fedunlearn.subject import FIRST, LAST, Inputs, Subject, complete_seeds, subjects


@pytest.fixture
def folder(kept: Path) -> Path:
    return kept


@pytest.fixture(scope="module")
def subject(kept: Path) -> Subject:
    return next(subjects(kept, most=1000))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """Of the run, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_the_seeds_come_one_after_the_other(folder: Path) -> None:
    assert [one.seed for one in subjects(folder)] == [3, 4]
    assert [one.seed for one in subjects(folder, seeds=(4,))] == [4]
    assert complete_seeds(folder, (4, 3)) == (3, 4)


def test_models_are_those_that_the_run_has_kept(folder: Path, subject: Subject) -> None:
    assert subject.labels == LABELS
    assert set(subject.models) == {(ORIGINAL, LAST), *((label, at) for label in LABELS for at in (FIRST, LAST))}
    at = folder / "seed-3"
    assert subject.original.same_bits(load_weights(at / "0-First-training" / "weights" / "train-0006.safetensors"))
    for number, label in enumerate(LABELS, start=2):
        kept = at / f"{number}-{label}" / "weights"
        assert subject.models[label, FIRST].same_bits(load_weights(kept / "unlearned.safetensors"))
        assert subject.models[label, LAST].same_bits(load_weights(kept / "recover-0006.safetensors"))
    assert list(subject.negating) == ["NoT"]
    assert isinstance(subject.negating["NoT"], NoT)


def test_a_path_has_every_model_that_was_kept_on_the_way(subject: Subject) -> None:
    path = subject.path("NoT")
    assert [rounds for rounds, _ in path] == list(range(ROUNDS + 1))
    assert path[0][1].same_bits(subject.models["NoT", FIRST])
    assert path[-1][1].same_bits(subject.models["NoT", LAST])
    assert len({weights.digest() for _, weights in path}) == ROUNDS + 1


def test_a_path_of_which_a_model_is_gone_is_refused(copy: Path) -> None:
    (gone,) = copy.glob("seed-3/*-NoT/weights/recover-0002.safetensors")
    gone.unlink()
    with pytest.raises(CheckpointError, match="recover-0002"):
        next(subjects(copy, most=1000)).path("NoT")


def test_samples_are_the_clients_own_without_those_for_validation(subject: Subject) -> None:
    """Four clients with 60 each, 48 of them to train on; client 0 leaves."""
    x, y = subject.retained
    assert (len(x), len(y), len(subject.forgotten[1])) == (3 * 48, 3 * 48, 48)
    partition = subject.simulation.partition
    leaves, *stay = partition.classes
    assert torch.bincount(subject.forgotten[1], minlength=10).tolist() == list(leaves)
    assert torch.bincount(y, minlength=10).tolist() == [sum(held) for held in zip(*stay, strict=True)]
    held = [{tuple(one.flatten().tolist()) for one in samples} for samples in (x, subject.forgotten[0])]
    assert held[0].isdisjoint(held[1])
    assert torch.equal(subject.example, x[:2])


def test_test_samples_are_the_data_sets_own(subject: Subject) -> None:
    data = subject.simulation.setting.data.test
    x, y = subject.test
    assert len(y) == min(1000, len(data.labels))
    assert torch.bincount(y, minlength=10).tolist() == torch.bincount(data.labels, minlength=10).tolist()
    assert x.shape[1:] == subject.simulation.setting.data.shape


def test_of_many_samples_some_are_drawn_always_the_same(folder: Path) -> None:
    one, again = (next(subjects(folder, most=20)).retained for _ in range(2))
    assert len(one[1]) == 20
    assert torch.equal(one[0], again[0])


def test_they_are_drawn_from_all_clients(folder: Path) -> None:
    few = next(subjects(folder, most=20))
    federation = few.simulation.federation.where(Rest(few.plan.forgotten))
    replies = federation.run(Inputs(), few.original, Turn(3, "evaluate", 0))

    def rows(samples: Tensor) -> set[tuple[float, ...]]:
        return {tuple(x.flatten().tolist()) for x in samples}

    held = {client: rows(reply.values["x"]) for client, reply in replies if reply.values}
    drawn = rows(few.retained[0])
    assert list(held) == ["1", "2", "3"]
    assert all(drawn & of for of in held.values())


def test_a_network_of_its_own_in_eval_mode(subject: Subject) -> None:
    network = subject.network(subject.models["NoT", LAST])
    assert not network.training
    assert network is not subject.network(subject.models["NoT", LAST])
    kept = subject.models["NoT", LAST].parameters["conv1.weight"]
    assert torch.equal(network.get_parameter("conv1.weight"), kept)


def test_fresh_weights_differ_by_purpose_and_seed_and_from_all_that_were_drawn(folder: Path) -> None:
    first, second = subjects(folder)
    drawn = [first.fresh("rest"), first.fresh("else"), second.fresh("rest"), first.models["Retrain", FIRST]]
    assert len({weights.digest() for weights in drawn}) == len(drawn)
    assert first.fresh("rest").same_bits(drawn[0])


def test_a_method_that_diverged_at_one_seed_is_left_out_at_all(copy: Path) -> None:
    path = copy / "seed-4" / "3-FT" / "complete.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "failed": "the loss became nan"}))
    assert [one.labels for one in subjects(copy)] == [("Retrain", "NoT")] * 2
    assert [one.labels for one in subjects(copy, seeds=(3,))] == [LABELS]


def test_only_complete_seeds_are_looked_at(copy: Path) -> None:
    (copy / "seed-3" / "4-NoT" / "complete.json").unlink()
    assert complete_seeds(copy) == (4,)
    with pytest.raises(FolderError, match=r"seed 3 of .*copy is not complete: let the run go on, by the same command"):
        complete_seeds(copy, (3, 4))
    (copy / "seed-4" / "4-NoT" / "complete.json").unlink()
    with pytest.raises(FolderError, match=r"no seed of .*copy is complete: let the run go on"):
        complete_seeds(copy)


def test_what_has_no_models_is_refused_in_a_sentence(folder: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="nothing is no run's folder"):
        complete_seeds(tmp_path / "nothing")
    with pytest.raises(FolderError, match="has no seed 7: take one of 3, 4"):
        complete_seeds(folder, (3, 7))
    shutil.copytree(folder, tmp_path / "asked" / "request-1")
    with pytest.raises(FolderError, match=r"holds the runs of several requests: take .*request-1"):
        complete_seeds(tmp_path / "asked")
    text = (copy / "experiment.toml").read_text()
    (copy / "experiment.toml").write_text(text.replace("first = true", "first = false"))
    with pytest.raises(FolderError, match=r"run it with keep\.first and keep\.last true"):
        complete_seeds(copy)


def test_other_data_than_the_runs_are_refused(copy: Path) -> None:
    said = json.loads((copy / "environment.json").read_text())
    said["sessions"][-1]["decides"]["test data"] = "other"
    (copy / "environment.json").write_text(json.dumps(said))
    with pytest.raises(FolderError, match="was run with other test data than there is now: look at it where its data"):
        next(subjects(copy))
