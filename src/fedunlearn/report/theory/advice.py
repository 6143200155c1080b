"""Which layers to negate: candidates ranked, and the ranking beside what came of them where a run knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedunlearn.amounts import tell_p
from fedunlearn.diagnoses import Advised
from fedunlearn.evaluation.agreement import Agreement, agreement
from fedunlearn.findings import Found
from fedunlearn.report.drawing import LIGHT, WIDE, Picture, axes_for, put_legend
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.advice import Candidate

__all__ = ["advice_as_markdown", "agreements", "section"]

_HEADS = (
    ("layers", ""),
    ("distance", "from no memory and all use; the smallest is advised"),
    ("memory", "left after negation, 1 as before"),
    ("use", "left after negation, 1 as before"),
    ("loss", "after negation"),
    ("optimality", "layer by layer: preserved, and by what"),
    ("Cauchy", "every path meets it once, as Theorem 6 needs"),
)
_FEWEST = 3  # outcomes: with two there is hardly an order


def section(found: Advised) -> Section:
    """The candidates, the best first, each with a sentence; with outcomes, how well they agree."""
    ranked = _ranked(found)
    predicted = all(one.prediction for one in ranked)
    heads = [head for head in _HEADS if predicted or head[0] not in ("distance", "memory", "use", "loss")]
    if found.outcomes:
        heads.append(("measured gap", "percentage points, mean over the scored rounds of recovery"))
    if predicted:
        heads.append(("to expect", ""))
    rows = tuple(tuple(_cells(number, one, found)) for number, one in enumerate(ranked, start=1))
    pictures = (_plane(ranked),) if predicted else ()
    return Section("advice", "Which layers to negate", tuple(_says(found, ranked)), tuple(heads), rows, pictures)


def agreements(results: Sequence[Advised]) -> dict[str, Agreement]:
    """How well each rule orders the sets of one network or several, each a mean over its seeds."""
    rules = [one.rules() for one in results]
    came = [one.came() for one in results]
    return {name: agreement([rule[name] for rule in rules], came) for name in rules[0]}


def advice_as_markdown(networks: Mapping[str, Found[Advised]]) -> str:
    """A table a network, what was predicted beside what came of it; and one of all, how well each rule agrees."""
    means = {name: found.mean for name, found in networks.items()}
    parts = []
    for name, found in networks.items():
        seeds = ", ".join(map(str, found.seeds))
        lines = ["| negated | memory | use | distance | loss | measured gap |", "|---|---:|---:|---:|---:|---:|"]
        for one in _ranked(means[name]):
            if one.prediction is not None:
                read = one.prediction
                numbers = (read.memory, read.useful, read.distance, read.loss, means[name].outcomes[one.name])
                lines.append(f"| {one.name} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
        parts += [f"**{name}**: `{found.command}`, means over seeds {seeds}", "\n".join(lines)]
    groups = {name: [found] for name, found in means.items()} | {"all": list(means.values())}
    held = {name: agreements(group) for name, group in groups.items()}
    heads = ["ranked by", *(f"{name}: tau (p), regret" for name in held)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * len(held)}"]
    for rule in held["all"]:
        cells = (f"{one[rule].tau:+.2f} ({one[rule].p:.3f}), {one[rule].regret:.2f}" for one in held.values())
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _ranked(found: Advised) -> list[Candidate]:
    """By what is predicted; without, as they run."""
    return sorted(found.candidates.values(), key=lambda one: one.prediction.distance if one.prediction else 0.0)


def _cells(number: int, one: Candidate, found: Advised) -> Iterator[str]:
    yield f"{number}. {one.name}"
    if one.prediction is not None:
        for value in (one.prediction.distance, one.prediction.memory, one.prediction.useful, one.prediction.loss):
            yield f"{value:.2f}"
    by = "Theorem 7" if one.conditions.covered_by_theorem else "a symmetry"
    yield by if one.conditions.preserved else "unknown"
    yield "yes" if one.cauchy_by_paths else "no"
    if found.outcomes:
        yield f"{found.outcomes[one.name]:.2f}" if one.name in found.outcomes else ""
    if one.prediction is not None:
        yield one.expected


def _says(found: Advised, ranked: Sequence[Candidate]) -> Iterator[str]:
    best = ranked[0]
    if best.prediction is None:
        yield "Without a trained model and data nothing is predicted: the candidates stand as they run."
        return
    if best.prediction.distance < 1:
        yield f"Negate {best.name}: it {best.says}"
    else:
        yield (
            "No candidate is predicted to be better than to leave the model as it is, or to begin anew. "
            f"The best is {best.name}: it {best.says}"
        )
    trained_on, unseen = found.samples
    yield f"Predicted from {trained_on:,} samples that it was trained on and {unseen:,} others, without any training."
    if len(found.outcomes) < _FEWEST:
        yield "How far such predictions can be trusted is measured in docs/theory.md."
        return
    for name, one in agreements([found]).items():
        yield (
            f"Ranking by {name}: Kendall's tau {one.tau:+.2f} with the measured gaps of {len(found.outcomes)} sets (p "
            f"{tell_p(one.p)} by permutation); its first choice is {one.regret:.2f} points above the best."
        )


def _plane(ranked: Sequence[Candidate]) -> Picture:
    """Memory and use left, a number a candidate, in the order of the table."""
    points = [(one.prediction.memory, one.prediction.useful) for one in ranked if one.prediction]
    with axes_for(
        "What negation would leave", "memory left", "use left", WIDE, ["candidate", "wanted", "untouched", "anew"]
    ) as (
        figure,
        axes,
    ):
        axes.plot(*zip(*points, strict=True), "o", color=LIGHT["c1"], label="candidate", markersize=4)
        for label, place, marker, colour in (
            ("wanted", (0, 1), "*", "c3"),
            ("untouched", (1, 1), "s", "c2"),
            ("anew", (0, 0), "D", "c4"),
        ):
            axes.plot(*place, marker, color=LIGHT[colour], label=label, markersize=6)
        spans = [float(high - low) for low, high in (axes.get_xlim(), axes.get_ylim())]
        for numbers, corner in _numbered(points[:_NUMBERED], (_NEAR[0] * spans[0], _NEAR[1] * spans[1])):
            axes.annotate(numbers, corner, xytext=(4, 3), textcoords="offset points", color=LIGHT["ink"])
        put_legend(figure, axes)
    told = "; ".join(f"{one.name} {x:.2f} and {y:.2f}" for one, (x, y) in zip(ranked, points, strict=True))
    caption = (
        "How much memory of single samples, and how much use, each candidate's negation leaves; numbers are rows of "
        "the table. Best is the upper left corner."
    )
    return Picture("theory-advice", figure, f"Memory and use left: {told}.", caption)


_NUMBERED = 12  # candidates whose number there is room for
_NEAR = 0.06, 0.08  # of the plane's width and height: points with less between them have one label


def _numbered(
    points: Sequence[tuple[float, float]], near: tuple[float, float]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """A label for each point, or for several that are near to one another, and the corner that it stands at."""
    groups: list[list[int]] = []
    for at, (x, y) in enumerate(points):
        for group in groups:
            if any(abs(points[one][0] - x) < near[0] and abs(points[one][1] - y) < near[1] for one in group):
                group.append(at)
                break
        else:
            groups.append([at])
    for group in groups:
        corner = max(points[at][0] for at in group), max(points[at][1] for at in group)
        yield ", ".join(str(at + 1) for at in group), corner
