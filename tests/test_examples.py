"""The examples run as they stand, from anywhere, and say what they are there to say."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedunlearn.contract import CHECKS

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., str]


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as a script, in this process (importing torch anew would take longer than most of them do)."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_an_example_runs_in_a_process_of_its_own_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "02_forget_a_client.py")]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert told.returncode == 0, told.stderr
    require_the_client_is_forgotten(told.stdout)


def test_negate_your_model(output: Run) -> None:
    before, after, recovered = re.findall(r"retain (\d+) %", output("01_negate_your_model.py"))
    assert int(before) > 90
    assert int(after) < 50
    assert int(recovered) > 90


def require_the_client_is_forgotten(told: str) -> None:
    first = {line.split(":")[0].strip(): float(line.split("'0': ")[1].split(",")[0]) for line in told.splitlines()}
    assert first.keys() == {"FT", "NoT", "Retrain"}
    assert first["FT"] > 50 > 30 > first["NoT"]
    assert abs(first["NoT"] - first["Retrain"]) < 10


def test_forget_when_asked(tmp_path: Path, output: Run) -> None:
    folder = tmp_path / "new" / "clinics"
    told = output("05_forget_when_asked.py", str(folder))
    assert re.search(r"request [0-9a-f]{32} is done; the receipt has 0 problems", told)
    before, after = map(float, re.findall(r"client east: right about ([\d.]+) % before, ([\d.]+) % after", told)[0])
    assert before > 80
    assert after < 50
    assert (folder / "register" / "register.sqlite").exists()
    with pytest.raises(SystemExit, match="was used before: name another folder, for keys are never overwritten"):
        output("05_forget_when_asked.py", str(folder))


def test_add_a_method(output: Run) -> None:
    lines = output("03_add_a_method.py").splitlines()
    assert len(lines) == 2 * len(CHECKS) + 3
    assert {line.split(": ")[1].replace(" ", "_") for line in lines[: 2 * len(CHECKS)]} == set(CHECKS)
    first = {line.split(":")[0].strip(): float(line.split("'0': ")[1].split(",")[0]) for line in lines[-3:]}
    assert first["FT"] > first["Muddle"] > first["Retrain"]


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in tested] == []


def test_audit_a_federation(output: Run) -> None:
    lines = output("04_audit_a_federation.py").splitlines()
    told = {line.split(":")[0].strip(): [int(share) for share in re.findall(r"(\d+)%", line)] for line in lines}
    assert told.keys() == {"Retrain", "FT", "NoT"}
    for method in ("Retrain", "NoT"):
        sample, low, high, _, fewest, most = told[method]
        assert low <= 50 <= high
        assert fewest < 50 < most
        assert abs(sample - 50) < 8
    assert told["FT"][1] > 50
    assert told["FT"][3] > 90
