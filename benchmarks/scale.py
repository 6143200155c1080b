"""What grows with the number of clients, and what does not: `python benchmarks/scale.py`.

Every point runs in a process of its own. Stages:

- clients: rounds of FedAvg with a 10 MB model, 10, 100 or 1,000 of 10 to 10,000 clients taking part in each: seconds
  per participant (one worker), and the peak of memory (two workers: the process that averages, and the larger worker);
- history: the same with a model of 1 MB and everything recorded that can be: seconds, memory, and bytes on the disk
  beside those predicted;
- request: NoT and five rounds of recovery, each measured, with 10 participants: seconds outside of what clients do;
- register: a server (`Service`) with up to 1,000,000 enrolled clients that answers up to 10,000 signed requests a day,
  days in a row. Clients answer at once with the model that they were sent, so what is measured is the server's own
  bookkeeping. All keys are real ones, on the curve P-384, whose private halves are consecutive numbers;
- queue: messages in a SuperLink's own database, without its network;
- merging: the mean of 1,000,000 updates by trees of aggregators, against the exact mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import machine, record, table, timed
from torch import Tensor, nn

from fedunlearn import SGD, Client, InProcess, LocalTraining
from fedunlearn.amounts import tell_bytes
from fedunlearn.architecture import Architecture
from fedunlearn.backends import in_process
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.backends.sampled import Sampled
from fedunlearn.client import execute
from fedunlearn.evaluation.follow import follow
from fedunlearn.evaluation.scores import validate
from fedunlearn.federation import ClientId, Predicate, Reply, Turn
from fedunlearn.history import KINDS
from fedunlearn.methods.negation import NoT
from fedunlearn.requests import ForgetClass, ForgetClient, ForgetShare
from fedunlearn.rounds import aggregate
from fedunlearn.samples import TensorSamples
from fedunlearn.task import Task
from fedunlearn.weights import Average, Weights

STAGES = ("clients", "history", "request", "register", "queue", "merging")
CLIENTS = (10, 100, 1000, 10_000)
PARTICIPANTS = (10, 100)
MANY = 1000  # participants of a round, of the largest number of clients
SAMPLES, ROOT, FEATURES, CLASSES = 10, 2000, 64, 10  # of each client, in all, of each sample
REGISTERS = ((1000, 100), (10_000, 1000), (100_000, 10_000), (1_000_000, 10_000))  # clients, requests a day
UPDATES, PARAMETERS = 1_000_000, 1000
TRAINING = LocalTraining(SGD(0.01, 0.0, 0.0), batch_size=SAMPLES)


class Network(nn.Sequential):
    """Of 10 MB with 1,600 and 1,500 units, of 1 MB with 1,600 and 90."""

    def __init__(self, first: int = 1600, second: int = 1500) -> None:
        super().__init__(
            nn.Linear(FEATURES, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, CLASSES)
        )


class OneMegabyte(Network):
    def __init__(self) -> None:
        super().__init__(1600, 90)


def federation_of(build: Callable[[], nn.Module], clients: int, workers: int) -> InProcess:
    """Clients that share the samples of one small root data set."""
    rng = torch.Generator().manual_seed(0)
    data = TensorSamples(torch.randn(ROOT, FEATURES, generator=rng), torch.randint(CLASSES, (ROOT,), generator=rng))
    each = ((torch.arange(SAMPLES) + 7 * number) % ROOT for number in range(clients))
    everybody = [Client.of(str(number), data, own) for number, own in enumerate(each)]
    return InProcess(build, everybody, workers=workers, device="cpu")


def peak() -> int:
    """Bytes, of this process and of the larger worker that has ended."""
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return kilobytes * sum(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def resident(kind: str) -> int:
    """Bytes of this process's memory now: "RssAnon", its own, or "RssFile", pages of files; 0 where unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")), 0)


def clients_point(clients: int, participants: int, rounds: int, workers: int) -> dict[str, Any]:
    """Rounds after a first one; of two workers only the memory means something."""
    start = peak()
    federation = federation_of(Network, clients, workers)
    sampled = Sampled(federation, participants / clients)
    weights, seconds = federation.architecture.fresh(0), []
    for number in range(1 + rounds):
        started = time.perf_counter()
        weights = aggregate(sampled, weights, TRAINING, Turn(0, "train", number))
        seconds.append(time.perf_counter() - started)
    federation.close()
    return {"seconds": seconds[1:], "start": start, "peak": peak()}


def history_point(clients: int, participants: int, rounds: int) -> dict[str, Any]:
    """Rounds in which all kinds are recorded, and flushed each; bytes in the folder, and those that were to be."""
    federation = federation_of(OneMegabyte, clients, 1)
    sampled = Sampled(federation, participants / clients)
    weights = federation.architecture.fresh(0)
    model, tensors = weights.parameter_bytes, len(weights.parameters)
    took_part: Counter[ClientId] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "history", KINDS, federation.clients)
        recorded = Recorded(sampled, recorder)
        seconds, flushes = [], []
        for number in range(rounds):
            turn = Turn(0, "train", number)
            started = time.perf_counter()
            weights = aggregate(recorded, weights, TRAINING, turn)
            seconds.append(time.perf_counter() - started)
            flushes.append(timed(recorder.flush))
            took_part.update(sampled._drawn(turn))
        own, files = resident("RssAnon"), resident("RssFile") + resident("RssShmem")
        history = recorder.finish(weights)
        found = {kind: history.nbytes(kind) for kind in ("updates", "sum", "last_local")}
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    updates = sum(took_part.values())
    foretold = {
        "updates": (1 + updates) * model + updates * tensors * 4,
        "sum": len(took_part) * model,
        "last_local": len(took_part) * model,
    }
    return {
        "seconds": seconds[1:], "flushes": flushes[1:], "own": own, "files": files, "peak": peak(),
        "bytes": found, "foretold": foretold, "disk": disk,
    }  # fmt: skip


def request_point(clients: int, participants: int, request: str) -> dict[str, Any]:
    """Seconds of a request in all, and of those what clients did; how often a client's labels were asked."""
    means: Predicate = {"client": ForgetClient("3"), "class": ForgetClass(3), "share": ForgetShare(0.1)}[request]
    federation = federation_of(OneMegabyte, clients, 1)
    sampled = Sampled(federation, participants / clients)
    weights = aggregate(sampled, federation.architecture.fresh(0), TRAINING, Turn(0, "train", 0))
    working, asked, rounds = 0.0, 0, 0

    def watched(*arguments: Any) -> Reply:
        nonlocal working
        started = time.perf_counter()
        reply = execute(*arguments)
        working += time.perf_counter() - started
        return reply

    plain = type(means).__call__

    def counted(self: Any, client: ClientId, labels: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return plain(self, client, labels)

    with patch.object(in_process, "execute", watched), patch.object(type(means), "__call__", counted):
        started = time.perf_counter()
        task = Task.of(sampled, weights, means, TRAINING, federation.architecture)
        validate(task.retained, weights, 0)
        before, asked_before = time.perf_counter() - started - working, asked
        for step in follow(NoT(), task, 5):
            rounds += step.phase == "recover"
            validate(task.retained, step.round.after, 0)
        whole = time.perf_counter() - started
    return {
        "seconds": whole, "clients' work": working, "before": before, "outside": whole - working,
        "asked before": asked_before, "asked a round": (asked - asked_before) / (rounds + 1),
    }  # fmt: skip


# Merging


def merging_point(updates: int, parameters: int) -> dict[str, Any]:
    """Means of updates with shares, by trees: each inner node sends its mean, in float32 or float64, and its share."""
    rng = torch.Generator().manual_seed(0)
    pool = [Weights({"w": torch.randn(parameters, generator=rng)}) for _ in range(min(1000, updates))]
    shares = [1 + 7919 * number % 600 for number in range(updates)]
    exact = _exact_mean(pool, shares)
    found = []
    for fan_in, wide in ((updates, False), (1000, False), (1000, True), (10, False), (10, True)):
        started = time.perf_counter()
        mean, levels = _by_tree(pool, shares, fan_in, wide)
        seconds = time.perf_counter() - started
        error = (mean.parameters["w"].double() - exact).abs().max() / exact.abs().max()
        same = int((mean.parameters["w"] == exact.float()).sum())
        found.append(
            {"fan in": fan_in, "levels": levels, "sent": "float64" if wide else "float32", "seconds": seconds,
             "error": float(error), "nearest float32": same}
        )  # fmt: skip
    large = Architecture(Network).fresh(0)
    mean = Average(large)
    mean.add(large, 1)
    adding = timed(lambda: [mean.add(large, 1) for _ in range(100)]) / 100
    return {"trees": found, "bytes": large.parameter_bytes, "adding 10 MB": adding}


def _exact_mean(pool: Sequence[Weights], shares: Sequence[int]) -> Tensor:
    """Correctly rounded: each share times a float32 is exact in float64, and `math.fsum` rounds once."""
    weight = [sum(shares[number :: len(pool)]) for number in range(len(pool))]
    columns = torch.stack([one.parameters["w"].double() * share for one, share in zip(pool, weight, strict=True)], 1)
    return torch.tensor([math.fsum(column) / sum(shares) for column in columns.tolist()], dtype=torch.float64)


def _by_tree(pool: Sequence[Weights], shares: Sequence[int], fan_in: int, wide: bool) -> tuple[Weights, int]:
    """The mean that reaches the root, and on how many levels; every node folds what comes, and holds one sum."""
    like = pool[0].map(Tensor.double) if wide else pool[0]
    arriving: Iterator[tuple[Weights, float]] = ((pool[at % len(pool)], share) for at, share in enumerate(shares))
    waiting, levels = len(shares), 0
    while waiting > 1:
        arriving, waiting, levels = _merged(arriving, fan_in, like), -(-waiting // fan_in), levels + 1
    return next(arriving)[0].map(Tensor.float), levels


def _merged(arriving: Iterator[tuple[Weights, float]], fan_in: int, like: Weights) -> Iterator[tuple[Weights, float]]:
    while some := islice(arriving, fan_in):
        mean = Average(like)
        for weights, share in some:
            mean.add(weights, share)
        if not mean.total:
            return
        yield mean.result(), mean.total


# Stages


def of(stage: str, **point: Any) -> dict[str, Any]:
    """A point, measured in a process of its own."""
    command = [sys.executable, __file__, "--point", json.dumps({"stage": stage, **point})]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measured = {**point, **json.loads(done.stdout)}
    print(stage, ", ".join(f"{name} {value}" for name, value in point.items()), file=sys.stderr)
    return measured


def measured(point: dict[str, Any]) -> dict[str, Any]:
    stage = point.pop("stage")
    if stage == "register":
        from scale_register import register_point  # what it imports would be memory of the other points

        return register_point(**point)
    if stage == "queue":
        from scale_queue import queue_point

        return queue_point(**point)
    return {
        "clients": clients_point, "history": history_point, "request": request_point, "merging": merging_point,
    }[stage](**point)  # fmt: skip


def clients(largest: int, rounds: int) -> list[dict[str, Any]]:
    counts = [count for count in CLIENTS if count <= largest]
    points = [(count, some) for some in PARTICIPANTS for count in counts if some <= count]
    points += [(largest, some) for some in (MANY,) if some <= largest]
    return [
        of("clients", clients=count, participants=some, rounds=rounds if workers == 1 else 1, workers=workers)
        for count, some in points
        for workers in (1, 2)
    ]


def history(largest: int, rounds: int) -> list[dict[str, Any]]:
    return [of("history", clients=n, participants=10, rounds=2 * rounds) for n in CLIENTS if n <= largest]


def request(largest: int, _: int) -> list[dict[str, Any]]:
    counts = [count for count in CLIENTS if count <= largest]
    return [
        of("request", clients=n, participants=10, request=kind) for kind in ("client", "class", "share") for n in counts
    ]


def registers(largest: int, _: int) -> list[dict[str, Any]]:
    points = [(clients, requests) for clients, requests in REGISTERS if clients <= 100 * largest]
    return [of("register", clients=n, requests=some, days=3, participants=100) for n, some in points]


def queues(largest: int, _: int) -> list[dict[str, Any]]:
    return [of("queue", nodes=count) for count in CLIENTS[1:] if count <= largest]


def merging(largest: int, _: int) -> list[dict[str, Any]]:
    return [of("merging", updates=min(UPDATES, 100 * largest), parameters=PARAMETERS)]


RUN = {
    "clients": clients, "history": history, "request": request, "register": registers, "queue": queues,
    "merging": merging,
}  # fmt: skip


# Tables


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """For `docs/performance.md`."""
    made = {"clients": _clients_table, "history": _history_table, "request": _request_table}
    return _told(found, made)


def plan_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """For `docs/scale.md`."""
    made = {"register": _register_table, "queue": _queue_table, "merging": _merging_table}
    return _told(found, made)


def _told(found: Mapping[str, Any], made: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]]) -> dict[str, str]:
    """The tables of the stages that were measured, the first below what all ran on."""
    told = {f"scale-{stage}": make(found[stage]) for stage, make in made.items() if stage in found}
    return {place: f"{machine(found)}\n\n{text}" if place == next(iter(told)) else text for place, text in told.items()}


def _clients_table(points: Sequence[Mapping[str, Any]]) -> str:
    by_place = {(one["clients"], one["participants"], one["workers"]): one for one in points}
    few = by_place[(10, 10, 2)]["peak"]
    rows = []
    for (clients, some, workers), one in by_place.items():
        if workers == 1:
            memory = by_place[(clients, some, 2)]["peak"]
            alike = f"{memory / by_place[(some, some, 2)]['peak']:.2f}" if (some, some, 2) in by_place else "-"
            seconds = statistics.median(one["seconds"]) / some
            rows.append(
                [f"{clients:,}", f"{some:,}", f"{1000 * seconds:.1f}", tell_bytes(memory), alike,
                 f"{memory / few:.2f}"]
            )  # fmt: skip
    head = ["clients", "take part", "ms per participant", "peak", "of all taking part", "of ten clients"]
    return table(head, rows)


def _history_table(points: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "clients",
        "ms per participant",
        "ms a flush",
        "own memory",
        "pages of files",
        "bytes kept",
        "foretold",
        "disk",
    ]
    rows = [
        [
            f"{one['clients']:,}",
            f"{1000 * statistics.median(one['seconds']) / one['participants']:.1f}",
            f"{1000 * statistics.median(one['flushes']):.0f}",
            *(tell_bytes(one[name]) for name in ("own", "files")),
            *(tell_bytes(sum(one[name].values())) for name in ("bytes", "foretold")),
            tell_bytes(one["disk"]),
        ]
        for one in points
    ]
    return table(head, rows)


def _request_table(points: Sequence[Mapping[str, Any]]) -> str:
    head = ["request", "clients", "seconds", "outside of clients' work", "of these before the first round",
            "labels asked before", "and a round"]  # fmt: skip
    rows = [
        [
            one["request"],
            f"{one['clients']:,}",
            *(f"{one[name]:.2f}" for name in ("seconds", "outside", "before")),
            f"{one['asked before']:,}",
            f"{one['asked a round']:.3g}",
        ]
        for one in points
    ]
    return table(head, rows)


def _register_table(points: Sequence[Mapping[str, Any]]) -> str:
    head = ["what", *(f"{one['clients']:,} clients, {one['requests']:,} a day" for one in points)]
    each: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("enrolling all, s", lambda one: f"{one['enrolling']:.2f}"),
        ("one joins, s", lambda one: f"{one['one joins']:.2f}"),
        ("bytes of the list", lambda one: tell_bytes(one["enrolled bytes"])),
        ("an append, ms", lambda one: f"{1000 * one['append']:.1f}"),
        ("entering a request, ms", lambda one: _per_request(one, "look", "began")),
        ("a round, s", lambda one: f"{_last(one)['steps']['round'] / _last(one)['kinds']['round']:.2f}"),
        ("the audit, s", lambda one: f"{_last(one)['steps']['audited']:.2f}"),
        ("a receipt, ms", lambda one: _per_request(one, "done")),
        (
            "a day in all, s: first, last",
            lambda one: ", ".join(f"{_whole(day):.0f}" for day in (one["days"][0], _last(one))),
        ),
        ("bytes a request", lambda one: tell_bytes(_last(one)["bytes"] // one["requests"])),
        ("the file after all days", lambda one: tell_bytes(one["bytes"])),
        ("starting the server again, s", lambda one: f"{one['opening']:.2f}"),
        ("verifying, s", lambda one: f"{one['verifying']:.2f}"),
        ("the server's memory at the end", lambda one: tell_bytes(_last(one)["peak"])),
    ]
    return table(head, [[name, *map(told, points)] for name, told in each])


def _last(one: Mapping[str, Any]) -> Mapping[str, Any]:
    last: Mapping[str, Any] = one["days"][-1]
    return last


def _whole(day: Mapping[str, Any]) -> float:
    return sum(day["steps"].values())


def _per_request(one: Mapping[str, Any], *kinds: str) -> str:
    return f"{1000 * sum(_last(one)['steps'].get(kind, 0.0) for kind in kinds) / one['requests']:.1f}"


def _queue_table(points: Sequence[Mapping[str, Any]]) -> str:
    head = ["nodes", "registering one, ms", "a message in, ms", "out, ms", "asking who is there, ms", "bytes a node"]
    rows = [
        [
            f"{one['nodes']:,}",
            *(f"{1000 * one[name]:.1f}" for name in ("registering", "storing", "fetching", "asking who is there")),
            f"{one['bytes']:,.0f}",
        ]
        for one in points
    ]
    return table(head, rows)


def _merging_table(points: Sequence[Mapping[str, Any]]) -> str:
    (one,) = points
    head = ["fan-in", "levels", "nodes send", "µs per update", "largest error", "nearest float32"]
    rows = [
        [
            f"{tree['fan in']:,}",
            f"{tree['levels']}",
            tree["sent"] if tree["levels"] > 1 else "nothing",
            f"{1e6 * tree['seconds'] / one['updates']:.1f}",
            f"{tree['error']:.1e}",
            f"{tree['nearest float32']:,} of {one['parameters']:,}",
        ]
        for tree in one["trees"]
    ]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, action="append", help="of these alone; may be given several times")
    parser.add_argument(
        "--clients", type=int, default=10_000, help="at most (default 10,000; a register has 100 times as many)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each point (default 5)")
    parser.add_argument("--output", type=Path, help="write the raw results as JSON")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measured(options.point)))
        return
    if options.clients < 100 or options.rounds < 1:
        parser.error("--clients must be at least 100, and --rounds at least 1")
    found: dict[str, Any] = {}
    for stage in options.stage or STAGES:
        found[stage] = RUN[stage](options.clients, options.rounds)
        recorded = record(options.output, found)  # at each, since the next one may take an hour
    print("\n".join([*tables(recorded).values(), *plan_tables(recorded).values()]))


if __name__ == "__main__":
    main()
