"""Keeping `Weights` in safetensors files. Only this part needs torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedunlearn.atomic import atomic_write
from fedunlearn.checkpoint.disk import File
from fedunlearn.checkpoint.errors import CheckpointError, refusing
from fedunlearn.checkpoint.found import Checkpoint, Member, find
from fedunlearn.checkpoint.header import ALIASES, BUFFERS, DTYPES, NEGATIONS, PARAMETERS, Header, opened, texts
from fedunlearn.checkpoint.journal import settle
from fedunlearn.names import Part

if TYPE_CHECKING:
    from torch import Tensor

    from fedunlearn.weights import Weights

__all__ = ["load_weights", "save_weights"]


def save_weights(weights: Weights, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights, with aliases, sign history and ``metadata``, as a safetensors file, replacing ``path``.

    Raises:
        CheckpointError: the file cannot be written, or the metadata use a key of our own.
    """
    from safetensors.torch import save

    own = {
        PARAMETERS: json.dumps(list(weights.parameters)),
        BUFFERS: json.dumps(list(weights.buffers)),
        ALIASES: json.dumps(dict(weights.aliases)),
        NEGATIONS: json.dumps(weights.negations),
    }
    if own.keys() & (metadata or {}).keys():
        raise CheckpointError(f"the metadata keys {', '.join(own)} are taken: choose others")
    settle(Path(path))  # or a journal would speak of a file that is another now
    content = memoryview(save({**weights.parameters, **weights.buffers}))
    header = Header.parsed(bytes(content[8 : 8 + int.from_bytes(content[:8], "little")]))
    # The library's own order of metadata changes from call to call.
    text = header.compact(dict(sorted({**(metadata or {}), **own}.items())))
    with refusing("write", Path(path)), atomic_write(Path(path)) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(content[header.start :])


def load_weights(path: Path | str) -> Weights:
    """Read weights back, to the bit. In a checkpoint of another's making every tensor counts as a parameter.

    The tensors are memory of their own, and no map of the file (as `safetensors.torch.load_file` makes): they stay what
    they are when the file is negated in place.

    Args:
        path: a safetensors file, the index of a sharded set, or a folder with one of either.

    Raises:
        CheckpointError: it is no sound checkpoint.
    """
    from fedunlearn.weights import Weights

    checkpoint = find(Path(path))
    tensors: dict[str, Tensor] = {}
    for member in checkpoint.members:
        tensors |= _tensors(member)
    parameters, buffers = _names(checkpoint)
    if sorted([*parameters, *buffers]) != sorted(tensors):
        raise CheckpointError(f"{path} names other tensors in its metadata than it holds: save it again")
    return Weights(
        {name: tensors[name] for name in parameters},
        {name: tensors[name] for name in buffers},
        checkpoint.aliases,
        checkpoint.history,
    )


def _names(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Parameters and buffers, in their order."""
    parameters: list[str] = []
    buffers: list[str] = []
    for member in checkpoint.members:
        parameters += texts(member.path, member.header.metadata, PARAMETERS, list(member.header.tensors))
        buffers += texts(member.path, member.header.metadata, BUFFERS, [])
    return parameters, buffers


def _tensors(member: Member) -> dict[str, Tensor]:
    with opened(member.path) as (file, header):
        if file.stamp != member.stamp:
            raise CheckpointError(f"{member.path} changed while it was read: try again")
        return {name: _tensor(file, header, name) for name in header.tensors}


def _tensor(file: File, header: Header, name: str) -> Tensor:
    import torch

    entry = header.tensors[name]
    start, stop = header.place(Part(name))
    dtype = getattr(torch, DTYPES.get(entry["dtype"], ""), None)
    if dtype is None:
        raise CheckpointError(f"{file.path}: this torch has no dtype for {name}, which is {entry['dtype']}")
    shape = list(entry["shape"])
    if entry["dtype"] == "F4":
        shape[-1] //= 2  # torch holds two of them in an element
    if math.prod(shape) == 0:
        try:
            return torch.empty(shape, dtype=dtype)
        except (TypeError, RuntimeError) as error:  # of no numbers at all, but so many columns
            raise CheckpointError(f"{file.path}: torch has no tensor of the shape of {name}, {shape}") from error
    return torch.from_numpy(file.read(start, stop - start)).view(dtype).reshape(shape)
