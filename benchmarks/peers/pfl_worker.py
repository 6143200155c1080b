"""One of the processes of `in_pfl.py`: pfl joins them when it is imported."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from work import BATCH, CLIENTS, LR, MOMENTUM, Clock, Cnn, images, rounds


class Judged(Cnn):
    """The network with what pfl asks of one."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.train()
        return nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        self.eval()
        return {"loss": Weighted(nn.functional.cross_entropy(self(x), y, reduction="sum").item(), len(y))}


class Rounds(TrainingProcessCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def after_central_iteration(self, aggregate_metrics: Metrics, model: Any, **other: Any) -> tuple[bool, Metrics]:
        self._clock.round_over()
        return False, Metrics()


def main() -> None:
    np.random.seed(0)  # the same in all processes, which draw the same clients and take their share
    clock, network = Clock(), Judged()
    users = {client: Dataset(images(client)) for client in range(CLIENTS)}
    sampler = get_user_sampler("minimize_reuse", list(users))
    data = FederatedDataset(users.__getitem__, sampler)
    model = PyTorchModel(
        network,
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=MOMENTUM),
        torch.optim.SGD(network.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(rounds(), evaluation_frequency=rounds() + 1, train_cohort_size=CLIENTS, val_cohort_size=None),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LR),
        NNEvalHyperParams(local_batch_size=None),
        [Rounds(clock)],
    )
    if os.environ["PFL_WORKER_RANK"] == "0":
        clock.tell(network.state_dict())


if __name__ == "__main__":
    main()
