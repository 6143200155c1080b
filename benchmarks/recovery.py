"""What recovery costs: how close to Retrain, by what was sent: `python benchmarks/recovery.py`.

Three networks, and one where clients differ, three seeds each: the published methods and NotNot with one local epoch
a round (recovery-cnn, -resnet, -vit, -skewed), and some of them with two and half the rounds (-local). A gap at a
budget is that of the last scored model that costs no more: the average gap of the means over seeds, in percentage
points, in brackets the mean of the seeds' own, and the share of the bytes that it had cost where that is less. Beside
it, why a pair of layers recovers sooner: what comes through its negation in the models before the request.

The runs take two hours on two cores; broken off, the same command goes on, and runs that are there are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from measuring import machine, record, table

from fedunlearn.evaluation.rows import ORIGINAL, Row, curves
from fedunlearn.evaluation.scores import Gap, average_gap
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.experimentfile import load, shipped
from fedunlearn.kinds import LAYER_KINDS
from fedunlearn.layers import layers, pairs, select
from fedunlearn.report.report import assemble
from fedunlearn.runner import run
from fedunlearn.subject import Subject, subjects
from fedunlearn.theory.mirror import carried

NETWORKS = {
    "cnn": "a small CNN",
    "resnet": "a small ResNet",
    "vit": "a small ViT",
    "skewed": "a small CNN, clients that differ",
}
KINDS = {"": 1, "-local": 2, "-more": 4}  # local epochs a round
BUDGETS = (0.25, 0.4, 0.5, 1.0)  # of the bytes that NoT sends in all its rounds
NOT = "NoT"


def frontier(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Of each method, its scored models in order: rounds, bytes and FLOPs, gaps, and how much it has recovered."""
    rows = curves(assemble(folder).compared)
    seeds = sorted(rows[REFERENCE])
    retrained = [rows[REFERENCE][seed][-1].scores for seed in seeds]

    def point(models: Sequence[Row]) -> dict[str, Any]:
        gap: Gap = average_gap([row.scores for row in models if row.scores], retrained)  # type: ignore[arg-type]
        return {
            "rounds": models[0].rounds,
            "bytes": fmean(row.bill().traffic.both_ways for row in models),
            "flops": fmean(row.bill().flops for row in models),
            "gap": gap.of_means,
            "gap_per_seed": gap.mean,
            "gaps": [average_gap([row.scores], [own]).mean for row, own in zip(models, retrained, strict=True)],
            "retain": fmean(row.scores.retain for row in models if row.scores),
            "forget": fmean(row.scores.forget for row in models if row.scores),
        }

    return {
        method: [point(models) for models in zip(*(of[seed] for seed in seeds), strict=True) if costs_something(models)]
        for method, of in rows.items()
        if method != ORIGINAL
    }


def costs_something(models: Iterable[Row]) -> bool:
    """Not the model before the request, nor what the server alone has made of it."""
    return all(row.bill().traffic.both_ways for row in models)


def through(subject: Subject) -> dict[str, dict[str, float]]:
    """What comes through negating the first layer and through a pair, at the pair's two layers and at the last."""
    network, x = subject.network(subject.original), subject.retained[0]
    pair = pairs(network)[0]
    (first,) = select(network)
    *_, last = (layer.name for layer in layers(network) if layer.kind in LAYER_KINDS)
    places = [name.removesuffix(".weight") for name in (*pair, last)]
    sets = {str(first): str(first), pair[0]: pair[0], " and ".join(pair): pair}
    return {name: dict(carried(network, chosen, x, places)) for name, chosen in sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    parser.add_argument("--output", type=Path, help="write what was found as JSON")
    options = parser.parse_args()

    found: dict[str, Any] = {"frontier": {}, "carried": {}}
    for network in options.networks:
        of: dict[str, Any] = found["frontier"].setdefault(network, {})
        for kind in (kind for kind in KINDS if f"recovery-{network}{kind}" in shipped()):
            name = f"recovery-{network}{kind}"
            folder = options.runs / name
            for row in run(load(name), folder, cache=options.runs / "cache"):
                if row.scores is not None:
                    print(f"{name}: seed {row.seed}, {row.method}, {row.rounds} rounds")
            of[kind] = frontier(folder)
        seeds = [through(subject) for subject in subjects(options.runs / f"recovery-{network}")]
        found["carried"][network] = {
            layers: {place: fmean(seed[layers][place] for seed in seeds) for place in places}
            for layers, places in seeds[0].items()
        }
    print("\n".join(tables(record(options.output, found)).values()))


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The frontier of each network, and what comes through."""
    told = {f"recovery-{network}": _frontier(of) for network, of in found["frontier"].items()}
    return {**told, "recovery-carried": _carried(found["carried"]), "recovery-machine": machine(found)}


def _frontier(of: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    whole, retrain = of[""][NOT][-1]["bytes"], of[""][REFERENCE][-1]
    budgets = [f"{share:.0%} of NoT's bytes" for share in BUDGETS]
    rows = []
    for kind, points_of in of.items():
        for method, points in points_of.items():
            if method == REFERENCE and kind:
                continue
            cells = [_within(points, share * whole, whole) for share in BUDGETS]
            last = points[-1]
            shares = [f"{last[price] / retrain[price]:.0%}" for price in ("bytes", "flops")]
            rows.append([method, str(KINDS[kind]), *cells, *shares])
    return table(["method", "local epochs", *budgets, "bytes in all", "FLOPs in all"], rows)


def _within(points: Sequence[Mapping[str, Any]], budget: float, whole: float) -> str:
    """The gap of the last model within a budget, and what it had cost if that was less; or nothing.

    Nothing, where the first model costs more, or all was spent before.
    """
    # A step of a few percent before recovery (FCU, PGD) is not to cost a method ten rounds.
    able = [point for point in points if point["bytes"] <= 1.05 * budget]
    if not able or (len(able) == len(points) and points[-1]["bytes"] < 0.9 * budget):
        return "-"
    last = able[-1]
    spent = "" if last["bytes"] >= 0.95 * budget else f", at {last['bytes'] / whole:.0%}"
    return f"{last['gap']:.2f} ({last['gap_per_seed']:.2f}){spent}"


def _carried(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    where = "correlation with what it was: behind the pair's first layer"
    rows = [
        [NETWORKS[network], negated, *(f"{value:+.2f}" for value in places.values())]
        for network, sets in found.items()
        for negated, places in sets.items()
    ]
    return table(["network", "negated", where, "second", "last layer"], rows)


if __name__ == "__main__":
    main()
