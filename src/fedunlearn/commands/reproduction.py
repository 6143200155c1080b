"""The paper's tables and figures: which there are, and running one beside the published numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedunlearn.commands.options import CACHE, CacheFolder, DataDir, Download, Json, Overrides, Workers, print_json
from fedunlearn.commands.runs import run_watched
from fedunlearn.commands.watching import command_line, of_seed, watch

if TYPE_CHECKING:
    from fedunlearn.experiment import Experiment

__all__ = ["reproduce_artefact"]

_DAY = 24 * 3600.0  # seconds


def complete_artefact(incomplete: str) -> list[str]:
    """What the shell offers: tables and figures."""
    from fedunlearn.artefacts import artefacts

    return [name for name in artefacts() if name.startswith(incomplete)]


def reproduce_artefact(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A table or figure, such as table-1; else they are listed.",
            autocompletion=complete_artefact,
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(metavar="cpu|paper", help="Small twins for two cores, or the paper's own data and networks.")
    ] = "cpu",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the runs and the comparison are kept.")
    ] = Path("runs/reproduce"),
    overrides: Overrides = None,
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    cache: CacheFolder = CACHE,
    as_json: Json = False,
) -> None:
    """Run a table or figure of the paper, and show published and ours side by side; broken off, it goes on."""
    from fedunlearn.artefacts import artefact

    if name is None:
        _list_artefacts(as_json)
        return
    named = artefact(name).experiments(scale)

    from fedunlearn.backends.in_process import best_device
    from fedunlearn.console import print_reproduction
    from fedunlearn.data import datasets
    from fedunlearn.diagnoses import diagnose
    from fedunlearn.evaluation.published import quantity, whole_of
    from fedunlearn.experimentfile import load
    from fedunlearn.report.found import grid_of
    from fedunlearn.report.grid import Grid
    from fedunlearn.report.page import publish, publish_reproduction
    from fedunlearn.report.report import assemble
    from fedunlearn.report.reproduction import Reproduction
    from fedunlearn.report.shape import Shape, shape_of
    from fedunlearn.report.theory.page import publish_found
    from fedunlearn.runfolder import RunFolder

    plans = {experiment: load(experiment, overrides or ()) for experiment in named}
    folders = {experiment: output / experiment for experiment in named}
    _require_published(name, plans)
    for folder in folders.values():
        RunFolder(folder).require_usable()
    blocks: list[Shape | Grid] = []
    for experiment, plan in plans.items():
        folder = folders[experiment]
        if download:
            datasets.download(plan.data.name, data_dir)
        if scale == "paper" and best_device().type == "cpu":
            _warn(experiment, plan, data_dir)
        print(f"{experiment}: {plan.title}", file=sys.stderr)
        run_watched(plan, folder, workers=workers, data_dir=data_dir, cache=cache)
        report = assemble(folder)
        if (of := quantity(name)) == "gap":
            publish([report], folder)
            blocks.append(shape_of(report, experiment, name if whole_of(name) == plan.published else None))
            continue
        steps = diagnose(of, folder, data_dir=data_dir, command=command_line())
        found = watch(steps, len(report.seeds), folder, partial(of_seed, of))
        publish_found(found, folder)
        publish([report], folder)  # whose page links to what was found
        blocks.append(grid_of(report, experiment, _finding_of(name, plan), found))
    reproduction = Reproduction(name, scale, command_line(), tuple(blocks))
    page = publish_reproduction(reproduction, output / scale)
    if as_json:
        print_json({"folder": str(page.parent), **reproduction.summary()})
        return
    print_reproduction(reproduction)
    print(f"page: {page}")


def _list_artefacts(as_json: bool) -> None:
    from fedunlearn.artefacts import artefacts
    from fedunlearn.experiments import SCALES

    there = artefacts()
    takes = {name: {scale: _total(one.minutes[scale]) for scale in SCALES} for name, one in there.items()}
    if as_json:
        print_json([{"name": name, "title": one.title, "minutes": takes[name]} for name, one in there.items()])
        return
    for name, one in there.items():
        said = [f"{scale}: {_told(takes[name][scale])}" for scale in SCALES if one.minutes[scale]]
        print(f"{name}: {one.title} ({', '.join(said)})")


def _total(minutes: Mapping[str, float | None]) -> float | None:
    """Of all experiments; None where there are none, or one does not say."""
    known = [number for number in minutes.values() if number is not None]
    return sum(known) if known and len(known) == len(minutes) else None


def _told(minutes: float | None) -> str:
    return "not timed" if minutes is None else f"{minutes:g} min"


def _finding_of(name: str, plan: Experiment) -> str:
    """What of a table or a figure a run's diagnosis stands beside: the same data set's and network's."""
    return f"{name}/{str(plan.published).partition('/')[2]}"


def _require_published(name: str, plans: Mapping[str, Experiment]) -> None:
    """Before hours of training: that there is something to stand beside, and what is looked at will be there."""
    from fedunlearn.evaluation.published import finding, published, quantity

    for experiment, plan in plans.items():
        if plan.published is None:
            raise ValueError(
                f'{experiment} does not say what it stands beside: write published = "table-1/cifar-10/cnn", say'
            )
        if quantity(name) == "gap":
            published(plan.published)
            continue
        finding(_finding_of(name, plan))
        if quantity(name) == "bound" and plan.keep.every is None:
            raise ValueError(f"{experiment} keeps no models on the way, which a bound goes along: write keep.every = 2")


def _warn(experiment: str, plan: Experiment, data_dir: Path | None) -> None:
    """About how long this takes without a GPU: an experiment of years should not begin unnoticed."""
    import torch

    from fedunlearn.simulation import Setting

    setting = Setting.of(plan, data_dir=data_dir)
    dealt = plan.data.clients * plan.data.samples if plan.data.samples else len(setting.data.train.labels)
    passes = dealt * (1 - plan.data.validation) * plan.training.participation * plan.training.epochs * plan.total_rounds
    flops = passes * (setting.flops.forward + setting.flops.backward)
    square = torch.rand(1024, 1024)
    square @ square  # the first one starts threads
    started = time.perf_counter()
    for _ in range(5):
        square @ square
    rate = 5 * 2 * 1024**3 / (time.perf_counter() - started)
    print(
        f"fedunlearn: there is no GPU here: {experiment} trains for {flops:.1e} FLOPs, and at the {rate:.1e} a second "
        f"with which this machine multiplies matrices, it takes {flops / rate / _DAY:.2g} days, about",
        file=sys.stderr,
    )
