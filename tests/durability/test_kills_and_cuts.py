"""Killed before any of its write steps, or without power after any of them, each command goes on with the same bits."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from durability.cutting import (
    HOW,
    LIVES,
    PHASES,
    Clean,
    Lives,
    cut,
    drawn,
    followed,
    kill,
    require_what_was_promised,
)


def all_cuts(lives: Lives, clean: Clean, chosen: dict[int, str], rng: random.Random) -> Counter[str]:
    """The power fails after each of some steps; how often in each phase."""
    found, number, disk = Counter[str](), 0, followed(clean, 0)
    for place, step in enumerate(clean.steps):
        if step.kind == "M":
            continue
        disk.follow(step)
        if number in chosen:
            how = rng.choice(HOW)
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
    # A life may have a step less than the clean one, and is then not killed before its last.
    assert any(kill(lives, clean[life], *rng.choice(drawn(clean[life], 1, rng))) for _ in range(3))


@pytest.mark.parametrize("life", LIVES)
def test_without_power_after_some_steps_it_ends_with_the_same_bits(
    lives: Lives, clean: dict[str, Clean], life: str
) -> None:
    rng = random.Random(1)
    all_cuts(lives, clean[life], dict(rng.sample(drawn(clean[life], 2, rng), 2)), rng)


@pytest.mark.parametrize("life", ["serve", "file"])
def test_what_was_promised_is_there_though_nothing_was_that_was_not_synced(
    lives: Lives, clean: dict[str, Clean], life: str
) -> None:
    one, folder = clean[life], lives.place()
    followed(one).cut("nothing", random.Random(0)).lay_out(folder)
    require_what_was_promised(one.steps, one.folder, folder, "at the end")


@pytest.mark.long
def test_five_hundred_kills(lives: Lives, clean: dict[str, Clean]) -> None:
    rng, counts = random.Random(2), Counter[str]()
    for life in LIVES:
        for number, phase in drawn(clean[life], 45, rng):
            counts[phase] += kill(lives, clean[life], number, phase)
    print(f"killed, by phase: {dict(counts)}, {counts.total()} in all")
    assert all(counts[phase] >= 20 for phase in PHASES)
    assert counts.total() >= 500


@pytest.mark.long
def test_three_hundred_power_cuts(lives: Lives, clean: dict[str, Clean]) -> None:
    rng, counts = random.Random(3), Counter[str]()
    for life in LIVES:
        counts += all_cuts(lives, clean[life], dict(drawn(clean[life], 30, rng)), rng)
    print(f"power cuts, by phase: {dict(counts)}, {counts.total()} in all")
    assert all(counts[phase] >= 20 for phase in PHASES)
    assert counts.total() >= 300
