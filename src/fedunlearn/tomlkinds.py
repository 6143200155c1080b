"""Dataclasses that a TOML table's ``kind`` names: how what a user chooses in a file becomes an object."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails

from fedunlearn.importing import load_object, path_of
from fedunlearn.layers import First
from fedunlearn.problems import again, meant, short, unknown, wrong

__all__ = ["Kinds", "as_json", "sayable"]


class Kinds:
    """Dataclasses that a table's ``kind`` names, its other entries being the fields; or just the kind.

    One of the user's own is named ``package.module:Class``, if there may be such.
    """

    def __init__(self, base: type | None = None, /, **kinds: type) -> None:
        self.base, self.kinds = base, kinds

    def __call__(self, table: Any) -> Any:
        """The dataclass that a table means, as it stands in a file; one that is made already is left as it is.

        Raises:
            ValueError: what is wrong with the table as a whole.
            ValidationError: what is wrong with its entries, all at once.
        """
        if self.has(table):
            return table
        if isinstance(table, str):
            table = {"kind": table}
        if not isinstance(table, Mapping):
            raise ValueError(f"must be a table whose kind is {self._known}, not {short(table)}")
        if "kind" not in table:
            raise ValueError(f"has no kind, which must be {self._known}")
        entries = dict(table)
        try:
            kind = self._kind(entries.pop("kind"))
        except ValueError as error:
            raise ValidationError.from_exception_data("kind", [wrong("kind", str(error), table["kind"])]) from None
        entries = self.completed(str(table["kind"]), entries)
        known = [field.name for field in dataclasses.fields(kind) if field.init]
        problems = [unknown(name, known, entries.pop(name)) for name in list(entries) if name not in known]
        try:
            made: Any = _reader(kind).validate_json(as_json(entries), strict=True)
        except ValidationError as error:
            problems += [again(problem) for problem in error.errors() if not _is_first(problem)]
        except PydanticUserError:  # of a field's type
            raise ValueError(
                f"{table['kind']} has a field whose type no file can give, or is imported under TYPE_CHECKING: "
                "let it be str, int, float, bool, or a list or mapping of these"
            ) from None
        else:
            problems += [
                wrong(name, "Input should be text or an array", entries[name])
                for name in entries
                if not sayable(getattr(made, name))
            ]
        if problems:
            raise ValidationError.from_exception_data(kind.__name__, problems)
        return made

    def completed(self, name: str, entries: dict[str, Any]) -> dict[str, Any]:
        """What stands in a table of the kind ``name``, with what it leaves to others."""
        return entries

    def has(self, value: object) -> bool:
        """Whether ``value`` is of one of these kinds."""
        return isinstance(value, (*self.kinds.values(), *([self.base] if self.base else [])))

    def name(self, value: object) -> str:
        """What a file calls the kind of ``value``."""
        kind = type(value)
        ours = [name for name, one in self.kinds.items() if one is kind]
        return ours[0] if ours else path_of(kind)

    @property
    def _known(self) -> str:
        *others, last = [*self.kinds, *(["your own as package.module:Class"] if self.base else [])]
        return f"{', '.join(others)} or {last}" if others else last

    def _kind(self, name: object) -> type:
        if isinstance(name, str) and ":" in name and self.base is not None:
            try:
                kind = load_object(name)
            except ImportError as error:
                raise ValueError(str(error)) from None
            if not (isinstance(kind, type) and issubclass(kind, self.base) and dataclasses.is_dataclass(kind)):
                raise ValueError(f"{name} is no dataclass that subclasses fedunlearn.task.{self.base.__name__}")
            if inspect.isabstract(kind):
                raise ValueError(
                    f"{name} lacks {' and '.join(sorted(kind.__abstractmethods__))}, as every method must have"
                )
            return kind
        if not isinstance(name, str) or name not in self.kinds:
            raise ValueError(f"must be {self._known}{meant(name, self.kinds)}, not {short(name)}")
        return self.kinds[name]


def as_json(table: Mapping[str, Any]) -> str:
    """A table for pydantic: what is strict in JSON is what TOML can say, where an array may be a tuple."""
    return json.dumps(table, default=str)  # TOML's dates: text, where nothing takes a date


def sayable(value: object) -> bool:
    """Whether a file can say it: neither None nor `fedunlearn.FIRST`, which are what is meant if nothing is said."""
    return value is not None and not isinstance(value, First)


@cache
def _reader(kind: type) -> TypeAdapter[Any]:
    """Made once for each class: it takes longer than all that it reads."""
    return TypeAdapter(kind)


def _is_first(problem: ErrorDetails) -> bool:
    """Whether it is about `fedunlearn.FIRST`, which a file cannot say anyway."""
    return (problem.get("ctx") or {}).get("class_name") == First.__name__
