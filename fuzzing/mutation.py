"""Inputs made of others: trees of plain values changed at some places, and bytes likewise."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from math import isfinite
from random import Random
from typing import Any

import tomli_w

__all__ = ["bytes_changed", "json_changed", "toml_changed", "tree_changed"]

_MOST = 4  # changes of one input
_RAW = {  # texts that no tree can hold, which take the places of these texts in quotes
    "@deep": "[" * 20_000 + "]" * 20_000,
    "@deep table": '{"a":' * 10_000 + "0" + "}" * 10_000,
    "@digits": "9" * 5_000,
    "@float": "1e999",
    "@nan": "NaN",
    "@twice": '{"a":1,"a":2}',
    "@wide": "[" + "0," * 10_000 + "0]",
}
_RAW_TOML = {
    "@deep": _RAW["@deep"],
    "@digits": _RAW["@digits"],
    "@float": "nan",
    "@hex": "0x" + "f" * 5_000,
    "@date": "1979-05-27T07:32:00-08:00",
    "@twice": "{a = 1, a = 2}",
    "@dotted": "{" + ".".join("a" * 5_000) + " = 1}",
}
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e308, -1e308, 5e-324),
    *(2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400),
    *("", "a", "0", "\0", "\ud800", "\u202e", "\x1b[2J", "a\nb", "../../x", "/", "é" * 300, "A" * 5_000),
    *([], {}, [[]], [None], {"": None}, {"kind": None}, {"a": {"a": {}}}),
)
_BYTES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\r",
    b"\n",
    b'"',
    b"[",
    b"{",
    b"=",
    b".",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
)
_BLOCK = 4096  # bytes


def tree_changed(tree: Any, random: Random, raw: Sequence[str] = tuple(_RAW)) -> Any:
    """A tree of tables, lists and plain values with up to four other ones at random places.

    Args:
        tree: left as it is.
        random: to draw by.
        raw: texts that stand for something that is no tree.
    """
    changed = json.loads(json.dumps(tree))
    for _ in range(random.randint(1, _MOST)):
        nodes = list(_nodes(changed))
        holder, key = random.choice(nodes) if nodes else (None, None)
        if holder is None:
            return _value(random, raw, changed)
        _change(holder, key, random, raw, nodes)
    return changed


def json_changed(data: bytes, random: Random, seeds: Callable[[], Sequence[bytes]]) -> bytes:
    """JSON changed as a tree; where it is none, a seed is."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        tree = json.loads(random.choice(seeds()))
    with suppress(RecursionError, ValueError):  # a tree that only the reader of JSON knows, not its writer
        return _filled(json.dumps(tree_changed(tree, random), ensure_ascii=random.random() < 0.5), _RAW)
    return bytes_changed(data, random)


def toml_changed(data: bytes, random: Random, seeds: Callable[[], Sequence[bytes]]) -> bytes:
    """TOML changed as a tree; where it is none, a seed is."""
    try:
        tree = tomllib.loads(data.decode())
        json.dumps(tree)
    except (ValueError, RecursionError, TypeError):
        tree = tomllib.loads(random.choice(seeds()).decode())
    changed = _without_none(tree_changed(tree, random, tuple(_RAW_TOML)))
    return _filled(tomli_w.dumps(changed if isinstance(changed, dict) else tree), _RAW_TOML)


def bytes_changed(data: bytes, random: Random) -> bytes:
    """Bytes with up to four changes: others, fewer, more, or some from elsewhere in them."""
    changed = bytearray(data)
    for _ in range(random.randint(1, _MOST)):
        at, other = random.randint(0, len(changed)), random.randint(0, len(changed))
        length = random.choice((1, 2, 4, 8, random.randint(1, _BLOCK)))
        match random.randrange(6):
            case 0:
                changed[at : at + length] = random.randbytes(length)
            case 1:
                changed[at : at + 1] = random.choice(_BYTES)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[other : other + length]
            case 4:
                changed[at : at + length] = changed[other : other + length]
            case _:
                number = random.choice((0, 1, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(changed)))
                changed[at : at + 8] = number.to_bytes(8, random.choice(("little", "big")))
    return bytes(changed)


def _nodes(tree: Any) -> Sequence[tuple[Any, Any]]:
    """Every place in a tree: the table or list, and the key or position in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


def _change(holder: Any, key: Any, random: Random, raw: Sequence[str], nodes: Sequence[tuple[Any, Any]]) -> None:
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("", "kind", "type", "\0", "a.b", "A" * 500, str(key) * 2, str(key)[:-1]))] = (
                holder.pop(key) if random.random() < 0.5 else holder[key]
            )
        case 1:
            holder.insert(key, json.loads(json.dumps(holder[key])))
        case 2:
            there, other = random.choice(nodes)
            with suppress(LookupError):  # it is gone by now
                holder[key] = json.loads(json.dumps(there[other]))
        case _:
            holder[key] = _value(random, raw, holder[key])


def _value(random: Random, raw: Sequence[str], old: Any) -> Any:
    """Another value; half the time a neighbour of the old one."""
    if random.random() < 0.5:
        return deepcopy(random.choice((*_VALUES, *raw)))  # lists and tables among them, which are changed further
    match old:
        case bool():
            return not old
        case int():
            return random.choice(
                (old + 1, old - 1, -old, old * 1000, old / 2 if abs(old) < 2**63 else 0.5, str(old)[:400], [old])
            )
        case float():
            return random.choice((-old, old * 1e9, round(old) if isfinite(old) else 0, str(old), [old]))
        case str():
            return random.choice((old[1:], old + old, old.upper(), old[::-1], old + "\0", [old], {old: old}))
        case list():
            return random.choice((old * 2, old[::-1], [old], old[:1] * 1000, dict(enumerate(map(str, old)))))
        case _:
            return deepcopy(random.choice(_VALUES))


def _filled(text: str, raw: dict[str, str]) -> bytes:
    for placeholder, there in raw.items():
        text = text.replace(f'"{placeholder}"', there, 4)
    return text.encode("utf-8", "surrogatepass")


def _without_none(tree: Any) -> Any:
    """What TOML can say of a tree."""
    if isinstance(tree, dict):
        return {str(key): _without_none(value) for key, value in tree.items() if value is not None}
    return [_without_none(one) for one in tree if one is not None] if isinstance(tree, list) else tree
