"""FedEraser. Liu, Ma, Yang, Wang, Liu. IWQoS 2021; and FedAccum, the same replay without calibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from fedunlearn.federation import Traffic, Turn
from fedunlearn.history import Kept
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import LocalTraining
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task
from fedunlearn.weights import Average, Weights

__all__ = ["FedAccum", "FedEraser"]


@dataclass(frozen=True)
class FedEraser(Method):
    """Replay the first training without those who leave: old lengths of updates, new directions.

    M_2 = M_1 + sum_k w_k U_k of the first round, which had seen nothing of anybody; then, for each kept round,

        V_k = LocalTrain(M_j) - M_j;  C_k = ||U_k|| V_k / ||V_k||;  M_{j+1} = M_j + sum_k w_k C_k

    over those who stay, w_k their share of samples. Of an old update nothing but its norm is read, so norms are all
    that need be kept after the first round: 400 times less than the paper stores, with the same result.

    Departures from the authors' code, which averages the clients first and calibrates the mean: here each client is
    calibrated, as in the paper. The code takes an update against the model *after* that round's average; here
    against the one that the client started from. The paper's further factor 1/(K - 1) would shrink each step a
    second time, and is left out. Class- and instance-wise the first round's updates and all old norms hold what is to
    be forgotten: a heuristic.

    Attributes:
        interval: replay the first kept round and each so-manieth after it. The paper's is 2.
        calibration: local epochs of the replay as a share of ordinary ones, in (0, 1]; a fraction of an epoch is a
            fraction of its batches.
        norm: "tensor": each tensor gets its old length (the code); "global": the whole update does (the text).
        history: what is kept; "updates" gives the same as "norms" and lets auditors look.
    """

    interval: Annotated[int, Ge(1)] = 1
    calibration: Annotated[float, Gt(0), Le(1)] = 0.5
    norm: Literal["tensor", "global"] = "tensor"
    history: Literal["norms", "updates"] = "norms"

    @property
    def needs(self) -> Needs:
        """A history, and those who stay, one by one."""
        return Needs(history=self.history, retain_online=True, per_client_updates=True)

    def cost(self, size: Size) -> Traffic:
        """A round for each replayed one but the first, with less local work."""
        replayed = max(-(-size.rounds // self.interval) - 1, 0)
        return size.round(training=self._training(size.training)) * replayed

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Replay, round by round."""
        assert task.history is not None  # as `needs` demands
        first, *later = task.history.rounds[:: self.interval]
        if resume is None:
            resume = Round(0, _accumulated(task, task.history.initial, first))
            yield resume
        weights = resume.after
        for number, old in enumerate(later[resume.number :], resume.number + 1):
            weights = self._calibrated(task, weights, old)
            yield Round(number, weights)

    def _calibrated(self, task: Task, weights: Weights, old: Kept) -> Weights:
        there = [client for client in task.retained.clients if client in old.norms]
        turn = Turn(task.seed, "unlearn", old.number)  # the old round's number: schedules of the first training hold
        mean = Average(like=weights)
        for client, reply in task.retained.run(self._training(task.training), weights, turn, there):
            assert reply.weights is not None
            step = self._rescaled(reply.weights - weights, old.norms[client])
            mean.add(replace(reply.weights, parameters=(weights + step).parameters), reply.samples)
        return mean.result() if mean.total else weights  # nobody of those who stay took part in that round

    def _rescaled(self, update: Weights, norms: Mapping[str, float]) -> Weights:
        if self.norm == "global":
            length = update.norm()
            return update * (sum(norm**2 for norm in norms.values()) ** 0.5 / length if length > _ZERO else 0.0)
        lengths = {name: float(tensor.double().norm()) for name, tensor in update.parameters.items()}
        # A tensor that did not move (a convolution's bias before a BatchNorm) has no direction.
        factors = {name: norms[name] / length if length > _ZERO else 0.0 for name, length in lengths.items()}
        scaled = {name: tensor * factors[name] for name, tensor in update.parameters.items()}
        return replace(update, parameters=scaled)

    def _training(self, ordinary: LocalTraining) -> LocalTraining:
        return replace(ordinary, epochs=ordinary.epochs * self.calibration)


@dataclass(frozen=True)
class FedAccum(Method):
    """Replay the first training without those who leave, with the old updates as they are; nobody is asked.

    What those who stay had learnt from the leaving client's contributions is still in their updates.

    Attributes:
        interval: replay the first kept round and each so-manieth after it.
    """

    interval: Annotated[int, Ge(1)] = 1
    needs = Needs(history="updates", whole_clients=True)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """All in one step."""
        if resume is None:
            assert task.history is not None
            weights = task.history.initial
            for old in task.history.rounds[:: self.interval]:
                weights = _accumulated(task, weights, old)
            yield Round(0, weights)


_ZERO = 1e-12


def _accumulated(task: Task, weights: Weights, old: Kept) -> Weights:
    """One old round of those who stay, as it was."""
    mean = Average(like=weights)
    for client, samples in old.samples.items():
        if client not in task.targets:
            mean.add(weights + old.updates[client], samples)
    return mean.result() if mean.total else weights
