"""Experiments: running, tuning, reporting, comparing and handing them over."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedunlearn.commands.options import (
    CACHE,
    CacheFolder,
    DataDir,
    Download,
    Json,
    Named,
    Overrides,
    Run,
    Workers,
    complete_run,
    print_json,
)
from fedunlearn.commands.watching import command_line, of_run, watch

if TYPE_CHECKING:
    from fedunlearn.experiment import Experiment
    from fedunlearn.report.report import Report

__all__ = [
    "compare_runs",
    "export_run",
    "list_experiments",
    "report_run",
    "run_experiment",
    "run_watched",
    "tune_method",
]


def run_experiment(
    experiment: Named,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the run is kept; else runs/NAME."),
    ] = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    cache: CacheFolder = CACHE,
    as_json: Json = False,
) -> None:
    """Compare methods at one deletion request; broken off, the same command goes on."""
    from fedunlearn.data import datasets
    from fedunlearn.experimentfile import load
    from fedunlearn.report.report import assemble
    from fedunlearn.runfolder import RunFolder, folders

    plan = load(experiment, overrides or ())
    folder = output or Path("runs") / Path(experiment).stem
    for place in folders(plan, folder):
        RunFolder(place).require_usable()
    if download:
        datasets.download(plan.data.name, data_dir)
    run_watched(plan, folder, workers=workers, data_dir=data_dir, cache=cache)
    _show(list(map(assemble, folders(plan, folder))), folder, as_json)


def tune_method(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Its name, or your own as package.module:Class.")],
    experiment: Named,
    points: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V,V,...", help="What to try; else the method's own grid. Several times."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Where the other hyper-parameters are from.")] = None,
    seed: Annotated[int | None, typer.Option(help="That chooses; else the experiment's first.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Else runs/NAME-tune-METHOD.")
    ] = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    cache: CacheFolder = CACHE,
    as_json: Json = False,
) -> None:
    """Search a small grid on one seed, and report the best on the others alone; broken off, it goes on."""
    import tomli_w

    from fedunlearn.console import print_trials
    from fedunlearn.experimentfile import load, resolved
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import assemble
    from fedunlearn.tuning import SEARCH, TESTED, Search

    entries = {"kind": method, **({"preset": preset} if preset else {})}
    search = Search.of(entries, load(experiment, overrides or ()), dict(map(_values, points or ())), seed)
    folder = output or Path("runs") / f"{Path(experiment).stem}-tune-{method.rpartition(':')[2]}"
    rows = search.run(folder, workers=workers, data_dir=data_dir, cache=cache, command=command_line())
    watch(rows, search.rounds, folder, of_run)
    found = search.trials(folder)
    publish([assemble(folder / SEARCH)], folder / SEARCH)
    if not as_json:
        print_trials(found, search.seed)
        print(f"the best, as a file says it:\n\n[[methods]]\n{tomli_w.dumps(resolved(found[0].method))}")
    report = assemble(folder / TESTED)
    page = publish([report], folder / TESTED)
    if as_json:
        said = [{"method": resolved(one.method), "gap": one.gap, "bytes": one.bytes} for one in found]
        print_json({"seed": search.seed, "trials": said, "folder": str(page.parent), **report.summary()})
        return
    _print_reports([report], page)
    label = search.testing(found[0].method).labels[-1]
    for line in report.table():  # it may have diverged on another seed
        if line.method == label:
            there, here = f"{found[0].gap:.2f} on seed {search.seed}", f"{line.gap.of_means:.2f} on the others"
            print(f"gap of the best: {there}, which chose it; {here}")


def report_run(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; else the run's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's page, figures and tables anew; of a run under way, from the seeds that are complete."""
    from fedunlearn.report.report import read_report
    from fedunlearn.runfolder import runs_in

    reports = list(map(read_report, runs_in(run) if run.is_dir() else [run]))
    _show(reports, output or (run if run.is_dir() else run.parent), as_json)


def compare_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN ...", help="Folders of runs, or their report.json.", autocompletion=complete_run
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; else runs/compared.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show several runs on one page, and tell in what their configurations differ."""
    from fedunlearn import console
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import compare

    comparison = compare(runs)
    page = publish(comparison.reports, output or Path("runs/compared"))
    if as_json:
        print_json(comparison.summary())
        return
    console.print_comparison(comparison)
    print(f"page: {page}")


def export_run(
    run: Run,
    tensorboard: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write TensorBoard's event files.")] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Write to MLflow's store: a folder, or a server's address.")
    ] = None,
) -> None:
    """Hand a run to TensorBoard or MLflow, which are extras; again, it is replaced."""
    from fedunlearn.export import to_mlflow, to_tensorboard
    from fedunlearn.report.report import read_report

    if tensorboard is None and mlflow is None:
        raise ValueError("say where to: --tensorboard FOLDER, --mlflow URI, or both")
    report = read_report(run)
    if tensorboard is not None:
        print(f"{len(to_tensorboard(report, tensorboard))} log directories in {tensorboard}")
    if mlflow is not None:
        print(f"{len(to_mlflow(report, mlflow))} runs in {mlflow}")


def list_experiments(as_json: Json = False) -> None:
    """List the experiments that come with the package, with the minutes that each takes on two cores."""
    from fedunlearn.experiments import shipped
    from fedunlearn.tomlfile import read

    named = shipped()
    tables = {name: read(path, named).table for name, path in named.items()}
    if as_json:
        print_json([{"name": n, "title": t["title"], "minutes": t["minutes"]} for n, t in tables.items()])
        return
    for name, table in tables.items():
        print(f"{name}: {table['title']} ({table['minutes']:g} min)")


def _values(assignment: str) -> tuple[str, list[Any]]:
    """``lr=0.01,0.1`` to the entry and its values."""
    entry, equals, text = assignment.partition("=")
    if not (entry.strip() and equals and text.strip()):
        raise ValueError(f"--grid {assignment} says nothing to try: write KEY=VALUE,VALUE, such as --grid lr=0.01,0.1")
    try:
        return entry.strip(), tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return entry.strip(), [value.strip() for value in text.split(",")]  # words need no quotes


def run_watched(
    plan: Experiment, folder: Path, *, workers: int | None, data_dir: Path | None, cache: Path | None
) -> None:
    """Run an experiment to its end, showing how far it is; see `fedunlearn.runner.run`."""
    from fedunlearn.runner import run

    rows = run(plan, folder, workers=workers, data_dir=data_dir, cache=cache, command=command_line())
    watch(rows, plan.total_rounds, folder, of_run)


def _show(reports: Sequence[Report], folder: Path, as_json: bool) -> None:
    """One report, or those of requests that followed one another, on one page."""
    from fedunlearn.report.page import publish

    page = publish(reports, folder)
    if not as_json:
        _print_reports(reports, page)
    elif len(reports) == 1:
        print_json({"folder": str(folder), **reports[0].summary()})
    else:
        print_json({"folder": str(folder), "requests": [report.summary() for report in reports]})


def _print_reports(reports: Sequence[Report], page: Path) -> None:
    from fedunlearn.console import print_report

    for report in reports:
        print_report(report)
    print(f"report: {page}")
