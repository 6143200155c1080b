from __future__ import annotations

import dataclasses
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedunlearn.export
from fedunlearn.atomic import atomic_write
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.scores import Scores
from fedunlearn.export import ExportError, to_mlflow, to_tensorboard
from fedunlearn.federation import Traffic
from fedunlearn.report.report import Failure, Report, read_report, write_report

HEAD = "NoT(layers=head, include_bias=True)"
BEGAN = 1_750_000_000  # 2025-06-15 15:06:40 UTC
FLOPS = 12_345_678_901  # more than a number of single precision can tell from its neighbours

EXPERIMENT = {
    "title": "Tiny",
    "seeds": [0, 1],
    "minutes": 1.0,
    "methods": [{"kind": "Retrain"}, {"kind": "NoT", "layers": "head", "include_bias": True}],
    "data": {"name": "digits", "clients": 4, "treatment": {}},
    "training": {"optimizer": {"kind": "SGD", "lr": 0.05}},
    "recovery": {"rounds": 2, "stop": {"kind": "Fixed"}},
    "keep": {"first": True},
}

SESSIONS = (
    {"started": "2025-06-15T15:06:40+00:00", "commit": "0123abcd"},
    {"started": "2025-06-16T15:06:40+00:00", "commit": "0123abcd"},
    {"started": "2025-06-17T15:06:40+00:00", "commit": "4567abcd with changes"},
)

CHECKS = Cost(Traffic(7, 7, 7, 7), 7, 7.0)  # what stop rules read is not on the bill
UNLEARNED = {"unlearn": Cost(Traffic(100, 0, 900, 900), 0, 0.5), "evaluate": CHECKS}
RECOVERED = {**UNLEARNED, "recover": Cost(Traffic(1000, 1100, 9000, 9000), FLOPS, 1.25)}

ROWS = (
    Row(0, "Original", "train", 3, {"train": Cost(Traffic(50, 50), 64, 2.0)}, Scores(95, 94, 82, 60)),
    Row(1, "Original", "train", 3, {"train": Cost(Traffic(50, 50), 64, 2.0)}, Scores(95, 94, 82, 60)),
    Row(0, "Retrain", "unlearn", 0, UNLEARNED, Scores(10, 10, 10, 50)),
    Row(0, "Retrain", "recover", 1, RECOVERED, None),
    Row(0, "Retrain", "recover", 2, RECOVERED, Scores(90, 60, 80, 50, 45.5)),
    Row(1, "Retrain", "unlearn", 0, UNLEARNED, Scores(10, 10, 10, 50)),
    Row(1, "Retrain", "recover", 2, RECOVERED, Scores(92, 58, 82, 54, 46.5)),
    Row(0, HEAD, "unlearn", 0, UNLEARNED, Scores(10, 20, 30, 40, validation=20.25)),
    Row(0, HEAD, "recover", 1, RECOVERED, None),
    Row(0, HEAD, "recover", 2, RECOVERED, Scores(88, 64, 79, 51, 47.5, validation=70.25)),
    Row(1, HEAD, "unlearn", 0, UNLEARNED, Scores(14, 22, 28, 44, validation=21.25)),
    Row(1, HEAD, "recover", 2, RECOVERED, Scores(90, 60, 81, 55, 48.5, validation=71.25)),
)

REPORT = Report(EXPERIMENT, ROWS, {}, sessions=SESSIONS, name="run1")

COSTS = {"cost/bytes": [(0, 100), (2, 2200)], "cost/flops": [(0, 0), (2, FLOPS)], "cost/seconds": [(0, 0.5), (2, 1.75)]}
ORIGINAL = {
    "accuracy/retain": [(3, 95)],
    "accuracy/forget": [(3, 94)],
    "accuracy/test": [(3, 82)],
    "attack/mia": [(3, 60)],
    "cost/bytes": [(3, 100)],
    "cost/flops": [(3, 64)],
    "cost/seconds": [(3, 2.0)],
}
WANTED: Mapping[tuple[str, int | None], Mapping[str, list[tuple[int, float]]]] = {
    ("Original", 0): ORIGINAL,
    ("Original", 1): ORIGINAL,
    ("Retrain", 0): {
        "accuracy/retain": [(0, 10), (2, 90)],
        "accuracy/forget": [(0, 10), (2, 60)],
        "accuracy/test": [(0, 10), (2, 80)],
        "attack/mia": [(0, 50), (2, 50)],
        "attack/mia_efficacy": [(2, 45.5)],
        **COSTS,
    },
    ("Retrain", 1): {
        "accuracy/retain": [(0, 10), (2, 92)],
        "accuracy/forget": [(0, 10), (2, 58)],
        "accuracy/test": [(0, 10), (2, 82)],
        "attack/mia": [(0, 50), (2, 54)],
        "attack/mia_efficacy": [(2, 46.5)],
        **COSTS,
    },
    (HEAD, 0): {
        "accuracy/retain": [(0, 10), (2, 88)],
        "accuracy/forget": [(0, 20), (2, 64)],
        "accuracy/test": [(0, 30), (2, 79)],
        "attack/mia": [(0, 40), (2, 51)],
        "attack/mia_efficacy": [(2, 47.5)],
        "validation/accuracy": [(0, 20.25), (2, 70.25)],
        **COSTS,
    },
    (HEAD, 1): {
        "accuracy/retain": [(0, 14), (2, 90)],
        "accuracy/forget": [(0, 22), (2, 60)],
        "accuracy/test": [(0, 28), (2, 81)],
        "attack/mia": [(0, 44), (2, 55)],
        "attack/mia_efficacy": [(2, 48.5)],
        "validation/accuracy": [(0, 21.25), (2, 71.25)],
        **COSTS,
    },
    # Retrain's means at its end: 91, 59, 81, 52.
    ("Retrain", None): {"gap/average": [(0, (81 + 49 + 71 + 2) / 4), (2, 0)]},
    (HEAD, None): {"gap/average": [(0, (79 + 38 + 52 + 10) / 4), (2, (2 + 3 + 1 + 1) / 4)]},
}

NAMES = {
    ("Original", 0): "Original-seed-0",
    ("Original", 1): "Original-seed-1",
    ("Retrain", 0): "Retrain-seed-0",
    ("Retrain", 1): "Retrain-seed-1",
    (HEAD, 0): "NoT-layers=head-include_bias=True-seed-0",
    (HEAD, 1): "NoT-layers=head-include_bias=True-seed-1",
    ("Retrain", None): "Retrain",
    (HEAD, None): "NoT-layers=head-include_bias=True",
}


def events(folder: Path) -> dict[str, list[Any]]:
    """What TensorBoard reads in a log directory."""
    reader = EventAccumulator(str(folder)).Reload()
    return {tag: reader.Scalars(tag) for tag in reader.Tags()["scalars"]}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labelled(*labels: str) -> Report:
    """A report of methods with these labels."""
    row = ROWS[2]
    return dataclasses.replace(REPORT, rows=tuple(dataclasses.replace(row, method=label) for label in labels))


class Store:
    """A folder of MLflow's, and its own client on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def client(self) -> mlflow.MlflowClient:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            return mlflow.MlflowClient(tracking_uri=self.folder.as_uri())

    def runs(self, experiment: str = "Tiny", kind: int = ViewType.ACTIVE_ONLY) -> dict[tuple[str, int | None], Run]:
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None
        runs = self.client.search_runs([found.experiment_id], run_view_type=kind)
        tags = [run.data.tags for run in runs]
        keys = [
            (one["fedunlearn.method"], int(one["fedunlearn.seed"]) if "seed" in one["mlflow.runName"] else None)
            for one in tags
        ]
        assert len(set(keys)) == len(keys)  # nothing is there twice
        return dict(zip(keys, runs, strict=True))

    def metrics(self, run: Run) -> dict[str, list[tuple[int, float]]]:
        histories = {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        return {name: sorted((one.step, one.value) for one in history) for name, history in histories.items()}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    yield Store(tmp_path / "ml runs ü")
    assert not mlflow.is_tracking_uri_set()
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_tensorboard_reads_every_value_at_its_round(tmp_path: Path) -> None:
    folders = to_tensorboard(REPORT, tmp_path / "new" / "logs")
    assert folders == [tmp_path / "new" / "logs" / "run1" / name for name in NAMES.values()]
    assert sorted(folders) == sorted((tmp_path / "new" / "logs" / "run1").iterdir())
    for folder, wanted in zip(folders, WANTED.values(), strict=True):
        found = {tag: [(event.step, event.value) for event in series] for tag, series in events(folder).items()}
        assert found == {
            tag: [(step, pytest.approx(value, rel=1e-7, abs=0)) for step, value in points]
            for tag, points in wanted.items()
        }


def test_tensorboards_time_is_the_methods_own(tmp_path: Path) -> None:
    for folder in to_tensorboard(REPORT, tmp_path)[
        2:
    ]:  # all but Original's; those over seeds are means of what is alike here
        for series in events(folder).values():
            assert {event.step: event.wall_time for event in series}.items() <= {
                0: BEGAN + 0.5,
                2: BEGAN + 1.75,
            }.items()


def test_tensorboard_twice_gives_the_same_files(tmp_path: Path) -> None:
    to_tensorboard(REPORT, tmp_path)
    once = files(tmp_path)
    assert len(once) == len(WANTED)
    to_tensorboard(REPORT, tmp_path)
    assert files(tmp_path) == once
    assert [path.name for path in tmp_path.iterdir()] == ["run1"]


def test_tensorboard_replaces_a_run_as_a_whole_and_no_other(tmp_path: Path) -> None:
    other = dataclasses.replace(REPORT, name="other")
    to_tensorboard(other, tmp_path)
    to_tensorboard(REPORT, tmp_path)
    without = dataclasses.replace(REPORT, rows=tuple(row for row in ROWS if row.method != HEAD))
    to_tensorboard(without, tmp_path)
    assert len(files(tmp_path / "run1")) == 5
    assert len(files(tmp_path / "other")) == len(WANTED)


@pytest.mark.parametrize("stranger", ["notes.txt", "NoT-seed-0/events.out.tfevents.1750000000.host.1.0"])
def test_tensorboard_leaves_what_others_wrote(tmp_path: Path, stranger: str) -> None:
    path = tmp_path / "run1" / stranger
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"is of no export, which would replace .*run1: choose another folder"):
        to_tensorboard(REPORT, tmp_path)
    assert files(tmp_path) == {f"run1/{stranger}": b"mine"}


def test_tensorboard_follows_no_link_and_replaces_no_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs" / "run1").mkdir(parents=True)
    (tmp_path / "logs" / "run1" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="link is of no export"):
        to_tensorboard(REPORT, tmp_path / "logs")
    (tmp_path / "run1").write_text("mine")
    with pytest.raises(ExportError, match="is a file: choose another folder"):
        to_tensorboard(REPORT, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write .*file: "):
        to_tensorboard(REPORT, tmp_path / "file")


def test_tensorboard_that_fails_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_tensorboard(REPORT, tmp_path)
    before = files(tmp_path)
    written = []

    def full(path: Path) -> Any:
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic_write(path)

    monkeypatch.setattr(fedunlearn.export, "atomic_write", full)
    with pytest.raises(ExportError, match=r"cannot write .*: No space left on device"):
        to_tensorboard(dataclasses.replace(REPORT, rows=ROWS[:5]), tmp_path)
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run1"]


def test_odd_labels_give_safe_folders_that_differ(tmp_path: Path) -> None:
    labels = [
        "a/b",
        "a b",
        "A-B",
        "..",
        "../..",
        "ÄÖ",
        "",
        "N" * 300,
        "N" * 301,
        "a",
        "a-seed-0",
        "mine:NoT(layers=[0])",
    ]
    report = labelled(*labels)
    folders = to_tensorboard(report, tmp_path)
    assert len({str(folder).casefold() for folder in folders}) == len(labels)
    assert {folder.parent for folder in folders} == {tmp_path / "run1"}
    assert sorted(folders) == sorted((tmp_path / "run1").iterdir())
    assert all(folder.name.isascii() and not folder.name.startswith((".", "-")) for folder in folders)
    assert folders[-1].name == "mine-NoT-layers=-0-seed-0"
    for folder in folders:
        assert [event.value for event in events(folder)["accuracy/retain"]] == [10]


def test_a_methods_mean_and_anothers_seed_differ(tmp_path: Path) -> None:
    rows = tuple(dataclasses.replace(row, method="Retrain-seed-0") for row in ROWS[2:7])
    folders = to_tensorboard(dataclasses.replace(REPORT, rows=ROWS[2:7] + rows), tmp_path)
    assert len(set(folders)) == len(folders) == 6
    assert sum("gap/average" in events(folder) for folder in folders) == 2


@pytest.mark.parametrize(
    ("name", "folder"), [("", "Tiny"), ("../../up", "up"), ("/", "7073e446"), ("my run", "my-run")]
)
def test_a_runs_folder_is_safe_too(tmp_path: Path, name: str, folder: str) -> None:
    folders = to_tensorboard(dataclasses.replace(REPORT, name=name), tmp_path / "a" / "b" / "c")
    assert {one.parent for one in folders} == {tmp_path / "a" / "b" / "c" / folder}
    assert [path.name for path in (tmp_path / "a" / "b" / "c").iterdir()] == [folder]


def test_without_retrain_there_is_no_gap(tmp_path: Path) -> None:
    failed = dataclasses.replace(REPORT, failures=(Failure("Retrain", 1, 1, "it diverged"),))
    assert [path.name for path in to_tensorboard(failed, tmp_path)] == list(NAMES.values())[:6]


def test_mlflow_reads_every_value_at_its_round(store: Store) -> None:
    ids = to_mlflow(REPORT, str(store.folder))
    runs = store.runs()
    assert [runs[key].info.run_id for key in WANTED] == ids
    assert len(runs) == len(WANTED)
    for key, wanted in WANTED.items():
        assert store.metrics(runs[key]) == wanted
        assert runs[key].data.metrics == {name: points[-1][1] for name, points in wanted.items()}


def test_mlflow_says_what_a_run_is_of(store: Store) -> None:
    to_mlflow(REPORT, str(store.folder))
    runs = store.runs()
    one, all_seeds = runs[HEAD, 1], runs[HEAD, None]
    tags = {name: value for name, value in one.data.tags.items() if name != "fedunlearn.digest"}
    assert tags == {
        "fedunlearn.run": "run1",
        "fedunlearn.method": HEAD,
        "fedunlearn.seed": "1",
        "mlflow.runName": f"{HEAD}, seed 1",
        "mlflow.source.git.commit": "0123abcd, 4567abcd with changes",
    }
    assert all_seeds.data.tags["fedunlearn.seed"] == "0, 1"
    assert all_seeds.data.tags["mlflow.runName"] == HEAD
    assert (one.info.status, one.info.start_time, one.info.end_time) == ("FINISHED", BEGAN * 1000, BEGAN * 1000 + 1750)
    assert one.data.params == {
        "title": "Tiny",
        "seeds": "[0, 1]",
        "minutes": "1.0",
        "methods": '[{"kind": "Retrain"}, {"kind": "NoT", "layers": "head", "include_bias": true}]',
        "data.name": "digits",
        "data.clients": "4",
        "data.treatment": "{}",
        "training.optimizer.kind": "SGD",
        "training.optimizer.lr": "0.05",
        "recovery.rounds": "2",
        "recovery.stop.kind": "Fixed",
        "keep.first": "true",
    }


def test_mlflow_twice_replaces_and_leaves_what_others_wrote(store: Store, tmp_path: Path) -> None:
    first = to_mlflow(REPORT, str(store.folder))
    home = store.client.get_experiment_by_name("Tiny").experiment_id
    other = store.client.create_run(
        home, run_name="mine, seed 9", tags={"fedunlearn.method": "", "fedunlearn.seed": "9"}
    )
    write_report(REPORT, tmp_path / "report.json")
    second = to_mlflow(read_report(tmp_path / "report.json"), store.folder.as_uri())  # the same, by other ways
    assert set(first).isdisjoint(second)
    assert {run.info.run_id for run in store.runs().values()} == {*second, other.info.run_id}
    assert {run.info.run_id for run in store.runs(kind=ViewType.DELETED_ONLY).values()} == set(first)
    assert store.metrics(store.runs()[HEAD, 0]) == WANTED[HEAD, 0]


def test_mlflow_keeps_runs_of_another_experiment(store: Store) -> None:
    to_mlflow(REPORT, str(store.folder), "shared")
    longer = dataclasses.replace(REPORT, experiment={**EXPERIMENT, "minutes": 2.0})
    to_mlflow(longer, str(store.folder), "shared")
    home = store.client.get_experiment_by_name("shared").experiment_id
    assert len(store.client.search_runs([home])) == 2 * len(WANTED)
    assert store.client.get_experiment_by_name("Tiny") is None


def test_mlflow_that_fails_leaves_the_earlier_export(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = to_mlflow(REPORT, str(store.folder))

    def full(*_: Any, **__: Any) -> None:
        raise MlflowException("The store is full. Ask somebody.")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", full)
        with pytest.raises(ExportError, match=r"MLflow cannot write to .*: The store is full$"):
            to_mlflow(REPORT, str(store.folder))
    home = store.client.get_experiment_by_name("Tiny").experiment_id
    finished = {run.info.run_id for run in store.client.search_runs([home]) if run.info.status == "FINISHED"}
    assert finished == set(first)
    again = to_mlflow(REPORT, str(store.folder))  # what was begun goes too
    assert {run.info.run_id for run in store.runs().values()} == set(again)


def test_mlflow_takes_more_than_fits_in_one_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {f"option{number}": number for number in range(150)}
    rows = [dataclasses.replace(ROWS[4], rounds=number) for number in range(150)]  # of 8 numbers each
    report = dataclasses.replace(REPORT, experiment={**EXPERIMENT, "model": {"options": options}}, rows=tuple(rows))
    log = mlflow.MlflowClient.log_batch

    def strict(client: mlflow.MlflowClient, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        assert len(metrics) <= 1000  # a server refuses more, a folder does not
        assert len(params) <= 100
        log(client, run, metrics=metrics, params=params)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", strict)
    to_mlflow(report, str(store.folder))
    run = store.runs()["Retrain", 0]
    assert {name: value for name, value in run.data.params.items() if name.startswith("model.")} == {
        f"model.options.option{number}": str(number) for number in range(150)
    }
    assert store.metrics(run)["cost/flops"] == [(number, FLOPS) for number in range(150)]


def test_mlflow_takes_a_folder_from_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "here", tmp_path / "there"):  # MLflow remembers the first by its name
        place.mkdir()
        monkeypatch.chdir(place)
        to_mlflow(REPORT, "mlruns")
        monkeypatch.chdir(tmp_path)
        assert len(Store(place / "mlruns").runs()) == len(WANTED)


def test_mlflow_prints_nothing(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = mlflow.MlflowClient.set_terminated

    def talkative(client: mlflow.MlflowClient, *args: Any, **kwargs: Any) -> None:
        print("View run at: http://server")  # as it does where there is a server
        finish(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", talkative)
    to_mlflow(REPORT, str(store.folder))
    assert capsys.readouterr().out == ""


def test_mlflow_says_what_stores_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ExportError, match=r"MLflow cannot open nosuch://x .*: give a folder, the address .*sqlite:///FILE"
    ):
        to_mlflow(REPORT, "nosuch://x")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")  # somebody means it
    with pytest.raises(ExportError, match="is in maintenance mode"):
        to_mlflow(REPORT, str(tmp_path / "mlruns"))
    assert not (tmp_path / "mlruns").exists()


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"^TensorBoard is not installed: pip install 'fedunlearn\[tensorboard\]'$"):
        to_tensorboard(REPORT, tmp_path / "tensorboard")
    with pytest.raises(ImportError, match=r"^MLflow is not installed: pip install 'fedunlearn\[mlflow\]'$"):
        to_mlflow(REPORT, str(tmp_path / "mlflow"))
    assert list(tmp_path.iterdir()) == []


def test_an_extra_that_lacks_something_itself_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'google'", name="google.protobuf")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="No module named 'google'"):
        to_tensorboard(REPORT, tmp_path)
