"""The contract that every method keeps, as checks that anyone can run on a method of their own.

    for name, check in CHECKS.items():
        check(Case(MyMethod(), small_task(ForgetClient("0"))))

A check that fails raises AssertionError with a sentence. Each looks at one promise only, so that a method which
breaks one is caught by one.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.recorded import Recorded, Recorder
from fedunlearn.client import Client
from fedunlearn.denials import Asked, Counting, Denied, Everything, Masked, Nobody, Watched, WithoutLabels
from fedunlearn.evaluation.follow import Step, follow
from fedunlearn.federation import ClientError, ClientId, Federation, Phase, Predicate
from fedunlearn.history import KINDS, History
from fedunlearn.needs import NeedsError, Size
from fedunlearn.programs import SGD, Evaluate, LocalTraining
from fedunlearn.randomness import generator
from fedunlearn.rounds import train
from fedunlearn.samples import TensorSamples
from fedunlearn.task import Method, Task

__all__ = ["CHECKS", "Case", "SmallNet", "size_of", "small_federation", "small_task"]

RECOVERY = 2  # rounds of recovery that the checks follow


@dataclass(frozen=True)
class Case:
    """A method on a small task.

    Attributes:
        method: to be checked.
        task: a small one, as `small_task` makes it.
    """

    method: Method
    task: Task


class SmallNet(nn.Module):
    """A network with all that is awkward: BatchNorm with its integer counter, dropout, a convolution without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 6, 6) to scores (n, 3)."""
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        scores: Tensor = self.head(self.drop(x.flatten(1)))
        return scores


def small_federation(workers: int = 1) -> InProcess:
    """Four clients "0" to "3" with 20, 21, 22 and 23 samples of three classes, a fifth of them for validation."""
    sizes = (20, 21, 22, 23)
    rng = generator("small federation")
    labels = torch.arange(sum(sizes)) % 3
    images = torch.randn(len(labels), 1, 6, 6, generator=rng) + labels.view(-1, 1, 1, 1)
    samples, ends = TensorSamples(images, labels), torch.tensor(sizes).cumsum(0).tolist()
    clients = [
        Client.of(str(k), samples, range(end - size, end))
        for k, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    return InProcess(SmallNet, clients, workers=workers, device="cpu")


def small_task(request: Predicate, federation: InProcess | None = None) -> Task:
    """A task on `small_federation` (or one like it), whose model has had two rounds of training.

    There is all that a method could need: a history of every kind, and 24 samples that nobody holds at the server.
    """
    federation = federation or small_federation()
    training = LocalTraining(SGD(lr=0.05, momentum=0.9, weight_decay=0.0), batch_size=8)
    folder = Path(tempfile.mkdtemp(prefix="fedunlearn-"))
    recorder = Recorder(folder, KINDS, federation.clients)
    weights = train(Recorded(federation, recorder), federation.architecture.fresh(1), training, rounds=2, seed=1)
    history = recorder.finish(weights)
    weakref.finalize(history, shutil.rmtree, folder, ignore_errors=True)
    architecture = federation.architecture
    return Task.of(federation, weights, request, training, architecture, seed=2, history=history, proxy=_server())


def _server() -> InProcess:
    rng = generator("small proxy")
    images, labels = torch.randn(24, 1, 6, 6, generator=rng), torch.arange(24) % 3
    return InProcess(SmallNet, [Client.of("server", (images, labels), validation=0)], workers=1, device="cpu")


def size_of(task: Task) -> Size:
    """How large a task is."""

    def counted(federation: Federation) -> dict[ClientId, int]:
        replies = federation.run(Evaluate(), task.weights, task.turn(phase="evaluate"))
        return {client: reply.samples for client, reply in replies}

    weights, history = task.weights, task.history
    return Size(
        weights.parameter_bytes,
        weights.nbytes - weights.parameter_bytes,
        len(weights.parameters),
        task.training,
        counted(task.retained),
        counted(task.forgotten),
        proxy=sum(counted(task.proxy).values()) if task.proxy is not None else 0,
        clients=len(history.clients) if history is not None else 0,
        rounds=len(history.rounds) if history is not None and "norms" in history.kinds else 0,
    )


def same_seed_same_bits(case: Case) -> None:
    """Twice the same task, the same bits."""
    once, again = _followed(case), _followed(case)
    assert len(once) == len(again), f"{len(once)} rounds, then {len(again)}"
    _same_rounds(once, again, "a second run with the same seed gives")


def inputs_unchanged(case: Case) -> None:
    """Nothing of the task is changed."""
    task = _own_copy(case.task)
    kept = _contents(task.history)
    _read(follow(case.method, task, RECOVERY))
    assert task.weights.same_bits(case.task.weights), "the method changed the weights that it was given"
    assert _contents(task.history) == kept, "the method changed the history that it was given"


def needs_are_true(case: Case) -> None:
    """What a method does not declare, it does without; what it declares, it cannot do without.

    Needs are denied one by one: data to be forgotten and clients that stay answer with an error, labels are
    hidden, single updates are masked so that only their mean is right, as in secure aggregation. Denied what it
    does not declare, a method runs on; denied what it declares, it is refused before it starts, and would fail or
    end with other weights if it were not.
    """
    needs, task = case.method.needs, case.task
    needs.require(task.circumstances, case.method.name)
    plain = _unlearnt(case, task)
    if needs.forget_data == "none" and not needs.target_online:
        _does_without(case, "the data to be forgotten", _with(task, forgotten=Denied, everyone=Denied))
        if task.targets:
            gone = replace(task, forgotten=task.forgotten.where(Nobody()), everyone=task.retained)
            _does_without(case, "the client that leaves", gone)
    if needs.forget_data == "inputs":
        forgotten = partial(Asked, ask=partial(WithoutLabels, all_go=True))  # this view flags nothing
        everyone = partial(Asked, ask=partial(WithoutLabels, all_go=False))
        blind = _does_without(case, "the labels", _with(task, forgotten=forgotten, everyone=everyone))
        _same_rounds(plain, blind, "with labels of the forgotten samples hidden,")
    if not needs.retain_online:
        _does_without(case, "the clients that stay", _with(task, retained=Denied, everyone=Denied))
    if needs.history is None:
        _does_without(case, "a history", replace(task, history=None))
    if not needs.proxy:
        _does_without(case, "proxy data", replace(task, proxy=None))
    masked = _with(task, retained=Masked, forgotten=Masked, everyone=Masked)
    if needs.per_client_updates:
        assert needs.lacking(replace(task.circumstances, single_updates=False)), "single updates are not asked for"
        assert _depends(case, plain, masked), "it declares a need of single updates, and does without"
    else:
        for seen, hidden in zip(plain, _does_without(case, "single updates", masked), strict=True):
            difference = (seen.round.after - hidden.round.after).norm()
            assert difference <= 1e-3, f"it reads single updates, which it does not declare (off by {difference:.2g})"
    for lacking in _denials(case):
        try:
            needs.require(lacking.circumstances, case.method.name)
        except NeedsError as error:
            refused = error
        else:
            raise AssertionError("a need that it declares is not asked for")
        assert _depends(case, plain, lacking), f"it declares a need, and does without: {refused}"


def costs_are_the_closed_form(case: Case) -> None:
    """The account of the unlearning step equals the closed form that the method states."""
    ledger = Ledger()
    task, expected = case.task, case.method.cost(size_of(case.task))
    metered = replace(
        _own_copy(task),
        everyone=Metered(task.everyone, ledger),
        retained=Metered(task.retained, ledger),
        forgotten=Metered(task.forgotten, ledger),
        proxy=Metered(task.proxy, ledger, wire=False) if task.proxy is not None else None,
    )
    _read(follow(case.method, metered, 0))
    assert ledger.phases["unlearn"] == expected, f"it costs {ledger.phases['unlearn']}, and states {expected}"


def a_client_holds_three_models(case: Case) -> None:
    """At no time a client holds more than three networks: the one that it trains and two others."""
    wraps = {name: partial(Asked, ask=Counting) for name in ("retained", "forgotten", "everyone")}
    try:
        _read(follow(case.method, _with(_own_copy(case.task), **wraps), RECOVERY))
    except ClientError as error:
        raise AssertionError(str(error)) from error


def integer_buffers_are_copied(case: Case) -> None:
    """An integer buffer is neither averaged nor negated: it is that of the model that was sent."""
    counters = {n: b for n, b in case.task.weights.buffers.items() if not b.is_floating_point()}
    assert counters, "the task's network has no integer buffer to check"
    for step in _followed(case):
        for name, before in counters.items():
            after = step.round.after.buffers[name]
            known = torch.equal(after, before) or not bool(after.any())  # zero: of a fresh network
            where = f"in {step.phase} round {step.round.number}"
            assert after.dtype == before.dtype, f"{name} became {after.dtype} {where}"
            assert known, f"{name} became {after} {where}"


def those_who_stay_take_part(case: Case) -> None:
    """In recovery every client that keeps data takes part in every round, with what stays of it, and no other."""
    task = _own_copy(case.task)
    steps = _unlearnt(case, task)
    weights = steps[-1].round.after if steps else task.weights
    seen: list[tuple[Phase, int, ClientId]] = []
    denied = _with(task, forgotten=Denied, everyone=Denied)
    watched = _with(denied, retained=lambda inner: Watched(inner, seen))
    for _ in islice(case.method.recover(watched, weights), RECOVERY):
        pass
    expected = [("recover", number, client) for number in range(RECOVERY) for client in task.retained.clients]
    assert seen == expected, f"recovery was done by {seen}"


def results_are_finite(case: Case) -> None:
    """No tensor of any round holds NaN or infinity."""
    for step in _followed(case):
        assert step.round.after.finite(), f"{step.phase} round {step.round.number} is not finite"


def resumed_after_any_round(case: Case) -> None:
    """Killed after any round and resumed from it, the rounds that follow have the same bits.

    The method that resumes is made anew from its hyper-parameters: what it remembers in itself is lost with its
    process.
    """
    steps = _followed(case)
    for at, step in enumerate(steps):
        saved, method = copy.deepcopy(step), _anew(case.method)
        rest = list(follow(method, _own_copy(case.task), RECOVERY, saved))
        where = f"resumed after {step.phase} round {step.round.number}"
        assert len(rest) == len(steps) - at - 1, f"{where}: {len(rest)} rounds follow, not {len(steps) - at - 1}"
        _same_rounds(steps[at + 1 :], rest, f"{where}:")


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        same_seed_same_bits,
        inputs_unchanged,
        needs_are_true,
        costs_are_the_closed_form,
        a_client_holds_three_models,
        integer_buffers_are_copied,
        those_who_stay_take_part,
        results_are_finite,
        resumed_after_any_round,
    )
}


def _followed(case: Case) -> list[Step]:
    return list(follow(case.method, _own_copy(case.task), RECOVERY))


def _unlearnt(case: Case, task: Task) -> list[Step]:
    return list(follow(case.method, _own_copy(task), 0))


def _anew(method: Method) -> Method:
    assert is_dataclass(method), f"{method.name} is no dataclass of hyper-parameters"
    return replace(method)


def _does_without(case: Case, what: str, task: Task) -> list[Step]:
    try:
        return _unlearnt(case, task)
    except Exception as error:
        raise AssertionError(f"it needs {what}, which it does not declare: {error!r}") from error


def _depends(case: Case, plain: Sequence[Step], lacking: Task) -> bool:
    """Whether the unlearning step, run all the same on a task that lacks something, fails or comes out otherwise."""
    try:
        rounds = list(_anew(case.method).unlearn(_own_copy(lacking)))
        weights = [step.round.after for step in plain]
        return any(not a.same_bits(b.after) for a, b in zip(weights, rounds, strict=True))
    except Exception:
        return True


def _read(steps: Iterator[Step]) -> None:
    for _ in steps:
        pass


def _own_copy(task: Task) -> Task:
    """So that a method which changes its input spoils no other check."""
    return replace(task, weights=copy.deepcopy(task.weights))


def _same_rounds(some: Sequence[Step], others: Sequence[Step], what: str) -> None:
    for a, b in zip(some, others, strict=True):
        same = (a.phase, a.round.number, a.round.carry.keys()) == (b.phase, b.round.number, b.round.carry.keys())
        same = same and a.round.after.same_bits(b.round.after)
        same = same and all(a.round.carry[name].same_bits(b.round.carry[name]) for name in a.round.carry)
        assert same, f"{what} other bits in {a.phase} round {a.round.number}"


def _contents(history: History | None) -> dict[Path, bytes]:
    files = history.layout.folder.rglob("*.*") if history is not None else ()
    return {path: path.read_bytes() for path in files if path.is_file()}


def _with(task: Task, **wraps: Callable[[Federation], Federation]) -> Task:
    return replace(task, **{name: wrap(getattr(task, name)) for name, wrap in wraps.items()})  # type: ignore[arg-type]


def _denials(case: Case) -> Iterator[Task]:
    """Tasks that lack one thing each that the method declares; `everyone` lacks it too."""
    needs, task = case.method.needs, case.task
    if needs.history is not None:
        yield replace(task, history=None)
    if needs.proxy:
        yield replace(task, proxy=None)
    if needs.forget_data != "none" or needs.target_online:
        yield replace(task, forgotten=task.forgotten.where(Nobody()), everyone=task.retained)
    if needs.retain_online:
        going = task.forgotten.marking(Everything())
        yield replace(task, retained=task.retained.where(Nobody()), everyone=going)
    if needs.whole_clients:
        yield replace(task, targets=())
