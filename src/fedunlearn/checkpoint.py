"""Checkpoints in the safetensors format: negating one without knowing its model, and keeping `Weights`.

Only ``save_weights`` and ``load_weights`` need torch. A negated file is its source with some sign bits
flipped, so that it is streamed: neither the network nor a whole tensor is ever in memory. Pickled
checkpoints (.pt, .pth) are refused, for loading one runs whatever code is in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from fedunlearn.atomic import atomic_write
from fedunlearn.names import NO_NEGATIVE_ZERO, SIGNED, Layer, LayerError, Part, guess_kinds, pick

if TYPE_CHECKING:
    from fedunlearn.weights import Weights

__all__ = [
    "CheckpointError",
    "FileNegation",
    "load_weights",
    "negate_file",
    "read_layers",
    "read_metadata",
    "save_weights",
]

NEGATIONS = "fedunlearn.negations"
"""Metadata key of the sign history: a JSON list with a list of names for each negation, the oldest first."""

_PARAMETERS = "fedunlearn.parameters"  # JSON list: safetensors sorts tensors by dtype and name, their order is lost
_BUFFERS = "fedunlearn.buffers"  # JSON list
_ALIASES = "fedunlearn.aliases"  # JSON object: another name of a tied parameter -> its name
_CHUNK = 1 << 22  # bytes; a multiple of every element size
_DTYPES = {
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
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The format's names of dtypes -> torch's; others keep the format's."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, negated or written; nothing was written."""


@dataclass(frozen=True)
class FileNegation:
    """What `negate_file` did: the negated parts, their bytes, and the bytes of the whole new file.

    ``again`` are those that had been negated before, by the file's own history; ``means`` are the running means
    in it, which stay as they are: which of them follows a layer only its network knows.
    """

    names: tuple[str, ...]
    again: tuple[str, ...]
    means: tuple[str, ...]
    negated_bytes: int
    file_bytes: int


def negate_file(
    source: Path | str,
    layers: str | Sequence[str],
    output: Path | str,
    *,
    include_bias: bool = False,
    force: bool = False,
) -> FileNegation:
    """Negate layers of a safetensors file into a new one: NoT for somebody who has a checkpoint and no model.

    All other bytes of the data and all metadata stay; ``fedunlearn.negations`` gets one more entry. A file
    has no graph, so there is no default layer, and a BatchNorm's running mean does not follow (before such
    a checkpoint is evaluated, train it or name ``bn1.running_mean`` too; training needs neither).

    Args:
        source: a safetensors file.
        layers: names as `fedunlearn.names.pick` reads them; which tensors are normalisations is guessed.
        output: where to write. It is there completely or, on any error, not at all.
        include_bias: negate the bias beside each selected weight too.
        force: replace ``output`` if it exists.

    Raises:
        CheckpointError: ``source`` is no sound safetensors file, a layer is not in it or has no sign,
            ``output`` is the source or exists, or it cannot be written.
    """
    source, output = Path(source), Path(output)
    with _opened(source) as (file, header):
        try:
            aliases = _json(source, header.metadata, _ALIASES, {})
            parts = pick(layers, _rows(header), aliases=aliases, include_bias=include_bias, source=source.name)
        except LayerError as error:
            raise CheckpointError(str(error)) from error
        names = tuple(map(str, parts))
        metadata = dict(header.metadata)
        history = _history(source, metadata)
        metadata[NEGATIONS] = json.dumps([*history, names])
        _require_free(source, output, force)
        ranges = [header.place(part) for part in parts]
        with _written(output) as copy:
            copy.write(header.encoded(metadata))
            start = copy.tell()
            shutil.copyfileobj(file, copy, _CHUNK)
            if copy.tell() - start != header.data_bytes:
                raise CheckpointError(f"{source} changed while it was read: try again")
            for part, (first, last) in zip(parts, ranges, strict=True):
                _flip(copy, start + first, start + last, _DTYPES[header.tensors[part.name]["dtype"]])
            size = copy.seek(0, os.SEEK_END)
    again = tuple(name for name in names if any(name in before for before in history))
    means = tuple(name for name in header.tensors if name.endswith("running_mean"))
    return FileNegation(names, again, means, sum(last - first for first, last in ranges), size)


def read_layers(path: Path | str) -> list[Layer]:
    """The tensors of a safetensors file in the order of their bytes; their kinds are guessed.

    Raises:
        CheckpointError: it is no sound safetensors file.
    """
    with _opened(Path(path)) as (_, header):
        return _rows(header)


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        CheckpointError: it is no sound safetensors file.
    """
    with _opened(Path(path)) as (_, header):
        return dict(header.metadata)


def save_weights(weights: Weights, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights, with aliases, sign history and ``metadata``, as a safetensors file, replacing ``path``.

    Raises:
        CheckpointError: the file cannot be written, or the metadata use a key of our own.
    """
    from safetensors.torch import save

    own = {
        _PARAMETERS: json.dumps(list(weights.parameters)),
        _BUFFERS: json.dumps(list(weights.buffers)),
        _ALIASES: json.dumps(dict(weights.aliases)),
        NEGATIONS: json.dumps(weights.negations),
    }
    if own.keys() & (metadata or {}).keys():
        raise CheckpointError(f"the metadata keys {', '.join(own)} are taken: choose others")
    content = save({**weights.parameters, **weights.buffers}, {**(metadata or {}), **own})
    with _written(Path(path)) as file:
        file.write(_sorted(content))


def load_weights(path: Path | str) -> Weights:
    """Read weights back, to the bit. In a file of another's making every tensor counts as a parameter.

    Raises:
        CheckpointError: it is no sound safetensors file.
    """
    from safetensors.torch import load_file

    from fedunlearn.weights import Weights

    path = Path(path)
    with _opened(path) as (_, header):
        metadata = header.metadata
        parameters = _json(path, metadata, _PARAMETERS, list(header.tensors))
        buffers = _json(path, metadata, _BUFFERS, [])
        aliases = _json(path, metadata, _ALIASES, {})
        history = _history(path, metadata)
        tensors = load_file(path)
    if sorted([*parameters, *buffers]) != sorted(tensors):
        raise CheckpointError(f"{path} names other tensors in its metadata than it holds: save it again")
    return Weights(
        {name: tensors[name] for name in parameters},
        {name: tensors[name] for name in buffers},
        aliases,
        tuple(map(tuple, history)),
    )


@dataclass(frozen=True)
class _Header:
    """The header of a safetensors file: 8 bytes of length, then JSON."""

    tensors: Mapping[str, Mapping[str, Any]]  # in the order of their bytes
    metadata: Mapping[str, str]

    @property
    def data_bytes(self) -> int:
        return max((entry["data_offsets"][1] for entry in self.tensors.values()), default=0)

    def place(self, part: Part) -> tuple[int, int]:
        """The bytes of a part, counted from the start of the data."""
        first, last = self.tensors[part.name]["data_offsets"]
        if part.rows is None:
            return first, last
        row = (last - first) // self.tensors[part.name]["shape"][0]
        return first + row * part.rows[0], first + row * part.rows[1]

    def encoded(self, metadata: Mapping[str, str]) -> bytes:
        """The header with other metadata, padded so that the data stay aligned to 8 bytes."""
        content = {"__metadata__": dict(metadata), **self.tensors}
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, _Header]]:
    """The file, at the start of its data, and its header, which the safetensors library has found sound."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            header = _header(path, file)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        yield file, header


def _header(path: Path, file: BinaryIO) -> _Header:
    if file.read(4) == b"PK\x03\x04":  # a zip archive, which is what torch.save makes
        raise CheckpointError(f"{path} is a pickled checkpoint: save its weights with safetensors.torch.save_file")
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        why = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(f"{path} is no complete safetensors file ({why}): fetch or save it again") from error
    file.seek(0)
    entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = entries.pop("__metadata__", None) or {}
    return _Header(dict(sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])), metadata)


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def _sorted(content: bytes) -> bytes:
    """The same file with its metadata in order: the library's own order changes from call to call."""
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    metadata = entries.pop("__metadata__")
    return _Header(entries, metadata).encoded(dict(sorted(metadata.items()))) + content[start:]


def _rows(header: _Header) -> list[Layer]:
    kinds = guess_kinds({name: tuple(entry["shape"]) for name, entry in header.tensors.items()})
    return [
        Layer(index, name, tuple(entry["shape"]), _DTYPES.get(entry["dtype"], entry["dtype"]), kinds[name])
        for index, (name, entry) in enumerate(header.tensors.items())
    ]


def _require_free(source: Path, output: Path, force: bool) -> None:
    if not output.exists():
        return
    if output.samefile(source):
        raise CheckpointError(f"{output} is the source itself: write to another file")
    if output.is_dir():
        raise CheckpointError(f"{output} is a folder: name a file in it")
    if not force:
        raise CheckpointError(f"{output} exists: choose another name, or replace it with --force (force=True)")


def _history(path: Path, metadata: Mapping[str, str]) -> list[list[str]]:
    history: list[list[str]] = _json(path, metadata, NEGATIONS, [])
    if not all(isinstance(entry, list) and all(isinstance(name, str) for name in entry) for entry in history):
        raise CheckpointError(f"{path}: its metadata {NEGATIONS!r} is no list of lists of names: remove or mend it")
    return history


def _json(path: Path, metadata: Mapping[str, str], key: str, default: Any) -> Any:
    """A metadata value that must be of the default's type."""
    try:
        value = json.loads(metadata[key]) if key in metadata else default
    except json.JSONDecodeError:
        value = None
    if type(value) is not type(default):
        raise CheckpointError(f"{path}: its metadata {key!r} is not ours to read: remove or mend it")
    return value


def _flip(file: BinaryIO, first: int, last: int, dtype: str) -> None:
    """Flip the sign of the numbers in bytes ``first`` to ``last`` of a file; the format is little-endian."""
    size = SIGNED[dtype]
    for start in range(first, last, _CHUNK):
        file.seek(start)
        numbers = np.frombuffer(file.read(min(_CHUNK, last - start)), np.uint8).copy()
        sign = numbers[size - 1 :: size]
        if dtype in NO_NEGATIVE_ZERO:
            sign[(sign & 0x7F) != 0] ^= 0x80  # zero has no sign, and the sign bit alone is NaN
        else:
            sign ^= 0x80
        file.seek(start)
        file.write(numbers.data)
