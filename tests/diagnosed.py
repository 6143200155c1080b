"""A tiny run with models on the way, and diagnoses made quick, for the tests of what looks at runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from fedunlearn import diagnoses
from fedunlearn.cli import main
from fedunlearn.evaluation.membership import mia
from fedunlearn.runner import run
from tiny import load_tiny

KEPT = (
    *("title=One of four leaves", "seeds=[3, 4]", "keep.every=1", "data.samples=60", "model.options.channels=[2, 4]"),
    *("training.rounds=6", "training.batch_size=16", "recovery.rounds=6", "recovery.evaluate_every=6"),
)
ROUNDS = 6
LABELS = ("Retrain", "FT", "NoT")


@contextmanager
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Few samples, subsets and draws, and one thread: on so small matrices several wait for each other."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedunlearn.evaluation.scores.mia", functools.partial(mia, repeats=1))
        for name, number in {"_ALIKE": 64, "_JACOBIANS": 24, "_SUBSET": 40, "_SUBSETS": 1, "_DRAWS": 2}.items():
            patch.setattr(diagnoses, name, number)
        torch.set_num_threads(1)
        try:
            yield patch
        finally:
            torch.set_num_threads(threads)


def kept_run(folder: Path, *overrides: str) -> Path:
    """The run's folder, in ``folder``."""
    for _ in run(load_tiny(folder, *KEPT, *overrides), folder / "run", workers=1, command="fedunlearn run tiny.toml"):
        pass
    return folder / "run"


def tell(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error, of ``fedunlearn`` with these arguments."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["fedunlearn", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()
