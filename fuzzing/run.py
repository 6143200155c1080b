"""What lies in a run's folder: rows, states, what is complete, and what a diagnosis has found."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random

import torch
from safetensors.torch import save

from fedunlearn.atomic import FileError
from fedunlearn.evaluation.cost import Cost
from fedunlearn.evaluation.rows import Row
from fedunlearn.evaluation.scores import Scores
from fedunlearn.findings import Found, read_found
from fedunlearn.record import Record, _digest
from fedunlearn.runfolder import FolderError, RunFolder
from fedunlearn.weights import Weights
from fuzzing.mutation import json_changed
from fuzzing.target import Target, folder

__all__ = ["FOUND", "RECORD"]

_STATE = "fedunlearn.state"
_TENSORS = {"/w": torch.ones(2), "teacher/w": torch.ones(2)}


@dataclass(frozen=True)
class _Result:
    """Like those of the diagnoses: numbers, texts, and more of them within."""

    layer: str
    values: tuple[float, ...]
    at: Mapping[str, int]
    inner: _Result | None = None


@functools.cache
def _records() -> Sequence[bytes]:
    scores = Scores(90.0, 12.5, 88.0, 50.0)
    first = Row(0, "NoT", "recover", 1, {"recover": Cost(seconds=1.5)}, scores)
    said = [first, replace(first, rounds=2)]
    rows = [asdict(row) for row in said]
    # Digests of what is read, or nothing behind them would be reached.
    state = {"phase": "recover", "number": 1, "rows": 1, "models": {"": [["w"]], "teacher": []}, "weights": {}}
    state |= {"digest": _digest(said[:1]), "bits": Weights(_TENSORS).digest()}
    complete = {"label": "NoT", "rows": 2, "failed": None, "digest": _digest(said), "weights": {}}
    sessions = {"sessions": [{"started": "now", "decides": {}}]}
    return [
        json.dumps({"complete": {}, "rows": rows, "state": state, "environment": sessions}).encode(),
        json.dumps({"complete": complete, "rows": rows, "state": None, "environment": sessions}).encode(),
    ]


def _record(data: bytes) -> None:
    try:
        content = json.loads(data)
        texts = {name: json.dumps(content[name]) for name in ("complete", "state", "environment")}
        lines = [json.dumps(row) for row in content["rows"]]
    except (ValueError, RecursionError, LookupError, TypeError):
        return
    with folder() as place:
        (place / "complete.json").write_text(texts["complete"])
        (place / "environment.json").write_text(texts["environment"])
        (place / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
        if texts["state"] != "null":
            (place / "state.safetensors").write_bytes(save(_TENSORS, {_STATE: texts["state"]}))
        record = Record(place)
        str((record.complete, record.failed, record.cached, record.label if record.complete else ""))
        RunFolder(place).sessions  # noqa: B018 - it is read when it is asked for


@functools.cache
def _found() -> Sequence[bytes]:
    result = _Result("conv1", (0.5, float("nan")), {"a": 1}, _Result("fc", (), {}))
    found = Found("cka", "a run", "fedunlearn theory", (0, 1), (result, result), {"samples": 8})
    return [json.dumps(found.summary()).encode()]


def _read_found(data: bytes) -> None:
    with folder() as place:
        path = place / "found.json"
        path.write_bytes(data)
        read_found(path, _Result).summary()


def _changed(seeds: Callable[[], Sequence[bytes]]) -> Callable[[bytes, Random], bytes]:
    return lambda data, random: json_changed(data, random, seeds)


RECORD = Target("record", _record, (FileError, FolderError), _records, _changed(_records))
FOUND = Target("found", _read_found, (FileError,), _found, _changed(_found))
