"""What a message costs in a SuperLink's own database; see `benchmarks/scale.py`, whose stage "queue" it is.

The state of Flower's SuperLink (1.42) is driven without HTTP, TLS and the store of what messages hold, so that a real
one takes longer. It is of Flower's insides: with another version it may have to be written anew.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

__all__ = ["queue_point"]


def queue_point(nodes: int) -> dict[str, Any]:
    """Seconds to register a node, and to put a message to each of all into the queue and take it out."""
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "state.db")
        manager = NoOpFederationManager()
        state = LinkStateFactory(database, manager, ObjectStoreFactory(database)).state()
        manager.linkstate = state
        run = state.create_run(None, None, "00" * 32, {}, NOOP_FEDERATION_ID, None, "owner", TaskType.SERVER_APP)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, SUPERLINK_NODE_ID, 1
        started = time.perf_counter()
        there = [state.create_node("owner", "name", secrets.token_bytes(48), 1e9) for _ in range(nodes)]
        registered = time.perf_counter()
        for node in there:
            state.activate_node(node, 1e9)
        activated = time.perf_counter()
        for node in there:
            message = Message(RecordDict({"body": ConfigRecord({"answers": "[]"})}), node, "query.requests", ttl=1e6)
            message.metadata.__dict__["_message_id"] = secrets.token_hex(32)
            if state.store_message_ins(message) is None:
                raise RuntimeError("the SuperLink did not take a message")
        stored = time.perf_counter()
        fetched = sum(len(state.get_message_ins(node, 1)) for node in there)
        if fetched != nodes:
            raise RuntimeError(f"{fetched} of {nodes} messages came out")
        ended = time.perf_counter()
        return {
            "registering": (registered - started) / nodes,
            "storing": (stored - activated) / nodes,
            "fetching": (ended - stored) / nodes,
            "asking who is there": _timed_nodes(state, run),
            "bytes": Path(database).stat().st_size / nodes,
        }


def _timed_nodes(state: Any, run: int) -> float:
    started = time.perf_counter()
    state.get_nodes(run)
    return time.perf_counter() - started
