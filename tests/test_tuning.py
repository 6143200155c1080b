"""Tuning: one seed chooses, the others are reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedunlearn.experimentfile import ExperimentError, load
from fedunlearn.methods.fedquit import FedQUIT
from fedunlearn.methods.pgd import PGD
from fedunlearn.report.report import assemble
from fedunlearn.tuning import SEARCH, TESTED, Search
from tiny import tiny_text

pytestmark = pytest.mark.usefixtures("quick_attack")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_text("seeds=[3, 4]"))
    return path


def test_a_grid_is_every_combination_each_once(plan_file: Path) -> None:
    plan = load(plan_file)
    search = Search.of({"kind": "PGD", "preset": "paper-vit"}, plan, {"lr": [0.1, 0.2, 0.1], "clip": [1.0, 2.0]})
    assert [(one.lr, one.clip) for one in search.candidates if isinstance(one, PGD)] == [
        (0.1, 1.0),
        (0.1, 2.0),
        (0.2, 1.0),
        (0.2, 2.0),
    ]
    assert {one.squared_stop_distance for one in search.candidates if isinstance(one, PGD)} == {1.0}
    assert search.seed == 3
    assert search.searching.seeds == (3,)
    assert search.testing(FedQUIT()).seeds == (4,)


def test_the_best_of_one_seed_is_reported_on_the_others(plan_file: Path, tmp_path: Path) -> None:
    search = Search.of({"kind": "FedQUIT"}, load(plan_file), {"lr": [0.001, 0.05, 1e30]}, seed=4)
    rows = list(search.run(tmp_path / "out", workers=1, cache=tmp_path / "cache"))
    found = search.trials(tmp_path / "out")
    assert len(found) == 3
    assert found[-1].gap is None  # at such a learning rate it diverged
    gaps = [trial.gap for trial in found[:-1] if trial.gap is not None]
    assert gaps == sorted(gaps)
    assert assemble(tmp_path / "out" / SEARCH).seeds == (4,)
    tested = assemble(tmp_path / "out" / TESTED)
    assert tested.seeds == (3,)
    assert "tuned on seed 4, which is not among these" in tested.title
    assert tested.experiment["methods"][-1]["lr"] == found[0].method.lr  # type: ignore[attr-defined]
    assert list(search.run(tmp_path / "out", workers=1, cache=tmp_path / "cache")) == rows  # it goes on, and is done


def test_where_all_diverge_it_is_told(plan_file: Path, tmp_path: Path) -> None:
    search = Search.of({"kind": "FedQUIT"}, load(plan_file), {"lr": [1e30]})
    with pytest.raises(ValueError, match="every point of the grid diverged"):
        list(search.run(tmp_path / "out", workers=1))


def test_what_cannot_be_tuned_is_told_before_anything_runs(plan_file: Path) -> None:
    plan = load(plan_file)
    with pytest.raises(ValueError, match="FT has no grid of its own: say what to try"):
        Search.of({"kind": "FT"}, plan)
    with pytest.raises(ExperimentError, match="did you mean PGD"):
        Search.of({"kind": "pgd"}, plan)
    with pytest.raises(ExperimentError, match="rate: is unknown; there are lr, momentum"):
        Search.of({"kind": "PGD"}, plan, {"rate": [1.0]})
    with pytest.raises(ValueError, match="seed 3 is the only one"):
        Search.of({"kind": "PGD"}, load(plan_file, ["seeds=[3]"]))
    with pytest.raises(ExperimentError, match="must be Retrain, FT"):
        Search.of({"kind": "Pgd"}, plan, {"lr": [1.0]})


def test_the_command_says_what_it_tried_and_found(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedunlearn.cli import app

    monkeypatch.chdir(tmp_path)
    arguments = ["tune", "FedQUIT", str(plan_file), "--grid", "lr=0.001,0.05", "--json", "-o", "out"]
    app(arguments, standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert said["seed"] == 3
    assert {trial["method"]["lr"] for trial in said["trials"]} == {0.001, 0.05}
    assert said["seeds"] == [4]
    app(arguments[:-3] + arguments[-2:], standalone_mode=False)
    told = capsys.readouterr().out
    assert "Tried on seed 3" in told
    assert '[[methods]]\nkind = "FedQUIT"\nlr = ' in told
    assert "on seed 3, which chose it; " in told.splitlines()[-1]
    with pytest.raises(ValueError, match="--grid lr says nothing to try"):
        app(["tune", "FedQUIT", str(plan_file), "--grid", "lr"], standalone_mode=False)
