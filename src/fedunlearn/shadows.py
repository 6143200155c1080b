"""Shadows of a run: the same federations, with other samples in them, from which an attacker learns.

At each training sample of a shadow a coin decides whether its client holds that sample or its twin
(`fedunlearn.dealing.Deal.twins`); seeds differ, all else is the run's: the same request, the same methods. So each
sample and each twin was in the training of about half of the shadows, whether it was to be forgotten or to stay, and
which of the two a model has seen is a coin that only the model can tell of.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from fedunlearn.atomic import FileError, atomic_write
from fedunlearn.audits.reversal import turned_back
from fedunlearn.audits.signals import Confidence
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client, View
from fedunlearn.evaluation.membership import MIA_SAMPLES
from fedunlearn.evaluation.rows import Row
from fedunlearn.experiment import Experiment, Keep
from fedunlearn.experimentfile import resolved
from fedunlearn.federation import Turn
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.runfolder import InUseError, RunFolder, differences
from fedunlearn.runner import kept_models, run
from fedunlearn.simulation import Simulation
from fedunlearn.weights import Weights

__all__ = ["Model", "Moment", "Reading", "Readings", "Targets", "read_models", "shadow", "shadow_of"]

_READINGS, _LOCK = "readings.npz", ".audit.lock"
_MOST = 1000  # targets of a kind, and samples of the population

Moment = Literal["unlearned", "last", "turned back"]
"""Of a model: what the unlearning step left; what the method ended with; that, its negations turned back."""


@dataclass(frozen=True)
class Model:
    """Which model: of which method (or of the first training: "Original"), and at which moment."""

    method: str
    moment: Moment


@dataclass(frozen=True, eq=False)
class Reading:
    """What one model says of the targets (`fedunlearn.audits.signals.confidence`), float64.

    Attributes:
        own: of the samples that the run's clients hold, ``(P,)``.
        twin: of the twin of each, ``(P,)``.
        population: of samples that nobody holds in any federation, ``(Z,)``.
    """

    own: NDArray[np.float64]
    twin: NDArray[np.float64]
    population: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Readings:
    """What the models of one federation say of the targets.

    Attributes:
        heads: of each target, whether its twin was held instead of it, ``(P,)``. In the run itself: of none.
        models: a reading each.
    """

    heads: NDArray[np.bool_]
    models: Mapping[Model, Reading]

    def write(self, path: Path) -> None:
        """As NumPy's arrays, whole or not at all."""
        models = [dataclasses.astuple(model) for model in self.models]
        arrays = {
            f"{number}.{kind.name}": getattr(reading, kind.name)
            for number, reading in enumerate(self.models.values())
            for kind in dataclasses.fields(Reading)
        }
        with atomic_write(path) as file:
            np.savez(file, heads=self.heads, models=np.array(json.dumps(models)), **arrays)

    @classmethod
    def read(cls, path: Path) -> Readings:
        """What `write` has written; nothing in the file is executed.

        Raises:
            FileError: it is none of ours.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                models = [Model(*said) for said in json.loads(str(arrays["models"]))]
                kinds = [kind.name for kind in dataclasses.fields(Reading)]
                readings = [Reading(*(arrays[f"{n}.{kind}"] for kind in kinds)) for n in range(len(models))]
                return cls(arrays["heads"], dict(zip(models, readings, strict=True)))
        except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
            raise FileError(f"{path} holds no readings ({error}): remove it, to have them taken anew") from None


@dataclass(frozen=True, eq=False)
class Targets:
    """The samples that attackers ask about, each with its twin, and a population that was in no training.

    Of what is to be forgotten, and of what stays, at most a thousand each, drawn at random.

    Attributes:
        simulation: the run at one seed.
        forget: whether a target is to be forgotten, ``(P,)`` bool.
        client: which holds it, as a position among the run's clients, ``(P,)`` int64, ascending.
        position: of the target among its client's samples, ``(P,)`` int64.
        twins: see `Deal.twins`.
    """

    simulation: Simulation
    forget: Tensor
    client: Tensor
    position: Tensor
    twins: tuple[Tensor, ...]

    @classmethod
    def of(cls, simulation: Simulation) -> Targets:
        """The targets of a run at one seed.

        Raises:
            ValueError: too few samples have a twin.
        """
        deal, plan = simulation.deal, simulation.setting.experiment
        twins = deal.twins(plan.forgotten)
        able = []
        for number, (client, twin) in enumerate(zip(deal.clients(), twins, strict=True)):
            found = (twin >= 0).nonzero().flatten()
            meant = View((plan.forgotten,)).of(client).kept[found]
            able.append(torch.stack([torch.full_like(found, number), found, meant.long()]))
        every = torch.cat(able, 1)
        drawn = [_drawn(every[:, every[2] == meant], deal.seed, meant) for meant in (0, 1)]
        if drawn[1].shape[1] < MIA_SAMPLES:
            raise ValueError(
                f"an attack compares {MIA_SAMPLES} samples or more that are to be forgotten with as many of the same "
                f"classes that nobody holds, but there are {drawn[1].shape[1]}: run it with fewer data.samples, so "
                "that some are left"
            )
        chosen = torch.cat(drawn, 1)
        client, position, forget = chosen[:, chosen[0].argsort(stable=True)]
        return cls(simulation, forget.bool(), client, position, twins)

    def heads(self, seed: int) -> Tensor:
        """Of the shadow with this seed, whether a target's twin was held instead of it, ``(P,)`` bool."""
        mixed = list(self.simulation.deal.mixed(self.twins, seed))
        swapped = [held == twin for held, twin in zip(mixed, self.twins, strict=True)]
        return torch.cat([heads[self.position[self.client == number]] for number, heads in enumerate(swapped)])

    def forgotten(self) -> tuple[InProcess, InProcess, InProcess]:
        """Three federations: the targets that are to be forgotten, at their clients; their twins; the population."""
        own, twins = (self._held(swap, self.forget) for swap in (False, True))
        architecture, workers = self.simulation.setting.architecture, self.simulation.setting.workers
        own_samples, twin_samples, population = (
            InProcess(architecture, clients, workers=workers) for clients in (own, twins, [self._population()])
        )
        return own_samples, twin_samples, population

    @cached_property
    def _samples(self) -> InProcess:
        """All in one federation, the targets, the twins, the population."""
        every = torch.ones_like(self.forget)
        clients = [
            dataclasses.replace(client, id=f"{kind} {client.id}")
            for kind, swap in (("own", False), ("twin", True))
            for client in self._held(swap, every)
        ]
        setting = self.simulation.setting
        return InProcess(setting.architecture, [*clients, self._population()], workers=setting.workers)

    def _held(self, swap: bool, which: Tensor) -> list[Client]:
        """Some of the targets, or of their twins, at the clients that hold the targets."""
        deal = self.simulation.deal
        held = [
            torch.where(twin >= 0, twin, own) if swap else own for own, twin in zip(deal.held, self.twins, strict=True)
        ]
        return [
            Client.of(client.id, client.samples, client.indices[positions], validation=0)
            for number, client in enumerate(deal.clients(held))
            if len(positions := self.position[which & (self.client == number)])
        ]

    def _population(self) -> Client:
        test = self.simulation.setting.data.test
        drawn = torch.randperm(len(test.labels), generator=generator(self.simulation.deal.seed, "population"))
        return Client.of("population", test, drawn[:_MOST], validation=0)

    def read(self, weights: Weights) -> Reading:
        """What a model says of the targets.

        Raises:
            ClientError: it has diverged.
        """
        turn = Turn(self.simulation.deal.seed, "evaluate", 0)  # nothing is drawn
        found: dict[str, list[NDArray[np.float64]]] = {}
        for client, reply in self._samples.run(Confidence(), weights, turn):
            found.setdefault(client.partition(" ")[0], []).append(reply.values["confidence"].numpy())
        return Reading(**{kind: np.concatenate(values) for kind, values in found.items()})


def shadow_of(experiment: Experiment, seed: int, number: int) -> Experiment:
    """The experiment of a shadow.

    Args:
        experiment: of the run.
        seed: of the run, whose data are held but for the coins.
        number: of the shadow.
    """
    return dataclasses.replace(
        experiment,
        title=f"Shadow {number} of: {experiment.title}",
        shadow=seed,
        seeds=(stable_seed(seed, "shadow", number),),
        keep=Keep(),
    )


def shadow(
    experiment: Experiment,
    number: int,
    folder: Path,
    *,
    targets: Targets,
    data_dir: Path | None = None,
    command: str = "",
) -> Generator[Row, None, Readings]:
    """Train a shadow in a folder and read its models, or go on with it; a row after every round.

    What the models say is kept; the models are not, for there are many.

    Args:
        experiment, number: see `shadow_of`.
        folder: of the shadow's run.
        targets: of the run, at the seed whose data the shadow has.
        data_dir, command: see `fedunlearn.runner.run`.

    Raises:
        InUseError: another process is at work on it.
        FileError: what is there is of another experiment, or none of ours.
    """
    plan = shadow_of(experiment, targets.simulation.seed, number)
    (seed,) = plan.seeds
    home, done, workers = RunFolder(folder), folder / _READINGS, targets.simulation.setting.workers
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK).acquire(timeout=0):  # until the models have been read, not just trained
            if done.exists():
                if differ := sorted(differences([home.experiment, resolved(plan)])):
                    raise FileError(f"{folder} is a shadow of another experiment ({', '.join(differ)}): remove it")
                return Readings.read(done)
            yield from run(plan, folder, workers=workers, data_dir=data_dir, command=command)
            found = Readings(targets.heads(seed).numpy(), read_models(home, seed, targets))
            found.write(done)
            shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)
            return found
    except Timeout:
        raise InUseError(f"{folder} is being trained by another process") from None


def read_models(home: RunFolder, seed: int, targets: Targets) -> dict[Model, Reading]:
    """What the models that a run has kept say of the targets."""
    network = targets.simulation.setting.architecture.template
    found = {}
    for method, moment, weights in kept_models(home, seed):
        found[Model(method, moment)] = targets.read(weights)
        if weights.negations and moment == "last":
            found[Model(method, "turned back")] = targets.read(turned_back(weights, network))
    return found


def _drawn(targets: Tensor, seed: int, kind: int) -> Tensor:
    """At most so many of the columns."""
    rng = generator(seed, "targets", kind)
    return targets[:, torch.randperm(targets.shape[1], generator=rng)[:_MOST].sort().values]
