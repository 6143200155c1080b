"""A loop over clients, with torch's own number of threads."""

from __future__ import annotations

import copy

import torch
from work import CLIENTS, Clock, Cnn, images, rounds, trained


def main() -> None:
    clock, model = Clock(), Cnn()
    clients = [images(client) for client in range(CLIENTS)]
    state = copy.deepcopy(model.state_dict())
    for _ in range(rounds()):
        results = []
        for x, y in clients:
            model.load_state_dict(state)
            trained(model, x, y)
            results.append(copy.deepcopy(model.state_dict()))
        state = {name: torch.stack([result[name] for result in results]).mean(0) for name in state}
        clock.round_over()
    clock.tell(state)


if __name__ == "__main__":
    main()
