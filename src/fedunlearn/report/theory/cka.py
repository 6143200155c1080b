"""How alike models are to the original one, position by position: Figures 3 and 7 of the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.figures import Look, looks
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.activations import Similarity
from fedunlearn.theory.cka import normalised

__all__ = ["section"]

_NAME = 22  # characters of a position's name
_ABREAST, _LETTER = 45, 0.06  # characters that an axis has room for; inches of one that stands upright
_TICKS = 20  # positions that an axis can name
_PAPER = "The paper does not say whether its values are biased, or from how many samples they come."
_DOTTED: Any = (0, (1, 1.2))


def section(
    models: Mapping[str, Mapping[str, Similarity]],
    *,
    random: str | None = None,
    published: Mapping[str, Sequence[float]] | None = None,
) -> Section:
    """CKA of each model to the original, by position; above a random network too; the paper's values beside ours.

    Args:
        models: label -> position -> what `fedunlearn.theory.activations.compare` found of the original and this model,
            all at the same positions.
        random: which label is a newly initialised network, that a second figure is normalised by; None: there is none.
        published: label -> the paper's value at each of the positions, in their order.

    Raises:
        ValueError: there is no model, the positions differ, or ``random`` is none of the labels.
    """
    published = published or {}
    if not models:
        raise ValueError("there is nothing to show: give the similarities of one model at least")
    places = tuple(next(iter(models.values())))
    if any(tuple(of) != places for of in models.values()) or any(len(of) != len(places) for of in published.values()):
        raise ValueError("the models were compared at different positions: compare all at the same")
    if random is not None and random not in models:
        raise ValueError(f"{random!r} is none of the models: normalise by one of {', '.join(models)}")
    ours = {label: [at.unbiased for at in of.values()] for label, of in models.items()}
    drawn = looks([*models, *(label for label in published if label not in models)])
    pictures = [_picture("theory-cka", "CKA to the original", "unbiased CKA", places, ours, published, drawn)]
    if random is not None:
        above = {
            label: [normalised(one, zero) for one, zero in zip(values, ours[random], strict=True)]
            for label, values in ours.items()
            if label != random
        }
        pictures.append(_picture("theory-cka-normalised", "Normalised CKA", "normalised CKA", places, above, {}, drawn))
    return Section(
        name="cka",
        title="Features beside the original model's",
        says=(*_says(places, models), *_of_random(places, ours, random), *([_PAPER] if published else [])),
        heads=(
            ("position", "where the activations were read, in the order of execution"),
            *((label, "CKA, unbiased (biased)") for label in models),
            *((f"{label}, paper", "CKA, read off its figure") for label in published),
        ),
        rows=tuple(
            (
                place,
                *(f"{_number(of[place].unbiased)} ({_number(of[place].biased)})" for of in models.values()),
                *(_number(of[at]) for of in published.values()),
            )
            for at, place in enumerate(places)
        ),
        pictures=tuple(pictures),
    )


def _says(places: Sequence[str], models: Mapping[str, Mapping[str, Similarity]]) -> list[str]:
    said = []
    for label, of in models.items():
        known = {place: at.unbiased for place, at in of.items() if not math.isnan(at.unbiased)}
        if not known:
            said.append(f"{label}: its features do not vary over the samples, at any position.")
            continue
        least = min(known, key=known.__getitem__)
        first, last = (_number(of[place].unbiased) for place in (places[0], places[-1]))
        said.append(
            f"{label}: CKA {first} at {places[0]}, {last} at {places[-1]}; least {_number(known[least])}, at {least}."
        )
    samples = next(iter(next(iter(models.values())).values())).samples
    return [
        *said,
        f"From {samples:,} samples. Unbiased values are drawn: in wide layers biased ones of few come near to 1.",
        "Linear CKA does not see signs: 1 at a layer that was negated is no finding.",
    ]


def _of_random(places: Sequence[str], ours: Mapping[str, Sequence[float]], random: str | None) -> list[str]:
    """What is left out of the normalised figure."""
    if random is None:
        return []
    masked = [p for p, zero in zip(places, ours[random], strict=True) if math.isnan(normalised(1.0, zero))]
    if not masked:
        return []
    why = f"there {random} is as the original within 0.001, or does not vary over the samples"
    return [f"The normalised CKA is left out at {', '.join(masked)}: {why}."]


def _picture(
    name: str,
    title: str,
    unit: str,
    places: Sequence[str],
    ours: Mapping[str, Sequence[float]],
    published: Mapping[str, Sequence[float]],
    drawn: Mapping[str, Look],
) -> Picture:
    labels = [*ours, *(f"{label}, paper" for label in published)]
    step = -(-len(places) // _TICKS)
    ticks = {at: _short(places[at]) for at in range(0, len(places), step)}
    upright = sum(map(len, ticks.values())) > _ABREAST
    size = (WIDE[0], WIDE[1] + (_LETTER * max(map(len, ticks.values())) if upright else 0))
    with axes_for(title, "", unit, size, legend=labels) as (figure, axes):
        for bound in (0, 1):
            axes.axhline(bound, color=LIGHT["faint"], linewidth=0.9)
        for label, values in ours.items():
            look = drawn[label]
            style: Any = {"color": LIGHT[look.colour], "marker": look.marker, "linestyle": look.dash}
            axes.plot(range(len(places)), values, label=label, **style)
        for label, values in published.items():
            faint: Any = {"color": LIGHT[drawn[label].colour], "linestyle": _DOTTED, "linewidth": 1.1}
            axes.plot(range(len(places)), values, label=f"{label}, paper", **faint)
        axes.set_xticks(list(ticks), list(ticks.values()), rotation=90 if upright else 0)
        axes.yaxis.set_major_formatter("{x:.2f}")  # as wide however near to each other the ticks come to be
        put_legend(figure, axes)
    alt = "; ".join(
        f"{label} {', '.join(f'{_number(value)} at {place}' for place, value in zip(places, values, strict=True))}"
        for label, values in zip(labels, (*ours.values(), *published.values()), strict=True)
    )
    beside = " Dotted: the paper's, read off its figure." if published else ""
    caption = f"{title} by position, from input to output. Thin lines: {_between(name)}.{beside}"
    return Picture(name, figure, f"{title}: {alt}.", caption)


def _between(name: str) -> str:
    return "nothing in common, and the same features" if name == "theory-cka" else "a random network, and the original"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value + 0:.2f}".replace("-0.00", "0.00")


def _short(place: str) -> str:
    return place if len(place) <= _NAME else f"…{place[1 - _NAME :]}"
