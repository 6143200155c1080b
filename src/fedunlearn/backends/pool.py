"""Worker processes that last: started once, told a round at a time."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar, NoReturn, cast

from fedunlearn.backends.packing import pack, receive, send, unpack
from fedunlearn.federation import ClientId, Reply

__all__ = ["Pool", "WorkerDied"]

# glibc gives large blocks back to the system when they are freed and faults in fresh pages when the next batch
# needs them: more than a quarter of a worker's time on a small CNN. So workers keep what they once had.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**40)}


class WorkerDied(RuntimeError):
    """A worker process is gone, and its work with it."""


class Pool:
    """Processes that execute programs at clients, side by side.

    They are plain subprocesses: threads would mix the draws of dropout, ``fork`` hangs once OpenMP has run, and
    multiprocessing's ``spawn`` imports the user's script anew, which then needs a ``__main__`` guard.
    """

    _QUEUED = 2  # clients given to one worker at a time: one in work, one waiting, so that nobody idles
    _shared: ClassVar[dict[int, Pool]] = {}

    @classmethod
    def shared(cls, workers: int) -> Pool:
        """The process-wide pool of so many workers, started if need be: starting takes seconds, a set-up does not."""
        if not cls.runs(workers):
            cls._shared[workers] = cls(workers)
        return cls._shared[workers]

    @classmethod
    def runs(cls, workers: int) -> bool:
        """Whether there is one already."""
        return workers in cls._shared and cls._shared[workers].close.alive

    @classmethod
    def disown(cls) -> None:
        """In a forked child: the workers, and the threads that listen to them, are the parent's."""
        for pool in cls._shared.values():
            pool.close.detach()
        cls._shared.clear()

    def __init__(self, workers: int) -> None:
        environment = {**_KEEP_MEMORY, **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        # Ctrl-C is for the parent, which then hangs up. And the search path is the parent's from the first import on:
        # neither another installation of this package nor a module in the current directory may come in between.
        deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
        path = "import json, sys; sys.path[:] = json.loads(sys.argv.pop())"
        serve = "from fedunlearn.backends.worker import main; main()"
        command = [sys.executable, "-P", "-c", f"{deaf}; {path}; {serve}", json.dumps(sys.path)]
        self._processes = [
            subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(workers)
        ]
        self._inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        readers = [
            threading.Thread(target=_read, args=(number, process.stdout, self._inbox), daemon=True)
            for number, process in enumerate(self._processes)
        ]
        for reader in readers:
            reader.start()
        self.close = weakref.finalize(self, _close, self._processes, readers)
        self._starting = workers
        self._owner: Callable[[], object] = lambda: None
        self.busy = False

    def __len__(self) -> int:
        return len(self._processes)

    def started(self, *, wait: bool) -> bool:
        """Whether all workers have started.

        Raises:
            RuntimeError: one of them could not.
        """
        while self._starting and (wait or not self._inbox.empty()):
            with self._exclusively():
                self._message()
                self._starting -= 1
        return not self._starting

    def belongs_to(self, owner: object, setup: Callable[[], object]) -> None:
        """Set the workers up for ``owner``, unless they are: architecture, clients, device.

        Raises:
            CannotTravel: the set-up cannot be sent to another process.
        """
        if self._owner() is owner:
            return
        frames = pack(setup())
        place = _written(frames)
        try:
            with self._exclusively():
                self._tell(pack(("setup", sys.path, str(place), [len(frame) for frame in frames])))
                answers = [self._message()[1] for _ in self._processes]
        finally:
            place.unlink()  # those who needed it have mapped it
        for kind, content in answers:
            if kind == "error":
                raise _with_cause(content)
        self._owner = weakref.ref(owner)

    def run(self, message: tuple[Any, ...], clients: Sequence[ClientId]) -> Iterator[tuple[ClientId, Reply]]:
        """Tell every worker ``message``, then share out the clients; replies in the clients' order.

        At most ``2 * len(self)`` replies wait for an earlier one, whatever the number of clients.
        """
        todo = deque(enumerate(clients))
        given: list[deque[int]] = [deque() for _ in self._processes]  # positions in ``clients``, by worker
        early: dict[int, tuple[str, Any]] = {}
        failed: BaseException | None = None
        told = pack(("round", *message))
        with self._exclusively():
            self._tell(told)
            try:
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
                        failed = _with_cause(content)
                        break
                    yield clients[position], content
            except GeneratorExit:  # the reader stops early
                self._drain(given)
                raise
            self._drain(given)
        if failed is not None:
            raise failed

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Work whose messages nobody else may read.

        What breaks it off in the middle of a message (Ctrl-C, a dead worker) leaves pipes in a state that nobody
        knows: then the workers end, and others start when they are needed.
        """
        self.busy = True
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self.busy = False

    def _drain(self, given: Sequence[deque[int]]) -> None:
        """Await what is still at work, so that its replies are not mistaken for the next round's."""
        while any(given):
            number, _ = self._message()
            given[number].popleft()

    def _idlest(self, given: Sequence[deque[int]]) -> int | None:
        number = min(range(len(self)), key=lambda number: len(given[number]))
        return number if len(given[number]) < self._QUEUED else None

    def _tell(self, frames: Sequence[memoryview]) -> None:
        for number in range(len(self)):
            self._send(number, frames)

    def _send(self, number: int, frames: Sequence[memoryview]) -> None:
        try:
            send(cast(BinaryIO, self._processes[number].stdin), frames)
        except OSError:  # a broken pipe
            self._died(number)

    def _message(self) -> tuple[int, tuple[str, Any]]:
        number, answer = self._inbox.get()
        if answer is None:
            self._died(number)
        return number, answer

    def _died(self, number: int) -> NoReturn:
        code = self._processes[number].wait()
        self.close()
        why = "the system killed it, perhaps for want of memory" if code == -signal.SIGKILL else "see its error output"
        raise WorkerDied(
            f"a worker process died (exit code {code}): {why}; with one worker (workers=1, --workers 1) none is needed"
        )


def _with_cause(content: tuple[BaseException, BaseException | None]) -> BaseException:
    error, cause = content
    error.__cause__ = cause
    return error


def _read(number: int, outbox: IO[bytes] | None, inbox: queue.SimpleQueue[tuple[int, Any]]) -> None:
    while True:
        try:
            frames = receive(cast(BinaryIO, outbox))
        except (EOFError, ValueError, OSError):  # the worker died, or the pool was closed
            inbox.put((number, None))
            return
        try:
            kind, content = unpack(frames)
        except Exception as error:  # the worker has seen to it that this does not happen, but a hang is worse
            kind, content = "error", (RuntimeError(f"a worker's answer cannot be read here: {error!r}"), None)
        inbox.put((number, (kind, content)))


def _written(frames: Sequence[memoryview]) -> Path:
    """The set-up in a file that all workers map, tensors at multiples of 64 bytes."""
    with tempfile.NamedTemporaryFile(prefix="fedunlearn-", delete=False) as file:
        for frame in frames:
            file.write(frame)
            file.write(bytes(-len(frame) % 64))
        file.write(b"\0")  # an empty file cannot be mapped
    return Path(file.name)


def _close(processes: Sequence[subprocess.Popen[bytes]], readers: Sequence[threading.Thread]) -> None:
    for process in processes:
        process.kill()  # it holds nothing that could be lost
    for process, reader in zip(processes, readers, strict=True):
        process.wait()
        reader.join()  # it finds the pipe's end; the interpreter must not end while somebody reads
        for pipe in (process.stdin, process.stdout):
            cast(BinaryIO, pipe).close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Pool.disown)
