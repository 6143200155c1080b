"""Arrows point one way: the floors of docs/architecture.md hold in the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fedunlearn"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or not path.stem.startswith("__"))


def floors() -> dict[str, int]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"```floors\n(.*?)```", text, re.DOTALL)
    assert block is not None
    lines = block.group(1).strip().splitlines()
    return {name: number for number, line in enumerate(lines) for name in line.split()}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.split(".")[1] for name in found if name.startswith("fedunlearn.")}


def test_every_module_has_its_floor_and_no_other_is_named() -> None:
    assert {room(path) for path in FILES} == set(floors())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_from_below(path: Path) -> None:
    floor = floors()
    above = {name for name in imported(path) - {room(path)} if floor[name] >= floor[room(path)]}
    assert not above, f"{path.name} imports {above} from its own floor or above"


def test_every_file_is_in_the_architectures_table() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text()
    assert [name for name in floors() if f"`{name}.py`" not in table and f"`{name}/`" not in table] == []


def test_the_public_names_are_there_and_come_late() -> None:
    import fedunlearn

    for name in fedunlearn.__all__:
        assert getattr(fedunlearn, name) is not None
        assert name in dir(fedunlearn)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedunlearn.nothing  # noqa: B018
    code = "import sys, fedunlearn, fedunlearn.cli; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
