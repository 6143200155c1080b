"""The figure of a service of deletion requests: quality and who took part, over all of its rounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedunlearn.deletion.events import RoundDone
from fedunlearn.deletion.standing import Standing
from fedunlearn.report.drawing import LIGHT, Picture, axes_for, put_legend

__all__ = ["moments", "quality"]

_SIZE, _HEIGHTS = (6.4, 4.0), (2.7, 1)  # inches; of the two pairs of axes
_POINTS = 400  # parts that rounds are taken together in, where there are more
_MARKED = 60  # points that are still told from one another
_NUMBERS, _LINES = 16, 40  # that have room side by side above the axes, and upright in them
_TOLD = 12  # unlearnings that a description names
_BEFORE = "before the request"
_PHASES: dict[str, tuple[str, str, Any, str]] = {
    "train": ("training", "c1", "-", "o"),
    "unlearn": ("unlearning", "c2", (0, (1, 1.2)), "v"),
    "recover": ("recovery", "c3", (0, (4, 1.5)), "s"),
}


class _Point(NamedTuple):
    """A round whose accuracy is known; the first has x = 1."""

    x: int
    phase: str
    y: float


def moments(standing: Standing) -> list[int]:
    """After how many rounds of the service each unlearning began; one that has no round yet: after all."""
    first: dict[int, int] = {}
    for place, (_, done) in enumerate(standing.rounds):
        if done.unlearning is not None:
            first.setdefault(done.unlearning, place)
    return [first.get(one.began.unlearning, len(standing.rounds)) for one in standing.unlearnings]


def quality(standing: Standing) -> Picture:
    """Accuracy on validation samples by round, unlearnings marked; below it how many clients took part of those asked.

    No text of a client or an operator is drawn: fonts lack signs, and matplotlib reads some as formulas.

    Args:
        standing: with one round at least.
    """
    rounds = [done for _, done in standing.rounds]
    points = [_Point(x, d.phase, d.validation) for x, d in enumerate(rounds, 1) if d.validation is not None]
    legend = [_PHASES[phase][0] for phase in _PHASES if any(point.phase == phase for point in points)]
    began = moments(standing)
    with axes_for("", "", "accuracy, %", _SIZE, [*legend, _BEFORE]) as (figure, axes):
        grid = figure.add_gridspec(2, 1, height_ratios=_HEIGHTS)
        axes.set_subplotspec(grid[0])
        below = figure.add_subplot(grid[1], sharex=axes)
        for panel in (axes, below):
            panel.yaxis.labelpad = 9  # on a phone the page sets the numbers beside it larger
        every = _together(rounds)
        if every == 1:
            _lines(axes, points)
        else:
            _bands(axes, points, every)
        _before(axes, standing, began)
        _marks(axes, below, began, len(rounds))
        _participants(below, rounds)
        axes.tick_params(labelbottom=False)
        axes.set_xlim(0.5, len(rounds) + 0.5)
        if points:
            put_legend(figure, axes)
        else:
            axes.set(ylim=(0, 100))
            axes.text(0.5, 0.5, "not known of any round", transform=axes.transAxes, ha="center", va="center")
    return Picture("quality", figure, _told(standing, points, began), _caption(rounds, began))


def _together(rounds: Sequence[RoundDone]) -> int:
    """How many rounds are taken together, so that a page of years is no larger than one of months."""
    return -(-len(rounds) // _POINTS)


def _lines(axes: Axes, points: Sequence[_Point]) -> None:
    """A line for each phase, which begins where the phase before it ended."""
    for phase, (label, colour, dash, marker) in _PHASES.items():
        x: list[float] = []
        y: list[float] = []
        own: list[int] = []
        for before, point in pairwise((None, *points)):
            if point is None or point.phase != phase:
                continue
            if before is not None and before.phase != phase:
                x += [math.nan, before.x]
                y += [math.nan, before.y]
            own.append(len(x))
            x.append(point.x)
            y.append(point.y)
        if x:
            style: Any = {"color": LIGHT[colour], "linestyle": dash, "label": label}
            axes.plot(x, y, marker=marker, markevery=own if len(own) <= _MARKED else [], **style)


def _bands(axes: Axes, points: Sequence[_Point], every: int) -> None:
    """Of rounds that are taken together, phase by phase, a dot at the mean, and a bar from the least to the most."""
    for phase, (label, colour, _, marker) in _PHASES.items():
        parts: dict[int, list[float]] = {}
        for point in points:
            if point.phase == phase:
                parts.setdefault((point.x - 1) // every, []).append(point.y)
        middles = [every * (part + 0.5) + 0.5 for part in parts]
        x = [value for middle in middles for value in (middle, middle, math.nan)]
        y = [value for of in parts.values() for value in (min(of), max(of), math.nan)]
        if parts:
            axes.plot(x, y, color=LIGHT[colour], linewidth=1.2, alpha=0.3)
            dots: Any = {"color": LIGHT[colour], "marker": marker, "markersize": 1.5, "linestyle": "none"}
            axes.plot(middles, [fmean(of) for of in parts.values()], label=label, **dots)


def _before(axes: Axes, standing: Standing, began: Sequence[int]) -> None:
    """What each recovery is held against, as far as it goes."""
    x, y = [], []
    # Not those of the unlearning alone: where it began again, it has had more.
    rounds = Counter(done.unlearning for _, done in standing.rounds)
    for one, start in zip(standing.unlearnings, began, strict=True):
        if one.began.validation is not None:
            x += [start + 0.5, start + 0.5 + max(rounds[one.began.unlearning], 1), math.nan]
            y += [one.began.validation, one.began.validation, math.nan]
    if x:
        axes.plot(x, y, color=LIGHT["faint"], linewidth=1, linestyle=(0, (3, 2)), label=_BEFORE)


def _marks(axes: Axes, below: Axes, began: Sequence[int], rounds: int) -> None:
    """A line where each unlearning began, with its number above as far as there is room; of very many, ticks."""
    lowest, width = (0.0, 0.9) if len(began) <= _LINES else (0.96, 0.4)
    for panel in (axes, below):
        x = [value for start in began for value in (start + 0.5, start + 0.5, math.nan)]
        y = [value for _ in began for value in (lowest, 1, math.nan)]
        style: Any = {"color": LIGHT["ink"], "linewidth": width, "scalex": False, "scaley": False}
        panel.plot(x, y, transform=panel.get_xaxis_transform(), **style)
    last = -math.inf
    for number, start in enumerate(began, 1):
        if start - last >= rounds / _NUMBERS:
            where: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text(start + 0.5, 1.01, str(number), fontsize=8, fontweight="bold", **where)
            last = start


def _participants(axes: Axes, rounds: Sequence[RoundDone]) -> None:
    """Of how many that were asked how many took part; where rounds are taken together, the least of the most."""
    every = _together(rounds)
    parts = [rounds[start : start + every] for start in range(0, len(rounds), every)]
    edges = [0.5 + every * number for number in range(len(parts))] + [len(rounds) + 0.5]
    took = [min(len(done.samples) for done in part) for part in parts]
    asked = [max(len(done.samples) + len(done.absent) for done in part) for part in parts]
    axes.stairs(asked, edges, fill=True, color=LIGHT["line"])
    axes.stairs(took, edges, fill=True, color=LIGHT["c1"], alpha=0.45)
    lacking = [number for number, part in enumerate(parts) if any(done.absent for done in part)]
    middles = [(edges[number] + edges[number + 1]) / 2 for number in lacking]
    size = 4.5 if len(lacking) <= _MARKED else 1.5
    axes.plot(middles, [asked[number] for number in lacking], "x", color=LIGHT["c2"], markersize=size)
    axes.set(xlabel="round", ylabel="took part", ylim=(0, max(*asked, 1) * 1.12))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _told(standing: Standing, points: Sequence[_Point], began: Sequence[int]) -> str:
    rounds = [done for _, done in standing.rounds]
    said = [f"Accuracy on validation samples in percent over {len(rounds)} rounds"]
    for phase, (label, *_) in _PHASES.items():
        values = [point.y for point in points if point.phase == phase]
        if values:
            said.append(f"{label} {values[0]:.1f} at first, {values[-1]:.1f} at last")
    if not points:
        said.append("not known of any")
    starts = [f"{number} after {start}" for number, start in enumerate(began[:_TOLD], 1)]
    if starts:
        said.append(f"unlearnings began, by rounds before them: {', '.join(starts)}{_more(len(began) - _TOLD)}")
    took = [len(done.samples) for done in rounds if done.samples or done.absent]
    if took:
        said.append(f"clients that took part: {min(took)} to {max(took)}, {fmean(took):.1f} on average")
    return f"{'; '.join(said)}."


def _caption(rounds: Sequence[RoundDone], began: Iterable[int]) -> str:
    caption = "Above: accuracy on validation samples that stay, at the clients, all rounds in order."
    if any(True for _ in began):
        caption += " Upright lines: the unlearnings, by number; dashed: what recovery is held against."
    caption += " Below: how many clients took part (blue) of those that were asked (grey); a cross: some were absent."
    every = _together(rounds)
    if every > 1:
        caption += f" {every} rounds are taken together: dots are means, bars go from the least to the most."
    return caption


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
