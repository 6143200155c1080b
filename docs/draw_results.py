"""Write what commands have found into the documents: `python docs/draw_results.py`.

Each place in a document, between `<!-- found: table-1 -->` and `<!-- end: table-1 -->`, say, is filled
from a file that a command wrote: of `docs/reproduced` (`fedunlearn reproduce`) in `docs/results.md`, of `docs/computed`
(likewise) and `docs/advised` (`fedunlearn advise`) in `docs/theory.md`, of `docs/audited` (an `audit.json`, and what
`docs/recognised.py` prints) in `docs/audits.md`, of `docs/measured` (`benchmarks/NAME.py` or `benchmarks/NAME/run.py`,
with `--output`) in `docs/performance.md`, `docs/flower-costs.md` and the README. So the documents cannot differ from
what was found.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fedunlearn.auditing import Audit
from fedunlearn.diagnoses import Advised
from fedunlearn.findings import read_found
from fedunlearn.report.reproduction import read_reproduction
from fedunlearn.report.tables import audit_as_markdown, beside_as_markdown
from fedunlearn.report.theory.advice import advice_as_markdown

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks"


def files(folder: str) -> dict[str, Path]:
    """The files of a folder beside the documents, by name."""
    return {path.stem: path for path in sorted((DOCS / folder).glob("*.json"))}


def reproductions(folder: str) -> dict[str, str]:
    """The paper's numbers beside ours, by table or figure."""
    return {name: beside_as_markdown(read_reproduction(path)) for name, path in files(folder).items()}


def theory() -> dict[str, str]:
    """What diagnoses found, and whether the adviser tells the truth."""
    advised = {name: read_found(path, Advised) for name, path in files("advised").items()}
    return {**reproductions("computed"), "advice": advice_as_markdown(advised)}


def audits() -> dict[str, str]:
    """What attacks found, and what clients can measure themselves."""
    attacked = {name: audit_as_markdown(Audit.read(path)) for name, path in files("audited").items()}
    return {**attacked, "recognised": (DOCS / "audited" / "recognised.md").read_text(encoding="utf-8")}


def measured() -> dict[str, str]:
    """The tables that benchmarks make of what they have measured."""
    sys.path += [] if str(BENCHMARKS) in sys.path else [str(BENCHMARKS)]  # as where one is run
    told: dict[str, str] = {}
    for name, path in files("measured").items():
        script = next(one for one in (BENCHMARKS / f"{name}.py", BENCHMARKS / name / "run.py") if one.exists())
        benchmark, found = runpy.run_path(str(script)), json.loads(path.read_text(encoding="utf-8"))
        for tables in ("tables", "plan_tables"):
            told |= benchmark[tables](found) if tables in benchmark else {}
    return told


def measured_for(document: str) -> dict[str, str]:
    """Those of one document: the README has the one called `speed`, docs/flower-costs.md all of Flower's."""

    def home(place: str) -> str:
        if place == "speed":
            return "../README.md"
        if place in ("scale-register", "scale-queue", "scale-merging"):
            return "scale.md"
        return "flower-costs.md" if place.startswith("flower") else "performance.md"

    return {place: told for place, told in measured().items() if home(place) == document}


PLACES: dict[str, Callable[[], dict[str, str]]] = {
    "results.md": lambda: reproductions("reproduced"),
    "audits.md": audits,
    "theory.md": theory,
    **{name: partial(measured_for, name) for name in ("performance.md", "scale.md", "flower-costs.md", "../README.md")},
}
"""By document: what stands in its places."""


def redrawn(text: str, found: Mapping[str, str]) -> str:
    """A document with all its places filled.

    Args:
        text: of the document.
        found: what stands in each place.

    Raises:
        ValueError: something has no place, or a place nothing that it could be filled with.
    """
    places = re.findall(r"<!-- found: (\S+) -->", text)
    if strangers := sorted(set(found) ^ set(places)):
        raise ValueError(
            f"{strangers[0]} must have been found and have, once, a place between <!-- found: {strangers[0]} --> and "
            f"<!-- end: {strangers[0]} -->"
        )
    for name, told in found.items():
        begin, end = f"<!-- found: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"write {begin} and {end} once each")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n\n{told}\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the documents."""
    for name, found in PLACES.items():
        document = DOCS / name
        document.write_text(redrawn(document.read_text(encoding="utf-8"), found()), encoding="utf-8")


if __name__ == "__main__":
    main()
