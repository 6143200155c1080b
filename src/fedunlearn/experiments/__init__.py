"""The experiments that come with the package, one TOML file each."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]


def shipped() -> dict[str, Path]:
    """Their files, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
