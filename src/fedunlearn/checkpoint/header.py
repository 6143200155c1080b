"""The header of a safetensors file: 8 bytes of its length, then JSON, which may end with spaces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedunlearn.checkpoint.disk import File
from fedunlearn.checkpoint.errors import CheckpointError
from fedunlearn.checkpoint.journal import settle
from fedunlearn.names import Part

__all__ = [
    "ALIASES",
    "BUFFERS",
    "DTYPES",
    "NEGATIONS",
    "PARAMETERS",
    "Header",
    "History",
    "as_history",
    "history",
    "once_each",
    "opened",
    "texts",
    "value",
]

History = tuple[tuple[str, ...], ...]
"""The names that each negation negated, the oldest first."""

NEGATIONS = "fedunlearn.negations"
"""Metadata key of the sign history: a JSON list with a list of names for each negation, the oldest first."""

PARAMETERS = "fedunlearn.parameters"  # JSON list: safetensors sorts tensors by dtype and name, their order is lost
BUFFERS = "fedunlearn.buffers"  # JSON list
ALIASES = "fedunlearn.aliases"  # JSON object: another name of a tied parameter -> its name
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The format's names of dtypes -> torch's; others keep the format's."""

_ROOM = 4096  # bytes that a header grows by: all data keep their place within a block, so that files can share blocks


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        text: the JSON as it stands, with the spaces after it.
        tensors: the format's entries by name, in the order of their bytes.
        metadata: texts by key.
    """

    text: bytes
    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]

    @classmethod
    def parsed(cls, text: bytes) -> Header:
        """Of a header that was found sound.

        Raises:
            ValueError: a key stands twice in it.
        """
        entries = json.loads(text, object_pairs_hook=once_each)
        metadata = entries.pop("__metadata__", None) or {}
        return cls(text, dict(sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])), metadata)

    @property
    def start(self) -> int:
        """Where the data begin, in bytes from the file's start."""
        return 8 + len(self.text)

    def place(self, part: Part) -> tuple[int, int]:
        """The bytes of a part, from the file's start."""
        first, last = (self.start + offset for offset in self.tensors[part.name]["data_offsets"])
        if part.rows is None:
            return first, last
        row = (last - first) // self.tensors[part.name]["shape"][0]
        return first + row * part.rows[0], first + row * part.rows[1]

    def compact(self, metadata: Mapping[str, str]) -> bytes:
        """The JSON with other metadata, no longer than it must be to align the data to 8 bytes."""
        content = {"__metadata__": dict(metadata), **self.tensors}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        return text.ljust(-(-len(text) // 8) * 8)

    def telling(self, metadata: Mapping[str, str]) -> bytes:
        """The JSON with other metadata: as long as this one where there is room, else longer and with new room."""
        text, length = self.compact(metadata).rstrip(), len(self.text)
        if len(text) > length:
            length += -(-(len(text) - length) // _ROOM) * _ROOM
            length += -length % 8  # the data of old files may not be aligned
        return text.ljust(length)


@contextmanager
def opened(path: Path) -> Iterator[tuple[File, Header]]:
    """A file and its header, which the safetensors library has found sound.

    What a negation in place left behind when it was killed is undone first.

    Raises:
        CheckpointError: it is no sound safetensors file, or it was changed before this context is left.
    """
    settle(path)
    with File.opened(path) as file:
        stamp = file.stamp
        header = _read(file)
        yield file, header
        with File.opened(path) as now:
            if not stamp == file.stamp == now.stamp:
                raise CheckpointError(f"{path} changed while it was read: try again")


def history(path: Path, metadata: Mapping[str, str]) -> History:
    """The sign history in metadata.

    Raises:
        CheckpointError: it is none.
    """
    return as_history(path, value(path, metadata, NEGATIONS, []))


def as_history(path: Path, entries: Sequence[Any]) -> History:
    """The sign history that a list is.

    Raises:
        CheckpointError: it is none.
    """
    if not all(isinstance(entry, list) and all(isinstance(name, str) for name in entry) for entry in entries):
        raise CheckpointError(f"{path}: its metadata {NEGATIONS!r} is no list of lists of names: remove or mend it")
    return tuple(map(tuple, entries))


def value(path: Path, metadata: Mapping[str, str], key: str, default: Any) -> Any:
    """A metadata value, which must be of the default's type.

    Raises:
        CheckpointError: it is not.
    """
    try:
        found = json.loads(metadata[key]) if key in metadata else default
    except (ValueError, RecursionError):  # a number of more digits than Python reads is a ValueError
        found = None
    if type(found) is not type(default):
        raise _not_ours(path, key)
    return found


def texts(path: Path, metadata: Mapping[str, str], key: str, default: Any) -> Any:
    """A metadata value, which must be a list of texts, or an object of them, as the default is.

    Raises:
        CheckpointError: it is not.
    """
    found = value(path, metadata, key, default)
    if not all(isinstance(one, str) for one in (found.values() if isinstance(found, dict) else found)):
        raise _not_ours(path, key)
    return found


def _not_ours(path: Path, key: str) -> CheckpointError:
    return CheckpointError(f"{path}: its metadata {key!r} is not ours to read: remove or mend it")


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object, whose keys must differ: readers would disagree which one counts."""
    entries: dict[str, Any] = {}
    for key, one in pairs:
        if key in entries:
            raise ValueError(f"{key!r} stands twice in it")
        entries[key] = one
    return entries


def _read(file: File) -> Header:
    path = file.path
    if file.size >= 4 and bytes(file.read(0, 4)) == b"PK\x03\x04":  # a zip archive, which is what torch.save makes
        raise CheckpointError(f"{path} is a pickled checkpoint: save its weights with safetensors.torch.save_file")
    try:
        with safe_open(path, framework="np"):  # reads no more of the header than there is, and bounds it
            pass
        length = int.from_bytes(file.read(0, 8).tobytes(), "little")
        return Header.parsed(file.read(8, min(length, file.size - 8)).tobytes())
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        why = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(f"{path} is no complete safetensors file ({why}): fetch or save it again") from error
