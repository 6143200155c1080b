"""The document of the theory names what there is: tests, functions, commands, and every erratum."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

from fedunlearn.commands.theory import theory

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", TEXT)))
FUNCTIONS = sorted(set(re.findall(r"`(fedunlearn\.[\w.]+)`", TEXT)))
COMMANDS = set(re.findall(r"`fedunlearn theory (\w+)", TEXT))
ERRATA = dict(re.findall(r"^\| (\d+) \|(.*)\|$", TEXT, re.MULTILINE))


@cache
def named_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_is_named_exists() -> None:
    assert len(TESTS) > 90
    assert len(TESTS) == len(set(re.findall(r"::(\w+)", TEXT)))  # none is written in a way that is not looked up
    assert [f"{file}::{name}" for file, name in TESTS if name not in named_in(file)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_that_is_named_imports(name: str) -> None:
    if name == "fedunlearn.methods.freeze":
        importlib.import_module(name)
        return
    module, _, attribute = name.rpartition(".")
    assert attribute in importlib.import_module(module).__all__


def test_every_module_of_the_theory_is_named() -> None:
    modules = {path.stem for path in (ROOT / "src" / "fedunlearn" / "theory").glob("*.py")} - {"__init__"}
    assert modules <= {name.split(".")[2] for name in FUNCTIONS if name.startswith("fedunlearn.theory.")}


def test_every_command_is_named_and_exists() -> None:
    assert {command.name for command in theory.registered_commands} == COMMANDS


def test_the_table_has_all_seventeen_errata_each_with_a_test_that_bears_its_number() -> None:
    assert list(map(int, ERRATA)) == list(range(1, 18))
    for number, row in ERRATA.items():
        assert re.search(rf"::test_(section_\w+_)?erratum_{number}_\w+", row), number


def test_measured_results_have_their_places() -> None:
    places = re.findall(r"^<!-- found: (\S+) -->$", TEXT, re.MULTILINE)
    assert places == ["table-3", "table-8", "figure-3", "figure-7", "figure-8", "advice"]
    for place in places:
        assert re.search(rf"<!-- found: {place} -->\n(?:(?!<!-- found)[\s\S])*?<!-- end: {place} -->", TEXT)
