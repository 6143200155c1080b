"""An audit of a run: what is certainly there is found, what is certainly not there is not; nothing is done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from fedunlearn import auditing, examination
from fedunlearn.auditing import FILE, Audit, AuditError, audit, plan_of, put_together
from fedunlearn.audits import membership
from fedunlearn.audits.certainty import POWER
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN, Examined, examine
from fedunlearn.needs import Needs
from fedunlearn.rounds import Round, fedavg
from fedunlearn.runfolder import FolderError, RunFolder
from fedunlearn.runner import run
from fedunlearn.shadows import Model, Readings, Targets, shadow
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.task import Method, Task
from fedunlearn.verdict import conclusion, summary, verdicts
from fedunlearn.weights import Weights
from tiny import load_tiny

T = TypeVar("T")
SHADOWS = 16
LEARNT = (  # by heart, so that there is something to be found
    *("title=One of four leaves", "seeds=[3]", "training.rounds=20", "training.batch_size=8", "recovery.rounds=8"),
    'methods=["Retrain", "NoT", { kind = "test_auditing:GoesOn" }]',
)


@dataclass(frozen=True)
class GoesOn(Method):
    """A planted leak: it says that it forgets, and goes on training with everybody."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        return iter(())

    def recover(self, task: Task, weights: Weights, start: int = 0) -> Iterator[Round]:
        return fedavg(task.everyone, weights, task.training, task.seed, "recover", start)


def result_of(steps: Generator[object, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: T = done.value
            return found


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examination, "REPEATS", 1)
        patch.setattr(examination, "STEPS", 40)
        patch.setattr(membership, "_REDRAWN", 299)
        yield


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """A run's folder, and its audit."""
    folder = tmp_path_factory.mktemp("audited")
    for _ in run(load_tiny(folder, *LEARNT), folder / "run", workers=1):
        pass
    plan, seed = plan_of(folder / "run", None, SHADOWS)
    return folder / "run", result_of(audit(folder / "run", plan, seed, SHADOWS, workers=1))


def test_retrain_is_at_chance_within_its_interval(audited: tuple[Path, Audit]) -> None:
    for attack in audited[1].attacks:
        if attack.forget and attack.blind:
            found = attack.results[REFERENCE]
            assert found.sample.low < 0.5 < found.sample.high, attack.name
            assert found.client.low < 0.5 < found.client.high, attack.name


def test_the_original_model_gives_its_data_away(audited: tuple[Path, Audit]) -> None:
    for name in ("RMIA", "U-LiRA"):
        found = audited[1].attack(name).results[ORIGINAL]
        assert found.sample.low > 0.6, name
        assert found.client.low > 0.6, name


def test_a_planted_leak_is_found(audited: tuple[Path, Audit]) -> None:
    leak = audited[1].attack("U-LiRA")
    assert leak.results["GoesOn"].client.value >= audited[1].found_wins  # as surely as is stated
    assert leak.beside["GoesOn"].excess.value >= audited[1].found_excess
    verdict = next(one for one in verdicts(audited[1]) if one.method == "GoesOn")
    assert verdict.status == "found"
    assert "Do not promise" in verdict.promise
    assert "GoesOn: traces of the data were found" in conclusion(audited[1]).replace(" and", ",")


def test_whoever_keeps_the_old_model_finds_the_data_even_of_retrained_models(audited: tuple[Path, Audit]) -> None:
    assert audited[1].attack("Before and after").results[REFERENCE].sample.low > 0.55


def test_a_retrained_model_protects_those_who_stay_no_better_than_the_original(audited: tuple[Path, Audit]) -> None:
    stay = audited[1].attack("LiRA on those who stay")
    assert stay.results[REFERENCE].sample.low > 0.55
    assert not stay.forget


def test_identical_models_make_no_difference(audited: tuple[Path, Audit]) -> None:
    """A method whose models are Retrain's own has no excess, and is not found."""
    folder, _ = audited
    plan, seed = plan_of(folder, None, SHADOWS)
    targets = Targets.of(Simulation(Setting.of(plan, workers=1), seed))
    same = {Model("GoesOn", moment): Model(REFERENCE, moment) for moment in ("unlearned", "last")}

    def disguised(readings: Readings) -> Readings:
        models = {model: readings.models[same.get(model, model)] for model in readings.models}
        return Readings(readings.heads, models)

    shadows = [disguised(Readings.read(path)) for path in sorted(folder.glob("audit/seed-3/shadows/*/readings.npz"))]
    here = disguised(replace(shadows[0], heads=np.zeros_like(shadows[0].heads)))
    found = result_of(put_together(plan, "run", targets, shadows, here, ()))
    for attack in (attack for attack in found.attacks if attack.name != "Sign turned back"):  # they turn none
        assert attack.results["GoesOn"] == attack.results[REFERENCE]
        assert attack.blind or attack.beside["GoesOn"].excess.value == 0
    assert next(one for one in verdicts(found) if one.method == "GoesOn").status in ("not found", "unknown")


def test_it_says_how_sure_it_is(audited: tuple[Path, Audit]) -> None:
    found = audited[1]
    assert 0.5 < found.found_wins < 0.95
    assert 0 < found.found_excess < 0.1
    assert f"{found.found_wins:.0%} of the cases" in conclusion(found)
    assert f"with a probability of {POWER:.0%}" in conclusion(found)
    assert "proven" not in conclusion(found) + "".join(one.finding + one.promise for one in verdicts(found))
    assert found.quality == {}  # 16 shadows are too few
    rates = found.attack("U-LiRA").results["NoT"].found_at
    negatives = SHADOWS * found.targets
    assert (0.01 in rates) == (negatives >= 1000)
    assert 0.001 not in rates


def test_an_insensitive_audit_says_nothing(audited: tuple[Path, Audit]) -> None:
    """Where the attacks do not find what is certainly there, that they find nothing else means nothing."""
    found = audited[1]
    attacks = tuple(
        replace(attack, results={**attack.results, ORIGINAL: attack.results[REFERENCE]})
        if ORIGINAL in attack.results
        else attack
        for attack in found.attacks
    )
    blunt = replace(found, attacks=attacks)
    assert "do not even find the data in the model that was trained on them" in conclusion(blunt)
    statuses = {one.method: one.status for one in verdicts(blunt)}
    assert statuses["NoT"] == "unknown"
    assert statuses["GoesOn"] == "found"  # what is found is found


def test_models_are_examined_without_shadows(audited: tuple[Path, Audit]) -> None:
    found = audited[1]
    assert [one.seed for one in found.examined] == [3]
    for one in found.examined:
        assert list(one.models) == [ORIGINAL, REFERENCE, "NoT", "GoesOn", AGAIN]
        retrain, original = one.models[REFERENCE], one.models[ORIGINAL]
        assert retrain.disagreement == {"own": 0, "population": 0}
        assert retrain.distance == 0
        assert one.models[AGAIN].distance > 0
        assert original.relearned[0].losses[0] < retrain.relearned[0].losses[0]
        turned = one.models["NoT"].turned_back
        assert turned is not None
        assert turned.as_before
        assert retrain.turned_back is None
        assert [probe.layer for probe in original.probes] == ["conv1", "conv2", "head"]
    learnt = np.mean([one.models[ORIGINAL].probes[-1].membership for one in found.examined])
    assert learnt > np.mean([one.models[REFERENCE].probes[-1].membership for one in found.examined])


def test_nothing_is_done_twice_and_models_of_shadows_are_not_kept(audited: tuple[Path, Audit]) -> None:
    folder, found = audited
    plan, seed = plan_of(folder, None, SHADOWS)
    steps = list(audit(folder, plan, seed, SHADOWS, workers=1))
    assert [step.part for step in steps] == [f"attacked: {attack.name}" for attack in found.attacks]
    assert result_of(audit(folder, plan, seed, SHADOWS, workers=1)) == found
    for place in folder.glob("audit/seed-3/shadows/*"):
        assert not list(place.rglob("*.safetensors"))


def test_fewer_shadows_of_those_that_there_are_can_be_asked(audited: tuple[Path, Audit]) -> None:
    folder, found = audited
    plan, seed = plan_of(folder, None, 12)
    fewer = result_of(audit(folder, plan, seed, 12, workers=1))
    assert fewer.shadows == 12
    assert fewer.found_wins > found.found_wins
    told = next(one for one in verdicts(fewer) if one.method == "NoT")
    assert "too few" in told.finding.lower() or told.status == "found"


def test_a_shadow_broken_off_goes_on_to_the_same_readings(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    folder, _ = audited
    plan, seed = plan_of(folder, None, SHADOWS)
    targets = Targets.of(Simulation(Setting.of(plan, workers=1), seed))
    steps = shadow(plan, 1, tmp_path / "0001", targets=targets)
    for _ in range(40):
        next(steps)
    steps.close()
    assert not (tmp_path / "0001" / "readings.npz").exists()
    again = result_of(shadow(plan, 1, tmp_path / "0001", targets=targets))
    before = Readings.read(folder / "audit" / "seed-3" / "shadows" / "0001" / "readings.npz")
    assert (again.heads == before.heads).all()
    assert again.models.keys() == before.models.keys()
    for model, reading in again.models.items():
        assert (reading.own == before.models[model].own).all(), model
        assert (reading.twin == before.models[model].twin).all(), model


def test_a_shadow_that_another_process_trains_is_waited_for(
    audited: tuple[Path, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    folder, found = audited
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    place = copy / "audit" / "seed-3" / "shadows" / "0002"
    kept = (place / "readings.npz").read_bytes()
    (place / "readings.npz").unlink()
    plan, seed = plan_of(copy, None, SHADOWS)
    other = FileLock(place / ".audit.lock")
    other.acquire()

    def finished(_: float) -> None:
        (place / "readings.npz").write_bytes(kept)
        other.release()

    monkeypatch.setattr(auditing.time, "sleep", finished)
    assert replace(result_of(audit(copy, plan, seed, SHADOWS, workers=1)), run=found.run) == found


def test_it_is_written_and_read_back(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    found = audited[1]
    found.write(tmp_path / FILE, summary(found))
    assert Audit.read(tmp_path / FILE) == found
    told = json.loads((tmp_path / FILE).read_text())["summary"]
    assert told["conclusion"] == conclusion(found)
    (tmp_path / FILE).write_text('{"format": 1, "title": "nothing else"}')
    with pytest.raises(ValueError, match="is no audit: "):
        Audit.read(tmp_path / FILE)
    (tmp_path / FILE).write_text('{"format": 7}')
    with pytest.raises(ValueError, match="no audit of this version: run the audit's command again"):
        Audit.read(tmp_path / FILE)


def test_what_cannot_be_audited_is_refused_in_a_sentence(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    folder, _ = audited
    with pytest.raises(FolderError, match="no run's folder"):
        plan_of(tmp_path, None, SHADOWS)
    with pytest.raises(AuditError, match="no seed 7: take one of 3"):
        plan_of(folder, 7, SHADOWS)
    with pytest.raises(AuditError, match=r"11 shadows could not tell an attacker .* take 12 or more"):
        plan_of(folder, None, 11)
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "seed-3" / "2-Retrain" / "complete.json").unlink()
    with pytest.raises(AuditError, match=r"seed 3 of .* is not complete: let the run go on"):
        plan_of(copy, None, SHADOWS)
    text = (copy / "experiment.toml").read_text()
    (copy / "experiment.toml").write_text(text.replace("last = true", "last = false"))
    with pytest.raises(AuditError, match=r"keep\.first and keep\.last true"):
        plan_of(copy, None, SHADOWS)
    later = 'then = [{ kind = "Client", client = "1" }]'
    (copy / "experiment.toml").write_text(text.replace("then = []", later))
    with pytest.raises(AuditError, match="a request that followed another"):
        plan_of(copy, None, SHADOWS)


def test_runs_of_several_requests_name_the_one_to_audit(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    shutil.copytree(audited[0], tmp_path / "request-1")
    with pytest.raises(AuditError, match=r"several requests: audit .*request-1"):
        plan_of(tmp_path, None, SHADOWS)


def test_a_shadow_of_another_experiment_is_not_taken_for_one_of_this(
    audited: tuple[Path, Audit], tmp_path: Path
) -> None:
    folder, _ = audited
    plan, seed = plan_of(folder, None, SHADOWS)
    targets = Targets.of(Simulation(Setting.of(plan, workers=1), seed))
    shutil.copytree(folder / "audit" / "seed-3" / "shadows" / "0001", tmp_path / "0001")
    other = replace(plan, training=replace(plan.training, rounds=21))
    with pytest.raises(ValueError, match=r"a shadow of another experiment \(training\.rounds\): remove it"):
        result_of(shadow(other, 1, tmp_path / "0001", targets=targets))


def test_an_examination_broken_off_goes_on(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    folder, found = audited
    plan, seed = plan_of(folder, None, SHADOWS)
    home, targets = RunFolder(folder), Targets.of(Simulation(Setting.of(plan, workers=1), seed))
    steps = examine(home, targets, tmp_path / "examined.json")
    assert [next(steps), next(steps)] == [ORIGINAL, REFERENCE]
    steps.close()
    assert list(examine(home, targets, tmp_path / "examined.json")) == ["NoT", "GoesOn", AGAIN]
    assert Examined.read(tmp_path / "examined.json") == found.examined[0]
    assert list(examine(home, targets, tmp_path / "examined.json")) == []


def test_a_method_that_diverged_somewhere_has_no_verdict_but_is_named(audited: tuple[Path, Audit]) -> None:
    folder, _ = audited
    plan, seed = plan_of(folder, None, SHADOWS)
    targets = Targets.of(Simulation(Setting.of(plan, workers=1), seed))
    shadows = [Readings.read(path) for path in sorted(folder.glob("audit/seed-3/shadows/*/readings.npz"))]
    here = replace(shadows[0], heads=np.zeros_like(shadows[0].heads))
    lost = replace(shadows[1], models={m: r for m, r in shadows[1].models.items() if m.method != "NoT"})
    found = result_of(put_together(plan, "run", targets, [shadows[0], lost, *shadows[2:]], here, ()))
    assert found.methods == (REFERENCE, "GoesOn")
    assert found.lost == {"NoT": 1}
    told = verdicts(found)[-1]
    assert (told.method, told.status) == ("NoT", "unknown")
    assert "diverged in 1 of 17 federations" in told.finding
    alone = replace(plan, methods=tuple(method for method in plan.methods if method.name != "GoesOn"))
    with pytest.raises(AuditError, match="every method but Retrain diverged"):
        result_of(put_together(alone, "run", targets, [shadows[0], lost, *shadows[2:]], here, ()))


def test_other_data_than_the_runs_are_refused(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(audited[0], copy)
    said = json.loads((copy / "environment.json").read_text())
    said["sessions"][-1]["decides"]["training data"] = "other"
    (copy / "environment.json").write_text(json.dumps(said))
    plan, seed = plan_of(copy, None, SHADOWS)
    with pytest.raises(AuditError, match="was run with other training data than there is now"):
        result_of(audit(copy, plan, seed, SHADOWS))


def test_too_few_samples_that_nobody_holds_are_refused(tmp_path: Path) -> None:
    plan = load_tiny(tmp_path, "data.samples=359")  # of 1,437
    with pytest.raises(ValueError, match=r"with as many of the same classes that nobody holds.*fewer data\.samples"):
        Targets.of(Simulation(Setting.of(plan, workers=1), 3))


def test_a_shadow_has_no_report(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    from fedunlearn.report.report import assemble

    place = audited[0] / "audit" / "seed-3" / "shadows" / "0001"
    with pytest.raises(FolderError, match="is a shadow of another run"):
        assemble(place)
    with pytest.raises(AuditError, match="is a shadow, made for an audit"):
        plan_of(place, None, SHADOWS)
