"""The paper's tables and figures: which files belong to each, and the command that runs them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from diagnosed import quick
from fedunlearn import runner
from fedunlearn.artefacts import artefact, artefacts
from fedunlearn.cli import main
from fedunlearn.diagnoses import Bounds
from fedunlearn.evaluation.published import names
from fedunlearn.experimentfile import ExperimentError, load, resolved
from fedunlearn.experiments import SCALES, reproducing, shipped
from fedunlearn.findings import read_found
from fedunlearn.report.grid import Grid
from fedunlearn.report.reproduction import read_reproduction
from fedunlearn.runfolder import RunFolder
from fedunlearn.simulation import Setting
from tiny import tiny_text

pytestmark = pytest.mark.usefixtures("quick_attack")

TEXT = tiny_text(
    *("minutes=0.1", "published=table-1/cifar-10/cnn", "seeds=[0]", "data.clients=3", "model.options.channels=[2, 4]"),
    *("recovery.rounds=2", "recovery.evaluate_every=1"),
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Experiments of one's own in the place of those that are shipped."""
    folder = tmp_path / "experiments"
    for scale in SCALES:
        (folder / scale).mkdir(parents=True)
    monkeypatch.setattr("fedunlearn.experiments._FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def write(files: Path, **texts: str) -> None:
    """``cpu__table_1_vit`` is ``cpu/table-1-vit.toml``."""
    for name, text in texts.items():
        (files / f"{name.replace('__', '/').replace('_', '-')}.toml").write_text(text)


@pytest.fixture
def tiny(files: Path) -> Path:
    extended = 'extends = "table-1-cnn.toml"\n'
    write(
        files,
        cpu__table_1_cnn=TEXT,
        cpu__table_1_vit=f'{extended}published = "table-1/caltech-101/vit"\nminutes = 0.2\n',
        cpu__table_10=extended,
        cpu__figure_4=f'{extended}published = "figure-4"\n',
        paper__table_1='extends = "../cpu/table-1-cnn.toml"\n[training]\nrounds = 1\n',
    )
    return files


def tell(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["fedunlearn", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_files_of_an_artefact_are_named_after_it(tiny: Path) -> None:
    assert artefact("table-1").experiments("cpu") == ["cpu/table-1-cnn", "cpu/table-1-vit"]
    assert artefact("table-1").experiments("paper") == ["paper/table-1"]
    assert artefact("figure-4").experiments("cpu") == ["cpu/figure-4"]


def test_a_figure_that_draws_a_tables_block_shares_its_experiment(tiny: Path) -> None:
    assert artefact("figure-1").experiments("cpu") == ["cpu/table-1-vit"]
    (tiny / "cpu" / "figure-1.toml").write_text('extends = "table-1-vit.toml"\n')
    assert artefact("figure-1").experiments("cpu") == ["cpu/figure-1"]


def test_only_those_with_experiments_are_there_in_the_papers_order(tiny: Path) -> None:
    assert list(artefacts()) == ["table-1", "figure-1", "figure-4"]


@pytest.mark.parametrize(
    ("name", "scale", "says"),
    [
        (
            "tabel-1",
            "cpu",
            r"no table or figure 'tabel-1' to reproduce \(did you mean table-1\?\): take one of table-1, f",
        ),
        ("table-8", "cpu", "no table or figure 'table-8' to reproduce"),
        ("figure-4", "paper", "figure-4 has no experiment at scale paper: take --scale cpu"),
        ("table-1", "big", "there is no scale 'big': take cpu or paper"),
    ],
)
def test_what_is_not_there_is_said(tiny: Path, name: str, scale: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        artefact(name).experiments(scale)


def test_they_are_loaded_by_their_names_with_the_folder(tiny: Path) -> None:
    assert load("cpu/table-1-vit").published == "table-1/caltech-101/vit"
    assert load("paper/table-1").training.rounds == 1
    assert list(shipped()) == []


def test_series_are_part_of_an_experiment_and_decide_nothing_of_a_run(tiny: Path) -> None:
    series = '[series]\n"class-token-negated" = "NoT"\n'
    write(tiny, cpu__figure_4='extends = "table-1-cnn.toml"\npublished = "figure-4"\n' + series)
    plan = load("cpu/figure-4")
    assert plan.series == {"class-token-negated": "NoT"}
    assert resolved(plan)["series"] == {"class-token-negated": "NoT"}
    for _ in runner.run(plan, Path("run"), workers=1):
        pass
    other = load("cpu/figure-4", ["series={ NoT = 'FT' }"])
    assert len(list(runner.run(other, Path("run"), workers=1))) > 0  # it is the same run


@pytest.mark.parametrize(
    ("published", "series", "says"),
    [
        (
            "figure-4",
            'klass-token-negated = "NoT"',
            "is none of the paper's (did you mean class-token-negated?); there a",
        ),
        ("figure-4", 'NoT = "Not"', '"Not" is none of the methods (did you mean NoT?): these are Retrain, FT, NoT'),
        (None, 'NoT = "NoT"', "series: stands beside nothing: say with published what"),
    ],
)
def test_series_name_what_there_is(tmp_path: Path, published: str | None, series: str, says: str) -> None:
    text = TEXT.replace('published = "table-1/cifar-10/cnn"', f'published = "{published}"' if published else "")
    (tmp_path / "own.toml").write_text(f"{text}[series]\n{series}\n")
    with pytest.raises(ExperimentError) as told:
        load(tmp_path / "own.toml")
    (problem,) = told.value.problems
    assert says in problem
    line = len(text.splitlines()) + (1 if published is None else 2)
    assert problem.startswith(f"{tmp_path / 'own.toml'}:{line}: series")


def test_what_is_published_can_be_named_by_an_experiment(tiny: Path) -> None:
    for name in names():
        assert load("cpu/table-1-cnn", [f"published={name}"]).published == name


def test_listing(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(monkeypatch, "reproduce") == 0
    assert capsys.readouterr().out.splitlines() == [
        "table-1: Client-wise federated unlearning, IID, first client forgets (cpu: 0.3 min, paper: 0.1 min)",
        "figure-1: Client-wise federated unlearning, IID, first client forgets, ViT (cpu: 0.2 min)",
        "figure-4: Average gap against communication, by negated ViT layer (cpu: 0.1 min)",
    ]
    assert tell(monkeypatch, "reproduce", "--json") == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "figure-1",
        "title": "Client-wise federated unlearning, IID, first client forgets, ViT",
        "minutes": {"cpu": pytest.approx(0.2), "paper": None},
    }
    write(tiny, cpu__table_4=TEXT.replace("minutes = 0.1\n", ""))
    assert tell(monkeypatch, "reproduce") == 0
    assert "first client forgets (cpu: not timed)\n" in capsys.readouterr().out


def test_a_mistake_is_one_sentence(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tiny, cpu__table_2=TEXT.replace('published = "table-1/cifar-10/cnn"\n', ""))
    for arguments, says in (
        (["table-11"], "there is no table or figure 'table-11'"),
        (["figure-4", "--scale", "paper"], "figure-4 has no experiment at scale paper"),
        (["table-2"], "cpu/table-2 does not say what it stands beside"),
    ):
        assert tell(monkeypatch, "reproduce", *arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert says in shown.err
        assert shown.err.count("\n") == 1
    assert not Path("runs").exists()


class Broken(Exception):
    """In the middle of a run."""


def test_broken_off_the_same_command_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("reproduce", "table-1", "-o", "out", "--workers", "1")
    monkeypatch.setattr("fedunlearn.report.page.publish", lambda *_: None)  # drawing takes seconds
    whole = runner.run

    def breaking(plan: object, folder: Path, **options: object) -> object:
        """Breaks off in the second experiment, after its Retrain."""
        for number, row in enumerate(whole(plan, folder, **options)):  # type: ignore[arg-type]
            if folder.name == "table-1-vit" and number == 6:
                raise Broken
            yield row

    with monkeypatch.context() as patched:
        patched.setattr("fedunlearn.runner.run", breaking)
        with pytest.raises(Broken):
            tell(patched, *command)
    done = {path: path.stat().st_mtime_ns for path in Path("out/cpu").rglob("complete.json")}
    assert any("table-1-cnn" in str(path) for path in done)
    assert not Path("out/cpu/table-1.json").exists()
    assert tell(monkeypatch, *command) == 0
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    assert len(RunFolder(Path("out/cpu/table-1-cnn")).sessions) == 1
    assert len(RunFolder(Path("out/cpu/table-1-vit")).sessions) == 2
    assert "GPU" not in capsys.readouterr().err

    found = read_reproduction(Path("out/cpu/table-1.json"))
    assert (found.artefact, found.scale) == ("table-1", "cpu")
    assert found.command == "fedunlearn reproduce table-1 -o out --workers 1"
    assert [block.experiment for block in found.blocks] == ["cpu/table-1-cnn", "cpu/table-1-vit"]
    assert [block.seeds for block in found.blocks] == [(0,), (0,)]
    assert set(found.blocks[0].session["versions"]) >= {"fedunlearn", "torch"}
    assert Path("out/cpu/table-1.html").stat().st_size > 10_000

    # The figure that draws a block of it has nothing left to run.
    monkeypatch.setattr("fedunlearn.runner._Part._others", lambda part: pytest.fail("it ran again"))
    assert tell(monkeypatch, "reproduce", "figure-1", "-o", "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [pair["method"] for pair in told["blocks"][0]["pairs"]] == ["Retrain", "MoDE", "FCU", "NoT"]
    assert told["folder"] == "out/cpu"


FOUND = tiny_text(
    *(
        "published=table-3/cifar-10/cnn",
        "seeds=[0]",
        "keep.every=1",
        "data.samples=60",
        "model.options.channels=[2, 4]",
    ),
    *("training.rounds=4", "training.batch_size=16", "recovery.rounds=4", "recovery.evaluate_every=4"),
)


def test_one_run_serves_a_table_and_figures_of_findings(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(files, cpu__table_3_cnn=FOUND)
    assert list(artefacts()) == ["table-3", "figure-3", "figure-8"]
    assert all(one.experiments("cpu") == ["cpu/table-3-cnn"] for one in artefacts().values())
    monkeypatch.setattr("fedunlearn.report.page.publish", lambda *_: None)  # drawing takes seconds
    folder = Path("out/cpu/table-3-cnn")
    with quick():
        assert tell(monkeypatch, "reproduce", "table-3", "-o", "out", "--workers", "1") == 0
        shown = capsys.readouterr()
        assert "table-3-cnn: digits, layernorm-cnn (scale cpu), beside the paper's cifar-10, cnn" in shown.out
        assert "Of all this only FT / NoT can be compared" in " ".join(shown.out.split())
        assert "Rank" not in shown.out
        assert shown.err.splitlines()[-1] == "seed 0, bound"
        found = read_reproduction(Path("out/cpu/table-3.json"))
        (block,) = found.blocks
        assert isinstance(block, Grid)
        assert [row.label for row in block.rows] == ["FT", "NoT", "FT / NoT"]
        (bound,) = read_found(folder / "theory" / "bound.json", Bounds).results
        assert block.rows[0].entries[0].ours == (bound.bounds["FT"].printed,)
        assert block.rows[1].entries[3].ours == (bound.measured["NoT"],)

        # Nothing is left to train for the figures, and nothing to look at for the table.
        monkeypatch.setattr("fedunlearn.runner._Part._others", lambda part: pytest.fail("it ran again"))
        assert tell(monkeypatch, "reproduce", "figure-3", "-o", "out", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert [(one["published"], one["experiment"]) for one in told["blocks"]] == [
            ("figure-3/cifar-10/cnn", "cpu/table-3-cnn")
        ]
        assert [row["label"] for row in told["blocks"][0]["rows"]][:2] == ["Retrain, first", "NoT, first"]
        assert told["blocks"][0]["rows"][1]["entries"][1]["published"] == 0.89
        monkeypatch.setattr("fedunlearn.diagnoses.bound_along", lambda *_, **__: pytest.fail("it was looked at again"))
        assert tell(monkeypatch, "reproduce", "table-3", "-o", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == json.loads(json.dumps([block.summary()]))
    for name in ("table-3", "figure-3"):
        page = Path(f"out/cpu/{name}.html").read_text()
        assert 'href="table-3-cnn/theory.html"' in page
    assert {path.name for path in Path("out/cpu").glob("*-figures/*.svg")} == {
        *("cpu-table-3-cnn-paper.svg", "cpu-table-3-cnn-here.svg")
    }
    page = (folder / "theory.html").read_text()
    assert page.index('<h2 id="cka">') < page.index('<h2 id="bound">')
    assert '<a href="report.html">The report of this run</a>' in page


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("table-3", FOUND.replace("every = 1", ""), "cpu/table-3 keeps no models on the way, .*: write keep.every = 2"),
        ("figure-7", FOUND, "the paper has no 'figure-7/cifar-10/cnn': take one of "),
        ("figure-3", FOUND.replace("cifar-10/cnn", "cifar-10/resnet-18"), "the paper has no 'figure-3/cifar-10/resnet"),
        ("table-1", FOUND, "table-3/cifar-10/cnn has no scores, but what a diagnosis finds"),
    ],
)
def test_what_could_not_be_shown_is_said_before_anything_is_trained(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (files / "cpu" / f"{name}.toml").write_text(text)
    assert tell(monkeypatch, "reproduce", name) == 2
    shown = capsys.readouterr()
    assert re.search(says, shown.err)
    assert shown.err.count("\n") == 1
    assert not Path("runs").exists()


def test_the_papers_scale_without_a_gpu_is_warned_of(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedunlearn.report.page.publish", lambda *_: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert tell(monkeypatch, "reproduce", "table-1", "--scale", "paper", "-o", "out", "--workers", "1") == 0
    shown = capsys.readouterr()
    setting = Setting.of(load("paper/table-1"))
    # 3 clients with 40 samples each, 32 of them to train on; 1 round of training, 1 of Retrain, 2 of FT and of NoT.
    flops = 3 * 32 * (1 + 1 + 2 + 2) * (setting.flops.forward + setting.flops.backward)
    assert f"there is no GPU here: paper/table-1 trains for {flops:.1e} FLOPs" in shown.err
    assert "days, about" in shown.err
    assert "digits, layernorm-cnn (scale paper), beside the paper's cifar-10, cnn" in shown.out


def test_those_that_are_shipped_stand_beside_what_they_are_named_after() -> None:
    found = artefacts()
    tables, figures = (1, 2, 3, 4, 5, 6, 7, 8), (1, 3, 4, 5, 6, 7, 8)
    assert list(found) == [*(f"table-{number}" for number in tables), *(f"figure-{number}" for number in figures)]
    for figure in ("figure-3", "figure-7", "figure-8"):  # in the runs of table 3
        assert set(found[figure].experiments("cpu")) <= {*found["table-3"].experiments("cpu"), "cpu/figure-7-vit"}
    for scale in SCALES:
        of_artefacts = {name for one in found.values() for name in one.experiments(scale)}
        for name in of_artefacts:
            beside = load(name).published
            assert beside is not None
            assert name.startswith(f"{scale}/{beside.partition('/')[0]}")
        # The paper names two settings of which it shows no result.
        more = {"paper/vit-cifar-100", "paper/efficientnet-cifar-10"} if scale == "paper" else set()
        assert set(reproducing(scale)) - of_artefacts == more
        assert all(load(name).published is None for name in more)
