"""Advice on a run, and `fedunlearn advise`: what came of the sets, which sets are whose, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F  # noqa: N812

from diagnosed import quick, tell
from fedunlearn import diagnoses
from fedunlearn.checkpoint import save_weights
from fedunlearn.data import datasets
from fedunlearn.diagnoses import Advised, advised, advised_alone, gaps_on_the_way
from fedunlearn.evaluation.rows import Row
from fedunlearn.findings import read_found
from fedunlearn.methods.negation import NoT
from fedunlearn.record import _digest
from fedunlearn.report.theory.page import section_of
from fedunlearn.runfolder import RunFolder
from fedunlearn.subject import FIRST as UNLEARNED
from fedunlearn.subject import LAST, Subject, subjects
from fedunlearn.theory.advice import advise
from fedunlearn.weights import Weights


def small() -> nn.Module:
    """A network of a user's own, for digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))


def twofold() -> nn.Module:
    """Of a user's own, with a single layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


SMALL = "test_advised:small"


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def subject(kept: Path) -> Subject:
    return next(subjects(kept, most=60))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the user's network, trained on digits."""
    torch.manual_seed(0)
    network, data = small(), datasets.load("digits")
    x, y = data.train.inputs(torch.arange(len(data.train.labels)), None, torch.device("cpu")), data.train.labels
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    path = tmp_path_factory.mktemp("digits") / "small.safetensors"
    save_weights(Weights.of(network), path)
    return path


# What came of each method


def test_gaps_are_means_over_scored_rounds_by_hand(tmp_path: Path, kept: Path) -> None:
    """Retrain ends at 90, 50, 80 and 50; all rounds of recovery that are scored count, and no other."""
    home = Path(shutil.copytree(kept, tmp_path / "run"))
    scores = {
        "Retrain": [(2, (60, 40, 50, 50)), (6, (90, 50, 80, 50))],
        "FT": [(3, (90, 70, 80, 50)), (6, (86, 58, 76, 54))],  # 20 / 4 = 5 and (4 + 8 + 4 + 4) / 4 = 5
        "NoT": [(6, (90, 50, 80, 58))],  # 8 / 4
    }
    for number, (label, rounds) in enumerate(scores.items(), start=2):
        path = home / "seed-3" / f"{number}-{label}" / "rows.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        known = next(row["scores"] for row in reversed(rows) if row["scores"])
        for row in rows:
            row["scores"] = known if row["phase"] == "unlearn" else None
        for after, values in rounds:
            row = next(row for row in rows if (row["phase"], row["rounds"]) == ("recover", after))
            row["scores"] = known | dict(zip(("retain", "forget", "test", "mia"), values, strict=True))
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        complete = json.loads((path.parent / "complete.json").read_text())
        complete["digest"] = _digest([TypeAdapter(Row).validate_python(row) for row in rows])
        (path.parent / "complete.json").write_text(json.dumps(complete))
    found = gaps_on_the_way(RunFolder(home), 3)
    assert found == {
        "Retrain": pytest.approx((30 + 10 + 30 + 0) / 4 / 2),
        "FT": pytest.approx(5),
        "NoT": pytest.approx(2),
    }


# Whose set is whose


@pytest.fixture
def negating(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Subject]:
    """As if the run had negated so, with gaps of 1, 2 and so on."""

    def made(*methods: NoT) -> Subject:
        plan = replace(subject.plan, methods=(*subject.plan.methods[:2], *methods))
        labels, last = plan.labels[2:], subject.models["NoT", LAST]
        models = {key: value for key, value in subject.models.items() if key[0] != "NoT"}
        models |= {(label, at): last for label in labels for at in (UNLEARNED, LAST)}
        gaps = {label: float(number) for number, label in enumerate(labels, start=1)}
        monkeypatch.setattr(diagnoses, "gaps_on_the_way", lambda *_: gaps)
        return replace(subject, plan=plan, models=models)

    return made


def test_the_sets_of_a_runs_methods_are_compared_with_what_came_of_them(negating: Callable[..., Subject]) -> None:
    """A layer twice counts as the first time; a weight with its bias, and rows of one, are something else."""
    found = advised(
        negating(
            NoT(),
            NoT(layers=("conv2", "conv1.weight")),
            NoT(layers="conv1"),
            NoT(layers="conv2", include_bias=True),
            NoT(layers="conv2[0:2]"),
        )
    )
    assert set(found.candidates) == {"conv1", "conv1, conv2"}
    assert found.outcomes == {"conv1": 1, "conv1, conv2": 2}
    assert found.depth == {"conv1": 0, "conv1, conv2": 0}
    assert found.samples == (60, 60)


def test_named_sets_have_an_outcome_however_they_are_written(negating: Callable[..., Subject]) -> None:
    run = negating(NoT(layers="conv1"), NoT(layers=("conv1", "conv2")))
    found = advised(run, (("conv2", "conv1.weight"), ("conv2.weight",)))
    assert set(found.candidates) == {"conv1, conv2", "conv2"}
    assert found.outcomes == {"conv1, conv2": 2}
    assert found.depth == {"conv1, conv2": 0, "conv2": 1}


def test_of_a_run_that_negates_once_all_candidates_are_ranked(subject: Subject) -> None:
    found = advised(subject)
    assert set(found.candidates) == {"conv1", "conv2", "conv1, conv2"}
    assert found.outcomes == {"conv1": gaps_on_the_way(subject.home, 3)["NoT"]}


def test_a_runs_prediction_is_that_of_its_models_and_samples(subject: Subject) -> None:
    alone = advise(
        subject.network(subject.original),
        subject.example,
        fresh=subject.network(subject.fresh("advice")),
        trained_on=subject.retained,
        unseen=subject.test,
        seed=3,
    )
    assert list(advised(subject).candidates.values()) == list(alone.candidates)


def test_without_a_run_nothing_came_of_anything() -> None:
    found = advised_alone(small(), torch.zeros(2, 1, 8, 8))
    assert list(found.candidates) == ["1", "3", "1, 3"]
    assert (found.outcomes, found.samples) == ({}, (0, 0))
    assert found.depth == {"1": 0, "3": 1, "1, 3": 0}


# The command


def test_a_network_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = tell("advise", SMALL, "--shape", "1,8,8")
    assert (code, err) == (0, "")
    assert out.startswith("Which layers to negate\n")
    assert "nothing is predicted" in out
    assert out.endswith("theory: theory/test_advised.small/theory.html\n")
    assert "<h1>test_advised:small</h1>" in Path("theory/test_advised.small/theory.html").read_text()


def test_a_trained_network_with_its_data_and_sets(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--weights", digits, "--data", "digits", "--samples", 200, "--layer", "3, 1", "--layer", "1")
    code, out, err = tell("advise", SMALL, *given, "--json", "-o", "own")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert (content["folder"], content["about"], content["seeds"]) == ("own", "test_advised:small on digits", [])
    (result,) = content["results"]
    assert set(result["candidates"]) == {"1, 3", "1"}
    assert result["samples"] == [200, 200]
    assert all(one["prediction"]["changed"] > 0.2 for one in result["candidates"].values())
    (kept,) = read_found(Path("own/theory/advice.json"), Advised).results
    assert (
        json.loads(json.dumps(content["results"])) == json.loads(Path("own/theory/advice.json").read_text())["results"]
    )
    torch.manual_seed(1)  # the fresh network is the same all the same
    assert json.loads(tell("advise", SMALL, *given, "--json", "-o", "own")[1])["results"] == content["results"]
    code, out, _ = tell("advise", SMALL, *given, "-o", "own")
    assert code == 0
    best = min(kept.candidates.values(), key=lambda one: one.prediction.distance if one.prediction else 0)
    assert f"\n1. {best.name} " in out
    assert f"\n1. {best.name}: {best.expected[:40]}" in out  # below the table, which has no room for sentences
    assert "to expect" not in out
    assert max(map(len, out.splitlines())) <= 160


def test_a_run(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedunlearn.report.page.publish", lambda *_: None)  # the run's own page, which takes seconds
    run = Path(shutil.copytree(kept, tmp_path / "run"))
    code, out, err = tell("advise", run, "--samples", 60, "--layer", "conv1", "--layer", "conv1,conv2", "--seed", 4)
    assert (code, err) == (0, "seed 4, advice\n")
    found = read_found(run / "theory" / "advice.json", Advised)
    assert found.seeds == (4,)
    assert set(found.mean.candidates) == {"conv1", "conv1, conv2"}
    assert set(found.mean.outcomes) == {"conv1"}
    assert all(row[0] in out for row in section_of(found).rows)
    code, out, _ = tell("advise", run, "--samples", 60, "--layer", "conv1", "--layer", "conv1,conv2", "--json")
    content = json.loads(out)
    assert (code, content["seeds"]) == (0, [3, 4])
    mean = read_found(run / "theory" / "advice.json", Advised).mean
    each = [result["candidates"]["conv1"]["prediction"]["memory"] for result in content["results"]]
    assert mean.candidates["conv1"].prediction is not None
    assert mean.candidates["conv1"].prediction.memory == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([SMALL, "--data", "digits"], "give --weights and --data, or neither"),
        ([SMALL, "--weights", "DIGITS"], "give --weights and --data, or neither"),
        ([SMALL, "--shape", "1,8,8", "--layer", "9"], "'9'"),
        ([SMALL, "--shape", "1,8,8", "--layer", "1,"], "no layer is selected: name at least one"),
        ([SMALL, "--weights", "nowhere.safetensors", "--data", "digits"], "nowhere.safetensors"),
        ([SMALL, "--weights", "DIGITS", "--data", "digit"], "digit"),
        (["test_advised:twofold", "--weights", "DIGITS", "--data", "digits"], "of another architecture"),
        (["test_advised:twofold", "--shape", "1,8,8"], "one layer alone: there is nothing to choose from"),
        (["RUN", "--layer", "nothing"], "nothing"),
        (["RUN", "--seed", "9"], "has no seed 9: take one of 3, 4"),
        (["."], "no run's folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], says: str, kept: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(kept), "DIGITS": str(digits)}
    code, out, err = tell("advise", *(places.get(one, one) for one in arguments))
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("fedunlearn: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
