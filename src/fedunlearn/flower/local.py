"""Flower's grid in this process: try an app, and what happens when nodes fail, without a SuperLink."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Hook", "Late", "LocalGrid"]


@dataclass(frozen=True, eq=False)
class Late:
    """A reply that comes only so many seconds after it was asked for."""

    reply: Message
    seconds: float


Hook = Callable[[int, Message, Callable[[], Message]], Message | Late | None]
"""Stands between the grid and its nodes: ``(node, message, have the node answer) -> reply``; None: none will come."""


class LocalGrid(Grid):
    """A grid whose nodes work here, one after another, when they are asked.

    Every message is written to the bytes that Flower sends, and read back from them. Node ids are random, and so is
    the order in which replies come, as on many machines.

    Args:
        app: of all clients.
        node_configs: of each node, such as ``{"partition-id": 0, "num-partitions": 3}``.
        hook: makes nodes fail; None: they do not.
        keep: whether what was sent, both ways, is kept in ``sent``, a message each.
    """

    def __init__(
        self,
        app: ClientApp,
        node_configs: Sequence[Mapping[str, bool | float | int | str]],
        *,
        hook: Hook | None = None,
        keep: bool = False,
    ) -> None:
        self.sent: list[bytes] = []
        self.hook = hook
        self._app, self._keep = app, keep
        self._run = Run.create_empty(_run_of_this_process())
        self._nodes = {
            node: Context(self._run.run_id, node, dict(config), RecordDict(), {})
            for node, config in ((secrets.randbits(63), config) for config in node_configs)
        }
        self._replies: dict[str, tuple[float, Message]] = {}  # from when on each is there

    @property
    def run(self) -> Run:
        """See `Grid.run`."""
        return self._run

    def set_run(self, run: Run) -> None:
        """See `Grid.set_run`."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See `Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """See `Grid.get_node_ids`."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """See `Grid.push_messages`."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            ids.append(message.metadata.message_id)
            answer = self._answer(message.metadata.dst_node_id, self._carried(message))
            if answer is not None:
                late = answer if isinstance(answer, Late) else Late(answer, 0)
                self._replies[ids[-1]] = time.monotonic() + late.seconds, self._carried(late.reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See `Grid.pull_messages`."""
        there = [id for id in message_ids if id in self._replies and self._replies[id][0] <= time.monotonic()]
        random.SystemRandom().shuffle(there)
        return [self._replies.pop(id)[1] for id in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """See `Grid.send_and_receive`."""
        waiting, replies = set(self.push_messages(messages)), []
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while True:
            came = self.pull_messages(waiting)
            replies += came
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            if not waiting or time.monotonic() >= end:
                return replies
            time.sleep(0.01)

    def _answer(self, node: int, message: Message) -> Message | Late | None:
        if node not in self._nodes:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message)

        def answer() -> Message:
            try:
                return self._app(message, self._nodes[node])
            except Exception as error:
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)

        return answer() if self.hook is None else self.hook(node, message, answer)

    def _carried(self, message: Message) -> Message:
        """The message as it arrives: from nothing but bytes."""
        objects = {id: item.deflate() for id, item in get_all_nested_objects(message).items()}
        if self._keep:
            self.sent.append(b"".join(objects.values()))
        arrived = cast(Message, inflate_object_from_contents(message.object_id, objects))
        arrived.metadata.__dict__["_message_id"] = message.object_id
        return arrived


def _run_of_this_process() -> int:
    """The run whose messages this process writes: that of a `ServerApp`, or a new one."""
    try:
        return TaskIdentity.run_id
    except RuntimeError:  # nobody has said so yet, and without it Flower makes no message
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = secrets.randbits(63), SUPERLINK_NODE_ID, 0
        return TaskIdentity.run_id
