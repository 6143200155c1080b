"""The layers of a network or of a checkpoint, and negating them."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedunlearn.commands.options import Json, print_json

if TYPE_CHECKING:
    from torch import nn

    from fedunlearn.names import Layer

__all__ = ["negate_checkpoint", "show_layers"]


def show_layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A network (resnet18), your own as package.module:callable, or a checkpoint: a .safetensors file, "
            "the index of a sharded one, or a folder with either.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """List the layers that can be negated, and mark the default choice."""
    if _is_checkpoint(model):
        from fedunlearn.checkpoint import read_layers

        _print_layers(read_layers(model), (), as_json)
        return

    from fedunlearn.layers import FIRST, LayerError, layers, plan

    network = _network(model)
    try:
        default = plan(network, FIRST).names
    except LayerError as error:
        print(f"fedunlearn: no default choice: {error}", file=sys.stderr)
        default = ()
    _print_layers(layers(network), default, as_json)


def negate_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN.safetensors|FOLDER",
            help="The checkpoint: a file, the index of a sharded one (model.safetensors.index.json), or a folder "
            "with either. It is not changed, but for --in-place.",
        ),
    ],
    layer: Annotated[
        list[str],
        typer.Option(
            help="A tensor, a module, a glob, or rows of one (in_proj_weight[q]); may be given several times."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT.safetensors|FOLDER", help="Where to write the new checkpoint; or --in-place."
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Change only the layers' bytes, where they are. A crash leaves the old checkpoint or the new one: "
            "whatever fedunlearn command next reads it undoes what was broken off. Nobody should have it loaded.",
        ),
    ] = False,
    include_bias: Annotated[bool, typer.Option("--include-bias", help="Negate their biases too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it is a file that exists.")] = False,
) -> None:
    """Negate layers of a checkpoint; train the result on the data that stay."""
    from fedunlearn.checkpoint import negate_file, negate_in_place

    if in_place and (output is not None or force):
        raise ValueError("--in-place writes no other file: leave out --output and --force")
    if in_place:
        done = negate_in_place(source, layer, include_bias=include_bias)
    elif output is None:
        raise ValueError("say where to write the new checkpoint with --output, or negate this one with --in-place")
    else:
        done = negate_file(source, layer, output, include_bias=include_bias, force=force)
    place = "in place" if output is None else f"-> {output}"
    print(f"negated {', '.join(done.names)} ({done.negated_bytes:,} of {done.file_bytes:,} bytes) {place}")
    if done.again:
        print(f"note: {', '.join(done.again)} had been negated before: that is undone", file=sys.stderr)
    if done.note is not None:
        print(
            f"note: {source} has no room for its sign history, which is in {done.note} now: keep the two together",
            file=sys.stderr,
        )
    if done.means:
        print(
            f"note: {len(done.means)} running means of BatchNorm were left alone; where the network is at hand, "
            "fedunlearn.negate(model) lets those behind a negated layer follow",
            file=sys.stderr,
        )


def _is_checkpoint(name: str) -> bool:
    """Whether a file or a folder is meant, and not a network of that name."""
    from fedunlearn.checkpoint.found import PICKLED

    path = Path(name)
    file = os.sep in name or name.endswith((".safetensors", ".safetensors.index.json", *PICKLED)) or path.is_file()
    return file or (path.is_dir() and any(path.glob("*.safetensors*")))


def _network(name: str) -> nn.Module:
    from fedunlearn.models import build

    return build(name, 1000, (3, 224, 224))


def _print_layers(rows: Sequence[Layer], default: Collection[str], as_json: bool) -> None:
    if as_json:
        print_json([{**dataclasses.asdict(row), "default": row.name in default} for row in rows])
        return
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
