"""The layer poset for people: a Hasse diagram, and whether the theorems cover a set of layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from matplotlib.ticker import MaxNLocator

from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.poset import Hits, Ordered, Verdict

__all__ = ["section"]

_DOTS = 60  # that a diagram has room for
_LANE = 0.3  # inches from one layer to another of the same height
_HEADS = (
    ("layers", ""),
    ("antichain", "no two of them are comparable"),
    ("maximal", "those that no layer comes after"),
    ("Cauchy by order", "every maximal chain meets them once, as the paper defines it"),
    ("Cauchy by paths", "every path from input to output meets them once, as its proofs need"),
)


def section(poset: Ordered) -> Section:
    """What a layer poset says of sets of layers; the first, of the negated ones, is marked in the diagram."""
    says = (
        f"{len(poset.layers)} layers, {_many(poset.chains)} maximal {_plural('chain', poset.chains)}, the longest of "
        f"{poset.length} layers, and {_many(poset.paths)} {_plural('path', poset.paths)} from input to output.",
        *map(_said, poset.verdicts),
    )
    return Section("poset", "Layer poset", says, _HEADS, tuple(map(_row, poset.verdicts)), (_diagram(poset),))


def _said(verdict: Verdict) -> str:
    """Which theorems speak of a set."""
    name, several = _names(verdict.layers), len(verdict.layers) > 1
    if not verdict.cauchy:
        return f"{name}: no Cauchy domain; Theorems 2 and 6 say nothing of {'them' if several else 'it'}."
    if not verdict.cauchy_by_paths:
        return (
            f"{name}: a Cauchy domain by order only. {_many(verdict.paths.none)} paths go around "
            f"{'them' if several else 'it'}, so the proofs of Theorems 2 and 6, which compose the network through "
            f"{'their outputs' if several else 'its output'}, do not hold."
        )
    if verdict.maximal:
        return f"{name}: a Cauchy domain, but {_names(verdict.maximal)} is maximal, which Theorem 7 excludes."
    return f"{name}: a Cauchy domain, by order and by paths, and not maximal."


def _row(verdict: Verdict) -> tuple[str, ...]:
    return (
        _names(verdict.layers),
        "yes" if verdict.antichain else "no",
        _names(verdict.maximal) if verdict.maximal else "none",
        _judged(verdict.chains, "chain"),
        _judged(verdict.paths, "path"),
    )


def _judged(hits: Hits, what: str) -> str:
    total = hits.none + hits.once + hits.more
    if hits.all_once:
        return f"yes: {_many(total)} of {_many(total)} {_plural(what, total)} once"
    told = [f"{_many(count)} {how}" for count, how in ((hits.none, "never"), (hits.more, "more than once")) if count]
    return f"no: of {_many(total)} {_plural(what, total)}, {', '.join(told)}"


def _diagram(poset: Ordered) -> Picture:
    """Layers from left to right by height, those of one height below each other."""
    verdict = poset.verdicts[0]
    lower: dict[str, list[str]] = {layer: [] for layer in poset.layers}
    uppers = Counter[str]()
    for below, layer in poset.covers:
        lower[layer].append(below)
        uppers[below] += 1
    every = -(-len(poset.layers) // _DOTS)
    drawn = [
        layer
        for number, layer in enumerate(poset.layers)
        if number % every == 0 or layer in verdict.layers or len(lower[layer]) != 1 or uppers[layer] != 1
    ]
    lanes, places = Counter[int](), {}
    for layer in drawn:
        height = poset.heights[layer]
        places[layer] = (height, lanes[height])
        lanes[height] += 1
    size = (WIDE[0], 1.35 + _LANE * max(lanes.values()))
    title = "Layer poset" if len(drawn) == len(poset.layers) else f"Layer poset, {len(drawn)} of {len(poset.layers)}"
    with axes_for(title, "height: layers of the longest chain to it", "", size, legend=["layer", "negated"]) as (
        figure,
        axes,
    ):
        for layer in drawn:
            for below in lower[layer]:
                while below not in places:  # in a row without a branch
                    (below,) = lower[below]
                line: Any = {"color": LIGHT["faint"], "linewidth": 0.9, "zorder": 1}
                axes.plot(*zip(places[below], places[layer], strict=True), **line)
        for label, colour, marker, chosen in (
            ("layer", "c1", "o", [layer for layer in drawn if layer not in verdict.layers]),
            ("negated", "c2", "D", list(verdict.layers)),
        ):
            xs, ys = [places[layer][0] for layer in chosen], [places[layer][1] for layer in chosen]
            axes.scatter(xs, ys, color=LIGHT[colour], marker=marker, s=20, label=label, zorder=2)
        axes.grid(visible=False)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set(ylim=(max(lanes.values()) - 0.4, -0.6), xlim=(0.3, poset.length + 0.7))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        put_legend(figure, axes)
    at = ", ".join(f"{layer} at height {poset.heights[layer]}" for layer in verdict.layers[:5])
    more = f" and {len(verdict.layers) - 5} more" if len(verdict.layers) > 5 else ""
    alt = (
        f"Hasse diagram of {len(poset.layers)} layers with {len(poset.covers)} lines, from {_names(poset.minimal)} at "
        f"height 1 to {_names(poset.maximal)} at height {poset.length}; negated: {at}{more}."
    )
    left_out = " Layers in a row are left out." if len(drawn) < len(poset.layers) else ""
    caption = (
        "Each dot is a layer, each line leads to a layer that reads it with none between. Skip connections that go "
        f"around layers cannot be seen here: the order does not know them.{left_out}"
    )
    return Picture("theory-poset", figure, alt, caption)


def _names(layers: tuple[str, ...]) -> str:
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def _many(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"{count:.3g}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
