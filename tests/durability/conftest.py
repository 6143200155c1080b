"""A process that starts lives, and those that nothing has happened to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from durability.cutting import Clean, Lives

TESTS = Path(__file__).resolve().parents[1]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # what is synced is recorded, not the disk's business


@pytest.fixture(scope="session")
def lives() -> Iterator[Lives]:
    if sys.platform != "linux" or not (compiler := shutil.which("gcc")):
        pytest.skip("steps are recorded by a C library that is preloaded: Linux, with gcc")
    with TemporaryDirectory(dir=MEMORY) as place:
        shim, source = Path(place) / "shim.so", Path(__file__).with_name("shim.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        path = os.pathsep.join([str(TESTS), *sys.path])
        environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "durability.lives"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=place
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield Lives(process, Path(place))


@pytest.fixture(scope="session")
def clean(lives: Lives) -> Iterator[dict[str, Clean]]:
    """One of each kind."""

    class Made(dict[str, Clean]):
        def __missing__(self, life: str) -> Clean:
            before = lives.prepared(life)
            folder = lives.copied(before)
            self[life] = Clean(life, before, folder, lives.live(life, folder))
            return self[life]

    return Made()
