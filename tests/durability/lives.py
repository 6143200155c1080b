"""A process that has imported everything, and forks one for each life that is to be cut short.

It is started with the shim (`shim.c`) in LD_PRELOAD, reads a job a line (`Job`, as JSON), and answers each with how
its child ended. What a child does (`LIVES`) knows nothing but its folder, and goes on where it was.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first network would wait for

from deletion.hospitals import Hospitals
from deletion.lives import THREE, live, require_all_is_well, trace
from fedunlearn import runner
from fedunlearn.checkpoint import load_weights, negate_in_place
from fedunlearn.deletion.events import Done, Event
from fedunlearn.deletion.outbox import Outbox
from fedunlearn.deletion.register import Head, Register
from fedunlearn.evaluation import scores
from fedunlearn.evaluation.membership import Membership
from fedunlearn.experimentfile import load
from fedunlearn.record import Record
from fedunlearn.report.report import assemble, write_report
from fedunlearn.runfolder import RunFolder

__all__ = ["NEGATED", "NEVER", "Job"]

NEGATED = ("ours", "theirs")  # folders with checkpoints

NEVER = -1  # a step that is not reached


@dataclass(frozen=True)
class Job:
    """What a child is to do, and what becomes of it.

    Attributes:
        life: by its name.
        folder: all that it knows; what is written below it are its steps.
        log: of its steps.
        kill, fail: step before which it is killed, and from which on writes fail with ``error``.
        clock, seconds: step from which on the wall clock is so far off.
    """

    life: str
    folder: str
    log: str
    kill: int = NEVER
    fail: int = NEVER
    error: int = 0
    clock: int = NEVER
    seconds: int = 0


def without_times(row: Any) -> Any:
    said = dataclasses.asdict(row)
    for costs in said["costs"].values():
        costs.pop("seconds")
    return said


def run_all(folder: Path) -> Any:
    """An experiment with every kind of history, its cache and its report; each round is saved."""
    rows = list(runner.run(load(folder / "tiny.toml"), folder / "run", workers=1, cache=folder / "cache"))
    mark("report")
    write_report(assemble(folder / "run"), folder / "run" / "report.json")
    home = RunFolder(folder / "run")
    records = [record for seed in home.experiment["seeds"] for record in home.records(seed)]
    kept = {f"{one.folder.name}/{name}": one.kept(name).digest() for one in records for name in one.models}
    return [without_times(row) for row in rows], kept


def serve(folder: Path) -> Any:
    """A server with three hospitals, from its first round to the receipts of two requests."""
    weights = live(folder)
    shim().shim_disarm()
    hospitals = Hospitals(folder, names=THREE)
    require_all_is_well(hospitals, "at the end")
    return weights.digest(), trace(hospitals)


def file_requests(folder: Path) -> Any:
    """A node files requests, is answered, and renumbers what is left once samples are gone."""
    hospitals = Hospitals(folder, names=("north",))
    outbox = hospitals.outbox("north")
    outbox.exchange([{}])  # no answer, but whoever writes carries out first what a killed process has begun
    if () not in places_of(outbox).values():
        for places in ([1, 4], [2, 7, 9], [5, 11]):
            hospitals.files("north", hospitals.instances("north", places))
        ids = {instances: id for id, instances in places_of(outbox).items()}
        for id in ids.values():
            outbox.places(id, bytes(8 * 20))
        outbox.exchange([{"request": ids[1, 4], "state": "unlearning", "why": "", "receipt": None}])
        outbox.gone(ids[1, 4], renumber=True)
    return sorted(places_of(outbox).values())


def places_of(outbox: Outbox) -> dict[str, tuple[int, ...]]:
    return {id: outbox.meant(id).instances for id in (posted.signed.statement.id for posted in outbox.entries())}


def negate(folder: Path) -> Any:
    """Three negations of each checkpoint in place, of which those that were done are not done again."""
    mark("journal")
    found = {}
    for path in (folder / name / "model.safetensors" for name in NEGATED):
        for layers in [["a.weight"], ["b.weight", "c.weight"], ["a.weight"]][len(load_weights(path).negations) :]:
            negate_in_place(path, layers)
        weights = load_weights(path)
        found[path.parent.name] = weights.digest(), weights.negations
    return found


LIVES: dict[str, Callable[[Path], Any]] = {"run": run_all, "serve": serve, "file": file_requests, "negate": negate}


@functools.cache
def shim() -> Any:
    return ctypes.CDLL(None)


def mark(text: str) -> None:
    """Say something that stands in the log between the steps."""
    shim().shim_mark(text.encode())


def watched() -> None:
    """Marks: in which phase the steps are, and what was promised."""
    done, saved, enter, file = runner._Part._done, Record.save, Register._enter, Outbox.file
    phases = {"train": "training", "unlearn": "unlearning", "recover": "recovery"}

    def taken_in(self: Any, step: Any) -> Any:
        mark(phases[step.phase])
        yield from done(self, step)

    def saved_each_round(*arguments: Any, now: bool = True, **others: Any) -> None:
        saved(*arguments, now=True, **others)

    def entered(self: Register, events: Any, signing: Any) -> Head:
        new: list[Event] = list(events)
        mark("receipts" if any(isinstance(event, Done) for event in new) else "service")
        head = enter(self, new, signing)
        mark(f"head {head.count} {head.hash}")
        return head

    def filed(*arguments: Any, **options: Any) -> Any:
        mark("filing")
        filing = file(*arguments, **options)
        mark(f"filed {arguments[0].folder} {filing.id}")
        return filing

    runner._Part._done, Record.save = taken_in, saved_each_round  # type: ignore[method-assign]
    Register._enter, Outbox.file = entered, filed  # type: ignore[method-assign]
    scores.mia = unmeasured


def unmeasured(*arguments: Any, **options: Any) -> Membership:
    """In place of the attack, which takes most of a tiny run's time and writes nothing."""
    return Membership(50.0, 0.0, 10, 0.5)


def child(job: Job) -> None:
    sys.stdout.flush()
    errors = os.open(f"{job.log}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    folder = Path(job.folder)
    numbers = map(ctypes.c_long, (job.kill, job.fail))
    times = map(ctypes.c_long, (job.clock, job.seconds))
    assert not shim().shim_arm(job.folder.encode(), job.log.encode(), *numbers, job.error, *times)
    try:
        result = {"value": LIVES[job.life](folder)}
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        result = {"error": str(error), "kind": [kind.__name__ for kind in type(error).__mro__], "traceback": told}
    shim().shim_disarm()
    Path(f"{job.log}.json").write_text(json.dumps(result))
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, os.getcwd())
    watched()
    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            child(Job(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    os._exit(0)  # torch's own end takes seconds


if __name__ == "__main__":
    main()
