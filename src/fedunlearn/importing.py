"""Names that users write, and the objects they stand for."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["load_object", "path_of", "unknown"]


def load_object(path: str) -> Any:
    """Import ``package.module:name``; the current directory is searched first, as by ``python -m``.

    Raises:
        ValueError: ``path`` has another form.
        ImportError: there is no such module, it has no such name, or its own code fails while it is imported.
    """
    module_name, _, name = path.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"write {path!r} as 'package.module:name'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # for good: the object may import its neighbours when it is called, too
    importlib.invalidate_caches()  # or a module written a moment ago can be missed
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise  # it was found, but imports something that is not installed
        raise ImportError(
            f"there is no module {missing!r}, for {path!r}: install it, or start from the directory it is in"
        ) from None
    except Exception as error:
        raise ImportError(f"{module_name!r} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no {name!r}{_suggestion(name, vars(module))}") from None


def path_of(kind: type) -> str:
    """What `load_object` finds a class by."""
    return f"{kind.__module__}:{kind.__qualname__}"


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a ``name`` that is none of the ``known`` ones: it proposes the closest."""
    known = tuple(known)
    return ValueError(
        f"there is no {kind} {name!r}{_suggestion(name, known)}: "
        f"take one of {', '.join(known)}, or your own as 'package.module:name'"
    )


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
