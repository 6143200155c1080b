"""This package's engine."""

from __future__ import annotations

from itertools import islice

from work import BATCH, CLIENTS, LR, MOMENTUM, Clock, Cnn, cores, images, rounds

from fedunlearn import SGD, Client, InProcess, LocalTraining
from fedunlearn.rounds import fedavg


def main() -> None:
    clock = Clock()
    clients = [Client.of(str(client), images(client), validation=0) for client in range(CLIENTS)]
    federation = InProcess(Cnn, clients, workers=cores(), device="cpu")
    weights = federation.architecture.fresh(0)
    training = LocalTraining(SGD(LR, MOMENTUM, 0.0), batch_size=BATCH)
    for done in islice(fedavg(federation, weights, training, 0, "train"), rounds()):
        weights = done.after
        clock.round_over()
    clock.tell({**weights.parameters, **weights.buffers})
    federation.close()


if __name__ == "__main__":
    main()
