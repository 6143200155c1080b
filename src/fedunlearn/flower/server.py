"""The server of a Flower app that trains, and forgets when it is asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.serverapp import Grid
from torch import nn

from fedunlearn.architecture import Architecture
from fedunlearn.deletion.events import Opened
from fedunlearn.deletion.plan import Plan, ServiceError
from fedunlearn.deletion.register import Register
from fedunlearn.deletion.service import Service
from fedunlearn.deletion.signing import SigningKey
from fedunlearn.flower.site import FlowerSite, read_roster
from fedunlearn.weights import Weights

__all__ = ["serve"]


def serve(
    grid: Grid,
    model: Callable[[], nn.Module] | Architecture,
    plan: Plan,
    *,
    register: Path,
    key: Path,
    clients: Path | None = None,
    initial: Weights | None = None,
    deadline: float = 600.0,
    fewest: int = 1,
    patience: float = 600.0,
) -> Weights:
    """Train and forget until the plan is done; started again after any end, it goes on where it was.

    Args:
        grid: of the ServerApp.
        model: builds the network, or an `Architecture`.
        plan: what to do.
        register: folder of the register; made where there is none.
        key: file of the server's private key (``fedunlearn keys new``).
        clients: file with the public key of each client (`fedunlearn.flower.site.read_roster`). None: a simulation,
            where nodes are believed what they say they are. Never leave it out in a deployment.
        initial: the model to begin with, the same at each start; None: a new one.
        deadline: seconds for one exchange of messages; who has not answered twice is left out.
        fewest: clients that must answer in each round.
        patience: seconds to wait for them at the start.

    Returns:
        The newest model.

    Raises:
        KeyProblem, RosterProblem, RegisterError, ServiceError, TooFewClients: the sentence says what to do.
    """
    architecture = model if isinstance(model, Architecture) else Architecture(model)
    roster = read_roster(clients) if clients is not None else None
    signing = SigningKey.load(key)
    begun = initial or architecture.fresh(plan.seed)
    if Register.exists(register):
        book = Register.open(register, signing)
    else:
        opened = Opened(roster or {}, signing.public.text, Service.about(plan, begun))
        book = Register.create(register, signing, opened)
    with book:
        if roster is None and book.standing().enrolled:
            raise ServiceError(
                "this register is of a deployment, whose clients are known by their keys: give clients=..."
            )
        if roster is not None:
            book.enrol(roster)
        site = FlowerSite(grid, architecture, roster, deadline=deadline, fewest=fewest, patience=patience)
        return Service(site, book, signing, architecture, plan, begun).run()
