"""The same work in other frameworks, each in an environment of its own: `python benchmarks/peers/run.py`.

Ten clients with 600 images each, batches of 64, one epoch, SGD with momentum, FedAvg, on the 97k-parameter CNN: in
Flower's simulation, in pfl, fluke and NVFlare's simulator, each as fast as its own advice makes it (`in_NAME.py` says
how), in this package and in a plain loop over tensors. Processes take turns, one of a peer, one of ours, one of the
plain loop, so that a noisy machine is noisy for all. All use one release of torch. What each has done is counted: a
process that trained on other batches, in another number of them, or to no end, is no result.

The environments are made once, in the folder that `--environments` names: 5.5 GB of torch that all share, and about
2 GB of the rest.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent)]

from measuring import machine, record, relative, spread, table  # noqa: E402
from work import BATCH, CLIENTS, IMAGES  # noqa: E402

from fedunlearn.environment import environment  # noqa: E402

__all__ = ["PEERS", "main", "tables"]

PEERS = ("flower", "pfl", "fluke", "nvflare")
OURS = ("fedunlearn", "plain")
PATIENCE = 900.0  # seconds for one process, which takes half a minute on a quiet machine
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class PeerError(Exception):
    """A peer cannot be installed, does not run, or does not do the work."""


@dataclass(frozen=True)
class Environments:
    """Virtual environments in a folder: one with torch, and one for each peer, which sees it."""

    folder: Path

    def python(self, peer: str) -> Path:
        """The interpreter of a peer's environment, which is made if it is not there.

        Raises:
            PeerError: pip cannot install it, and why.
        """
        seen = site_packages(self._made("torch", *torch_requirements()))
        return self._made(peer, (HERE / f"{peer}.txt").read_text().strip(), seen=seen)

    def _made(self, name: str, *requirements: str, seen: Path | None = None) -> Path:
        place = self.folder / name
        python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        done, wanted = place / "installed.txt", "\n".join(requirements)
        if not done.exists() or done.read_text() != wanted:
            print(f"installing {', '.join(requirements)} in {place}", flush=True)
            called([sys.executable, "-m", "venv", str(place)])
            if seen is not None:
                (site_packages(python) / "torch.pth").write_text(f"{seen}\n")
            called([str(python), "-m", "pip", "install", "--quiet", *requirements])
            done.write_text(wanted)
        return python


def torch_requirements() -> Iterator[str]:
    """The release that this package runs on here."""
    for name in ("torch", "torchvision"):
        yield f"{name}=={importlib.metadata.version(name).partition('+')[0]}"


def site_packages(python: Path) -> Path:
    return Path(called([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())


def called(command: Sequence[str]) -> str:
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise PeerError(f"{' '.join(command)}: {told.stderr.strip()[-1000:]}")
    return told.stdout


def ran(name: str, python: Path, rounds: int) -> dict[str, Any]:
    """What one process took: seconds from its start to the end of its first round, and of each round after it.

    Raises:
        PeerError: it failed, or did other work.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, log, cores = Path(place), Path(place) / "log", environment()["cores"]
        own = {"PEERS_FOLDER": place, "PEERS_ROUNDS": str(rounds), "PEERS_CORES": str(cores), "FLWR_HOME": place}
        path = os.pathsep.join([str(HERE), *([os.environ.get("PYTHONPATH", "")] if name in OURS else [])])
        with log.open("w") as out:
            started = time.time()
            process = subprocess.Popen(
                [str(python), str(HERE / f"in_{name}.py")],
                env={**os.environ, **QUIET, **own, "PYTHONPATH": path},
                cwd=place,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it ends with all that it has started
            )
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                raise PeerError(f"{name} was not done within {PATIENCE:g} seconds") from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # all that it has started and left
        if process.returncode != 0 or not (folder / "told.json").exists():
            raise PeerError(f"{name} ended with {process.returncode}: {log.read_text()[-1000:]}")
        told = json.loads((folder / "told.json").read_text())
        require_the_work(name, told, (folder / "batches").read_bytes(), rounds)
    first, *later = told.pop("ends")
    seconds = [after - before for before, after in zip([first, *later], later, strict=False)]
    return {"first": first - started, "rounds": seconds, **told}


def require_the_work(name: str, told: Mapping[str, Any], batches: bytes, rounds: int) -> None:
    """Refuse the times of a process that has not trained as all have.

    Args:
        name: of the framework.
        told: what it says of its model.
        batches: the size of each batch that a network was trained on.
        rounds: that it was to do.

    Raises:
        PeerError: it has done something else.
    """
    epoch = [BATCH] * (IMAGES // BATCH) + [IMAGES % BATCH]
    if sorted(batches) != sorted(epoch * CLIENTS * rounds):
        raise PeerError(f"{name} did other work: {len(batches)} batches with {sum(batches)} images in all")
    if len(told["ends"]) != rounds or told["parameters"] != 96_938 or not told["loss"] < 2.0:
        raise PeerError(f"{name} did other work: {len(told['ends'])} rounds, which ended with {told}")


def measured(
    peers: Sequence[str], environments: Environments, rounds: int, turns: int
) -> Iterator[dict[str, dict[str, Any]]]:
    """Peers, ours and the plain loop in turns: all that is known after each; if a peer fails, why."""
    found: dict[str, dict[str, Any]] = {
        peer: {"version": (HERE / f"{peer}.txt").read_text().strip(), "how": how(peer), "turns": []} for peer in peers
    }
    for _ in range(turns):
        for peer in peers:
            if "failed" not in found[peer]:
                try:
                    theirs = ran(peer, environments.python(peer), rounds)
                except PeerError as error:
                    found[peer]["failed"] = str(error)
                else:
                    ours = {name: ran(name, Path(sys.executable), rounds) for name in OURS}
                    found[peer]["turns"].append({"peer": theirs, **ours})
                yield found


def how(name: str) -> str:
    """What `in_NAME.py` says of how it runs the framework."""
    return " ".join((ast.get_docstring(ast.parse((HERE / f"in_{name}.py").read_text())) or "").split())


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """The peers beside ours: medians of rounds, ratios of neighbours, and how each peer was run."""
    peers = found["peers"]
    head = ["", "seconds a round", "ours of it", "start-up and first round, s", "ours of it"]
    rows = []
    for one in peers.values():
        mine = [(turn["fedunlearn"], turn["peer"]) for turn in one["turns"]]
        rows.append([one["version"], *(beside(mine) if mine else ["failed", "", "", ""])])
    turns = [turn for one in peers.values() for turn in one["turns"]]
    for name in OURS if turns else ():
        rows.append([name, *beside([(turn["fedunlearn"], turn[name]) for turn in turns])])
    speed = f"{machine(found)}\n\n{table(head, rows)}"
    notes = [f"- {one['version']}: {one['how']}{failure(one)}\n" for one in peers.values()]
    return {"speed": speed, "peers": "".join([speed, "\n", *notes])}


def failure(one: Mapping[str, Any]) -> str:
    return f" It failed: {' '.join(one['failed'].split())}" if "failed" in one else ""


def beside(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Ours and another's processes, as they took turns."""
    rounds = [[statistics.median(one["rounds"]) for one in side] for side in zip(*pairs, strict=True)]
    firsts = [[one["first"] for one in side] for side in zip(*pairs, strict=True)]
    return [spread(rounds[1]), f"{relative(*rounds):.2f}", spread(firsts[1]), f"{relative(*firsts):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="which (default: all)")
    parser.add_argument("--rounds", type=int, default=10, help="of each process, at least 2 (default 10)")
    parser.add_argument("--turns", type=int, default=3, help="of each peer (default 3)")
    default = Path.home() / ".cache" / "fedunlearn-peers"
    parser.add_argument("--environments", type=Path, default=default, help=f"folder for them (default {default})")
    parser.add_argument("--output", type=Path, help="write the raw seconds as JSON")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the first is counted apart")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before it was done"))  # else a peer's processes stay
    environments = Environments(options.environments.resolve())
    try:
        for peers in measured(options.peers, environments, options.rounds, options.turns):
            recorded = record(options.output, {"rounds": options.rounds, "peers": peers})
    except PeerError as error:  # ours: what a peer does not do is told in the table
        sys.exit(str(error))
    print(tables(recorded)["peers"])


if __name__ == "__main__":
    main()
