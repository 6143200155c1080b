"""A round of FedAvg, ours against what people write by hand: `python benchmarks/engine.py`.

Ten clients, one epoch each, on four networks: the 97k-parameter CNN (600 images a client, batches of 64, SGD with
momentum), and the networks of the shipped experiments ``cpu/table-1-cnn``, ``-resnet`` and ``-vit`` with their batches
and optimizers. Four ways to do it, in turns within one run, so that a noisy machine is noisy for all:

- plain: a loop over clients and shuffled slices of tensors, with torch's default number of threads;
- loader: the same loop over `DataLoader(TensorDataset(...), shuffle=True)`;
- fedunlearn: `aggregate` on `InProcess`, as many workers as plain has threads;
- one worker: the same with one, to see what the others bring.

Medians of seconds a round, and the medians of the ratios of neighbouring rounds, are what to read. Then, in a process
of its own for each way, the time from the command to the end of the first round, and the peak of memory after two more;
here fedunlearn is left to choose its workers itself. ``--busy`` does a few rounds again while another process spins on
a core. ``--profile`` tells where one worker's time goes, with one thread: how many operations a second it comes to,
beside a large product of matrices, and the shares of torch's operations as its profiler sees them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedunlearn import SGD, Client, InProcess, LocalTraining
from fedunlearn.evaluation.flops import flops_per_sample
from fedunlearn.federation import ClientContext, Reply, Turn, Work
from fedunlearn.models import build
from fedunlearn.programs import Adam
from fedunlearn.rounds import aggregate
from fedunlearn.samples import TensorSamples

CLIENTS, SHAPE, CLASSES = 10, (1, 28, 28), 10
OPERATIONS = {  # torch's, by what their names contain; the first that fits
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear", "attention"),
    "normalisations": ("norm",),
    "activations, pooling, loss": ("relu", "threshold", "clamp", "gelu", "softmax", "pool", "nll"),
    "optimizer": ("foreach", "optimizer"),
    "other operations": ("",),
}
BUSY = 3  # counted rounds beside a busy process, where a loop with two threads may take ten times as long

Once = Callable[[], None]


class Cnn(nn.Sequential):
    """96,938 parameters, 28x28 inputs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 160),
            nn.ReLU(),
            nn.Linear(160, 10),
        )


@dataclass(frozen=True)
class Job:
    """What a client does: ``images`` a client; of the network, its name and options as in an experiment's file."""

    network: str | None
    options: Mapping[str, Any]
    images: int
    batch: int
    optimizer: SGD | Adam

    def net(self) -> nn.Module:
        return Cnn() if self.network is None else build(self.network, CLASSES, SHAPE, **self.options)

    def theirs(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Torch's optimizer, as who writes a loop makes it."""
        o = self.optimizer
        if isinstance(o, Adam):
            return torch.optim.Adam(parameters, o.lr, betas=o.betas, weight_decay=o.weight_decay)
        return torch.optim.SGD(parameters, o.lr, momentum=o.momentum, weight_decay=o.weight_decay)

    def data(self) -> tuple[Tensor, Tensor]:
        """Images ``(clients * images, *SHAPE)`` and labels, of noise."""
        rng = torch.Generator().manual_seed(0)
        count = CLIENTS * self.images
        return torch.randn(count, *SHAPE, generator=rng), torch.randint(CLASSES, (count,), generator=rng)


JOBS = {
    "97k": Job(None, {}, 600, 64, SGD(0.05, 0.9, 0.0)),
    "layernorm-cnn": Job("layernorm-cnn", {"channels": (8, 16), "kernel": 5}, 100, 32, SGD(0.05, 0.0, 0.0)),
    "small-resnet": Job("small-resnet", {"width": 16, "blocks": (1, 1, 1)}, 100, 16, SGD(0.2, 0.9, 5e-4)),
    "small-vit": Job(
        "small-vit", {"patch": 7, "layers": 2, "heads": 4, "hidden": 48, "mlp": 96}, 200, 32, Adam(lr=0.003)
    ),
}


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    means = {name: torch.stack([state[name] for state in states]).float().mean(0) for name in states[0]}
    return {name: mean.to(states[0][name].dtype) for name, mean in means.items()}  # BatchNorm counts in integers


def trained(job: Job, model: nn.Module, batches: Iterable[Sequence[Tensor]]) -> dict[str, Tensor]:
    optimizer = job.theirs(model.parameters())
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def plain(job: Job) -> Once:
    x, y = job.data()

    def batches(client: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = client * job.images + torch.randperm(job.images)
        return ((x[part], y[part]) for part in order.split(job.batch))

    return by_hand(job, batches)


def loader(job: Job) -> Once:
    parts = zip(*(tensor.split(job.images) for tensor in job.data()), strict=True)
    loaders = [DataLoader(TensorDataset(*part), job.batch, shuffle=True) for part in parts]
    return by_hand(job, loaders.__getitem__)


def by_hand(job: Job, batches: Callable[[int], Iterable[Sequence[Tensor]]]) -> Once:
    model = job.net()
    state = copy.deepcopy(model.state_dict())

    def once() -> None:
        nonlocal state
        results = []
        for client in range(CLIENTS):
            model.load_state_dict(state)
            results.append(trained(job, model, batches(client)))
        state = averaged(results)

    return once


class Ours:
    def __init__(self, job: Job, workers: int | None) -> None:
        samples, n = TensorSamples(*job.data()), job.images
        clients = [Client.of(str(k), samples, range(k * n, (k + 1) * n), validation=0) for k in range(CLIENTS)]
        self.federation = InProcess(job.net, clients, workers=workers, device="cpu")
        self.training = LocalTraining(job.optimizer, batch_size=job.batch)
        self.weights, self.number = self.federation.architecture.fresh(0), 0

    def __call__(self) -> None:
        self.weights = aggregate(self.federation, self.weights, self.training, Turn(0, "train", self.number))
        self.number += 1


WAYS: dict[str, Callable[[Job], Once]] = {
    "plain": plain,
    "loader": loader,
    "fedunlearn": lambda job: Ours(job, torch.get_num_threads()),
    "one worker": lambda job: Ours(job, 1),
}
ALONE: dict[str, Callable[[Job], Once]] = {"plain": plain, "loader": loader, "fedunlearn": lambda job: Ours(job, None)}


def in_turns(ways: Mapping[str, Once], warm: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each counted round, by way."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for counted in [*[False] * warm, *[True] * rounds]:
        for name, once in ways.items():
            took = measuring.timed(once)
            if counted:
                spent[name].append(took)
    return spent


@contextmanager
def one_core_taken() -> Iterator[None]:
    """Another process spins meanwhile, and no longer than this one lives."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    spinning = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


def peak() -> float:
    """Most memory of this process so far, in MB.

    Linux's ``ru_maxrss`` would count what the process that started it had.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS tells bytes
    told = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(told["VmHWM"].removesuffix("kB")) / 1e3


@dataclass(frozen=True)
class Peak:
    """Which process works for a client, and how much memory that has had."""

    def __call__(self, context: ClientContext) -> Reply:
        return Reply(metrics={"process": os.getpid(), "MB": peak()})


def alone(job: Job, way: str) -> None:
    """A line on standard output when the first round is done; after two more, peaks of memory: its own and workers'."""
    once = ALONE[way](job)
    once()
    print("first round", flush=True)
    once()
    once()
    workers: dict[float, float] = {}
    if isinstance(once, Ours):
        asked = once.federation.run(Peak(), once.weights, Turn(0, "evaluate", 0))
        workers = {reply.metrics["process"]: reply.metrics["MB"] for _, reply in asked}
    print(peak(), *(megabytes for process, megabytes in workers.items() if process != os.getpid()))


def profile(job: Job) -> dict[str, Any]:
    """One worker's round: billions of operations a second, of a large product too, and shares of its time."""
    torch.set_num_threads(1)
    matrix = torch.randn(1024, 1024)
    product = min(measuring.timed(lambda: matrix @ matrix) for _ in range(20))
    once = Ours(job, 1)
    took = statistics.median(measuring.timed(once) for _ in range(7))
    flops = flops_per_sample(job.net, SHAPE).of(Work(CLIENTS * job.images, CLIENTS * job.images))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        watched = measuring.timed(once)
    shares = dict.fromkeys(OPERATIONS, 0.0)
    for event in profiler.key_averages():
        kind = next(kind for kind, parts in OPERATIONS.items() if any(part in event.key.lower() for part in parts))
        shares[kind] += event.self_cpu_time_total / 1e6 / watched
    return {
        "GFLOP/s": flops / took / 1e9,
        "GFLOP/s of a product": 2 * len(matrix) ** 3 / product / 1e9,
        "shares": {**shares, "outside of torch's operations": 1 - sum(shares.values())},
    }


def start(network: str, way: str) -> dict[str, Any]:
    """Of a process of its own: seconds from the command to the end of the first round, and peaks of memory, in MB."""
    command = [sys.executable, __file__, "--network", network, "--alone", way]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - started
        peaks = [float(part) for part in process.stdout.read().split()]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return {"seconds": seconds, "MB": peaks[0], "MB of workers": peaks[1:]}


def profiled(network: str) -> dict[str, Any]:
    """`profile` in a process of its own, since it leaves torch with one thread."""
    command = [sys.executable, __file__, "--network", network, "--alone", "profile"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def measured(network: str, rounds: int, starts: int, busy: bool, profile: bool) -> dict[str, Any]:
    """All that is found for one network."""
    job = JOBS[network]
    ways = {name: way(job) for name, way in WAYS.items()}
    found: dict[str, Any] = {"job": asdict(job), "seconds": in_turns(ways, 2, rounds)}
    if busy:
        with one_core_taken():
            found["busy"] = in_turns(ways, 1, min(BUSY, rounds))
    if starts:
        begun = [{way: start(network, way) for way in ALONE} for _ in range(starts)]
        found["start"] = {way: [one[way] for one in begun] for way in ALONE}
    if profile:
        found["profile"] = profiled(network)
    return {**found, "ratios": ratios(found)}


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """What one network's rounds and starts come to, ours as a share of the others': the smaller the better."""
    quiet = found["seconds"]
    told = {f"round, {way}": measuring.relative(quiet["fedunlearn"], quiet[way]) for way in WAYS if way != "fedunlearn"}
    if "busy" in found:
        busy = found["busy"]
        told["busy round, plain"] = measuring.relative(busy["fedunlearn"], busy["plain"])
        usual = statistics.median(quiet["one worker"])
        told["busy round, one worker on a quiet machine"] = statistics.median(busy["fedunlearn"]) / usual
    if "start" in found:
        seconds = {way: [one["seconds"] for one in found["start"][way]] for way in ALONE}
        for way in ("plain", "loader"):
            told[f"start, {way}"] = measuring.relative(seconds["fedunlearn"], seconds[way])
    return told


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown of what `main` recorded, by the place in the documents: of rounds, and of what else was measured."""
    networks: Mapping[str, Mapping[str, Any]] = found["networks"]
    told = {"engine": f"{measuring.machine(found)}\n\n{_rounds(networks)}"}
    if all("busy" in one for one in networks.values()):
        told["engine-busy"] = _busy(networks)
    if all("start" in one for one in networks.values()):
        told["engine-start"] = _starts(networks)
    if all("profile" in one for one in networks.values()):
        told["engine-profile"] = _profiles(networks)
    return told


def _rounds(networks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            *(measuring.spread(one["seconds"][way]) for way in WAYS),
            *(f"**{one['ratios'][f'round, {way}']:.2f}**" for way in ("plain", "loader")),
            f"{one['ratios']['round, one worker']:.2f}",
        ]
        for name, one in networks.items()
    ]
    return measuring.table(["seconds a round", *WAYS, "of plain", "of loader", "of one worker"], rows)


def _busy(networks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            *(measuring.spread(one["busy"][way]) for way in WAYS),
            f"{one['ratios']['busy round, plain']:.2f}",
            f"**{one['ratios']['busy round, one worker on a quiet machine']:.2f}**",
        ]
        for name, one in networks.items()
    ]
    return measuring.table(
        ["seconds a round, one core taken", *WAYS, "of plain", "of one worker on a quiet machine"], rows
    )


def _starts(networks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            *(measuring.spread([one["seconds"] for one in found["start"][way]]) for way in ALONE),
            *(f"**{found['ratios'][f'start, {way}']:.2f}**" for way in ("plain", "loader")),
            *(_peak(found["start"][way]) for way in ALONE),
        ]
        for name, found in networks.items()
    ]
    head = ["seconds to the end of the first round", *ALONE, "of plain", "of loader", *(f"MB, {way}" for way in ALONE)]
    return measuring.table(head, rows)


def _profiles(networks: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{found['profile']['GFLOP/s']:.0f}",
            f"{found['profile']['GFLOP/s of a product']:.0f}",
            *(f"{share:.0%}" for share in found["profile"]["shares"].values()),
        ]
        for name, found in networks.items()
    ]
    shares = next(iter(networks.values()))["profile"]["shares"]
    return measuring.table(["one thread", "GFLOP/s", "of a 1024 x 1024 product", *shares], rows)


def _peak(starts: Sequence[Mapping[str, Any]]) -> str:
    """Of the process, and of each of its workers where it had any: of the start that took most in all."""
    most = max(starts, key=lambda one: one["MB"] + sum(one["MB of workers"]))
    return " + ".join(f"{megabytes:.0f}" for megabytes in (most["MB"], *most["MB of workers"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=JOBS, default=list(JOBS), help="which (default: all four)")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds of each (default 15)")
    parser.add_argument("--starts", type=int, default=3, help="processes that start with each (default 3)")
    parser.add_argument("--busy", action="store_true", help="some of them again while another process takes a core")
    parser.add_argument("--profile", action="store_true", help="where one worker's time goes")
    parser.add_argument("--output", type=Path, help="write the raw results as JSON")
    parser.add_argument("--alone", choices=[*ALONE, "profile"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone == "profile":
        print(json.dumps(profile(JOBS[options.network[0]])))
        return
    if options.alone:
        alone(JOBS[options.network[0]], options.alone)
        return
    amount = (options.rounds, options.starts, options.busy, options.profile)
    found = {"threads": torch.get_num_threads(), "networks": {one: measured(one, *amount) for one in options.network}}
    print("\n".join(tables(measuring.record(options.output, found)).values()))


if __name__ == "__main__":
    main()
