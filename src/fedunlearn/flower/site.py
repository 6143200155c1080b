"""The machines behind a Flower grid, as a server that trains and forgets needs them: who is who, today."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedunlearn.architecture import Architecture
from fedunlearn.deletion.signing import KeyProblem, PublicKey
from fedunlearn.federation import ClientId, TooFewClients
from fedunlearn.flower.federation import Fault, Flower, exchange, greet

__all__ = ["FlowerSite", "RosterProblem", "read_roster"]

_LOOK = 1.0  # seconds between two looks for nodes at the start
_QUESTION = 120.0  # seconds at most for an answer that needs no computing: a new process at each node, and no torch
_PATIENCE = 16  # looks at most until whoever did not say who it is is asked again: each time costs as many seconds


class RosterProblem(ValueError):
    """The list of clients is not as it must be; the sentence says what to do."""


def read_roster(path: Path) -> dict[ClientId, str]:
    """The list of clients with their public keys: a TOML file with the table ``[clients]``.

    ::

        [clients]
        hospital-1 = "ecdsa-sha2-nistp384 AAAA..."

    Raises:
        RosterProblem: there is none, it is no TOML, or an entry is no key, or one that stands there twice.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise RosterProblem(f"the list of clients {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RosterProblem(f"{path} is no TOML: {error}") from None
    clients = content.get("clients")
    if content.keys() != {"clients"} or not isinstance(clients, dict) or not clients:
        raise RosterProblem(f'{path} needs one table, [clients], with lines such as hospital-1 = "ecdsa-... AAAA..."')
    roster: dict[ClientId, str] = {}
    keys = set[str]()
    for client, text in clients.items():
        try:
            key = PublicKey.of(text if isinstance(text, str) else "").text
        except KeyProblem as error:
            raise RosterProblem(f"{path}, client {client}: {error}") from None
        if key in keys:
            raise RosterProblem(f"{path}, client {client}: another client has the same key; each needs its own")
        keys.add(key)
        roster[client] = key
    return roster


class FlowerSite:
    """See `fedunlearn.deletion.plan.Site`.

    Nodes come and go, and may come back under another number: who is who is asked again whenever they have changed.

    Args:
        grid: of the ServerApp.
        architecture: of the network.
        roster: public key of each client; None: a simulation, where a node's partition says who it is.
        deadline: seconds for one exchange of messages.
        fewest: clients that must be there to begin, and must answer in each round.
        patience: seconds to wait for them at the start.

    Raises:
        TooFewClients: they are not there in time.
    """

    def __init__(
        self,
        grid: Grid,
        architecture: Architecture,
        roster: Mapping[ClientId, str] | None,
        *,
        deadline: float = 600.0,
        fewest: int = 1,
        patience: float = 600.0,
    ) -> None:
        self._grid, self._roster, self._deadline = grid, roster, deadline
        self._greeted: frozenset[int] = frozenset()
        self._seen: frozenset[int] = frozenset()  # those of them who have said who they are
        self._strangers: set[int] = set()
        self._looks, self._patience = 0, 1  # since the last greeting; before the next, where somebody was mute
        self._faults: list[tuple[ClientId, str, str]] = []
        self._nodes: dict[ClientId, int | None] = dict.fromkeys(roster or ())
        end = time.monotonic() + patience
        while sum(node is not None for node in self._nodes.values()) < fewest:
            if time.monotonic() > end:
                there = sum(node is not None for node in self._nodes.values())
                raise TooFewClients(
                    f"{there} of the clients are there, where {fewest} are needed: start their SuperNodes, then the "
                    "server again"
                )
            self._meet()
            time.sleep(0 if all(self._nodes.values()) and self._nodes else _LOOK)
        self.federation = Flower(grid, self._nodes, architecture, deadline=deadline, fewest=fewest, faults=self._note)

    def exchange(self, answers: Mapping[ClientId, Sequence[Mapping[str, Any]]]) -> dict[ClientId, list[dict[str, Any]]]:
        """See `Site.exchange`."""
        self._meet()
        there = {client: node for client, node in self._nodes.items() if node is not None}
        deadline = min(self._deadline, _QUESTION)
        told = {client: [dict(answer) for answer in some] for client, some in answers.items()}
        return exchange(self._grid, there, told, deadline, self._note)

    def faults(self) -> list[tuple[ClientId, str, str]]:
        """See `Site.faults`."""
        found, self._faults = self._faults, []
        return found

    def _meet(self) -> None:
        """Ask who is who, if nodes have come or gone, or one of them has not said it yet."""
        try:
            seen = frozenset(self._grid.get_node_ids())
        except Exception as error:  # whatever the link raises while it starts again
            raise TooFewClients(f"which nodes there are could not be asked ({error!r})") from error
        self._looks += 1
        if seen == self._seen or (seen == self._greeted and self._looks < self._patience):
            return
        self._patience = min(2 * self._patience, _PATIENCE) if seen == self._greeted else 1
        self._looks, self._greeted = 0, seen
        greeting = greet(self._grid, self._roster, deadline=min(self._deadline, _QUESTION))
        if self._roster is None and not self._nodes:
            self._nodes.update(greeting.nodes)
        for client in self._nodes:
            self._nodes[client] = greeting.nodes.get(client)
        for stranger in greeting.strangers:
            if stranger.node not in self._strangers:
                self._strangers.add(stranger.node)
                self._faults.append(("", "stranger", f"node {stranger.node}: {stranger.reason}"))
        self._seen = seen.difference(stranger.node for stranger in greeting.strangers if not stranger.answered)

    def _note(self, fault: Fault) -> None:
        self._faults.append((fault.client, fault.kind, fault.detail))
