"""A backdoor from its experiment file to every place where its success is told."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedunlearn.console import print_comparison, print_report
from fedunlearn.data import datasets
from fedunlearn.evaluation.rows import curves
from fedunlearn.experimentfile import load
from fedunlearn.export import to_tensorboard
from fedunlearn.record import Record
from fedunlearn.report import figures, tables
from fedunlearn.report.page import page, publish
from fedunlearn.report.report import Comparison, Report, assemble, read_report
from fedunlearn.runner import run
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.weights import Weights
from tiny import load_tiny

BACKDOOR = (
    *("data.clients=3", "data.samples=250", 'data.treatment.0={ kind = "Backdoored", share = 0.8, label = 7 }'),
    *("model.options.channels=[8, 16]", "training.rounds=15", "training.batch_size=16"),
    *("recovery.rounds=4", "recovery.evaluate_every=2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backdoor")
    list(run(load_tiny(folder, *BACKDOOR), folder / "door", workers=1))
    return folder / "door"


@pytest.fixture(scope="module")
def door(folder: Path) -> Report:
    return assemble(folder)


def predicted(weights: Weights, setting: Setting, images: NDArray[np.float32]) -> NDArray[np.int64]:
    network = setting.architecture.network(weights, torch.device("cpu")).eval()
    with torch.no_grad():
        found: NDArray[np.int64] = network(torch.from_numpy(images)).argmax(1).numpy()
    return found


def test_success_is_the_share_of_triggered_test_samples_of_other_classes_taken_for_the_label(folder: Path) -> None:
    setting = Setting.of(load(folder / "experiment.toml"), workers=1)
    test = datasets.load("digits").test
    images = test.inputs(torch.arange(len(test.labels)), None, torch.device("cpu")).numpy().copy()
    for row, column in ((6, 6), (5, 5), (6, 4), (4, 6)):  # of 8x8 pixels
        images[:, :, row, column] = 1
    others = test.labels.numpy() != 7
    for name, label in (("0-First-training/weights/train-0015", "Original"), ("4-NoT/weights/recover-0004", "NoT")):
        weights = Record(folder / "seed-3" / name.split("/")[0]).kept(name.split("/")[-1])
        (rows,) = curves(assemble(folder).rows)[label].values()
        scores = rows[-1].scores
        assert scores is not None
        assert scores.attack == pytest.approx(100 * np.mean(predicted(weights, setting, images)[others] == 7))


def test_the_model_opens_to_the_trigger_and_a_retrained_one_does_not(door: Report) -> None:
    lines = {line.method: line for line in door.table()}
    original, retrain = lines["Original"].attack, lines["Retrain"].attack
    assert original is not None
    assert retrain is not None
    assert original.mean > 80
    assert retrain.mean < 30
    assert lines["Retrain"].forget.mean < 50  # what is to be forgotten is the client's poisoned samples
    assert lines["Original"].forget.mean > 80


def test_poisoned_samples_are_the_clients_alone_validation_included(folder: Path) -> None:
    simulation = Simulation(Setting.of(load(folder / "experiment.toml"), workers=1), 3)
    clients = simulation.federation._engine.clients
    truth = datasets.load("digits").train.labels
    wrong = {id: client.labels != truth[client.indices] for id, client in clients.items() if id in ("0", "1", "2")}
    others = int((truth[clients["0"].indices] != 7).sum())
    assert int(wrong["0"].sum()) == int(0.8 * others)
    assert 0 < int(wrong["0"][clients["0"].validation].sum()) < int(wrong["0"].sum())
    assert bool((clients["0"].labels[wrong["0"]] == 7).all())
    assert not bool(wrong["1"].any() or wrong["2"].any())
    assert simulation.attack is not None
    assert set(simulation.federation.clients) == {"0", "1", "2"}
    assert set(simulation.test.clients) == {"test 0", "test 1"}


def test_it_is_told_everywhere_where_a_run_has_it(
    door: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = publish([door], tmp_path).read_text()
    assert html.count(">Attack %<") == 1
    assert "client 0: Backdoored (share 0.8, label 7)" in html
    assert "Backdoor attack by round" in html
    assert "share of test samples of other classes that are taken for its label" in html
    assert (tmp_path / "figures/measure-attack.svg").is_file()
    lines = door.table()
    for row, line in zip(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()), lines, strict=False):
        assert line.attack is not None
        assert float(row["attack_mean"]) == line.attack.mean
    assert (tmp_path / "table.md").read_text().startswith("| Method | Retain | Forget | Test | MIA | Attack | Avg. ")
    assert "MIA & Attack & Avg. gap" in (tmp_path / "table.tex").read_text()
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["tables"]["fixed"][0]["attack"]["mean"] == lines[0].attack.mean  # type: ignore[union-attr]
    assert all(row["scores"]["attack"] is not None for row in content["rows"] if row["scores"])
    assert read_report(tmp_path / "report.json") == door
    print_report(door)
    out = capsys.readouterr().out
    assert "Attack %" in out
    assert max(map(len, out.splitlines())) <= 80
    to_tensorboard(door, tmp_path / "logs")
    assert any(b"attack/backdoor" in path.read_bytes() for path in (tmp_path / "logs").rglob("*tfevents*"))


def test_it_is_told_nowhere_else(door: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tuple(replace(row, scores=replace(row.scores, attack=None) if row.scores else None) for row in door.rows)
    images = {"kind": "Cropped", "resize": 10, "crop": 8, "flip": True}
    experiment = {**door.experiment, "data": {**door.experiment["data"], "images": images}}
    without = replace(door, experiment=experiment, rows=rows, name="without")
    told = [write([without]) for write in (page, tables.as_csv, tables.as_markdown, tables.as_latex)]
    assert "images Cropped (resize 10, crop 8, flip True)" in told[0]
    assert not [text for text in told for word in ("Attack", "Backdoor attack", "attack_mean") if word in text]
    print_report(without)
    assert "Attack" not in capsys.readouterr().out
    to_tensorboard(without, tmp_path / "logs")
    assert not any(b"attack/backdoor" in path.read_bytes() for path in (tmp_path / "logs").rglob("*tfevents*"))


def test_a_run_with_one_beside_a_run_without(door: Report, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tuple(replace(row, scores=replace(row.scores, attack=None) if row.scores else None) for row in door.rows)
    both = [replace(door, name="with"), replace(door, rows=rows, name="without")]
    head, _, *body = (line.strip("| ").split(" | ") for line in tables.as_markdown(both).splitlines())
    at = head.index("Attack")
    assert [bool(row[at].strip()) for row in body] == [True] * 4 + [False] * 4
    pictures = {picture.name: picture for picture in figures.measures(figures.series_of(both), both)}
    assert "with: NoT" in pictures["measure-attack"].alt
    assert "without: NoT" not in pictures["measure-attack"].alt
    print_comparison(Comparison(tuple(both)))
    assert "Attack %" in capsys.readouterr().out


def test_backdoors_of_two_labels_are_refused(tmp_path: Path) -> None:
    another = 'data.treatment.1={ kind = "Backdoored", share = 0.5, label = LABEL }'
    two, one = (load_tiny(tmp_path, *BACKDOOR, another.replace("LABEL", label)) for label in "27")
    with pytest.raises(ValueError, match="one trigger opens one: give all the same"):
        Simulation(Setting.of(two, workers=1), 0)
    assert Simulation(Setting.of(one, workers=1), 0).attack is not None
