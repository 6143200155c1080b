"""The benchmarks run, and what they promise holds."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

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
def test_memory_grows_neither_with_clients_nor_with_those_who_take_part() -> None:
    """Measured 1.02 and 1.07."""
    of = runpy.run_path(str(BENCHMARKS / "scale.py"))["of"]

    def peak(clients: int, participants: int) -> int:
        point = {"clients": clients, "participants": participants, "rounds": 0, "workers": 2}
        return int(of("clients", **point)["peak"])

    assert peak(10_000, 100) <= 1.2 * peak(100, 100)
    assert peak(10_000, 1000) <= 1.2 * peak(10, 10)


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


def flower(folder: Path, *arguments: str) -> Any:
    output = folder / "raw.json"
    command = [sys.executable, str(BENCHMARKS / "flower.py"), *arguments, "--output", str(output)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr  # it is 1 where the ways end in different bits
    return json.loads(output.read_text())


def test_the_benchmark_on_flower_runs_in_one_process(tmp_path: Path) -> None:
    counts = ("--rounds", "1", "--requests", "1", "--times", "1")
    found = flower(tmp_path, "--stages", "process", "pieces", *counts)
    ways = found["process"]["ways"]
    assert list(ways) == ["in-process", "in-process, one worker", "LocalGrid"]
    assert all(len(way["round"]) == len(way["request"]) == 1 for way in ways.values())
    assert len(found["pieces"]) == 15
    # 96,938 floats to each of two clients that stay and back, and to them once more to be measured, in five rounds.
    weighed, model = found["process"]["bytes"], 96_938 * 4
    assert weighed["account"] == model * 2 * 3 * 5
    assert 1 < weighed["messages"]["train.work"] / (model * 2 * 2 * 5) < 1.01  # the rest is JSON


def test_the_app_on_flower_has_the_engines_network() -> None:
    engines, apps = (
        runpy.run_path(str(BENCHMARKS / place))["Cnn"] for place in ("engine.py", "flower_app/overhead/work.py")
    )
    assert repr(engines()) == repr(apps())


@pytest.mark.long
@pytest.mark.parametrize("stage", ["simulation", "deployment"])
def test_the_benchmark_on_flower_runs(stage: str, tmp_path: Path) -> None:
    """In the bits of one process, and with as many exchanges of messages as docs/flower.md says."""
    found = flower(tmp_path, "--stages", "process", stage, "--rounds", "1", "--requests", "1")
    kinds = {
        work: [kind for kind, _ in found[stage][work]["exchanges"]]
        for work in ("round", "sparse round", "empty work", "request")
    }
    rounds = {work: len(found[stage][work]["seconds"]) for work in kinds}
    assert kinds["round"] == ["query.requests", "train.work", "evaluate.work"] * rounds["round"]
    assert 3 * len(kinds["sparse round"]) == rounds["sparse round"] * (3 + 1 + 1)
    assert kinds["empty work"] == ["evaluate.work"] * rounds["empty work"]
    assert len(kinds["request"]) == 22 * rounds["request"]
