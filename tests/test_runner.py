"""Runs: what they write, that they can be stopped anywhere, and the effect that the quickstart is there to show."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fedunlearn.atomic import FileError
from fedunlearn.backends.in_process import InProcess
from fedunlearn.checkpoint import load_weights, read_metadata
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.table import table
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.experiments import shipped
from fedunlearn.federation import ClientContext, ClientError, Reply, Traffic, Turn
from fedunlearn.history import HistoryError
from fedunlearn.methods.retrain import Retrain
from fedunlearn.needs import Needs, NeedsError
from fedunlearn.negation import negate
from fedunlearn.programs import Diverged
from fedunlearn.record import Record, RecordError
from fedunlearn.report.report import assemble, write_report
from fedunlearn.rounds import Round, aggregate
from fedunlearn.runfolder import Cache, FolderError, RunFolder
from fedunlearn.runner import run
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights
from snapshots import Snapshots
from tiny import load_tiny

SKEWED = ('data.partition={ kind = "Dirichlet", alpha = 5.0 }', 'data.treatment.0={ kind = "Turned" }')

SLOWLY = """
from dataclasses import dataclass
from fedunlearn.rounds import Round, aggregate
from fedunlearn.needs import Needs
from fedunlearn.task import Method

@dataclass(frozen=True)
class Slowly(Method):
    '''Three rounds of unlearning, each of which needs what the one before it carried along.'''
    needs = Needs(retain_online=True)
    def unlearn(self, task, resume=None):
        weights = resume.after if resume else task.weights
        mean = resume.carry["mean"] if resume else task.weights
        for number in range(resume.number + 1 if resume else 0, 3):
            weights = aggregate(task.retained, weights * 0.9, task.training, task.turn(number))
            mean = (mean + weights) * 0.5
            yield Round(number, mean if number == 2 else weights, {"mean": mean})
"""


@dataclass(frozen=True)
class Bursts(Method):
    """A method whose training diverges."""

    needs = Needs()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        yield Round(0, task.weights)
        raise Diverged("the training loss became nan")


@dataclass(frozen=True)
class BurstsAtOnce(Method):
    """A method that does not come to its first row."""

    needs = Needs()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        raise Diverged("the training loss became nan")


@dataclass(frozen=True)
class LikeRetrain(Retrain):
    """A method that does as Retrain does, but is the user's."""


@dataclass(frozen=True)
class Many(Method):
    """A method of several rounds at the clients before recovery."""

    name = "Original"  # which the table has already
    needs = Needs(retain_online=True)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        weights = resume.after if resume else task.weights
        for number in range(resume.number + 1 if resume else 0, 2):
            weights = aggregate(task.retained, weights, task.training, task.turn(number))
            yield Round(number, weights)


@dataclass(frozen=True)
class Homeowner(Method):
    """A method that needs what a server need not have."""

    needs = Needs(history="norms", proxy=True)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        yield Round(0, task.weights)


def tiny(tmp_path: Path, *overrides: str) -> Experiment:
    return load_tiny(tmp_path, *SKEWED, *overrides)


def but_for_times(value: Any) -> Any:
    """What must be the same whenever and however a run was made."""
    if isinstance(value, dict):
        return {k: but_for_times(v) for k, v in value.items() if k not in ("seconds", "sessions", "cached", "name")}
    return [but_for_times(item) for item in value] if isinstance(value, list) else value


def reported(folder: Path) -> Any:
    write_report(assemble(folder), folder / "report.json")
    return but_for_times(json.loads((folder / "report.json").read_text()))


def weights_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("weights/*"))}


def test_a_run_and_its_rows(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    rows = list(run(plan, tmp_path / "run", workers=1))
    assert [(row.method, row.phase, row.rounds, row.scores is not None) for row in rows] == [
        ("Original", "train", 1, False),
        ("Original", "train", 2, True),
        ("Retrain", "unlearn", 0, False),
        ("Retrain", "unlearn", 0, True),
        ("Retrain", "recover", 1, False),
        ("Retrain", "recover", 2, True),
        ("FT", "unlearn", 0, True),
        ("FT", "recover", 1, True),
        ("NoT", "unlearn", 0, False),
        ("NoT", "unlearn", 0, True),
        ("NoT", "recover", 1, True),
    ]
    assert plan.total_rounds == sum(row.phase != "unlearn" for row in rows)
    original, retrain, tuned, negated = (rows[at].bill() for at in (1, 5, 7, 10))
    assert original.traffic.down * 3 == retrain.traffic.down * 4  # four clients, then three; two rounds each
    assert tuned.traffic == negated.traffic
    assert tuned.flops * 2 == retrain.flops
    assert rows[10].costs["unlearn"].traffic == Traffic()  # negation is free
    assert rows[10].costs["unlearn"].flops == rows[10].costs["unlearn"].storage == 0
    assert rows[6].bill() == Cost()  # nothing was done yet
    assert rows[6].scores.retain == rows[1].scores.retain  # type: ignore[union-attr]
    assert {row.method: set(row.costs) for row in rows} == {
        "Original": {"train"},
        "Retrain": {"unlearn", "recover", "evaluate"},
        "FT": {"recover", "evaluate"},
        "NoT": {"unlearn", "recover", "evaluate"},
    }
    # A check sends the model to the three that stay, and passes their validation samples through it.
    checks, sent = rows[10].costs["evaluate"], rows[10].costs["recover"].traffic.down
    assert (checks.traffic.down, checks.traffic.up, checks.traffic.work.backward) == (2 * sent, 0, 0)
    partition = assemble(tmp_path / "run").partitions[3]
    assert checks.traffic.work.forward == 2 * sum(partition.validation[1:])
    assert rows[10].bill(checks=True) == rows[10].bill() + checks
    # Histograms count every sample.
    losses = rows[10].scores.losses  # type: ignore[union-attr]
    held = [sum(counts) for counts in partition.classes]
    assert losses is not None
    assert (sum(losses.forget), sum(losses.retain), sum(losses.test)) == (held[0], sum(held[1:]), 360)
    assert partition.forget == (held[0], 0, 0, 0)
    assert sum(held) + sum(partition.validation) == 160


def test_a_runs_folder_tells_all(tmp_path: Path) -> None:
    plan, folder = tiny(tmp_path, "keep.every=2", "recovery.rounds=5"), tmp_path / "run"
    rows = list(run(plan, folder, workers=1, command="fedunlearn run tiny.toml"))
    assert load(folder / "experiment.toml") == plan
    (session,) = RunFolder(folder).sessions
    assert session["command"] == "fedunlearn run tiny.toml"
    assert session["versions"].keys() == {"fedunlearn", "torch", "torchvision", "numpy", "scipy", "scikit-learn"}
    assert session["decides"]["device"] == "cpu"
    parts = sorted(path.name for path in (folder / "seed-3").iterdir())
    assert parts == ["0-First-training", "1-Original", "2-Retrain", "3-FT", "4-NoT", "partition.json"]
    written = [json.loads(line) for line in (folder / "seed-3" / "4-NoT" / "rows.jsonl").read_text().splitlines()]
    assert [row["rounds"] for row in written] == [0, 0, 1, 2, 3, 4, 5]
    assert written[-1]["scores"]["retain"] == rows[-1].scores.retain  # type: ignore[union-attr]
    kept = sorted(path.stem for path in (folder / "seed-3" / "4-NoT" / "weights").iterdir())
    assert kept == ["recover-0002", "recover-0004", "recover-0005", "unlearned"]
    trained = load_weights(folder / "seed-3" / "0-First-training" / "weights" / "train-0002.safetensors")
    unlearned = folder / "seed-3" / "4-NoT" / "weights" / "unlearned.safetensors"
    assert read_metadata(unlearned)["method"] == "NoT"
    simulation = Simulation(Setting.of(plan, workers=1), 3)
    negated = negate(trained, like=simulation.setting.architecture.template)
    assert load_weights(unlearned).same_bits(negated)
    assert load_weights(unlearned).negations == (("conv1.weight",),)
    report = assemble(folder)
    assert report.rows == tuple(rows)
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob("state.safetensors"))


@pytest.mark.parametrize(("say", "kept"), [("keep.first=false", ["recover-0001"]), ("keep.last=false", ["unlearned"])])
def test_only_chosen_weights_are_kept(tmp_path: Path, say: str, kept: list[str]) -> None:
    list(run(tiny(tmp_path, say), tmp_path / "run", workers=1))
    for part in ("3-FT", "4-NoT"):
        assert [path.stem for path in (tmp_path / "run" / "seed-3" / part / "weights").iterdir()] == kept
    assert (tmp_path / "run/seed-3/0-First-training/weights/train-0002.safetensors").is_file()  # methods start from it


def test_the_same_seed_gives_the_same_bits_with_two_workers(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    for workers in (1, 2):
        list(run(plan, tmp_path / str(workers), workers=workers))
    assert reported(tmp_path / "1") == reported(tmp_path / "2")
    assert weights_of(tmp_path / "1") == weights_of(tmp_path / "2")


def test_variants_of_a_method_have_lines_of_their_own(tmp_path: Path) -> None:
    methods = '[{kind = "Retrain"}, {kind = "NoT"}, {kind = "NoT", layers = "head", include_bias = true}]'
    plan = tiny(tmp_path, f"methods={methods}")
    assert plan.labels == ("Retrain", "NoT", "NoT(layers=head, include_bias=True)")
    assert [line.method for line in table(run(plan, tmp_path / "run", workers=1))] == ["Original", *plan.labels]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ('request.client="9"', "the request means no training sample of anybody"),
        ("data.samples=4000", r"4 clients with 4000 samples each need 16000, but digits has 1437: lower"),
        (
            'request={kind = "Instances", instances = { 0 = [0, 1, 2] }}',
            r"the request means \d training samples, but the membership attack needs 10",
        ),
        ('data.treatment={ 7 = { kind = "Turned" } }', r"data.treatment names no client: 7; they are 0 to 3"),
        ('data.name="digit"', "did you mean digits"),
        ('methods=["Retrain", {kind = "NoT", layers = "nosuch"}]', "nosuch"),
        (
            'request={kind = "Instances", instances = { 0 = [100000] }}',
            r"client 0 has samples 0 to \d+, but 100000 is to be forgotten",
        ),
        ('model.name="resnet18"', r"takes"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_written(
    tmp_path: Path, change: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        list(run(tiny(tmp_path, change), tmp_path / "run", workers=1))
    assert not (tmp_path / "run").exists()


def test_images_are_cropped_and_the_network_sees_their_new_shape(tmp_path: Path) -> None:
    """4x4 pixels of 8x8: a quarter of the operations in the convolutions, another run in the cache, the same bits."""
    plans = [tiny(tmp_path), tiny(tmp_path, 'data.images={ kind = "Cropped", resize = 8, crop = 4, flip = false }')]
    whole, cropped = map(Setting.of, plans)
    assert (whole.data.shape, cropped.data.shape) == ((1, 8, 8), (1, 4, 4))
    assert cropped.flops.forward < whole.flops.forward
    for name, workers in (("one", 1), ("two", 2)):
        list(run(plans[1], tmp_path / name, workers=workers))
    assert reported(tmp_path / "one") == reported(tmp_path / "two")
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "two")


def test_needs_are_looked_at_before_anything_runs(tmp_path: Path) -> None:
    plan = dataclasses.replace(tiny(tmp_path), methods=(*tiny(tmp_path).methods, Homeowner()))
    with pytest.raises(NeedsError, match=r"Homeowner needs proxy data at the server: .* data\.proxy"):
        list(run(plan, tmp_path / "run", workers=1))
    assert not (tmp_path / "run").exists()


def test_a_method_that_diverges_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    plan = dataclasses.replace(plan, methods=(plan.methods[0], Bursts(), *plan.methods[1:]))
    rows = list(run(plan, tmp_path / "run", workers=1))
    assert {row.method for row in rows} == {"Original", "Retrain", "Bursts", "FT", "NoT"}
    report = assemble(tmp_path / "run")
    (failure,) = report.failures
    assert (failure.method, failure.seed, failure.rounds) == ("Bursts", 3, 0)
    assert "became nan" in failure.why
    assert [line.method for line in report.table()] == ["Original", "Retrain", "FT", "NoT"]
    assert list(run(plan, tmp_path / "run", workers=1)) == rows  # and it is not tried again


def test_a_method_that_diverges_before_its_first_row_is_told_by_name(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    list(run(dataclasses.replace(plan, methods=(*plan.methods, BurstsAtOnce())), tmp_path / "run", workers=1))
    report = assemble(tmp_path / "run")
    assert [(one.method, one.rounds) for one in report.failures] == [("BurstsAtOnce", 0)]
    assert report.summary()["failures"][0]["why"].startswith("the training loss")


def test_methods_of_the_users_are_never_taken_for_ours(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    with pytest.raises(ValueError, match="must hold Retrain"):
        dataclasses.replace(plan, methods=(LikeRetrain(), *plan.methods[1:]))
    plan = dataclasses.replace(plan, methods=(Retrain(), LikeRetrain(), Many()))
    rows = list(run(plan, tmp_path / "run", workers=1, cache=tmp_path / "cache"))
    names = [line.method for line in table(rows)]
    assert names == ["Original", "Retrain", "LikeRetrain", f"{__name__}:Original"]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the first training, and Retrain
    many = [row for row in rows if row.method.endswith(":Original")]
    assert [(row.phase, row.scores is not None) for row in many] == [
        ("unlearn", False),
        ("unlearn", False),
        ("unlearn", True),
        ("recover", True),
    ]
    assert many[2].bill().traffic.down == 2 * many[3].costs["recover"].traffic.down


@dataclass(frozen=True)
class Explodes(Method):
    """A method whose step leaves what no network can compute with."""

    needs = Needs()

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        yield Round(0, task.weights * 1e30)


def test_a_model_that_cannot_be_scored_has_diverged_too(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    plan = dataclasses.replace(plan, methods=(plan.methods[0], Explodes()))
    list(run(plan, tmp_path / "run", workers=1))
    (failure,) = assemble(tmp_path / "run").failures
    assert (failure.method, failure.why) == ("Explodes", "the model's losses are not finite: it has diverged")


def test_a_first_training_that_diverges_is_an_error(tmp_path: Path) -> None:
    plan = tiny(tmp_path, "training.optimizer.lr=1e30")
    with pytest.raises(ClientError, match="lower the learning rate"):
        list(run(plan, tmp_path / "run", workers=1))


# --- stopped anywhere ---


@pytest.fixture
def slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_attack: None) -> Experiment:
    """Every way in which a part can be under way: training, one step, several steps with a carry, recovery."""
    (tmp_path / "slowly.py").write_text(SLOWLY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    save = Record.save

    def every_round(*arguments: Any, now: bool = True, **others: Any) -> None:
        save(*arguments, now=True, **others)

    monkeypatch.setattr(Record, "save", every_round)
    with_history = '"FedEraser", "FUKD", "PGD"'
    methods = f'["Retrain", {{kind = "slowly:Slowly"}}, "FT", "NoT", {with_history}]'
    said = ("training.rounds=3", "recovery.rounds=2", "recovery.evaluate_every=1", "keep.every=1", "data.proxy=20")
    yield tiny(tmp_path, f"methods={methods}", *said)
    sys.modules.pop("slowly", None)


def check_all_snapshots(plan: Experiment, tmp_path: Path, choose: Callable[[int], list[int]]) -> None:
    watched, target = tmp_path / "watched", tmp_path / "killed"
    watched.mkdir()
    with Snapshots(watched, target) as snapshots:
        list(run(plan, watched / "run", workers=1, cache=watched / "cache"))
    expected, weights = reported(watched / "run"), weights_of(watched / "run")
    assert snapshots.count > 100
    for number in choose(snapshots.count):
        home = target / str(number)
        list(run(plan, home / "run", workers=1, cache=home / "cache"))
        assert reported(home / "run") == expected, number
        assert weights_of(home / "run") == weights, number
        if number % 2 == 0:  # whatever a killed process left half done in the cache, nobody else is misled by it
            list(run(plan, home / "other", workers=1, cache=home / "cache"))
            assert reported(home / "other") == expected, number


def test_killed_before_any_of_some_writes_it_ends_with_the_same_bits(tmp_path: Path, slowly: Experiment) -> None:
    check_all_snapshots(slowly, tmp_path, lambda count: random.Random(0).sample(range(count), 3))


@pytest.mark.long
def test_killed_before_every_write_it_ends_with_the_same_bits(tmp_path: Path, slowly: Experiment) -> None:
    check_all_snapshots(slowly, tmp_path, lambda count: list(range(count)))


def test_stopped_by_its_reader_after_every_row_it_ends_with_the_same_bits(tmp_path: Path, slowly: Experiment) -> None:
    rows = list(run(slowly, tmp_path / "whole", workers=1))
    for number in range(1, len(rows)):
        reading = run(slowly, tmp_path / "often", workers=1)
        for _ in range(number):
            next(reading)
        reading.close()  # as Ctrl-C does
    list(run(slowly, tmp_path / "often", workers=1))
    assert reported(tmp_path / "often") == reported(tmp_path / "whole")
    assert weights_of(tmp_path / "often") == weights_of(tmp_path / "whole")


def test_a_line_that_was_cut_short_is_taken_away(tmp_path: Path, slowly: Experiment) -> None:
    reading = run(slowly, tmp_path / "run", workers=1)
    for _ in range(9):
        row = next(reading)
    reading.close()
    (path,) = [path.parent / "rows.jsonl" for path in (tmp_path / "run").rglob("state.safetensors")]
    whole = path.read_bytes()
    assert json.loads(whole.splitlines()[0])["method"] == row.method == "Slowly"
    path.write_bytes(whole + whole[:40])
    list(run(slowly, tmp_path / "run", workers=1))
    list(run(slowly, tmp_path / "whole", workers=1))
    assert reported(tmp_path / "run") == reported(tmp_path / "whole")


def test_rows_that_were_lost_or_are_none_are_told(tmp_path: Path) -> None:
    list(run(tiny(tmp_path), tmp_path / "run", workers=1))
    path = tmp_path / "run/seed-3/4-NoT/rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    with pytest.raises(RecordError, match=r"has 1 of 3 rows: remove .*4-NoT, to have it done anew"):
        assemble(tmp_path / "run")
    path.write_bytes(b"{}\n" + b"".join(lines[1:]))
    with pytest.raises(RecordError, match=r"rows.jsonl, line 1 is no row of a run"):
        assemble(tmp_path / "run")
    path.write_bytes(b"".join(lines))
    (path.parent / "complete.json").write_text("nonsense")
    with pytest.raises(FileError, match=r"complete.json is no JSON"):
        assemble(tmp_path / "run")


def flip(path: Path, at: int) -> None:
    """A bit, as a disk does that nobody has looked at for years."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_bits_that_have_flipped_pass_for_no_result(tmp_path: Path) -> None:
    """Each of them leaves a file that can be read: other numbers, another model."""
    list(run(tiny(tmp_path), tmp_path / "run", workers=1))
    home = tmp_path / "run" / "seed-3" / "4-NoT"
    rows, kept = home / "rows.jsonl", home / "weights" / "unlearned.safetensors"
    at = rows.read_bytes().index(b'"seed":3') + len(b'"seed":')
    flip(rows, at)
    with pytest.raises(RecordError, match=r"rows.jsonl was changed since it was written: remove .*4-NoT, to have it"):
        assemble(tmp_path / "run")
    flip(rows, at)
    flip(kept, -1)
    with pytest.raises(RecordError, match=r"unlearned.safetensors was changed since it was written: remove .*4-NoT"):
        Record(home).kept("unlearned")
    shutil.rmtree(home)
    list(run(tiny(tmp_path), tmp_path / "run", workers=1))
    assert Record(home).kept("unlearned").finite()


@pytest.mark.parametrize("name", ["state.safetensors", "rows.jsonl"])
def test_bits_that_have_flipped_are_not_gone_on_with(tmp_path: Path, slowly: Experiment, name: str) -> None:
    reading = run(slowly, tmp_path / "run", workers=1)
    for _ in range(9):
        next(reading)
    reading.close()
    (state,) = (tmp_path / "run").rglob("state.safetensors")
    path = state.with_name(name)
    flip(path, path.read_bytes().index(b'"seed":3') + len(b'"seed":') if name == "rows.jsonl" else -1)
    with pytest.raises(RecordError, match="was changed since it was written"):
        list(run(slowly, tmp_path / "run", workers=1))


def test_a_state_that_is_none_is_told(tmp_path: Path, slowly: Experiment) -> None:
    reading = run(slowly, tmp_path / "run", workers=1)
    for _ in range(9):
        next(reading)
    reading.close()
    (path,) = (tmp_path / "run").rglob("state.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match=r"is no state of a run .*: remove it, to begin this part anew"):
        list(run(slowly, tmp_path / "run", workers=1))
    path.unlink()
    list(run(slowly, tmp_path / "run", workers=1))
    list(run(slowly, tmp_path / "whole", workers=1))
    assert reported(tmp_path / "run") == reported(tmp_path / "whole")


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny(tmp_path, "training.rounds=60")
    spent = []
    save = Record.save

    def timed(*arguments: Any, **options: Any) -> None:
        started = time.monotonic()
        save(*arguments, **options)
        spent.append(time.monotonic() - started)

    monkeypatch.setattr(Record, "save", timed)
    started = time.monotonic()
    list(run(plan, tmp_path / "run", workers=1))
    assert len(spent) > 100
    assert sum(spent) < 0.1 * (time.monotonic() - started)


# --- folders and the cache ---


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    first = run(plan, tmp_path / "run", workers=1)
    next(first)
    with pytest.raises(FolderError, match="in use by another run: wait for it, or choose another folder with --output"):
        next(run(plan, tmp_path / "run", workers=1))
    first.close()
    list(run(plan, tmp_path / "run", workers=1))


def test_a_folder_belongs_to_one_experiment(tmp_path: Path) -> None:
    list(run(tiny(tmp_path), tmp_path / "run", workers=1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(
        FolderError,
        match=r"another experiment \(training.rounds is 2 there, 3 now; training.clip is not said there, 1.0 now\)",
    ):
        list(run(tiny(tmp_path, "training.rounds=3", "training.clip=1.0"), tmp_path / "run", workers=1))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_does_not_go_on_with_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny(tmp_path)
    reading = run(plan, tmp_path / "run", workers=1)
    next(reading)
    reading.close()
    monkeypatch.setattr("fedunlearn.environment._code", lambda: "other")
    with pytest.raises(
        FolderError, match="was begun with other code, so that its numbers would not be those of what is here now"
    ):
        list(run(plan, tmp_path / "run", workers=1))
    monkeypatch.undo()
    rows = list(run(plan, tmp_path / "run", workers=1))
    monkeypatch.setattr("fedunlearn.environment._code", lambda: "other")
    assert list(run(plan, tmp_path / "run", workers=1)) == rows  # what is complete can be looked at with any
    assert len(RunFolder(tmp_path / "run").sessions) == 2


def test_what_is_only_said_or_read_off_afterwards_can_be_changed(tmp_path: Path) -> None:
    rows = list(run(tiny(tmp_path), tmp_path / "run", workers=1))
    changed = tiny(tmp_path, "title=Another", "recovery.stop={kind='Recovered', margin=50, window=2}", "minutes=3")
    assert list(run(changed, tmp_path / "run", workers=1)) == rows
    report = assemble(tmp_path / "run")
    assert report.title == "Another"
    assert report.rules[2].margin == 50  # type: ignore[attr-defined]


OWN_METHOD = """
from dataclasses import dataclass
from fedunlearn.rounds import Round
from fedunlearn.needs import Needs
from fedunlearn.task import Method
from parts.factors import FACTOR

@dataclass(frozen=True)
class Shrink(Method):
    needs = Needs()
    def unlearn(self, task, resume=None):
        if resume is None:
            yield Round(0, task.weights * FACTOR)
"""


def test_a_complete_run_does_not_pass_for_the_users_new_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where it is imported from one's own module, either."""
    (tmp_path / "mine.py").write_text(OWN_METHOD)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within one second look the same to its cache

    def shrunk(factor: str, folder: str) -> list[Row]:
        for module in ("mine", "parts", "parts.factors"):
            sys.modules.pop(module, None)
        (tmp_path / "parts" / "factors.py").write_text(f"FACTOR = {factor}\n")
        plan = tiny(tmp_path, 'methods=["Retrain", {kind = "mine:Shrink"}]')
        return list(run(plan, tmp_path / folder, workers=1))

    rows = shrunk("0.5", "run")
    assert shrunk("0.5", "run") == rows
    with pytest.raises(FolderError, match="was begun with other mine:Shrink, so that its numbers would not be"):
        shrunk("0.25", "run")
    assert shrunk("0.25", "new")[-1].scores != rows[-1].scores
    for module in ("mine", "parts", "parts.factors"):
        sys.modules.pop(module, None)


def test_places_that_take_no_run(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").touch()
    for name, says in (
        ("tiny.toml", "is a file"),
        ("tiny.toml/run", "not being a folder"),
        ("full", "holds thesis.doc"),
    ):
        with pytest.raises(FolderError, match=says):
            list(run(plan, tmp_path / name, workers=1))
    with pytest.raises(FolderError, match=r"is no run's folder: it has no experiment.toml"):
        assemble(tmp_path / "full")


def test_trained_models_are_shared_by_all_that_determines_them(tmp_path: Path) -> None:
    def folder(name: str, *overrides: str) -> tuple[list[Row], tuple[str, ...]]:
        rows = list(run(tiny(tmp_path, *overrides), tmp_path / name, workers=1, cache=tmp_path / "cache"))
        return rows, assemble(tmp_path / name).cached

    rows, cached = folder("first")
    assert cached == ()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    again, cached = folder("again")
    assert cached == ("seed 3, first training", "seed 3, Retrain")
    assert reported(tmp_path / "again") == reported(tmp_path / "first")
    assert [row.costs for row in again[:6]] == [row.costs for row in rows[:6]]  # seconds too: of the run that did it
    assert folder("methods", 'methods=["NoT", "Retrain"]', "recovery.rounds=3", 'title="x"')[1] == (
        "seed 3, first training",
        "seed 3, Retrain",
    )
    assert folder("request", 'request.client="1"')[1] == ("seed 3, first training",)
    assert folder("scoring", "recovery.evaluate_every=1")[1] == ("seed 3, first training",)
    for number, change in enumerate(("training.rounds=1", "data.samples=50", "model.options.kernel=5", "seeds=[4]")):
        assert folder(f"other{number}", change)[1] == ()


def test_a_training_that_recorded_more_serves_those_who_need_less(tmp_path: Path) -> None:
    def cached(name: str, methods: str) -> bool:
        said = (f"methods={methods}", "data.proxy=20")
        list(run(tiny(tmp_path, *said), tmp_path / name, workers=1, cache=tmp_path / "cache"))
        return "seed 3, first training" in assemble(tmp_path / name).cached

    assert not cached("much", '["Retrain", "FedEraser", "PGD"]')
    assert cached("less", '["Retrain", "FedEraser"]')
    assert cached("nothing", '["Retrain", "NoT"]')
    assert not cached("other", '["Retrain", "FUKD"]')
    assert cached("other again", '["Retrain", "FUKD", "FT"]')
    list(run(tiny(tmp_path, "data.proxy=7"), tmp_path / "fewer", workers=1, cache=tmp_path / "cache"))
    assert len(assemble(tmp_path / "fewer").cached) == 2  # images at the server are nobody's business


def test_what_was_kept_is_in_the_price_of_those_who_need_it(tmp_path: Path) -> None:
    said = ('methods=["Retrain", "NoT", "FedEraser", "FUKD", "PGD"]', "data.proxy=20", "training.rounds=3")
    plan = tiny(tmp_path, *said)
    list(run(plan, tmp_path / "run", workers=1))
    storage = {line.method: line.storage for line in assemble(tmp_path / "run").table()}
    message = Setting.of(plan).architecture.fresh(0).parameter_bytes
    tensors = len(Setting.of(plan).architecture.fresh(0).parameters)
    assert storage == {
        "Original": 0,
        "Retrain": 0,
        "NoT": 0,
        "FedEraser": 5 * message + 4 * 3 * tensors * 4,  # the first model, four updates, norms of three rounds
        "FUKD": 4 * message,
        "PGD": 4 * message,
    }


def test_a_broken_history_tells_what_to_remove(tmp_path: Path) -> None:
    plan = tiny(tmp_path, 'methods=["Retrain", "PGD"]')
    reading = run(plan, tmp_path / "run", workers=1)
    for row in reading:
        if row.method == "Retrain":
            break
    reading.close()
    (row_file,) = (tmp_path / "run").rglob("last_local/0@*.safetensors")
    row_file.write_bytes(b"short")
    with pytest.raises(HistoryError, match=r"is broken .*\(in this run: remove .*0-First-training"):
        list(run(plan, tmp_path / "run", workers=1))
    shutil.rmtree(tmp_path / "run" / "seed-3" / "0-First-training")
    list(run(plan, tmp_path / "run", workers=1))
    assert assemble(tmp_path / "run").methods == ("Retrain", "PGD")


def test_histories_that_the_disk_cannot_hold_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny(tmp_path, 'methods=["Retrain", "FedAccum", "PGD"]')
    model = Setting.of(plan).architecture.fresh(0)
    updates = model.parameter_bytes * (1 + 4 * 2) + 4 * 2 * len(model.parameters) * 4
    needed = 2 * (updates + 4 * model.parameter_bytes)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match=r"most of them FedAccum's, but .* left: leave out FedAccum"):
        list(run(plan, tmp_path / "run", workers=1))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    rows = list(run(plan, tmp_path / "run", workers=1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert list(run(plan, tmp_path / "run", workers=1)) == rows  # nothing is left to record


def test_images_at_the_server_change_nobodys_data(tmp_path: Path) -> None:
    without, with_some = (Simulation(Setting.of(tiny(tmp_path, f"data.proxy={n}")), 3) for n in (0, 20))
    assert without.proxy is None
    assert without.partition == with_some.partition
    assert with_some.federation.clients == without.federation.clients == ("0", "1", "2", "3")
    assert with_some.proxy is not None
    assert with_some.proxy.clients == ("server",)
    asked = [(with_some.federation, client) for client in "0123"] + [(with_some.proxy, "server")]
    held = [image for federation, client in asked for image in _images(federation, client)]
    assert len(held) == len(set(held)) == 4 * 40 + 20  # the server has none of theirs


def _images(federation: InProcess, client: str) -> list[tuple[float, ...]]:
    weights = federation.architecture.fresh(0)
    (reply,) = dict(federation.run(Images(), weights, Turn(0, "evaluate", 0), [client])).values()
    return [tuple(row) for row in reply.values["x"].tolist()]


@dataclass(frozen=True)
class Images:
    def __call__(self, context: ClientContext) -> Reply:
        batches = context.batches(0, 500, part="all", train=False)
        return Reply(values={"x": torch.cat([batch.x.flatten(1) for batch in batches])})


def test_other_data_under_the_same_name_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "mine.py"
    code = "import torch\ndef load():\n    x = torch.arange(300.).view(300, 1, 1, 1).expand(300, 1, 8, 8) / {scale}\n"
    code += "    return (x, torch.arange(300) % 3), (x[:30], torch.arange(30) % 3)\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name, scale, cached in (("a", 300, 0), ("b", 300, 2), ("c", 301, 0)):
        module.write_text(code.format(scale=scale))
        sys.modules.pop("mine", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # the same size within the same second
        list(run(tiny(tmp_path, "data.name=mine:load"), tmp_path / name, workers=1, cache=tmp_path / "cache"))
        assert len(assemble(tmp_path / name).cached) == cached
    sys.modules.pop("mine", None)


def test_data_that_are_read_one_by_one_are_looked_at_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\nclass Lazy:\n    def __len__(self): return 1000\n"
    code += "    def __getitem__(self, n): return torch.full((1, 8, 8), n % 3.0 + (n == 501) * {extra}), n % 3\n"
    code += "def load(): return Lazy(), Lazy()\n"
    (tmp_path / "lazily.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    digests = []
    for extra in (0, 0, 1):
        (tmp_path / "lazily.py").write_text(code.format(extra=extra))
        sys.modules.pop("lazily", None)
        digests.append(Setting.of(tiny(tmp_path, "data.name=lazily:load")).digests()["training data"])
    assert digests[0] == digests[1] != digests[2]
    sys.modules.pop("lazily", None)


def test_what_is_broken_in_the_cache_is_done_anew(tmp_path: Path) -> None:
    def cached(name: str) -> int:
        list(run(tiny(tmp_path), tmp_path / name, workers=1, cache=tmp_path / "cache"))
        return len(assemble(tmp_path / name).cached)

    assert cached("first") == 0
    for number, (pattern, broken) in enumerate(
        (("complete.json", None), ("rows.jsonl", b"nonsense\n"), ("weights/*", b"short"), ("complete.json", b"{}"))
    ):
        for path in (tmp_path / "cache").glob(f"*/{pattern}"):
            path.unlink() if broken is None else path.write_bytes(broken)
        assert cached(f"{number}") == 0
        assert reported(tmp_path / f"{number}") == reported(tmp_path / "first")
        assert cached(f"{number} again") == 2  # and mended


def test_a_bit_that_has_flipped_in_the_cache_is_not_taken_over(tmp_path: Path) -> None:
    plan = tiny(tmp_path, 'methods=["Retrain", "FedEraser"]')

    def cached(name: str) -> int:
        list(run(plan, tmp_path / name, workers=1, cache=tmp_path / "cache"))
        return len(assemble(tmp_path / name).cached)

    assert cached("first") == 0
    for pattern in ("weights/train-*", "history/initial.safetensors"):
        (found,) = (tmp_path / "cache").glob(f"*/{pattern}")
        flip(found, -1)
        assert cached(f"with {found.stem}") == 1  # Retrain
        assert cached(f"with {found.stem} again") == 2


def test_what_was_damaged_after_it_was_kept_is_not_certified(tmp_path: Path) -> None:
    weights = Weights({"w": torch.arange(4.0)}, {})
    path = tmp_path / "part" / "weights" / "last.safetensors"
    record = Record(tmp_path / "part")
    record.begin()
    record.keep("last", weights, {})
    record.save("train", Round(0, weights, {}), 0, now=True)
    assert Record(record.folder).kept("last").same_bits(weights)
    flip(path, -1)
    resumed = Record(record.folder)
    for each in (record, resumed):
        each.finish("NoT")
        with pytest.raises(RecordError, match=r"last.safetensors was changed since it was written: remove .*part"):
            Record(record.folder).kept("last")
        with pytest.raises(RecordError, match=r"last.safetensors was changed"):
            Record.adopted(tmp_path / "other", record.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


@pytest.mark.parametrize(
    "wrong",
    [{"weights": []}, {"weights": None}, {"digest": None}, {"weights": {"last": 3}}, {"rows": -1}, {"label": 1}],
)
def test_a_completion_is_as_it_is_written_or_told(tmp_path: Path, wrong: dict[str, Any]) -> None:
    record = Record(tmp_path)
    record.begin()
    record.finish("NoT")
    said = json.loads((tmp_path / "complete.json").read_text())
    for content in (said | wrong, {name: value for name, value in said.items() if name not in wrong}):
        (tmp_path / "complete.json").write_text(json.dumps(content))
        with pytest.raises(
            RecordError, match=r"complete.json is not as a run writes it: remove .*to have it done anew"
        ):
            Record(tmp_path)


def test_a_history_of_which_the_cache_has_lost_a_file_is_recorded_anew(tmp_path: Path) -> None:
    """Whoever tidies up by age takes single files; every later run would else end at the one that reads it."""
    plan = tiny(tmp_path, 'methods=["Retrain", "FedEraser"]')

    def cached(name: str) -> int:
        list(run(plan, tmp_path / name, workers=1, cache=tmp_path / "cache"))
        return len(assemble(tmp_path / name).cached)

    assert cached("first") == 0
    for number, pattern in enumerate(("history/updates/*/*", "history/norms/*", "history/history.json")):
        found = list((tmp_path / "cache").glob(f"*/{pattern}"))
        assert found
        found[0].unlink()
        assert cached(f"{number}") == 1  # Retrain
        assert cached(f"{number} again") == 2


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    list(run(tiny(tmp_path), tmp_path / "run", workers=1, cache=tmp_path / "file" / "cache"))
    assert assemble(tmp_path / "run").cached == ()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    list(run(tiny(tmp_path), tmp_path / "run", workers=1))
    record = RunFolder(tmp_path / "run").record(3, 2, "Retrain")
    (cache / "full").touch()
    entry = Cache(cache)
    entry.store({"a": 1}, record)
    entry.store({"a": 1}, record)  # somebody else was quicker
    assert len(list(cache.iterdir())) == 2
    (cache / ".old.tmp").mkdir()
    os.utime(cache / ".old.tmp", (0, 0))  # of a run that was killed long ago
    missing = RunFolder(tmp_path / "run").record(3, 9, "nobody")
    entry.store({"a": 2}, missing)
    assert sorted(path.name[0] == "." for path in cache.iterdir()) == [False, False]


# --- killed for good ---


def rows_in(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("rows.jsonl"))


def kill_at(rows: int, later: float, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start a run and kill it with SIGKILL, so many seconds after it is at work and there are so many rows."""
    home = RunFolder(folder / "killed")
    before = len(home.sessions)
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(home.sessions) == before or rows_in(home.path) < rows:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


# In a process of its own: patches every method so that its unlearning phase is killed before and after its step.
KILLS = """
import os, signal, sys
from pathlib import Path
from fedunlearn.methods import finetune, negation, retrain
from fedunlearn import cli
marks = Path(sys.argv.pop(1))

def deadly(kind):
    step = kind.unlearn
    def unlearn(self, task, resume=None):
        for when in ("before", "after"):
            mark = marks / f"{kind.__name__}-{when}"
            if when == "after":
                yield from step(self, task, resume)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
    kind.unlearn = unlearn

for kind in (finetune.FineTune, negation.NoT, retrain.Retrain):
    deadly(kind)
cli.main()
"""


def kill_in_every_unlearning_phase(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    marks = folder / "marks"
    marks.mkdir()
    command = [sys.executable, "-c", KILLS, str(marks), *arguments]
    for _ in range(6):  # three methods, twice each
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(marks.iterdir())) == 6


def test_killed_in_every_methods_unlearning_phase_it_ends_in_the_same_report(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    environment = {**os.environ, "FEDUNLEARN_CACHE": str(tmp_path / "cache")}
    arguments = ["run", "tiny.toml", "-o", "killed", "--workers", "1"]
    kill_in_every_unlearning_phase(arguments, tmp_path, environment)
    command = [sys.executable, "-m", "fedunlearn", *arguments]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    list(run(plan, tmp_path / "whole", workers=1))
    assert reported(tmp_path / "killed") == reported(tmp_path / "whole")
    assert len(RunFolder(tmp_path / "killed").sessions) == 7


@pytest.mark.long
def test_fashion_client_killed_at_fifty_instants_ends_in_the_same_report(tmp_path: Path) -> None:
    """And twice inside every method's unlearning phase. Takes about three times as long as the run alone."""
    environment = {**os.environ, "FEDUNLEARN_CACHE": str(tmp_path / "cache")}
    arguments = ["run", "fashion-client", "-o", "killed"]
    kill_in_every_unlearning_phase(arguments, tmp_path, environment)
    command = [sys.executable, "-m", "fedunlearn", *arguments]
    rng, plan = random.Random(0), load("fashion-client")
    rows = plan.total_rounds + len(plan.seeds) * (1 + len(plan.methods))  # at least: rounds, and models before them
    for target in sorted(rng.sample(range(rows - 5), 50)):
        kill_at(target, rng.uniform(0, 1), command, tmp_path, environment)
    assert len(RunFolder(tmp_path / "killed").sessions) == 6 + 50
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    plain = [sys.executable, "-m", "fedunlearn", "run", "fashion-client", "-o", "whole"]
    environment["FEDUNLEARN_CACHE"] = str(tmp_path / "other cache")
    subprocess.run(plain, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert reported(tmp_path / "killed") == reported(tmp_path / "whole")
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")


def test_recovery_has_local_work_of_its_own(tmp_path: Path) -> None:
    """Twice the operations for the same bytes, but not where one trains from scratch; and other bits."""
    last = []
    for name, epochs in (("one", "recovery.epochs=1"), ("two", "recovery.epochs=2")):
        rows = list(run(tiny(tmp_path, epochs), tmp_path / name, workers=1))
        last.append({row.method: row for row in rows if row.phase == "recover" and row.scores is not None})
    one, two = ({method: row.bill() for method, row in of.items()} for of in last)
    assert two["NoT"].traffic.both_ways == one["NoT"].traffic.both_ways
    assert two["NoT"].flops == 2 * one["NoT"].flops
    assert two["Retrain"].flops == one["Retrain"].flops
    assert last[0]["Retrain"].scores == last[1]["Retrain"].scores
    assert last[0]["NoT"].scores != last[1]["NoT"].scores


# --- what is shipped ---


def test_those_that_are_shipped_can_be_read() -> None:
    assert list(shipped()) == [
        "advice-cnn",
        "advice-resnet",
        "advice-vit",
        "all-at-once",
        "fashion-audit",
        "fashion-client-all",
        "fashion-client-search",
        "fashion-client",
        "gone-already",
        "layers-vit",
        "layers",
        "one-after-another",
        "perturbations",
        "quickstart",
        "recovery-audit",
        "recovery-cnn-local",
        "recovery-cnn-more",
        "recovery-cnn",
        "recovery-resnet-local",
        "recovery-resnet",
        "recovery-skewed-local",
        "recovery-skewed",
        "recovery-vit-local",
        "recovery-vit",
        "resnet-search",
        "some-take-part",
        "vit-search",
    ]
    for name in shipped():
        plan = load(name)
        assert plan.title
        assert plan.minutes


def test_the_quickstart_shows_that_not_forgets_where_fine_tuning_does_not(tmp_path: Path) -> None:
    """Over the committed seeds: FT's gap is at least three points and at least three times NoT's."""
    lines = {line.method: line for line in table(run(load("quickstart"), tmp_path / "run"))}
    assert lines["Original"].forget.mean > 95
    assert lines["FT"].gap.of_means >= 3
    assert lines["FT"].gap.of_means >= 3 * lines["NoT"].gap.of_means
    assert lines["NoT"].bytes < lines["Retrain"].bytes
