"""Four hospitals with keys and outboxes on a grid in this process, and the same four without a grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor

from fedunlearn.architecture import Architecture
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.contract import SmallNet
from fedunlearn.deletion.events import Opened
from fedunlearn.deletion.outbox import Outbox, desk
from fedunlearn.deletion.plan import Plan
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.federation import ClientId, Predicate
from fedunlearn.flower.client import client_app
from fedunlearn.flower.local import Hook, LocalGrid
from fedunlearn.flower.site import FlowerSite
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.randomness import generator, stable_seed
from fedunlearn.rounds import fedavg
from fedunlearn.task import Task
from fedunlearn.weights import Weights

NAMES = ("north", "east", "south", "west")
SIZES = dict(zip(NAMES, (20, 21, 22, 23), strict=True))
TRAINING = LocalTraining(SGD(lr=0.05, momentum=0.9, weight_decay=0.0), batch_size=8)
NEVER = Recovered(margin=0.0, flat=0.0)  # stops by chance only, so that recovery ends at its limit
PLAN = Plan(TRAINING, rounds=3, stop=NEVER, most=2, seed=5, pause=0.0, tries=2)


def samples(name: str) -> tuple[Tensor, Tensor]:
    labels = torch.arange(SIZES[name]) % 3
    return torch.randn(len(labels), 1, 6, 6, generator=generator("hospital", name)) + labels.view(-1, 1, 1, 1), labels


def data(context: Context) -> tuple[Tensor, Tensor]:
    return samples(str(context.node_config["name"]))


@dataclass
class Hospitals:
    """A server's folder, and a node's for each hospital."""

    folder: Path
    hook: Hook | None = None
    names: tuple[ClientId, ...] = NAMES
    keys: dict[str, SigningKey] = field(default_factory=dict)
    grid: Any = None
    book: Any = None
    guests: tuple[str, ...] = ()  # further nodes, each with a folder and a key

    def __post_init__(self) -> None:
        for name in ("server", *self.names):
            (self.folder / name).mkdir(exist_ok=True)  # they may have been here before
            path = self.folder / name / "key"
            self.keys[name] = SigningKey.load(path) if path.exists() else SigningKey.make(path, node=name != "server")

    @property
    def register(self) -> Path:
        return self.folder / "server" / "register"

    def outbox(self, name: str) -> Outbox:
        return Outbox(self.folder / name / "outbox")

    def files(self, name: str, scope: str, *, deleted: bool = False) -> str:
        """A hospital files a request; its id."""
        return self.outbox(name).file(scope, "we were asked to", self.keys[name], deleted=deleted).id

    def instances(self, name: str, places: Iterable[int]) -> str:
        """The scope of single samples."""
        path = self.folder / name / "to-forget.txt"
        path.write_text("\n".join(map(str, places)))
        return f"instances:{path}"

    @property
    def desk(self) -> Outbox:
        return desk(self.register)

    def app(self) -> Any:
        def place(name: str) -> Any:
            return lambda context: self.folder / str(context.node_config["name"]) / name

        return client_app(SmallNet, data, outbox=place("outbox"), key=place("key"))

    def service(self, plan: Plan = PLAN, *, keep: bool = False, deadline: float = 20.0, fewest: int = 1) -> Service:
        """A server, as it starts."""
        self.grid = LocalGrid(
            self.app(), [{"name": name} for name in (*self.names, *self.guests)], hook=self.hook, keep=keep
        )
        architecture = Architecture(SmallNet)
        roster = {name: self.keys[name].public.text for name in self.names}
        key = self.keys["server"]
        if Register.exists(self.register):
            self.book = Register.open(self.register, key)
        else:
            about = Service.about(plan, architecture.fresh(plan.seed))
            self.book = Register.create(self.register, key, Opened(roster, key.public.text, about))
        site = FlowerSite(self.grid, architecture, roster, deadline=deadline, fewest=fewest, patience=5)
        return Service(site, self.book, key, architecture, plan)


def twin(names: Iterable[str] = NAMES) -> InProcess:
    """The same hospitals without a grid."""
    return InProcess(SmallNet, [Client.of(name, samples(name)) for name in names], workers=1, device="cpu")


def trained(federation: Any, weights: Weights, first: int, until: int, plan: Plan = PLAN) -> Weights:
    """Ordinary rounds ``first`` to ``until - 1``."""
    rounds = fedavg(federation, weights, plan.training, plan.seed, "train", first)
    for _ in range(first, until):
        weights = next(rounds).after
    return weights


def forgotten(federation: Any, weights: Weights, request: Predicate, number: int = 0, plan: Plan = PLAN) -> Weights:
    """An unlearning and its recovery, to the plan's limit."""
    architecture = Architecture(SmallNet)
    seed = stable_seed(plan.seed, "unlearning", number)
    task = Task.of(federation, weights, request, plan.training, architecture, recovery=plan.recovery, seed=seed)
    for done in plan.method.unlearn(task):
        weights = done.after
    recovery = plan.method.recover(task, weights)
    for _ in range(plan.most):
        weights = next(recovery).after
    return weights
