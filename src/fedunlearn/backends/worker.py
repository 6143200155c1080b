"""A worker process, spoken to over its standard input and output.

It never imports the user's ``__main__``: scripts need no guard, and notebooks and standard input work too.
What it is told: a set-up (the search path, and where architecture, clients and device lie); then, any number of
times, a round, followed by the clients to run it at, one by one. Another set-up may follow.
"""

from __future__ import annotations

import mmap
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch

from fedunlearn.backends.packing import CannotTravel, pack, receive, send, unpack
from fedunlearn.client import execute

__all__ = ["Settings", "main", "serve"]


@dataclass(frozen=True)
class Settings:
    """What torch keeps process-wide and computes by: workers must have the user's."""

    dtype: torch.dtype
    mkldnn: bool
    matmul: str
    deterministic: bool
    deterministic_warns: bool

    @classmethod
    def here(cls) -> Settings:
        """Those of this process."""
        return cls(
            torch.get_default_dtype(),
            bool(torch.backends.mkldnn.enabled),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def apply(self) -> None:
        """Take them over."""
        if self == Settings.here():
            return  # torch imports its compiler to be told of determinism: over a second, and 150 MB in each worker
        torch.set_default_dtype(self.dtype)
        torch.backends.mkldnn.enabled = self.mkldnn  # type: ignore[assignment]
        torch.set_float32_matmul_precision(self.matmul)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.deterministic_warns)


def serve(inbox: BinaryIO, outbox: BinaryIO) -> None:
    """Work until the other side hangs up."""
    send(outbox, pack(("ready", None)))
    clients, program, weights, turn, view, architecture, device = (cast(Any, None),) * 7
    while True:
        kind, *message = unpack(receive(inbox))
        try:
            if kind == "round":
                settings, program, weights, turn, view = message
                settings.apply()
                continue
            if kind == "setup":
                sys.path[:], place, sizes = message
                architecture, clients, device = unpack(_mapped(place, sizes))
                answer: tuple[str, Any] = ("ready", None)
            else:
                (client,) = message
                answer = ("reply", execute(program, weights, turn, view, clients[client], architecture, device))
        except Exception as error:
            answer = ("error", error)
        send(outbox, _packed(*answer))


def _packed(kind: str, content: Any) -> list[memoryview]:
    """An answer that can be read on the other side, come what may."""
    if kind != "error":
        try:
            return pack((kind, content))
        except CannotTravel as error:
            return pack(("error", (error, None)))
    content.add_note("".join(traceback.format_exception(content)))  # a traceback does not travel
    for told in ((content, content.__cause__), (content, None)):
        try:
            frames = pack((kind, told))
            unpack(frames)  # an exception with a constructor of its own can be written and yet not be read
            return frames
        except Exception:
            continue
    return pack((kind, (RuntimeError(str(content)), None)))


def _mapped(place: str, sizes: list[int]) -> list[memoryview]:
    """The set-up, mapped: all workers share one copy of the root data, page by page."""
    with open(place, "rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    frames, start = [], 0
    for size in sizes:
        frames.append(whole[start : start + size])
        start += -(-size // 64) * 64  # tensors begin at multiples of 64 bytes
    return frames


def main() -> None:
    """Be a worker."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the user's code prints must not end up among the messages
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        serve(inbox, outbox)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone: there is nobody to say anything to
