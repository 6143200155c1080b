"""An audit of a federation of your own: what does a model still tell of the client that it was to forget?

Run: python examples/04_audit_a_federation.py
Twelve shadows of the federation are trained. In each, a coin decides at every sample of client 0 whether it holds that
sample or its twin, which nobody holds otherwise. An attacker who has the shadows is shown a model and both.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedunlearn import SGD, Client, FineTune, ForgetClient, InProcess, LocalTraining, NoT, Retrain, Task, train, unlearn
from fedunlearn.audits.membership import Attacked, Evidence, by_likelihood
from fedunlearn.audits.signals import Confidence

SHADOWS, ROUNDS, RECOVERY = 12, 20, 10


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


images, labels = load_digits(return_X_y=True)
data = (torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
own, twins, *others, population = order[:350].split(50)
asked = InProcess(Net, [Client.of("asked", data, torch.cat([own, twins, population]), validation=0)])
training = LocalTraining(SGD(lr=0.1, momentum=0.9, weight_decay=0.0), batch_size=16)
methods = (Retrain(), FineTune(), NoT())

coins = torch.rand(SHADOWS + 1, len(own), generator=torch.Generator().manual_seed(1)) < 0.5
coins[-1] = False  # the last one is no shadow, but the federation itself
told: dict[str, list[np.ndarray]] = {method.name: [] for method in methods}
for seed, heads in enumerate(coins):
    clients = [
        Client.of(str(k), data, held, validation=0) for k, held in enumerate([own.where(~heads, twins), *others])
    ]
    federation = InProcess(Net, clients)
    weights = train(federation, federation.architecture.fresh(seed), training, ROUNDS, seed)
    task = Task.of(federation, weights, ForgetClient("0"), training, federation.architecture, seed=seed)
    for method in methods:
        model = unlearn(method, task, ROUNDS if method.name == "Retrain" else RECOVERY)
        ((_, reply),) = asked.run(Confidence(), model, task.turn(phase="evaluate"))
        told[method.name].append(reply.values["confidence"].numpy())

for name, rows in told.items():
    signals = np.stack(rows)
    evidence = Evidence(signals[:, :100, None], coins.numpy(), signals[:, 100:])
    found = Attacked.of(evidence, by_likelihood).result()
    print(
        f"{name:>8}: right about single samples in {found.sample.value:.0%} "
        f"({found.sample.low:.0%} to {found.sample.high:.0%}), about the client in {found.client.value:.0%} "
        f"({found.client.low:.0%} to {found.client.high:.0%})"
    )
