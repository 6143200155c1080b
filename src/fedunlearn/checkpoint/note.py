"""A note beside a checkpoint: its sign history, where the header has no room for it.

Most writers leave no room in a header, and making some would move all data. A note names the bytes that it speaks of by
a digest, so that it is void once the file was replaced by another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fedunlearn.atomic import FileError, read_json
from fedunlearn.checkpoint.disk import File
from fedunlearn.checkpoint.errors import CheckpointError, refusing
from fedunlearn.checkpoint.header import Header, History, as_history
from fedunlearn.checkpoint.journal import Stretch

__all__ = ["mark_of", "note_of", "note_text", "noted"]

_MARK = 4096  # bytes of each negated stretch


def note_of(path: Path) -> Path:
    """The note that belongs to a file."""
    return path.with_name(f"{path.name}.negations.json")


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
    try:
        with refusing("read", path):
            content = read_json(path)
        if not content:
            return ()
        places = [(int(start), int(stop)) for start, stop in content["places"]]
        if not all(0 <= start <= stop <= min(file.size, start + _MARK) for start, stop in places):
            return ()
        starts = [file.read(start, stop - start).tobytes() for start, stop in places]
        return as_history(path, content["negations"]) if _mark(header, starts) == content["sha256"] else ()
    except (FileError, KeyError, TypeError, OverflowError) as error:
        raise strange from error
    except ValueError as error:
        raise error if isinstance(error, CheckpointError) else strange from error


def _mark(header: Header, starts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join([header.text, *starts])).hexdigest()
