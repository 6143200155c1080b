"""A clinic asks to be forgotten, and gets a receipt: an app on Flower, tried in one process.

Run: python examples/05_forget_when_asked.py
The same `client_app` and `serve` run on machines far apart: docs/flower.md.
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from fedunlearn import SGD, LocalTraining
from fedunlearn.deletion import receipt
from fedunlearn.deletion.outbox import Outbox
from fedunlearn.deletion.signing import PublicKey, SigningKey
from fedunlearn.flower import LocalGrid, Plan, client_app, serve

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="fedunlearn-"))
if (folder / "server.key").exists():
    sys.exit(f"{folder} was used before: name another folder, for keys are never overwritten")
folder.mkdir(parents=True, exist_ok=True)
clinics = ("north", "east", "south", "west")
for name in ("server", *clinics):
    SigningKey.make(folder / f"{name}.key", node=name != "server")  # a server's is Ed25519, a SuperNode's is on P-384
listed = [f'{name} = "{PublicKey.load(folder / f"{name}.key.pub").text}"' for name in clinics]
(folder / "clients.toml").write_text("\n".join(["[clients]", *listed]))


# What a clinic runs ...
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def data(context):
    images, labels = load_digits(return_X_y=True)
    name = context.node_config["name"]
    own = slice(400 * clinics.index(name), 400 * clinics.index(name) + 400)
    x = torch.tensor(images[own], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return x.rot90(1, (2, 3)) if name == "east" else x, torch.tensor(labels[own])  # east's scanner is mounted sideways


def place(suffix):
    return lambda context: folder / f"{context.node_config['name']}.{suffix}"


client = client_app(Net, data, key=place("key"), outbox=place("outbox"))


# ... and what the server runs, as often as it is started.
def server(grid, rounds):
    plan = Plan(LocalTraining(SGD(lr=0.1, momentum=0.9, weight_decay=0.0), batch_size=32), rounds=rounds, most=10)
    register, key, listed = folder / "register", folder / "server.key", folder / "clients.toml"
    return serve(grid, Net, plan, register=register, key=key, clients=listed)


grid = LocalGrid(client, [{"name": name} for name in clinics])
server(grid, rounds=30)
asked = Outbox(folder / "east.outbox").file("client", "the clinic leaves", SigningKey.load(folder / "east.key"))
server(grid, rounds=32)  # the request is answered before it trains on

(posted,) = Outbox(folder / "east.outbox").entries()
problems = receipt.verify(posted.answer.receipt, PublicKey.load(folder / "server.key.pub"))
print(f"request {asked.id} is {posted.state}; the receipt has {len(problems)} problems")
print(receipt.tell(posted.answer.receipt))
