"""How long unlearning takes at least, method by method, beside how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.figures import looks
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.bound import Bound

__all__ = ["section"]

_ROW = 0.3  # inches of a method
_TERMS: tuple[tuple[str, Callable[[Bound], float]], ...] = (
    ("loss gap at the start", lambda one: one.gap_start),
    ("loss gap of Retrain", lambda one: one.gap_retrained),
    ("Lipschitz constant, along the path (eq. 85)", lambda one: one.lipschitz),
    ("Lipschitz constant, over mini-batches (eq. 84)", lambda one: one.lipschitz_batches),
    ("loss on what stays, at the start", lambda one: one.loss_start),
    ("loss on what stays, the least", lambda one: one.loss_least),
    ("A, all covariances", lambda one: one.stochastic),
    ("A, diagonal", lambda one: one.stochastic_diagonal),
    ("N, mean squared way by noise alone", lambda one: one.noise),
    ("bound as printed, time", lambda one: one.printed),
    ("bound as printed, steps", lambda one: one.printed_steps),
    ("bound corrected for noise, time", lambda one: one.corrected),
    ("bound corrected for noise, steps", lambda one: one.corrected_steps),
)


def section(
    bounds: Mapping[str, Bound], measured: Mapping[str, float | None], published: Mapping[str, float] | None = None
) -> Section:
    """What the lower bound says of each method, and of the ratio of their costs.

    Args:
        bounds: by method; the first, natural forgetting (FT), is what the others are compared with.
        measured: the time that each took until it counted as unlearned, in units of learning rate times steps; None
            where it did not come to that.
        published: bounds of Table 3, by method; none where the setting is not the paper's.

    Raises:
        ValueError: methods differ between ``bounds`` and ``measured``, or there are none.
    """
    if not bounds or bounds.keys() != measured.keys():
        raise ValueError(f"bounds of {list(bounds)} and times of {list(measured)}: give both of the same methods")
    known = published or {}
    took = {name: time for name, time in measured.items() if time is not None}
    rows = [(term, *(_told(read(one)) for one in bounds.values())) for term, read in _TERMS]
    rows.append(("measured time", *(_told(took[name]) if name in took else "not reached" for name in bounds)))
    if known:
        rows.append(("bound in Table 3", *(_told(known[name]) if name in known else "" for name in bounds)))
    return Section(
        "bound",
        "The least time that unlearning takes",
        tuple(_sentences(bounds, took, known)),
        (("term", ""), *((name, "times are learning rate times steps") for name in bounds)),
        tuple(rows),
        (_times(bounds, took, known),),
    )


def _sentences(bounds: Mapping[str, Bound], measured: Mapping[str, float], known: Mapping[str, float]) -> list[str]:
    first, *others = bounds
    printed, corrected = ({name: read(one) for name, one in bounds.items()} for read in (_printed, _corrected))
    says = []
    for name in others:
        told = {
            "by the bound as printed": _ratio(printed, first, name),
            "by the corrected one": _ratio(corrected, first, name),
            "as measured": _ratio(measured, first, name),
            "in Table 3": _ratio(known, first, name),
        }
        listed = ", ".join(f"{ratio} times {how}" for how, ratio in told.items() if ratio)
        if listed:
            says.append(f"The time of {first} is that of {name} {listed}.")
    never = [name for name in bounds if name not in measured]
    if never:
        says.append(f"The gap of {' and '.join(never)} did not come as far as Retrain's: no time could be measured.")
    above = [name for name in bounds if name in measured and printed[name] > measured[name]]
    if above:
        says.append(f"Of {' and '.join(above)} the bound as printed is above the time that was measured.")
    empty = [name for name in bounds if corrected[name] == 0]
    if empty:
        says.append(f"Of {' and '.join(empty)} the corrected bound is 0: noise alone goes far enough to close the gap.")
    share = max((max(one.stochastic, one.stochastic_diagonal) / one.loss_drop, name) for name, one in bounds.items())
    says.append(f"The term A, which the paper neglects, is up to {share[0]:.2g} times the drop in loss ({share[1]}).")
    says.append(
        "These are estimates and certify nothing: the Lipschitz constant is the largest of some gradients, at most the "
        "true one, and one that is too small makes the time too long."
    )
    return says


def _times(bounds: Mapping[str, Bound], measured: Mapping[str, float], known: Mapping[str, float]) -> Picture:
    """Of each method a line of marks, on a logarithmic axis."""
    marks: tuple[tuple[str, str, Mapping[str, float]], ...] = (
        ("bound as printed", "o", {name: one.printed for name, one in bounds.items()}),
        ("bound corrected", "D", {name: one.corrected for name, one in bounds.items()}),
        ("measured", "s", measured),
        ("Table 3", "x", known),
    )
    shown = [mark for mark in marks if any(value > 0 for value in mark[2].values())]
    drawn = looks(list(bounds))
    size = (WIDE[0], 1.3 + _ROW * len(bounds))
    with axes_for(_TITLE, "learning rate times steps", "", size, legend=[label for label, _, _ in shown]) as (
        figure,
        axes,
    ):
        for at, name in enumerate(bounds):
            spots = [(label, shape, values[name]) for label, shape, values in shown if values.get(name, 0) > 0]
            colour = LIGHT[drawn[name].colour]
            times = [time for _, _, time in spots]
            if times:
                axes.plot([min(times), max(times)], [at, at], color=LIGHT["line"], linewidth=1.3, zorder=1)
            for label, shape, time in spots:
                filled = colour if label == "measured" else "none"
                style: Any = {"color": colour, "marker": shape, "markerfacecolor": filled, "linestyle": "none"}
                axes.plot([time], [at], markersize=6, **style)
        for label, shape, _ in shown:
            filled = LIGHT["ink"] if label == "measured" else "none"
            key: Any = {"color": LIGHT["ink"], "marker": shape, "markerfacecolor": filled, "linestyle": "none"}
            axes.plot([], [], markersize=6, label=label, **key)
        axes.set(xscale="log", ylim=(len(bounds) - 0.5, -0.5))
        axes.margins(x=0.1)
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(bounds)), list(bounds))
        axes.tick_params(axis="y", length=0)
        put_legend(figure, axes)
    said = "; ".join(
        f"{name}: {', '.join(f'{label} {_told(values[name])}' for label, _, values in marks if name in values)}"
        for name in bounds
    )
    caption = (
        "Least time by the bound, hollow, and the time that it took, filled. A bound holds where it is left of the "
        "filled mark; a time of 0, or one that was not reached, has no place on the axis."
    )
    return Picture("theory-bound-times", figure, f"{_TITLE}, in learning rate times steps. {said}.", caption)


_TITLE = "Time to unlearn"


def _printed(bound: Bound) -> float:
    return bound.printed


def _corrected(bound: Bound) -> float:
    return bound.corrected


def _ratio(times: Mapping[str, float], first: str, name: str) -> str:
    """Empty where one is not known, or 0."""
    both = times.get(first, 0), times.get(name, 0)
    return _told(both[0] / both[1]) if min(both) > 0 else ""


def _told(value: float) -> str:
    return f"{value:.3g}"
