"""fluke's FedAVG in its one process, with torch's own number of threads: its parallel server is for several GPUs.

Nothing is evaluated, and a client forgets its optimizer, else its momentum would last from round to round.
"""

from __future__ import annotations

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.utils import FederationObserver
from work import BATCH, CLIENTS, LR, MOMENTUM, Clock, Cnn, images, rounds


class Rounds(FederationObserver):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def end_round(self, round: int) -> None:
        self._clock.round_over()


def main() -> None:
    clock, env = Clock(), FlukeENV()
    env.set_device("cpu")
    env.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    loaders = [
        FastDataLoader(*images(client), num_labels=10, batch_size=BATCH, shuffle=True) for client in range(CLIENTS)
    ]
    held = DataSplitter(DummyDataContainer(loaders, [None] * CLIENTS, None, num_classes=10))
    optimizer = DDict(name="SGD", lr=LR, momentum=MOMENTUM)
    never = DDict(name="StepLR", step_size=1, gamma=1.0)  # changes the learning rate; fluke must have a schedule
    client = DDict(
        batch_size=BATCH,
        local_epochs=1,
        loss="CrossEntropyLoss",
        optimizer=optimizer,
        scheduler=never,
        persistency=False,
    )
    federation = FedAVG(CLIENTS, held, DDict(client=client, server=DDict(weighted=True), model=Cnn()))
    federation.set_callbacks(Rounds(clock))
    federation.run(rounds(), eligible_perc=1.0, finalize=False)
    clock.tell(federation.server.model.state_dict())


if __name__ == "__main__":
    main()
