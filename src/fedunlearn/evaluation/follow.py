"""Watching a method: its rounds with the time that each took. Scoring and stopping are the reader's."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from fedunlearn.federation import Phase
from fedunlearn.needs import Circumstances
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["Step", "follow", "recovering", "require", "timed", "unlearn", "unlearning"]


@dataclass(frozen=True, eq=False)
class Step:
    """A round that a method has done: in which phase, and in how many seconds of its own."""

    phase: Phase
    round: Round
    seconds: float


def follow(method: Method, task: Task, rounds: int, resume: Step | None = None) -> Iterator[Step]:
    """The unlearning step of ``method``, then ``rounds`` rounds of recovery.

    What is read between two steps (scoring, saving) is not in anybody's seconds. After an interruption, hand in
    the last step that was saved: the same bits follow as without it. Where there is nothing to forget, nothing
    is done, with a warning.

    Raises:
        NeedsError: the method cannot run on this task; nothing has run.
    """
    if not isinstance(method, Method):
        raise TypeError(f"give a method with its hyper-parameters, such as NoT(), not {method!r}")
    if rounds < 0:
        raise ValueError(f"rounds of recovery must not be negative: {rounds}")
    if task.empty:
        warnings.warn("nothing is to be forgotten: the request means no training sample of anybody", stacklevel=2)
        return
    require(method, task)
    last = resume
    if resume is None or resume.phase == "unlearn":
        for last in unlearning(method, task, resume):
            yield last
    yield from recovering(method, task, rounds, last)


def require(method: Method, task: Task, found: Circumstances | None = None) -> None:
    """All that must hold before a method runs.

    Args:
        method: that is to run.
        task: that it is to run on.
        found: what its needs are held against, where the task does not have it yet; None: the task's own.

    Raises:
        NeedsError: the method cannot run on this task.
        ValueError: its hyper-parameters do not fit the network.
    """
    method.needs.require(found or task.circumstances, method.name)
    method.check(task)


def unlearning(method: Method, task: Task, resume: Step | None = None) -> Iterator[Step]:
    """The unlearning step alone, without the checks of `follow`; after ``resume``, if that is one of its rounds."""
    return timed("unlearn", method.unlearn(task, resume.round if resume else None))


def recovering(method: Method, task: Task, rounds: int, last: Step | None = None) -> Iterator[Step]:
    """Recovery alone, to a total of ``rounds``; ``last``: what was done last, of this phase or the one before."""
    weights = last.round.after if last else task.weights
    start = last.round.number + 1 if last and last.phase == "recover" else 0
    return timed("recover", islice(method.recover(task, weights, start), max(rounds - start, 0)))


def unlearn(method: Method, task: Task, rounds: int) -> Weights:
    """The model after ``method`` and ``rounds`` rounds of recovery.

    Raises:
        NeedsError: the method cannot run on this task; nothing has run.
    """
    weights = task.weights
    for step in follow(method, task, rounds):
        weights = step.round.after
    return weights


def timed(phase: Phase, rounds: Iterator[Round]) -> Iterator[Step]:
    """Rounds with the seconds that each took; what is done between them takes none."""
    while True:
        started = time.perf_counter()
        done = next(rounds, None)
        if done is None:
            return
        yield Step(phase, done, time.perf_counter() - started)
