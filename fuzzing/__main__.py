"""Fuzz a target: ``python -m fuzzing TARGET --seconds 600``."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing.targets import TARGETS

_TOLD = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a target; 1, if something was found, else 0."""
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description="Look for inputs that break a reader.")
    parser.add_argument("target", nargs="?", choices=list(TARGETS), help="one of them; without, they are listed")
    parser.add_argument("--seconds", type=int, default=600, help="for so long")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to go on from, and to which new ones are added")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for what breaks the rule")
    chosen = parser.parse_args(arguments)
    if chosen.target is None:
        print("\n".join(TARGETS))
        return 0
    with TemporaryDirectory(prefix="fuzzing-") as scratch:
        corpus = chosen.corpus or Path(scratch) / "corpus"
        return _run(chosen.target, chosen.seconds, corpus, chosen.findings / chosen.target)


def _run(name: str, seconds: int, corpus: Path, findings: Path) -> int:
    """In a process of its own, since libFuzzer ends the one that it is in."""
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    before, started = set(findings.iterdir()), time.monotonic()
    command = [sys.executable, "-m", "fuzzing.guided", name, str(findings), str(corpus)]
    limits = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={findings}/",
        "-timeout=600",
        "-report_slow_units=600",
        "-rss_limit_mb=4096",
    ]
    done = subprocess.run([*command, *limits, "-max_len=131072", "-len_control=0"], stderr=subprocess.PIPE, text=True)
    told = [found for line in done.stderr.splitlines() if (found := _TOLD.match(line))]
    if not told:
        print(done.stderr, file=sys.stderr)
        return 2
    new = sorted(path for path in findings.iterdir() if path not in before)
    runs, edges, features, inputs = map(int, told[-1].groups())
    print(
        f"{name}: {runs} runs in {time.monotonic() - started:.0f} s, {edges} edges and {features} features covered by "
        f"{inputs} inputs, {len(new)} findings{''.join(f', {path}' for path in new)}"
    )
    if done.returncode and not new:  # libFuzzer itself gave up
        print(done.stderr[-4000:], file=sys.stderr)
    if not any(findings.iterdir()):
        shutil.rmtree(findings)
    return 1 if new or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
