"""A table or a figure of the paper, with all the runs that reproduce it, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedunlearn.atomic import FileError, read_json, write_json
from fedunlearn.report.grid import Grid
from fedunlearn.report.shape import Shape

__all__ = ["Reproduction", "read_reproduction"]

_FORMAT = 1


@dataclass(frozen=True)
class Reproduction:
    """A table or a figure of the paper, and all that reproduces it at one scale.

    Attributes:
        artefact: its name, such as ``table-1``.
        scale: of the experiments.
        command: that asked for it.
        blocks: one an experiment.
    """

    artefact: str
    scale: str
    command: str
    blocks: tuple[Shape | Grid, ...]

    @property
    def title(self) -> str:
        """The paper's."""
        return self.blocks[0].artefact

    def summary(self) -> dict[str, Any]:
        """What a script would want of it, and what `read_reproduction` reads."""
        return {
            "format": _FORMAT,
            "artefact": self.artefact,
            "title": self.title,
            "scale": self.scale,
            "command": self.command,
            "seconds": sum(block.seconds for block in self.blocks),
            "blocks": [block.summary() for block in self.blocks],
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.summary())


def read_reproduction(path: Path) -> Reproduction:
    """What `Reproduction.write` wrote.

    Raises:
        FileError: the file is none of ours.
    """
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise FileError(f"{path} is no reproduction of this version: `fedunlearn reproduce` writes it anew")
    try:
        return TypeAdapter(Reproduction).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise FileError(f"{path} is no reproduction: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
