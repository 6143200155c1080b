"""Negate a layer of a PyTorch model of your own, then train it on what stays.

Run: python examples/01_negate_your_model.py
"""

import torch
from torch import nn

from fedunlearn import negate

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))  # any nn.Module
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
x, y = torch.randn(600, 8), torch.randint(3, (600,))
x[torch.arange(600), y] += 3  # three classes that can be told apart
stays = torch.arange(600) >= 60  # the first 60 samples are to be forgotten


def train(x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def accuracy(x: torch.Tensor, y: torch.Tensor) -> str:
    return f"{100 * (model(x).argmax(1) == y).float().mean():.0f} %"


train(x, y, epochs=20)
print("trained on everything:      retain", accuracy(x[stays], y[stays]), " forget", accuracy(x[~stays], y[~stays]))

negate(model, optimizer=optimizer)  # the first layer; the optimizer's momentum for it is reset
print("right after the negation:   retain", accuracy(x[stays], y[stays]), " forget", accuracy(x[~stays], y[~stays]))

train(x[stays], y[stays], epochs=20)
print("trained on what stays:      retain", accuracy(x[stays], y[stays]), " forget", accuracy(x[~stays], y[~stays]))

# What it still gets right of the forgotten samples, it gets right as of any sample that it has never seen:
# the measure of unlearning is the distance to a model that was trained without them, not zero.
