"""What the example's scripts refuse, in one sentence, before they start or write anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flower.processes import EXAMPLE


def refused(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLE / script), *map(str, arguments)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.count("\n") == 1
    return told.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--hospitals", 0), "a federation needs a hospital: give --hospitals 1 or more"),
        (("--hospitals", -2), "a federation needs a hospital: give --hospitals 1 or more"),
        (("--hospitals", 3, "--port", 65533), "ports end at 65535, and each hospital takes one after --port"),
    ],
)
def test_federations_that_cannot_be(tmp_path: Path, options: tuple[object, ...], says: str) -> None:
    assert says in refused("prepare.py", tmp_path / "hospitals", *options)
    assert not (tmp_path / "hospitals").exists()


def test_a_name_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from deployment import Deployment, prepare

    folder = tmp_path / "hospitals"
    prepare(folder, 2, 65533)
    sentence = f"there is no hospital-99 in {folder}: name some of superlink, hospital-1, hospital-2, or none\n"
    assert refused("start.py", folder, "superlink", "hospital-99") == sentence
    assert refused("stop.py", folder, "hospital-99") == sentence
    assert list(Deployment(folder).processes()) == []
    assert list((folder / "logs").iterdir()) == []
