"""Checkpoints in the safetensors format, as anybody may have written them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save

from fedunlearn.checkpoint import CheckpointError, load_weights, negate_file, read_layers, read_metadata
from fedunlearn.names import SIGNED
from fuzzing.mutation import bytes_changed, json_changed
from fuzzing.target import Finding, Target, folder

__all__ = ["CHECKPOINT"]

_LENGTH = 8  # bytes in front, the length of the header


@functools.cache
def _seeds() -> Sequence[bytes]:
    small = {"conv1.weight": torch.ones(2, 1, 3, 3), "bn1.running_mean": torch.zeros(2), "fc.bias": torch.ones(3)}
    ours = {
        "fedunlearn.parameters": '["conv1.weight", "fc.bias"]',
        "fedunlearn.buffers": '["bn1.running_mean"]',
        "fedunlearn.aliases": '{"head.bias": "fc.bias"}',
        "fedunlearn.negations": '[["conv1.weight"]]',
    }
    attention = {"in_proj_weight": torch.ones(6, 2).half(), "n": torch.tensor(3), "e": torch.zeros(0, 2)}
    return [save(small, ours), save(small), save(attention, {"format": "pt"})]


def _read(data: bytes) -> None:
    with folder() as place:
        source, output = place / "model.safetensors", place / "negated.safetensors"
        source.write_bytes(data)
        layers = read_layers(source)
        read_metadata(source)
        try:
            load_weights(source)
        finally:
            for layer in [one for one in layers if one.dtype in SIGNED][:3]:
                _negate(data, layer.name, source, output)


def _negate(data: bytes, name: str, source: Path, output: Path) -> None:
    try:
        negated = negate_file(source, [name], output, force=True)
    except CheckpointError:
        left = sorted(path.name for path in source.parent.iterdir() if path != source)
        if left and left != [output.name]:
            raise Finding(f"an error leaves {', '.join(left)}") from None
        raise
    if output.stat().st_size != negated.file_bytes or source.read_bytes() != data:
        raise Finding("a negation that says another size, or changes its source")
    read_layers(output)


def _mutated(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:_LENGTH], "little")
    header, rest = data[_LENGTH : _LENGTH + length], data[_LENGTH + length :]
    match random.randrange(4):
        case 0:
            return bytes_changed(data, random)
        case 1:
            rest = bytes_changed(rest, random)
        case _:
            header = json_changed(header, random, lambda: [json.dumps(_header(seed)).encode() for seed in _seeds()])
    told = len(header) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(header) + 1))
    return told.to_bytes(_LENGTH, "little") + header + rest


def _header(data: bytes) -> object:
    return json.loads(data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "little")])


CHECKPOINT = Target("checkpoint", _read, (CheckpointError,), _seeds, _mutated)
