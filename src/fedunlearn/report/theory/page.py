"""The page of what the theory says, of a run or of a network, from the diagnoses that lie in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedunlearn.diagnoses import Advised, Bounds, Gaps, Optimality, Similarities, Spectra
from fedunlearn.findings import FOLDER, Found, read_found
from fedunlearn.report.rendering import REPORT, THEORY, render, write, write_pictures
from fedunlearn.report.theory import advice, bound, cka, coadaptation, jacobian, optimality, poset, spectrum
from fedunlearn.report.theory.section import Section
from fedunlearn.theory.jacobian import JacobianControl
from fedunlearn.theory.poset import Ordered

__all__ = ["publish_found", "section_of"]


def _cka(found: Similarities) -> Section:
    random = "Retrain, first"
    return cka.section(found.models, random=random if random in found.models else None)


def _spectrum(found: Spectra) -> Section:
    section = spectrum.section(found.methods)
    return replace(section, says=(*section.says, *(f"{label}: {why}." for label, why in found.silent.items())))


SECTIONS: Mapping[str, tuple[type[Any], Callable[[Any], Section]]] = {
    "poset": (Ordered, poset.section),
    "advice": (Advised, advice.section),
    "optimality": (Optimality, lambda found: optimality.section(found.conditions, found.norms)),
    "cka": (Similarities, _cka),
    "coadaptation": (Gaps, lambda found: coadaptation.section(found.gaps)),
    "jacobian": (JacobianControl, jacobian.section),
    "spectrum": (Spectra, _spectrum),
    "bound": (Bounds, lambda found: bound.section(found.bounds, found.measured)),
}
"""By diagnosis, in the order of the page: what its results are, and how they are told."""


def section_of(found: Found[Any]) -> Section:
    """What a diagnosis found, ready to be read; over seeds the mean."""
    return SECTIONS[found.name][1](found.mean)


def publish_found(found: Found[Any], folder: Path) -> Path:
    """Write what a diagnosis found into a folder: JSON, figures, and the page with all that lies there.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    found.write(folder)
    everything = list(_read(folder))
    sections = [section_of(one) for one in everything]
    write_pictures((picture for section in sections for picture in section.pictures), folder / FOLDER)
    path = folder / THEORY
    content = render(
        "theory.html",
        title=f"Theory: {found.about}",
        heading=found.about,
        report=REPORT if (folder / "experiment.toml").exists() else None,  # which is made at the end of a run
        several=len(everything) > 1,
        sections=[(section, _over(one.seeds)) for section, one in zip(sections, everything, strict=True)],
        commands=[(section.title, one.command) for section, one in zip(sections, everything, strict=True)],
    )
    write(path, content.encode())
    return path


def _over(seeds: Sequence[int]) -> str:
    """What a section's numbers are the mean of; nothing of a network alone, whose weights are not looked at."""
    if not seeds:
        return ""
    return f"Mean over seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else f"Of seed {seeds[0]}."


def _read(folder: Path) -> Iterator[Found[Any]]:
    for name, (kind, _) in SECTIONS.items():
        path = folder / FOLDER / f"{name}.json"
        if path.exists():
            yield read_found(path, kind)
