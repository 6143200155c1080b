"""The process in which a target is fuzzed by coverage: ``python -m fuzzing`` starts it."""

from __future__ import annotations

import hashlib
import resource
import sys
import traceback
from pathlib import Path
from random import Random

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("fuzzing by coverage needs atheris: pip install atheris")

# What is not ours is imported first, and so not instrumented.
import torchvision  # noqa: F401

with atheris.instrument_imports(include=["fedunlearn", "tomllib"]):
    from fuzzing.target import Finding, Target, examine
    from fuzzing.targets import TARGETS

_MEMORY = 2**30  # bytes that may come to those that are mapped at the start


def main(name: str, findings: Path, arguments: list[str]) -> None:
    """Fuzz until libFuzzer has had its time; different findings are written down, and it goes on."""
    target, seen = TARGETS[name], set[str]()

    def one(data: bytes) -> None:
        try:
            examine(target, data)
        except Finding as finding:
            where = _place(finding)
            if where not in seen:
                seen.add(where)
                digest = hashlib.sha256(data).hexdigest()[:12]
                (findings / digest).write_bytes(data)
                (findings / f"{digest}.txt").write_text("".join(traceback.format_exception(finding)))

    _limit()
    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=_mutator(target))
    atheris.Fuzz()


def _mutator(target: Target) -> object:
    """Half of the inputs keep the outer form of their kind; libFuzzer's own, the other half, soon do not."""

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        changed = target.mutated(data, random) if random.random() < 0.5 else atheris.Mutate(data, longest)
        return bytes(changed[:longest])

    return mutated


def _place(finding: Finding) -> str:
    """What tells one finding from another: the kind of error and the line of ours that it comes from."""
    cause = finding.__cause__
    if cause is None:
        return "".join(one for one in str(finding) if not one.isdigit())[:60]
    frames = traceback.extract_tb(cause.__traceback__)
    ours = [frame for frame in frames if "fedunlearn" in frame.filename] or list(frames)
    return f"{type(cause).__name__} {ours[-1].filename}:{ours[-1].lineno}"


def _limit() -> None:
    """A request for very much memory is an error, and not the machine's end."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
