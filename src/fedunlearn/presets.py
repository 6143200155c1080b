"""Hyper-parameters that others have used, and where each value is from."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = ["SOURCES", "Origin", "Preset", "grid", "origins", "presets"]

Source = Literal["paper", "code", "supplement", "guess", "tuned"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class Preset:
    """Values of some of a method's hyper-parameters.

    Attributes:
        name: as a file says it: ``{ kind = "PGD", preset = "paper-cnn" }``.
        values: by hyper-parameter.
        sources: of each of them.
        note: what else there is to say.
    """

    name: str
    values: Mapping[str, Any]
    sources: Mapping[str, Source]
    note: str = ""


@dataclass(frozen=True)
class Origin:
    """Who has used a value.

    Attributes:
        preset: that has it.
        source: of it there.
        note: of the preset.
    """

    preset: str
    source: Source
    note: str


def presets(method: str) -> Mapping[str, Preset]:
    """The presets of a method, by their names."""
    found = {}
    for table in _file().get(method, ()):
        values = {entry: value for source in SOURCES for entry, value in table.get(source, {}).items()}
        sources = {entry: source for source in SOURCES for entry in table.get(source, {})}
        found[table["name"]] = Preset(table["name"], values, sources, table.get("note", ""))
    return found


def grid(method: str) -> Mapping[str, tuple[Any, ...]]:
    """What a search tries of each hyper-parameter; empty where there is nothing to tune."""
    return {entry: tuple(values) for entry, values in _file()["grid"].get(method, {}).items()}


def origins(method: str, entries: Mapping[str, Any]) -> Mapping[str, Origin]:
    """Which preset has the same value, for each entry of which one has.

    Looked up by value, so that it holds for entries that were written out, too. Where several have it, the one that
    agrees in most entries is named.
    """
    agreeing = sorted(presets(method).values(), key=lambda preset: -_agreement(preset, entries))
    found = {}
    for entry, value in entries.items():
        for preset in agreeing:
            if entry in preset.values and _same(preset.values[entry], value):
                found[entry] = Origin(preset.name, preset.sources[entry], preset.note)
                break
    return found


def _agreement(preset: Preset, entries: Mapping[str, Any]) -> int:
    return sum(entry in entries and _same(value, entries[entry]) for entry, value in preset.values.items())


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) or (isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and list(a) == list(b))


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
