"""The federation that an experiment speaks of: clients, their data, the request, and how models of it are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedunlearn.architecture import Architecture
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.sampled import Sampled
from fedunlearn.client import Client, View
from fedunlearn.data import datasets
from fedunlearn.data.treatment import Backdoored
from fedunlearn.dealing import Deal, Partition
from fedunlearn.evaluation.flops import SampleFlops, flops_per_sample
from fedunlearn.evaluation.membership import MIA_SAMPLES
from fedunlearn.evaluation.scores import Scores, score, validate
from fedunlearn.experiment import Data, Experiment, Model
from fedunlearn.federation import ClientId, Federation
from fedunlearn.fingerprints import digest_of, source_of
from fedunlearn.history import History
from fedunlearn.importing import path_of
from fedunlearn.models import build
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import AnyOf, ForgetClient, Rest
from fedunlearn.samples import Samples
from fedunlearn.task import Task
from fedunlearn.weights import Weights

__all__ = ["Setting", "Simulation"]


@dataclass(frozen=True)
class Setting:
    """What all seeds of an experiment have in common.

    Attributes:
        experiment: that is simulated.
        data: that are dealt out.
        architecture: of the network.
        flops: that the network takes for a sample.
        workers: see `InProcess`.
    """

    experiment: Experiment
    data: datasets.DataSet
    architecture: Architecture
    flops: SampleFlops
    workers: int | None = None

    @classmethod
    def of(cls, experiment: Experiment, *, workers: int | None = None, data_dir: Path | None = None) -> Setting:
        """Load the data and look at the network.

        Raises:
            ValueError: data set, network and request do not go together.
        """
        data = datasets.load(experiment.data.name, data_dir, experiment.data.images)
        architecture = Architecture(_Build(experiment.model, data.classes, data.shape))
        try:
            flops = flops_per_sample(architecture.build, data.shape)
        except (ValueError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"{experiment.model.name} does not take inputs of shape {data.shape}: {error}") from error
        return cls(experiment, data, architecture, flops, workers)

    def digests(self) -> dict[str, str]:
        """What data and network are, beyond their names: contents, initial weights, and the user's own code."""
        plan = self.experiment
        return {
            "training data": digest_of(self.data.train),
            "test data": digest_of(self.data.test),
            "network": self.architecture.fresh(0).digest(),
            **{name: source_of(name) for name in (plan.data.name, plan.model.name) if ":" in name},
        }

    def own_methods(self) -> dict[str, str]:
        """Digests of the user's own methods' code."""
        names = [path_of(type(method)) for method in self.experiment.methods]
        return {name: source_of(name) for name in names if not name.startswith("fedunlearn.")}


class Simulation:
    """One seed of a setting.

    Attributes:
        federation: of the clients.
        test: the test samples, as a federation of their own.
        deal: of the samples, before coins were tossed for a shadow.
        attack: those of them that a backdoor is tried on, as the backdoor wants them to be seen; None: there is none.
        proxy: images that no client holds, at the server; None: there are none.
        partition: who holds what.
        training: what a client does in an ordinary round.
        recovery: what it does in a round of recovery.
        left: clients who are gone when the request is answered.

    Raises:
        ValueError: data, partition and request do not go together.
    """

    _TESTS = ("test 0", "test 1")  # two, so that two cores score
    _ATTACKS = ("attack 0", "attack 1")
    _SERVER = "server"

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        plan, data = setting.experiment, setting.data
        tests = _shared_out(self._TESTS, data.test, torch.arange(len(data.test.labels)))
        backdoor = _backdoor(plan.data)
        tests += _shared_out(self._ATTACKS, *backdoor.attack(data.test)) if backdoor else []
        self.deal = deal = Deal.of(plan.data, data, seed if plan.shadow is None else plan.shadow)
        clients = deal.clients()
        if plan.shadow is not None:
            clients = deal.clients(list(deal.mixed(deal.twins(plan.forgotten), seed)))
        server = [Client.of(self._SERVER, data.train, deal.server, validation=0)]
        earlier = Rest(AnyOf(plan.earlier))
        try:
            self.partition = Partition.of(clients, View((earlier, plan.request)), data.classes)
        except IndexError as error:  # an instance that nobody has
            raise ValueError(str(error)) from None
        which = f"request {len(plan.earlier) + 1}" if plan.earlier else "the request"
        if not (meant := sum(self.partition.forget)):
            before = ", or what it means was forgotten before" if plan.earlier else ""
            raise ValueError(
                f"{which} means no training sample of anybody: there are no such clients, samples or class{before}"
            )
        if meant < MIA_SAMPLES:
            raise ValueError(
                f"{which} means {meant} training samples, but the membership attack needs {MIA_SAMPLES}: "
                "forget more of them, or score with functions of your own"
            )
        if not any(len(View((Rest(plan.forgotten),)).of(client).positions(None, "train")) for client in clients):
            raise ValueError(f"{which} leaves nobody's training samples: drop the model instead of unlearning")
        ids = [client.id for client in clients]
        if strangers := sorted(set(plan.left) - set(ids)):
            raise ValueError(f"left: there is no client {', '.join(strangers)}; they are {ids[0]} to {ids[-1]}")
        # Only with its own request is a client gone: before that it takes part.
        self.left = tuple(
            client.id
            for client in clients
            if client.id in plan.left and bool(plan.request(client.id, client.labels).all())
        )
        everybody = InProcess(setting.architecture, [*clients, *tests, *server], workers=setting.workers)
        testing, serving = AnyOf(tuple(map(ForgetClient, self._TESTS))), ForgetClient(self._SERVER)
        attacking = AnyOf(tuple(map(ForgetClient, self._ATTACKS)))
        self.federation = everybody.where(Rest(AnyOf((testing, attacking, serving))))
        self.test = everybody.where(testing)
        self.attack = everybody.where(attacking) if backdoor else None
        self.proxy = everybody.where(serving) if len(deal.server) else None
        self.training = plan.training.program()
        self.recovery = replace(self.training, epochs=plan.recovery.epochs or plan.training.epochs)

    def taking_part(self, federation: Federation) -> Federation:
        """Ours, or a wrapper around it, where only so many clients take part in a round as the experiment says."""
        share = self.setting.experiment.training.participation
        return Sampled(federation, share) if share < 1 else federation

    def task(
        self,
        federation: Federation,
        weights: Weights,
        *,
        history: History | None = None,
        proxy: Federation | None = None,
    ) -> Task:
        """The request on a trained model; ``federation`` and ``proxy`` are ours, or wrappers around them.

        What was asked to be forgotten earlier is not there any more.
        """
        plan = self.setting.experiment
        if plan.earlier:
            federation = federation.where(Rest(AnyOf(plan.earlier)))
        seed = stable_seed(self.seed, "unlearning", *([len(plan.earlier)] if plan.earlier else []))
        return Task.of(
            federation,
            weights,
            plan.request,
            self.training,
            self.setting.architecture,
            recovery=self.recovery,
            seed=seed,
            left=self.left,
            history=history,
            proxy=proxy,
        )

    def validate(self, federation: Federation, weights: Weights) -> float | None:
        """See `fedunlearn.evaluation.scores.validate`; ``federation`` is ours, or a wrapper around it."""
        return validate(self.task(federation, weights).retained, weights, self.seed)

    def score(self, weights: Weights, *, final: bool, validation: float | None) -> Scores:
        """See `fedunlearn.evaluation.scores.score`; of everybody's samples, also of those who have left."""
        plan = self.setting.experiment
        everyone = self.federation.marking(plan.forgotten)
        sets = [self.federation.where(request) for request in (*plan.earlier, plan.request)] if plan.earlier else []
        return score(
            weights, everyone, self.test, self.seed, final=final, validation=validation, sets=sets, attack=self.attack
        )


@dataclass(frozen=True)
class _Build:
    """Builds the network: a class and no lambda, so that workers can be sent it."""

    model: Model
    classes: int
    shape: tuple[int, ...]

    def __call__(self) -> torch.nn.Module:
        return build(self.model.name, self.classes, self.shape, **self.model.options)


def _backdoor(plan: Data) -> Backdoored | None:
    """Of those clients that have one."""
    found = [treatment for treatment in plan.treatment.values() if isinstance(treatment, Backdoored)]
    if len({backdoor.label for backdoor in found}) > 1:
        raise ValueError("data.treatment has backdoors of several labels, but one trigger opens one: give all the same")
    return found[0] if found else None


def _shared_out(names: Sequence[ClientId], samples: Samples, indices: torch.Tensor) -> list[Client]:
    """Samples to be scored, at clients of their own."""
    parts = indices.tensor_split(len(names))
    return [Client.of(name, samples, part, validation=0) for name, part in zip(names, parts, strict=True)]
