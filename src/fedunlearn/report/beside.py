"""The figures of what the paper published beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedunlearn.evaluation.published import quantity, whole_of
from fedunlearn.evaluation.scores import MEASURES
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.report.drawing import COLOURS, LIGHT, NARROW, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.figures import MARKERS, NAMES, OWN
from fedunlearn.report.grid import Entry, Grid, GridRow
from fedunlearn.report.shape import Pair, Result, Shape

__all__ = ["pictures_of"]

_ROW = 0.2  # inches of a method
_SHARE = "bytes, of Retrain's"
_LETTER = 0.06  # inches of a letter that stands upright
_COLOURS = sum(name.startswith("c") for name in COLOURS)


def pictures_of(block: Shape | Grid) -> list[Picture]:
    """What to draw of a block.

    A figure's curves, both on the same axis of bytes; of a table, each number's dots, those of figure 1 all six. Of a
    diagnosis, where its columns are positions of a network, a line a row along them, the paper's and ours.
    """
    slug = block.experiment.replace("/", "-")
    if isinstance(block, Grid):
        return list(_lines(block, slug)) if quantity(block.published) == "cka" else []
    shape = block
    if any(pair.published_curve for pair in shape.pairs):
        return list(_curves(shape, slug))
    measures = MEASURES if whole_of(shape.published) else ()
    return [*_measures(shape, slug, measures), *_costs(shape, slug, gap=not measures)]


def _curves(shape: Shape, slug: str) -> Iterator[Picture]:
    """Gap against bytes, the paper's and ours."""
    shown = [pair for pair in shape.pairs if pair.published]
    colours = _colours([pair.method for pair in shown])
    sent = [x for pair in shown for x, _ in (*pair.published_curve, *pair.curve)]
    sides: tuple[tuple[str, str, Callable[[Pair], tuple[tuple[float, float], ...]]], ...] = (
        ("paper", f"Paper: {shape.paper}", lambda pair: pair.published_curve),
        ("here", f"Here: {shape.ours}", lambda pair: pair.curve),
    )
    for name, title, points_of in sides:
        told, unplaced = [], []
        with axes_for(title, _SHARE, "average gap", legend=[pair.method for pair in shown]) as (figure, axes):
            for number, pair in enumerate(shown):
                style: Any = {"color": LIGHT[colours[number]], "label": pair.method}
                if points := points_of(pair):
                    every = max(len(points) // 8, 1)
                    xs, ys = zip(*points, strict=True)
                    axes.plot(xs, ys, marker=MARKERS[number % len(MARKERS)], markevery=every, **style)
                    told.append(f"{pair.method} {min(ys):.2f} at best, {ys[-1]:.2f} at last")
                elif name == "paper" and pair.last is not None:
                    axes.axhline(pair.last, linestyle=":", linewidth=1.2, **style)
                    unplaced.append(pair.method)
                    told.append(f"{pair.method} {pair.last:.2f} at last")
                else:
                    axes.plot([], [], **style)
                    told.append(f"{pair.method} not run")
            axes.set_xscale("log")
            axes.set_xlim(min(sent) / 1.3, max(sent) * 1.3)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(LogLocator(subs=(1,)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            put_legend(figure, axes)
        read = "as read off the figure, at few rounds" if name == "paper" else _over(len(shape.seeds))
        caption = f"{title}. Average gap to Retrain in points, {read}."
        if unplaced:
            caption += f" Dotted: the last gap, whose bytes cannot be read ({', '.join(unplaced)})."
        yield Picture(f"{slug}-{name}", figure, f"{title}. Average gap by bytes: {'; '.join(told)}.", caption)


def _lines(grid: Grid, slug: str) -> Iterator[Picture]:
    """Each row's numbers along the columns: of the paper, where it has any, and here."""
    sides: tuple[tuple[str, str, Callable[[Entry], float | tuple[float, float] | None]], ...] = (
        ("paper", f"Paper: {grid.paper}", lambda entry: entry.published),
        ("here", f"Here: {grid.ours}", lambda entry: entry.mean),
    )
    size = (WIDE[0], WIDE[1] + _LETTER * max(map(len, grid.columns)))
    both = [number for _, _, value_of in sides for row in grid.rows for _, number in _along(row, value_of)]
    for name, title, value_of in sides:
        shown = [(number, row, points) for number, row in enumerate(grid.rows) if (points := _along(row, value_of))]
        if not shown:
            continue  # the paper's curves were not read
        told = []
        with axes_for(title, "", grid.quantity, size, legend=[row.label for _, row, _ in shown]) as (figure, axes):
            for number, row, points in shown:
                xs, ys = zip(*points, strict=True)
                look: Any = {"color": LIGHT[f"c{number % _COLOURS + 1}"], "marker": MARKERS[number % len(MARKERS)]}
                axes.plot(xs, ys, label=row.label, linestyle="-" if number < _COLOURS else "--", **look)
                told.append(f"{row.label} {', '.join(f'{y:.2f}' for y in ys)}")
            axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=90)
            axes.set_xlim(-0.3, len(grid.columns) - 0.7)
            room = 0.05 * (max(both) - min(both)) or 0.05
            axes.set_ylim(min(both) - room, max(both) + room)
            put_legend(figure, axes)
        read = "as read off the figure" if name == "paper" else _over(len(grid.seeds))
        caption = f"{title}. {_sentence(grid.quantity)}, {read}."
        yield Picture(f"{slug}-{name}", figure, f"{caption} {'; '.join(told)}.", caption)


def _along(row: GridRow, value_of: Callable[[Entry], float | tuple[float, float] | None]) -> list[tuple[int, float]]:
    """Where a row has a number, and which."""
    values = ((at, value_of(entry)) for at, entry in enumerate(row.entries))
    return [(at, value) for at, value in values if isinstance(value, (int, float))]


def _over(seeds: int) -> str:
    return f"mean over {seeds} seeds" if seeds > 1 else "of one seed"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"


def _measures(shape: Shape, slug: str, measures: Sequence[str]) -> Iterator[Picture]:
    """By how much each method is off Retrain's value, with the sign."""
    retrain = next((pair for pair in shape.pairs if pair.method == REFERENCE), None)
    for measure in measures:
        assert retrain is not None

        def off(pair: Pair, side: str, measure: str = measure) -> float | None:
            own, reference = _side(pair, side), _side(retrain, side) if retrain else None
            return own.measures[measure][0] - reference.measures[measure][0] if own and reference else None

        rows = [(pair.method, off(pair, "paper"), off(pair, "here")) for pair in _drawable(shape)]
        yield _dots(f"{slug}-{measure}", NAMES[measure], "points above Retrain's", rows, 0, "{:+.2f}")


def _costs(shape: Shape, slug: str, *, gap: bool) -> Iterator[Picture]:
    wanted = (("gap", "Average gap", "points"), ("bytes", "Bytes", "of Retrain's"), ("flops", "FLOPs", "of Retrain's"))
    for entry, title, unit in wanted if gap else wanted[1:]:
        sides = [[_side(pair, side) for side in ("paper", "here")] for pair in _drawable(shape)]
        values = [[getattr(result, entry) if result else None for result in both] for both in sides]
        if all(paper is None for paper, _ in values):
            continue  # which the paper does not print
        rows = [(pair.method, paper, here) for pair, (paper, here) in zip(_drawable(shape), values, strict=True)]
        yield _dots(f"{slug}-{entry}", title, unit, rows, 0 if entry == "gap" else 1, "{:.2f}")


def _dots(
    name: str,
    title: str,
    unit: str,
    rows: Sequence[tuple[str, float | None, float | None]],
    target: float,
    form: str,
) -> Picture:
    """A line a method, from the paper's value to ours."""
    size = (NARROW[0], 1.15 + _ROW * len(rows))
    with axes_for(title, unit, "", size, legend=["paper", "here"]) as (figure, axes):
        axes.axvline(target, color=LIGHT["faint"], linewidth=1)
        axes.grid(visible=False, axis="y")
        for y, (_, paper, here) in enumerate(rows):
            if paper is not None and here is not None:
                axes.plot([paper, here], [y, y], color=LIGHT["line"], linewidth=2, zorder=1)
        _marks(axes, [row[1] for row in rows], "paper", "c2", "none")
        _marks(axes, [row[2] for row in rows], "here", "c1", LIGHT["c1"])
        axes.set_yticks(range(len(rows)), [method for method, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        put_legend(figure, axes)
    said = "; ".join(f"{method} {_told(p, form)} in the paper, {_told(h, form)} here" for method, p, h in rows)
    caption = f"{title}, {unit}: the paper's, and ours at the oracle's round; the line is Retrain's value."
    return Picture(name, figure, f"{title}, {unit}: {said}.", caption)


def _marks(axes: Axes, values: Sequence[float | None], label: str, colour: str, face: str) -> None:
    known = [(value, y) for y, value in enumerate(values) if value is not None]
    xs, ys = zip(*known, strict=True) if known else ((), ())
    axes.plot(xs, ys, "o", label=label, color=LIGHT[colour], markerfacecolor=face, markersize=6, zorder=3)


def _drawable(shape: Shape) -> list[Pair]:
    """The paper's methods; Retrain is the target itself."""
    return [pair for pair in shape.pairs if pair.published and pair.method != REFERENCE]


def _side(pair: Pair, side: str) -> Result | None:
    return pair.published if side == "paper" else pair.oracle


def _told(value: float | None, form: str) -> str:
    return "not known" if value is None else form.format(value)


def _colours(methods: Sequence[str]) -> list[str]:
    others = [method for method in methods if method != "NoT"]
    return ["c1" if method == "NoT" else OWN[others.index(method) % len(OWN)] for method in methods]
