"""Peak memory of a round with many clients and a 10 MB model: `python benchmarks/memory.py`.

Each number of clients runs in a process of its own; the peak is that of the process that averages plus that of
its largest worker, as the operating system accounts for them.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch
from torch import nn

from fedunlearn import SGD, Client, InProcess, LocalTraining
from fedunlearn.federation import Turn
from fedunlearn.rounds import aggregate

MEGABYTE = 2**20


class TenMegabytes(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 1600), nn.ReLU(), nn.Linear(1600, 1500), nn.ReLU(), nn.Linear(1500, 10))


def round_of(clients: int, workers: int) -> None:
    """One round, then the peak on standard output, in bytes."""
    rng = torch.Generator().manual_seed(0)
    data = (torch.randn(2 * clients, 64, generator=rng), torch.randint(10, (2 * clients,), generator=rng))
    everybody = [Client.of(str(k), data, range(2 * k, 2 * k + 2), validation=0) for k in range(clients)]
    federation = InProcess(TenMegabytes, everybody, workers=workers, device="cpu")
    weights = federation.architecture.fresh(0)
    aggregate(federation, weights, LocalTraining(SGD(0.01)), Turn(0, "train", 0))
    federation.close()
    kilobytes = 1 if sys.platform == "darwin" else 1024
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(peak * kilobytes)


def peak(clients: int, workers: int) -> int:
    """Bytes at the peak of a process that does one round."""
    command = [sys.executable, __file__, "--round", str(clients), "--workers", str(workers)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.round:
        round_of(options.round, options.workers)
        return
    few = peak(10, options.workers)
    for clients in (10, 100, 1000):
        many = peak(clients, options.workers)
        print(
            f"{clients:>5} clients, {options.workers} workers: "
            f"{many / MEGABYTE:.0f} MB, {many / few:.2f} of ten clients'"
        )


if __name__ == "__main__":
    main()
