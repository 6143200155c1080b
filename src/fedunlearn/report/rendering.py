"""What every page has in common: its template, the figures in it, and the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedunlearn.atomic import atomic_write
from fedunlearn.report.drawing import COLOURS, Picture

__all__ = ["AUDIT", "REPORT", "THEORY", "render", "write", "write_pictures"]

REPORT, AUDIT, THEORY = "report.html", "audit.html", "theory.html"
"""The pages of a run, which lie side by side and link to one another."""

_NO_FILTERS: Mapping[str, Callable[..., Any]] = {}


def render(template: str, *, filters: Mapping[str, Callable[..., Any]] = _NO_FILTERS, **values: Any) -> str:
    """A page's HTML.

    Args:
        template: the name of a file beside this one.
        filters: of its own; ``inline``, which draws a picture, is in all.
        values: that the template names; `COLOURS` are there always.

    Raises:
        jinja2.UndefinedError: the template names something else.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, **filters}
    return environment.get_template(template).render(colours=COLOURS, **values)


def write_pictures(pictures: Iterable[Picture], folder: Path) -> None:
    """Each as SVG and as PDF, into a folder that is made where there is none.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        write(folder / f"{picture.name}.svg", picture.svg())
        write(folder / f"{picture.name}.pdf", picture.pdf())


def write(path: Path, content: bytes) -> None:
    """A file that is whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as file:
        file.write(content)


def _inline(picture: Picture) -> Markup:
    return Markup(picture.inline())
