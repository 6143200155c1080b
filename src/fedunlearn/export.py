"""A run's results in the formats of experiment trackers: TensorBoard's and MLflow's, each an extra of its own."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedunlearn.atomic import atomic_write
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.rows import curves
from fedunlearn.evaluation.scores import Scores
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.report.figures import series_of
from fedunlearn.report.report import Report
from fedunlearn.runfolder import leaves

__all__ = ["ExportError", "to_mlflow", "to_tensorboard"]

_EVENTS = "events.out.tfevents.fedunlearn"  # TensorBoard reads what has "tfevents" in its name; this one is ours
_DIGEST = "fedunlearn.digest"
_PARAMS, _METRICS = 100, 1000  # what MLflow takes at once
_NAME = 200  # letters of a folder's name: file systems end at 255 bytes


class ExportError(ValueError):
    """Results cannot be written where they should go; the sentence says what to do."""


def to_tensorboard(report: Report, folder: Path) -> list[Path]:
    """Write a run as TensorBoard's event files: ``folder/RUN/METHOD-seed-N``, and ``folder/RUN/METHOD`` over seeds.

    Of every scored round: accuracies, attacks (percent) and costs so far; over seeds the average gap to Retrain
    (percentage points). The wall time of a point is when the run began plus the method's own seconds, so that
    TensorBoard's axis "Relative" shows what a method took. Values are of single precision, as TensorBoard's are.

    What an earlier export of a run of this name left in ``folder`` is replaced as a whole; a TensorBoard that has it
    open must be started again.

    Args:
        report: of the run.
        folder: for the log directories of all runs, what ``tensorboard --logdir`` is told; it need not exist.

    Returns:
        The log directories.

    Raises:
        ImportError: TensorBoard is not installed.
        ExportError: what is in the run's place is no export, or the folder cannot be written.
    """
    _, records, events, summaries = _extra(
        "TensorBoard",
        "tensorboard",
        "tensorboard.summary.writer.record_writer",
        "tensorboard.compat.proto.event_pb2",
        "tensorboard.compat.proto.summary_pb2",
    )
    (run,) = _names([report.name or report.title]).values()
    tracks, began = list(_tracks(report)), _began(report)
    names = _names(track.label for track in tracks)
    target = (folder / run).resolve()
    _require_ours(target)
    try:
        with _replaced(target) as fresh:
            for track in tracks:
                (fresh / names[track.label]).mkdir()
                # Not a SummaryWriter: it names the file after the host, and it would wait in a thread of its own.
                with atomic_write(fresh / names[track.label] / _EVENTS) as file:
                    writer = records.RecordWriter(file)
                    writer.write(events.Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
                    for point in track.points:
                        values = [summaries.Summary.Value(tag=k, simple_value=v) for k, v in point.values.items()]
                        event = events.Event(
                            wall_time=began + point.seconds, step=point.step, summary=summaries.Summary(value=values)
                        )
                        writer.write(event.SerializeToString())
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror or error}") from error
    return [folder / run / names[track.label] for track in tracks]


def to_mlflow(report: Report, uri: str, experiment: str | None = None) -> list[str]:
    """Write a run to MLflow: one of its runs for every method and seed, and one for every method over seeds.

    The params are the experiment's entries by dotted name, the metrics those of `to_tensorboard`, with the round as
    the step; what MLflow shows as a run's metrics are the last round's. An earlier export of the same experiment is
    replaced: its runs go to MLflow's trash once the new ones are whole.

    Args:
        report: of the run.
        uri: of MLflow's store. A folder, by its path or as ``file:``, needs nothing else; MLflow 3 only maintains
            such stores, and shows them with ``MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri FOLDER``
            (the variable is set for the moment in which we open the folder, if it is not set at all).
            ``sqlite:///FILE`` and other databases need the whole of MLflow, ``pip install mlflow``;
            ``http://`` and ``https://`` a server that runs.
        experiment: of MLflow's, which is made if there is none; by default, the report's title.

    Returns:
        The ids of MLflow's runs.

    Raises:
        ImportError: MLflow is not installed.
        ExportError: MLflow cannot write there.
        OSError: the folder cannot be written.
    """
    mlflow, entities, exceptions = _extra("MLflow", "mlflow", "mlflow.entities", "mlflow.exceptions")
    try:
        with _file_store_allowed():
            client = mlflow.MlflowClient(tracking_uri=_address(uri))
    except (exceptions.MlflowException, ImportError) as error:
        raise ExportError(
            f"MLflow cannot open {uri} ({_sentence(error)}): give a folder, the address of a server that runs, or, "
            "with the whole of MLflow installed (pip install mlflow), sqlite:///FILE"
        ) from error
    try:
        name = experiment or report.title
        found = client.get_experiment_by_name(name)
        home = found.experiment_id if found else client.create_experiment(name)
        return [_logged(client, entities, home, report, track) for track in _tracks(report)]
    except exceptions.MlflowException as error:
        raise ExportError(f"MLflow cannot write to {uri}: {_sentence(error)}") from error


@dataclass(frozen=True)
class _Point:
    """A scored round: after how many, at how many seconds of the method's own, and what there is to plot."""

    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class _Track:
    """What is a run to a tracker: a method in a seed; or over all seeds, if ``seed`` is None."""

    method: str
    seed: int | None
    points: tuple[_Point, ...]

    @property
    def label(self) -> str:
        """Other than that of every other track of a report."""
        return self.method if self.seed is None else f"{self.method}, seed {self.seed}"


def _tracks(report: Report) -> Iterator[_Track]:
    for method, seeds in curves(report.rows).items():
        for seed, rows in seeds.items():
            bills = [(row, row.bill()) for row in rows]
            points = [_Point(row.rounds, b.seconds, _values(row.scores, b)) for row, b in bills if row.scores]
            yield _Track(method, seed, tuple(points))
    if REFERENCE not in report.methods:  # it diverged: nothing has a gap to it
        return
    for one in series_of([report]):
        gaps = zip(one.rounds(), one.price("seconds"), one.gaps(), strict=True)
        yield _Track(one.method, None, tuple(_Point(step, took, {"gap/average": gap}) for step, took, gap in gaps))


def _values(scores: Scores, bill: Cost) -> dict[str, float]:
    values = {
        "accuracy/retain": scores.retain,
        "accuracy/forget": scores.forget,
        "accuracy/test": scores.test,
        "attack/mia": scores.mia,
        "attack/mia_efficacy": scores.mia_efficacy,
        "attack/backdoor": scores.attack,
        "validation/accuracy": scores.validation,
        "cost/bytes": bill.traffic.down + bill.traffic.up,
        "cost/flops": bill.flops,
        "cost/seconds": bill.seconds,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _began(report: Report) -> float:
    """When the run did, in seconds since 1970: not the hour of the export, which would make each one differ."""
    return datetime.fromisoformat(report.sessions[0]["started"]).timestamp() if report.sessions else 0.0


def _names(labels: Iterable[str]) -> dict[str, str]:
    """A name for a folder for each label, all distinct, also where letters' case does not count."""
    found: dict[str, str] = {}
    for label in labels:
        name = re.sub(r"[^A-Za-z0-9._=]+", "-", label)[:_NAME].strip("-.")
        if not name or name.casefold() in {other.casefold() for other in found.values()}:
            name = f"{name}-{hashlib.blake2b(label.encode(), digest_size=4).hexdigest()}".lstrip("-")
        found[label] = name
    return found


def _require_ours(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ExportError(f"{target} is a file: choose another folder, or remove it")
    for path in sorted(target.rglob("*")):
        if path.name != _EVENTS and (path.is_symlink() or not path.is_dir()):
            raise ExportError(f"{path} is of no export, which would replace {target}: choose another folder")


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, which takes its place if all goes well; else nothing is left of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{secrets.token_hex(8)}.tmp") for _ in range(2))
    fresh.mkdir()
    try:
        yield fresh
        if target.exists():
            os.rename(target, old)  # a folder that is not empty cannot be renamed over
        os.rename(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _logged(client: Any, entities: Any, home: str, report: Report, track: _Track) -> str:
    """Write a track as a run of MLflow's, in place of those of an earlier export."""
    identity = json.dumps([report.experiment, track.method, track.seed], sort_keys=True)
    digest = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    earlier = client.search_runs([home], f"tags.`{_DIGEST}` = '{digest}'")
    commits = dict.fromkeys(session["commit"] for session in report.sessions if session["commit"])
    tags = {
        _DIGEST: digest,
        "fedunlearn.run": report.name,
        "fedunlearn.method": track.method,
        "fedunlearn.seed": ", ".join(map(str, report.seeds)) if track.seed is None else str(track.seed),
        "mlflow.source.git.commit": ", ".join(commits),  # MLflow's own name, for its pages to show
    }
    began = _began(report)
    start = _milliseconds(began)
    tags = {name: value for name, value in tags.items() if value}
    run: str = client.create_run(home, start_time=start, tags=tags, run_name=track.label).info.run_id
    said = leaves(report.experiment)  # what is not text as JSON, which is TOML's spelling too, bar tables
    params = [entities.Param(name, value if isinstance(value, str) else json.dumps(value)) for name, value in said]
    for some in _parts(params, _PARAMS):
        client.log_batch(run, params=some)
    metrics = [
        entities.Metric(name, value, _milliseconds(began + point.seconds), point.step)
        for point in track.points
        for name, value in point.values.items()
    ]
    for some in _parts(metrics, _METRICS):
        client.log_batch(run, metrics=some)
    with redirect_stdout(io.StringIO()):  # MLflow prints where a server shows the run
        client.set_terminated(run, end_time=_milliseconds(began + track.points[-1].seconds))
    for one in earlier:
        client.delete_run(one.info.run_id)
    return run


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _sentence(error: Exception) -> str:
    """The first that MLflow says; more advice follows it, on other things."""
    return re.split(r"[.;](?:\s|$)", str(error).strip(), maxsplit=1)[0]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _address(uri: str) -> str:
    """A store's URI; of a folder one that does not depend on where we are."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", uri)  # two letters or more: a single one is a drive of Windows
    return uri if scheme or uri == "databricks" else Path(uri).resolve().as_uri()


@contextmanager
def _file_store_allowed() -> Iterator[None]:
    """MLflow 3 opens folders only where this variable says so; it asks when it opens one, and never again."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        del os.environ[name]


def _extra(title: str, package: str, *modules: str) -> list[Any]:
    """A package that is an extra of ours, under its own name, and modules of it."""
    try:
        return [importlib.import_module(module) for module in (package, *modules)]
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != package:
            raise  # it is there, but lacks something itself
        raise ImportError(f"{title} is not installed: pip install 'fedunlearn[{package}]'") from None
