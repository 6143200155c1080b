"""A federation on Flower: every client a node that is reached over a grid."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedunlearn.architecture import Architecture
from fedunlearn.backends.envelope import Answer, Broadcast, Envelope, Limits, TooLarge, read_answer
from fedunlearn.backends.wire import WireError
from fedunlearn.client import View
from fedunlearn.deletion.signing import KeyProblem, PublicKey
from fedunlearn.federation import ClientError, ClientId, Predicate, Program, Reply, TooFewClients, Turn
from fedunlearn.flower.messages import HELLO, REQUESTS, WORK, MessageError, body_record, parcel, said, talk, unpacked
from fedunlearn.requests import AnyOf, Rest, held, wholly
from fedunlearn.weights import Weights

__all__ = ["Fault", "FaultKind", "Flower", "Greeting", "Stranger", "exchange", "greet"]

_log = logging.getLogger(__name__)
_K = TypeVar("_K")

FaultKind = Literal["silent", "failed", "not finite", "misshapen", "stale", "malformed", "too large"]

_CHUNK = 64  # clients that are asked at once: so many replies are held in memory
_POLL = 0.1  # seconds between looks for replies at first, and
_SLOWEST_POLL = 1.0  # at last
_ABSENCES = (
    *(ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE),
    ErrorCode.CLIENT_APP_CRASHED,  # it was killed, and may live when it is asked again
)
_LONGEST_DETAIL = 300  # characters of what a client says of its own failure


@dataclass(frozen=True)
class Fault:
    """What was wrong with a client's answer.

    Attributes:
        client: whose.
        kind: "silent": none came, twice; "failed": the client's own code raised; "not finite": a tensor holds NaN or
            infinity; "misshapen": other names, shapes or dtypes than the weights that were sent; "stale": an answer to
            another order; "malformed": no answer at all; "too large": beyond the limits.
        detail: one sentence.
    """

    client: ClientId
    kind: FaultKind
    detail: str


class Flower:
    """Clients on other machines; see `fedunlearn.federation.Federation`.

    Who gives no answer in time is asked once more, and then left out; who was left out the last time, at once.

    Args:
        grid: Flower's, of the `ServerApp`.
        nodes: who takes part, in this order, and at which node each is (see `greet`); None: at none at the moment.
            Looked up anew for every message, so that whoever keeps the mapping can follow nodes that come and go.
        architecture: of the clients' networks.
        deadline: seconds for one exchange of messages, over 0.
        fewest: so many of the clients that are asked must answer, at least 1; all of them, where fewer are asked.
        limits: of an answer; None: `Limits.around` the weights that were sent.
        faults: is told of every answer that is not used, and the round goes on without it. None: such an answer is a
            `ClientError`, and only those who are silent are left out.

    Raises:
        ValueError: the deadline or ``fewest`` is out of range.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[ClientId, int | None],
        architecture: Architecture,
        *,
        deadline: float = 600.0,
        fewest: int = 1,
        limits: Limits | None = None,
        faults: Callable[[Fault], None] | None = None,
    ) -> None:
        if not deadline > 0 or fewest < 1:
            raise ValueError("the deadline must be over 0 seconds, and the fewest clients at least 1")
        self._link = _Link(grid, nodes, deadline, fewest, limits, faults)
        self._view = View()
        self.architecture = architecture

    @cached_property
    def clients(self) -> tuple[ClientId, ...]:
        """See `Federation.clients`.

        Whom a view empties is plain from most predicates. The others are asked for their number of samples, once,
        however often a view of the same samples is made; who gives no answer counts as present.
        """
        there = {client: held(self._view.keeps, client) for client in self._link.nodes}
        undecided = [client for client, whole in there.items() if whole is None]
        if undecided:
            there |= self._link.counted(self._view, undecided)
        return tuple(client for client, whole in there.items() if whole)

    def run(
        self, program: Program, weights: Weights, turn: Turn, clients: Sequence[ClientId] | None = None
    ) -> Iterator[tuple[ClientId, Reply]]:
        """See `Federation.run`.

        Raises:
            TooFewClients: at the end, where too few have answered.
        """
        wanted = set(self.clients if clients is None else clients)
        if strangers := sorted(wanted.difference(self.clients)):
            raise KeyError(f"no such client here: {', '.join(strangers)}")
        asked = [client for client in self.clients if client in wanted]
        return self._link.run(program, weights, turn, self._view, asked)

    def where(self, keeps: Predicate) -> Flower:
        """See `Federation.where`."""
        return self._viewed(View((*self._view.keeps, keeps), self._view.request))

    def marking(self, request: Predicate) -> Flower:
        """See `Federation.marking`."""
        return self._viewed(View(self._view.keeps, request))

    def _viewed(self, view: View) -> Flower:
        other = object.__new__(Flower)
        other._link, other._view, other.architecture = self._link, view, self.architecture
        return other


@dataclass(frozen=True, eq=False)
class _Link:
    """The way to the nodes; shared by all views of a federation."""

    grid: Grid
    nodes: Mapping[ClientId, int | None]
    deadline: float
    fewest: int
    limits: Limits | None
    faults: Callable[[Fault], None] | None
    mute: set[ClientId] = field(default_factory=set)  # the last time: they cost one deadline, not two
    held: dict[ClientId, list[tuple[tuple[Predicate, ...], bool]]] = field(default_factory=dict)

    def run(
        self, program: Program, weights: Weights, turn: Turn, view: View, asked: Sequence[ClientId]
    ) -> Iterator[tuple[ClientId, Reply]]:
        limits = self.limits or Limits.around(weights)
        orders, answered, faults = _Orders(program, weights, turn, view), 0, []
        for start in range(0, len(asked), _CHUNK):
            for client, found in self._told(orders, turn, asked[start : start + _CHUNK], limits, tries=2):
                found = _suspected(client, found, weights) if isinstance(found, Reply) else found
                if isinstance(found, Reply):
                    answered += 1
                    yield client, found
                    continue
                faults.append(found)
                if self.faults is not None:
                    self.faults(found)
                elif found.kind != "silent":
                    raise ClientError(f"client {client}, {turn.phase} round {turn.number}: {found.detail}")
        if answered < min(self.fewest, len(asked)):
            reasons = "; ".join(f"client {fault.client} {fault.kind}: {fault.detail}" for fault in faults[:10])
            needed = min(self.fewest, len(asked))
            raise TooFewClients(f"{answered} of {len(asked)} clients answered, where {needed} are needed ({reasons})")

    def counted(self, view: View, asked: Sequence[ClientId]) -> dict[ClientId, bool]:
        """Whether clients have a training sample in a view."""
        known = ((client, keeps, whole) for client in asked for keeps, whole in self.held.get(client, ()))
        there = {client: whole for client, keeps, whole in known if keeps == view.keeps}  # predicates have no hash
        asked = [client for client in asked if client not in there]
        turn = Turn(0, "evaluate", 0)
        orders = _Orders(None, None, turn, view)
        for start in range(0, len(asked), _CHUNK):
            for client, found in self._told(orders, turn, asked[start : start + _CHUNK], _COUNT, tries=1):
                there[client] = not isinstance(found, Reply) or found.samples > 0
                if isinstance(found, Reply):
                    self.held.setdefault(client, []).append((view.keeps, there[client]))
        return there

    def _told(
        self, orders: _Orders, turn: Turn, asked: Sequence[ClientId], limits: Limits, tries: int
    ) -> list[tuple[ClientId, Reply | Fault]]:
        """What each of these clients answers, in this order."""
        kind = f"{'evaluate' if turn.phase == 'evaluate' else 'train'}.{WORK}"
        found: dict[ClientId, Reply | Fault] = {}
        for number in range(tries):
            there = {client: node for client in asked if (node := self.nodes[client]) is not None}
            again = found.keys() | self.mute if number else found.keys()
            tickets = {client: secrets.token_hex(16) for client in there if client not in again}
            if not tickets:
                break
            messages = {}
            for client, ticket in tickets.items():
                messages[client] = _message(orders.to(client, ticket), there[client], kind, self.deadline)
            for client, reply in _gathered(self.grid, messages, self.deadline).items():
                found[client] = _read(client, reply, tickets[client], orders.digest, limits)
        self.mute.difference_update(found)
        self.mute.update(client for client in asked if client not in found)
        silent = f"no answer within {self.deadline:g} seconds"
        return [(client, found.get(client, Fault(client, "silent", silent))) for client in asked]


class _Orders:
    """An order to many clients, each of whom is told only what concerns it: not what others want forgotten."""

    def __init__(self, program: Program | None, weights: Weights | None, turn: Turn, view: View) -> None:
        self.digest = "" if weights is None else weights.digest()
        self._what, self._view = (program, weights, turn), view
        self._made: list[tuple[View, Broadcast, ArrayRecord | bytes]] = []  # those who are told the same have one

    def to(self, client: ClientId, ticket: str) -> RecordDict:
        order, tensors = self._broadcast(_concerning(self._view, client))
        return parcel(order.to(client, ticket).text, tensors)

    def _broadcast(self, view: View) -> tuple[Broadcast, ArrayRecord | bytes]:
        for known, order, tensors in self._made:
            if known == view:
                return order, tensors
        order = Broadcast(*self._what, view)
        body = order.to("", "").body
        self._made.append((view, order, body_record(body) if body else b""))
        return self._made[-1][1:]


_COUNT = Limits(0, 0, 10_000)  # of an answer that is one number


@dataclass(frozen=True)
class Stranger:
    """A node that is not used, why, and whether it has answered at all: if not, it may when it is asked again."""

    node: int
    reason: str
    answered: bool = True


@dataclass(frozen=True)
class Greeting:
    """Who is there.

    Attributes:
        nodes: of each client that is there, in the roster's order.
        strangers: nodes that are nobody's, or cannot prove whose.
    """

    nodes: dict[ClientId, int]
    strangers: list[Stranger]


def greet(grid: Grid, roster: Mapping[ClientId, str] | None, *, deadline: float = 60.0) -> Greeting:
    """Ask all nodes who they are.

    Args:
        grid: Flower's.
        roster: the public key of each client, as `PublicKey.of` reads it: a node is whose key it signs with. None, in
            a simulation: clients are "0", "1" and so on, as nodes say of themselves.
        deadline: seconds to wait for answers.

    Raises:
        KeyProblem: the roster holds something that is no key.
        ValueError: two clients on the roster have the same key.
    """
    keys = None if roster is None else {PublicKey.of(text).text: client for client, text in roster.items()}
    if roster is not None and keys is not None and len(keys) < len(roster):
        raise ValueError("two clients on the roster have the same key: each needs one of its own")
    nonces = {node: secrets.token_hex(16) for node in grid.get_node_ids()}
    messages = {node: _message(talk({"nonce": nonce}), node, HELLO, deadline) for node, nonce in nonces.items()}
    replies = _gathered(grid, messages, deadline)
    claims: dict[ClientId, list[int]] = {}
    strangers = []
    for node, message in messages.items():
        try:
            if node not in replies:
                strangers.append(Stranger(node, "it gave no answer", answered=False))
                continue
            signed = {"nonce": nonces[node], "node_id": node, "run_id": message.metadata.run_id}
            claims.setdefault(_claimed(_told_by(replies[node]), signed, keys), []).append(node)
        except MessageError as error:
            strangers.append(Stranger(node, str(error)))
    for client, several in claims.items():
        if len(several) > 1:
            strangers += [Stranger(node, f"{len(several)} nodes say that they are client {client}") for node in several]
    order = list(roster) if roster is not None else sorted(claims, key=int)
    return Greeting({c: claims[c][0] for c in order if len(claims.get(c, ())) == 1}, strangers)


def exchange(
    grid: Grid,
    nodes: Mapping[ClientId, int],
    answers: Mapping[ClientId, list[dict[str, Any]]],
    deadline: float,
    faults: Callable[[Fault], None] | None = None,
) -> dict[ClientId, list[dict[str, Any]]]:
    """Give clients the answers to their deletion requests, and take the requests that are open at each.

    What comes back was written by somebody else, and has been looked at no further than that it is a list of tables.

    Args:
        grid: Flower's.
        nodes: whom to ask, and where each is.
        answers: for those of them for whom there are any.
        deadline: seconds to wait.
        faults: is told of clients that gave no usable answer; they are not in the result.
    """
    messages = {
        client: _message(talk({"answers": answers.get(client, [])}), node, REQUESTS, deadline)
        for client, node in nodes.items()
    }
    replies, statements = _gathered(grid, messages, deadline), {}
    for client in nodes:
        fault = None
        if client not in replies:
            fault = Fault(client, "silent", f"no answer within {deadline:g} seconds")
        else:
            try:
                found = _told_by(replies[client]).get("statements")
                if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                    raise MessageError("an answer without a list of statements")
                statements[client] = found
            except MessageError as error:
                fault = Fault(client, "malformed", str(error))
        if fault is not None and faults is not None:
            faults(fault)
    return statements


def _concerning(view: View, client: ClientId) -> View:
    """The view, without what plainly changes nothing at a client."""
    keeps = (_narrowed(predicate, client) for predicate in view.keeps)
    request = None if view.request is None else _narrowed(view.request, client)
    nothing = request is None or wholly(request, client) is False
    return View(tuple(kept for kept in keeps if wholly(kept, client) is not True), None if nothing else request)


def _narrowed(predicate: Predicate, client: ClientId) -> Predicate:
    if isinstance(predicate, Rest):
        return Rest(_narrowed(predicate.request, client))
    if isinstance(predicate, AnyOf):
        some = (request for request in predicate.concerning(client) if wholly(request, client) is not False)
        return AnyOf(tuple(_narrowed(request, client) for request in some))
    return predicate


def _message(content: RecordDict, node: int, kind: str, deadline: float) -> Message:
    return Message(content, node, kind, ttl=deadline)


def _gathered(grid: Grid, messages: Mapping[_K, Message], deadline: float) -> dict[_K, Message]:
    """The replies that come in time; who is not there, or was killed at work, has given none."""
    end, pause = time.monotonic() + deadline, _POLL
    pushed = _pushed(grid, list(messages.values()))
    waiting = {m.metadata.message_id: key for key, m in messages.items() if m.metadata.message_id in pushed}
    replies: dict[_K, Message] = {}
    while True:
        for reply in _pulled(grid, list(waiting)):
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None and not (reply.has_error() and reply.error.code in _ABSENCES):
                replies[key] = reply
        left = end - time.monotonic()
        if not waiting or left <= 0:
            return replies
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _SLOWEST_POLL)


def _pushed(grid: Grid, messages: list[Message]) -> set[str]:
    """Ids of the messages that are on their way; none, where the link is down."""
    try:
        return {id for id in grid.push_messages(messages) if id}
    except Exception as error:
        _log.warning("messages could not be pushed: %r", error)
        return set()


def _pulled(grid: Grid, ids: Sequence[str]) -> list[Message]:
    """What has come by now. What cannot be pulled, or is no message of Flower's, has not come."""
    try:
        return list(grid.pull_messages(ids))
    except Exception as error:  # one bad message must not hide the others, nor a link that starts again end the round
        _log.warning("replies could not be pulled: %r", error)
        return [] if len(ids) == 1 else [reply for id in ids for reply in _pulled(grid, [id])]


def _read(client: ClientId, reply: Message, ticket: str, digest: str, limits: Limits) -> Reply | Fault:
    if reply.has_error():
        return Fault(client, "failed", f"its app broke off (Flower's error {reply.error.code}): its own log says why")
    try:
        answer: Answer = read_answer(Envelope(*unpacked(reply)), limits)
    except TooLarge as error:
        return Fault(client, "too large", str(error))
    except (WireError, MessageError) as error:
        return Fault(client, "malformed", str(error))
    if answer.failed is not None and answer.ticket in ("", ticket):  # it could not read the order, or not carry it out
        return Fault(client, "failed", _line(answer.failed))
    if (answer.ticket, answer.digest) != (ticket, digest):
        return Fault(client, "stale", "the answer is to another order")
    return answer.reply


def _suspected(client: ClientId, reply: Reply, sent: Weights) -> Reply | Fault:
    """The reply, if it is one that may be averaged."""
    if reply.weights is not None:
        theirs, ours = _shapes(reply.weights), _shapes(sent)
        if theirs != ours:
            first = next(n for n in (*ours, *theirs) if theirs.get(n) != ours.get(n))
            return Fault(client, "misshapen", f"{first[:80]!r} is not as it was sent: {theirs.get(first)}")
    for model in (reply.weights, *reply.extra.values()):
        if model is not None and not _finite(model):
            return Fault(client, "not finite", "a tensor of its weights holds NaN or infinity")
    return reply


def _finite(weights: Weights) -> bool:
    tensors = (*weights.parameters.values(), *weights.buffers.values())
    narrow = (t.float() if t.is_floating_point() and t.itemsize == 1 else t for t in tensors)  # float8 cannot be asked
    return all(bool(torch.isfinite(tensor).all()) for tensor in narrow)


def _shapes(weights: Weights) -> dict[str, tuple[str, torch.dtype, tuple[int, ...]]]:
    kinds = {"parameter": weights.parameters, "buffer": weights.buffers}
    return {n: (kind, t.dtype, tuple(t.shape)) for kind, named in kinds.items() for n, t in named.items()}


def _told_by(reply: Message) -> dict[str, Any]:
    """The plain values of an answer to a query."""
    if reply.has_error():
        raise MessageError(f"its app broke off (Flower's error {reply.error.code})")
    content = said(reply)
    if "failed" in content:
        raise MessageError(_line(str(content["failed"])))
    return content


def _claimed(content: Mapping[str, Any], signed: Mapping[str, Any], keys: Mapping[str, ClientId] | None) -> ClientId:
    """Whose node this is."""
    if keys is None:
        partition = content.get("partition")
        if type(partition) is not int or partition < 0:
            raise MessageError("it does not say which partition it has")
        return str(partition)
    try:
        key = PublicKey.of(str(content.get("key")))
    except KeyProblem:
        raise MessageError("it gave no key") from None
    if key.text not in keys:
        raise MessageError(f"its key {key.fingerprint} is not on the list of clients")
    if not key.verified("hello", signed, content.get("signature")):
        raise MessageError(f"it could not sign with the key {key.fingerprint} that it shows")
    return keys[key.text]


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST_DETAIL]
