"""The figures of an audit: what each attack finds, and what the run's own models give away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedunlearn.attacks import Attack
from fedunlearn.auditing import Audit
from fedunlearn.audits.certainty import Interval
from fedunlearn.audits.membership import Result
from fedunlearn.audits.relearning import Relearned
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import Facts, Probed
from fedunlearn.report.audit_numbers import examined_of, shown_of
from fedunlearn.report.drawing import LIGHT, NARROW, WIDE, Picture, axes_for, put_legend, slug
from fedunlearn.report.figures import looks

__all__ = ["histograms", "intervals", "probes", "receiver", "relearning"]

_MARK, _ATTACK = 0.13, 0.12  # inches of a method's interval, and of the room between two attacks
_TICKS = 14  # layers that an axis can name
_NAME = 22  # characters of a layer's name
_ABREAST, _LETTER = 45, 0.06  # characters that an axis has room for; inches of one that stands upright
_SEEN = 0.01  # of the samples: a bin with fewer in every panel is beyond the axis, if at its end
_WIDEST = 10.0  # of the scores in `Attack.histograms`


def receiver(audit: Audit, attack: Attack) -> Picture:
    """The receiver operating characteristic on logarithmic axes, where what counts is seen: few false alarms."""
    names = shown_of(audit, attack.curves)
    lowest = min(rate for name in names for rate, _ in attack.curves[name])
    drawn, said = looks(audit.methods), []
    with axes_for(attack.name, "false positives", "members found", legend=names) as (figure, axes):
        axes.plot([lowest, 1], [lowest, 1], color=LIGHT["faint"], linewidth=0.9)
        for name in names:
            points = [point for point in attack.curves[name] if point[1] > 0]  # none has no logarithm
            look: Any = {"color": LIGHT[drawn[name].colour], "linestyle": drawn[name].dash}
            axes.plot(*zip(*points, strict=True), marker=drawn[name].marker, markevery=6, label=name, **look)
            rate, share = min(attack.curves[name], key=lambda point: abs(point[0] - 0.1))
            area = attack.results[name].sample.value
            said.append(f"{name} {share:.1%} at {rate:.1%} false positives, area {area:.1%}")
        axes.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.15))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1,)))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
            axis.set_minor_formatter(NullFormatter())
        put_legend(figure, axes)
    alt = f"Members found by {attack.name} against false positives: {'; '.join(said)}."
    caption = f"{attack.name}, over all shadows; thin line: chance. Further left counts more: few false alarms."
    return Picture(f"roc-{slug(attack.name)}", figure, alt, caption)


def intervals(audit: Audit) -> Iterator[Picture]:
    """Of every attack and method, what is found by the sample and by the client, each with its interval."""
    read: tuple[tuple[str, str, Callable[[Result], Interval], float, str, str], ...] = (
        ("samples", "Single samples: area under the curve", _sample, 0.5 + audit.found_excess, "U-LiRA", ".1%"),
        ("clients", "All together: attacker's wins", _client, audit.found_wins, "an attack on the new model", ".0%"),
    )
    for name, title, interval_of, findable, attacks, form in read:
        found = {a.name: {m: interval_of(a.results[m]) for m in shown_of(audit, a.results)} for a in audit.attacks}
        figure, told = _forest(audit, title, {attack: of for attack, of in found.items() if of}, findable, form)
        noticed = f"what would have been noticed by {attacks}, {findable:{form}}"
        caption = f"{title}, 95 % intervals. Line: chance; dotted: {noticed}."
        yield Picture(f"intervals-{name}", figure, f"{title}. {told}.", caption)


def _forest(
    audit: Audit, title: str, found: Mapping[str, Mapping[str, Interval]], findable: float, form: str
) -> tuple[Figure, str]:
    """A line an interval, those of an attack together; and the same in words."""
    drawn, names = looks(audit.methods), shown_of(audit, {name: None for of in found.values() for name in of})
    inches = sum(_MARK * len(of) + _ATTACK for of in found.values())
    size = (WIDE[0], 1.15 + inches)
    with axes_for(title, "%", "", size, legend=names) as (figure, axes):
        axes.axvline(50, color=LIGHT["faint"], linewidth=0.9)
        axes.axvline(100 * findable, color=LIGHT["faint"], linewidth=0.9, linestyle=(0, (1, 1.5)))
        y, middles, labelled = 0.0, [], set()
        for of in found.values():
            first = y
            for method, one in of.items():
                look, value = drawn[method], 100 * one.value
                label = None if method in labelled else method
                labelled.add(method)
                axes.plot([100 * one.low, 100 * one.high], [y, y], color=LIGHT[look.colour], linewidth=1.3)
                style: Any = {"color": LIGHT[look.colour], "marker": look.marker, "linestyle": "none"}
                axes.plot([value], [y], markersize=4.2, label=label, **style)
                y += _MARK
            middles.append((first + y - _MARK) / 2)
            y += _ATTACK
        axes.grid(visible=False, axis="y")
        axes.set_yticks(middles, list(found))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(y - _ATTACK, -_MARK)
        put_legend(figure, axes)
    said = {
        attack: ", ".join(f"{m} {one.value:{form}} ({one.low:{form}} to {one.high:{form}})" for m, one in of.items())
        for attack, of in found.items()
    }
    return figure, "; ".join(f"{attack}: {told}" for attack, told in said.items())


def histograms(audit: Audit, attack: Attack) -> Iterator[Picture]:
    """Scores of members and of their twins, method by method on one scale."""
    drawn, names = looks(audit.methods), shown_of(audit, attack.histograms)
    shares = {name: [[count / sum(side) for count in side] for side in attack.histograms[name]] for name in names}
    bins = len(shares[names[0]][0])
    width = 2 * _WIDEST / bins
    edges = [number * width - _WIDEST for number in range(bins + 1)]
    seen = [at for at in range(bins) if any(side[at] >= _SEEN for sides in shares.values() for side in sides)]
    highest = max(max(side) for sides in shares.values() for side in sides)
    for number, name in enumerate(names):
        members, twins = shares[name]
        with axes_for(name, "score", "% of samples", NARROW, legend=["members", "twins"]) as (figure, axes):
            colour = LIGHT[drawn[name].colour]
            axes.stairs([100 * x for x in members], edges, fill=True, color=colour, alpha=0.3, label="members")
            axes.stairs([100 * x for x in twins], edges, color=LIGHT["ink"], linewidth=1.1, label="twins")
            axes.axvline(0, color=LIGHT["faint"], linewidth=0.9)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axes.set(xlim=(edges[seen[0]], edges[seen[-1] + 1]), ylim=(0, 105 * highest))
            put_legend(figure, axes)
        medians = f"median of members {_median(members, edges):.2g}, of twins {_median(twins, edges):.2g}"
        alt = f"Histogram of {attack.name}'s scores, {name}: {medians}."
        caption = f"{attack.name}'s scores, {name}: above 0, the attacker takes a sample for a member."
        yield Picture(f"scores-{number}-{slug(name)}", figure, alt, caption)


def relearning(audit: Audit) -> Iterator[Picture]:
    """Loss by steps of what was to be forgotten and of twins, method by method, beside Retrain's, on one scale."""
    drawn = looks(audit.methods)
    models = {name: [one.models[name] for one in audit.examined] for name in examined_of(audit)}
    steps = models[REFERENCE][0].relearned[0].steps
    curves = {name: [_mean_losses(models[name], side) for side in (_own, _twins)] for name in models}
    every = [loss for both in curves.values() for losses in both for loss in losses]
    for number, (name, (own, twins)) in enumerate(curves.items()):
        beside = [] if name == REFERENCE else ["Retrain's"]
        with axes_for(name, "steps", "loss", NARROW, legend=["forgotten", "twins", *beside]) as (figure, axes):
            colour = LIGHT[drawn[name].colour]
            axes.plot(steps, own, color=colour, label="forgotten", zorder=3)
            axes.plot(steps, twins, color=colour, linestyle=(0, (1, 1.2)), label="twins", zorder=3)
            for label in beside:
                dash: Any = (0, (5, 2))
                axes.plot(steps, curves[REFERENCE][0], color=LIGHT["faint"], linestyle=dash, linewidth=1.1, label=label)
            axes.set(yscale="log", xlim=(0, steps[-1]), ylim=(min(every) / 1.15, max(every) * 1.15))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            put_legend(figure, axes)
        middle = len(steps) // 4
        told = "; ".join(
            f"{side} {of[0]:.2g} at first, {of[middle]:.2g} after {steps[middle]} steps, {of[-1]:.2g} at last"
            for side, of in (("forgotten", own), ("twins", twins))
        )
        against = " Dashed: Retrain's on the forgotten." if beside else ""
        caption = f"Relearning, {name}: loss by steps of the optimizer, mean over seeds and repeats.{against}"
        yield Picture(f"relearning-{number}-{slug(name)}", figure, f"Loss while {name} learns again: {told}.", caption)


def probes(audit: Audit) -> Iterator[Picture]:
    """Of every layer, in the order in which the input flows, what a linear probe finds; mean over seeds."""
    measures: tuple[tuple[str, str, str, Callable[[Probed], float], float], ...] = (
        ("membership", "Membership by depth", "area under the curve, %", lambda one: one.membership, 50),
        ("accuracy", "Accuracy by depth", "points, forgotten above twins", lambda one: one.own - one.twins, 0),
    )
    drawn = looks(audit.methods)
    models = {name: [one.models[name] for one in audit.examined] for name in examined_of(audit)}
    layers = [one.layer for one in models[REFERENCE][0].probes]
    ticks = {at: _short(layers[at]) for at in range(0, len(layers), -(-len(layers) // _TICKS))}
    upright = sum(map(len, ticks.values())) > _ABREAST
    size = (WIDE[0], WIDE[1] + (_LETTER * max(map(len, ticks.values())) if upright else 0))
    for measure, title, unit, value_of, chance in measures:
        said = []
        with axes_for(title, "", unit, size, legend=list(models)) as (figure, axes):
            axes.axhline(chance, color=LIGHT["faint"], linewidth=0.9)
            for name, seeds in models.items():
                values = [100 * fmean(map(value_of, at)) for at in zip(*(one.probes for one in seeds), strict=True)]
                look = drawn[name]
                style: Any = {"color": LIGHT[look.colour], "marker": look.marker, "linestyle": look.dash}
                axes.plot(range(len(layers)), values, markevery=max(len(layers) // 8, 1), label=name, **style)
                said.append(f"{name} {values[0]:.1f} in {layers[0]}, {values[-1]:.1f} in {layers[-1]}")
            axes.set_xticks(list(ticks), list(ticks.values()), rotation=90 if upright else 0)
            put_legend(figure, axes)
        caption = f"{title}: {_PROBED[measure]}; mean over seeds. Thin line: neither. Retrain's line is the yardstick."
        yield Picture(f"probes-{measure}", figure, f"{title}, {unit}: {'; '.join(said)}.", caption)


_PROBED = {
    "membership": "how often a layer's probe is surer of a forgotten sample than of a twin",
    "accuracy": "by how many points a layer's probe is better on forgotten samples than on twins",
}


def _sample(found: Result) -> Interval:
    return found.sample


def _client(found: Result) -> Interval:
    return found.client


def _own(facts: Facts) -> Sequence[Relearned]:
    return facts.relearned


def _twins(facts: Facts) -> Sequence[Relearned]:
    return facts.relearned_twins


def _mean_losses(seeds: Sequence[Facts], side: Callable[[Facts], Sequence[Relearned]]) -> list[float]:
    """Over seeds and repeats, step by step."""
    return list(map(fmean, zip(*(one.losses for facts in seeds for one in side(facts)), strict=True)))


def _median(shares: Sequence[float], edges: Sequence[float]) -> float:
    """The middle of the bin in which half of the samples are reached."""
    at = next(number for number, reached in enumerate(accumulate(shares)) if reached >= 0.5)
    return (edges[at] + edges[at + 1]) / 2


def _short(layer: str) -> str:
    return layer if len(layer) <= _NAME else f"…{layer[1 - _NAME :]}"
