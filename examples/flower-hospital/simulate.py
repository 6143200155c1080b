"""Try the app on one machine without SuperLink, keys or certificates: a node is believed which hospital it is."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from hospital.client_app import images, network
from hospital.server_app import plan

from fedunlearn.deletion.signing import SigningKey
from fedunlearn.flower import LocalGrid, client_app, serve


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the register, and of each hospital's outbox")
    parser.add_argument("--hospitals", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ray", action="store_true", help="in Flower's simulation, whose nodes work side by side")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / "key").exists():
        SigningKey.make(folder / "key")
    client = client_app(
        network, images, outbox=lambda at: folder / f"hospital-{int(at.node_config['partition-id']) + 1}"
    )
    does = plan({"rounds": asked.rounds, "most": 30, "stay": 0.0})

    def server(grid: Grid) -> None:
        weights = serve(grid, network, does, register=folder / "register", key=folder / "key", fewest=asked.hospitals)
        print(f"model {weights.digest()}, register {folder / 'register'}")

    if not asked.ray:
        server(LocalGrid(client, [{"partition-id": number} for number in range(asked.hospitals)]))
        return
    from flwr.simulation import run_simulation

    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        server(grid)

    one_core = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(app, client, asked.hospitals, backend_config=one_core)


if __name__ == "__main__":
    main()
