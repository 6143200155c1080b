"""TOML files that extend one another and can be overridden, and that know where each of their values was written."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tree_sitter
import tree_sitter_toml

__all__ = ["Document", "KeyPath", "TomlError", "read"]

_EXTENDS = "extends"
_KIND = "kind"  # a table that names another kind is another thing, whose entries do not mix with the old one's
_NAME, _OPTIONS = "name", "options"  # options belong to what is named beside them, and do not outlive it
_LANGUAGE = tree_sitter.Language(tree_sitter_toml.language())

_LONGEST = 4 * 2**20  # characters of a file
_DEEPEST = 64  # tables and arrays within one another
_LARGEST = 10**1000  # a longer number could not even be quoted
_DIGITS = 9  # of a position in an array
_TOO_DEEP = f"has more than {_DEEPEST} tables or arrays within one another"
_TOO_LARGE = "has a whole number of more than 1000 digits"
# Each begun text is taken whole, also without its end, so that no character is looked at more than twice.
_TOKENS = re.compile(
    r"""
    \"\"\"(?:[^\\]|\\.)*?(?:"{3,5}|\Z) | '''.*?(?:'{3,5}|\Z) | "(?:[^"\\\n]|\\.)*+"? | '[^'\n]*'? | \#[^\n]*
    | [^"'\#\n.=,\[\]{}]+ | .
    """,
    re.DOTALL | re.VERBOSE,
)

KeyPath = tuple[str | int, ...]
"""Keys from the top, and positions in arrays."""


class TomlError(ValueError):
    """A file cannot be read, or an override cannot be understood; the sentence begins with the place."""


@dataclass(frozen=True)
class Document:
    """A table, and where its values were written.

    Attributes:
        table: the values, as `tomllib` gives them.
        source: of the outermost file.
        places: what a person would look up, such as ``own.toml:7``, by path.
    """

    table: Mapping[str, Any]
    source: str
    places: Mapping[KeyPath, str]

    def place(self, path: KeyPath) -> str:
        """Where the value at ``path`` was written; of one that is missing, the table that should have it."""
        return self.places.get(self._written(path), self.source)

    def rank(self, path: KeyPath) -> int:
        """Numbers the places in the order in which a reader meets them."""
        return self._ranks[self._written(path)]

    @cached_property
    def _ranks(self) -> Mapping[KeyPath, int]:
        return {path: rank for rank, path in enumerate([(), *self.places])}

    def _written(self, path: KeyPath) -> KeyPath:
        while path and path not in self.places:
            path = path[:-1]
        return path

    def extended_by(self, other: Document) -> Document:
        """Both, the other's values having precedence.

        Tables are merged key by key, unless they name different kinds; everything else is replaced whole. ``options``
        go with the ``name`` beside them: another name begins without.
        """
        places = {**self.places}
        merged = _merged(self.table, other.table, (), places)
        kept = {where: place for where, place in places.items() if where not in other.places}
        return Document(merged, other.source, {**kept, **other.places})

    def overridden(self, assignment: str) -> Document:
        """With one value set, as by ``training.rounds=20``: the value is TOML, or, if it is none, text.

        Another ``name`` begins without ``options``, as in `extended_by`.

        Raises:
            TomlError: it is no assignment, or leads through something that is no table.
        """
        source = f"--set {assignment}"
        key, equals, text = assignment.partition("=")
        path: KeyPath = _keys(key) if equals else ()
        if not path:
            raise TomlError(f"{source}: write KEY=VALUE, such as training.rounds=20")
        table = holder = _copied(self.table)
        places = {**self.places}
        exact: KeyPath = ()
        new: list[KeyPath] = []
        for part in path:
            if isinstance(holder, list):
                part = _position(holder, part, f"{source}: {_dotted(exact)}")
            elif not isinstance(holder, dict):
                raise TomlError(f"{source}: {_dotted(exact)} is no table: set it as a whole")
            exact = (*exact, part)
            if len(exact) == len(path):
                value = _value(text)
                if part == _NAME:
                    _let_options_go(holder, value, exact[:-1], places)
                holder[part] = value
            elif isinstance(holder, dict) and part not in holder:
                holder[part] = {}
                new.append(exact)
            holder = holder[part]
        _displace(exact, places)
        return Document(table, self.source, {**places, **dict.fromkeys([*new, exact], source)})


def read(path: Path, named: Mapping[str, Path] | None = None) -> Document:
    """Read a file and what it extends.

    The entry ``extends`` at the top names a file, from the folder of the one that it stands in, or one of ``named``.
    It is followed, not kept.

    Raises:
        TomlError: a file is missing, is no TOML, or extends itself.
    """
    return _read(path, named or {}, ())


def _read(path: Path, named: Mapping[str, Path], within: tuple[Path, ...]) -> Document:
    document = _single(path)
    if _EXTENDS not in document.table:
        return document
    place, target = document.place((_EXTENDS,)), document.table[_EXTENDS]
    if not isinstance(target, str):
        raise TomlError(f"{place}: {_EXTENDS} names one other file, not {target!r}")
    base = named.get(target, path.parent / target)
    chain = (*within, path.resolve())
    if not os.path.isfile(base):  # a Path's own raises OSError at a name that is too long
        known = f", or one of {', '.join(named)}" if named else ""
        raise TomlError(f"{place}: {_EXTENDS} names {target!r}, but there is no {base}: give a file{known}")
    if base.resolve() in chain:
        raise TomlError(f"{place}: {_EXTENDS} {target!r} goes round in a circle")
    own = {key: value for key, value in document.table.items() if key != _EXTENDS}
    places = {where: text for where, text in document.places.items() if where != (_EXTENDS,)}
    return _read(base, named, chain).extended_by(Document(own, document.source, places))


def _single(path: Path) -> Document:
    try:
        with open(path, "rb") as file:
            text = file.read(_LONGEST + 1).decode().replace("\r\n", "\n").replace("\r", "\n")
        table = _parsed(text)
    except OSError as error:
        raise TomlError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise TomlError(f"{path}: is no text in UTF-8: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise TomlError(_located(path, text, str(error))) from None
    except ValueError as error:
        raise TomlError(f"{path}: {error}") from None
    tree = tree_sitter.Parser(_LANGUAGE).parse(text.encode())
    places: dict[KeyPath, str] = {}
    for where, line in _lines(tree.root_node):
        places.setdefault(where, f"{path}:{line}")
    return Document(table, str(path), places)


def _parsed(text: str) -> dict[str, Any]:
    """A text's table, of a depth and with numbers that all who handle it can handle.

    Raises:
        TOMLDecodeError: it is no TOML.
        ValueError: it is too long, too deep, or has too large a number.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"is longer than {_LONGEST} characters: take out what it does not need")
    if _deep(text):
        raise ValueError(_TOO_DEEP)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's own limit to the digits of a number
        raise ValueError(_TOO_LARGE) from None
    _require_bounded(table, 0)
    return table


def _deep(text: str) -> bool:
    """Whether a key has too many parts or brackets lie too deep: tomllib takes long over them, or fills the stack."""
    dots = brackets = 0
    for token in _TOKENS.finditer(text):
        match token[0]:
            case ".":
                dots += 1
            case "[" | "{":
                dots, brackets = 0, brackets + 1
            case "]" | "}":
                dots, brackets = 0, brackets - 1
            case "\n" | "=" | ",":
                dots = 0
        if max(dots, brackets) > _DEEPEST:
            return True
    return False


def _require_bounded(value: Any, depth: int) -> None:
    if isinstance(value, Mapping | list):
        if depth > _DEEPEST:
            raise ValueError(_TOO_DEEP)
        for item in value.values() if isinstance(value, Mapping) else value:
            _require_bounded(item, depth + 1)
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(_TOO_LARGE)


def _located(path: Path, text: str, error: str) -> str:
    """tomllib's sentence with its line where all others have theirs."""
    says, _, where = error.rpartition(" (at ")
    lines = text.rstrip().count("\n") + 1
    line = where.removeprefix("line ").split(",")[0] if where.startswith("line ") else str(lines)
    return f"{path}:{line}: is no TOML: {says or error}"


def _lines(document: tree_sitter.Node) -> Iterator[tuple[KeyPath, int]]:
    """Path and line (from 1) of every key, and of every element of an array."""
    seen: dict[KeyPath, int] = {}  # arrays of tables, how many elements so far
    for node in document.children:
        if node.type == "pair":
            yield from _pair(node, ())
        elif node.type in ("table", "table_array_element"):
            path = _current(_node_keys(node.named_children[0]), seen, within=node.type == "table")
            yield from ((path[:depth], _line(node)) for depth in range(1, len(path)))
            if node.type == "table_array_element":
                yield path, _line(node)
                seen[path] = seen.get(path, -1) + 1
                path = (*path, seen[path])
            yield path, _line(node)
            for child in node.named_children[1:]:
                if child.type == "pair":
                    yield from _pair(child, path)


def _current(keys: KeyPath, arrays: Mapping[KeyPath, int], *, within: bool) -> KeyPath:
    """The path that a header means: through an array of tables it leads into the last element."""
    path: KeyPath = ()
    for depth, key in enumerate(keys):
        path = (*path, key)
        if path in arrays and (within or depth < len(keys) - 1):
            path = (*path, arrays[path])
    return path


def _pair(node: tree_sitter.Node, above: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    key, value = node.named_children[:2]
    path = (*above, *_node_keys(key))
    for depth in range(len(above) + 1, len(path)):  # a.b = 1 makes the table a
        yield path[:depth], _line(node)
    yield path, _line(node)
    yield from _value_lines(value, path)


def _value_lines(node: tree_sitter.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if node.type == "inline_table":
        for child in node.named_children:
            if child.type == "pair":
                yield from _pair(child, path)
    elif node.type == "array":
        elements = [child for child in node.named_children if child.type != "comment"]
        for position, child in enumerate(elements):
            yield (*path, position), _line(child)
            yield from _value_lines(child, (*path, position))


def _line(node: tree_sitter.Node) -> int:
    return node.start_point[0] + 1


def _node_keys(node: tree_sitter.Node) -> KeyPath:
    text = (node.text or b"").decode()
    return (text,) if node.type == "bare_key" else _keys(text)


def _keys(dotted: str) -> KeyPath:
    """The parts of a dotted key, unquoted; none if it is malformed."""
    try:
        below: Any = _parsed(f"{dotted} = 0")
    except ValueError:
        return ()
    path: KeyPath = ()
    while isinstance(below, dict) and len(below) == 1:
        ((key, below),) = below.items()
        path = (*path, key)
    return path


def _value(text: str) -> Any:
    try:
        return _parsed(f"value = {text}")["value"]
    except ValueError:
        return text.strip()


def _position(array: Sequence[Any], part: str | int, place: str) -> int:
    number = str(part)
    if not (number.isdecimal() and len(number) <= _DIGITS and int(number) < len(array)):
        there = f"they are 0 to {len(array) - 1}" if array else "there are none"
        raise TomlError(f"{place} has no element {number}: {there}")
    return int(number)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _merged(
    base: Mapping[str, Any], over: Mapping[str, Any], path: KeyPath, places: dict[KeyPath, str]
) -> dict[str, Any]:
    """``base`` with ``over`` in it; what is replaced loses its ``places``."""
    merged = dict(base)
    if _NAME in over:
        _let_options_go(merged, over[_NAME], path, places)
    for key, value in over.items():
        here, old = (*path, key), merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get(_KIND) in (None, old.get(_KIND)):
            merged[key] = _merged(old, value, here, places)
        else:
            merged[key] = value
            _displace(here, places)
    return merged


def _let_options_go(table: dict[str, Any], name: Any, path: KeyPath, places: dict[KeyPath, str]) -> None:
    """From a table at ``path`` that is about to get this name, unless it has it."""
    if table.get(_NAME) != name and _OPTIONS in table:
        del table[_OPTIONS]
        _displace((*path, _OPTIONS), places)


def _displace(above: KeyPath, places: dict[KeyPath, str]) -> None:
    """Take out of ``places`` what stands there or below."""
    for where in [where for where in places if where[: len(above)] == above]:
        del places[where]
