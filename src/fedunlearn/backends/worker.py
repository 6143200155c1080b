"""A worker process: ``python -m fedunlearn.backends.worker``, spoken to over its standard input and output.

It never imports the user's ``__main__``: scripts need no guard, and notebooks and standard input work too.
What it is told: a set-up (the search path, and where architecture, clients and device lie); then, any number of
times, a round, followed by the clients to run it at, one by one. Another set-up may follow.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import traceback
from typing import Any, BinaryIO, cast

import torch

from fedunlearn.backends.packing import pack, receive, send, unpack
from fedunlearn.client import execute

__all__ = ["serve"]

Answer = tuple[str, str | None, Any]  # kind, client, content


def serve(inbox: BinaryIO, outbox: BinaryIO) -> None:
    """Work until the other side hangs up."""
    torch.set_num_threads(
        1
    )  # one everywhere: bits would change with the number, and two of them get in each other's way
    send(outbox, pack(("ready", None, None)))
    clients, program, weights, turn, view, architecture, device = (cast(Any, None),) * 7
    while True:
        kind, *message = unpack(receive(inbox))
        try:
            if kind == "round":
                program, weights, turn, view = message
                continue
            if kind == "setup":
                sys.path[:], place, sizes = message
                architecture, clients, device = unpack(_mapped(place, sizes))
                answer: Answer = ("ready", None, None)
            else:
                (client,) = message
                reply = execute(program, weights, turn, view.of(clients[client]), architecture, device)
                answer = ("reply", client, reply)
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))  # a traceback does not travel
            answer = ("error", None, error)
        send(outbox, _packed(answer))


def _packed(answer: Answer) -> list[memoryview]:
    try:
        return pack(answer)
    except Exception as error:  # not everything can be pickled, an exception least of all
        told = RuntimeError(f"{answer[2]!r} cannot travel between processes ({error}); run with workers=1 to see more")
        return pack(("error", None, told))


def _mapped(place: str, sizes: list[int]) -> list[memoryview]:
    """The set-up, mapped: all workers share one copy of the root data, page by page."""
    with open(place, "rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    frames, start = [], 0
    for size in sizes:
        frames.append(whole[start : start + size])
        start += -(-size // 64) * 64  # tensors begin at multiples of 64 bytes
    return frames


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then hangs up
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the user's code prints must not end up among the messages
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        serve(inbox, outbox)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone: there is nobody to say anything to


if __name__ == "__main__":
    _main()
