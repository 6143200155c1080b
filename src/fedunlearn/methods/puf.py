"""PUF: negated pseudo-gradients. Mora, Valerio, Bellavista, Passarella. IEEE Transactions on Big Data, 2026."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from fedunlearn.federation import Federation, Traffic
from fedunlearn.needs import Needs, Size
from fedunlearn.rounds import Round, fold
from fedunlearn.task import Method, Task
from fedunlearn.weights import Average, Weights

__all__ = ["PUF"]


@dataclass(frozen=True)
class PUF(Method):
    """Those who leave train one ordinary round, and the server steps the other way.

        special:  theta <- theta* - eta sum_U q_u Delta_u
        regular:  theta <- theta* + sum_R p_k Delta_k - eta sum_U p_u Delta_u

    q_u: share of samples among those who leave; p: among all. Only sums are read, so secure aggregation may hide
    single updates. A class or single samples are forgotten in the same way: each client trains on what goes, and in a
    regular round on what stays. Buffers are those of theta* (special), or FedAvg's of what stays (regular); the
    paper says nothing of them.

    Attributes:
        rate: eta. The authors' code has 2 in a special round, 20 in a regular one (ResNet-18, learning rate 0.1).
        round: "special": those who leave alone; "regular": within an ordinary round of all.
    """

    rate: Annotated[float, Gt(0)] = 2.0
    round: Literal["special", "regular"] = "special"

    @property
    def needs(self) -> Needs:
        """The data to be forgotten, once; in a regular round those who stay too."""
        return Needs(forget_data="labelled", target_online=True, retain_online=self.round == "regular")

    def cost(self, size: Size) -> Traffic:
        """An ordinary round of those who leave; a regular one also of those who stay."""
        return size.round(size.forgotten) + (size.round() if self.round == "regular" else Traffic())

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """One round."""
        if resume is not None:
            return
        leaving, leaving_samples = _mean(task, task.forgotten)
        if self.round == "special":
            yield Round(0, task.weights - (leaving - task.weights) * self.rate)
            return
        staying, staying_samples = _mean(task, task.retained)
        share = leaving_samples / (leaving_samples + staying_samples)
        step = (staying - task.weights) * (1 - share) - (leaving - task.weights) * (self.rate * share)
        yield Round(0, step + task.weights)  # the left operand's buffers: those of what stays


def _mean(task: Task, federation: Federation) -> tuple[Weights, float]:
    """An ordinary round's mean, and the samples behind it."""
    mean = Average(like=task.weights)
    fold(mean, federation, task.weights, task.training, task.turn())
    return mean.result(), mean.total
