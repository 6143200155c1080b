"""A section of a theory page: what was found, in sentences, a table and pictures."""

from __future__ import annotations

from dataclasses import dataclass

from fedunlearn.report.drawing import Picture

__all__ = ["Section"]


@dataclass(frozen=True)
class Section:
    """What a diagnosis found, ready to be read.

    Attributes:
        name: of the diagnosis, as the command line has it: ``poset``, ``cka``, ...
        title: a heading.
        says: what came of it, a sentence each; what cannot be trusted is said here too.
        heads: of the table's columns, each with its unit or explanation, which may be empty.
        rows: of the table, one cell for each head.
        pictures: the figures.
    """

    name: str
    title: str
    says: tuple[str, ...]
    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    pictures: tuple[Picture, ...]
