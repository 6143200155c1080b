"""The theory's diagnoses of a run, seed by seed: what each looks at, and how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from fedunlearn.atomic import FileError
from fedunlearn.backends.in_process import best_device
from fedunlearn.data.datasets import DataSet
from fedunlearn.environment import determinants
from fedunlearn.evaluation.scores import Scores, average_gap
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.findings import FOLDER, Found, plain, read_found
from fedunlearn.layers import FIRST as FIRST_LAYER
from fedunlearn.layers import BatchNormPolicy, Selection, plan, select
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, Constant, LocalTraining
from fedunlearn.randomness import generator
from fedunlearn.runfolder import RunFolder
from fedunlearn.samples import Samples as RootSamples
from fedunlearn.samples import batch_count
from fedunlearn.subject import FIRST, LAST, Subject, subjects
from fedunlearn.theory.activations import Similarity, compare
from fedunlearn.theory.advice import Advice, Candidate, advise
from fedunlearn.theory.bound import Bound, bound_along, loss_gap
from fedunlearn.theory.gradient_spectrum import GradientSpectrum, NoVariance, gradient_spectrum
from fedunlearn.theory.grafting import LayerGap, graft, graftable, layer_gaps, negation_gaps
from fedunlearn.theory.jacobian import JacobianControl, jacobian_control
from fedunlearn.theory.losses import Samples, double_backward
from fedunlearn.theory.optimality import Conditions, conditions, lwo_norm
from fedunlearn.theory.poset import LayerPoset
from fedunlearn.weights import Weights

__all__ = ["DIAGNOSES", "Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Optimality:
    """Theorem 7's conditions on negated layers, and how far these are from layers that are known to be optimal.

    Attributes:
        conditions: of the theorem.
        norms: of each negated layer, Definition 7's norm after the negation, as a share of the layer's own norm, to the
            retrained model; and the same were the sign free, as before the negation. None of a network alone.
    """

    conditions: Conditions
    norms: Mapping[str, tuple[float, float]]


def optimality(subject: Subject, layers: tuple[str, ...] = ()) -> Optimality:
    """Of a run's negated layers; ``layers``: these instead."""
    network = subject.network(subject.original)
    selection: Selection = layers or next((method.layers for method in subject.negating.values()), FIRST_LAYER)
    retrained = subject.models[REFERENCE, LAST]  # the model before the request is at distance 0 from itself
    norms = {}
    for part in select(network, selection):
        theta, optimum = (weights.parameters[part.name] for weights in (subject.original, retrained))
        own = float(theta.double().norm())
        norms[part.name] = tuple(lwo_norm(-theta, [optimum], sign_is_free=free) / own for free in (False, True))
    return Optimality(conditions(network, selection, subject.example), norms)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Similarities:
    """CKA of each model to the model before the request, by label and position (Figures 3 and 7)."""

    models: Mapping[str, Mapping[str, Similarity]]


def similarities(subject: Subject) -> Similarities:
    """The models of Figures 3 and 7, on test samples, in eval mode: BatchNorm has each model's own running statistics.

    Of each method what its unlearning step left (where that is not the model before the request) and what it ended
    with; and two networks with all layers drawn anew but the negated one, which is as it was, or negated.
    """
    original = subject.network(subject.original)
    shown = {
        f"{label}, {moment}": weights
        for moment in (FIRST, LAST)
        for label in subject.labels
        if not (weights := subject.models[label, moment]).same_bits(subject.original)
    }
    for label, method in list(subject.negating.items())[:1]:
        names = {part.name for part in plan(original, method.layers, include_bias=method.include_bias).parts}
        layers = [layer for layer, owned in graftable(original).items() if names & set(owned)]
        for told, source in (("kept", subject.original), ("negated", subject.models[label, FIRST])):
            parents = {"rest": subject.fresh("rest"), "layer": source}
            shown[f"first layer {told}, rest drawn anew"] = graft(parents, dict.fromkeys(layers, "layer"), original)
    x = subject.test[0][:_ALIKE]
    return Similarities({label: compare(original, subject.network(weights), x) for label, weights in shown.items()})


_ALIKE = 1000
"""Samples, whose Gram matrices are compared."""


@dataclass(frozen=True)
class Gaps:
    """What grafts of one layer lose (Definitions 3 and 4)."""

    gaps: tuple[LayerGap, ...]


def gaps(subject: Subject) -> Gaps:
    """Each layer of the retrained model in the original, and the other way round; each layer negated; on what stays."""
    network, (x, y) = subject.network(subject.original), subject.retained
    models = {"Original": subject.original, REFERENCE: subject.models[REFERENCE, LAST]}
    return Gaps((*layer_gaps(network, models, x, y), *negation_gaps(network, subject.original, x, y)))


def control(subject: Subject, layers: tuple[str, ...] = ()) -> JacobianControl:
    """Before and after the negation of layers, on what stays (Theorems 3 and 6).

    Args:
        subject: of the run.
        layers: to negate; none: those that the first method which negates does.

    Raises:
        ValueError: no method negates, and no layer is named.
    """
    network, (x, y) = subject.network(subject.original), subject.retained
    method = NoT(layers=layers) if layers else next(iter(subject.negating.values()), None)
    if method is None:
        raise ValueError("no method of this run negates a layer: name some with --layer")
    return jacobian_control(
        network,
        method.layers,
        x[:_JACOBIANS],
        y[:_JACOBIANS],
        seed=subject.seed,
        order=LayerPoset.of(network, subject.example).less,
        include_bias=method.include_bias,
        batchnorm="leave" if method.batchnorm == "leave" else "negate_mean",
    )


_JACOBIANS = 300
"""Samples, each of which takes as many passes as the network has outputs."""


@dataclass(frozen=True)
class Spectra:
    """The spectrum of the gradients' covariance at the start of each method's recovery, by label (Figure 8).

    Attributes:
        methods: of each.
        silent: of those that have none, why.
    """

    methods: Mapping[str, GradientSpectrum]
    silent: Mapping[str, str] = field(default_factory=dict)


def spectra(subject: Subject) -> Spectra:
    """At what each method's unlearning step left, on what stays, a gradient a sample.

    A minibatch's covariance is that of samples over its size, so the spectra have one shape. Minibatches drawn again
    and again from a few hundred samples, as the paper's from its thousands, would show these samples' own spectrum,
    which the inversion could not tell from that of the distribution behind them.
    """
    x, y = subject.retained
    sizes = {name: one.numel() for name, one in subject.network(subject.original).named_parameters()}
    block = next((glob for glob in _FIRST_BLOCKS if any(fnmatchcase(name, glob) for name in sizes)), None)
    elements = sum(size for name, size in sizes.items() if fnmatchcase(name, block or "*"))
    found: dict[str, GradientSpectrum] = {}
    silent: dict[str, str] = {}
    for label in subject.labels:
        try:
            found[label] = gradient_spectrum(
                subject.network(subject.models[label, FIRST]),
                x,
                y,
                subset_size=min(_SUBSET, elements),
                subsets=_SUBSETS,
                batches=len(y),
                batch_size=1,
                parameters=[block] if block else None,
                seed=subject.seed,
            )
        except NoVariance as error:  # torchvision's ViT begins with a head of zeros, through which no gradient comes
            silent[label] = str(error)
    if not found:
        raise ValueError(next(iter(silent.values()), "the run has no method whose gradients could be looked at"))
    return Spectra(found, silent)


_FIRST_BLOCKS = ("layer1.0.*", "encoder.layers.encoder_layer_0.*")
"""Of a ResNet and of a ViT, which the paper looks at alone; of other networks it looks at all layers."""

_SUBSET, _SUBSETS = 1000, 20
"""Coordinates in a subset, and subsets.

The paper has 2000, of which fewer than a thousand gradients would not resolve the shape; and 100 subsets, but a curve
over 20 of them differs by less than the 10 % and 90 % quantiles do.
"""


@dataclass(frozen=True)
class Advised:
    """Layer sets that might be negated, and what came of those that the run's methods negate.

    Attributes:
        candidates: by name.
        depth: of each, how many layers run before its first one.
        outcomes: of each that a method of the run negates, weights alone, the average gap to Retrain in percentage
            points, mean over all scored rounds of recovery: it is large for what forgets too little, and for what
            recovers late.
        samples: see `Advice`.
    """

    candidates: Mapping[str, Candidate]
    depth: Mapping[str, int]
    outcomes: Mapping[str, float]
    samples: tuple[int, int]

    def rules(self) -> dict[str, list[float]]:
        """The adviser's score and two simple ones', of each set with an outcome; the smallest is the best.

        Of sets that begin with the same layer, the smaller one is first: the paper negates the first layer alone.
        """
        names = [name for name in self.candidates if name in self.outcomes]
        known = [(self.candidates[name].prediction, self.depth[name]) for name in names]
        sizes = [len(self.candidates[name].layers) for name in names]
        return {
            "the adviser": [found.distance for found, _ in known if found],
            "the first layer first": [depth + 0.01 * size for (_, depth), size in zip(known, sizes, strict=True)],
            "the largest loss after negation first": [-found.loss for found, _ in known if found],
        }

    def came(self) -> list[float]:
        """The outcomes, in the order of `rules`."""
        return [self.outcomes[name] for name in self.candidates if name in self.outcomes]


def advised(subject: Subject, sets: tuple[tuple[str, ...], ...] = ()) -> Advised:
    """Of the sets that the run's methods negate, if these are several, else of all single layers and consecutive pairs.

    Args:
        subject: of the run.
        sets: these instead.

    Raises:
        ValueError: see `fedunlearn.theory.advice.advise`.
    """
    network = subject.network(subject.original)
    negated = _negated(subject, network)
    found = advise(
        network,
        subject.example,
        sets=sets or (tuple(negated) if len(negated) > 1 else ()),
        fresh=subject.network(subject.fresh("advice")),
        trained_on=subject.retained,
        unseen=subject.test,
        seed=subject.seed,
    )
    gaps = gaps_on_the_way(subject.home, subject.seed)
    outcomes = {one.name: gaps[negated[one.layers]] for one in found.candidates if one.layers in negated}
    return _advised(network, subject.example, found, outcomes)


def _negated(subject: Subject, network: nn.Module) -> dict[tuple[str, ...], str]:
    """The sets of whole layers that methods negate just as the adviser does, each with the first such method.

    Others, such as rows of a layer, or a weight together with its bias, are another perturbation, with another outcome.
    """
    poset = LayerPoset.of(network, subject.example)
    found: dict[tuple[str, ...], str] = {}
    for label, method in subject.negating.items():
        how: BatchNormPolicy = "negate_mean" if method.batchnorm == "negate_mean" else "leave"
        theirs = plan(network, method.layers, include_bias=method.include_bias, batchnorm=how)
        with suppress(ValueError):  # it is no set of layers
            layers = poset.select([part.name for part in theirs.parts])
            if plan(network, layers) == theirs:
                found.setdefault(layers, label)
    return found


def advised_alone(
    model: nn.Module,
    example: Tensor | None,
    sets: tuple[tuple[str, ...], ...] = (),
    fresh: nn.Module | None = None,
    data: DataSet | None = None,
    most: int = 2000,
) -> Advised:
    """Of a network without a run.

    Args:
        model: the network; trained, where there are data.
        example: an input of two samples; None: taken from the data.
        sets: of layers; none: all single ones and consecutive pairs.
        fresh: the same network, newly drawn.
        data: whose training samples it was trained on, and whose test samples it was not.
        most: samples of either kind.
    """
    trained_on, unseen = (_some(samples, most) for samples in (data.train, data.test)) if data else (None, None)
    if unseen is not None:
        example = unseen[0][:2]
    assert example is not None
    found = advise(model, example, sets=sets, fresh=fresh, trained_on=trained_on, unseen=unseen)
    return _advised(model, example, found, {})


def _some(samples: RootSamples, most: int) -> Samples:
    chosen = torch.randperm(len(samples.labels), generator=generator("advice", len(samples.labels)))[:most]
    return samples.inputs(chosen, None, best_device()), samples.labels[chosen].to(best_device())


def _advised(model: nn.Module, example: Tensor, found: Advice, outcomes: Mapping[str, float]) -> Advised:
    poset = LayerPoset.of(model, example)
    places = {one.name: min(map(poset.layers.index, poset.select(one.layers))) for one in found.candidates}
    return Advised({one.name: one for one in found.candidates}, places, outcomes, found.samples)


def gaps_on_the_way(home: RunFolder, seed: int) -> dict[str, float]:
    """Each method's average gap to Retrain's last model, mean over the scored rounds of its recovery."""
    rows = [row for record in home.records(seed) if not record.failed for row in record.rows]
    scored = [(row.method, row.scores) for row in rows if row.phase == "recover" and row.scores is not None]
    along: dict[str, list[Scores]] = {}
    for method, scores in scored:
        along.setdefault(method, []).append(scores)
    target = along[REFERENCE][-1]
    return {
        method: fmean(average_gap([scores], [target]).of_means for scores in several)
        for method, several in along.items()
    }


@dataclass(frozen=True)
class Bounds:
    """The least time that unlearning takes, by method (Theorem 5, Table 3).

    Attributes:
        bounds: by label; of those that go on from the model before the request.
        measured: time until the gap between what stays and what goes had come as far as that of Retrain; None where it
            had not at the last model that was kept.
        flops: of one unit of time.
    """

    bounds: Mapping[str, Bound]
    measured: Mapping[str, float | None]
    flops: float


def bounds(subject: Subject) -> Bounds:
    """Along each method's kept models, at 0 and at rounds that about double.

    Time is learning rate times steps, divided by 1 - momentum where there is momentum; a step is one batch at each
    client that takes part.

    Raises:
        ValueError: the run kept no model on the way, does not train by gradient descent with one learning rate, or not
            all samples that stay are looked at.
    """
    training, held = subject.simulation.recovery, _stay(subject)
    rate, steps = _pace(training, held)
    clients = ceil(round(subject.plan.training.participation * len(held), 9))  # as `backends.sampled` has it
    if len(subject.retained[1]) < sum(held):
        raise ValueError(
            f"the noise of minibatches is that of drawing from all {sum(held):,} samples that stay: give --samples "
            f"{sum(held)} or more"
        )
    paths = {label: _doubling(subject.path(label)) for label in subject.labels if label != REFERENCE}
    retrained, best = subject.models[REFERENCE, LAST], longest(subject)  # after what can fail at once
    target = _gap(subject, retrained)
    found: dict[str, Bound] = {}
    measured: dict[str, float | None] = {}
    for label, way in paths.items():
        path = list(_until_reached(way, subject, target))
        found[label] = bound_along(
            ((rounds * steps * rate, subject.network(weights)) for rounds, weights in path),
            subject.network(retrained),
            subject.network(best),
            subject.retained,
            subject.forgotten,
            lr=rate,
            draws=_DRAWS,
            batch_size=clients * training.batch_size,
            curvature=double_backward,
            seed=subject.seed,
        )
        measured[label] = reached(found[label])
    sample = subject.simulation.setting.flops
    per_step = clients * training.batch_size * (sample.forward + sample.backward)
    return Bounds(found, measured, per_step / rate)


def _pace(training: LocalTraining, held: Sequence[int]) -> tuple[float, float]:
    """How far a step goes in the long run, by its learning rate and momentum, and the steps of a round.

    Args:
        training: of a client.
        held: samples of each client.

    Raises:
        ValueError: it is not gradient descent, or there is not one learning rate.
    """
    optimizer = training.optimizer
    if not isinstance(optimizer, SGD):
        raise ValueError(
            f"the bound is of gradient descent, whose steps are as long as its gradients, and not of "
            f"{type(optimizer).__name__}: run it with training.optimizer SGD"
        )
    if not isinstance(training.schedule, Constant):
        raise ValueError("a bound's time has one learning rate: run it with training.schedule Constant")
    rate = optimizer.lr / (1 - optimizer.momentum)
    return rate, fmean(ceil(training.epochs * batch_count(samples, training.batch_size)) for samples in held)


def longest(subject: Subject) -> Weights:
    """Retrain, trained for twice as long: its loss stands for the least there is (eq. 86)."""
    simulation = subject.simulation
    task = simulation.task(simulation.taking_part(simulation.federation), subject.original)
    rounds = subject.plan.training.rounds
    *_, last = islice(Retrain().recover(task, subject.models[REFERENCE, LAST], rounds), rounds)
    return last.after


def _until_reached(
    path: Sequence[tuple[int, Weights]], subject: Subject, target: float
) -> Iterator[tuple[int, Weights]]:
    """A path up to the model whose gap first is as far from the first one's as ``target`` is; else all of it.

    The terms of noise are integrals to the moment of unlearning. A way has two models at least, also where the first
    one's gap is that of the target.
    """
    first, *others = path
    yield first
    start = _gap(subject, first[1])
    for rounds, weights in others:
        yield rounds, weights
        if (_gap(subject, weights) - start) * (target - start) >= (target - start) ** 2:
            return


def _gap(subject: Subject, weights: Weights) -> float:
    return loss_gap(subject.network(weights), subject.retained, subject.forgotten)


def reached(bound: Bound) -> float | None:
    """When the gap between what stays and what goes first was as far from its start as Retrain's is; None: never.

    At a checkpoint, so up to the one before it too late.
    """
    way = (1 - bound.epsilon) * (bound.gap_retrained - bound.gap_start)
    came = (one.time for one in bound.checkpoints if (one.gap - bound.gap_start) * way >= way * way)
    return next(came, None)


_DRAWS = 12
"""Of minibatches at each model on the way, for the terms of noise, which cost most."""


def _doubling(path: Sequence[tuple[int, Weights]]) -> list[tuple[int, Weights]]:
    """Of a path's models the first, the last, and those between at rounds that about double."""
    if len(path) < _FEWEST_ON_THE_WAY:
        raise ValueError("this run has kept no models on the way: run it with keep.every, 2 say")
    chosen = [path[0]]
    for one in path[1:]:
        if one[0] >= 2 * chosen[-1][0] or one is path[-1]:
            chosen.append(one)
    return chosen


_FEWEST_ON_THE_WAY = 4


def _stay(subject: Subject) -> list[int]:
    """Training samples that stay, of each client that has any."""
    partition = subject.simulation.partition
    left = [sum(held) - gone for held, gone in zip(partition.classes, partition.forget, strict=True)]
    return [number for number in left if number]


@dataclass(frozen=True)
class Diagnosis:
    """One of them.

    Attributes:
        name: as the command line has it.
        kind: of its results.
        of: what it finds of a `Subject`, and perhaps of some options.
    """

    name: str
    kind: type[Any]
    of: Callable[..., Any]


DIAGNOSES: Mapping[str, Diagnosis] = {
    one.name: one
    for one in (
        Diagnosis("optimality", Optimality, optimality),
        Diagnosis("cka", Similarities, similarities),
        Diagnosis("coadaptation", Gaps, gaps),
        Diagnosis("jacobian", JacobianControl, control),
        Diagnosis("spectrum", Spectra, spectra),
        Diagnosis("bound", Bounds, bounds),
        Diagnosis("advice", Advised, advised),
    )
}


def diagnose(
    name: str,
    run: Path,
    *,
    seeds: tuple[int, ...] = (),
    most: int = 2000,
    data_dir: Path | None = None,
    command: str = "",
    **options: Any,
) -> Generator[int, None, Found[Any]]:
    """Look at a run, seed by seed; each seed after it was looked at.

    What was found is kept after each seed, so that a diagnosis that was broken off goes on.

    Args:
        name: of the diagnosis.
        run, seeds, most, data_dir: see `fedunlearn.subject.subjects`.
        command: that asked for it.
        **options: of this diagnosis.

    Returns:
        What was found.

    Raises:
        FolderError: see `fedunlearn.subject.subjects`.
        ValueError: the run has nothing that this diagnosis looks at.
    """
    decides = {"samples": most, **options, **determinants(best_device())}
    path = run / FOLDER / f"{name}.json"
    found: Found[Any] = Found(name, "", command, (), (), plain(decides))
    with suppress(FileError):
        if path.exists() and (before := read_found(path, DIAGNOSES[name].kind)).decides == found.decides:
            found = before  # of another code, say, or of other samples, it is done anew
    known = dict(zip(found.seeds, found.results, strict=True))
    asked = []
    for subject in subjects(run, most=most, seeds=seeds, data_dir=data_dir):
        asked.append(subject.seed)
        found = replace(found, about=subject.plan.title, command=command)
        if subject.seed not in known:
            known[subject.seed] = DIAGNOSES[name].of(subject, **options)
            found = replace(found, seeds=tuple(known), results=tuple(known.values()))
            found.write(run)  # with those of seeds that are not asked for now: they took as long
        yield subject.seed
    return replace(found, seeds=tuple(asked), results=tuple(known[seed] for seed in asked))
