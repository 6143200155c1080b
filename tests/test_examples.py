"""The examples run as they stand, from anywhere, and say what they are there to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fedunlearn.contract import CHECKS

EXAMPLES = Path(__file__).parents[1] / "examples"


def output(name: str, folder: Path, *arguments: str) -> str:
    # A module cannot be named here but by its beginning: what Flower's typer imports of click is deprecated.
    ignored = "ignore:'click.utils:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", ignored, str(EXAMPLES / name), *arguments]
    told = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_negate_your_model(tmp_path: Path) -> None:
    before, after, recovered = re.findall(r"retain (\d+) %", output("01_negate_your_model.py", tmp_path))
    assert int(before) > 90
    assert int(after) < 50
    assert int(recovered) > 90


def test_forget_a_client(tmp_path: Path) -> None:
    lines = output("02_forget_a_client.py", tmp_path).splitlines()
    first = {line.split(":")[0].strip(): float(line.split("'0': ")[1].split(",")[0]) for line in lines}
    assert first.keys() == {"FT", "NoT", "Retrain"}
    assert first["FT"] > 50 > 30 > first["NoT"]
    assert abs(first["NoT"] - first["Retrain"]) < 10


def test_forget_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "clinics"
    told = output("05_forget_when_asked.py", tmp_path, str(folder))
    assert re.search(r"request [0-9a-f]{32} is done; the receipt has 0 problems", told)
    before, after = map(float, re.findall(r"client east: right about ([\d.]+) % before, ([\d.]+) % after", told)[0])
    assert before > 80
    assert after < 50
    assert (folder / "register" / "register.sqlite").exists()
    command = [sys.executable, str(EXAMPLES / "05_forget_when_asked.py"), str(folder)]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert again.returncode == 1
    assert again.stderr == f"{folder} was used before: name another folder, for keys are never overwritten\n"


def test_add_a_method(tmp_path: Path) -> None:
    lines = output("03_add_a_method.py", tmp_path).splitlines()
    assert len(lines) == 2 * len(CHECKS) + 3
    assert {line.split(": ")[1].replace(" ", "_") for line in lines[: 2 * len(CHECKS)]} == set(CHECKS)
    first = {line.split(":")[0].strip(): float(line.split("'0': ")[1].split(",")[0]) for line in lines[-3:]}
    assert first["FT"] > first["Muddle"] > first["Retrain"]


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in tested] == []


def test_audit_a_federation(tmp_path: Path) -> None:
    lines = output("04_audit_a_federation.py", tmp_path).splitlines()
    told = {line.split(":")[0].strip(): [int(share) for share in re.findall(r"(\d+)%", line)] for line in lines}
    assert told.keys() == {"Retrain", "FT", "NoT"}
    for method in ("Retrain", "NoT"):
        sample, low, high, _, fewest, most = told[method]
        assert low <= 50 <= high
        assert fewest < 50 < most
        assert abs(sample - 50) < 8
    assert told["FT"][1] > 50
    assert told["FT"][3] > 90
