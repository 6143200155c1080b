"""A server that is killed, wherever it is, and started again: nothing is lost, nothing done twice, no bit differs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from deletion.hospitals import Hospitals
from deletion.lives import SHORT, THREE, live, require_all_is_well, trace
from fedunlearn.deletion import models, register
from fedunlearn.deletion.register import Register
from fedunlearn.flower.local import LocalGrid
from fedunlearn.flower.site import FlowerSite
from fedunlearn.weights import Weights


class Killed(BaseException):
    """Nothing catches it."""


def contents(folder: Path) -> str:
    """Digest of all that a process which starts now can find; SQLite makes the index of its log anew."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@dataclass
class Points:
    """The instants at which a server can be killed, and the one at which it is."""

    folder: Path
    kill_at: int | None = None
    names: list[str] = field(default_factory=list)

    def reach(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) - 1 == self.kill_at:
            raise Killed(name)

    def around(self, name: str, done: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.reach(f"before {name}")
            result = done(*args, **kwargs)
            self.reach(f"after {name}")
            return result

        return wrapped

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reach a point before and after whatever leaves a trace outside the server's memory."""
        for owner, name in (
            (Register, "append"),
            (register, "_write"),  # inside a transaction
            (models, "save_weights"),
            (Path, "unlink"),
            (FlowerSite, "exchange"),
            (LocalGrid, "push_messages"),
        ):
            monkeypatch.setattr(owner, name, self.around(name, getattr(owner, name)))


Clean = tuple[Weights, list[tuple[str, int, str]]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("clean")
    weights = live(folder)
    hospitals = Hospitals(folder, names=THREE)
    require_all_is_well(hospitals, "nowhere")
    return weights, trace(hospitals)


def require_as_if_nothing_had_happened(folder: Path, weights: Weights, clean: Clean, point: str) -> None:
    hospitals = Hospitals(folder, names=THREE)
    assert weights.same_bits(clean[0]), point
    assert trace(hospitals) == clean[1], point
    require_all_is_well(hospitals, point)


@dataclass
class Left(Points):
    """What a process that is killed leaves: its folders, kept at each instant at which they have changed."""

    kept: Path = Path()
    left: dict[str, tuple[str, Path]] = field(default_factory=dict)

    def reach(self, name: str) -> None:
        super().reach(name)
        digest = contents(self.folder)
        if digest not in self.left:
            self.left[digest] = (f"point {len(self.names) - 1}, {name}", self.kept / str(len(self.left)))
            shutil.copytree(self.folder, self.left[digest][1])


def watched(points: Points) -> None:
    """A life that reaches points."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        points.watch(monkeypatch)
        live(points.folder)


def kill(folder: Path, number: int, name: str, clean: Clean) -> None:
    """Kill a server at a point, start it again, and hold all that it leaves behind against the clean run."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        Points(folder, number).watch(monkeypatch)
        with pytest.raises(Killed, match=name):
            live(folder)
    weights = live(folder)
    require_as_if_nothing_had_happened(folder, weights, clean, f"point {number}, {name}")


def test_killed_wherever_the_folders_have_changed_it_ends_with_the_same_bits(tmp_path: Path, clean: Clean) -> None:
    """A process that is killed leaves nothing but its folders: a server is started on those of each instant."""
    (tmp_path / "whole").mkdir()
    points = Left(tmp_path / "whole", kept=tmp_path)
    watched(points)
    assert len(points.names) > 150
    assert len(points.left) > 40
    for point, folder in points.left.values():
        require_as_if_nothing_had_happened(folder, live(folder), clean, point)


@pytest.mark.long
def test_killed_at_every_point_it_ends_with_the_same_bits(tmp_path: Path, clean: Clean) -> None:
    (tmp_path / "counted").mkdir()
    points = Points(tmp_path / "counted")
    watched(points)
    for number, name in enumerate(points.names):
        kill(tmp_path / str(number), number, name, clean)


def live_alone(folder: Path, begun: Any) -> None:
    """A life in a process of its own."""
    torch.set_num_threads(1)
    begun.set()
    live(folder)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a signal of POSIX")
def test_ten_sigkills_at_random_instants(tmp_path: Path, clean: Clean) -> None:
    processes = multiprocessing.get_context("forkserver")  # spawned ones would wait for torch each time
    processes.set_forkserver_preload(["fedunlearn.flower.server", "fedunlearn.contract", "torch._dynamo"])
    rng, killed, length = random.Random(0), 0, 0.0
    for number in range(40):
        folder, begun = tmp_path / str(number), processes.Event()
        folder.mkdir()
        process = processes.Process(target=live_alone, args=(folder, begun))
        process.start()
        assert begun.wait(60)
        started = time.monotonic()
        process.join(rng.uniform(0, length) if number else None)  # the first one shows how long a life is
        process.kill()
        process.join()
        if number == 0:
            length = time.monotonic() - started
            assert process.exitcode == 0
        else:
            killed += process.exitcode == -signal.SIGKILL
        process.close()
        require_as_if_nothing_had_happened(folder, live(folder), clean, f"process {number}")
        if killed == 10:
            return
    raise AssertionError(f"only {killed} of the processes were killed")


def test_what_a_killed_process_has_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, names=THREE)
    hospitals.service(SHORT).step()
    hospitals.book.close()
    left = hospitals.book.checkpoints / ".0123456789abcdef.tmp"
    left.write_bytes(b"half a model")
    server = hospitals.service(SHORT)
    assert [path.name for path in hospitals.book.checkpoints.iterdir()] == [server._standing.rounds[0][1].checkpoint]
