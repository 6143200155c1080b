"""Experiment files, as a user writes them or is given them, and values set on the command line."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from unittest.mock import patch

from fedunlearn import tomlkinds
from fedunlearn.experimentfile import ExperimentError, load
from fedunlearn.experiments import shipped
from fuzzing.mutation import bytes_changed, toml_changed
from fuzzing.target import Target, folder

__all__ = ["EXPERIMENT"]

_SET = b"\n#--set "  # an override, in the input alone


@functools.cache
def _seeds() -> Sequence[bytes]:
    ours = {name: path.read_bytes() for name, path in shipped().items()}
    whole = [content for content in ours.values() if b"extends" not in content]
    extending = b'extends = "quickstart"\ntitle = "Another"\n[training]\nrounds = 3\n'
    return [
        *whole,
        extending,
        extending + _SET + b"training.rounds=20" + _SET + b'request={kind="Class",label=3}',
        ours["quickstart"] + _SET + b'methods=["Retrain", {kind="NoT", layers="conv*"}]' + _SET + b"data.clients = 4",
        b'extends = "quickstart"\n[[then]]\nkind = "Client"\nclient = "1"\n[[then]]\nkind = "Client"\nclient = "2"\n',
    ]


def _read(data: bytes) -> None:
    # A file may name a class of the user's own, whose module is then imported: which modules there are is not the
    # matter here, and some of them do something when they are imported.
    content, *overrides = data.split(_SET)
    with folder() as place, patch.object(tomlkinds, "load_object", _nothing_there):
        path = place / "own.toml"
        path.write_bytes(content)
        load(Path(path), [override.decode(errors="surrogateescape") for override in overrides])


def _nothing_there(path: str) -> object:
    raise ImportError(f"there is no module for {path!r}")


def _mutated(data: bytes, random: Random) -> bytes:
    content, *overrides = data.split(_SET)
    if overrides and random.random() < 0.5:
        at = random.randrange(len(overrides))
        overrides[at] = bytes_changed(overrides[at], random)
    else:
        content = toml_changed(content, random, lambda: [seed.split(_SET)[0] for seed in _seeds()])
    return _SET.join([content, *overrides])


EXPERIMENT = Target("experiment", _read, (ExperimentError,), _seeds, _mutated, lines=True)
