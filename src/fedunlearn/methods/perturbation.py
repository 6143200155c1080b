"""Perturb, then fine-tune: the family of which NoT is one member. Is negation special?

The paper compares four perturbations of a ViT's first layer (Figure 5); of the winners of the NeurIPS 2023 unlearning
challenge several changed some weights without looking at what was to be forgotten, and trained on what stays. Here the
server changes the selected layers in one of these ways, and recovery is the one that all methods share.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import PlainValidator
from torch import Generator, Tensor, nn

from fedunlearn.federation import Traffic
from fedunlearn.kinds import rows_are_outputs
from fedunlearn.layers import FIRST, LayerError, Part, Plan, Selection, layers, select, warn_if_cancelling
from fedunlearn.methods.recalibration import recalibrated, recalibration
from fedunlearn.names import bias_of
from fedunlearn.needs import Needs, Size
from fedunlearn.negation import negate, rows_of
from fedunlearn.randomness import generator
from fedunlearn.rounds import Round
from fedunlearn.task import Method, Task
from fedunlearn.tomlkinds import Kinds
from fedunlearn.weights import Weights, unwrap

__all__ = [
    "PERTURBATIONS",
    "FlipKernels",
    "FlipSigns",
    "Negate",
    "Perturb",
    "Perturbation",
    "PruneAndReinitialise",
    "Reinitialise",
    "RotateKernels",
    "RotateOutputs",
    "Shrink",
    "TransposeKernels",
    "WhiteNoise",
]


class Perturbation(ABC):
    """What is done to the selected tensors theta: a frozen dataclass.

    It computes in float64 and rounds once. What is random is drawn for each tensor apart, by the task's seed and the
    tensor's name. Where a tensor is selected by rows, these rows are all that is read and changed.
    """

    def check(self, network: nn.Module, parts: Sequence[Part]) -> None:  # noqa: B027 - most fit any tensor
        """Look whether the selected tensors can be perturbed so.

        Raises:
            LayerError: one of them cannot.
        """

    @abstractmethod
    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """The task's weights with these parts perturbed, and all else as it was."""


@dataclass(frozen=True)
class Negate(Perturbation):
    """theta <- -theta: NoT (Algorithm 1, line 9), buffers as they are."""

    def check(self, network: nn.Module, parts: Sequence[Part]) -> None:
        """Any tensor; a selection that undoes itself is warned of."""
        warn_if_cancelling(network, parts)

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`; the result remembers what was negated."""
        return negate(task.weights, Plan(tuple(parts)))


@dataclass(frozen=True)
class Reinitialise(Perturbation):
    """theta <- theta_0, a fresh draw of the network's own initialiser (Figure 5; layers of ranks 6 to 8).

    A tensor that is initialised by a constant (biases of zero, a normalisation's weights of one) becomes that.
    """

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""
        fresh = _fresh(task)
        return _changed(task.weights, parts, lambda part, values: fresh(part))


@dataclass(frozen=True)
class WhiteNoise(Perturbation):
    """theta <- theta + scale * rms(theta) * N(0, I) with rms(theta) = |theta| / sqrt(n) (Figure 5; rank 3).

    The paper does not say how large its noise is; rank 3's had a standard deviation of 0.6 whatever the tensor. Here
    it is relative to the tensor's own root mean square, so that one scale fits all tensors; a tensor of zeros stays.

    Attributes:
        scale: standard deviation of the noise, in root mean squares of the tensor; 0 or more.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be 0 or more and finite, not {self.scale}")

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""

        def noisy(part: Part, values: Tensor) -> Tensor:
            noise = torch.randn(values.shape, generator=_rng(task, part), dtype=values.dtype)
            return values + self.scale * values.square().mean().sqrt() * noise

        return _changed(task.weights, parts, noisy)


@dataclass(frozen=True)
class FlipKernels(Perturbation):
    """Each kernel upside down: theta[..., i, j] <- theta[..., height - 1 - i, j] (Figure 5)."""

    def check(self, network: nn.Module, parts: Sequence[Part]) -> None:
        """Convolution kernels only."""
        _require_kernels(self, network, parts)

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""
        return _changed(task.weights, parts, lambda part, values: values.flip(-2))


@dataclass(frozen=True)
class RotateKernels(Perturbation):
    """Each kernel turned by 180 degrees: theta[..., i, j] <- theta[..., height - 1 - i, width - 1 - j] (Figure 5)."""

    def check(self, network: nn.Module, parts: Sequence[Part]) -> None:
        """Convolution kernels only."""
        _require_kernels(self, network, parts)

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""
        return _changed(task.weights, parts, lambda part, values: values.flip(-2, -1))


@dataclass(frozen=True)
class TransposeKernels(Perturbation):
    """Height and width of each kernel swapped: theta[..., i, j] <- theta[..., j, i] (rank 5, on every convolution)."""

    def check(self, network: nn.Module, parts: Sequence[Part]) -> None:
        """Square convolution kernels only."""
        _require_kernels(self, network, parts, square=True)

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""
        return _changed(task.weights, parts, lambda part, values: values.transpose(-2, -1))


@dataclass(frozen=True)
class RotateOutputs(Perturbation):
    """W <- QW: a layer's output channels are mixed by a random orthogonal Q (ours).

    W is the weight as a matrix, (output channels, all else); Q, of as many rows and columns as channels are selected,
    is uniform over the orthogonal matrices (Haar). Norms of inputs' images and angles between them stay, as with
    negation, which is Q = -I: so this tells whether it must be that one. A selected bias b becomes Qb.
    """

    def check(self, network: nn.Module, parts: Sequence[Part]) -> None:
        """Layers whose rows are output channels."""
        for part in parts:
            owner = unwrap(network).get_submodule(part.name.rpartition(".")[0])
            if not (rows_are_outputs(owner) or isinstance(owner, nn.MultiheadAttention)):
                raise LayerError(
                    f"the rows of {part} are no output channels, which RotateOutputs mixes: "
                    "name convolutions, linear layers or attention"
                )

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""

        def mixed(part: Part, values: Tensor) -> Tensor:
            layer = replace(part, name=bias_of(part.name) or part.name)  # a weight and its bias: one Q
            turned = _orthogonal(len(values), _rng(task, layer)) @ values.reshape(len(values), -1)
            return turned.reshape(values.shape)

        return _changed(task.weights, parts, mixed)


@dataclass(frozen=True)
class PruneAndReinitialise(Perturbation):
    """theta_i <- theta_0,i for the floor(share * n) smallest |theta_i| of all n selected elements (rank 4).

    Which are the smallest is decided over all selected tensors together, as rank 4 does. theta_0 is a fresh draw of
    the network's own initialiser; rank 4's is uniform over +-1/sqrt(fan-in), whatever the network.

    Attributes:
        share: of the selected elements that are drawn anew, 0 to 1; rank 4's is 0.99.
    """

    share: float = 0.99

    def __post_init__(self) -> None:
        _require_share(self.share)

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""
        fresh = _fresh(task)
        sizes = [rows_of(task.weights.parameters[part.name], part).double().abs() for part in parts]
        order = torch.cat([size.reshape(-1) for size in sizes]).argsort(stable=True)
        pruned = torch.zeros(len(order), dtype=torch.bool)
        pruned[order[: math.floor(self.share * len(order))]] = True
        masks = dict(zip(parts, torch.split(pruned, [size.numel() for size in sizes]), strict=True))
        return _changed(
            task.weights,
            parts,
            lambda part, values: torch.where(masks[part].reshape(values.shape), fresh(part), values),
        )


@dataclass(frozen=True)
class FlipSigns(Perturbation):
    """theta_i <- -theta_i for floor(share * n) elements of each tensor, drawn at random (ours).

    Attributes:
        share: of a tensor's elements, 0 to 1; with 1 it is negation.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        _require_share(self.share)

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""

        def flipped(part: Part, values: Tensor) -> Tensor:
            chosen = torch.randperm(values.numel(), generator=_rng(task, part))
            values.view(-1)[chosen[: math.floor(self.share * len(chosen))]] *= -1
            return values

        return _changed(task.weights, parts, flipped)


@dataclass(frozen=True)
class Shrink(Perturbation):
    """theta <- keep * theta + fresh * theta_0, shrink and perturb (Ash and Adams, NeurIPS 2020).

    theta_0 is a fresh draw of the network's own initialiser, as in the successors of that paper; its own noise is
    white.

    Attributes:
        keep: what is left of the old weights, 0 or more.
        fresh: how much of the draw is added, 0 or more.
    """

    keep: float = 0.5
    fresh: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.keep < math.inf and 0 <= self.fresh < math.inf):
            raise ValueError(f"keep and fresh must be 0 or more and finite, not {self.keep} and {self.fresh}")

    def __call__(self, task: Task, parts: Sequence[Part]) -> Weights:
        """See `Perturbation`."""
        fresh = _fresh(task)
        return _changed(task.weights, parts, lambda part, values: self.keep * values + self.fresh * fresh(part))


PERTURBATIONS = Kinds(
    Negate=Negate,
    Reinitialise=Reinitialise,
    WhiteNoise=WhiteNoise,
    FlipKernels=FlipKernels,
    RotateKernels=RotateKernels,
    TransposeKernels=TransposeKernels,
    RotateOutputs=RotateOutputs,
    PruneAndReinitialise=PruneAndReinitialise,
    FlipSigns=FlipSigns,
    Shrink=Shrink,
)
"""Those that an experiment's file can name."""


@dataclass(frozen=True)
class Perturb(Method):
    """The server perturbs some layers; those who stay fine-tune. Free, as NoT is, which is its `Negate`.

    Attributes:
        how: what is done to the selected tensors; negation, unless said otherwise.
        layers: what is perturbed; the first layer that the input flows through, unless said otherwise.
        include_bias: whether a layer's bias is perturbed with its weight.
        recalibrate: whether BatchNorm's running statistics are then estimated anew from what stays, in one round
            that sends models and needs those clients. Otherwise they are left as they were.
    """

    how: Annotated[Perturbation, PlainValidator(PERTURBATIONS)] = Negate()
    layers: Selection = FIRST
    include_bias: bool = False
    recalibrate: bool = False

    @property
    def name(self) -> str:
        """The perturbation's."""
        return type(self.how).__name__

    @property
    def needs(self) -> Needs:
        """Nothing, but for recalibration."""
        return Needs(retain_online=self.recalibrate)

    def cost(self, size: Size) -> Traffic:
        """Nothing, but for recalibration."""
        return recalibration(size) if self.recalibrate else Traffic()

    def check(self, task: Task) -> None:
        """The layers must be there, and be such as can be perturbed so."""
        self.how.check(task.architecture.template, self._parts(task))

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """Perturb."""
        if resume is None:
            resume = Round(0, self.how(task, self._parts(task)))
            yield resume
        if self.recalibrate and resume.number == 0:
            yield recalibrated(task, resume)

    def _parts(self, task: Task) -> tuple[Part, ...]:
        return select(task.architecture.template, self.layers, include_bias=self.include_bias)


def _changed(weights: Weights, parts: Sequence[Part], change: Callable[[Part, Tensor], Tensor]) -> Weights:
    """The weights with ``change(part, a copy of it in float64)`` in each part's place."""
    parameters = dict(weights.parameters)
    for name in {part.name for part in parts}:
        parameters[name] = parameters[name].clone()
    for part in parts:
        rows = rows_of(parameters[part.name], part)
        rows.copy_(change(part, rows.to(torch.float64, copy=True)))
    return replace(weights, parameters=parameters)


def _fresh(task: Task) -> Callable[[Part], Tensor]:
    """The parts of one fresh draw, in float64."""
    drawn = task.fresh("perturbation")
    return lambda part: rows_of(drawn.parameters[part.name], part).double()


def _rng(task: Task, part: Part) -> Generator:
    return generator(task.turn().seed_for("server", f"perturbation of {part}"))


def _orthogonal(size: int, rng: Generator) -> Tensor:
    """A Haar-orthogonal matrix in float64.

    The Q of a normal matrix's QR decomposition is not uniform: LAPACK chooses its signs. It is once R's diagonal is
    made positive (Mezzadri, Notices of the AMS 54, 2007).
    """
    q, r = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))
    turned: Tensor = q * r.diagonal().sign()
    return turned


def _require_kernels(how: Perturbation, network: nn.Module, parts: Sequence[Part], *, square: bool = False) -> None:
    table = {layer.name: layer for layer in layers(network)}
    for part in parts:
        layer, what = table[part.name], type(how).__name__
        if layer.kind != "convolution" or len(layer.shape) < 4:
            raise LayerError(
                f"{part} is no convolution's kernel of height and width, which {what} needs: "
                "name convolutions, without their biases"
            )
        if square and layer.shape[-1] != layer.shape[-2]:
            raise LayerError(f"the kernels of {part} are not square, as {what} needs them: name other convolutions")


def _require_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {share}")
