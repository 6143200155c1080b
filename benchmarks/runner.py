"""What a run in a folder costs over the bare loop: `python benchmarks/runner.py`.

The bare loop trains, follows every method and scores it, and keeps nothing. A run does the same, and beside that
asks those who stay for their validation accuracy, writes rows, states and weights, and looks at data and machine.
Told are, on fashion-client, shortened:

- a run's own share: within one run, all the time that is neither in a round nor in scoring, of the time that is.
  This is what to read: no neighbour on the machine can come in between;
- the ratio of whole runs and bare loops, in turns within one process: a check on the first, and noisy;
- the page at the end, which takes the same few seconds whatever the run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measuring import machine, record, relative, spread, table, timed

from fedunlearn.backends.metered import Metered
from fedunlearn.evaluation.cost import Account
from fedunlearn.evaluation.follow import follow
from fedunlearn.evaluation.scores import Scores
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.report.page import publish
from fedunlearn.report.report import assemble
from fedunlearn.rounds import fedavg
from fedunlearn.runner import run
from fedunlearn.simulation import Setting, Simulation


def bare(plan: Experiment) -> None:
    setting = Setting.of(plan)
    for seed in plan.seeds:
        simulation = Simulation(setting, seed)

        def scored(weights: object, final: bool, simulation: Simulation = simulation) -> None:
            simulation.score(weights, final=final, validation=None)  # type: ignore[arg-type]

        federation = Metered(simulation.federation, Account(setting.flops).ledger)
        weights = setting.architecture.fresh(seed)
        for done in islice(fedavg(federation, weights, simulation.training, seed, "train"), plan.training.rounds):
            weights = done.after
        scored(weights, True)
        for method in plan.methods:
            rounds = plan.rounds(method)
            scored(weights, False)  # what recovery starts from: a run scores it too
            for step in follow(method, simulation.task(federation, weights), rounds):
                number = step.round.number + 1
                final = number == rounds
                if step.phase == "recover" and (final or number % plan.recovery.evaluate_every == 0):
                    scored(step.round.after, final)


def in_a_folder(plan: Experiment, folder: Path) -> tuple[float, float]:
    """Seconds of a run, and of these the seconds in rounds and in scoring."""
    scoring, score = [0.0], Simulation.score

    def timed(*arguments: Any, **options: Any) -> Scores:
        started = time.perf_counter()
        found = score(*arguments, **options)
        scoring.append(time.perf_counter() - started)
        return found

    with patch.object(Simulation, "score", timed):
        started = time.perf_counter()
        last = {row.method: row for row in run(plan, folder)}
        whole = time.perf_counter() - started
    # Loading the data is part of any loop.
    started = time.perf_counter()
    Setting.of(plan)
    loading = time.perf_counter() - started
    return whole, loading + sum(scoring) + sum(row.bill().seconds for row in last.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of training, of Retrain and of recovery (default 15)")
    parser.add_argument("--pairs", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--output", type=Path, help="write the raw seconds as JSON")
    options = parser.parse_args()

    changes = [f"training.rounds={options.rounds}", f"recovery.rounds={options.rounds}", "seeds=[0]"]
    plan = load("fashion-client", changes)
    found: dict[str, list[float]] = {"bare": [], "run": [], "loop in it": [], "page": []}
    for counted in [False, *[True] * options.pairs]:  # one pair to warm up, in which the workers start
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            alone = timed(lambda: bare(plan))
            whole, loop = in_a_folder(plan, folder)
            page = timed(lambda folder=folder: publish([assemble(folder)], folder))  # type: ignore[misc]
        for name, value in zip(found, (alone, whole, loop, page), strict=True):
            found[name] += [value] if counted else []

    own = [whole / loop - 1 for whole, loop in zip(found["run"], found["loop in it"], strict=True)]
    print(tables(record(options.output, {"rounds": options.rounds, "seconds": found, "own": own}))["runner"])


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """A run's own share, whole runs beside bare loops, and the page."""
    seconds, own = found["seconds"], [100 * share for share in found["own"]]
    head = [f"{len(own)} runs of each, in turns; {found['rounds']} rounds", ""]
    told = {
        "a run's own share: all that is neither a round nor scoring, of the time that is, %": spread(own),
        "whole runs, of bare loops": f"{relative(seconds['run'], seconds['bare']):.2f}",
        "a whole run, s": spread(seconds["run"]),
        "the page, its figures and tables, s": spread(seconds["page"]),
    }
    return {"runner": f"{machine(found)}\n\n{table(head, list(told.items()))}"}


if __name__ == "__main__":
    main()
