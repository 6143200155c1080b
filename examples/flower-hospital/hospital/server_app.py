"""What runs at the server."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedunlearn import SGD, LocalTraining
from fedunlearn.flower import Plan, serve
from hospital.model import Network

app = ServerApp()


def plan(config: dict[str, bool | float | int | str]) -> Plan:
    """What to do, as ``flwr run --run-config`` says."""
    training = LocalTraining(SGD(lr=0.02, momentum=0.9), batch_size=32)
    return Plan(training, rounds=int(config["rounds"]), most=int(config["most"]), stay=float(config["stay"]))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train and forget until the plan is done."""
    at = Path(os.environ["HOSPITAL_SERVER"])  # the operator says where, not whoever sends an app
    serve(
        grid,
        Network,
        plan(context.run_config),
        register=at / "register",
        key=at / "key",
        clients=at / "clients.toml",
        fewest=int(context.run_config["fewest"]),
    )
