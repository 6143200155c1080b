"""The command line: parse, call, print.

torch is imported within the commands that need it, so that help and errors of usage come at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

    from fedunlearn.evaluation.table import Row
    from fedunlearn.names import Layer

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedunlearn",
    help="Remove data from federated models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # or [q] in a help text would be read as markup
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; what a user can mend is one sentence on standard error and exit code 2."""
    try:
        app()
    except Exception as error:
        if not _to_be_mended(error):
            raise
        sentence = " ".join(str(error).split())
        print(f"fedunlearn: {sentence}", file=sys.stderr)
        sys.exit(2)


def _require_writable(output: Path) -> None:
    """Before hours of work, not after."""
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name the file to write with --output")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{output} cannot be written, {folder} not being a folder one can write to: use --output")


def _to_be_mended(error: Exception) -> bool:
    """Whether the user can mend it: bad input, or a client whose training failed."""
    # By its name: to import the class would import torch, for which a misspelt option need not wait.
    return isinstance(error, (ValueError, OSError, ImportError)) or type(error).__name__ == "ClientError"


@app.command("layers")
def show_layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A network (resnet18), your own as package.module:callable, or a .safetensors file.",
        ),
    ],
) -> None:
    """List the layers that can be negated, and mark the default choice."""
    if Path(model).is_file() or model.endswith(".safetensors"):
        from fedunlearn.checkpoint import read_layers

        _print_layers(read_layers(model), ())
        return

    from fedunlearn.layers import FIRST, LayerError, layers, plan

    network = _network(model)
    try:
        default = plan(network, FIRST).names
    except LayerError as error:
        print(f"fedunlearn: no default choice: {error}", file=sys.stderr)
        default = ()
    _print_layers(layers(network), default)


@app.command("negate")
def negate_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="IN.safetensors", help="The checkpoint; it is not changed.")],
    layer: Annotated[
        list[str],
        typer.Option(
            help="A tensor, a module, a glob, or rows of one (in_proj_weight[q]); may be given several times."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT.safetensors", help="Where to write the new checkpoint."),
    ],
    include_bias: Annotated[bool, typer.Option("--include-bias", help="Negate their biases too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Negate layers of a checkpoint; train the result on the data that stay."""
    from fedunlearn.checkpoint import negate_file

    done = negate_file(source, layer, output, include_bias=include_bias, force=force)
    print(f"negated {', '.join(done.names)} ({done.negated_bytes:,} of {done.file_bytes:,} bytes) -> {output}")
    if done.again:
        print(f"note: {', '.join(done.again)} had been negated before: that is undone", file=sys.stderr)
    if done.means:
        print(
            f"note: {len(done.means)} running means of BatchNorm were left alone; where the network is at hand, "
            "fedunlearn.negate(model) lets those behind a negated layer follow",
            file=sys.stderr,
        )


@app.command("run")
def run_experiment(
    experiment: Annotated[
        str, typer.Argument(metavar="NAME|FILE.toml", help="A shipped experiment, or your own file.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the rows as JSON; else runs/NAME.json.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's, such as 0,1,2.")] = None,
    data: Annotated[str | None, typer.Option(help="Another data set: a name, or package.module:function.")] = None,
    model: Annotated[str | None, typer.Option(help="Another network: a name, or package.module:Class.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data set's files lie.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Let torchvision fetch the data set first.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes side by side; else as many as cores.", min=1)] = None,
) -> None:
    """Compare methods at one deletion request, and print the paper's table."""
    from fedunlearn import console
    from fedunlearn import experiment as experiments
    from fedunlearn.data import datasets
    from fedunlearn.evaluation.table import table

    plan = experiments.changed(experiments.load(experiment), seeds=_numbers(seeds), data=data, model=model)
    output = output or Path("runs") / f"{Path(experiment).stem}.json"
    _require_writable(output)
    if download:
        datasets.download(plan.data.name, data_dir)
    rows: list[Row] = []
    try:
        with console.watching(experiments.total_rounds(plan)) as show:
            for row in experiments.run(plan, workers=workers, data_dir=data_dir):
                rows.append(row)
                show(row)
    except BaseException:  # what was done before an error or Ctrl-C is not lost
        if rows:
            experiments.write(output, plan, rows)
            print(f"fedunlearn: broken off; what was done is in {output}", file=sys.stderr)
        raise
    console.print_comparison(plan.title, table(rows))
    experiments.write(output, plan, rows)
    print(f"rows: {output}")


@app.command("experiments")
def list_experiments() -> None:
    """List the experiments that come with the package."""
    from fedunlearn import experiment as experiments

    for name in experiments.shipped():
        print(f"{name}: {experiments.load(name).title}")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers with commas between them, such as 0,1,2, not {text!r}") from None


def _network(name: str) -> nn.Module:
    from fedunlearn.models import build

    return build(name, 1000, (3, 224, 224))


def _print_layers(rows: Sequence[Layer], default: Collection[str]) -> None:
    from rich.table import Table

    from fedunlearn.console import console

    table = Table("index", "name", "shape", "dtype", "kind", *([""] if default else []), box=None)
    table.columns[0].justify = "right"
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        mark = ["default"] if row.name in default else []
        shape = " x ".join(map(str, row.shape))
        table.add_row(str(row.index), row.name, shape, row.dtype, row.kind, *mark)
    console(width=160).print(table)  # a narrow terminal would break the names
