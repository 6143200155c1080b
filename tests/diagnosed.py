"""A tiny run with models on the way, and diagnoses made quick, for the tests of what looks at runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fedunlearn import diagnoses
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
        patch.setattr(diagnoses, "_MANY_BATCHES", 32)
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
