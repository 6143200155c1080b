"""The benchmarks run, and what they promise holds."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def engine(rounds: int, folder: Path) -> dict[str, list[float]]:
    output = folder / "raw.json"
    command = [sys.executable, str(BENCHMARKS / "engine.py"), "--rounds", str(rounds), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    seconds: dict[str, list[float]] = json.loads(output.read_text())["seconds"]
    return seconds


def test_the_engines_benchmark_runs(tmp_path: Path) -> None:
    seconds = engine(1, tmp_path)
    assert {name: len(values) for name, values in seconds.items()} == {"plain": 1, "loader": 1, "fedunlearn": 1}


@pytest.mark.long
def test_a_round_takes_less_than_the_plain_loops(tmp_path: Path) -> None:
    """Measured 0.72; 0.95 leaves room for a noisy machine."""
    seconds = engine(15, tmp_path)
    ratios = sorted(a / b for a, b in zip(seconds["fedunlearn"], seconds["plain"], strict=True))
    assert ratios[len(ratios) // 2] <= 0.95


@pytest.mark.long
def test_a_thousand_clients_take_the_memory_of_ten() -> None:
    peak = runpy.run_path(str(BENCHMARKS / "memory.py"))["peak"]
    assert peak(1000, 2) <= 1.2 * peak(10, 2)


@pytest.mark.long
def test_a_runs_own_share_of_its_time_is_small(tmp_path: Path) -> None:
    """Measured 2.9 %; the promise is 5."""
    output = tmp_path / "raw.json"
    command = [sys.executable, str(BENCHMARKS / "runner.py"), "--pairs", "3", "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    own = sorted(json.loads(output.read_text())["own"])
    assert own[len(own) // 2] < 0.05


def test_an_average_holds_one_sum_whatever_the_number_of_replies() -> None:
    """The long test's reason, in small: of a thousand replies nothing but their sum is kept."""
    import gc
    import weakref

    import torch

    from fedunlearn.weights import Average, Weights

    mean = Average(like=Weights({"w": torch.zeros(1000)}))
    seen = []
    for _ in range(1000):
        reply = Weights({"w": torch.ones(1000)})
        seen.append(weakref.ref(reply.parameters["w"]))
        mean.add(reply, 1)
    del reply
    gc.collect()
    assert not any(alive() is not None for alive in seen)
