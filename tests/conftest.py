"""What several tests share: the flag for long tests, and federations of the contract's size."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from diagnosed import kept_run, quick
from fedunlearn.backends.in_process import InProcess
from fedunlearn.contract import small_federation
from fedunlearn.evaluation.membership import mia

settings.register_profile("any machine", deadline=None)  # a busy machine is no reason to fail
settings.load_profile("any machine")


# Waiting for the disk proves nothing where nobody cuts the power, and takes a tenth of the time of all tests. A test of
# what is synced patches this itself; what is synced must still be an open file.
os.fsync = os.fstat


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if "long" in item.keywords]
    if long:  # deselected, not skipped: a skip must have a reason that somebody should look at
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if "long" not in item.keywords]


@pytest.fixture(scope="session")
def one_worker() -> InProcess:
    return small_federation(workers=1)


@pytest.fixture(scope="session")
def two_workers() -> Iterator[InProcess]:
    federation = small_federation(workers=2)
    yield federation
    federation.close()


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with models on the way, which nobody has looked at: to be copied."""
    with quick():
        return kept_run(tmp_path_factory.mktemp("kept"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what a user's runs have trained, or leaves something there."""
    monkeypatch.setenv("FEDUNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def quick_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """One subsample instead of five: the attack is three quarters of a tiny run's time.

    For tests to which its value does not matter, and whose runs are all made in this process.
    """
    monkeypatch.setattr("fedunlearn.evaluation.scores.mia", functools.partial(mia, repeats=1))
