"""The example's processes, of which none is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower-hospital"


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Whatever happens in the body, the processes of a folder end; that none is left is seen in another way too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # of a time limit: else nobody would end them
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if folder.exists():
            _end(folder)


def _end(folder: Path) -> None:
    from deployment import Deployment

    deployment = Deployment(folder)
    deployment.stop()
    marks = (str(deployment.folder), deployment.address)
    left = {pid: command for pid, command in _commands().items() if any(mark in command for mark in marks)}
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == {}
    assert list(deployment.processes()) == []


def _commands() -> dict[int, str]:
    """Of all other processes on this machine."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found.pop(os.getpid(), None)
    return found
