"""What is wrong with a file, in sentences: what pydantic finds, told at the places where a person wrote it."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from fedunlearn.tomlfile import Document, KeyPath

__all__ = ["again", "meant", "sentence", "sentences", "short", "unfit", "unknown", "wrong"]

_SHOULD = re.compile(r"\w+ should (be|have|match) (.+?)(?: after validation)?(?:, not \d+)?")
_MOST = 100  # wrong places that are told: nobody reads more, and what was meant takes long to guess
_WORDS = {  # JSON's, as pydantic says them, and ours
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid array": "an array",
    "an object": "a table",
}


def unfit(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where TOML says what no entry of an experiment may be."""
    if isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from unfit(item, (*path, key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"must be a finite number, not {value}"
    elif isinstance(value, datetime.date | datetime.time):
        yield path, f"must not be a date or a time: put quotes around {value} if it is text"


def sentences(
    problems: Iterable[ErrorDetails], unsayable: Mapping[KeyPath, str], document: Document, root: type
) -> list[str]:
    """A sentence for each wrong place, in the order in which these were written.

    Args:
        problems: what pydantic found.
        unsayable: what `unfit` found.
        document: that was read.
        root: the dataclass that it should have become.
    """
    told: dict[KeyPath, list[ErrorDetails]] = {}
    for problem in problems:
        path = _reached(
            problem["loc"], document.table, whole=problem["type"] in ("missing", "unexpected_keyword_argument")
        )
        told.setdefault(path, []).append(problem)
    found = {**told, **unsayable}
    # Of a union's members, the one that got further knows.
    inner = {path[:depth] for path in found for depth in range(len(path))}
    paths = sorted((path for path in found if path not in inner), key=document.rank)
    says = [
        f"{document.place(path)}: {'.'.join(map(str, path))}: "
        + (unsayable.get(path) or _joined([sentence(problem, path, root) for problem in told[path]]))
        for path in paths[:_MOST]
    ]
    more = len(paths) - len(says)
    return [*says, f"{document.source}: {more} more places are wrong"] if more else says


def _reached(loc: KeyPath, table: Any, *, whole: bool) -> KeyPath:
    """``loc`` without what pydantic puts between: which member of a union was tried."""
    if whole:
        return loc
    path: KeyPath = ()
    for part in loc:
        if part in (table if isinstance(table, Mapping) else range(len(table) if isinstance(table, list) else 0)):
            table, path = table[part], (*path, part)
    return path


def sentence(problem: ErrorDetails, path: KeyPath, root: type) -> str:
    """What is wrong at one place."""
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] == "unexpected_keyword_argument":
        ctx = problem.get("ctx")
        known = ctx["known"] if ctx else _known_fields(root, path[:-1])
        there = f"there {'is only' if len(known) == 1 else 'are'} {', '.join(known) or 'no entries'}"
        return f"is unknown{meant(path[-1], known)}; {there}"
    should = _SHOULD.fullmatch(problem["msg"])
    if should is None:
        return problem["msg"].removeprefix("Value error, ")
    verb, what = should.groups()
    return f"must {verb} {_WORDS.get(what, what)}, not {short(problem['input'])}"


def _joined(says: Sequence[str]) -> str:
    """What the members of a union say of the same value, in one sentence."""
    if len(says) == 1:
        return re.sub(r"^must be text, not (-?[\d.]+)$", r'must be text, not \1: write "\1"', says[0])
    alike = [one.removeprefix("must be ").rsplit(", not ", 1) for one in says]
    if all(len(parts) == 2 for parts in alike):
        return f"must be {' or '.join(dict.fromkeys(parts[0] for parts in alike))}, not {alike[0][1]}"
    return " or ".join(dict.fromkeys(says))


def short(value: object) -> str:
    """A value in a sentence."""
    if isinstance(value, Mapping):
        return "a table"
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _known_fields(kind: Any, path: KeyPath) -> list[str]:
    """The entries of one of our own tables."""
    for part in path:
        kind = kind.__pydantic_fields__[part].annotation
    return [field.name for field in dataclasses.fields(kind)]


def unknown(name: str, known: Sequence[str], value: object) -> InitErrorDetails:
    """An entry that is none of the known ones."""
    # Of pydantic's own type, so that the place of the entry is told, and not that of its table.
    kind = PydanticCustomError("unexpected_keyword_argument", "is unknown", {"known": list(known)})
    return InitErrorDetails(type=kind, loc=(name,), input=value)


def wrong(name: str, sentence: str, value: object) -> InitErrorDetails:
    """An entry with a value that it cannot have."""
    return InitErrorDetails(type=PydanticCustomError("value_error", cast(Any, sentence)), loc=(name,), input=value)


def again(problem: ErrorDetails) -> InitErrorDetails:
    """A problem that was found, to be raised once more together with others."""
    kind = PydanticCustomError(cast(Any, problem["type"]), cast(Any, problem["msg"]), problem.get("ctx"))
    return InitErrorDetails(type=kind, loc=problem["loc"], input=problem["input"])


def meant(name: object, known: Iterable[str]) -> str:
    """A hint; upper and lower case do not count."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]}?)" if close else ""
