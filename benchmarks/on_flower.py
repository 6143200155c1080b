"""What Flower, the register and the receipts cost, beside the same work in one process: `benchmarks/on_flower.py`.

Three clients with 600 images each (480 trained on, 120 for validation), the 97k-parameter CNN, batches of 64, one
epoch; a round with its measurement of accuracy, and a whole client-wise request: NoT, five rounds of recovery, each
measured, an audit before and one after. Ways to do it:

- in-process: the methods on `InProcess`, by hand, without register and receipt; with a worker for each core, and with
  one, since a `LocalGrid` has no more;
- LocalGrid: `Service` in this process, so messages, register and receipt come on top; in turns with those before;
- simulation: `Service` in Flower's simulation, on ray;
- deployment: `Service` on a SuperLink with TLS and authentication and three SuperNodes, all on this machine.

Seconds and ratios to in-process are what to read, then in what exchanges of messages they lie, and what the pieces of
one cost. All ways end in the same bits, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
APP, EXAMPLE = HERE / "flower_app", HERE.parent / "examples" / "flower-hospital"
sys.path += [str(APP), str(EXAMPLE), str(HERE)]

from deployment import SUPERLINK, Deployment, prepare  # noqa: E402
from flwr.app import Message  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects  # noqa: E402
from measuring import machine, record, spread, table  # noqa: E402
from overhead.client_app import app as client_app  # noqa: E402
from overhead.served import PLAN, SPARSE, Served, require, seconds  # noqa: E402
from overhead.work import ASKER, CLIENTS, Cnn, images  # noqa: E402

from fedunlearn.architecture import Architecture  # noqa: E402
from fedunlearn.audits.judgement import judged  # noqa: E402
from fedunlearn.audits.recognition import Recognised, Recognition  # noqa: E402
from fedunlearn.backends.envelope import (  # noqa: E402
    Answer,
    Broadcast,
    Limits,
    read_answer,
    read_order,
    write_answer,
)
from fedunlearn.backends.in_process import InProcess  # noqa: E402
from fedunlearn.checkpoint import save_weights  # noqa: E402
from fedunlearn.client import Client, View  # noqa: E402
from fedunlearn.deletion.events import Opened, Waited  # noqa: E402
from fedunlearn.deletion.register import Register  # noqa: E402
from fedunlearn.deletion.signing import SigningKey  # noqa: E402
from fedunlearn.environment import environment  # noqa: E402
from fedunlearn.evaluation.follow import follow  # noqa: E402
from fedunlearn.evaluation.scores import validate  # noqa: E402
from fedunlearn.federation import Reply, Turn  # noqa: E402
from fedunlearn.flower.local import LocalGrid  # noqa: E402
from fedunlearn.models import build  # noqa: E402
from fedunlearn.randomness import stable_seed  # noqa: E402
from fedunlearn.requests import ForgetClient  # noqa: E402
from fedunlearn.rounds import fedavg  # noqa: E402
from fedunlearn.task import Task  # noqa: E402
from fedunlearn.weights import Weights  # noqa: E402

STAGES = ("process", "pieces", "simulation", "deployment")
IN_PROCESS, ONE_WORKER, LOCAL = "in-process", "in-process, one worker", "LocalGrid"
SIMULATED = {"first round": 1, "round": 6, "sparse round": 6, "empty work": 5, "request": 3}
DEPLOYED = {"first round": 0, "round": 2, "sparse round": SPARSE, "empty work": 2, "request": 1}
WORKS = ("round", "sparse round", "request")
PATIENCE = 900.0  # seconds for a simulation or a deployment


class ByHand:
    """The work in one process, without a service."""

    def __init__(self, workers: int) -> None:
        clients = [Client.of(id, images(number)) for number, id in enumerate(CLIENTS)]
        self.federation = InProcess(Cnn, clients, workers=workers, device="cpu")
        self._initial = self.federation.architecture.fresh(PLAN.seed)
        self._rounds = fedavg(self.federation, self._initial, PLAN.training, PLAN.seed, "train")
        self.digest = ""

    def round(self) -> None:
        validate(self.federation, next(self._rounds).after, PLAN.seed)

    def request(self) -> None:
        seed = stable_seed(PLAN.seed, "unlearning", 0)
        architecture = self.federation.architecture
        task = Task.of(self.federation, self._initial, ForgetClient(ASKER), PLAN.training, architecture, seed=seed)
        validate(task.retained, self._initial, seed)
        before, after = recognised(task, self._initial), self._initial
        for step in follow(PLAN.method, task, PLAN.most):
            after = step.round.after
            if step.phase == "recover":
                validate(task.retained, after, PLAN.seed)
        judged(before, recognised(task, after), {})
        self.digest = after.digest()


def recognised(task: Task, weights: Weights) -> dict[str, Recognised]:
    replies = task.everyone.run(Recognition(), weights, task.turn(phase="evaluate"), task.forgotten.clients)
    return {client: Recognised.of(reply.metrics) for client, reply in replies}


def in_process(rounds: int, requests: int) -> dict[str, Any]:
    """The ways that one process can take, in turns, and the bytes of messages."""
    with prepared() as deployment:
        grid = LocalGrid(client_app, [{"partition-id": number} for number in range(len(CLIENTS))])
        served, cores = Served(grid, deployment.folder), min(environment()["cores"], len(CLIENTS))
        ways: dict[str, ByHand | Served] = {IN_PROCESS: ByHand(cores), ONE_WORKER: ByHand(1), LOCAL: served}
        found: dict[str, Any] = {name: {"round": [], "request": []} for name in ways}
        for counted in [False, *[True] * rounds]:  # one to warm up, in which the workers start
            for name, way in ways.items():
                spent = seconds(way.round)
                found[name]["round"] += [spent] if counted else []
        for _ in range(requests):
            for name, way in ways.items():
                found[name]["request"].append(seconds(way.request))
        digests = {name: way.digest for name, way in ways.items()}
        grid.hook, sizes = weigher()
        served.request()
        served.close()
        for way in ways.values():
            if isinstance(way, ByHand):
                way.federation.close()
    return {"ways": found, "digests": digests, "bytes": {"messages": dict(sizes), "account": served.account}}


def weigher() -> tuple[Callable[[int, Message, Callable[[], Message]], Message], Counter[str]]:
    """A hook of a `LocalGrid`, and the bytes that pass it, both ways, by the messages' kind."""
    sizes: Counter[str] = Counter()

    def weighed(node: int, message: Message, answer: Callable[[], Message]) -> Message:
        reply = answer()
        for one in (message, reply):
            sizes[message.metadata.message_type] += sum(
                len(part.deflate()) for part in get_all_nested_objects(one).values()
            )
        return reply

    return weighed, sizes


def simulation() -> dict[str, Any]:
    with prepared() as deployment:
        (deployment.folder / "times.json").write_text(json.dumps(SIMULATED))
        path = os.pathsep.join([str(APP), os.environ.get("PYTHONPATH", "")])
        quiet = {"FLWR_HOME": str(deployment.folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
        quiet |= {"FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
        started = time.time()
        told = subprocess.run(
            [sys.executable, "-m", "overhead.simulation"],
            env={**os.environ, **quiet},
            cwd=deployment.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return found_in(deployment, started, told.stderr)


def deployed() -> dict[str, Any]:
    with prepared() as deployment:
        (deployment.folder / "times.json").write_text(json.dumps(DEPLOYED))
        try:
            up = seconds(deployment.start)
            started = time.time()
            deployment.flwr("run", APP)
            # Flower's own command to ask whether a run is over takes a second of a core: not while it is measured.
            until(lambda: deployment.pids("flwr-serverapp", SUPERLINK))
            until(lambda: not deployment.pids("flwr-serverapp", SUPERLINK))
            return {"up": up, **found_in(deployment, started, deployment.log(SUPERLINK))}
        finally:
            deployment.stop()


@contextmanager
def prepared() -> Iterator[Deployment]:
    """Keys and folders of three clients and a server, none of which is started."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "hospitals"
        prepare(folder, len(CLIENTS), free_ports(len(CLIENTS) + 1))
        with patch.dict(os.environ, OVERHEAD_FOLDER=str(folder)):
            yield Deployment(folder)


def found_in(deployment: Deployment, started: float, log: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((deployment.folder / "found.json").read_text())
    except FileNotFoundError:
        sys.exit(f"the server has not measured anything; its log:\n{log[-3000:]}")
    return {"start": found.pop("begun") - started, **found}


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            sys.exit(f"the server was not done within {PATIENCE:g} seconds")
        time.sleep(1.0)


def free_ports(number: int) -> int:
    """The first of so many in a row on which nobody listens."""
    while True:
        first = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), ExitStack() as held:
            for port in range(first, first + number):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def pieces(times: int) -> dict[str, list[float]]:
    """What a message, an event, a signature and a file take."""
    found: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        found[name] = [seconds(work) for _ in range(times)]

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, network in (("CNN", Cnn), ("ResNet-18", lambda: build("resnet18", 10, (3, 32, 32)))):
            weights, ticket = Architecture(network).fresh(0), "0" * 32
            limits, turn = Limits.around(weights), Turn(0, "train", 0)
            size = f"{weights.nbytes / 1e6:.1f} MB, {name}"

            def write_order(weights: Weights = weights, turn: Turn = turn, ticket: str = ticket) -> Any:
                return Broadcast(PLAN.training, weights, turn, View()).to(CLIENTS[0], ticket)

            order = write_order()
            answer = Answer(ticket, weights.digest(), Reply(weights, 600))
            written = write_answer(answer)
            measure(f"write an order ({size})", write_order)
            measure(f"read an order ({size})", lambda order=order, limits=limits: read_order(order, limits))
            measure(f"write an answer ({size})", lambda answer=answer: write_answer(answer))
            measure(f"read an answer ({size})", lambda written=written, limits=limits: read_answer(written, limits))
            file = folder / "model.safetensors"
            measure(f"save a checkpoint ({size})", lambda weights=weights, file=file: save_weights(weights, file))
        server, node = SigningKey.make(folder / "server"), SigningKey.make(folder / "node", node=True)
        about = {"network": "", "initial": "", "seed": 0}
        with Register.create(folder / "register", server, Opened({}, server.public.text, about)) as register:
            measure("append an event to the register", lambda: register.append(Waited("train", 0, "measured")))
        content = {"text": "x" * 10_000}  # about as long as a receipt
        for name, key in (("Ed25519, the server's", server), ("P-384, a node's", node)):
            signature = key.sign("receipt", content)
            measure(f"sign 10 kB ({name})", lambda key=key: key.sign("receipt", content))
            measure(
                f"verify 10 kB ({name})",
                lambda key=key, signature=signature: require(key.public.verified("receipt", content, signature)),
            )
    return found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What was found, for docs/flower-costs.md; of the stages that were measured."""
    flower = {name: found[name] for name in ("simulation", "deployment") if name in found}
    told = {"flower": f"{machine(found)}\n\n{ways(found, flower)}"}
    if flower:
        told |= {"flower-exchanges": exchanges(flower), "flower-work": works(flower)}
    if "process" in found:
        told["flower-bytes"] = weighed(found["process"]["bytes"])
    if "pieces" in found:
        pieces = found["pieces"].items()
        told["flower-pieces"] = table(
            ["piece", "ms"], [[name, spread([1000 * s for s in spent])] for name, spent in pieces]
        )
    return told


def ways(found: Mapping[str, Any], flower: Mapping[str, Any]) -> str:
    """Seconds of each way to do the work, beside those of one process."""
    seen = {name: (one["round"], one["request"]) for name, one in found.get("process", {}).get("ways", {}).items()}
    seen |= {name: (one["round"]["seconds"], one["request"]["seconds"]) for name, one in flower.items()}
    rows = []
    for name, spent in seen.items():
        pairs = zip(spent, seen.get(IN_PROCESS, spent), strict=True)
        rows.append([name, *(cell for values, base in pairs for cell in (spread(values), ratio(values, base)))])
    return table(["", "a round, s", "of in-process", "a request, s", "of in-process"], rows)


def exchanges(flower: Mapping[str, Any]) -> str:
    """Seconds of an exchange of messages, by its kind."""
    kinds = {name: by_kind(one) for name, one in flower.items()}
    rows = [[kind, *(spread(one[kind]) for one in kinds.values())] for kind in next(iter(kinds.values()))]
    return table(["seconds of an exchange", *flower], rows)


def works(flower: Mapping[str, Any]) -> str:
    """In how many exchanges the work is done, and which part of its time they are."""
    rows = []
    for work in WORKS:
        each = [one[work] for one in flower.values()]
        number = len(each[0]["exchanges"]) / len(each[0]["seconds"])
        rows.append([f"a {work}", f"{number:.2f}", *(share_in_exchanges(one) for one in each)])
    begun = "; ".join(f"{name}: {beginning(one)}" for name, one in flower.items())
    return f"{table(['seconds in all, mean', 'exchanges', *flower], rows)}\nBefore all that: {begun}.\n"


def weighed(sizes: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {size:,}" for kind, size in sorted(sizes["messages"].items()))
    return f"Bytes of messages in a request: {kinds}; in its rounds, by the register: {sizes['account']:,}.\n"


def by_kind(one: dict[str, Any]) -> dict[str, list[float]]:
    kinds = defaultdict(list)
    for work in WORKS:
        for kind, spent in one[work]["exchanges"]:
            kinds[kind].append(spent)
    return {"an order without work": [spent for _, spent in one["empty work"]["exchanges"]], **kinds}


def share_in_exchanges(work: dict[str, Any]) -> str:
    inside = sum(spent for _, spent in work["exchanges"]) / sum(work["seconds"])
    return f"{statistics.mean(work['seconds']):.2f} ({inside:.0%} in exchanges)"


def beginning(one: dict[str, Any]) -> str:
    up = f"{one['up']:.1f} s until its processes are ready, " if "up" in one else ""
    first = f", {one['first round']['seconds'][0]:.1f} s its first round" if one["first round"]["seconds"] else ""
    return f"{up}{one['start']:.1f} s from the command to the server's code{first}"


def ratio(values: list[float], base: list[float]) -> str:
    return f"{statistics.median(values) / statistics.median(base):.3g}"


def require_same_bits(found: dict[str, Any]) -> None:
    digests = dict(found.get("process", {}).get("digests", {}))
    digests |= {name: found[name]["digest"] for name in ("simulation", "deployment") if name in found}
    if len(set(digests.values())) > 1:
        sys.exit(f"the ways end in different models: {digests}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="which (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds of each way in one process (default 15)")
    parser.add_argument("--requests", type=int, default=3, help="likewise requests (default 3)")
    parser.add_argument("--times", type=int, default=10, help="of each piece (default 10)")
    parser.add_argument("--output", type=Path, help="write the raw seconds as JSON")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before it was done"))  # else Flower's processes stay
    stages: dict[str, Callable[[], Any]] = {
        "process": lambda: in_process(options.rounds, options.requests),
        "pieces": lambda: pieces(options.times),
        "simulation": simulation,
        "deployment": deployed,
    }
    found: dict[str, Any] = {}
    for stage in STAGES:
        if stage in options.stages:
            found[stage] = stages[stage]()
            recorded = record(options.output, found)
    require_same_bits(found)
    print("\n".join(tables(recorded).values()))


if __name__ == "__main__":
    main()
