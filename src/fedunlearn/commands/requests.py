"""Deletion requests: filed, looked at, and held against what was signed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedunlearn.amounts import printable
from fedunlearn.commands.options import Json, print_json, writing
from fedunlearn.commands.register_standing import described, tell_standing

if TYPE_CHECKING:
    from fedunlearn.deletion.outbox import Posted
    from fedunlearn.deletion.signing import PublicKey
    from fedunlearn.deletion.standing import Entry

__all__ = ["requests"]

requests = typer.Typer(
    name="requests",
    help="File deletion requests, see how they stand, and check a server's register.",
    no_args_is_help=True,
)

_SHORT = 8  # digits of an id in a table
_LONGEST = 500  # characters of a sentence with names in it

Where = Annotated[Path, typer.Argument(metavar="DIR", help="A server's register, or an outbox.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the request; its first digits will do.")]


@requests.command("new")
def new_request(
    scope: Annotated[str, typer.Option(metavar="client|class:3|instances:FILE", help="What is to be forgotten.")],
    reason: Annotated[str, typer.Option(help="One line, for the register and the receipt.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key of whoever files it.")],
    outbox: Annotated[Path | None, typer.Option(metavar="DIR", help="A node's own: it is asked for itself.")] = None,
    register: Annotated[Path | None, typer.Option(metavar="DIR", help="A server's: its operator files.")] = None,
    client: Annotated[str | None, typer.Option(help="Whom it is about, where the operator files it.")] = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="The node has deleted the samples already; none can be audited.")
    ] = False,
) -> None:
    """File a request: a node in its outbox, which its ClientApp reads, or the operator at the server.

    The server takes it in between two rounds.
    """
    from fedunlearn.deletion.outbox import Outbox, desk
    from fedunlearn.deletion.signing import SigningKey

    if (outbox is None) == (register is None):
        raise ValueError("say where to file it: --outbox DIR at a node, or --register DIR at the server")
    signing = SigningKey.load(key)
    if outbox is not None:
        if client is not None:
            raise ValueError("a node files for itself alone: leave out --client, or give --register at the server")
        _require_nodes(outbox, signing.public)
        filing = Outbox(outbox).file(scope, reason, signing, deleted=deleted)
    else:
        assert register is not None
        _require_operators(scope, client, deleted)
        _require_known(register, signing.public, client)
        filing = desk(register).file(scope, reason, signing, client=client)
    print(f"request {filing.id} {'was filed before' if filing.again else 'filed'}")


@requests.command("list")
def list_requests(where: Where, as_json: Json = False) -> None:
    """All requests, oldest first, and how they stand."""
    rows = _rows(where)
    if as_json:
        print_json([row.json for row in rows])
        return
    if not rows:
        print(f"{where} holds no request")
        return
    from rich.table import Table

    from fedunlearn.console import console

    since = ("Since",) if _is_register(where) else ()  # an outbox does not know it
    table = Table(
        "Request", "State", *since, "Scope", "Client", "Reason", header_style="bold", box=None, pad_edge=False
    )
    for row in rows:
        said = row.why if row.state == "refused" else row.reason
        times = (row.since,) if since else ()
        cells = (row.request[:_SHORT], row.state, *times, row.scope, row.client or "", said)
        table.add_row(*map(printable, cells))
    console().print(table)


@requests.command("show")
def show_request(
    where: Where,
    request: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Of a request; its first digits will do. Without it: the service."),
    ] = None,
    as_json: Json = False,
) -> None:
    """All that is known of one request; or where a server's service stands: rounds, who was absent, faults."""
    if request is None:
        _show_service(where, as_json)
        return
    row = _one(where, request)
    if as_json:
        print_json({**row.json, "receipt": row.receipt})
        return
    lines = [
        ("request", row.request),
        *(("scope", row.scope), ("client", row.client or "not named"), ("reason", row.reason), ("filed", row.filed)),
        *(("data", row.data), ("state", row.state)),
        *((f"  {state}", at) for state, at in row.times.items()),
        *([("why", row.why)] if row.why else []),
        *_bound(where, row),
        *([("receipt", f"fedunlearn requests export {where} {row.request} -o FILE")] if row.receipt else []),
    ]
    for name, text in lines:
        print(f"{printable(name):<15}{printable(text)}")


@requests.command("gone")
def say_gone(
    request: Id,
    outbox: Annotated[Path, typer.Option(metavar="DIR", help="The node's own.")],
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Move the places that other requests name down, as the samples have.")
    ] = False,
) -> None:
    """Say, right after deleting a request's single samples from the node's data, that they are gone.

    Their places are removed, and none of the samples that are left is meant.
    """
    from fedunlearn.deletion.outbox import Outbox

    id = _one(outbox, request).request
    moved = Outbox(outbox).gone(id, renumber=renumber)
    print(f"request {id}: its samples are gone")
    for other in moved:
        print(f"request {other}: renumbered")


@requests.command("export")
def export_receipt(
    where: Where,
    request: Id,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")],
) -> None:
    """Write the receipt of a request that is done."""
    from fedunlearn.deletion.receipt import write

    row = _one(where, request)
    if row.receipt is None:
        raise ValueError(f"request {row.request} is {row.state}: there is a receipt once it is done")
    with writing(output):
        write(row.receipt, output)
    print(f"receipt: {output}")


@requests.command("verify")
def verify_register(
    register: Annotated[Path, typer.Argument(metavar="REGISTER", help="A server's register.")],
    key: Annotated[
        list[Path] | None,
        typer.Option(metavar="PUBLIC", help="A public key that you trust; may be given several times."),
    ] = None,
    receipt: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A receipt of it, which shows an older register; several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a register is as its server wrote it: nothing changed, removed, reordered or cut off."""
    from fedunlearn.deletion.receipt import read
    from fedunlearn.deletion.signing import PublicKey
    from fedunlearn.deletion.verification import verify

    if not _is_register(register):  # a mistake, and no problem of a register
        raise ValueError(f"there is no register in {register}: name the folder that the server writes")
    keys, receipts = [PublicKey.load(path) for path in key or ()], [read(path) for path in receipt or ()]
    found = verify(register, keys, receipts)
    if as_json:
        told = {"register": str(register), "events": found.events}
        print_json({**told, "warnings": found.warnings, "problems": found.problems})
    else:
        for warning in found.warnings:
            print(f"warning: {printable(warning)}")
        for problem in found.problems:
            print(f"problem: {printable(problem)}")
    if found.problems:
        raise typer.Exit(1)
    if not as_json:
        print(f"{register}: {found.events} events, as its server wrote them")


@dataclass(frozen=True)
class _Row:
    """A request, as a register, its desk or an outbox knows it.

    Attributes:
        times: when it came into each state, as a register knows.
        why: it was refused.
    """

    request: str
    state: str
    scope: str = ""
    client: str | None = None
    reason: str = ""
    filed: str = ""
    data: str = ""
    times: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    receipt: dict[str, Any] | None = None

    @classmethod
    def entered(cls, entry: Entry) -> _Row:
        """Of a register."""
        said = (entry.scope, entry.client, entry.reason, entry.filed, entry.data)
        return cls(entry.request, entry.state, *said, entry.times, entry.why, entry.receipt)

    @classmethod
    def posted(cls, posted: Posted) -> _Row:
        """Of an outbox."""
        said, answer = posted.signed.statement, posted.answer
        why, receipt = ("", None) if answer is None else (answer.why, answer.receipt)
        asked = (said.scope, said.client, said.reason, said.filed, said.data)
        return cls(said.id, posted.state, *asked, why=why, receipt=receipt)

    @property
    def since(self) -> str:
        """When it came into its state, where that is known."""
        return self.times.get(self.state, "")

    @property
    def json(self) -> dict[str, Any]:
        """For scripts: whether there is a receipt, not the receipt."""
        return {**asdict(self), "receipt": self.receipt is not None}


def _rows(where: Path) -> list[_Row]:
    """All requests of a register, with those that wait on its desk, or of an outbox."""
    from fedunlearn.deletion.outbox import Outbox, desk

    if not where.is_dir():
        raise ValueError(f"there is no folder {where}: give a server's register, or an outbox")
    if not _is_register(where):
        return [_Row.posted(one) for one in Outbox(where).entries()]
    from fedunlearn.deletion.register import Register

    standing = Register.read(where).standing()
    rows = [_Row.entered(entry) for entry in standing.requests.values()]
    rows += [
        _Row(event.request, "refused", client=event.client, times={"refused": at}, why=event.why)
        for at, event in standing.refused
        if event.request not in standing.requests
    ]
    known = {row.request for row in rows}
    waiting = map(_Row.posted, desk(where).entries())
    return rows + [replace(row, state="on the desk") for row in waiting if row.request not in known]


def _one(where: Path, id: str) -> _Row:
    """The request whose id begins like this."""
    if not id:
        raise ValueError(f"say which request, by the first digits of its id: see `fedunlearn requests list {where}`")
    found = {row.request: row for row in _rows(where) if row.request and row.request.startswith(id)}
    if len(found) > 1 and id not in found:
        raise ValueError(f"{len(found)} requests begin with {id}: give more digits")
    if not found:
        raise ValueError(f"no request in {where} begins with {id}: see `fedunlearn requests list {where}`")
    return found[id] if id in found else next(iter(found.values()))


def _show_service(where: Path, as_json: bool) -> None:
    from fedunlearn.deletion.register import Register

    if where.is_dir() and not _is_register(where):
        raise ValueError(f"{where} is no register: say which request, see `fedunlearn requests list {where}`")
    standing = Register.read(where).standing()
    if as_json:
        print_json(described(standing))
    else:
        print(tell_standing(standing))


def _bound(where: Path, row: _Row) -> Iterator[tuple[str, str]]:
    """The data that a node's request names places of, and whether an order was refused because they are others now."""
    from fedunlearn.deletion.outbox import Outbox

    bound = None if _is_register(where) else Outbox(where).bound(row.request)
    if bound is not None:
        labels = "renumbered" if bound.labels is None else f"labels SHA-256 {bound.labels[:16]}..."
        yield "places in", f"{bound.samples} samples, {labels}"
        if bound.found is not None:
            yield "but found", f"{bound.found} samples, not those: no order is carried out until they are there again"


def _is_register(folder: Path) -> bool:
    return (folder / "register.sqlite").exists()


def _require_operators(scope: str, client: str | None, deleted: bool) -> None:
    """An operator files for a class, or for a client that cannot ask itself; single samples only a node can name."""
    if scope.partition(":")[0] == "instances":
        raise ValueError("single samples are named by the node that holds them: file it there, with --outbox")
    if deleted:
        raise ValueError("whether data are deleted only the node can say: leave out --deleted")
    if scope == "client" and client is None:
        raise ValueError("say which client: --client NAME")
    if scope != "client" and client is not None:
        raise ValueError("a class is forgotten wherever it is: leave out --client")


def _require_nodes(outbox: Path, key: PublicKey) -> None:
    """What a node files has its own key, in a folder of its own."""
    if not key.of_node:
        raise ValueError("a node files with its SuperNode's key, and this is a server's: give the node's --key")
    if _is_register(outbox.resolve().parent):
        raise ValueError(
            f"{outbox} is in a server's register: a node's outbox is elsewhere, the operator's is --register"
        )


def _require_known(register: Path, key: PublicKey, client: str | None) -> None:
    """The server refuses what another key has signed, and whoever was never on its list; better to hear it now."""
    from fedunlearn.deletion.register import Register

    known = Register.read(register)
    if key.fingerprint != known.head.key:
        raise ValueError(f"the register's key is {known.head.key}, and you gave {key.fingerprint}: give the server's")
    enrolled = known.standing().enrolled  # nobody is on a simulation's list
    if client is not None and enrolled and client not in enrolled:
        told = f"no client {client} was ever on the list; there are {', '.join(sorted(enrolled))}"
        raise ValueError(printable(told)[:_LONGEST])
