"""The document about Flower does what it says: its commands are run in order, its code is an app."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedunlearn.deletion.register import Register
from fedunlearn.flower import LocalGrid
from flower.processes import EXAMPLE, nothing_left

ROOT = EXAMPLE.parents[1]
TEXT = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PROMPT = "$ "


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the document, and the lines that it is said to print."""
    for language, block in BLOCKS:
        if language != "console":
            continue
        for part in re.split(rf"^{re.escape(PROMPT)}", block, flags=re.MULTILINE)[1:]:
            command, _, printed = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*)(\n)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
            yield command, printed.splitlines()


def is_as_said(printed: str, said: list[str]) -> bool:
    """Whether a command has printed what the document says: "..." is any text, and alone on a line any lines."""
    lines = ["" if line == "..." else r"\s+".join(map(_any, line.split())) + r"\s*\n" for line in said]
    pattern = r"(?:[^\n]*\n)*".join(_joined(lines))
    return re.fullmatch(rf"\s*{pattern}\s*", printed) is not None


def _any(word: str) -> str:
    return ".*".join(map(re.escape, word.split("...")))


def _joined(lines: list[str]) -> list[str]:
    """Runs of lines that follow one another, apart where others may stand between them."""
    runs = [""]
    for line in lines:
        if line:
            runs[-1] += line
        else:
            runs.append("")
    return runs


def test_the_comparison_can_fail() -> None:
    assert is_as_said("a 1\nb\nc\n", ["a ...", "...", "c"])
    assert is_as_said("a\n", ["a", "..."])
    assert not is_as_said("a 1\nb\nc\n", ["a ...", "c"])
    assert not is_as_said("a 1\nb\n", ["b"])
    assert not is_as_said("a 1\nb\n", [])
    assert not is_as_said("a\n", ["a.c"])


def test_the_code_of_the_document_is_an_app_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from deployment import prepare

    folder = tmp_path / "hospitals"
    prepare(folder, 2, 9400)
    client, server = (_run(block) for language, block in BLOCKS if language == "python")
    grid = LocalGrid(client, [{"partition-id": n, "folder": str(folder / f"hospital-{n + 1}")} for n in range(2)])
    monkeypatch.setenv("HOSPITAL_SERVER", str(folder / "server"))
    server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), {"rounds": 1}))
    told = Register.read(folder / "server" / "register").standing()
    assert [done.samples for _, done in told.rounds] == [{"hospital-1": 480, "hospital-2": 480}]


def _run(code: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(code, "docs/flower.md", "exec"), names)
    return names["app"]


def test_files_and_chapters_that_are_named_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", TEXT)
    assert [link for link in links if "://" not in link and not (ROOT / "docs" / link).exists()] == []
    places = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", TEXT, re.M)}
    assert {place for place in re.findall(r"\]\(#([\w-]+)\)", TEXT) if place not in places} == set()


@pytest.mark.long
def test_the_commands_of_the_document_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from deployment import Deployment

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    shell = subprocess.Popen(
        ["bash", "-u"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with nothing_left(tmp_path / "hospitals"), shell:
        try:
            for command, said in commands():
                printed, status = _told(shell, command)
                with capsys.disabled():
                    print(f"\n{PROMPT}{command}\n{printed}", end="", flush=True)
                assert status == 0, printed
                assert is_as_said(printed, said), f"{PROMPT}{command}\n{printed}\nis not\n" + "\n".join(said)
        finally:
            shell.kill()
        assert list(Deployment(tmp_path / "hospitals").processes()) == []  # the last command has stopped them
    told = Register.read(tmp_path / "hospitals" / "server" / "register").standing()
    assert [entry.state for entry in told.requests.values()] == ["done", "done"]
    assert len(told.unlearnings) == 1
    assert "script" not in (tmp_path / "register.html").read_text()


def _told(shell: subprocess.Popen[str], command: str) -> tuple[str, int]:
    """What a shell prints at a command, and the command's status."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f'{command}\necho "-- $? --"\n')
    shell.stdin.flush()
    printed = ""
    for line in shell.stdout:
        if over := re.fullmatch(r"(.*)-- (\d+) --\n", line):
            return printed + over[1], int(over[2])
        printed += line
    raise AssertionError(f"the shell has ended at {command}:\n{printed}")
