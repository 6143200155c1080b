"""SalUn: saliency unlearning. Fan, Liu, Zhang, Wong, Wei, Liu. ICLR 2024."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from fedunlearn.federation import Traffic
from fedunlearn.methods.gradients import GradientMoment, moment
from fedunlearn.methods.randl import RandL
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import Optimizer
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["Masked", "SalUn", "most_salient"]

_MASK = "mask"


@dataclass(frozen=True)
class SalUn(Method):
    """RandL on the parameters alone that matter most to what goes; all others stay as they are, bit for bit.

        m = 1 for the floor(rho P) largest |grad of the cross-entropy on D_f at theta*|, else 0

    among all parameters at once, in eval mode; equals go by their order in the model. A frozen entry is put back after
    every step, and its momentum is 0: to mask gradients alone, as the authors' code did until 2026, lets weight decay
    and momentum move it. Where training clips the gradient, it is the whole one. Running statistics of BatchNorm are
    not masked. The code adds up minibatch means; here every sample counts alike, also those in a smaller last batch.

    A centralized method, meant for a federation of one client. With several, the gradient is that on all their samples,
    and the mask travels with the model in each pass, since clients keep nothing (ours). As for optimizers, see `RandL`.

    Attributes:
        trainable_fraction: rho, in (0, 1]; 1: RandL. "Masked 20 % of the weights" (supplement 14.2) is taken to mean
            those that are trained, as the paper's masks are 1 there; the authors have 0.5.
        rounds, exclude_true, mix, lr: see `RandL`.
    """

    trainable_fraction: Annotated[float, Gt(0), Le(1)] = 0.2
    rounds: Annotated[int, Ge(0)] = 50
    exclude_true: bool = True
    mix: Literal["sequential", "joint"] = "sequential"
    lr: Annotated[float, Gt(0)] | None = None
    needs = Needs(forget_data="labelled", target_online=True, retain_online=True)

    def cost(self, size: Size) -> Traffic:
        """A look at what goes; then RandL, with the mask beside each model that is sent."""
        asked = len(size.everyone) if self.mix == "joint" else len(size.forgotten) + len(size.retained)
        masks = size.sent(asked, up=0) * self.rounds
        return moment(size, size.forgotten) + self._relabelling.cost(size) + masks

    def check(self, task: Task) -> None:
        """Something must be left to train, and the learning rate must go with the optimizer.

        Raises:
            ValueError: the fraction is of less than one parameter, or the optimizer has no learning rate to be set.
        """
        total = len(task.weights.vector())
        if not _count(total, self.trainable_fraction):
            raise ValueError(
                f"{self.trainable_fraction} of the network's {total} parameters are none: raise trainable_fraction"
            )
        self._relabelling.check(task)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Round by round; the mask is carried along."""
        weights = resume.after if resume else task.weights
        mask = resume.carry[_MASK] if resume else self._mask(task)
        training = task.training.at(self.lr)
        masked = replace(training, optimizer=Masked(training.optimizer, mask))
        for number in range(resume.number + 1 if resume else 0, self.rounds):
            weights = self._relabelling.relearnt(task, weights, masked, number)
            weights = within(mask, weights, task.weights)  # a mean of equal float64 numbers may be off by a bit
            yield Round(number, weights, {_MASK: mask})

    @property
    def _relabelling(self) -> RandL:
        return RandL(self.rounds, self.exclude_true, self.mix, self.lr)

    def _mask(self, task: Task) -> Weights:
        gradient = GradientMoment(1, task.training.batch_size)
        mean = aggregate(task.forgotten, task.weights, gradient, task.turn(step="saliency"))
        return most_salient(mean, self.trainable_fraction)


def most_salient(gradient: Weights, fraction: float) -> Weights:
    """1 for so large a fraction of all parameters (rounded down), those with the largest absolute gradients; else 0.

    Of equal ones those come first that stand first in the model.
    """
    saliency = gradient.vector().abs()
    ranked = saliency.argsort(descending=True, stable=True)
    mask = torch.zeros_like(saliency)
    mask[ranked[: _count(len(saliency), fraction)]] = 1
    return gradient.with_vector(mask)


def within(mask: Weights, trained: Weights, frozen: Weights) -> Weights:
    """``trained`` where the mask is 1, the parameters of ``frozen`` elsewhere."""
    chosen = {
        name: torch.where(mask.parameters[name] == 1, tensor, frozen.parameters[name])
        for name, tensor in trained.parameters.items()
    }
    return replace(trained, parameters=chosen)


@dataclass(frozen=True, eq=False)
class Masked:
    """Recipe of an optimizer that moves only what a mask lets it.

    Attributes:
        optimizer: that moves.
        mask: 1 and 0 in the places of the model's parameters.
    """

    optimizer: Optimizer
    mask: Weights

    def __call__(self, parameters: Iterable[nn.Parameter], factor: float) -> torch.optim.Optimizer:
        """See `Optimizer`; the parameters are all of the model's, in its order."""
        moving = list(parameters)
        optimizer = self.optimizer(moving, factor)
        kept = [
            (parameter, mask.to(parameter.device) == 0, parameter.detach().clone())
            for parameter, mask in zip(moving, self.mask.parameters.values(), strict=True)
        ]

        @torch.no_grad()
        def put_back(stepped: torch.optim.Optimizer, *_: Any) -> None:
            for parameter, frozen, value in kept:
                parameter.copy_(torch.where(frozen, value, parameter))
                for state in stepped.state.get(parameter, {}).values():
                    if isinstance(state, Tensor) and state.shape == parameter.shape:  # not Adam's count of steps
                        state.masked_fill_(frozen, 0)

        optimizer.register_step_post_hook(put_back)
        return optimizer


def _count(total: int, fraction: float) -> int:
    return math.floor(round(fraction * total, 9))
