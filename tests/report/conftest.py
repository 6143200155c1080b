"""Reports to look at: one of a run, and odd ones made from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from looking import CHROMIUM, QUIET
from playwright.sync_api import Browser, sync_playwright

from fedunlearn.report.report import Failure, Report, assemble
from fedunlearn.runner import run
from tiny import load_tiny

SHOWN = (
    *("title=One of four leaves", "story=Digits, in small.", "published=table-1/cifar-10/cnn", "seeds=[0, 1]"),
    *("data.samples=60", "training.rounds=6", "training.batch_size=16", "recovery.rounds=6"),
    *("recovery.evaluate_every=2", 'recovery.stop={ kind = "Recovered", margin = 30, flat = 40, window = 2 }'),
)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a tiny run."""
    folder = tmp_path_factory.mktemp("runs")
    for _ in run(load_tiny(folder, *SHOWN), folder / "tiny", workers=1, command="fedunlearn run tiny.toml"):
        pass
    return assemble(folder / "tiny")


@pytest.fixture(scope="session")
def odd(report: Report) -> Report:
    """What a page must survive: hostile text, endless names, many methods, a failure, a missing seed, no sessions."""
    endless = "Negation_of_every_single_layer_" * 4
    rows = list(report.rows)
    for number in range(9):
        method = f"{endless}{number}" if number == 0 else f"<b>Method</b> {number}"
        rows += [replace(row, method=method) for row in report.rows if row.method == "NoT"]
    experiment = {
        **report.experiment,
        "title": '<script>alert("title")</script> & "quotes"',
        "story": "</style><img src=x onerror=alert(1)>" + "w" * 300,
    }
    failures = (Failure("FT", 1, 3, "the training loss became <nan>"),)
    return replace(report, experiment=experiment, rows=tuple(rows), failures=failures, sessions=(), missing=(7, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For what is written."""
    return tmp_path / "written"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Started once for all looks."""
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()
