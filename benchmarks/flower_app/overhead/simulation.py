"""The app in Flower's simulation: `python -m overhead.simulation`."""

from __future__ import annotations

from flwr.simulation import run_simulation

from overhead.client_app import app as client
from overhead.server_app import app as server
from overhead.work import CLIENTS

if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, len(CLIENTS), backend_config=resources)
