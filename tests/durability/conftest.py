"""What the tests of durability share: lives that can be cut short, each with its folder as it was before."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from deletion.hospitals import Hospitals
from deletion.lives import THREE
from durability.disk import Disk, Step, read_log
from durability.lives import NEVER, Job
from tiny import tiny_text

TESTS = Path(__file__).resolve().parents[1]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # what is synced is recorded, not the disk's business
METHODS = 'methods=["Retrain", "NoT", "FedEraser", "FUKD", "PGD"]'
SAID = ("training.rounds=2", "recovery.rounds=2", "recovery.evaluate_every=1", "keep.every=1")
DATA = ("data.proxy=20", "data.samples=12", "data.clients=3")


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


@pytest.fixture(scope="session")
def lives() -> Iterator[Lives]:
    if sys.platform != "linux" or not (compiler := shutil.which("gcc")):
        pytest.skip("steps are recorded by a C library that is preloaded: Linux, with gcc")
    with TemporaryDirectory(dir=MEMORY) as place:
        shim, source = Path(place) / "shim.so", Path(__file__).with_name("shim.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        path = os.pathsep.join([str(TESTS), *sys.path])
        environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "durability.lives"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=place
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Lives(process, Path(place))


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


@pytest.fixture(scope="session")
def clean(lives: Lives) -> Iterator[dict[str, Clean]]:
    """One of each kind."""

    class Made(dict[str, Clean]):
        def __missing__(self, life: str) -> Clean:
            before = lives.prepared(life)
            folder = lives.copied(before)
            self[life] = Clean(life, before, folder, lives.live(life, folder))
            return self[life]

    return Made()


def followed(clean: Clean, count: int = NEVER) -> Disk:
    """The disk after so many records of a clean life, or all."""
    disk = Disk(clean.folder, clean.before)
    for step in clean.steps[: None if count == NEVER else count]:
        disk.follow(step)
    return disk
