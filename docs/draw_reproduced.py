"""Write the reproduced tables and figures into the results: `python docs/draw_reproduced.py`.

Each file of `docs/reproduced`, as `fedunlearn reproduce` wrote it, fills the place in `docs/results.md` between the two
comments that name it, `<!-- reproduced: table-1 -->` and `<!-- end: table-1 -->`: so the document cannot differ from
what was found.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedunlearn.report.shape import read_reproduction
from fedunlearn.report.tables import beside_as_markdown

DOCS = Path(__file__).parent


def redrawn(text: str, folder: Path) -> str:
    """The document with all its places filled from the files of a folder.

    Raises:
        ValueError: a file has no place, or a place no file.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    places = re.findall(r"<!-- reproduced: (\S+) -->", text)
    if strangers := sorted(set(files) ^ set(places)):
        raise ValueError(
            f"{strangers[0]} must be a file of {folder} and, once, a place between "
            f"<!-- reproduced: {strangers[0]} --> and <!-- end: {strangers[0]} -->"
        )
    for name, path in files.items():
        begin, end = f"<!-- reproduced: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"write {begin} and {end} once each")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n\n{beside_as_markdown(read_reproduction(path))}\n{end}{after}"
    return text


def main() -> None:
    """Rewrite the document."""
    results = DOCS / "results.md"
    results.write_text(redrawn(results.read_text(encoding="utf-8"), DOCS / "reproduced"), encoding="utf-8")


if __name__ == "__main__":
    main()
