"""Lives that can be cut short: how they are started, where in them the steps are, and what must be there afterwards."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deletion.hospitals import Hospitals
from deletion.lives import THREE
from durability.disk import Disk, How, Step, read_log
from durability.lives import NEGATED, NEVER, Job
from fedunlearn.checkpoint import save_weights
from fedunlearn.deletion.outbox import Outbox
from fedunlearn.deletion.register import Register, RegisterError
from fedunlearn.deletion.verification import verify
from fedunlearn.weights import Weights
from tiny import tiny_text

METHODS = 'methods=["Retrain", "NoT", "FedEraser", "FUKD", "PGD"]'
SAID = ("training.rounds=2", "recovery.rounds=2", "recovery.evaluate_every=1", "keep.every=1")
DATA = ("data.proxy=20", "data.samples=12", "data.clients=3")

LIVES = ("run", "serve", "file", "negate")
PHASES = (
    "training",
    "unlearning",
    "recovery",
    "rows and scores",
    "history",
    "cache",
    "filing",
    "service",
    "receipts",
    "journal",
)
HOW: tuple[How, ...] = ("nothing", "everything", "in order", "anything")


TOLD = {"ValueError", "OSError", "ImportError", "ClientError", "WorkerDied", "ServiceError"}


@dataclass(frozen=True)
class Ended:
    """How a life ended: its exit code, its last words, the steps that it has done."""

    code: int
    said: dict[str, Any]
    log: Path

    @property
    def value(self) -> Any:
        assert "value" in self.said, self.said.get("traceback", self.code)
        return self.said["value"]

    @property
    def sentence(self) -> str:
        """What a user is told who can mend it: an error that the command line, or the server, shows as one sentence."""
        assert self.code == 0, f"ended with {self.code}"
        assert "error" in self.said, f"no error, but {self.said}"
        shown = TOLD & {*self.said["kind"]}
        assert shown, self.said["traceback"]
        return str(self.said["error"])

    @property
    def log_of(self) -> list[Step]:
        return read_log(self.log)


@dataclass
class Lives:
    """Starts lives, one at a time, each in a process of its own."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0

    def place(self) -> Path:
        """A name that is free."""
        self.count += 1
        return self.folder / f"{self.count:05d}"

    def prepared(self, life: str) -> Path:
        """A folder in which a life can begin."""
        folder = self.place()
        folder.mkdir(mode=0o700)
        if life == "run":
            (folder / "tiny.toml").write_text(tiny_text(METHODS, *SAID, *DATA))
        elif life == "negate":
            lay_checkpoints(folder)
        else:
            Hospitals(folder, names=THREE if life == "serve" else ("north",))
        return folder

    def copied(self, folder: Path) -> Path:
        return Path(shutil.copytree(folder, self.place()))

    def live(self, life: str, folder: Path, **how: int) -> Ended:
        log = self.place()
        job = Job(life, str(folder), str(log), **how)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        words = log.with_name(f"{log.name}.json")
        return Ended(code, json.loads(words.read_text()) if words.exists() else {}, log)


def lay_checkpoints(folder: Path) -> None:
    """One of ours, with room in its header, and one of another's making, which gets a note beside it."""
    drawn = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(40, 30, generator=drawn) for name in "abc"}
    for name in NEGATED:
        (folder / name).mkdir()
    save_weights(Weights(tensors, {}), folder / "ours" / "model.safetensors")
    save_file(tensors, folder / "theirs" / "model.safetensors", {"format": "pt"})


@dataclass(frozen=True)
class Clean:
    """A life that nothing has happened to."""

    life: str
    before: Path
    folder: Path
    ended: Ended

    @property
    def steps(self) -> list[Step]:
        """With the marks between them."""
        return self.ended.log_of


def followed(clean: Clean, count: int = NEVER) -> Disk:
    """The disk after so many records of a clean life, or all."""
    disk = Disk(clean.folder, clean.before)
    for step in clean.steps[: None if count == NEVER else count]:
        disk.follow(step)
    return disk


def phases(log: Iterable[Step]) -> list[str]:
    """In which phase each step is: by its file, else by what the process said last."""
    found, last = [], "training"
    for step in log:
        if step.kind == "M":
            last = step.path if step.path in PHASES else last
        elif "/cache/" in step.path or "/cache/" in step.other:
            found.append("cache")
        elif "/history" in step.path:
            found.append("history")
        elif any(step.path.endswith(name) for name in ("rows.jsonl", "report.json")) or "/1-Original" in step.path:
            found.append("rows and scores")
        elif step.path.endswith(".answer.json") or step.other.endswith(".answer.json"):
            found.append("receipts")
        else:
            found.append(last)
    return found


def drawn(clean: Clean, each: int, rng: random.Random) -> list[tuple[int, str]]:
    """So many steps of each phase, or all that it has."""
    by_phase: dict[str, list[int]] = {}
    for number, phase in enumerate(phases(clean.steps)):
        by_phase.setdefault(phase, []).append(number)
    chosen = {phase: rng.sample(numbers, min(each, len(numbers))) for phase, numbers in by_phase.items()}
    return [(number, phase) for phase, numbers in chosen.items() for number in numbers]


def require_as_if_nothing_had_happened(lives: Lives, clean: Clean, folder: Path, what: str) -> None:
    ended = lives.live(clean.life, folder)
    assert ended.said.get("value") == clean.ended.value, f"{what}: {ended.said.get('traceback', 'other values')}"


def kill(lives: Lives, clean: Clean, number: int, phase: str) -> bool:
    """Kill a life before a step, let it go on, and hold its end against the clean one's."""
    folder = lives.copied(clean.before)
    killed = lives.live(clean.life, folder, kill=number)
    if killed.code == 0:  # requests' ids are drawn, and now and then a life has a step less
        return False
    assert killed.code == -signal.SIGKILL
    require_as_if_nothing_had_happened(lives, clean, folder, f"killed before step {number}, in {phase}")
    shutil.rmtree(folder)
    return True


def cut(lives: Lives, clean: Clean, disk: Disk, done: Sequence[Step], how: How, rng: random.Random, what: str) -> None:
    """Cut the power, look whether what was promised is there, and go on."""
    folder = lives.place()
    disk.cut(how, rng).lay_out(folder)
    require_what_was_promised(done, clean.folder, folder, what)
    require_as_if_nothing_had_happened(lives, clean, folder, what)
    shutil.rmtree(folder)


def require_what_was_promised(done: Iterable[Step], was: Path, folder: Path, what: str) -> None:
    """Requests whose filing has returned are there; the register has all that `append` has returned from."""
    heads = []
    for mark in (step.path for step in done if step.kind == "M"):
        kind, *said = mark.split(" ")
        if kind == "filed":
            outbox = Outbox(folder / Path(said[0]).relative_to(was))
            assert said[1] in [posted.signed.statement.id for posted in outbox.entries()], what
        if kind == "head":
            heads.append((int(said[0]), said[1]))
    register = folder / "server" / "register"
    if heads:
        try:
            read = Register.read(register)
        except RegisterError as error:
            raise AssertionError(f"{what}: {error}") from error
        count, digest = heads[-1]
        assert read.head.count >= count, what
        assert read.entered[count - 1].hash == digest, what
        assert verify(register, [], []).problems == [], what
