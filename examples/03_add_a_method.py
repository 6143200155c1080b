"""A method of your own, with a program of its own at the clients, in one file; proven, then compared.

Run: python examples/03_add_a_method.py
In a file that can be imported, say my_method.py, an experiment names it as { kind = "my_method:Muddle", passes = 2 }.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

from fedunlearn import (
    SGD,
    Client,
    FineTune,
    ForgetClass,
    ForgetClient,
    InProcess,
    LocalTraining,
    Retrain,
    Task,
    train,
    unlearn,
)
from fedunlearn.contract import CHECKS, Case, small_task
from fedunlearn.federation import ClientContext, Reply, Traffic
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import Evaluate
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method
from fedunlearn.weights import Weights


@dataclass(frozen=True)
class TrainOnUniform:
    """What a client that leaves does: train the model to be undecided about its samples. Labels are not read."""

    lr: float
    passes: int
    batch_size: int

    def __call__(self, context: ClientContext) -> Reply:
        model = context.model.train()
        optimizer = torch.optim.SGD(model.parameters(), self.lr)
        for epoch in range(self.passes):
            for batch in context.batches(epoch, self.batch_size):
                optimizer.zero_grad()
                (-model(batch.x).log_softmax(1).mean()).backward()
                optimizer.step()
        return Reply(Weights.of(model), context.samples())


@dataclass(frozen=True)
class Muddle(Method):
    """Those who leave make the model undecided about their data, once; those who stay repair it.

    Attributes:
        lr: of the clients that leave.
        passes: over their data.
    """

    lr: float = 0.05
    passes: int = 1
    needs = Needs(forget_data="inputs", target_online=True)

    def cost(self, size: Size) -> Traffic:
        return size.round(size.forgotten, LocalTraining(epochs=self.passes, batch_size=size.training.batch_size))

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        if resume is None:
            program = TrainOnUniform(self.lr, self.passes, task.training.batch_size)
            yield Round(0, aggregate(task.forgotten, task.weights, program, task.turn()))


for request in (ForgetClient("1"), ForgetClass(2)):  # each need is proven by denying it, the price recomputed, ...
    for name, check in CHECKS.items():
        check(Case(Muddle(), small_task(request)))
        print(f"{request}: {name.replace('_', ' ')}")


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


images, labels = load_digits(return_X_y=True)
data = (torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
data[0][:400] = data[0][:400].rot90(1, (2, 3))  # the first client's scanner is mounted sideways
clients = [Client.of(str(k), data, range(400 * k, 400 * k + 400)) for k in range(4)]
federation = InProcess(Net, clients)
training = LocalTraining(SGD(lr=0.1, momentum=0.9, weight_decay=0.0), batch_size=32)
weights = train(federation, federation.architecture.fresh(0), training, rounds=20)
task = Task.of(federation, weights, ForgetClient("0"), training, federation.architecture)
for method in (FineTune(), Muddle(lr=0.5, passes=3), Retrain()):
    unlearnt = unlearn(method, task, rounds=10)
    replies = dict(federation.run(Evaluate(), unlearnt, task.turn(phase="evaluate")))
    accuracy = {client: round(100 * reply.metrics["accuracy"], 1) for client, reply in replies.items()}
    print(f"{method.name:>8}: accuracy at the clients {accuracy}")
