"""The programs that every method shares: ordinary local training, and scoring."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import chain, count, islice
from typing import Annotated, Literal, Protocol, TypeVar, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import Batch, Choose, ClientContext, Loss, Part, Reply
from fedunlearn.samples import batch_count
from fedunlearn.weights import Weights, unwrap

__all__ = [
    "SGD",
    "Adam",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Diverged",
    "Evaluate",
    "Exponential",
    "LocalTraining",
    "Optimizer",
    "Schedule",
    "endless",
]


_Decay = Annotated[float, Ge(0), Lt(1)]
# Limits in annotations are told by whoever reads experiment files; torch's optimizers look at their own arguments.


class Diverged(ArithmeticError):
    """A client's training loss became NaN or infinite."""


class Optimizer(Protocol):
    """Recipe of an optimizer: a client makes a fresh one every round, as is usual in FedAvg."""

    def __call__(self, parameters: Iterable[nn.Parameter], factor: float) -> torch.optim.Optimizer:
        """An optimizer whose learning rate is multiplied by ``factor``."""
        ...


_Kind = TypeVar("_Kind", bound=type[torch.optim.Optimizer])


def _eager(kind: _Kind) -> _Kind:
    """A kind of optimizer without its ties to torch's compiler.

    They do nothing here but import the compiler when the first optimizer is made, in every process: 150 MB, and over a
    second, which is longer than the first round of a small network takes.
    """
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad")}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(_Kind, type(kind.__name__, (kind,), {**plain, "step": step}))


_EagerSGD, _EagerAdam = _eager(torch.optim.SGD), _eager(torch.optim.Adam)
# Below they are told to step all parameters at once (foreach), as is torch's own choice on GPUs: on a CPU Adam comes to
# the same bits in two thirds of the time. With ``fused`` it would take a quarter, and come to others.


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent. The paper's values (supplement 14.1): 0.001, 0.9, 5e-4."""

    lr: Annotated[float, Gt(0)] = 1e-3
    momentum: Annotated[float, Ge(0)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 5e-4

    def __call__(self, parameters: Iterable[nn.Parameter], factor: float) -> torch.optim.Optimizer:
        """See `Optimizer`."""
        lr = self.lr * factor
        return _EagerSGD(parameters, lr, momentum=self.momentum, weight_decay=self.weight_decay, foreach=True)


@dataclass(frozen=True)
class Adam:
    """Adam."""

    lr: Annotated[float, Gt(0)] = 1e-3
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def __call__(self, parameters: Iterable[nn.Parameter], factor: float) -> torch.optim.Optimizer:
        """See `Optimizer`."""
        lr = self.lr * factor
        return _EagerAdam(parameters, lr, betas=self.betas, weight_decay=self.weight_decay, foreach=True)


class Schedule(Protocol):
    """The learning rate's factor over the rounds of a phase."""

    def __call__(self, number: int) -> float:
        """Factor in round ``number``, counted from 0."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same in every round."""

    def __call__(self, number: int) -> float:
        """See `Schedule`."""
        return 1.0


@dataclass(frozen=True)
class Exponential:
    """``decay ** number``."""

    decay: Annotated[float, Gt(0)]

    def __call__(self, number: int) -> float:
        """See `Schedule`."""
        return self.decay**number


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to ``floor`` over ``rounds`` rounds; ``floor`` after them."""

    rounds: Annotated[int, Gt(0)]
    floor: Annotated[float, Ge(0)] = 0.0

    def __call__(self, number: int) -> float:
        """See `Schedule`."""
        done = min(number / self.rounds, 1.0)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of a batch."""

    def __call__(self, context: ClientContext) -> Callable[[nn.Module, Batch], Tensor]:
        """See `Loss`."""
        return lambda model, batch: F.cross_entropy(model(batch.x), batch.y)


def endless(context: ClientContext, size: int, of: Choose | None = None) -> Iterator[Batch]:
    """Batches, epoch after epoch without end; none where there is no sample."""
    epochs = count() if context.samples(of) else range(0)
    return chain.from_iterable(context.batches(epoch, size, of=of) for epoch in epochs)


@dataclass(frozen=True)
class LocalTraining:
    """What a client does in an ordinary round: ClientUpdate of Algorithm 1.

    Attributes:
        optimizer: made afresh every round.
        schedule: factor of its learning rate by the number of the round within its phase.
        epochs: passes over the chosen samples. May be a fraction: ``ceil(epochs * batches)`` batches.
        batches: so many batches instead, going round the samples again where they do not suffice.
        batch_size: samples a step.
        loss: of a batch.
        of: which samples; None: all in the view.
        clip: largest Euclidean norm of the gradient; None: unbounded.
        amp: compute in bfloat16 where autocast allows (weights stay as they are).
        frozen: parameters, by name, of which no bit changes: they get no gradient, and the optimizer, whose weight
            decay and momentum might move them, never sees them. Passes are counted as if none were.
    """

    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Constant)
    epochs: float = 1.0
    batches: int | None = None
    batch_size: int = 64
    loss: Loss = field(default_factory=CrossEntropy)
    of: Choose | None = None
    clip: float | None = None
    amp: Literal["bfloat16"] | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 0 or (self.batches is not None and self.batches < 0) or self.batch_size < 1:
            raise ValueError("epochs and batches must not be negative, and batch_size must be at least 1")
        if isinstance(self.optimizer, type) or not callable(self.optimizer):
            raise TypeError("optimizer is a recipe, such as fedunlearn.SGD(lr=0.05), not a class of torch")
        if self.amp not in (None, "bfloat16"):
            raise ValueError(f"amp computes in 'bfloat16' or not at all (None), not in {self.amp!r}")

    def __call__(self, context: ClientContext) -> Reply:
        """Train the weights that were sent; answer with new ones, the samples behind them and the mean loss.

        Raises:
            Diverged: the loss is not finite.
            ValueError: the network has no such parameter to freeze.
        """
        model = context.model.train()
        cost_of = self.loss(context)
        optimizer = self.optimizer(self._trained(model), self.schedule(context.turn.number))
        total, steps = torch.zeros((), device=context.device), 0
        for batch in self._batches(context):
            optimizer.zero_grad()
            with self._precision(context.device):
                cost = cost_of(model, batch)
            cost.backward()  # type: ignore[no-untyped-call]
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            total += cost.detach()
            steps += 1
        loss = float(total) / max(steps, 1)
        if not math.isfinite(loss):
            raise Diverged(f"the training loss became {loss}: lower the learning rate or clip the gradient")
        return Reply(Weights.of(model), context.samples(self.of), {"loss": loss})

    def at(self, lr: float | None) -> LocalTraining:
        """This training at a learning rate of its own in every round; None: as it is.

        Raises:
            ValueError: the optimizer's recipe has no field ``lr``.
        """
        if lr is None:
            return self
        if not (is_dataclass(self.optimizer) and hasattr(self.optimizer, "lr")):
            raise ValueError(f"{self.optimizer!r} has no learning rate to be set: give it a field lr")
        return replace(self, optimizer=replace(self.optimizer, lr=lr), schedule=Constant())

    def passes(self, samples: int) -> int:
        """How many samples a client with so many passes through the network, forward and backward alike."""
        per_epoch = batch_count(samples, self.batch_size)
        epochs, more = divmod(self._wanted(per_epoch), per_epoch) if per_epoch else (0, 0)
        return epochs * samples + more * self.batch_size  # only the last batch of an epoch has another size

    def _wanted(self, per_epoch: int) -> int:
        return math.ceil(round(self.epochs * per_epoch, 9)) if self.batches is None else self.batches

    def _batches(self, context: ClientContext) -> Iterator[Batch]:
        wanted = self._wanted(batch_count(context.samples(self.of), self.batch_size))
        return islice(endless(context, self.batch_size, self.of), wanted)

    def _trained(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that are not frozen; those that are get no gradient."""
        known = dict(unwrap(model).named_parameters(remove_duplicate=False))
        if strangers := [name for name in self.frozen if name not in known]:
            raise ValueError(f"there is no parameter {strangers[0]!r} to freeze: take one of {', '.join(known)}")
        frozen = {known[name].requires_grad_(False) for name in self.frozen}
        return [parameter for parameter in model.parameters() if parameter not in frozen]

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        return nullcontext() if self.amp is None else torch.autocast(device.type, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Evaluate:
    """How well the weights that were sent do on a client's samples, in eval mode and without augmentation.

    Answers with the metrics ``accuracy`` (in [0, 1]) and ``loss`` (mean cross-entropy), and, where ``per_sample``,
    with values per sample in the client's own order: ``loss`` (float64), ``correct`` and ``forget`` (bool).
    Values per sample are for audits by whoever may see them: they say which single samples a client has.

    Attributes:
        part: of the client's samples.
        of: which of them; None: all in the view.
        batch_size: samples a forward pass.
        per_sample: whether to answer with values per sample.
    """

    part: Part = "train"
    of: Choose | None = None
    batch_size: int = 500
    per_sample: bool = False

    def __call__(self, context: ClientContext) -> Reply:
        """See `Evaluate`."""
        model = context.model.eval()
        losses, correct, forget = _empty(torch.float64), _empty(torch.bool), _empty(torch.bool)
        with torch.no_grad():
            for batch in context.batches(0, self.batch_size, of=self.of, part=self.part, train=False):
                # float64, so that the losses of well-learnt samples do not all round to zero; on the CPU,
                # because not every accelerator has float64
                scores, labels = model(batch.x).cpu().double(), batch.y.cpu()
                losses.append(F.cross_entropy(scores, labels, reduction="none"))
                correct.append(scores.argmax(1) == labels)
                forget.append(batch.forget.cpu())
        values = {"loss": torch.cat(losses), "correct": torch.cat(correct), "forget": torch.cat(forget)}
        n = len(values["loss"])
        metrics = {"accuracy": float(values["correct"].sum()) / n, "loss": float(values["loss"].mean())} if n else {}
        return Reply(None, n, metrics, values=values if self.per_sample else {})


def _empty(dtype: torch.dtype) -> list[Tensor]:
    return [torch.zeros(0, dtype=dtype)]  # torch.cat needs one tensor at least
