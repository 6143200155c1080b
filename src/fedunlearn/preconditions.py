"""What must hold before the first round of a run: hours of work are not to end in a refusal."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from itertools import chain

from fedunlearn.amounts import tell_bytes
from fedunlearn.evaluation.follow import require
from fedunlearn.experiment import Experiment
from fedunlearn.history import kept_bytes
from fedunlearn.needs import NeedsError
from fedunlearn.runfolder import FIRST_TRAINING, RunFolder
from fedunlearn.simulation import Simulation
from fedunlearn.weights import Weights

__all__ = ["require_runnable"]


def require_runnable(experiment: Experiment, simulations: Sequence[Sequence[Simulation]], home: RunFolder) -> None:
    """Refuse an experiment that would fail later.

    Args:
        experiment: to be run.
        simulations: of each request, one a seed.
        home: of the first request's run.

    Raises:
        NeedsError: a method cannot answer a request.
        ValueError: a hyper-parameter does not fit the network, nobody asks for the data of a client who has left, or
            there is no room for what is to be recorded.
    """
    model = simulations[0][0].setting.architecture.fresh(0)  # to look at: building a large one takes seconds
    for simulation in chain.from_iterable(simulations):
        _require_able(simulation, model)
    gone = {client for stage in simulations for client in stage[0].left}
    if unasked := sorted(set(experiment.left) - gone):
        raise ValueError(
            f"left: no request means all data of client {', '.join(unasked)}: ask for that, or let it stay"
        )
    _require_room(experiment, model, home)


def _require_able(simulation: Simulation, model: Weights) -> None:
    """Before the first training, not after it."""
    experiment = simulation.setting.experiment
    task = simulation.task(simulation.federation, model, proxy=simulation.proxy)
    found = dataclasses.replace(task.circumstances, history=experiment.history)  # which training will record
    for method in experiment.methods:
        if experiment.earlier and method.needs.history is not None:
            raise NeedsError(
                f"{method.name} needs a history that leads to the model at hand, and after a first request there is "
                "none: leave it out where requests follow one another"
            )
        require(method, task, found)


def _require_room(experiment: Experiment, model: Weights, home: RunFolder) -> None:
    """Histories can be larger than the disk; it would be full after days."""
    size, rounds = model.parameter_bytes, experiment.training.rounds
    sizes = {
        kind: kept_bytes(
            kind, message=size, tensors=len(model.parameters), clients=experiment.data.clients, rounds=rounds
        )
        for kind in experiment.history
    }
    to_come = [seed for seed in experiment.seeds if not home.record(seed, 0, FIRST_TRAINING).complete]
    needed = 2 * len(to_come) * sum(sizes.values())  # in the run's folder, and in the cache
    free = shutil.disk_usage(home.ground).free
    if needed > free:
        largest = max(sizes, key=sizes.__getitem__)
        whose = ", ".join(dict.fromkeys(m.name for m in experiment.methods if m.needs.history == largest))
        raise ValueError(
            f"the histories of this experiment take {tell_bytes(needed)}, most of them {whose}'s, but {home.ground} "
            f"has {tell_bytes(free)} left: leave out {whose}, or name a larger disk with --output"
        )
