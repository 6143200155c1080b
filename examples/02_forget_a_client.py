"""A federation of your own forgets a client: your network, your data, four clients.

Run: python examples/02_forget_a_client.py
No `if __name__ == "__main__"` is needed, although clients work in processes side by side.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from fedunlearn import SGD, Client, FineTune, ForgetClient, InProcess, LocalTraining, NoT, Retrain, Task, train, unlearn
from fedunlearn.programs import Evaluate


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
for method in (FineTune(), NoT(), Retrain()):
    unlearnt = unlearn(method, task, rounds=10)
    replies = dict(federation.run(Evaluate(), unlearnt, task.turn(phase="evaluate")))
    accuracy = {client: round(100 * reply.metrics["accuracy"], 1) for client, reply in replies.items()}
    print(f"{method.name:>8}: accuracy at the clients {accuracy}")
