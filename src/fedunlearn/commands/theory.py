"""The theory, computed: of a network alone, or of a run's models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedunlearn.commands.options import DataDir, Json, complete_run, print_json
from fedunlearn.commands.watching import command_line, watch

__all__ = ["theory"]

theory = typer.Typer(
    name="theory", help="Compute what the paper's theory says of a network, or of a run's models.", no_args_is_help=True
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=complete_run)]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Of the run; may be given several times. Else all that are complete.")
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME", help="To negate; may be given several times. Else what NoT negates there."),
]
Most = Annotated[int, typer.Option("--samples", help="That are looked at: training, test and forgotten, each.", min=50)]


def _diagnose(
    name: str,
    run: Path,
    seeds: list[int] | None,
    most: int,
    data_dir: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    from fedunlearn.console import print_section
    from fedunlearn.diagnoses import FOLDER, diagnose
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import assemble
    from fedunlearn.report.theory.page import publish_found, section_of

    chosen, command = tuple(seeds or ()), command_line()
    steps = diagnose(name, run, seeds=chosen, most=most, data_dir=data_dir, command=command, **options)
    found = watch(steps, 0, run, lambda seed: (f"seed {seed}, {name}", "", 1))
    page = publish_found(found, run)
    publish([assemble(run)], run)  # whose page links to the theory's from now on
    if as_json:
        print_json({"folder": str(run), **found.summary()})
        return
    print_section(section_of(found))
    print(f"theory: {page}, {run / FOLDER / f'{name}.json'}")


@theory.command("cka")
def cka(run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False) -> None:
    """How alike each model's activations are to those of the model before the request (Figures 3 and 7)."""
    _diagnose("cka", run, seeds, most, data_dir, as_json)


@theory.command("coadaptation")
def coadaptation(
    run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """What is lost where one layer is another model's, or negated (Definitions 3 and 4)."""
    _diagnose("coadaptation", run, seeds, most, data_dir, as_json)


@theory.command("jacobian")
def jacobian(
    run: Run,
    layer: Layers = None,
    seeds: Seeds = None,
    most: Most = 2000,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Whether Jacobians keep their law under negation, and gradients their size (Theorems 3 and 6)."""
    _diagnose("jacobian", run, seeds, most, data_dir, as_json, layers=tuple(layer or ()))


@theory.command("spectrum")
def spectrum(run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False) -> None:
    """How many dimensions the gradients of minibatches take (section 13.8, Figure 8)."""
    _diagnose("spectrum", run, seeds, most, data_dir, as_json)


@theory.command("bound")
def bound(run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False) -> None:
    """The least time that unlearning takes, beside how long it took (Theorem 5, Table 3)."""
    _diagnose("bound", run, seeds, most, data_dir, as_json)
