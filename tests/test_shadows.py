"""What is kept of a shadow, and that its models are read as the run's are."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedunlearn.atomic import FileError
from fedunlearn.audits.signals import confidence
from fedunlearn.requests import Rest
from fedunlearn.shadows import Model, Moment, Reading, Readings, Targets
from fedunlearn.simulation import Setting, Simulation
from tiny import load_tiny

BACKDOOR = '{ kind = "Backdoored", share = 0.5, label = 7 }'


def readings() -> Readings:
    rng = np.random.default_rng(0)
    moments: tuple[Moment, ...] = ("unlearned", "last", "turned back")
    models = [Model("Original", "last"), *(Model("NoT(layers=conv1, “ü”)", moment) for moment in moments)]
    found = {model: Reading(rng.normal(size=5), rng.normal(size=5), rng.normal(size=3)) for model in models}
    found[models[0]].own[0] = -1e6
    return Readings(np.array([True, False, True, True, False]), found)


def test_readings_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = readings()
    written.write(tmp_path / "readings.npz")
    found = Readings.read(tmp_path / "readings.npz")
    assert found.heads.dtype == np.bool_
    assert np.array_equal(found.heads, written.heads)
    assert list(found.models) == list(written.models)
    for model, reading in written.models.items():
        for kind in ("own", "twin", "population"):
            ours, theirs = getattr(reading, kind), getattr(found.models[model], kind)
            assert theirs.dtype == np.float64
            assert np.array_equal(ours, theirs)


class Trap:
    """Whoever unpickles it does what must not be done."""

    sprung = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _spring, ()


def _spring() -> None:
    Trap.sprung = True


def trap(path: Path) -> None:
    np.savez(path, heads=np.array([Trap()], dtype=object), models=np.array(json.dumps([])))


def trapped_models(path: Path) -> None:
    np.savez(path, heads=np.zeros(1, dtype=np.bool_), models=np.array([Trap()], dtype=object))


def cut(path: Path) -> None:
    readings().write(path)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: Path) -> None:
    readings().write(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"own.npy") + 140
    content[place] ^= 255
    path.write_bytes(content)


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("own.npy", "no array")
        archive.writestr("models.npy", "no array")
        archive.writestr("heads.npy", "no array")


def without_a_model(path: Path) -> None:
    models = [("NoT", "last")]
    np.savez(path, heads=np.zeros(2, dtype=np.bool_), models=np.array(json.dumps(models)))


def no_models(path: Path) -> None:
    np.savez(path, heads=np.zeros(2, dtype=np.bool_), models=np.array("7"))


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    "spoil",
    [
        trap,
        trapped_models,
        cut,
        flipped,
        other_archive,
        without_a_model,
        no_models,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(pickle.dumps(Trap())),
        lambda path: path.write_bytes(b"PK\x03\x04"),
        one_array,
    ],
)
def test_what_holds_no_readings_is_refused_and_nothing_is_unpickled(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = tmp_path / "readings.npz"
    spoil(path)
    with pytest.raises(FileError, match=r"readings.npz holds no readings \(.*\): remove it, to have them taken anew"):
        Readings.read(path)
    assert not Trap.sprung


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no readings"):
        Readings.read(tmp_path / "readings.npz")


@pytest.mark.parametrize("treatment", ["", f"data.treatment.0={BACKDOOR}"])
def test_a_model_is_asked_about_each_target_its_twin_and_the_population(tmp_path: Path, treatment: str) -> None:
    """In the targets' order, as their client sees them."""
    plan = load_tiny(tmp_path, "data.samples=100", *filter(None, [treatment]))
    setting = Setting.of(plan, workers=1)
    simulation = Simulation(setting, 3)
    targets = Targets.of(simulation)
    weights = setting.architecture.fresh(5)
    reading = targets.read(weights)
    network = setting.architecture.network(weights, torch.device("cpu")).eval()
    deal = simulation.deal
    own_clients = deal.clients()
    twin_clients = deal.clients([torch.where(t >= 0, t, o) for o, t in zip(deal.held, targets.twins, strict=True)])
    for found, clients in ((reading.own, own_clients), (reading.twin, twin_clients)):
        expected = []
        for number, position in zip(targets.client.tolist(), targets.position.tolist(), strict=True):
            client = clients[number]
            index = client.indices[position : position + 1]
            with torch.no_grad():
                logits = network(client.samples.inputs(index, None, torch.device("cpu")))
            expected.append(float(confidence(logits, client.labels[position : position + 1])))
        assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert len(reading.population) == min(1000, len(setting.data.test.labels))
    assert len(np.unique(reading.own)) > len(reading.own) / 2


def test_targets_are_those_with_a_twin_and_heads_say_whose_twin_a_shadow_holds(tmp_path: Path) -> None:
    plan = load_tiny(tmp_path, "data.samples=100")
    simulation = Simulation(Setting.of(plan, workers=1), 3)
    targets = Targets.of(simulation)
    assert targets.client.tolist() == sorted(targets.client.tolist())
    assert torch.equal(targets.forget, targets.client == 0)  # the request is for the first client
    pairs = list(zip(targets.client.tolist(), targets.position.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert sorted(pairs) == [(n, p) for n, twin in enumerate(targets.twins) for p in (twin >= 0).nonzero().flatten()]
    heads = targets.heads(11)
    mixed = list(simulation.deal.mixed(targets.twins, 11))
    for (client, position), head in zip(pairs, heads.tolist(), strict=True):
        held = simulation.deal.held[client] if not head else targets.twins[client]
        assert mixed[client][position] == held[position]
    assert 0.3 < float(heads.double().mean()) < 0.7


def test_a_request_whose_samples_have_no_twins_is_told(tmp_path: Path) -> None:
    plan = load_tiny(tmp_path, "data.clients=4", "data.samples=359")  # all but two of the digits that are not tested on
    with pytest.raises(
        ValueError, match=r"compares 10 samples or more.*but there are \d: run it with fewer data.samples"
    ):
        Targets.of(Simulation(Setting.of(plan, workers=1), 3))


def test_the_three_federations_of_what_is_to_be_forgotten(tmp_path: Path) -> None:
    simulation = Simulation(Setting.of(load_tiny(tmp_path, "data.samples=100"), workers=1), 3)
    targets = Targets.of(simulation)
    own, twins, population = targets.forgotten()
    assert own.clients == twins.clients == ("0",)
    assert population.clients == ("population",)
    assert own.where(Rest(simulation.setting.experiment.forgotten)).clients == ()
