"""Receipts, to be checked and read by whoever has been given one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedunlearn.amounts import printable
from fedunlearn.commands.options import Json, print_json

__all__ = ["receipt"]

receipt = typer.Typer(name="receipt", help="Check a receipt of a deletion request, or read it.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The receipt, as `fedunlearn requests export` writes it.")]


@receipt.command("verify")
def verify_receipt(
    file: File,
    key: Annotated[
        Path, typer.Option(metavar="PUBLIC", help="The server's public key, from a source that you trust: a .pub file.")
    ],
    as_json: Json = False,
) -> None:
    """Say whether a receipt is as the server signed it; nothing is asked of the server."""
    from fedunlearn.deletion.receipt import read, verify
    from fedunlearn.deletion.signing import PublicKey

    content, public = read(file), PublicKey.load(key)
    problems = verify(content, public)
    status = None if problems else content["audit"]["status"]
    if as_json:
        print_json({"receipt": str(file), "key": public.fingerprint, "problems": problems, "audit": status})
    else:
        for problem in problems:
            print(f"{file}: {printable(problem)}")
    if problems:
        raise typer.Exit(1)
    if not as_json:
        print(f"{file}: signed by {public.fingerprint}, unchanged; audit: {status}")


@receipt.command("show")
def show_receipt(file: File) -> None:
    """Print a receipt for people; whether it is right only `fedunlearn receipt verify` says."""
    from fedunlearn.deletion.receipt import read, tell

    print(tell(read(file)))
