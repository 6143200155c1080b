"""pfl's simulation: a process a core, as its guide to fast simulations has it, one thread each.

It cuts each client's images into batches once and does not shuffle them, so it does a little less.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

WORKER = Path(__file__).with_name("pfl_worker.py")


def main() -> None:
    addresses = [f"localhost:{port}" for port in free_ports(int(os.environ["PEERS_CORES"]))]
    shared = {**os.environ, "PFL_WORKER_ADDRESSES": ",".join(addresses), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, str(WORKER)], env={**shared, "PFL_WORKER_RANK": str(rank)})
        for rank in range(len(addresses))
    ]
    sys.exit(max(process.wait() for process in processes))


def free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [int(one.getsockname()[1]) for one in sockets]


if __name__ == "__main__":
    main()
