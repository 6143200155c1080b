"""What a run's own models give away without shadows: relearning, probes, distances to Retrain, negations turned
back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fedunlearn.atomic import FileError, read_json, write_json
from fedunlearn.audits.certainty import auc
from fedunlearn.audits.distance import disagreement, kolmogorov_smirnov
from fedunlearn.audits.probe import Features, probe
from fedunlearn.audits.relearning import Relearned, relearn
from fedunlearn.audits.reversal import turned_back
from fedunlearn.audits.signals import Confidence
from fedunlearn.backends.in_process import InProcess
from fedunlearn.evaluation.follow import unlearn
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.federation import Turn
from fedunlearn.methods.retrain import Retrain
from fedunlearn.randomness import stable_seed
from fedunlearn.runfolder import RunFolder
from fedunlearn.runner import kept_models
from fedunlearn.shadows import Targets
from fedunlearn.weights import Weights

__all__ = ["AGAIN", "Examined", "Facts", "Probed", "TurnedBack", "examine"]

AGAIN = "Retrain again"
"""A model retrained at another seed: how far two retrained models are from one another."""

REPEATS, STEPS = 3, 200
"""Times that each model relearns, with the batches in another order; and steps of the optimizer that it takes."""


@dataclass(frozen=True)
class Probed:
    """What linear probes find in a layer's features.

    Attributes:
        layer: its name.
        membership: how often the probe is surer of what was to be forgotten than of twins, over all pairs; see `auc`.
        own, twins: accuracy of the probe on either, in [0, 1], fitted on samples that were in no training.
    """

    layer: str
    membership: float
    own: float
    twins: float


@dataclass(frozen=True)
class TurnedBack:
    """A model with its negations turned back.

    Attributes:
        as_before: whether, right after the negation, this is the model before it, bit for bit.
        own, twins, population: accuracy after recovery, in [0, 1].
    """

    as_before: bool
    own: float
    twins: float
    population: float


@dataclass(frozen=True)
class Facts:
    """Of one model. "Own" is what was to be forgotten, twins are samples like it that nobody held.

    Attributes:
        own, twins, population: accuracy, in [0, 1].
        disagreement: share of the samples that it puts into another class than Retrain does: of own, of the
            population.
        distance: largest difference of the distributions of losses on own, its and Retrain's (Kolmogorov, Smirnov).
        probes: layer by layer, as the input flows.
        relearned, relearned_twins: own, and for comparison the twins; a curve a repeat.
        turned_back: where something was negated.
    """

    own: float
    twins: float
    population: float
    disagreement: Mapping[str, float]
    distance: float
    probes: tuple[Probed, ...]
    relearned: tuple[Relearned, ...]
    relearned_twins: tuple[Relearned, ...]
    turned_back: TurnedBack | None = None


@dataclass(frozen=True)
class Examined:
    """Of one seed of a run, model by model: "Original", the methods, and `AGAIN`."""

    seed: int
    models: Mapping[str, Facts]

    def write(self, path: Path) -> None:
        """As JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> Examined:
        """What `write` has written.

        Raises:
            FileError: it is none of ours.
        """
        try:
            return TypeAdapter(cls).validate_python(read_json(path))
        except ValidationError as error:
            raise FileError(
                f"{path} is no examination ({error.errors()[0]['msg']}): remove it, to have it anew"
            ) from None


def examine(home: RunFolder, targets: Targets, path: Path) -> Iterator[str]:
    """Examine the models that a run has kept of one seed, and write down what was found; a name after each model.

    Args:
        home: of the run.
        targets: of the run at that seed.
        path: of the file; what it holds already is not done again.
    """
    seed = targets.simulation.seed
    found = dict(Examined.read(path).models) if path.exists() else {}
    _, *records = home.records(seed)
    if found.keys() >= {AGAIN, *(record.label for record in records if not record.failed)}:
        return  # before any model is loaded
    examiner = _Examiner(targets, home)
    for name in examiner.models:
        if name not in found:
            found[name] = examiner.facts(name)
            Examined(seed, found).write(path)
            yield name


class _Examiner:
    def __init__(self, targets: Targets, home: RunFolder) -> None:
        self.simulation, seed = targets.simulation, targets.simulation.seed
        self.own, self.twins, self.population = targets.forgotten()
        kept = list(kept_models(home, seed))
        self.models = {method: weights for method, moment, weights in kept if moment == "last"}
        self.unlearned = {method: weights for method, moment, weights in kept if moment == "unlearned"}
        self.models[AGAIN] = self._retrained_again()
        self.reference = self._features(self.models[REFERENCE])

    def facts(self, name: str) -> Facts:
        weights = self.models[name]
        features = self._features(weights)
        own, twins, population = features
        theirs, _, their_population = self.reference
        return Facts(
            own=_accuracy(own),
            twins=_accuracy(twins),
            population=_accuracy(population),
            disagreement={
                "own": disagreement(own["predicted"], theirs["predicted"]),
                "population": disagreement(population["predicted"], their_population["predicted"]),
            },
            distance=kolmogorov_smirnov(self._confidence(weights), self._confidence(self.models[REFERENCE])),
            probes=tuple(_probed(layer, *features) for layer in own if layer not in ("labels", "predicted")),
            relearned=self._relearned(self.own, weights),
            relearned_twins=self._relearned(self.twins, weights),
            turned_back=self._turned_back(name) if weights.negations else None,
        )

    def _retrained_again(self) -> Weights:
        simulation = self.simulation
        before = self.models[ORIGINAL]
        task = simulation.task(simulation.taking_part(simulation.federation), before)
        again = dataclasses.replace(task, seed=stable_seed(task.seed, "again"))
        return unlearn(Retrain(), again, simulation.setting.experiment.training.rounds)

    def _relearned(self, samples: InProcess, weights: Weights) -> tuple[Relearned, ...]:
        training = self.simulation.training
        seeds = [stable_seed(self.simulation.seed, "relearning", repeat) for repeat in range(REPEATS)]
        return tuple(relearn(samples, weights, training, seed=seed, steps=STEPS) for seed in seeds)

    def _turned_back(self, name: str) -> TurnedBack:
        network = self.simulation.setting.architecture.template
        restored = turned_back(self.unlearned[name], network)
        accuracies = map(_accuracy, self._features(turned_back(self.models[name], network)))
        return TurnedBack(restored.same_bits(self.models[ORIGINAL]), *accuracies)

    def _features(self, weights: Weights) -> list[dict[str, NDArray[Any]]]:
        return [
            _gathered(samples, weights, Features(), self._turn) for samples in (self.own, self.twins, self.population)
        ]

    def _confidence(self, weights: Weights) -> NDArray[np.float64]:
        return _gathered(self.own, weights, Confidence(), self._turn)["confidence"]

    @property
    def _turn(self) -> Turn:
        return Turn(self.simulation.seed, "evaluate", 0)  # nothing is drawn


def _gathered(
    samples: InProcess, weights: Weights, program: Features | Confidence, turn: Turn
) -> dict[str, NDArray[Any]]:
    replies = [reply.values for _, reply in samples.run(program, weights, turn)]
    return {name: np.concatenate([values[name].numpy() for values in replies]) for name in replies[0]}


def _accuracy(features: Mapping[str, NDArray[Any]]) -> float:
    return float(np.mean(features["predicted"] == features["labels"]))


def _probed(
    layer: str, own: Mapping[str, NDArray[Any]], twins: Mapping[str, NDArray[Any]], known: Mapping[str, NDArray[Any]]
) -> Probed:
    asked = [probe(known[layer], known["labels"], x[layer], x["labels"]) for x in (own, twins)]
    accuracies, sure = zip(*asked, strict=True)
    return Probed(layer, float(auc(*sure)), *accuracies)
