"""Checkpoints in the safetensors format, as anybody may have written them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save

from fedunlearn.checkpoint import (
    CheckpointError,
    load_weights,
    negate_file,
    negate_in_place,
    read_layers,
    read_metadata,
)
from fedunlearn.checkpoint.journal import _HEAD, _READY, INDEX, JOURNAL, Change, Plan, Stretch, _record, at_work
from fedunlearn.checkpoint.note import note_of
from fedunlearn.names import SIGNED
from fuzzing.mutation import bytes_changed, json_changed
from fuzzing.target import Finding, Target, folder

__all__ = ["CHECKPOINT", "CHECKPOINT_FOLDER"]

_HOLDERS = {"a.weight": "0.safetensors", "b.weight": "1.safetensors"}
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
    header, rest = _split(data)
    match random.randrange(4):
        case 0:
            return bytes_changed(data, random)
        case 1:
            rest = bytes_changed(rest, random)
        case _:
            header = json_changed(header, random, lambda: [_split(seed)[0] for seed in _seeds()])
    told = len(header) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(header) + 1))
    return told.to_bytes(_LENGTH, "little") + header + rest


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The header's JSON, and the tensors' bytes."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    return data[_LENGTH:end], data[end:]


@functools.cache
def _folders() -> Sequence[bytes]:
    """What lies beside two shards: an index, a note, and the journal of a negation that was broken off."""
    with folder() as place:
        _shards(place)
        shard = place / "0.safetensors"
        negate_in_place(shard, "a")
        note = json.loads(note_of(shard).read_text())
        content = shard.read_bytes()
        header, numbers = _split(content)
        all_of_it = Stretch(len(content) - len(numbers), len(content), "float32")
        change = Change(shard.name, len(content), header.decode(), header.decode(), (all_of_it,))
        with at_work(place) as journal:
            _record(journal, place, Plan((change,), ()))
            raw = journal.read(0, journal.size).tobytes()
    end = _HEAD + int.from_bytes(raw[8:16], "little")
    index = {"metadata": {"fedunlearn.negations": [["b.weight"]]}, "weight_map": dict(_HOLDERS)}
    journal_said = {"plan": json.loads(raw[_HEAD:end]), "kept": raw[end:].hex()}
    seeds = ({"index": index}, {"note": note}, {"index": index, "note": note}, {"index": index, **journal_said})
    return [json.dumps(seed).encode() for seed in seeds]


def _shards(place: Path) -> None:
    for name, shard in _HOLDERS.items():
        (place / shard).write_bytes(save({name: torch.ones(2, 2)}))


def _read_folder(data: bytes) -> None:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    said = said if isinstance(said, dict) else {"index": said}
    with folder() as place:
        _shards(place)
        for key, path in {"index": place / f"model{INDEX}", "note": note_of(place / "0.safetensors")}.items():
            if key in said:
                path.write_text(json.dumps(said[key]))
        if "plan" in said:
            plan = json.dumps(said["plan"]).encode()
            kept = str(said.get("kept")).encode("utf-8", "replace")
            kept = bytes.fromhex(kept.decode()) if re.fullmatch(rb"(?:[0-9a-f]{2})*", kept) else kept
            head = len(plan).to_bytes(8, "little") + hashlib.sha256(plan + kept).digest()
            (place / JOURNAL).write_bytes(_READY + head + plan + kept)
        new = place / "new"
        uses: list[Callable[[], object]] = [
            *(partial(read, path) for read in (read_layers, load_weights) for path in (place, place / "0.safetensors")),
            partial(negate_file, place / "0.safetensors", "a", new),
            partial(negate_in_place, place, "a"),
        ]
        problems = []
        for use in uses:
            try:
                use()
            except CheckpointError as error:
                problems.append(error)
        if problems:
            raise problems[0]


def _folder_mutated(data: bytes, random: Random) -> bytes:
    return json_changed(data, random, _folders)


CHECKPOINT = Target("checkpoint", _read, (CheckpointError,), _seeds, _mutated)
CHECKPOINT_FOLDER = Target("checkpoint-folder", _read_folder, (CheckpointError,), _folders, _folder_mutated)
