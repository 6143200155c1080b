"""What the paper published: its result tables, and its figures as read off them, to be shown beside ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

__all__ = [
    "Block",
    "Finding",
    "Printed",
    "Quantity",
    "finding",
    "names",
    "published",
    "quantity",
    "require_published",
    "runs_of",
    "titles",
    "whole_of",
]

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

_DRAWN_OF = {"figure-1": "table-1/caltech-101/vit"}  # a figure that draws what a table prints
_FIGURE_1 = ("Retrain", "MoDE", "FCU", "NoT")
_CURVES = ("figure-4", "figure-5", "figure-6")
_CURVES_CLIENTS = 10
_SCORED = ("table-1", "table-2", "table-4", "table-5", "table-6", "table-7", "table-8")

Quantity = Literal["gap", "bound", "cka", "spectrum"]
"""What a table or a figure is of: scores and their gap to Retrain, or what a diagnosis of the theory finds."""

_FOUND: Mapping[str, Quantity] = {"table-3": "bound", "figure-3": "cka", "figure-7": "cka", "figure-8": "spectrum"}
_MOMENTS = {
    "retrain-first": "Retrain, first",
    "not-first": "NoT, first",
    "original-first-layer-rest-random": "first layer kept, rest drawn anew",
    "negated-first-layer-rest-random": "first layer negated, rest drawn anew",
    "ft-last": "FT, last",
    "retrain-last": "Retrain, last",
    "not-last": "NoT, last",
}
"""Of figure 3: the file's names of models, and ours."""


@dataclass(frozen=True)
class Printed:
    """A row of a table as printed, or a curve of a figure as read off it: within 0.1 points and 1 % of the bytes.

    Attributes:
        method: its name, which is ours too where we have it; of a curve of none of the tables' methods, such as
            ``class-token-negated``, what was done.
        retain, forget, test, mia: percent, mean and standard deviation over an unknown number of trials. None for a
            curve.
        gap: average gap to Retrain, percentage points, from the printed means (six printed gaps do not follow
            from their own row); of a curve at its best round.
        bytes, flops: of those of Retrain in the same block; the printed absolute numbers follow unusual
            conventions, so that only such ratios can be compared. Of a curve at its best round. None where they are
            not printed, or cannot be read.
        last: a curve's gap at its last round; None for a row of a table.
        curve: bytes, as above, and gap, in the order of the rounds; empty for a row of a table.
    """

    method: str
    retain: tuple[float, float] | None
    forget: tuple[float, float] | None
    test: tuple[float, float] | None
    mia: tuple[float, float] | None
    gap: float
    bytes: float | None
    flops: float | None
    last: float | None = None
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Block:
    """A data set and a network of one of the paper's tables, or of a figure.

    Attributes:
        title: of the table or the figure, with its number.
        dataset, model: of the paper.
        rows: in the paper's order.
    """

    title: str
    dataset: str
    model: str
    rows: tuple[Printed, ...]

    @property
    def drawn(self) -> bool:
        """Whether these are curves."""
        return any(row.curve for row in self.rows)


@dataclass(frozen=True)
class Finding:
    """What the paper prints of a diagnosis of its theory, or what can be read off its figure.

    Attributes:
        title: of the table or the figure, with its number.
        dataset, model: of the paper.
        columns: what each number of a row is of.
        rows: by what they are of, in the paper's order; a range where the paper prints one.
    """

    title: str
    dataset: str
    model: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | tuple[float, float], ...]]


def names() -> list[str]:
    """What `published` and `finding` know.

    ``table/data set/network``; a figure; ``figure-6/50``, where a figure has several shares, in percent, of clients who
    leave; or ``figure-8/data set/network``, where it has several networks.
    """
    return [*_blocks(), *_figures(), *_DRAWN_OF, *_findings()]


def quantity(name: str) -> Quantity:
    """What a block, a table or a figure is of."""
    return _FOUND.get(name.split("/")[0], "gap")


def titles() -> dict[str, str]:
    """What the tables and figures are of, by ``table-1`` and the like."""
    content = _content()
    said = {entry["id"]: str(entry["title"]) for kind in ("tables", "figures") for entry in content[kind]}
    drawn = {name: f"{said[of.split('/')[0]]}, ViT" for name, of in _DRAWN_OF.items()}
    return {name: title for name, title in (said | drawn).items() if name in (*_SCORED, *_CURVES, *_DRAWN_OF, *_FOUND)}


def whole_of(name: str) -> str | None:
    """The block of a table that a figure draws some methods of; None for all else."""
    return _DRAWN_OF.get(name)


def runs_of(artefact: str) -> frozenset[str]:
    """The blocks whose runs a table or a figure is found in, beside those of experiments that are named after it.

    Figure 1 draws what Table 1 prints; figures 3, 7 and 8 are diagnoses of models like those of Table 3, or like one
    another's.
    """
    if whole := whole_of(artefact):
        return frozenset({whole})
    parts = (
        [name.partition("/")[2] for name in _findings() if name.startswith(f"{artefact}/")]
        if artefact.startswith("figure-")
        else []
    )
    return frozenset(f"{run}/{part}" for run in ("table-3", "figure-7") for part in parts) & _findings().keys()


def published(name: str) -> Block:
    """A block of scores by its name, such as ``table-1/cifar-10/cnn`` or ``figure-4``.

    Raises:
        ValueError: there is none.
    """
    require_published(name)
    if quantity(name) != "gap":
        raise ValueError(f"{name} has no scores, but what a diagnosis finds ({quantity(name)})")
    title = _numbered(name)
    if name in _DRAWN_OF:
        whole = published(_DRAWN_OF[name])
        return replace(whole, title=title, rows=tuple(row for row in whole.rows if row.method in _FIGURE_1))
    if name in _figures():
        figure, series = _figures()[name]
        return Block(title, figure["dataset"], figure["model"], tuple(map(_read_off, series)))
    block = _blocks()[name]
    return Block(title, block["dataset"], block["model"], tuple(_printed(row, block["rows"]) for row in block["rows"]))


def finding(name: str) -> Finding:
    """What a diagnosis found, by its name, such as ``table-3/cifar-10/cnn`` or ``figure-3/cifar-10/cnn``.

    Raises:
        ValueError: there is none.
    """
    require_published(name)
    if name not in _findings():
        raise ValueError(f"{name} has scores, and no finding of a diagnosis")
    part = _findings()[name]
    columns, rows = _found(quantity(name), part)
    return Finding(_numbered(name), part["dataset"], part["model"], columns, rows)


def require_published(name: str) -> str:
    """The name, if there is such a block.

    Raises:
        ValueError: there is none; the sentence names those that there are.
    """
    if name not in names():
        raise ValueError(f"the paper has no {name!r}: take one of {', '.join(names())}")
    return name


@cache
def _content() -> Mapping[str, Any]:
    return cast(Mapping[str, Any], json.loads(_FILE.read_text(encoding="utf-8")))


def _numbered(name: str) -> str:
    kind, number = name.split("/")[0].split("-")
    return f"{kind.capitalize()} {number}: {titles()[f'{kind}-{number}']}"


@cache
def _blocks() -> Mapping[str, dict[str, Any]]:
    return {
        f"{table['id']}/{block['dataset']}/{block['model']}": block
        for table in _content()["tables"]
        if table["id"] in _SCORED
        for block in table["blocks"]
    }


@cache
def _figures() -> Mapping[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Figures, or the parts of one, with their curves."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for figure in _content()["figures"]:
        for one in figure["series"] if figure["id"] in _CURVES else ():
            part = f"/{100 * one['forget_ratio']:.0f}" if "forget_ratio" in one else ""
            found.setdefault(f"{figure['id']}{part}", (figure, []))[1].append(one)
    return found


@cache
def _findings() -> Mapping[str, dict[str, Any]]:
    entries = [entry for kind in ("tables", "figures") for entry in _content()[kind] if entry["id"] in _FOUND]
    parts = ((entry["id"], part) for entry in entries for part in entry.get("blocks", entry.get("parts", [entry])))
    return {f"{name}/{part['dataset']}/{part['model']}": part for name, part in parts}


def _found(
    of: Quantity, part: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, tuple[float | tuple[float, float], ...]]]:
    if of == "bound":
        return ("t", "FLOPs"), {_METHODS[row["method"]]: (row["t_unlearn"], row["est_flops"]) for row in part["rows"]}
    if of == "spectrum":
        low, high = part["dimension_ratio"]
        return ("NoT's dimension, of Retrain's",), {"at 100 %": ((low, high),)}
    series = part.get("series", ())
    return tuple(part.get("positions", ())), {_MOMENTS[one["id"]]: tuple(one["cka"]) for one in series}


def _read_off(series: Mapping[str, Any]) -> Printed:
    """A curve, its bytes as a share of what training anew sends.

    No figure says what Retrain sends. Table 1 does, for the same data and network where one client of ten has left;
    with fewer who stay, it is less in proportion.
    """
    retrain = next(row for row in _blocks()[_DRAWN_OF["figure-1"]]["rows"] if row["method"] == "retrain")
    stay = _CURVES_CLIENTS - series.get("target_clients", 1)
    whole = retrain["comm_bytes"] * stay / (_CURVES_CLIENTS - 1)
    best, last = series["best"], series["last"]
    known = {point["comm_bytes"]: point["avg_gap"] for point in (*series["points"], best, last) if point["comm_bytes"]}
    return Printed(
        method=_METHODS.get(series["method"], series["id"]),
        retain=None,
        forget=None,
        test=None,
        mia=None,
        gap=best["avg_gap"],
        bytes=best["comm_bytes"] / whole if best["comm_bytes"] else None,
        flops=None,
        last=last["avg_gap"],
        curve=tuple((sent / whole, gap) for sent, gap in sorted(known.items())),
    )


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
