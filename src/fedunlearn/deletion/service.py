"""The server of a federation that trains, and forgets when it is asked to.

It does one thing at a time, a step: enter what was filed, train a round, begin an unlearning, do a round of it, audit,
issue a receipt. Which step is next it reads off the register alone, and a step is in the register, with its model on
the disk, before the next one begins. So it can be killed at any instant and started again: it repeats the step that it
was in, with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Literal, Self

import torch

from fedunlearn.architecture import Architecture
from fedunlearn.audits.judgement import judged
from fedunlearn.audits.recognition import Recognised, Recognition
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.sampled import Sampled
from fedunlearn.backends.wire import encode
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.deletion import receipt
from fedunlearn.deletion.events import (
    Audited,
    Began,
    Done,
    Event,
    Fault,
    Instead,
    Opened,
    Recovered,
    Refused,
    RoundDone,
    Started,
    Waited,
)
from fedunlearn.deletion.models import Models
from fedunlearn.deletion.plan import Plan, ServiceError, Site
from fedunlearn.deletion.reception import Reception
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import SigningKey, sha256
from fedunlearn.deletion.standing import Entry, Standing, Unlearning
from fedunlearn.deletion.statement import Scope, now
from fedunlearn.environment import determinants
from fedunlearn.evaluation.follow import Step, recovering, require, timed, unlearning
from fedunlearn.evaluation.scores import validate
from fedunlearn.federation import ClientId, Federation, Predicate, Program, Reply, TooFewClients, Traffic, Turn
from fedunlearn.importing import path_of
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.needs import NeedsError
from fedunlearn.programs import Evaluate
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetClient, Rest
from fedunlearn.rounds import fedavg
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["Service", "network_of"]

_TOGETHER = 5000  # requests of one unlearning: its audit is one event, with more than a kilobyte of each


def network_of(weights: Weights) -> str:
    """Which network weights are of: a digest of its tensors' names, shapes and types."""
    tensors = {**weights.parameters, **weights.buffers}
    return sha256([[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())])


class Service:
    """Trains and forgets.

    Args:
        site: where the clients are.
        register: that is written to; its first event stands in it already.
        key: the server's, which signs receipts.
        architecture: of the network.
        plan: what to do.
        initial: the model to begin with, the same at each start; None: a new one, drawn by the plan's seed.

    Raises:
        ServiceError: the register is of another network, seed or initial model, or an unlearning that is under way
            began with another plan.
    """

    def __init__(
        self,
        site: Site,
        register: Register,
        key: SigningKey,
        architecture: Architecture,
        plan: Plan,
        initial: Weights | None = None,
    ) -> None:
        self._site, self._register, self._key = site, register, key
        self._architecture, self._plan = architecture, plan
        self._initial = initial or architecture.fresh(plan.seed)
        self._models, self._reception = Models(register), Reception(site, register, key)
        self._ledger, self._attended = Ledger(), dict[ClientId, int]()
        self._unusable: list[tuple[ClientId, str]] = []  # answers, and why
        self._since_look = plan.every
        for name, value in self.about(plan, self._initial).items():
            if (before := self._opened.about.get(name)) != value:
                raise ServiceError(
                    f"this register was opened with another {name} ({before}): start the server with that one, or with "
                    "a new register"
                )
        needs = plan.method.needs
        if needs.history is not None or needs.proxy:
            raise ServiceError(
                f"{plan.method.name} needs a history or proxy data, which a service does not keep: NoT does without"
            )
        everybody = site.federation
        task = Task(
            self._initial, everybody, everybody, everybody, (), plan.training, architecture, recovery=plan.recovery
        )
        try:
            plan.method.check(task)
        except ValueError as error:  # now, and not at the first request
            raise ServiceError(f"{plan.method.name} does not fit this network: {error}") from None
        current = self._standing.current
        if current is not None and current.began.plan != plan.said:
            raise ServiceError(
                f"unlearning {current.began.unlearning} began with {current.began.plan}: start the server with that "
                "training, recovery, stop rule and participation until it is done"
            )
        self._append(Started(plan.said, determinants(torch.device("cpu"))))
        self._models.prune()  # whoever was killed after its last step has not done it

    @staticmethod
    def about(plan: Plan, initial: Weights) -> dict[str, Any]:
        """What must be the same whenever the server starts again (`fedunlearn.deletion.events.Opened.about`)."""
        return {"network": network_of(initial), "initial": initial.digest(32), "seed": plan.seed}

    @property
    def weights(self) -> Weights:
        """The newest model.

        Raises:
            ServiceError: its file is gone, or is not what the register says.
        """
        last = self._standing.last
        return self._initial if last is None else self._models.load(last.checkpoint, last.model)

    def run(self) -> Weights:
        """Work until the training is over, every request answered, and ``stay`` seconds have passed since.

        Returns:
            The newest model.

        Raises:
            ServiceError: too few clients have answered, time and again.
            ClientError: a client's own code fails, and the site does not put up with it.
        """
        idle_since = time.monotonic()
        while True:
            if self.step():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= self._plan.stay:
                return self.weights
            else:
                time.sleep(min(self._plan.pause, self._plan.stay))

    def step(self) -> bool:
        """Do what is next; False: there was nothing to do but to look for requests."""
        for attempt in range(self._plan.tries):
            if attempt:
                time.sleep(self._plan.pause)
            try:
                return self._next()
            except TooFewClients as error:
                last = self._standing.last
                phase, number = (last.phase, last.number) if last else ("train", -1)
                self._append(*self._faults(phase, number + 1), Waited(phase, number + 1, str(error)))
                self._since_look = self._plan.every  # who is where may have changed
                told = str(error)
        if self._instead(told):
            return True
        raise ServiceError(f"{told}, {self._plan.tries} times: start the server again once they are there, it goes on")

    def _instead(self, why: str) -> bool:
        """Where a method's own step needs somebody who does not answer: NoT, which needs nobody; whether that helps."""
        current, method = self._standing.current, _described(NoT())
        own = current is not None and not any(done.phase == "recover" for _, done in current.rounds)
        if current is None or not own or current.began.method in (method, _described(Retrain())):
            return False
        self._append(Instead(current.began.unlearning, method, why))
        return True

    def _next(self) -> bool:
        standing = self._standing
        idle = standing.current is None and standing.trained >= self._plan.rounds
        if self._since_look >= self._plan.every or idle:
            self._reception.look()
            self._append(*self._faults("look", standing.trained))
            self._since_look = 0
            standing = self._standing
        if standing.current is not None:
            self._go_on(standing.current)
        elif standing.waiting:
            self._begin(standing.waiting[:_TOGETHER])
        elif standing.trained < self._plan.rounds and self._staying().clients:
            self._train()
        else:
            self._since_look = self._plan.every
            return False
        return True

    # Rounds

    def _train(self) -> None:
        number, federation = self._standing.trained, self._staying()
        rounds = fedavg(federation, self.weights, self._plan.training, self._plan.seed, "train", number)
        self._round("train", None, timed("train", rounds), federation)

    def _begin(self, entries: Sequence[Entry]) -> None:
        """Gather what is known of the model as it is, and say that an unlearning begins."""
        there = set(self._site.federation.clients)
        if nothing := [entry for entry in entries if not self._means_something(entry, there)]:
            why = "it means no training sample of anybody: there is nothing to forget"
            self._append(*(Refused(entry.request, entry.client, why) for entry in nothing))
            return
        number, weights, ids = len(self._standing.unlearnings), self.weights, [entry.request for entry in entries]
        task = self._task(number, ids, weights)
        method = self._method(task)
        validation = validate(task.retained, weights, task.seed) if task.retained.clients else None
        audit = self._recognised(task, ids, weights)
        last = self._standing.last
        checkpoint = self._models.save(weights) if last is None else last.checkpoint
        self._append(
            Began(
                number,
                ids,
                _described(method),
                weights.digest(32),
                checkpoint,
                validation,
                audit,
                _lists(weights.negations),
                self._plan.said,
            ),
            *self._faults("unlearn", 0),
        )

    def _means_something(self, entry: Entry, there: Set[ClientId]) -> bool:
        """Whether the model may know anything of what a request is about, where these clients have samples."""
        if entry.data == "deleted" or (entry.client not in there and entry.client in self._standing.enrolled):
            return True
        if entry.scope == "client":
            return entry.client in there
        return bool(self._site.federation.where(_predicate(entry)).clients)

    def _go_on(self, current: Unlearning) -> None:
        """The next step of an unlearning."""
        if current.recovered is None:
            self._unlearn_or_recover(current)
        elif current.judgements is None:
            self._audit(current)
        else:
            id = next(id for id in current.began.requests if id in current.open)
            issued = receipt.issue(self._standing, id, self._register.head, self._key, now())
            self._append(Done(id, issued))
            self._models.prune()

    def _unlearn_or_recover(self, current: Unlearning) -> None:
        began, rounds = current.began, [done for _, done in current.rounds]
        task = self._task(began.unlearning, began.requests, self._models.load(began.checkpoint, began.before))
        method = self._begun(began)
        recovery = [done for done in rounds if done.phase == "recover"]
        if not recovery:
            last = Step("unlearn", self._models.after(rounds[-1]), 0.0) if rounds else None
            if self._round("unlearn", began.unlearning, unlearning(method, task, last), task.retained):
                return
        # What has been asked since this unlearning began is left out from now on; its own unlearning comes next.
        retained = self._staying()
        if why := self._ended(current, recovery, retained):
            self._append(Recovered(began.unlearning, why))
            self._models.prune()
            return
        last = Step("recover" if recovery else "unlearn", self._models.after(rounds[-1]), 0.0) if rounds else None
        steps = recovering(method, replace(task, retained=retained), self._plan.most, last)
        self._round("recover", began.unlearning, steps, retained)

    def _ended(
        self, current: Unlearning, recovery: Sequence[RoundDone], retained: Federation
    ) -> Literal["recovered", "limit", "nobody"] | None:
        """Why recovery is over, if it is."""
        if not retained.clients:
            return "nobody"
        values = [done.validation for done in recovery if done.validation is not None]
        if self._plan.stop.position(current.began.validation, values) is not None:
            return "recovered"
        return "limit" if len(recovery) >= self._plan.most else None

    def _round(
        self,
        phase: Literal["train", "unlearn", "recover"],
        number: int | None,
        steps: Iterator[Step],
        scored: Federation,
    ) -> bool:
        """Do a round and write it down; False: there was none left.

        Args:
            phase: of the round.
            number: of the unlearning.
            steps: of which the first is done.
            scored: whose validation samples it is measured on.
        """
        self._ledger.phases.clear()
        self._attended.clear()
        step = next(steps, None)
        if step is None:
            return False
        done, took_part = step.round, dict(self._attended)
        faults = self._faults(phase, done.number)
        measured = phase != "unlearn" and (done.number + 1) % self._plan.scored == 0
        validation = validate(scored, done.after, self._plan.seed) if measured else None
        traffic = sum(self._ledger.phases.values(), Traffic())  # the measurement's too: it sends the model as well
        self._append(
            RoundDone(
                phase,
                done.number,
                number,
                done.after.digest(32),
                self._models.save(done.after),
                _lists(done.after.negations),
                {name: [self._models.save(weights, name), weights.digest(32)] for name, weights in done.carry.items()},
                took_part,
                {fault.client: f"{fault.what}: {fault.detail}" for fault in faults if fault.client not in took_part},
                traffic.down_all,
                traffic.up_all,
                traffic.work.forward,
                traffic.work.backward,
                round(step.seconds, 3),
                validation,
            ),
            *faults,
            *self._faults(phase, done.number),  # of the measurement
        )
        self._since_look += 1
        self._models.prune()
        return True

    # Audit

    def _audit(self, current: Unlearning) -> None:
        """Hold what the clients find in the new model against what they found in the old one."""
        began = current.began
        task = self._task(began.unlearning, began.requests, self._models.load(began.checkpoint, began.before))
        audit = self._recognised(task, began.requests, self.weights)
        before, after = (
            {client: Recognised(**found) for client, found in one["found"].items()} for one in (began.audit, audit)
        )
        judgements, on_the_list = {}, set(self._site.federation.clients)
        for id in began.requests:
            # Only of those whom the request concerns: what was found at others is not for this receipt's reader.
            entry, concerned = self._standing.requests[id], dict.fromkeys(audit["concerned"][id])
            concerned |= dict.fromkeys(began.audit["concerned"][id])
            there = [] if entry.data == "deleted" else concerned
            old, new = ({client: found[client] for client in there if client in found} for found in (before, after))
            missing = {
                client: _missing(entry, gone=client not in on_the_list and client in self._standing.enrolled)
                for client in concerned
                if client not in new
            }
            judgements[id] = asdict(judged(old, new, missing))
        self._append(Audited(began.unlearning, judgements), *self._faults("audit", began.unlearning))

    def _recognised(self, task: Task, ids: Sequence[str], weights: Weights) -> dict[str, dict[str, Any]]:
        """Whom each request concerns, and what each of them that still has some of the data finds of them in a model.

        A client measures all that it is to forget in this unlearning together: so several small requests tell of no
        smaller one among them.
        """
        concerned, asked = dict[str, list[ClientId]](), dict[ClientId, None]()
        everyone = set(task.everyone.clients)
        for id in ids:
            entry = self._standing.requests[id]
            holders = (entry.client,) if entry.client else task.everyone.where(AnyOf((_predicate(entry),))).clients
            concerned[id] = list(holders)
            if entry.data != "deleted":
                asked |= dict.fromkeys(client for client in holders if client in everyone)
        program = Recognition(tests=2 * max(map(len, concerned.values())))
        found = {}
        if asked:
            with suppress(TooFewClients):  # an audit that cannot be made is a result, and stands in the receipt
                for client, reply in task.everyone.run(program, weights, task.turn(phase="evaluate"), tuple(asked)):
                    with suppress(ValueError):  # a client that answers nonsense has not answered
                        found[client] = asdict(Recognised.of(reply.metrics))
        return {"concerned": concerned, "found": found}

    # What is computed on

    def _staying(self) -> Federation:
        """All clients, without all that was ever asked to be forgotten."""
        return self._federation(self._standing.requests.values())

    def _federation(self, leaving_out: Iterable[Entry]) -> Federation:
        """All clients, without what these requests are about; metered, and sampled if the plan says so."""
        federation: Federation = Metered(_Attended(self._site.federation, self._attended, self._unusable), self._ledger)
        if self._plan.participation < 1:
            federation = Sampled(federation, self._plan.participation)
        predicates = tuple(_predicate(entry) for entry in leaving_out if entry.state != "refused")
        return federation.where(Rest(AnyOf(predicates))) if predicates else federation

    def _task(self, number: int, ids: Sequence[str], weights: Weights) -> Task:
        """The task of an unlearning: the federation without what was forgotten before, and these requests."""
        entries = self._standing.requests
        earlier = [entry for entry in entries.values() if entry.unlearning is not None and entry.unlearning < number]
        request = AnyOf(tuple(_predicate(entries[id]) for id in ids))
        federation = self._federation(earlier)
        gone = {entries[id].client for id in ids if entries[id].scope == "client" and entries[id].data == "deleted"}
        left = tuple(client for client in federation.clients if client in gone) if gone else ()
        return Task.of(
            federation,
            weights,
            request,
            self._plan.training,
            self._architecture,
            recovery=self._plan.recovery,
            seed=stable_seed(self._plan.seed, "unlearning", number),
            left=left,
        )

    def _method(self, task: Task) -> Method:
        """The plan's; where the data that it needs are gone, NoT; where nobody stays, a new model."""
        if not task.retained.clients:
            return Retrain()
        try:
            require(self._plan.method, task)
        except NeedsError:
            return NoT()
        return self._plan.method

    def _begun(self, began: Began) -> Method:
        """The method that an unlearning began with, whoever has come or gone since."""
        for method in (self._plan.method, NoT(), Retrain()):
            if _described(method) == began.method:
                return method
        raise ServiceError(
            f"unlearning {began.unlearning} began with {began.method}: start the server with that method until it is "
            "done"
        )

    # What the register says

    @property
    def _standing(self) -> Standing:
        return self._register.standing()

    @property
    def _opened(self) -> Opened:
        opened = self._standing.opened
        assert opened is not None, "a register begins with the event that says whose it is"
        return opened

    def _append(self, *events: Event) -> None:
        if events:
            self._register.append(*events)

    def _faults(self, phase: str, number: int) -> list[Fault]:
        unusable = [(client, "malformed", why) for client, why in self._unusable]
        self._unusable.clear()
        return [Fault(*what, phase, number) for what in (*self._site.faults(), *unusable)]


class _Attended(Wrapper):
    """Notes who answers, with how many samples, and leaves out what a round can do nothing with."""

    def __init__(self, inner: Federation, samples: dict[ClientId, int], unusable: list[tuple[ClientId, str]]) -> None:
        super().__init__(inner)
        self._samples, self._unusable = samples, unusable

    def around(self, inner: Federation) -> Self:
        """See `Wrapper.around`."""
        return type(self)(inner, self._samples, self._unusable)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`.

        Raises:
            TooFewClients: at the end, where there was no model behind which there is a sample.
        """
        answered, samples = 0, 0
        for client, reply in self.inner.run(program, weights, turn, clients):
            answered += 1
            if why := _why_unusable(program, turn, reply):
                self._unusable.append((client, why))
                continue
            if turn.phase != "evaluate":
                self._samples[client] = reply.samples
            samples += reply.samples
            yield client, reply
        if turn.phase != "evaluate" and not samples:
            raise TooFewClients(f"{answered} clients answered, none with a model that was trained on a sample")


def _why_unusable(program: Program, turn: Turn, reply: Reply) -> str | None:
    if turn.phase != "evaluate" and reply.weights is None:
        return "an answer without a model"
    if isinstance(program, Evaluate) and reply.samples and not 0 <= reply.metrics.get("accuracy", -1.0) <= 1:
        return "an answer without an accuracy from 0 to 1"
    return None


def _missing(entry: Entry, *, gone: bool) -> str:
    """Why a client that a request concerns was not audited."""
    if gone:
        return "no client any more"
    return "data already deleted" if entry.data == "deleted" else "did not answer"


def _predicate(entry: Entry) -> Predicate:
    scope = Scope.of(entry.scope)
    if entry.client is None:
        assert scope.label is not None
        return ForgetClass(scope.label)
    return ForgetClient(entry.client) if scope.kind == "client" else AskedFor(entry.client, entry.request)


def _described(method: Method) -> dict[str, Any]:
    """A method as the register and receipts say it."""
    return {"name": method.name, "kind": path_of(type(method)), "options": encode(method)[0]["fields"]}


def _lists(negations: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(parts) for parts in negations]
