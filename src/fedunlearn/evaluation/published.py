"""What the paper printed: its result tables, to be shown beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Block", "Printed", "names", "published", "require_published"]

_FILE = Path(__file__).parent / "published.json"
_METHODS = {
    "retrain": "Retrain",
    "ft": "FT",
    "not": "NoT",
    "federaser": "FedEraser",
    "fukd": "FUKD",
    "pgd": "PGD",
    "mode": "MoDE",
    "fcu": "FCU",
    "randl": "RandL",
    "ga": "GA",
    "badt": "BadT",
    "l1-sparse": "l1-sparse",
    "ssd": "SSD",
    "salun": "SalUn",
    "nr-freeze": "NR-Freeze",
}
"""The file's names of methods, and the paper's."""

_SCORED = ("table-1", "table-2", "table-4", "table-5", "table-6", "table-7", "table-8")  # table 3 has bounds, no scores


@dataclass(frozen=True)
class Printed:
    """A row as printed.

    Attributes:
        method: its name, which is ours too where we have it.
        retain, forget, test, mia: percent, mean and standard deviation over an unknown number of trials.
        gap: average gap to Retrain, percentage points, from the printed means (six printed gaps do not follow
            from their own row).
        bytes, flops: of those of Retrain in the same block; the printed absolute numbers follow unusual
            conventions, so that only such ratios can be compared. None where they are not printed.
    """

    method: str
    retain: tuple[float, float]
    forget: tuple[float, float]
    test: tuple[float, float]
    mia: tuple[float, float]
    gap: float
    bytes: float | None
    flops: float | None


@dataclass(frozen=True)
class Block:
    """A data set and a network of one of the paper's tables."""

    title: str
    dataset: str
    model: str
    rows: tuple[Printed, ...]


def names() -> list[str]:
    """What `published` knows: ``table/data set/network``."""
    return list(_blocks())


def published(name: str) -> Block:
    """A block by its name, such as ``table-1/cifar-10/cnn``.

    Raises:
        ValueError: there is none.
    """
    require_published(name)
    table, block = _blocks()[name]
    rows = tuple(_printed(row, block["rows"]) for row in block["rows"])
    number = table["id"].removeprefix("table-")
    return Block(f"Table {number}: {table['title']}", block["dataset"], block["model"], rows)


def require_published(name: str) -> str:
    """The name, if there is such a block.

    Raises:
        ValueError: there is none; the sentence names those that there are.
    """
    if name not in _blocks():
        raise ValueError(f"the paper has no {name!r}: take one of {', '.join(_blocks())}")
    return name


@cache
def _blocks() -> Mapping[str, tuple[dict[str, Any], dict[str, Any]]]:
    content = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        f"{table['id']}/{block['dataset']}/{block['model']}": (table, block)
        for table in content["tables"]
        if table["id"] in _SCORED
        for block in table["blocks"]
    }


def _printed(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> Printed:
    retrain = next(other for other in rows if other["method"] == "retrain")

    def ratio(name: str) -> float | None:
        return row[name] / retrain[name] if row.get(name) and retrain.get(name) else None

    def spread(name: str) -> tuple[float, float]:
        return row[name]["mean"], row[name]["sd"]

    return Printed(
        _METHODS[row["method"]],
        spread("retain"),
        spread("forget"),
        spread("test"),
        spread("mia"),
        row["gap_from_means"],
        ratio("comm_bytes"),
        ratio("flops"),
    )
