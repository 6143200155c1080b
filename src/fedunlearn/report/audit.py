"""The page of an audit: what was found, by whom, how surely, and what may be promised; and the files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedunlearn.amounts import tell_p
from fedunlearn.auditing import FILE, Audit
from fedunlearn.audits.forgetting import FEWEST as FEWEST_FOR_QUALITY
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN
from fedunlearn.report import audit_figures as figures
from fedunlearn.report import audit_numbers as numbers
from fedunlearn.report.drawing import Picture
from fedunlearn.report.rendering import AUDIT, REPORT, render, write, write_pictures
from fedunlearn.verdict import conclusion, summary, verdicts

__all__ = ["audit_page", "publish_audit"]

_CURVES = ("U-LiRA", "Before and after")
_SCORES = "U-LiRA"


def publish_audit(audit: Audit, folder: Path) -> Path:
    """Write everything that people read of an audit into the run's folder: the page, its figures, and the JSON.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    pictures = _Pictures.of(audit)
    write_pictures(pictures.all(), folder / "audit-figures")
    audit.write(folder / FILE, summary(audit))
    path = folder / AUDIT
    write(path, _rendered(audit, pictures).encode())
    return path


def audit_page(audit: Audit) -> str:
    """The page's HTML."""
    return _rendered(audit, _Pictures.of(audit))


@dataclass(frozen=True)
class _Pictures:
    """All figures of the page, by where they stand in it."""

    intervals: list[Picture]
    receivers: list[Picture]
    histograms: list[Picture]
    relearning: list[Picture]
    probes: list[Picture]

    @classmethod
    def of(cls, audit: Audit) -> _Pictures:
        return cls(
            list(figures.intervals(audit)),
            [figures.receiver(audit, attack) for attack in map(audit.attack, _CURVES) if attack.curves],
            list(figures.histograms(audit, audit.attack(_SCORES))),
            list(figures.relearning(audit)),
            list(figures.probes(audit)),
        )

    def all(self) -> Iterator[Picture]:
        for group in (self.intervals, self.receivers, self.histograms, self.relearning, self.probes):
            yield from group


def _rendered(audit: Audit, pictures: _Pictures) -> str:
    first = audit.examined[0].models[REFERENCE].relearned
    return render(
        "audit.html",
        filters={"p": tell_p},
        title=audit.title,
        audit=audit,
        report=REPORT,
        conclusion=conclusion(audit),
        verdicts=verdicts(audit),
        pictures=pictures,
        shown_of=numbers.shown_of,
        standings=numbers.standings(audit),
        forgotten=numbers.relearnt(audit, lambda facts: facts.relearned),
        twins=numbers.relearnt(audit, lambda facts: facts.relearned_twins),
        low_again=numbers.LOW_AGAIN,
        steps=first[0].steps[-1],
        repeats=len(first),
        probes=list(numbers.probes_of(audit)),
        turned=numbers.turned_of(audit),
        original=ORIGINAL,
        reference=REFERENCE,
        again=AGAIN,
        fewest=FEWEST_FOR_QUALITY,
    )
