"""What goes wrong with checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedunlearn.amounts import brief

__all__ = ["CheckpointError", "refusing"]


class CheckpointError(ValueError):
    """A checkpoint cannot be read, negated or written; it is as it was, and nothing new was written.

    Where even that could not be had (the disk failed while a negation in place was undone), the sentence says so. It
    is printable, and short, whatever names are in it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(brief(sentence))


@contextmanager
def refusing(verb: str, path: Path) -> Iterator[None]:
    """Make a sentence of the system's errors: ``cannot VERB PATH: No space left on device``."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot {verb} {path}: {error.strerror or error}") from error
