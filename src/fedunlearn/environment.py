"""What a run ran on: versions, hardware, code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["commit", "determinants", "environment"]

_PACKAGES = ("fedunlearn", "torch", "torchvision", "numpy", "scipy", "scikit-learn")
_ROOT = Path(__file__).parent
_ONLY_SHOWS = (
    *("cli.py", "commands", "console.py", "export.py", "report", "contract.py", "denials.py"),
    *("presets.py", "amounts.py", "recommend.py", "tuning.py", "artefacts.py"),
)
"""Of this package: what reads results, or says what to run, but makes none."""


def environment() -> dict[str, Any]:
    """Versions, hardware and commits, as plain values; nothing that names a person or a host."""
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": commit(_ROOT),
        "commit_here": commit(Path.cwd()),
        "code": _code(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }


def determinants(device: torch.device) -> dict[str, str]:
    """What, beside an experiment and its data, decides the bits that come out.

    Instructions of the processor are among it, for torch adds up in another order with each set of them.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES[1:]}
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"code": _code(), **versions, "instructions": processor, "device": device.type}


def commit(folder: Path) -> str | None:
    """The git commit of a folder, marked where files differ from it; None where git keeps nothing of it.

    So an environment that lies in somebody's checkout, ignored, does not have that checkout's commit.
    """
    try:
        if not _git(folder, "ls-files", "--", "."):
            return None
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} with changes" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@cache
def _code() -> str:
    """Digest of this package's source, but for what only shows results."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(_ROOT.rglob("*.py")):
        name = path.relative_to(_ROOT)
        if name.parts[0] not in _ONLY_SHOWS:
            digest.update(f"{name.as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not everywhere
        return None
