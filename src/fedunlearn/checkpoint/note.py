"""A note beside a checkpoint: its sign history, where the header has no room for it.

Most writers leave no room in a header, and making some would move all data. A note names the bytes that it speaks of by
a digest, so that it is void once the file was replaced by another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from fedunlearn.checkpoint.disk import File, text_of
from fedunlearn.checkpoint.errors import CheckpointError
from fedunlearn.checkpoint.header import Header, History, as_history
from fedunlearn.checkpoint.journal import LARGEST, NOTE, Stretch

__all__ = ["mark_of", "note_of", "note_text", "noted"]

_MARK = 4096  # bytes of each negated stretch


def note_of(path: Path) -> Path:
    """The note that belongs to a file."""
    return path.with_name(f"{path.name}{NOTE}")


def mark_of(stretch: Stretch) -> int:
    """How many bytes of a stretch go into the digest; whole numbers."""
    return min(_MARK, stretch.stop - stretch.start)


def note_text(negations: History, header: Header, stretches: Sequence[Stretch], starts: Sequence[bytes]) -> str:
    """What a note says.

    Args:
        negations: those that the header does not tell of.
        header: of the file.
        stretches: that were negated last.
        starts: the first bytes of each, `mark_of` many, after that.
    """
    places = [(one.start, one.start + len(start)) for one, start in zip(stretches, starts, strict=True)]
    return json.dumps({"negations": negations, "places": places, "sha256": _mark(header, starts)}, indent=1) + "\n"


def noted(file: File, header: Header) -> History:
    """The history in the note beside a file; none where there is no note, or it is of other numbers.

    Raises:
        CheckpointError: it is no note.
    """
    path = note_of(file.path)
    strange = CheckpointError(f"{path} is no sign history: remove it if {file.path.name} was never negated in place")
    text = text_of(path, LARGEST)
    if text is None:
        return ()
    try:
        content = json.loads(text)
        places = [(int(start), int(stop)) for start, stop in content["places"]]
        negations, digest = as_history(path, content["negations"]), content["sha256"]
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise strange from error
    # Those of a file are apart from one another: they are read once, and no more than there is.
    apart = all(first[1] <= second[0] for first, second in pairwise(places))
    if not apart or not all(0 <= start <= stop <= min(file.size, start + _MARK) for start, stop in places):
        return ()
    starts = (file.read(start, stop - start).tobytes() for start, stop in places)
    return negations if _mark(header, starts) == digest else ()


def _mark(header: Header, starts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(header.text)
    for start in starts:
        digest.update(start)
    return digest.hexdigest()
