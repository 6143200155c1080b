"""Write what commands have found into the documents: `python docs/draw_results.py`.

Each file of `docs/reproduced`, as `fedunlearn reproduce` wrote it, fills the place in `docs/results.md` between the two
comments that name it, `<!-- found: table-1 -->` and `<!-- end: table-1 -->`; each of `docs/audited`, an `audit.json`
under its run's name, one in `docs/audits.md`. So the documents cannot differ from what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fedunlearn.auditing import Audit
from fedunlearn.report.reproduction import read_reproduction
from fedunlearn.report.tables import audit_as_markdown, beside_as_markdown

DOCS = Path(__file__).parent
PLACES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "results.md": ("reproduced", lambda path: beside_as_markdown(read_reproduction(path))),
    "audits.md": ("audited", lambda path: audit_as_markdown(Audit.read(path))),
}
"""By document: the folder of its files, and what is written of one."""


def redrawn(text: str, folder: Path, told: Callable[[Path], str]) -> str:
    """A document with all its places filled from the files of a folder.

    Raises:
        ValueError: a file has no place, or a place no file.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    places = re.findall(r"<!-- found: (\S+) -->", text)
    if strangers := sorted(set(files) ^ set(places)):
        raise ValueError(
            f"{strangers[0]} must be a file of {folder} and, once, a place between "
            f"<!-- found: {strangers[0]} --> and <!-- end: {strangers[0]} -->"
        )
    for name, path in files.items():
        begin, end = f"<!-- found: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"write {begin} and {end} once each")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n\n{told(path)}\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the documents."""
    for name, (folder, told) in PLACES.items():
        document = DOCS / name
        document.write_text(redrawn(document.read_text(encoding="utf-8"), DOCS / folder, told), encoding="utf-8")


if __name__ == "__main__":
    main()
