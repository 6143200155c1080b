"""The same bits in Flower's own simulation, whose clients work in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import sys
from pathlib import Path

from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from fedunlearn.contract import SmallNet, small_federation, small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.flower.client import client_app
from fedunlearn.flower.federation import Flower, greet
from fedunlearn.methods.negation import NoT
from fedunlearn.requests import AskedFor, ForgetClass, ForgetClient, ForgetInstances

FOLDER, REQUEST = Path(sys.argv[1]), sys.argv[2]
REQUESTS = [
    (ForgetClient("1"), ForgetClient("1")),
    (ForgetClass(2), ForgetClass(2)),
    (AskedFor("0", REQUEST), ForgetInstances({"0": (0, 5, 7)})),
]


def data(context):
    client = small_federation()._engine.clients[str(context.node_config["partition-id"])]
    return client.samples.values[client.indices], client.samples.labels[client.indices]


def digests(federation, request):
    return [step.round.after.digest() for step in follow(NoT(), small_task(request, federation), 2)]


client = client_app(SmallNet, data, outbox=lambda context: FOLDER / str(context.node_config["partition-id"]))
server = ServerApp()


@server.main()
def main(grid, context):
    here = small_federation()
    nodes = greet(grid, None).nodes
    assert list(nodes) == ["0", "1", "2", "3"], nodes
    for asked, same in REQUESTS:
        over = digests(Flower(grid, nodes, here.architecture, deadline=60), asked)
        print("same bits" if over == digests(here, same) else f"other bits: {asked}", flush=True)


if __name__ == "__main__":
    run_simulation(server, client, 4, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
"""


@pytest.mark.long
def test_a_simulation_has_the_bits_of_one_machine(tmp_path: Path) -> None:
    from fedunlearn.deletion.outbox import Outbox
    from fedunlearn.deletion.signing import SigningKey

    (tmp_path / "list.txt").write_text("0\n5\n7\n")
    key = SigningKey.make(tmp_path / "key", node=True)
    filed = Outbox(tmp_path / "0").file(f"instances:{tmp_path / 'list.txt'}", "withdrawn", key)
    (tmp_path / "app.py").write_text(APP)
    quiet = {"FLWR_HOME": str(tmp_path / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    told = subprocess.run(
        [sys.executable, "app.py", str(tmp_path), filed.id],
        cwd=tmp_path,
        env={**os.environ, **quiet, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.stdout.splitlines().count("same bits") == 3, told.stdout + told.stderr[-3000:]
