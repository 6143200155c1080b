"""The figures of one run or of several: drawn once, for the page, as SVG files and as PDF files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from fedunlearn.evaluation.rows import ORIGINAL, Row, curves
from fedunlearn.evaluation.scores import LOSS_EDGES, Scores, average_gap
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.report.drawing import LIGHT, NARROW, WIDE, Picture, axes_for, put_legend, slug
from fedunlearn.report.report import Report, measures_of

__all__ = [
    "MARKERS",
    "NAMES",
    "OWN",
    "Look",
    "Series",
    "looks",
    "losses",
    "measures",
    "partition",
    "prices",
    "series_of",
    "validation",
]

OWN = ("c2", "c3", "c4", "c5", "c6", "c7", "c8")
MARKERS = "os^Dv<>PX"
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
_UNITS = {"bytes": "B", "flops": "", "seconds": "s"}
_TARGET = "forget, Retrain"
_BEFORE = "before, and margin"
NAMES = {
    "retain": "Retain accuracy",
    "forget": "Forget accuracy",
    "test": "Test accuracy",
    "mia": "Membership attack",
    "attack": "Backdoor attack",
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure of a page.

    Attributes:
        colour: its name, see `fedunlearn.report.drawing.COLOURS`.
        marker, dash: as Matplotlib names them.
    """

    colour: str
    marker: str
    dash: Any


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Of methods in their order; of Original too, which is muted."""
    others = [method for method in methods if method not in (REFERENCE, "NoT")]
    found = {ORIGINAL: Look("faint", "x", (0, (1, 1.2)))}
    for number, method in enumerate(methods):
        again = others.index(method) // len(OWN) if method in others else 0  # with a colour that others have
        colour = {REFERENCE: "ink", "NoT": "c1"}.get(method) or OWN[others.index(method) % len(OWN)]
        dash = (0, (5, 2)) if method == REFERENCE else _DASHES[again % len(_DASHES)]
        found[method] = Look(colour, MARKERS[number % len(MARKERS)], dash)
    return found


@dataclass(frozen=True)
class Series:
    """A method of a run, as it is drawn everywhere.

    Attributes:
        label: in legends.
        method, run: whose it is; the position of the run among those on the page.
        points: the scored rows, round by round, each a row a seed.
        retrain: the scores of the final retrained models.
        look: of its line.
    """

    label: str
    method: str
    run: int
    points: tuple[tuple[Row, ...], ...]
    retrain: tuple[Scores, ...]
    look: Look

    def values(self, measure: str) -> list[list[float]]:
        """A measure round by round, a value a seed; rounds without it are left out."""
        found = [[getattr(row.scores, measure) for row in point] for point in self.points]
        return [values for values in found if None not in values]

    def gaps(self) -> list[float]:
        """Average gap to the final retrained models, round by round."""
        return [average_gap([row.scores for row in rows if row.scores], self.retrain).of_means for rows in self.points]

    def rounds(self) -> list[int]:
        """Of recovery, or of Retrain."""
        return [point[0].rounds for point in self.points]

    def price(self, kind: str) -> list[float]:
        """What it took so far, mean over seeds: bytes, FLOPs or seconds."""
        bills = [[row.bill() for row in point] for point in self.points]
        read: Callable[[Any], float] = {
            "bytes": lambda bill: bill.traffic.down + bill.traffic.up,
            "flops": lambda bill: bill.flops,
            "seconds": lambda bill: bill.seconds,
        }[kind]
        return [fmean(map(read, point)) for point in bills]


def series_of(reports: Sequence[Report]) -> list[Series]:
    """Every method of every run, Original left out."""
    several = len(reports) > 1
    drawn = looks(list(dict.fromkeys(method for report in reports for method in report.methods)))
    found = []
    for number, report in enumerate(reports):
        by_method = curves(report.compared)
        retrain = tuple(rows[-1].scores for rows in by_method[REFERENCE].values() if rows[-1].scores)
        for method in report.methods:
            points = tuple(zip(*by_method[method].values(), strict=True))
            label = f"{report.name}: {method}" if several else method
            look = drawn[method]
            if several:
                look = replace(look, dash=_DASHES[number % len(_DASHES)])
            found.append(Series(label, method, number, points, retrain, look))
    return found


def measures(series: Sequence[Series], reports: Sequence[Report]) -> Iterator[Picture]:
    """The measures by round: the four, and a backdoor's success in runs that have one."""
    for measure in measures_of(reports):
        shown = [one for one in series if measure in reports[one.run].measures]
        with axes_for(NAMES[measure], "rounds", "%", legend=[one.label for one in shown]) as (figure, axes):
            ends: list[str] = []
            curves_shown: dict[str, list[float]] = {}
            for one in shown:
                values = one.values(measure)
                means, spreads = [fmean(v) for v in values], [stdev(v) if len(v) > 1 else 0.0 for v in values]
                low = [m - s for m, s in zip(means, spreads, strict=True)]
                high = [m + s for m, s in zip(means, spreads, strict=True)]
                axes.fill_between(one.rounds(), low, high, color=LIGHT[one.look.colour], alpha=0.13, linewidth=0)
                _line(axes, one, one.rounds(), means)
                ends.append(f"{one.label} {means[0]:.1f} to {means[-1]:.1f}")
                curves_shown[one.label] = means
            below = _focus(axes, curves_shown)
            put_legend(figure, axes)
        alt = f"{NAMES[measure]} in percent, from the first scored round to the last: {'; '.join(ends)}."
        seeds = "mean ± sd over seeds" if any(len(one.points[0]) > 1 for one in shown) else "one seed"
        caption = f"{NAMES[measure]} by round, {seeds}.{below}"
        yield Picture(f"measure-{measure}", figure, alt, caption)


def prices(series: Sequence[Series], reports: Sequence[Report]) -> Iterator[Picture]:
    """The average gap to Retrain by what it took, and of the model before the request."""
    originals = [next(line for line in report.table() if line.method == ORIGINAL).gap.of_means for report in reports]
    cached = any(REFERENCE in part for report in reports for part in report.cached)
    kinds = {
        "bytes": "bytes between server and clients",
        "flops": "floating-point operations at the clients",
        "seconds": "seconds of wall time",
    }
    for kind, what in kinds.items():
        legend = [*(one.label for one in series), ORIGINAL]
        with axes_for("Average gap to Retrain", what, "percentage points", legend=legend) as (figure, axes):
            ends, shown = [], {}
            for one in series:
                paid = [
                    (x, y)
                    for x, y, sent in zip(one.price(kind), one.gaps(), one.price("bytes"), strict=True)
                    if sent > 0  # what is free has no place on a logarithmic axis
                ]
                if not paid:
                    continue
                _line(axes, one, *zip(*paid, strict=True))
                shown[one.label] = paid
                best = min(paid, key=lambda point: point[1])
                ends.append(f"{one.label} at best {best[1]:.2f} after {best[0]:.3g}, at last {paid[-1][1]:.2f}")
            for number, gap in enumerate(originals):
                axes.axhline(gap, color=LIGHT["faint"], linewidth=1, linestyle=":", label=None if number else ORIGINAL)
            axes.set_xscale("log")
            above = _focus_gaps(axes, shown, originals)
            low, high = axes.get_xlim()
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 40 * low else (1,)))
            axes.xaxis.set_major_formatter(EngFormatter(_UNITS[kind], sep="\N{NO-BREAK SPACE}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            put_legend(figure, axes)
        alt = f"Average gap to Retrain in percentage points against {what}: {'; '.join(ends)}."
        caption = f"Average gap against {what}; both from the request on.{above}"
        if cached and kind == "seconds":
            caption += f" {REFERENCE}'s seconds are of the earlier run that did it, and may compare badly."
        yield Picture(f"gap-{kind}", figure, alt, caption)


def validation(series: Sequence[Series], reports: Sequence[Report]) -> Picture | None:
    """What the stop rule that needs no Retrain reads; None where nobody keeps validation samples."""
    series = [one for one in series if one.method != REFERENCE and one.values("validation")]
    if not series:
        return None
    legend = [*(one.label for one in series), _BEFORE]
    with axes_for("Validation accuracy", "rounds", "%", legend=legend) as (figure, axes):
        told, shown = [], {}
        for one in series:
            means = [fmean(v) for v in one.values("validation")]
            shown[one.label] = means
            _line(axes, one, one.rounds(), means)
            stops, where = _stops(one, reports[one.run]), "nowhere stopped"
            if stops:
                where = f"stopped after {fmean(stops):.3g} rounds, mean of the {len(stops)} seeds where it was met"
                y = np.interp(fmean(stops), one.rounds(), means)
                axes.plot(fmean(stops), y, "o", markersize=8, markerfacecolor="none", color=LIGHT[one.look.colour])
            told.append(f"{one.label} {means[0]:.1f} to {means[-1]:.1f}, {where}")
        for number, report in enumerate(reports):
            scores = [row.scores for row in _originals(report) if row.scores]
            known = [one.validation for one in scores if one.validation is not None]
            if not known:
                continue
            before = fmean(known)
            margin = next(rule.margin for rule in report.rules if isinstance(rule, Recovered))
            label = None if number else _BEFORE
            axes.axhspan(before - margin, before, color=LIGHT["faint"], alpha=0.18, linewidth=0, label=label)
        below = _focus(axes, shown)
        put_legend(figure, axes)
    alt = f"Validation accuracy in percent by round: {'; '.join(told)}."
    caption = f"What the rule “recovered” reads; circles: where it stops, mean of the seeds in which it does.{below}"
    return Picture("validation", figure, alt, caption)


def losses(report: Report, prefix: str = "") -> Iterator[Picture]:
    """Histograms of the losses, of the model before the request and of every method's last, on one scale."""
    found = {method: _shares(seeds.values()) for method, seeds in curves(report.compared).items()}
    target = found[REFERENCE]["forget"]
    highest = max(max(shares) for kinds in found.values() for shares in kinds.values())
    centres = [(a * b) ** 0.5 for a, b in pairwise(LOSS_EDGES)]
    drawn = {"retain": ("c1", "-"), "forget": ("c2", "-"), "test": ("ink", (0, (2, 1.5)))}
    for number, (method, kinds) in enumerate(found.items()):
        title = "before the request" if method == ORIGINAL else method
        with axes_for(title, "loss of a sample", "% of samples", NARROW, legend=[*drawn, _TARGET]) as (figure, axes):
            for kind, (colour, dash) in drawn.items():
                shares = kinds[kind]
                axes.step(centres, shares, where="mid", color=LIGHT[colour], linestyle=dash, label=kind, linewidth=1.3)
            axes.fill_between(centres, target, step="mid", color=LIGHT["c2"], alpha=0.15, linewidth=0, label=_TARGET)
            axes.set_xscale("log")
            axes.set(xlim=(LOSS_EDGES[0], LOSS_EDGES[-1]), ylim=(0, 1.05 * highest))
            put_legend(figure, axes)
        name = f"{prefix}losses-{number}-{slug(method)}"  # numbered: two methods can look the same but for punctuation
        medians = ", ".join(f"{kind} {_median(shares):.2g}" for kind, shares in kinds.items())
        yield Picture(name, figure, f"Histogram of losses, {title}. Medians: {medians}.", f"Losses, {title}.")


def _shares(seeds: Iterable[Sequence[Row]]) -> dict[str, list[float]]:
    """Percent of the samples in each bin, of each kind, all seeds together."""
    histograms = [rows[-1].scores.losses for rows in seeds if rows[-1].scores]
    found = {}
    for kind in ("retain", "forget", "test"):
        counts = [sum(column) for column in zip(*(getattr(one, kind) for one in histograms if one), strict=True)]
        found[kind] = [100 * count / max(sum(counts), 1) for count in counts]
    return found


def partition(report: Report, prefix: str = "") -> Picture:
    """Who holds what, of the first seed."""
    seed, who = next(iter(report.partitions.items()))
    rows, columns = len(who.clients), len(who.classes[0])
    size = (WIDE[0] * (2 if columns > 20 else 1), 0.75 + 0.2 * min(rows, 40))
    most = max(map(max, who.classes)) or 1
    with axes_for("", "class", "client", size) as (figure, axes):
        axes.grid(visible=False)
        for y, counts in enumerate(who.classes):
            gone = who.forget[y] > 0
            for x, count in enumerate(counts):
                colour = LIGHT["c2" if gone else "c1"]
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, alpha=0.6 * count / most, linewidth=0))
                if columns <= 12 and rows <= 40:
                    axes.text(x, y, str(count), ha="center", va="center", fontsize=7)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        axes.set_yticks(range(rows), who.clients) if rows <= 40 else None
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.tick_params(length=0)
    leaving = [c for c, n in zip(who.clients, who.forget, strict=True) if n]
    sizes = [sum(counts) for counts in who.classes]
    alt = (
        f"Training samples by client and class in seed {seed}: {rows} clients with {min(sizes)} to {max(sizes)} "
        f"samples of {columns} classes; samples to be forgotten at {len(leaving)} of them."
    )
    caption = f"Training samples by client and class, seed {seed}; orange: clients with samples to be forgotten."
    return Picture(f"{prefix}partition", figure, alt, caption)


def _line(axes: Axes, one: Series, x: Sequence[float], y: Sequence[float]) -> None:
    every = max(len(x) // 8, 1)  # markers tell methods apart without colour; one at every round would hide the line
    front = 3 if one.method in (REFERENCE, "NoT") else 2
    look = one.look
    style: Any = {"color": LIGHT[look.colour], "linestyle": look.dash, "marker": look.marker, "zorder": front}
    axes.plot(x, y, markevery=every, label=one.label, **style)


def _focus_gaps(axes: Axes, shown: Mapping[str, Sequence[tuple[float, float]]], originals: Sequence[float]) -> str:
    """An axis for gaps that are of use: a model at chance, where many a method starts, would press them together."""
    top = 1.6 * max(originals)
    starts = [f"{label} {points[0][1]:.0f}" for label, points in shown.items() if points[0][1] > top]
    within = [x for points in shown.values() for x, y in points if y <= top]
    if not starts or not within:
        axes.set_ylim(bottom=0)
        return ""
    axes.set(xlim=(min(within) / 1.15, max(within) * 1.15), ylim=(0, top))
    return f" Starts above the axis: {', '.join(starts)}."


def _focus(axes: Axes, shown: Mapping[str, Sequence[float]]) -> str:
    """Whole rounds, and an axis for what recovery does: a start far below would press everything else together."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    later = [value for means in shown.values() for value in means[1:]]
    if not later:
        return ""
    low, high = min(later), max(*later, *(means[0] for means in shown.values()))
    starts = [f"{label} {means[0]:.0f} %" for label, means in shown.items() if means[0] < low - 0.5 * (high - low)]
    if not starts:
        return ""
    room = max(0.08 * (high - low), 0.5)
    axes.set_ylim(low - room, high + room)
    return f" Starts below the axis: {', '.join(starts)}."


def _originals(report: Report) -> list[Row]:
    return [rows[-1] for rows in curves(report.compared)[ORIGINAL].values()]


def _stops(one: Series, report: Report) -> list[int]:
    """After how many rounds the rule stops, in the seeds in which it does."""
    rule = next(rule for rule in report.rules if isinstance(rule, Recovered))
    before = {row.seed: row.scores for row in _originals(report) if row.scores}
    by_seed = dict(zip(before, zip(*one.points, strict=True), strict=True))
    return [choice.row.rounds for choice in rule.choose(by_seed, before, one.retrain).values() if choice.met]


def _median(shares: Sequence[float]) -> float:
    """The upper edge of the bin in which half of the samples are reached."""
    half, so_far = sum(shares) / 2, 0.0
    for edge, share in zip(LOSS_EDGES[1:], shares, strict=True):
        so_far += share
        if so_far >= half:
            return edge
    return LOSS_EDGES[-1]
