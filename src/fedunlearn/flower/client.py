"""The app of a Flower client: it does what it is ordered, says who it is, and hands over what it wants forgotten.

Only what trains or counts waits for torch. Write the imports of torch in your own app inside your functions too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedunlearn.flower.messages import HELLO, REQUESTS, WORK, parcel, said, talk, unpacked

if TYPE_CHECKING:
    from torch import nn

    from fedunlearn.architecture import Architecture
    from fedunlearn.backends.envelope import Limits, Order
    from fedunlearn.client import Client, View
    from fedunlearn.federation import ClientId, Predicate, Reply

__all__ = ["Place", "client_app"]

_log = logging.getLogger(__name__)

Place = Path | Callable[[Context], Path]
"""Where a node keeps something: a path, or how to find it from the node's own context (its ``node_config``)."""

_LONGEST_SENTENCE = 300  # characters


def client_app(
    model: Callable[[], nn.Module] | Architecture,
    data: Callable[[Context], Any],
    *,
    outbox: Place | None = None,
    key: Place | None = None,
    programs: Sequence[type] = (),
    validation: float = 0.2,
    seed: int = 0,
    values: bool = False,
    limits: Limits | None = None,
) -> ClientApp:
    """A Flower client that takes part in training, unlearning and recovery, and can ask to be forgotten.

    What the user's code raises is answered in one sentence; the traceback stays in the node's own log.

    Args:
        model: builds the network, or an `Architecture`.
        data: the node's own samples: whatever `fedunlearn.samples.as_samples` takes. Called for every order.
        outbox: folder of the node's deletion requests; None: it makes none.
        key: file of the private key that its SuperNode authenticates itself with; None in a simulation, where a node
            is known by its partition's number.
        programs: types of programs, predicates and losses of your own that the server may order.
        validation: share in [0, 1) of the samples that is kept for validation.
        seed: of the draw of that share.
        values: whether programs may answer with numbers per sample, which say which samples a client has.
        limits: of an order; None: `Limits()`.
    """
    app, node = ClientApp(), _Node(model, data, outbox, key, tuple(programs), validation, seed, values, limits)
    app.train(WORK)(node.work)
    app.evaluate(WORK)(node.work)
    app.query(HELLO.partition(".")[2])(node.hello)
    app.query(REQUESTS.partition(".")[2])(node.requests)
    return app


class _Refused(Exception):
    """Why an order is not carried out, in a sentence that the server may read."""


@dataclass
class _Node:
    """What `client_app` was given."""

    model: Callable[[], nn.Module] | Architecture
    data: Callable[[Context], Any]
    outbox: Place | None
    key: Place | None
    programs: tuple[type, ...]
    validation: float
    seed: int
    values: bool
    limits: Limits | None
    _architecture: Architecture | None = field(default=None, init=False)

    def work(self, message: Message, context: Context) -> Message:
        """Carry out an order."""
        from fedunlearn.backends.envelope import Answer, Envelope, Limits, read_order, write_answer
        from fedunlearn.backends.wire import WireError

        ticket = digest = ""
        try:
            order = read_order(Envelope(*unpacked(message)), self.limits or Limits(), self.programs)
            ticket, digest = order.ticket, order.digest
            answer = write_answer(Answer(ticket, digest, self._done(order, context)))
        except Exception as error:
            _log.exception("an order was not carried out")
            told = _sentence(error) if isinstance(error, _Refused | WireError) else type(error).__name__
            answer = write_answer(Answer(ticket, digest, failed=told))
        return Message(parcel(answer.text, answer.body), reply_to=message)

    def hello(self, message: Message, context: Context) -> Message:
        """Say who this node is."""
        try:
            return Message(talk(self._introduction(said(message), context)), reply_to=message)
        except Exception:
            _log.exception("the node cannot say who it is")
            return Message(talk({"failed": "it cannot say who it is: its own log says why"}), reply_to=message)

    def requests(self, message: Message, context: Context) -> Message:
        """Take the server's answers to deletion requests, and hand over those that are open."""
        try:
            statements: list[dict[str, Any]] = []
            if self.outbox is not None:
                from fedunlearn.deletion.outbox import Outbox

                statements = Outbox(_found(self.outbox, context)).exchange(said(message)["answers"])
            return Message(talk({"statements": statements}), reply_to=message)
        except Exception:
            _log.exception("the outbox could not be exchanged with the server")
            return Message(talk({"failed": "its outbox cannot be used: its own log says why"}), reply_to=message)

    def _introduction(self, asked: dict[str, Any], context: Context) -> dict[str, Any]:
        if self.key is None:
            return {"partition": context.node_config["partition-id"]}
        from fedunlearn.deletion.signing import SigningKey

        key = SigningKey.load(_found(self.key, context))
        content = {"nonce": str(asked["nonce"]), "node_id": context.node_id, "run_id": context.run_id}
        return {"key": key.public.text, "signature": key.sign("hello", content)}

    def _done(self, order: Order, context: Context) -> Reply:
        from fedunlearn.backends.in_process import best_device
        from fedunlearn.client import execute
        from fedunlearn.federation import ClientError, Reply

        client = self._client(order.client, context)
        view = self._resolved(order.view, client, context)
        try:
            positions = view.of(client).positions(None, "train")
        except Exception as error:
            raise _Refused(f"which samples are meant could not be told ({type(error).__name__})") from error
        if order.program is None or order.weights is None:
            return Reply(samples=len(positions))
        try:
            reply = execute(order.program, order.weights, order.turn, view, client, self._network(), best_device())
        except ClientError as error:
            cause = error.__cause__ or error
            # An error's text may name a sample, a patient or a file; the node's own log has it.
            raise _Refused(f"its own code failed ({type(cause).__name__}): its log says why") from error
        if reply.values and not self.values:
            raise _Refused(
                "a node gives out no values per sample, for they tell of single samples: allow it by "
                "client_app(..., values=True)"
            )
        return reply

    def _client(self, id: ClientId, context: Context) -> Client:
        from fedunlearn.client import Client

        try:
            return Client.of(id, self.data(context), validation=self.validation, seed=self.seed)
        except Exception as error:
            raise _Refused(f"its samples could not be loaded ({type(error).__name__})") from error

    def _resolved(self, view: View, client: Client, context: Context) -> View:
        from fedunlearn.requests import ForgetClass, ForgetClient, ForgetInstances, resolved

        def known(request: str) -> Predicate:
            try:
                return meant(request)
            except _Refused:
                raise
            except Exception as error:
                raise _Refused(f"it cannot say what request {request[:40]!r} means ({type(error).__name__})") from error

        def meant(request: str) -> Predicate:
            if self.outbox is None:
                raise LookupError("there is no outbox")
            from fedunlearn.deletion.outbox import OtherData, Outbox

            outbox = Outbox(_found(self.outbox, context))
            kind, _, label = outbox.meant(request).scope.partition(":")
            if kind == "client":
                return ForgetClient(client.id)
            if kind == "class":
                return ForgetClass(int(label))
            labels = client.labels.numpy().astype("<i8", copy=False).tobytes()
            try:
                return ForgetInstances({client.id: outbox.places(request, labels)})
            except OtherData as error:  # its numbers are the node's own: they stay in its log and its outbox
                raise _Refused(f"the data are not those that request {request[:40]!r} was filed about") from error

        return resolved(view, client.id, known)

    def _network(self) -> Architecture:
        from fedunlearn.architecture import Architecture

        if self._architecture is None:
            self._architecture = self.model if isinstance(self.model, Architecture) else Architecture(self.model)
        return self._architecture


def _found(place: Place, context: Context) -> Path:
    return place(context) if callable(place) else place


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST_SENTENCE]
