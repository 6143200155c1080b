"""How figures look: colours, style, axes, legends, and a figure as a file or as a part of the page.

Colours are names here. A file has the light theme's; in the page each becomes a CSS variable, so that one drawing
serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "LIGHT", "NARROW", "STYLE", "WIDE", "Picture", "axes_for", "put_legend", "slug"]

COLOURS = {
    "ink": ("#1c2128", "#e9e6df"),
    "faint": ("#5c6570", "#a3a8b0"),
    "line": ("#d5d2c9", "#3a3f47"),
    "c1": ("#1b62a5", "#74b3f0"),
    "c2": ("#b04c0c", "#f0995a"),
    "c3": ("#24754a", "#6cc795"),
    "c4": ("#7d3f98", "#c79be0"),
    "c5": ("#ab2a5f", "#f08fb4"),
    "c6": ("#6b5d00", "#d3c255"),
    "c7": ("#00727b", "#5fc6cf"),
    "c8": ("#8c3b2b", "#e09a8a"),
}
"""By name, for the light theme and for the dark one. Text in any of them has a contrast of 4.5 to its ground."""

LIGHT = {name: light for name, (light, _) in COLOURS.items()}
WIDE, NARROW, _LEGEND_ROW = (4.6, 2.95), (3.4, 2.3), 0.19  # inches
_LABEL = 36  # characters that a legend or a title has room for
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["faint"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "axes.grid": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "fedunlearn",
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its files.
        figure: the drawing.
        alt: what it shows, in words and numbers.
        caption: how to read it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str

    def svg(self) -> bytes:
        """A file that stands alone, on white."""
        return self._svg.replace("</defs>", '</defs>\n <rect width="100%" height="100%" fill="#ffffff"/>', 1).encode()

    def pdf(self) -> bytes:
        """A file for print."""
        return self._drawn("pdf")

    def inline(self) -> str:
        """SVG for the page: colours as variables, ids that no other figure has, the text in the page's font."""
        text = self._svg[self._svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for name, light in LIGHT.items():
            text = text.replace(light, f"var(--{name})")
        text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
        return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)

    @cached_property
    def _svg(self) -> str:
        return self._drawn("svg").decode()

    def _drawn(self, kind: str) -> bytes:
        file = io.BytesIO()
        date = {"svg": "Date", "pdf": "CreationDate"}[kind]  # without it the same run gives the same file
        with mpl.rc_context(STYLE):
            self.figure.savefig(file, format=kind, metadata={date: None})
        return file.getvalue()


class axes_for:  # noqa: N801 - used like a function
    """A figure with one pair of axes, in our style, while it is drawn.

    It grows with what is to stand in its legend, or nothing would be left for the axes.
    """

    def __init__(
        self, title: str, x: str, y: str, size: tuple[float, float] = WIDE, legend: Sequence[str] = ()
    ) -> None:
        self.context = mpl.rc_context(STYLE)
        self.labels, rows = (_short(title), x, y), -(-len(legend) // _columns(legend))
        self.size = (size[0], size[1] + _LEGEND_ROW * max(rows - 1, 0))

    def __enter__(self) -> tuple[Figure, Axes]:
        self.context.__enter__()
        self.figure = Figure(figsize=self.size, layout="constrained")
        axes = self.figure.add_subplot()
        title, x, y = self.labels
        axes.set(title=title, xlabel=x, ylabel=y)
        return self.figure, axes

    def __exit__(self, *error: Any) -> None:
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")  # what is laid out once need not be for every format
        self.context.__exit__(*error)


def put_legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, _shortened(labels), loc="outside lower center", ncols=_columns(labels))


def slug(name: str) -> str:
    """Of a method's name or the like, what the name of a file may hold; two names can give the same."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-")


def _short(label: str) -> str:
    """Of a long label both ends: the run, and the method."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL // 2 - 1]}…{label[-_LABEL // 2 :]}"


def _shortened(labels: Sequence[str]) -> list[str]:
    """Short, and as different as they were: those whose ends are alike are cut where they begin to differ."""
    short = list(map(_short, labels))
    told = list(short)
    for position, label in enumerate(labels):
        alike = {other for other, ends in zip(labels, short, strict=True) if ends == short[position]}
        if len(alike) > 1:
            differs = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*alike, strict=False)))
            told[position] = f"{label[: _LABEL // 4]}…{label[max(differs - _LABEL // 6, _LABEL // 4) :]}"[:_LABEL]
    return told if len(set(told)) == len(set(labels)) else list(labels)


def _columns(labels: Sequence[str]) -> int:
    longest = min(max(map(len, labels), default=1), _LABEL)
    return max(1, min(len(labels), 62 // (longest + 6)))
