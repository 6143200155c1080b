"""NVFlare's simulator: FedAvgRecipe on SimEnv, a process a client.

With fewer processes than clients it starts one anew for every turn of a client, which takes many times as long.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare_server import ENDS, TimedPersistor
from work import CLIENTS, Clock, Cnn, rounds

CLIENT = Path(__file__).with_name("nvflare_client.py")


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the clients' processes, which share the cores
    recipe = FedAvgRecipe(
        name="peer",
        model=Cnn(),
        model_persistor=TimedPersistor(model=Cnn()),
        min_clients=CLIENTS,
        num_rounds=rounds(),
        train_script=str(CLIENT),
    )
    with tempfile.TemporaryDirectory() as workspace:
        recipe.execute(SimEnv(num_clients=CLIENTS, workspace_root=workspace))
        (model,) = Path(workspace).rglob("FL_global_model.pt")
        state = torch.load(model, weights_only=True)["model"]
    ends = (Path(os.environ["PEERS_FOLDER"]) / ENDS).read_text().split()
    Clock().tell({name: torch.as_tensor(value) for name, value in state.items()}, [float(end) for end in ends])


if __name__ == "__main__":
    main()
