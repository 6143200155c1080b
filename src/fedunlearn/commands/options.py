"""Options that several commands share."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CACHE",
    "CacheFolder",
    "DataDir",
    "Download",
    "Json",
    "Named",
    "Overrides",
    "Run",
    "Workers",
    "complete_experiment",
    "complete_run",
    "input_shape",
    "print_json",
    "writing",
]


def complete_experiment(incomplete: str) -> list[str]:
    """What the shell offers: shipped experiments, those that reproduce the paper, and TOML files."""
    from fedunlearn.experiments import SCALES, reproducing, shipped

    files = sorted(str(path) for path in Path().glob(f"{glob.escape(incomplete)}*") if path.suffix == ".toml")
    ours = [*shipped(), *(name for scale in SCALES for name in reproducing(scale))]
    return [name for name in ours if name.startswith(incomplete)] + files


def complete_run(incomplete: str) -> list[str]:
    """What the shell offers: folders with a run, here and in ``runs``."""
    found = [path.parent for pattern in ("*", "runs/*") for path in sorted(Path().glob(f"{pattern}/experiment.toml"))]
    return [str(path) for path in found if str(path).startswith(incomplete)]


Named = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE.toml", help="A shipped experiment, or your own file.", autocompletion=complete_experiment
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, and nothing else.")]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or its report.json.", autocompletion=complete_run)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Instead of the file's, such as training.rounds=20."),
]
DataDir = Annotated[Path | None, typer.Option(help="Where the data set's files lie.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch the data set first.")]
Workers = Annotated[int | None, typer.Option(help="Processes side by side; else as many as cores.", min=1)]
CacheFolder = Annotated[
    Path,
    typer.Option(
        envvar="FEDUNLEARN_CACHE", callback=Path.expanduser, help="Trained and retrained models that runs share."
    ),
]
CACHE = Path("~/.cache/fedunlearn/models")


def input_shape(text: str) -> tuple[int, ...]:
    """``3,32,32`` to the sizes of one input."""
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--shape {text}: write the sizes of one input, such as 3,32,32")
    return tuple(map(int, sizes))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file could not be written, and why: the system names the one that is written first, beside it."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"there is no folder {path.parent} to write {path.name} into: make it first") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None


def print_json(content: object) -> None:
    """For scripts."""
    print(json.dumps(content, indent=1, ensure_ascii=False))
