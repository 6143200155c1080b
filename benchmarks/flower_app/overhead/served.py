"""The work as a `Service` does it, over whatever grid, and how long its exchanges of messages take."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Message
from flwr.serverapp import Grid

from fedunlearn import SGD, LocalTraining
from fedunlearn.architecture import Architecture
from fedunlearn.deletion import receipt
from fedunlearn.deletion.events import Opened, RoundDone
from fedunlearn.deletion.outbox import Outbox
from fedunlearn.deletion.plan import Plan
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.flower import federation
from fedunlearn.flower.site import FlowerSite, read_roster
from fedunlearn.requests import ForgetInstances, Rest
from overhead.work import ASKER, CLIENTS, Cnn

__all__ = ["PLAN", "SPARSE", "Served", "measured", "require", "seconds", "watched"]

SPARSE = 3  # rounds between two looks for requests, and between two measurements, where they are saved
_RECOVERY = 5

PLAN = Plan(
    LocalTraining(SGD(0.05, 0.9, 0.0), batch_size=64),
    rounds=1_000_000,
    stop=Recovered(window=_RECOVERY + 1),  # which never comes: `most` ends it
    most=_RECOVERY,
)


class Served:
    """A server on a grid, to be told what to do next.

    Args:
        grid: of the clients.
        folder: as `deployment.prepare` of examples/flower-hospital has made it.
    """

    def __init__(self, grid: Grid, folder: Path) -> None:
        server, self._asker = folder / "server", folder / ASKER
        self._key, self._roster = SigningKey.load(server / "key"), read_roster(server / "clients.toml")
        self._architecture = Architecture(Cnn)
        self._site = FlowerSite(grid, self._architecture, self._roster, fewest=len(CLIENTS))
        self._server, self._held, self._places = server, ExitStack(), count()
        register = self._held.enter_context(self._new_register())
        self._training = self._service(register, PLAN)
        self._sparse = self._service(register, replace(PLAN, every=SPARSE, scored=SPARSE))
        self.digest = ""  # of the model after a request
        self.account = 0  # bytes down and up in the rounds of the last request, as its register has them

    def close(self) -> None:
        self._held.close()

    def round(self) -> None:
        """Look for requests, train a round, measure it, write it down."""
        require(self._training.step())

    def sparse_round(self) -> None:
        """Train a round, and look and measure in every third only."""
        require(self._sparse.step())

    def empty_work(self) -> None:
        """Have each client answer with its number of samples, which waits for torch and trains nothing."""
        nobody_asked_yet = ForgetInstances(dict.fromkeys(CLIENTS, (next(self._places),)))
        require(self._site.federation.where(Rest(nobody_asked_yet)).clients == CLIENTS)

    def request(self) -> None:
        """From the filing of a request to the receipt in the outbox of the client that filed it."""
        shutil.rmtree(self._asker / "outbox", ignore_errors=True)  # else it would be the request of before
        outbox, key = Outbox(self._asker / "outbox"), SigningKey.load(self._asker / "key")
        with self._new_register() as register:
            service = self._service(register, replace(PLAN, rounds=0))
            outbox.file("client", "consent withdrawn", key)
            while service.step():
                pass
            self.digest = service.weights.digest()
            done = [entered.event for entered in register.events() if isinstance(entered.event, RoundDone)]
            self.account = sum(one.bytes_down + one.bytes_up for one in done)
        (posted,) = outbox.entries()
        require(posted.answer is not None and not receipt.verify(posted.answer.receipt or {}, self._key.public))

    @contextmanager
    def _new_register(self) -> Iterator[Register]:
        opened = Opened(self._roster, self._key.public.text, Service.about(PLAN, self._architecture.fresh(PLAN.seed)))
        with (
            tempfile.TemporaryDirectory(dir=self._server) as place,
            Register.create(Path(place), self._key, opened) as register,
        ):
            yield register

    def _service(self, register: Register, plan: Plan) -> Service:
        return Service(self._site, register, self._key, self._architecture, plan)


def measured(served: Served, times: Mapping[str, int]) -> dict[str, Any]:
    """Seconds of each piece of work, done so many times, and of the exchanges of messages in it, with their kinds."""
    works: dict[str, Callable[[], None]] = {
        "first round": served.round,
        "round": served.round,
        "sparse round": served.sparse_round,
        "empty work": served.empty_work,
        "request": served.request,
    }
    found = {}
    for name, work in works.items():
        with watched() as exchanges:
            spent = [seconds(work) for _ in range(times[name])]
        found[name] = {"seconds": spent, "exchanges": exchanges}
    return {**found, "digest": served.digest}


@contextmanager
def watched() -> Iterator[list[tuple[str, float]]]:
    """Kind and seconds of each exchange of messages, from the first that is pushed to the last reply."""
    seen: list[tuple[str, float]] = []
    gathered = federation._gathered

    def timed(grid: Grid, messages: Mapping[Any, Message], deadline: float) -> dict[Any, Message]:
        started = time.perf_counter()
        replies = gathered(grid, messages, deadline)
        kinds = {message.metadata.message_type for message in messages.values()}
        seen.append((kinds.pop(), time.perf_counter() - started))
        return replies

    with patch.object(federation, "_gathered", timed):
        yield seen


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def require(done: bool) -> None:
    if not done:
        raise RuntimeError("the work was not done as it must be: what was measured means nothing")
