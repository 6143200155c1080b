"""Keys of servers and nodes: made, shown, followed by others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedunlearn.commands.options import Json, print_json

__all__ = ["keys"]

keys = typer.Typer(
    name="keys", help="Make the keys that requests, registers and receipts are signed with.", no_args_is_help=True
)


@keys.command("new")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of the private key; the public one is FILE.pub.")],
    node: Annotated[bool, typer.Option("--node", help="A SuperNode's, on the curve P-384; else a server's.")] = False,
) -> None:
    """Make a key: a private half that stays on this machine, and a public one for everybody."""
    from fedunlearn.deletion.signing import SigningKey

    made = SigningKey.make(file, node=node)
    print(f"fingerprint: {made.public.fingerprint}")
    print(f"private key: {file} (for this user's eyes only)")
    print(f"public key: {file}.pub")


@keys.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A private key, or a public one.")],
    as_json: Json = False,
) -> None:
    """Print the public half of a key, and its fingerprint."""
    from fedunlearn.deletion.signing import public_half

    key = public_half(file)
    if as_json:
        print_json({"key": key.text, "fingerprint": key.fingerprint})
        return
    print(key.text)
    print(f"fingerprint: {key.fingerprint}")


@keys.command("rotate")
def rotate(
    register: Annotated[Path, typer.Argument(metavar="REGISTER", help="Its folder; no server may be at work there.")],
    key: Annotated[Path, typer.Option(metavar="OLD", help="The private key that signs it now.")],
    new: Annotated[Path, typer.Option(metavar="NEW", help="The private key that signs it from now on.")],
) -> None:
    """Have a register signed with another key from here on; the old one signs that this one follows it."""
    from fedunlearn.deletion.register import Register
    from fedunlearn.deletion.signing import SigningKey

    following = SigningKey.load(new)
    with Register.open(register, SigningKey.load(key)) as opened:
        head = opened.rotate(following)
    print(f"{register} is signed with {head.key} from event {head.count - 1} on")
    print(f"before the server is started again, put {new} where its app looks for its key (keep {key}.pub)")
    print(f"give {new}.pub to whoever checks receipts that are issued from now on")
