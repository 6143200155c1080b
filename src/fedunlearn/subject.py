"""A run's models at one seed, and samples of its clients, as the theory's diagnoses look at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.federation import ClientContext, Federation, Part, Reply, Turn
from fedunlearn.methods.negation import NoT
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.requests import Rest
from fedunlearn.runfolder import FolderError, RunFolder, runs_in
from fedunlearn.runner import kept_models, kept_on_the_way
from fedunlearn.simulation import Setting, Simulation
from fedunlearn.theory.losses import Samples
from fedunlearn.weights import Weights

__all__ = ["FIRST", "LAST", "Inputs", "Subject", "complete_seeds", "subjects"]

FIRST, LAST = "first", "last"
"""Moments of a model: what the unlearning step left, and what recovery ended with."""


@dataclass(frozen=True)
class Inputs:
    """A client's samples as the network sees them at test time.

    A program that gives the data themselves away: it serves where they are at hand, in a simulation.

    Attributes:
        part: of the client's samples.
    """

    part: Part = "train"

    def __call__(self, context: ClientContext) -> Reply:
        """See `Program`."""
        batches = list(context.batches(0, 500, part=self.part, train=False))
        if not batches:
            return Reply()
        values = {"x": torch.cat([batch.x.cpu() for batch in batches]), "y": torch.cat([b.y.cpu() for b in batches])}
        return Reply(None, len(values["y"]), values=values)


@dataclass(frozen=True, eq=False)
class Subject:
    """One complete seed of a run.

    Attributes:
        plan: the run's experiment.
        home: the run's folder.
        simulation: of the seed.
        models: by method and moment; of the model before the request there is the last alone. A method that diverged
            at one of the seeds is in none of them, as in the run's tables.
        most: of the samples of a kind, so many at most, drawn at random.
    """

    plan: Experiment
    home: RunFolder
    simulation: Simulation
    models: Mapping[tuple[str, str], Weights]
    most: int

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.simulation.seed

    @property
    def original(self) -> Weights:
        """The model before the request."""
        return self.models[ORIGINAL, LAST]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Of the methods that came to an end, as in the run's tables."""
        return tuple(dict.fromkeys(label for label, _ in self.models if label != ORIGINAL))

    @property
    def negating(self) -> Mapping[str, NoT]:
        """The methods that negate, by label."""
        pairs = zip(self.plan.labels, self.plan.methods, strict=True)
        return {label: one for label, one in pairs if isinstance(one, NoT) and label in self.labels}

    def network(self, weights: Weights) -> nn.Module:
        """A network of its own with these weights, in eval mode, on the device that computes."""
        return self.simulation.setting.architecture.network(weights, self._device).eval()

    def fresh(self, *purpose: object) -> Weights:
        """Newly initialised weights."""
        return self.simulation.setting.architecture.fresh(stable_seed(self.seed, "theory", *purpose))

    def path(self, label: str) -> list[tuple[int, Weights]]:
        """A method's models on the way, by round of recovery, from what the unlearning step left to the last."""
        return [(0, self.models[label, FIRST]), *kept_on_the_way(self.home, self.seed, label)]

    @cached_property
    def retained(self) -> Samples:
        """Training samples that stay."""
        return self._drawn(self.simulation.federation.where(Rest(self.plan.forgotten)), "retained")

    @cached_property
    def forgotten(self) -> Samples:
        """Training samples that are to be forgotten."""
        return self._drawn(self.simulation.federation.where(self.plan.forgotten), "forgotten")

    @cached_property
    def test(self) -> Samples:
        """Test samples."""
        return self._drawn(self.simulation.test, "test")

    @cached_property
    def example(self) -> Tensor:
        """Two inputs, to look at the network with."""
        return self.retained[0][:2]

    @property
    def _device(self) -> torch.device:
        from fedunlearn.backends.in_process import best_device

        return best_device()

    def _drawn(self, federation: Federation, kind: str) -> Samples:
        turn = Turn(self.seed, "evaluate", 0)  # nothing is drawn
        found = [reply.values for _, reply in federation.run(Inputs(), self.original, turn) if reply.values]
        x, y = (torch.cat([values[name] for values in found]) for name in ("x", "y"))
        rng = generator(stable_seed(self.seed, "theory", kind))
        chosen = torch.randperm(len(y), generator=rng)[: self.most]
        laid_out = self.simulation.setting.architecture.laid_out(x[chosen].to(self._device))
        return laid_out, y[chosen].to(self._device)


def subjects(
    folder: Path, *, most: int = 2000, seeds: tuple[int, ...] = (), data_dir: Path | None = None
) -> Iterator[Subject]:
    """The complete seeds of a run, one after the other.

    Args:
        folder: of the run.
        most: samples of a kind that are looked at.
        seeds: of the run; none: all that are complete.
        data_dir: see `fedunlearn.data.datasets.load`.

    Raises:
        FolderError: see `complete_seeds`; or the run was with other data.
    """
    complete = complete_seeds(folder, seeds)
    home, plan = RunFolder(folder), load(folder / "experiment.toml")
    lost = {record.label for seed in complete for record in home.records(seed) if record.failed}
    setting = Setting.of(plan, data_dir=data_dir)
    _require_same(home, setting)
    for seed in complete:
        models = {
            (label, FIRST if moment == "unlearned" else LAST): weights
            for label, moment, weights in kept_models(home, seed)
            if label not in lost
        }
        yield Subject(plan, home, Simulation(setting, seed), models, most)


def _require_same(home: RunFolder, setting: Setting) -> None:
    """Else the samples would be others than those that its models were trained on."""
    then = home.sessions[-1]["decides"] if home.sessions else {}
    if other := [name for name, digest in setting.digests().items() if then.get(name, digest) != digest]:
        raise FolderError(
            f"{home.path} was run with other {', '.join(other)} than there is now: look at it where its data are"
        )


def complete_seeds(folder: Path, seeds: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The seeds of a run that can be looked at.

    Args:
        folder: of the run.
        seeds: that are asked for; none: all that are complete.

    Raises:
        FolderError: it is no run's folder, holds several runs, or has kept no models; or a seed that is asked for is
            not of the run or not complete, or none is.
    """
    home = RunFolder(folder)
    if [folder] != (several := runs_in(folder)):
        raise FolderError(f"{folder} holds the runs of several requests: take {several[0]}")
    home.experiment  # noqa: B018 - which raises where this is no run's folder
    plan = load(folder / "experiment.toml")
    if plan.shadow is not None:
        raise FolderError(f"{folder} is a shadow, made for an audit, which keeps no models: take the run itself")
    if strangers := [seed for seed in seeds if seed not in plan.seeds]:
        raise FolderError(f"{folder} has no seed {strangers[0]}: take one of {', '.join(map(str, plan.seeds))}")
    if not (plan.keep.first and plan.keep.last):
        raise FolderError(
            "a diagnosis looks at the models that a run has kept: run it with keep.first and keep.last true"
        )
    complete = tuple(seed for seed in plan.seeds if home.complete(plan, seed))
    if waiting := [seed for seed in seeds if seed not in complete]:
        raise FolderError(f"seed {waiting[0]} of {folder} is not complete: let the run go on, by the same command")
    if not complete:
        raise FolderError(f"no seed of {folder} is complete: let the run go on, by the same command")
    return tuple(seed for seed in complete if seed in (seeds or complete))
