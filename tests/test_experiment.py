"""Experiment files, and the effect that the quickstart is there to show."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch

from fedunlearn import experiment as experiments
from fedunlearn.backends.metered import Traffic
from fedunlearn.data.partition import Dirichlet
from fedunlearn.data.treatment import Turned
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.table import table
from fedunlearn.experiment import ExperimentError
from fedunlearn.methods.negation import NoT
from fedunlearn.samples import TensorSamples

TINY = """
title = "tiny"
seeds = [3]
[data]
name = "digits"
clients = 4
samples = 40
partition = { kind = "Dirichlet", alpha = 5.0 }
treatment.0 = { kind = "Turned" }
[model]
name = "layernorm-cnn"
options = { channels = [4, 8], kernel = 3 }
[training]
rounds = 2
optimizer = { kind = "SGD", lr = 0.05 }
[request]
kind = "Client"
client = "0"
[recovery]
rounds = 1
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(textwrap.dedent(text))
    return path


def test_those_that_are_shipped_can_be_read() -> None:
    assert experiments.shipped() == ["fashion-client", "quickstart"]
    for name in experiments.shipped():
        assert experiments.load(name).title


def test_a_file_becomes_dataclasses(tmp_path: Path) -> None:
    plan = experiments.load(written(tmp_path, TINY))
    assert plan.data.partition == Dirichlet(5.0)
    assert plan.data.treatment == {"0": Turned(1)}
    assert plan.training.program().optimizer.lr == 0.05  # type: ignore[attr-defined]
    assert plan.methods[2] == NoT()
    named = TINY.replace(
        "seeds", 'methods = [{kind="Retrain"}, {kind="NoT", layers=["conv2"], batchnorm="leave"}]\nseeds'
    )
    assert experiments.load(written(tmp_path, named)).methods[1] == NoT(["conv2"], batchnorm="leave")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("rounds = 2", "rounds = 0"), r"training.rounds: Input should be greater than or equal to 1"),
        (("rounds = 2", ""), r"training.rounds: is missing"),
        (("clients = 4", "clinets = 4"), r"data.clinets: is unknown"),
        (('kind = "SGD"', 'kind = "SDG"'), r"training.optimizer: kind must be one of SGD, Adam, not 'SDG'"),
        (("lr = 0.05", "rate = 0.05"), r"training.optimizer: SGD has no rate; it has lr, momentum, weight_decay"),
        (("alpha = 5.0", "alpha = -1.0"), r"data.partition: alpha must be positive"),
        (("seeds = [3]", "seeds = [3, 3]"), r"seeds must differ"),
        (("seeds = [3]", 'methods = [{kind = "FT"}]'), r"methods must hold Retrain"),
        (("[data]", "[data"), r"own.toml is no TOML file"),
        (
            ("seeds = [3]", 'methods = ["FT", 3]'),
            r"methods.1: must be a table with a kind, one of Retrain, FT, NoT, not 3",
        ),
        (("clients = 4", "clients = 'four'"), r"data.clients: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    assert change[0] in TINY
    with pytest.raises(ExperimentError, match=sentence):
        experiments.load(written(tmp_path, TINY.replace(*change)))


def test_a_kind_alone_will_do(tmp_path: Path) -> None:
    short = TINY.replace("seeds", 'methods = ["NoT", "Retrain"]\nseeds')
    assert [method.name for method in experiments.load(written(tmp_path, short)).methods] == ["NoT", "Retrain"]


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    both = TINY.replace("rounds = 2", "rounds = 0").replace("clients = 4", "clients = 1")
    with pytest.raises(ExperimentError, match=r"data.clients: .*; training.rounds: "):
        experiments.load(written(tmp_path, both))


def test_an_experiment_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="there is no experiment 'quickstar': give a TOML file, or one of"):
        experiments.load("quickstar")
    with pytest.raises(ExperimentError, match="there is no experiment"):
        experiments.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('client = "0"', 'client = "9"'), "the request means no training sample of anybody"),
        (
            ("samples = 40", "samples = 4000"),
            r"4 clients with 4000 samples each need 16000, but digits has 1437: lower",
        ),
        (
            ('kind = "Client"\nclient = "0"', 'kind = "Instances"\ninstances = { 0 = [0, 1, 2] }'),
            r"the request means \d training samples, but the membership attack needs 10",
        ),
        (("treatment.0", "treatment.7"), r"data.treatment names no client: 7; they are 0 to 3"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    plan = experiments.load(written(tmp_path, TINY.replace(*change)))
    with pytest.raises(ValueError, match=sentence):
        list(experiments.run(plan, workers=1))


def test_a_run_and_its_file(tmp_path: Path) -> None:
    plan = experiments.load(written(tmp_path, TINY))
    rows = list(experiments.run(plan, workers=1))
    assert [(row.method, row.phase, row.rounds, row.scores is not None) for row in rows] == [
        ("Original", "train", 1, False),
        ("Original", "train", 2, True),
        ("Retrain", "unlearn", 0, True),
        ("Retrain", "recover", 1, False),
        ("Retrain", "recover", 2, True),
        ("FT", "unlearn", 0, True),
        ("FT", "recover", 1, True),
        ("NoT", "unlearn", 0, True),
        ("NoT", "recover", 1, True),
    ]
    assert experiments.total_rounds(plan) == sum(row.phase != "unlearn" for row in rows)
    original, retrain, tuned, negated = (sum(rows[at].costs.values(), Cost()) for at in (1, 4, 6, 8))
    assert original.traffic.down * 3 == retrain.traffic.down * 4  # four clients, then three; two rounds each
    assert tuned.traffic == negated.traffic
    assert tuned.flops * 2 == retrain.flops
    assert rows[8].costs["unlearn"].traffic == Traffic()  # negation is free, and scoring is nobody's cost
    assert rows[8].costs["unlearn"].flops == rows[8].costs["unlearn"].storage == 0
    assert rows[5].costs == {}
    assert rows[5].scores.retain == rows[1].scores.retain  # type: ignore[union-attr]
    assert {row.method: set(row.costs) for row in rows} == {
        "Original": {"train"},
        "Retrain": {"unlearn", "recover"},
        "FT": {"recover"},
        "NoT": {"unlearn", "recover"},
    }
    path = tmp_path / "rows.json"
    experiments.write(path, plan, rows)
    report = json.loads(path.read_text())
    assert len(report["rows"]) == len(rows)
    assert report["rows"][1]["scores"]["retain"] == rows[1].scores.retain  # type: ignore[union-attr]
    assert report["experiment"]["fields"]["seeds"] == [3]
    assert [line["method"] for line in report["table"]] == ["Original", "Retrain", "FT", "NoT"]


def test_variants_of_a_method_have_lines_of_their_own(tmp_path: Path) -> None:
    methods = 'methods = [{kind = "Retrain"}, {kind = "NoT"}, {kind = "NoT", layers = "head", include_bias = true}]'
    plan = experiments.load(written(tmp_path, TINY.replace("seeds", f"{methods}\nseeds")))
    assert plan.labels == ("Retrain", "NoT()", "NoT(layers=head, include_bias=True)")
    assert [line.method for line in table(experiments.run(plan, workers=1))] == ["Original", *plan.labels]
    twice = 'methods = [{kind = "Retrain"}, {kind = "NoT"}, {kind = "NoT"}]'
    path = written(tmp_path, TINY.replace("seeds", f"{twice}\nseeds"))
    with pytest.raises(ExperimentError, match="methods must differ"):
        experiments.load(path)


def test_the_same_seed_gives_the_same_rows_with_two_workers(tmp_path: Path) -> None:
    plan = experiments.load(written(tmp_path, TINY))
    one, two = ([row.scores for row in experiments.run(plan, workers=workers)] for workers in (1, 2))
    assert one == two


def test_changes_from_the_command_line(tmp_path: Path) -> None:
    plan = experiments.load(written(tmp_path, TINY))
    other = experiments.changed(plan, seeds=(1, 2), data="fashion-mnist", model="a.b:C")
    assert (other.seeds, other.data.name, other.model.name, other.model.options) == (
        (1, 2),
        "fashion-mnist",
        "a.b:C",
        {},
    )
    assert other.data.clients == 4
    with pytest.raises(ExperimentError, match="seeds must differ"):
        experiments.changed(plan, seeds=(1, 1))


def test_turned_images_are_turned_and_not_copied() -> None:
    upright = TensorSamples(torch.arange(8.0).view(2, 1, 2, 2), torch.tensor([0, 1]))
    turned = Turned(1)(upright)
    assert turned.inputs(torch.tensor([0]), None).flatten().tolist() == [1, 3, 0, 2]
    assert Turned(2)(upright).inputs(torch.tensor([0]), None).flatten().tolist() == [3, 2, 1, 0]
    assert torch.equal(turned.labels, upright.labels)
    with pytest.raises(ValueError, match="1, 2 or 3 quarters"):
        Turned(4)


def test_the_quickstart_shows_that_not_forgets_where_fine_tuning_does_not() -> None:
    """Over the committed seeds: FT's gap is at least three points and at least three times NoT's."""
    lines = {line.method: line for line in table(experiments.run(experiments.load("quickstart")))}
    assert lines["Original"].forget.mean > 95
    assert lines["FT"].gap.of_means >= 3
    assert lines["FT"].gap.of_means >= 3 * lines["NoT"].gap.of_means
    assert lines["NoT"].bytes < lines["Retrain"].bytes
