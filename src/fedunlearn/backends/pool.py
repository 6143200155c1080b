"""Worker processes that last: started once, told a round at a time."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from fedunlearn.backends.packing import pack, receive, send, unpack
from fedunlearn.federation import ClientId, Reply

__all__ = ["Pool"]


class Pool:
    """Processes that execute programs at clients, side by side.

    They are plain subprocesses: threads would mix the draws of dropout, ``fork`` hangs once OpenMP has run, and
    multiprocessing's ``spawn`` imports the user's script anew, which then needs a ``__main__`` guard.
    """

    _QUEUED = 2  # clients given to one worker at a time: one in work, one waiting, so that nobody idles

    def __init__(self, workers: int, setup: object) -> None:
        frames = pack(setup)
        self._place = _written(frames)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fedunlearn.backends.worker"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(workers)
        ]
        self._inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.close = weakref.finalize(self, _close, self._processes, self._place)
        hello = pack((sys.path, str(self._place), [len(frame) for frame in frames]))
        for number, process in enumerate(self._processes):
            self._send(number, hello)
            reader = threading.Thread(
                target=_read, args=(number, cast(BinaryIO, process.stdout), self._inbox), daemon=True
            )
            reader.start()
        self._starting = workers
        self._busy = False

    def __len__(self) -> int:
        return len(self._processes)

    def ready(self, *, wait: bool) -> bool:
        """Whether all workers have started.

        Raises:
            RuntimeError: one of them could not.
        """
        while self._starting and (wait or not self._inbox.empty()):
            self._message()
            self._starting -= 1
            if not self._starting:
                _forget(self._place)  # all have mapped it
        return not self._starting

    def run(self, message: tuple[Any, ...], clients: Sequence[ClientId]) -> Iterator[tuple[ClientId, Reply]]:
        """Tell every worker ``message``, then share out the clients; replies in the clients' order.

        At most ``2 * len(self)`` replies wait for an earlier one, whatever the number of clients.
        """
        if self._busy:
            raise RuntimeError("read a round to its end, or close it, before the next one starts on the same federation")
        self._busy = True
        todo = deque(enumerate(clients))
        given: list[deque[int]] = [deque() for _ in self._processes]  # positions in ``clients``, by worker
        early: dict[int, tuple[str, Any]] = {}
        try:
            told = pack(("round", *message))
            for number in range(len(self)):
                self._send(number, told)
            for position in range(len(clients)):
                while position not in early:
                    window = position + self._QUEUED * len(self)
                    while todo and todo[0][0] < window and (number := self._idlest(given)) is not None:
                        at, client = todo.popleft()
                        given[number].append(at)
                        self._send(number, pack(("client", client)))
                    number, answer = self._message()
                    early[given[number].popleft()] = answer
                kind, content = early.pop(position)
                if kind == "error":
                    raise content
                yield clients[position], content
        finally:
            # A reader that stops early leaves work behind; its replies must not be mistaken for the next round's.
            while any(given) and self.close.alive:
                number, _ = self._message()
                given[number].popleft()
            self._busy = False

    def _idlest(self, given: Sequence[deque[int]]) -> int | None:
        number = min(range(len(self)), key=lambda number: len(given[number]))
        return number if len(given[number]) < self._QUEUED else None

    def _send(self, number: int, frames: Sequence[memoryview]) -> None:
        try:
            send(cast(BinaryIO, self._processes[number].stdin), frames)
        except (BrokenPipeError, OSError):
            self._died(number)

    def _message(self) -> tuple[int, tuple[str, Any]]:
        number, answer = self._inbox.get()
        if answer is None:
            self._died(number)
        return number, answer

    def _died(self, number: int) -> NoReturn:
        code = self._processes[number].wait()
        self.close()
        raise RuntimeError(f"a worker process died (exit code {code}): memory may be short; workers=1 needs the least")


def _read(number: int, outbox: BinaryIO, inbox: queue.SimpleQueue[tuple[int, Any]]) -> None:
    while True:
        try:
            kind, _, content = unpack(receive(outbox))
        except (EOFError, ValueError, OSError):  # the worker died, or the pool was closed
            inbox.put((number, None))
            return
        inbox.put((number, (kind, content)))


def _written(frames: Sequence[memoryview]) -> Path:
    """The set-up in a file that all workers map, tensors at multiples of 64 bytes."""
    with tempfile.NamedTemporaryFile(prefix="fedunlearn-", delete=False) as file:
        for frame in frames:
            file.write(frame)
            file.write(bytes(-len(frame) % 64))
        file.write(b"\0")  # an empty file cannot be mapped
    return Path(file.name)


def _forget(place: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a mapped file; `_close` tries again
        place.unlink(missing_ok=True)


def _close(processes: Sequence[subprocess.Popen[bytes]], place: Path) -> None:
    for process in processes:
        process.kill()  # it holds nothing that could be lost
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                cast(BinaryIO, pipe).close()
        process.wait()
    _forget(place)
