"""What is fuzzed, and what is held against each input."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

__all__ = ["Finding", "Target", "examine", "folder"]

_SECONDS = 1.0  # of this process's own time, whatever else the machine is doing, and for each MiB of input:
_EACH_SECONDS = 10.0
_GROWTH = 64 * 2**20  # bytes of memory, beyond so many for each byte of input:
_EACH = 200  # a list in a list is 3 characters, some 64 bytes as an object, and there are two or three copies
_SENTENCE = 2000  # characters
_MEMORY = Path("/proc/self/status")
_FORGET_PEAK = Path("/proc/self/clear_refs")
_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


class Finding(AssertionError):
    """An input that breaks the rule."""


@dataclass(frozen=True)
class Target:
    """A reader, or several that read the same.

    Attributes:
        name: on the command line.
        read: gives the readers an input.
        refuses: the errors that they may raise.
        seeds: inputs to begin with, sound ones.
        mutated: an input made of another, which keeps its outer form, by these draws.
        lines: whether an error may have several sentences, a line each.
    """

    name: str
    read: Callable[[bytes], None]
    refuses: tuple[type[Exception], ...]
    seeds: Callable[[], Sequence[bytes]]
    mutated: Callable[[bytes, Random], bytes]
    lines: bool = False


def examine(target: Target, data: bytes) -> bool:
    """Whether the input is read, and not refused.

    Raises:
        Finding: it breaks the rule.
    """
    with _measured(len(data)), _watched():
        try:
            target.read(data)
        except target.refuses as error:
            _require_sentence(str(error), lines=target.lines)
            return False
        except (Finding, KeyboardInterrupt):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            raise Finding(f"{type(error).__name__}: {str(error)[:200]}") from error
    return True


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of one input, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(prefix="fuzzing-", dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


def _require_sentence(text: str, *, lines: bool) -> None:
    told = text.split("\n") if lines else [text]
    if not all(0 < len(line) <= _SENTENCE for line in told):
        raise Finding(f"an error of {len(text)} characters")
    if not all(line.isprintable() for line in told):
        raise Finding(f"an error that cannot be printed as one line: {text[:200]!r}")


@contextmanager
def _measured(size: int) -> Iterator[None]:
    before, started = _forgotten_peak(), time.process_time()
    yield
    took, grown = time.process_time() - started, _bytes("VmHWM") - before
    if took > _SECONDS + _EACH_SECONDS * size / 2**20:
        raise Finding(f"{took:.1f} s for {size} bytes")
    if grown > _GROWTH + _EACH * size:
        raise Finding(f"{grown >> 20} MiB of memory for {size} bytes")


def _forgotten_peak() -> int:
    """Bytes that are in use now, from which on the system takes down the most again; 0 where it does not."""
    try:
        _FORGET_PEAK.write_text("5")
    except OSError:
        return sys.maxsize
    return _bytes("VmRSS")


def _bytes(name: str) -> int:
    """A number of Linux's about this process; 0 on other systems."""
    if not _MEMORY.exists():
        return 0
    lines = _MEMORY.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


_seen: list[str] | None = None  # by the hook, which Python does not let one take away again


@contextmanager
def _watched() -> Iterator[None]:
    """Nothing is unpickled, no process started, nobody called."""
    global _seen
    if _hook not in _hooked:
        sys.addaudithook(_hook)
        _hooked.append(_hook)
    _seen = []
    try:
        yield
        if _seen:
            raise Finding(f"what was read has led to {', '.join(sorted(set(_seen)))}")
    finally:
        _seen = None


_hooked: list[object] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event in _FORBIDDEN:
        _seen.append(event)
