"""What a run says of where it ran, and what of that decides its bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedunlearn
from fedunlearn.environment import commit, determinants, environment


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_the_commit_of_a_folder(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git(tmp_path, "init")
    assert commit(tmp_path) is None  # nothing is committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    head = commit(tmp_path)
    assert head is not None
    assert len(head) == 40
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head} with changes"


def test_what_lies_ignored_in_a_checkout_does_not_have_its_commit(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text(".venv\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "module.py").touch()
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-m", "a")
    assert commit(tmp_path) is not None
    assert commit(tmp_path / ".venv") is None


def test_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(Path(fedunlearn.__file__).parent) is None


def test_what_is_told() -> None:
    told = environment()
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (
        told["versions"]["torch"] == torch.__version__.split("+")[0] or told["versions"]["torch"] == torch.__version__
    )
    assert told["cores"] >= 1
    assert told["memory_bytes"] is None or told["memory_bytes"] > 2**28
    assert told["processor"]


def digest_of(package: Path) -> str:
    code = "from fedunlearn.environment import _code; print(_code())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_codes_digest_is_of_what_makes_numbers(tmp_path: Path) -> None:
    package = tmp_path / "fedunlearn"
    shutil.copytree(Path(fedunlearn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    first = digest_of(package)
    assert first == determinants(torch.device("cpu"))["code"]
    for name, counts in (("report/page.py", False), ("cli.py", False), ("rounds.py", True), ("methods/new.py", True)):
        path = package / name
        before = path.read_text() if path.exists() else None
        path.write_text(f"{before or ''}\n# changed\n")
        assert (digest_of(package) != first) == counts, name
        path.write_text(before) if before is not None else path.unlink()


def test_the_device_decides_bits() -> None:
    assert determinants(torch.device("cpu"))["device"] == "cpu"
    assert determinants(torch.device("cuda", 1)) == {**determinants(torch.device("cpu")), "device": "cuda"}
