"""The server of a federation that trains, and forgets when it is asked to.

It does one thing at a time, a step: enter what was filed, train a round, begin an unlearning, do a round of it, audit,
issue a receipt. Which step is next it reads off the register alone, and a step is in the register, with its model on
the disk, before the next one begins. So it can be killed at any instant and started again: it repeats the step that it
was in, with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol, Self

from annotated_types import Ge, Gt, Le

from fedunlearn.architecture import Architecture
from fedunlearn.audits.judgement import judged
from fedunlearn.audits.recognition import Recognised, Recognition
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.backends.sampled import Sampled
from fedunlearn.backends.wire import encode
from fedunlearn.backends.wrapper import Wrapper
from fedunlearn.checkpoint import CheckpointError, load_weights, save_weights
from fedunlearn.deletion import receipt
from fedunlearn.deletion.events import (
    Acknowledged,
    Audited,
    Began,
    Done,
    Event,
    Fault,
    Filed,
    Opened,
    Recovered,
    Refused,
    RoundDone,
    Waited,
)
from fedunlearn.deletion.outbox import OutboxError, desk
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.signing import PublicKey, SigningKey, sha256
from fedunlearn.deletion.standing import Entry, Standing, Unlearning
from fedunlearn.deletion.statement import RequestProblem, Scope, Signed, now
from fedunlearn.evaluation import stopping
from fedunlearn.evaluation.follow import Step, recovering, require, timed, unlearning
from fedunlearn.evaluation.scores import validate
from fedunlearn.federation import ClientId, Federation, Predicate, Program, Reply, TooFewClients, Traffic, Turn
from fedunlearn.importing import path_of
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.retrain import Retrain
from fedunlearn.needs import NeedsError
from fedunlearn.programs import Evaluate, LocalTraining
from fedunlearn.randomness import stable_seed
from fedunlearn.requests import AnyOf, AskedFor, ForgetClass, ForgetClient, Rest
from fedunlearn.rounds import Round, fedavg
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["Plan", "Service", "ServiceError", "Site", "network_of"]

_OPERATOR = ""  # files at the server itself, in the folder `desk`
_MOST_FILED = 100  # requests that one client may file at a time, and refusals of a client that are written down


class ServiceError(RuntimeError):
    """The server cannot go on; the sentence says what to do, and started again it goes on where it was."""


class Site(Protocol):
    """The machines of a federation, as its server reaches them."""

    @property
    def federation(self) -> Federation:
        """All clients on the list, whether they are reached at the moment or not."""
        ...

    def exchange(self, answers: Mapping[ClientId, Sequence[Mapping[str, Any]]]) -> Mapping[ClientId, Sequence[Any]]:
        """Bring each client its answers, and come back with what it has filed; who was not reached is not in it."""
        ...

    def faults(self) -> Sequence[tuple[ClientId, str, str]]:
        """What went wrong since this was last asked: at which client (empty: none of ours), what, a sentence."""
        ...


@dataclass(frozen=True)
class Plan:
    """What a server does.

    Attributes:
        training: at the clients, of ordinary rounds and of recovery.
        rounds: of ordinary training in all.
        method: that answers requests. Where it cannot (it needs data that are deleted already), NoT does.
        stop: when recovery ends; it reads accuracy on the validation samples that stay, measured by the clients.
        most: rounds of recovery after which it ends in any case.
        seed: of all randomness.
        participation: share of the clients that take part in a round.
        every: rounds between two looks for requests.
        scored: rounds between two measurements of accuracy.
        stay: seconds to wait for requests when there is nothing else to do; infinity: for ever.
        pause: seconds between two looks then, and before a round is tried again.
        tries: of a round for which too few clients answer.
    """

    training: LocalTraining
    rounds: Annotated[int, Ge(0)]
    method: Method = field(default_factory=NoT)
    stop: stopping.Recovered = field(default_factory=stopping.Recovered)
    most: Annotated[int, Ge(1)] = 60
    seed: int = 0
    participation: Annotated[float, Gt(0), Le(1)] = 1.0
    every: Annotated[int, Ge(1)] = 1
    scored: Annotated[int, Ge(1)] = 1
    stay: Annotated[float, Ge(0)] = 0.0
    pause: Annotated[float, Ge(0)] = 10.0
    tries: Annotated[int, Ge(1)] = 5


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
        ServiceError: the register is of another network, seed or initial model.
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
        self._desk = desk(register.folder)
        self._ledger, self._attended = Ledger(), dict[ClientId, int]()
        self._unusable: list[tuple[ClientId, str]] = []  # answers, and why
        self._asking: dict[ClientId, set[str]] = {}  # what each filer has not been told the end of
        self._told: dict[str, str] = {}
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
        self._prune()  # whoever was killed after its last step has not done it

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
        return self._initial if last is None else self._loaded(last.checkpoint, last.model)

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
        raise ServiceError(f"{told}, {self._plan.tries} times: start the server again once they are there, it goes on")

    def _next(self) -> bool:
        standing = self._standing
        idle = standing.current is None and standing.trained >= self._plan.rounds
        if self._since_look >= self._plan.every or idle:
            self._look()
            self._since_look = 0
            standing = self._standing
        if standing.current is not None:
            self._go_on(standing.current)
        elif standing.waiting:
            self._begin(standing.waiting)
        elif standing.trained < self._plan.rounds and self._staying().clients:
            self._train()
        else:
            self._since_look = self._plan.every
            return False
        return True

    # What is asked, and what is answered

    def _look(self) -> None:
        """Bring answers, fetch and enter requests; once more where there is news for whoever has just filed."""
        for attempt in range(2):
            answers = self._answers()
            if attempt and not answers:
                return
            filed = dict(self._site.exchange({filer: told for filer, told in answers.items() if filer}))
            try:
                filed[_OPERATOR] = self._desk.exchange(list(answers.get(_OPERATOR, ())))
            except OutboxError as error:
                raise ServiceError(f"{error}: make room, or let this user write there, then start again") from None
            self._note_told([answer for filer in filed for answer in answers.get(filer, ())])
            self._asking = {filer: set[str]() for filer in filed}
            for filer, statements in filed.items():
                for content in statements[:_MOST_FILED]:
                    self._enter(filer, content)
            self._append(*self._faults("look", self._standing.trained))

    def _answers(self) -> dict[ClientId, list[dict[str, Any]]]:
        """By who filed it, what has changed of the requests that it still asks about."""
        standing, answers = self._standing, dict[ClientId, list[dict[str, Any]]]()
        refused = {refusal.request: refusal for _, refusal in standing.refused}
        for filer, asked in self._asking.items():
            for id in sorted(asked):
                if id in standing.requests:
                    entry = standing.requests[id]
                    state = "acknowledged" if entry.state == "filed" else entry.state
                    answer = {"request": id, "state": state, "why": entry.why, "receipt": entry.receipt}
                else:
                    answer = {"request": id, "state": "refused", "why": refused[id].why, "receipt": None}
                if self._told.get(id) != answer["state"]:
                    answers.setdefault(filer, []).append(answer)
        return answers

    def _note_told(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self._told |= {answer["request"]: answer["state"] for answer in answers}
        entered = [self._standing.requests.get(answer["request"]) for answer in answers]  # but for the refused
        self._append(
            *(
                Acknowledged(entry.request)
                for entry in entered
                if entry is not None and entry.state != "refused" and "acknowledged" not in entry.times
            )
        )

    def _enter(self, filer: ClientId, content: Any) -> None:
        """Enter a request, once; or refuse it."""
        standing = self._standing
        try:
            signed = Signed.of(content)
            id = signed.statement.id
            known = standing.requests.get(id)
            if known is not None and known.key != signed.key:
                raise RequestProblem(f"request {id} is another's")
            if known is None and all(refusal.request != id for _, refusal in standing.refused):
                client = self._about_whom(filer, signed)
                self._append(Filed(id, client, signed.json))
            self._asking[filer].add(id)
        except RequestProblem as problem:
            self._refuse(filer, content, str(problem))

    def _about_whom(self, filer: ClientId, signed: Signed) -> ClientId | None:
        """Of whose data a request is; None: of a class, whoever holds it.

        Raises:
            RequestProblem: the filer may not ask this, or it was asked before.
        """
        said, clients = signed.statement, self._standing.clients
        scope = Scope.of(said.scope)
        if filer == _OPERATOR:
            if signed.key != self._key.public.text:
                raise RequestProblem("requests at the server are the operator's: sign them with the server's key")
            if scope.kind == "client" and said.client not in self._ever:
                raise RequestProblem(f"there is no client {said.client!r} in this federation")
            if scope.kind == "class" and said.client is not None:
                raise RequestProblem("the operator asks for a class of everybody: leave --client out")
            client = said.client
        else:
            if clients and PublicKey.of(clients[filer]).text != signed.key:
                raise RequestProblem(f"a request that {filer} brings must be signed with {filer}'s own key")
            if said.client is not None:
                raise RequestProblem("a node files for its own samples: leave the client out")
            client = filer
        for entry in self._standing.requests.values():
            again = entry.scope == said.scope and scope.kind != "instances"
            if entry.client == client and entry.state != "refused" and (again or entry.scope == "client"):
                raise RequestProblem(f"this was asked already, in request {entry.request}, whose receipt holds for it")
        return client

    def _refuse(self, filer: ClientId, content: Any, why: str) -> None:
        """Write a refusal down, once, and not without end where a node files nonsense."""
        said = content.get("statement") if isinstance(content, dict) else None
        id = said.get("id") if isinstance(said, dict) else None
        known = isinstance(id, str) and len(id) == 32 and id not in self._standing.requests
        refusal = Refused(str(id) if known else "", filer or None, why)
        before = [other for _, other in self._standing.refused if other.client == refusal.client]
        if refusal not in before:
            if len(before) >= _MOST_FILED:
                return
            self._append(refusal)
        if known:
            self._asking[filer].add(str(id))

    # Rounds

    def _train(self) -> None:
        number, federation = self._standing.trained, self._staying()
        rounds = fedavg(federation, self.weights, self._plan.training, self._plan.seed, "train", number)
        self._round("train", None, timed("train", rounds), federation)

    def _begin(self, entries: Sequence[Entry]) -> None:
        """Gather what is known of the model as it is, and say that an unlearning begins."""
        number, weights, ids = len(self._standing.unlearnings), self.weights, [entry.request for entry in entries]
        task = self._task(number, ids, weights)
        method = self._method(task)
        validation = validate(task.retained, weights, task.seed) if task.retained.clients else None
        audit = self._recognised(task, ids, weights)
        last = self._standing.last
        checkpoint = self._save(weights) if last is None else last.checkpoint
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
            ),
            *self._faults("unlearn", 0),
        )

    def _go_on(self, current: Unlearning) -> None:
        """The next step of an unlearning."""
        if current.recovered is None:
            self._unlearn_or_recover(current)
        elif current.judgement is None:
            self._audit(current)
        else:
            waiting = (id for id in current.began.requests if self._standing.requests[id].state != "done")
            id = next(waiting)
            issued = receipt.issue(self._standing, id, self._register.head, self._key, now())
            self._append(Done(id, issued))
            self._prune()

    def _unlearn_or_recover(self, current: Unlearning) -> None:
        began, rounds = current.began, [done for _, done in current.rounds]
        task = self._task(began.unlearning, began.requests, self._loaded(began.checkpoint, began.before))
        method = self._begun(began)
        recovery = [done for done in rounds if done.phase == "recover"]
        if not recovery:
            last = Step("unlearn", self._resumed(rounds[-1]), 0.0) if rounds else None
            if self._round("unlearn", began.unlearning, unlearning(method, task, last), task.retained):
                return
        # What has been asked since this unlearning began is left out from now on; its own unlearning comes next.
        retained = self._staying()
        if why := self._ended(current, recovery, retained):
            self._append(Recovered(began.unlearning, why))
            self._prune()
            return
        last = Step("recover" if recovery else "unlearn", self._resumed(rounds[-1]), 0.0) if rounds else None
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
        done, traffic = step.round, sum(self._ledger.phases.values(), Traffic())
        faults = self._faults(phase, done.number)
        measured = phase != "unlearn" and (done.number + 1) % self._plan.scored == 0
        validation = validate(scored, done.after, self._plan.seed) if measured else None
        self._append(
            RoundDone(
                phase,
                done.number,
                number,
                done.after.digest(32),
                self._save(done.after),
                _lists(done.after.negations),
                {name: self._save(weights, name) for name, weights in done.carry.items()},
                dict(self._attended),
                {
                    fault.client: f"{fault.what}: {fault.detail}"
                    for fault in faults
                    if fault.client not in self._attended
                },
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
        self._prune()
        return True

    # Audit

    def _audit(self, current: Unlearning) -> None:
        """Hold what the clients find in the new model against what they found in the old one."""
        began = current.began
        task = self._task(began.unlearning, began.requests, self._loaded(began.checkpoint, began.before))
        after = self._recognised(task, began.requests, self.weights)
        judgement = judged(
            {client: Recognised(**found) for client, found in began.audit["found"].items()},
            {client: Recognised(**found) for client, found in after["found"].items()},
            {**began.audit["missing"], **after["missing"]},
        )
        self._append(Audited(began.unlearning, asdict(judgement)), *self._faults("audit", began.unlearning))

    def _recognised(self, task: Task, ids: Sequence[str], weights: Weights) -> dict[str, dict[str, Any]]:
        """What each client that holds some of the data finds of them in a model; and of whom nothing is known, why."""
        entries = [self._standing.requests[id] for id in ids]
        missing = {str(entry.client): "no client any more" for entry in entries if entry.client in self._gone}
        missing |= {str(entry.client): "data already deleted" for entry in entries if entry.data == "deleted"}
        asked = [client for client in task.forgotten.clients if client not in missing]
        turn, found = task.turn(phase="evaluate"), {}
        if asked:
            with suppress(TooFewClients):  # an audit that cannot be made is a result, and stands in the receipt
                for client, reply in task.everyone.run(Recognition(), weights, turn, asked):
                    with suppress(ValueError):  # a client that answers nonsense has not answered
                        found[client] = asdict(Recognised.of(reply.metrics))
        return {
            "found": found,
            "missing": missing | {client: "did not answer" for client in asked if client not in found},
        }

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
        left = tuple(
            client
            for id in ids
            if entries[id].scope == "client" and entries[id].data == "deleted"
            if (client := str(entries[id].client)) not in self._gone
        )
        return Task.of(
            self._federation(earlier),
            weights,
            request,
            self._plan.training,
            self._architecture,
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

    # What is kept

    @property
    def _standing(self) -> Standing:
        return self._register.standing()

    @property
    def _ever(self) -> set[ClientId]:
        """Clients whose data may be in the model."""
        return self._standing.enrolled | set(self._site.federation.clients)

    @property
    def _gone(self) -> set[ClientId]:
        """Those that are not on the list any more."""
        return self._ever - set(self._site.federation.clients)

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

    def _save(self, weights: Weights, name: str = "model") -> str:
        """Write a model; the event that names its file comes after it."""
        file = f"{self._register.head.count:08d}-{name}.safetensors"
        try:
            save_weights(weights, self._register.checkpoints / file)
        except CheckpointError as error:
            raise ServiceError(f"{error}: make room, or let this user write there, then start again") from None
        return file

    def _loaded(self, file: str, digest: str) -> Weights:
        path = self._register.checkpoints / file
        try:
            weights = load_weights(path)
        except (CheckpointError, OSError) as error:
            raise ServiceError(
                f"the model {path} that the register names cannot be read ({error}): restore it"
            ) from None
        if weights.digest(32) != digest:
            raise ServiceError(f"the model {path} is not the one that the register names: restore it")
        return weights

    def _resumed(self, done: RoundDone) -> Round:
        after = self._loaded(done.checkpoint, done.model)
        return Round(
            done.number,
            after,
            {name: load_weights(self._register.checkpoints / file) for name, file in done.carried.items()},
        )

    def _prune(self) -> None:
        """Keep no model that nothing needs any more: older ones know what has been forgotten since."""
        standing, needed = self._standing, set[str]()
        if standing.last is not None:
            needed |= {standing.last.checkpoint, *standing.last.carried.values()}
        if standing.current is not None:
            needed.add(standing.current.began.checkpoint)
        for path in self._register.checkpoints.iterdir():
            if path.name not in needed:
                try:
                    path.unlink()
                except OSError as error:
                    raise ServiceError(
                        f"the old model {path} cannot be removed ({error.strerror}): let this user write there"
                    ) from None


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
            TooFewClients: at the end, where there were answers, and none with a model behind which there is a sample.
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
        if turn.phase != "evaluate" and answered and not samples:
            raise TooFewClients(f"{answered} clients answered, none with a model that was trained on a sample")


def _why_unusable(program: Program, turn: Turn, reply: Reply) -> str | None:
    if turn.phase != "evaluate" and reply.weights is None:
        return "an answer without a model"
    if isinstance(program, Evaluate) and reply.samples and not 0 <= reply.metrics.get("accuracy", -1.0) <= 1:
        return "an answer without an accuracy from 0 to 1"
    return None


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
