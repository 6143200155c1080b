"""A full disk, one that is read-only, files that are damaged, a clock that jumps: one sentence, or the same bits."""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from durability.cutting import LIVES, Clean, Ended, Lives, drawn, require_as_if_nothing_had_happened

YEAR = 365 * 24 * 3600
ADVICE = r"make room|No space left on device|[Rr]ead-only file system|let this user (read and )?write there|disk"


def refused(lives: Lives, clean: Clean, number: int, error: int) -> bool:
    """From a step on the disk takes nothing: one sentence; once it does again, the same bits. Whether it mattered."""
    folder = lives.copied(clean.before)
    ended = lives.live(clean.life, folder, fail=number, error=error)
    if "value" not in ended.said:
        assert re.search(ADVICE, ended.sentence), ended.said["traceback"]
        assert "\n" not in ended.sentence
    require_as_if_nothing_had_happened(lives, clean, folder, f"{errno.errorcode[error]} from step {number}")
    shutil.rmtree(folder)
    return "value" not in ended.said


def each_refusal(lives: Lives, clean: dict[str, Clean], life: str, each: int) -> int:
    rng = random.Random(4)
    return sum(
        refused(lives, clean[life], number, rng.choice((errno.ENOSPC, errno.EROFS)))
        for number, _ in drawn(clean[life], each, rng)
    )


@pytest.mark.parametrize("life", ["file"])
def test_a_disk_that_takes_nothing_is_told(lives: Lives, clean: dict[str, Clean], life: str) -> None:
    assert each_refusal(lives, clean, life, 2) > 0


@pytest.mark.long
@pytest.mark.parametrize("life", LIVES)
def test_a_disk_that_takes_nothing_at_any_step_is_told(lives: Lives, clean: dict[str, Clean], life: str) -> None:
    assert each_refusal(lives, clean, life, 10) >= 5


@pytest.mark.long
@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("seconds", [-20 * YEAR, -3600, 10 * YEAR])
def test_a_clock_that_jumps_changes_no_number(lives: Lives, clean: dict[str, Clean], life: str, seconds: int) -> None:
    """Nor an order; nothing is negative that cannot be, and what was signed verifies."""
    rng = random.Random(seconds)
    for number, _ in rng.sample(drawn(clean[life], 2, rng), 2):
        folder = lives.copied(clean[life].before)
        ended = lives.live(life, folder, clock=number, seconds=seconds)
        assert ended.value == clean[life].ended.value
        assert all(second >= 0 for second in seconds_in(folder))
        shutil.rmtree(folder)


def seconds_in(folder: Path) -> Iterator[float]:
    """All that rows say of time."""
    for path in folder.rglob("rows.jsonl"):
        for line in path.read_text().splitlines():
            yield from (cost["seconds"] for cost in json.loads(line)["costs"].values())


def damages(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """What becomes of a file: None, it is gone."""
    yield "gone", None
    if content:
        yield "empty", b""
        yield "cut short", content[: rng.randrange(len(content))]
        at = rng.randrange(len(content))
        yield f"bit {at}", content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def damaged(lives: Lives, life: str, folder: Path, rng: random.Random) -> Iterator[tuple[str, Ended]]:
    """Each file below a folder in turn, damaged in each way, and what the next life makes of it."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for how, content in damages(path.read_bytes(), rng):
            there = lives.copied(folder)
            harmed = there / path.relative_to(folder)
            harmed.unlink()
            if content is not None:
                harmed.touch(mode=0o600)
                harmed.write_bytes(content)
            yield f"{path.relative_to(folder)}: {how}", lives.live(life, there)
            shutil.rmtree(there)


def half_way(lives: Lives, clean: Clean) -> Path:
    """The folder of a life that was killed in the middle."""
    folder = lives.copied(clean.before)
    numbers = [number for number, _ in drawn(clean, 10**6, random.Random(0))]
    lives.live(clean.life, folder, kill=len(numbers) * 2 // 3)
    return folder


def untold(life: str, what: str) -> bool:
    """Whether nothing could tell of a damage, or another test says how it is told."""
    users = what.startswith("tiny.toml") or "/key" in what or "to-forget.txt" in what
    # The format has no checksum, and of a note or an outbox's file that is gone nobody knows any more.
    theirs = "model.safetensors" in what and life == "negate"
    forgotten = "/outbox/" in what and what.endswith("gone")
    # A node whose outbox is damaged takes no part, which its server records (tests/deletion/test_faults.py).
    return users or theirs or forgotten or (life == "serve" and "/outbox/" in what)


@pytest.mark.long
@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("when", ["half way", "done"])
def test_damaged_files_are_told_or_made_anew(lives: Lives, clean: dict[str, Clean], life: str, when: str) -> None:
    one = clean[life]
    folder = half_way(lives, one) if when == "half way" else lives.copied(one.folder)
    for what, ended in damaged(lives, life, folder, random.Random(5)):
        if untold(life, what):
            continue
        if "value" in ended.said:
            assert ended.value == one.ended.value, what
        else:
            assert ended.sentence.strip(), what
