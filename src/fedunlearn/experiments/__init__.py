"""The experiments that come with the package, one TOML file each.

Those beside this file are run by name. ``cpu/`` and ``paper/`` hold what reproduces the paper's tables and figures, on
a scale for two cores and on the paper's own: files of ``table-1`` are called ``table-1.toml`` or ``table-1-cnn.toml``.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["SCALES", "reproducing", "shipped"]

SCALES = ("cpu", "paper")
_FOLDER = Path(__file__).parent


def shipped() -> dict[str, Path]:
    """Their files, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def reproducing(scale: str) -> dict[str, Path]:
    """The files that reproduce the paper at one of `SCALES`, by name with the folder, such as ``cpu/table-1-cnn``."""
    return {f"{scale}/{path.stem}": path for path in sorted((_FOLDER / scale).glob("*.toml"))}
