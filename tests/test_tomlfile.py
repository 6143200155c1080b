from __future__ import annotations

import copy
import itertools
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedunlearn.tomlfile import Document, KeyPath, TomlError, read


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are, and where one stands: so that places are told by name alone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "own.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def paths(value: object, above: KeyPath = ()) -> Iterator[KeyPath]:
    """All that lead somewhere in a table, from outside inwards."""
    below: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in below:
        yield (*above, key)
        yield from paths(item, (*above, key))


def at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a = 1\n\n# about b\nb = 2", {("a",): 1, ("b",): 4}),
        ("a.b.c = 1\na.d = 2\n", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "d"): 2}),
        (
            '"a.b" = 1\n\'c d\'."e" = 2\n"\\u00e4" = 3\n"" = 4\n',
            {("a.b",): 1, ("c d",): 2, ("c d", "e"): 2, ("ä",): 3, ("",): 4},
        ),
        ("0 = 1\n-1 . 1e5 = 2\ntrue = 3\n", {("0",): 1, ("-1",): 2, ("-1", "1e5"): 2, ("true",): 3}),
        (
            "a = { b = 1, c.d = { e = 2 } } # {\nf = {}\n",
            {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1, ("a", "c", "d", "e"): 1, ("f",): 2},
        ),
        (
            "a = [ # not 0, but\n  1, # this\n\n  [2,\n3], # and these\n  { b = [4,\n  5] },\n]\nc = []\n",
            {
                ("a",): 1,
                ("a", 0): 2,
                ("a", 1): 4,
                ("a", 1, 0): 4,
                ("a", 1, 1): 5,
                ("a", 2): 6,
                ("a", 2, "b"): 6,
                ("a", 2, "b", 0): 6,
                ("a", 2, "b", 1): 7,
                ("c",): 9,
            },
        ),
        (
            "[a]\n[b . c] # below b\nd = 1\n[b]\ne = 2\n[b.c.f]",
            {
                ("a",): 1,
                ("b",): 2,
                ("b", "c"): 2,
                ("b", "c", "d"): 3,
                ("b", "e"): 5,
                ("b", "c", "f"): 6,
            },
        ),
        (
            """\
            [[a]]
            b = 1
            [a.c]
            d = 2
            [[a.e]]
            [[a.e]]
            f = 3
            [a.e.g.h]
            i = 4
            [[a]]
            [[a.e]]
            f = 5
            """,
            {
                ("a",): 1,
                ("a", 0): 1,
                ("a", 0, "b"): 2,
                ("a", 0, "c"): 3,
                ("a", 0, "c", "d"): 4,
                ("a", 0, "e"): 5,
                ("a", 0, "e", 0): 5,
                ("a", 0, "e", 1): 6,
                ("a", 0, "e", 1, "f"): 7,
                ("a", 0, "e", 1, "g"): 8,
                ("a", 0, "e", 1, "g", "h"): 8,
                ("a", 0, "e", 1, "g", "h", "i"): 9,
                ("a", 1): 10,
                ("a", 1, "e"): 11,
                ("a", 1, "e", 0): 11,
                ("a", 1, "e", 0, "f"): 12,
            },
        ),
        (
            'a = """\nb = 1\n[c]\n""""\nd = \'\'\'\ne = [\n\'\'\'\nf = "g = 1"\n',
            {("a",): 1, ("d",): 5, ("f",): 8},
        ),
        ("a = 1\r\n[b]\r\nc = 2\r\n", {("a",): 1, ("b",): 2, ("b", "c"): 3}),
    ],
    ids=[
        "top-level keys",
        "dotted keys",
        "quoted keys",
        "keys that look like numbers",
        "inline tables",
        "arrays",
        "tables",
        "arrays of tables",
        "multi-line strings",
        "lines that end as on Windows",
    ],
)
def test_every_value_has_its_line_and_nothing_else_has_one(folder: Path, text: str, lines: dict[KeyPath, int]) -> None:
    document = read(written(text))
    assert document.places == {where: f"own.toml:{line}" for where, line in lines.items()}
    assert set(paths(document.table)) == lines.keys()
    assert document.table == tomllib.loads(textwrap.dedent(text))


def test_what_is_missing_is_missing_in_its_table(folder: Path) -> None:
    document = read(written("a = 1\n[b]\nc = [1,\n2]\n"))
    assert document.place(("b", "x")) == "own.toml:2"
    assert document.place(("b", "c", 5, "x")) == "own.toml:3"
    assert document.place(("b", "c", 1, "x")) == "own.toml:4"
    assert document.place(("x", "b")) == document.place(()) == document.source == "own.toml"


def test_ranks_follow_the_lines(folder: Path) -> None:
    document = read(written("b = 1\na = [1,\n2]\n[c]\nd = 3\n"))
    order: list[KeyPath] = [("x",), ("b",), ("a",), ("a", 0), ("a", 1), ("c",), ("c", "d")]
    assert list(map(document.rank, order)) == list(range(7))
    assert document.rank(("c", "x")) == document.rank(("c",))


def test_a_file_is_extended_from_its_own_folder(folder: Path) -> None:
    written("a = 1\nb = 2\n", "base.toml")
    document = read(written('extends = "../base.toml"\nb = 3\n', "below/own.toml"))
    assert document.table == {"a": 1, "b": 3}
    assert document.source == "below/own.toml"
    assert document.places == {("a",): "below/../base.toml:1", ("b",): "below/own.toml:2"}


def test_a_named_file_is_extended_from_anywhere(folder: Path) -> None:
    base = written("a = 1\n", "shipped/quick.toml")
    document = read(written('extends = "quick"\nb = 2\n', "below/own.toml"), {"quick": base})
    assert document.table == {"a": 1, "b": 2}
    assert document.place(("a",)) == "shipped/quick.toml:1"


def test_a_chain_of_three(folder: Path) -> None:
    written("a = 1\nb = 1\nc = 1\n[t]\nx = 1\ny = 1\n", "first.toml")
    written('b = 2\nextends = "first.toml"\nc = 2\n[t]\ny = 2\n', "second.toml")
    document = read(written('extends = "second.toml"\nt.z = 3\nc = 3\n'))
    assert document.table == {"a": 1, "b": 2, "c": 3, "t": {"x": 1, "y": 2, "z": 3}}
    assert document.places == {
        ("a",): "first.toml:1",
        ("t", "x"): "first.toml:5",
        ("b",): "second.toml:1",
        ("t", "y"): "second.toml:5",
        ("t",): "own.toml:2",
        ("t", "z"): "own.toml:2",
        ("c",): "own.toml:3",
    }


def test_a_base_comes_before_what_extends_it(folder: Path) -> None:
    written("[a]\nb = 1\n[c]\nd = 1\n[e]\nf = 1\n", "base.toml")
    document = read(written('extends = "base.toml"\n[c]\nd = 2\n[a]\nb = 2\n'))
    order: list[KeyPath] = [(), ("e",), ("e", "f"), ("c",), ("c", "d"), ("a",), ("a", "b")]
    assert list(map(document.rank, order)) == list(range(7))


def test_a_table_of_another_kind_replaces_the_old_one(folder: Path) -> None:
    written('[a]\nb = { kind = "P", p = 1, r = [1] }\nc = { kind = "P", p = 1 }\nd = { p = 1 }\ne = 1\n', "base.toml")
    own = """\
    extends = "base.toml"
    a.b = { kind = "Q", q = 2 }
    a.c = { kind = "P", q = 2 }
    a.d = { kind = "Q", q = 2 }
    a.e = { q = 2 }
    """
    document = read(written(own))
    assert document.table["a"] == {
        "b": {"kind": "Q", "q": 2},
        "c": {"kind": "P", "p": 1, "q": 2},
        "d": {"kind": "Q", "q": 2},
        "e": {"q": 2},
    }
    assert set(document.places) == set(paths(document.table))
    assert document.place(("a", "b", "p")) == "own.toml:2"
    assert document.place(("a", "c", "p")) == "base.toml:3"


def test_options_are_those_of_what_is_named(folder: Path) -> None:
    """Another network has other options; who changes only some of them keeps the rest."""
    base = '[model]\nname = "cnn"\nseed = 1\noptions = { channels = [8], kernel = 5 }\n'
    written(base, "base.toml")
    for own, options in [
        ('name = "resnet"\noptions = { width = 8 }', {"width": 8}),
        ('name = "resnet"', None),
        ('name = "cnn"\noptions = { kernel = 3 }', {"channels": [8], "kernel": 3}),
        ("options = { kernel = 3 }", {"channels": [8], "kernel": 3}),
    ]:
        document = read(written(f'extends = "base.toml"\n[model]\n{own}\n'))
        assert document.table["model"].get("options") == options
        assert document.table["model"]["seed"] == 1
        assert set(document.places) == set(paths(document.table))
    base_document = read(Path("base.toml"))
    for name, kept in (("resnet", False), ("cnn", True)):
        document = base_document.overridden(f"model.name={name}")
        assert ("options" in document.table["model"]) is kept
        assert set(document.places) == set(paths(document.table))


def test_an_array_replaces_the_old_one(folder: Path) -> None:
    written("a = [1,\n2,\n{ b = 3 }]\n[[c]]\nd = 1\n", "base.toml")
    document = read(written('extends = "base.toml"\na = [4]\nc = []\n'))
    assert document.table == {"a": [4], "c": []}
    assert document.places == {("a",): "own.toml:2", ("a", 0): "own.toml:2", ("c",): "own.toml:3"}


def test_documents_that_are_put_together_stay_as_they_are(folder: Path) -> None:
    base, over = (read(written(text)) for text in ("a.b = 1\na.c = [1]\n", "a.c = [2]\n"))
    before = copy.deepcopy((base, over))
    assert base.extended_by(over).table == {"a": {"b": 1, "c": [2]}}
    assert (base, over) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('extends = "own.toml"', "own.toml:1: extends 'own.toml' goes round in a circle"),
        ('a = 1\nextends = "round.toml"', "round.toml:1: extends './own.toml' goes round in a circle"),
        (
            'a = 1\nextends = "no.toml"',
            "own.toml:2: extends names 'no.toml', but there is no no.toml: give a file, or one of quick, slow",
        ),
        ('extends = "."', "own.toml:1: extends names '.', but there is no .: give a file, or one of quick, slow"),
        ("extends = 3", "own.toml:1: extends names one other file, not 3"),
        ('extends = ["quick",\n"slow"]', "own.toml:1: extends names one other file, not ['quick', 'slow']"),
        ('extends = "broken.toml"', "broken.toml:2: is no TOML: Invalid value"),
    ],
)
def test_what_cannot_be_extended(folder: Path, text: str, says: str) -> None:
    written('extends = "./own.toml"', "round.toml")
    written("a = 1\nb = x\n", "broken.toml")
    named = {"quick": Path("quick.toml"), "slow": Path("slow.toml")}
    with pytest.raises(TomlError) as told:
        read(written(text), named)
    assert str(told.value) == says


def test_without_names_only_files_are_offered(folder: Path) -> None:
    with pytest.raises(TomlError) as told:
        read(written('extends = "no.toml"'))
    assert str(told.value) == "own.toml:1: extends names 'no.toml', but there is no no.toml: give a file"


TABLE = """\
a = 1
[b]
c = [1, [2, { d = 3 }]]
"e f" = "text"
g.h = 4
"""


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("a=2", ("a",), 2),
        ("a = -2.5 ", ("a",), -2.5),
        ("a=true", ("a",), True),
        ("a=[1, 2]", ("a",), [1, 2]),
        ('a={ x = 1, y = "z" }', ("a",), {"x": 1, "y": "z"}),
        ('a="quoted = 1"', ("a",), "quoted = 1"),
        ("a=bare text", ("a",), "bare text"),
        ("a= x = y ", ("a",), "x = y"),
        ('a=so "said" he \\ 😀', ("a",), 'so "said" he \\ 😀'),
        ("a=", ("a",), ""),
        ("a=[1, 2", ("a",), "[1, 2"),
        ("new=5", ("new",), 5),
        ("b.c.0=5", ("b", "c", 0), 5),
        ("b.c.1.1.d=5", ("b", "c", 1, 1, "d"), 5),
        ("b.c.1.1.new=5", ("b", "c", 1, 1, "new"), 5),
        ('b."e f"=5', ("b", "e f"), 5),
        ("b.new.newer.newest=5", ("b", "new", "newer", "newest"), 5),
        ("new.0=5", ("new", "0"), 5),
    ],
)
def test_an_override_sets_one_value(folder: Path, assignment: str, path: KeyPath, value: object) -> None:
    document = read(written(TABLE))
    before = copy.deepcopy(document)
    other = document.overridden(assignment)
    assert at(other.table, path) == value
    assert type(at(other.table, path)) is type(value)
    assert other.place(path) == f"--set {assignment}"
    assert other.source == "own.toml"
    assert document == before
    kept = [where for where in before.places if where != path[: len(where)] and where[: len(path)] != path]
    assert all(at(other.table, where) == at(before.table, where) for where in kept)
    assert all(other.place(where) == before.place(where) for where in kept)
    assert max(kept, key=other.rank) == max(kept, key=before.rank)
    assert other.rank(path) > max(map(other.rank, kept))


def test_a_value_that_is_set_as_a_whole_drops_the_places_below(folder: Path) -> None:
    other = read(written(TABLE)).overridden("b.c=[7]")
    assert other.places == {
        ("a",): "own.toml:1",
        ("b",): "own.toml:2",
        ("b", "e f"): "own.toml:4",
        ("b", "g"): "own.toml:5",
        ("b", "g", "h"): "own.toml:5",
        ("b", "c"): "--set b.c=[7]",
    }
    assert other.place(("b", "c", 0)) == "--set b.c=[7]"


def test_tables_on_the_way_were_made_by_the_override(folder: Path) -> None:
    other = read(written(TABLE)).overridden("b.new.newer.x=1")
    assert other.place(("b", "new", "missing")) == other.place(("b", "new", "newer")) == "--set b.new.newer.x=1"
    assert other.place(("b", "missing")) == "own.toml:2"


def test_overrides_follow_one_another(folder: Path) -> None:
    document = read(written(TABLE))
    for assignment in ("b.c=[1, 2]", "b.c.1=3", "a=5", "a=6"):
        document = document.overridden(assignment)
    assert document.table["b"]["c"] == [1, 3]
    assert document.place(("b", "c", 0)) == "--set b.c=[1, 2]"
    assert document.place(("b", "c", 1)) == "--set b.c.1=3"
    assert document.table["a"] == 6
    assert document.place(("a",)) == "--set a=6"


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("a", "--set a: write KEY=VALUE, such as training.rounds=20"),
        ("", "--set : write KEY=VALUE, such as training.rounds=20"),
        ("=3", "--set =3: write KEY=VALUE, such as training.rounds=20"),
        ("a..b=3", "--set a..b=3: write KEY=VALUE, such as training.rounds=20"),
        ("two words=3", "--set two words=3: write KEY=VALUE, such as training.rounds=20"),
        ("a.b=3", "--set a.b=3: a is no table: set it as a whole"),
        ('b."e f".x.y=3', '--set b."e f".x.y=3: b.e f is no table: set it as a whole'),
        ("b.c.0.d=3", "--set b.c.0.d=3: b.c.0 is no table: set it as a whole"),
        ("b.c.2=3", "--set b.c.2=3: b.c has no element 2: they are 0 to 1"),
        ("b.c.1.7.d=3", "--set b.c.1.7.d=3: b.c.1 has no element 7: they are 0 to 1"),
        ("b.c.-1=3", "--set b.c.-1=3: b.c has no element -1: they are 0 to 1"),
        ("b.c.first=3", "--set b.c.first=3: b.c has no element first: they are 0 to 1"),
        ("none.0=3", "--set none.0=3: none has no element 0: there are none"),
    ],
)
def test_what_is_no_override(folder: Path, assignment: str, says: str) -> None:
    document = read(written(f"none = []\n{TABLE}"))
    before = copy.deepcopy(document)
    with pytest.raises(TomlError) as told:
        document.overridden(assignment)
    assert str(told.value) == says
    assert document == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = 1\nb = \xff\n", "own.toml: is no text in UTF-8: invalid start byte at byte 10"),
        (b"a = 1\nb == 2\nc = 3\n", "own.toml:2: is no TOML: Invalid value"),
        (b"a = 1\n[b\nc = 3\n", "own.toml:2: is no TOML: Expected ']' at the end of a table declaration"),
        (b"a = 1\n\na = 2\n", "own.toml:3: is no TOML: Cannot overwrite a value"),
        (b"a = 1\nb = [1,\n2\n\n", "own.toml:3: is no TOML: Unclosed array"),
        (b'a = "\xe2\x80\xa8"\nb = """\n\n', "own.toml:2: is no TOML: Unterminated string"),
        (b"a = 1\nb", "own.toml:2: is no TOML: Expected '=' after a key in a key/value pair"),
    ],
)
def test_a_file_that_is_no_toml(folder: Path, content: bytes, says: str) -> None:
    Path("own.toml").write_bytes(content)
    with pytest.raises(TomlError) as told:
        read(Path("own.toml"))
    assert str(told.value) == says


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own.toml", "own.toml: cannot be read: No such file or directory"),
        ("folder", "folder: cannot be read: Is a directory"),
    ],
)
def test_what_is_no_file(folder: Path, name: str, says: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(TomlError) as told:
        read(Path(name))
    assert str(told.value) == says


def test_an_empty_file_is_an_empty_table(folder: Path) -> None:
    assert read(written("")) == Document({}, "own.toml", {})


scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8).filter(lambda text: "key" not in text)
    | st.datetimes()
    | st.dates()
)
# Tables are tuples at first: their keys are named afterwards, each another.
shapes = st.recursive(scalars, lambda below: st.lists(below, max_size=3) | st.lists(below, max_size=3).map(tuple))


def named(value: object, numbers: Iterator[int]) -> Any:
    if isinstance(value, tuple):
        return {f"key{next(numbers)}": named(item, numbers) for item in value}
    return [named(item, numbers) for item in value] if isinstance(value, list) else value


tables = st.lists(shapes, min_size=1, max_size=4).map(lambda values: named(tuple(values), itertools.count()))


@settings(deadline=None)
@given(table=tables, multiline=st.booleans())
def test_every_key_has_the_line_in_which_it_first_stands(
    table: dict[str, Any], multiline: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.toml"
    text = tomli_w.dumps(table, multiline_strings=multiline)
    path.write_bytes(text.encode())
    document = read(path)
    assert document.table == tomllib.loads(text) == table
    assert set(document.places) == set(paths(table))
    lines = text.split("\n")
    numbers = {where: int(place.removeprefix(f"{path}:")) for where, place in document.places.items()}
    for where, number in numbers.items():
        if isinstance(where[-1], str):
            found = [bool(re.search(rf"\b{where[-1]}\b", line)) for line in lines]
            assert number == found.index(True) + 1
        else:
            assert numbers[where[:-1]] <= number
    assert sorted(numbers, key=document.rank) == sorted(numbers, key=lambda where: numbers[where])


@settings(deadline=None)
@given(table=tables, value=shapes.filter(lambda value: not isinstance(value, tuple)), data=st.data())
def test_an_override_of_anything_sets_that_and_leaves_all_else(
    table: dict[str, Any], value: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tmp_path_factory.getbasetemp() / "overridden.toml"
    source.write_bytes(tomli_w.dumps(table).encode())
    document = read(source)
    path = data.draw(st.sampled_from(sorted(paths(table), key=str)))
    value = named(value, itertools.count(1000))
    text = tomli_w.dumps({"value": value})
    assume(text.startswith("value = "))  # an array of tables alone is written in another way
    assignment = text.strip().replace("value = ", f"{'.'.join(map(str, path))}=", 1)
    other = document.overridden(assignment)
    expected = copy.deepcopy(table)
    at(expected, path[:-1])[path[-1]] = value
    assert other.table == expected
    assert document.table == table
    kept = {where: place for where, place in document.places.items() if where[: len(path)] != path}
    assert other.places == {**kept, path: f"--set {assignment}"}
