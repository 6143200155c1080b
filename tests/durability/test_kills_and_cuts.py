"""Killed before any of its write steps, or without power after any of them, each command goes on with the same bits."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from durability.conftest import Clean, Lives, followed
from durability.disk import Disk, How, Step
from fedunlearn.deletion.outbox import Outbox
from fedunlearn.deletion.register import Register, RegisterError
from fedunlearn.deletion.verification import verify

LIVES = ("run", "serve", "file")
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
)
HOW: tuple[How, ...] = ("nothing", "everything", "in order", "anything")


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
    return [
        (number, phase) for phase, numbers in by_phase.items() for number in rng.sample(numbers, min(each, len(numbers)))
    ]


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


def all_cuts(lives: Lives, clean: Clean, each: int, rng: random.Random) -> Counter[str]:
    """The power fails after steps of every phase."""
    chosen = dict(drawn(clean, each, rng))
    found, number, disk = Counter[str](), 0, followed(clean, 0)
    for place, step in enumerate(clean.steps):
        if step.kind == "M":
            continue
        disk.follow(step)
        if number in chosen:
            how = HOW[found.total() % len(HOW)]
            what = f"no power after step {number} ({step.kind} {step.path} {step.other}), {how}, in {chosen[number]}"
            cut(lives, clean, disk, clean.steps[: place + 1], how, rng, what)
            found[chosen[number]] += 1
        number += 1
    return found


@pytest.mark.parametrize("life", LIVES)
def test_no_step_escapes_the_record(clean: dict[str, Clean], life: str) -> None:
    """Followed from its record alone, the folder is the one that is there, to the byte."""
    one = clean[life]
    there = {
        path.relative_to(one.folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in one.folder.rglob("*")
    }
    assert one.ended.value
    assert followed(one).live.entries == there


@pytest.mark.parametrize("life", LIVES)
def test_killed_before_some_steps_it_ends_with_the_same_bits(lives: Lives, clean: dict[str, Clean], life: str) -> None:
    rng = random.Random(0)
    for number, phase in rng.sample(drawn(clean[life], 1, rng), 2 if life != "file" else 1):
        kill(lives, clean[life], number, phase)


@pytest.mark.parametrize("life", LIVES)
def test_without_power_after_some_steps_it_ends_with_the_same_bits(
    lives: Lives, clean: dict[str, Clean], life: str
) -> None:
    rng = random.Random(1)
    all_cuts(lives, clean[life], 1, rng)


@pytest.mark.long
def test_five_hundred_kills(lives: Lives, clean: dict[str, Clean]) -> None:
    rng, counts = random.Random(2), Counter[str]()
    for life in LIVES:
        for number, phase in drawn(clean[life], 60, rng):
            counts[phase] += kill(lives, clean[life], number, phase)
    print(f"killed, by phase: {dict(counts)}, {counts.total()} in all")
    assert all(counts[phase] >= 20 for phase in PHASES)
    assert counts.total() >= 500


@pytest.mark.long
def test_five_hundred_power_cuts(lives: Lives, clean: dict[str, Clean]) -> None:
    rng, counts = random.Random(3), Counter[str]()
    for life in LIVES:
        counts += all_cuts(lives, clean[life], 60, rng)
    print(f"power cuts, by phase: {dict(counts)}, {counts.total()} in all")
    assert all(counts[phase] >= 20 for phase in PHASES)
    assert counts.total() >= 500
