"""The loss of a model on samples: its mean, its gradient, and how it curves along a direction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from fedunlearn.theory.modes import evaluated

__all__ = [
    "Samples",
    "add_gradient",
    "central_differences",
    "double_backward",
    "gradient",
    "mean_loss",
    "moved",
    "square",
    "zeros",
]

Samples = tuple[Tensor, Tensor]
"""Inputs ``(n, ...)`` and classes ``(n,)``."""

_PIECE = 1 << 16  # numbers that are squared and summed at once in float64, so that no copy of a large tensor is made


def mean_loss(model: nn.Module, samples: Samples, *, batch_size: int = 256) -> float:
    """Mean cross-entropy of the model in evaluation mode, summed in float64.

    Args:
        model: is left as it was.
        samples: one or more.
        batch_size: samples that are computed at once.

    Raises:
        ValueError: there are no samples, or the loss is not finite.
    """
    with _evaluation(model), torch.no_grad():
        loss = sum(
            float(cross_entropy(model(x), y, reduction="sum")) for x, y in _chunks(model, samples, batch_size)
        ) / len(_some(samples)[1])
    if not loss < float("inf"):
        raise ValueError(f"the loss of the model is {loss}: give one whose training has not diverged")
    return loss


def zeros(model: nn.Module) -> list[Tensor]:
    """Zeros of the shapes of all parameters that can be trained; a shared one stands once.

    Raises:
        ValueError: there are none.
    """
    return [torch.zeros_like(parameter) for parameter in moved(model).values()]


def moved(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name: those that require a gradient, each once, detached, not copied.

    Raises:
        ValueError: there are none.
    """
    found = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
    if not found:
        raise ValueError("no parameter of the model requires a gradient: call model.requires_grad_()")
    return found


def gradient(model: nn.Module, batch: Samples) -> list[Tensor]:
    """Of `mean_loss`, computed at once; shapes of `zeros`. Its tensors may share memory: do not change them."""
    with _evaluation(model), torch.enable_grad():
        (chunk,) = _chunks(model, batch, len(_some(batch)[1]))
        at = _leaves(moved(model))
        loss = _summed(model, at, chunk) / len(chunk[1])
        return list(torch.autograd.grad(loss, list(at.values()), **_UNUSED))


def add_gradient(
    into: Sequence[Tensor], model: nn.Module, samples: Samples, factor: float = 1.0, *, batch_size: int = 256
) -> None:
    """Add ``factor`` times the gradient of `mean_loss` in place.

    Besides ``into`` one gradient is held at a time: that of a chunk.

    Args:
        into: shapes of `zeros`.
        model: is left as it was, its ``grad`` fields too.
        samples, batch_size: see `mean_loss`.
    """
    count = len(_some(samples)[1])
    with _evaluation(model):
        for chunk in _chunks(model, samples, batch_size):
            for total, part in zip(into, _gradient(model, moved(model), chunk), strict=True):
                total.add_(part, alpha=factor / count)


def double_backward(model: nn.Module, samples: Samples, direction: Sequence[Tensor], *, batch_size: int = 256) -> float:
    """z' H z, with H the Hessian of `mean_loss`, by the gradient of the gradient along z: exact.

    Not every operation has a second derivative. `central_differences` needs none.

    Args:
        model: is left as it was.
        samples, batch_size: see `mean_loss`.
        direction: z, shapes of `zeros`; its memory may be used for something else.
    """
    with _evaluation(model):
        total = sum(_bend(model, chunk, direction) for chunk in _chunks(model, samples, batch_size))
    return total / len(_some(samples)[1])


def central_differences(
    model: nn.Module, samples: Samples, direction: Sequence[Tensor], *, batch_size: int = 256
) -> float:
    """z' H z, see `double_backward`, by the gradients a small step to either side.

    For smooth networks, such as a ViT with GELU: in float32 it is right to about three digits. ReLU and max pooling
    have kinks, where the gradient jumps; those between the two sides count as curvature, and no step that float32
    allows is too small to have some: the result is useless. `double_backward` does not see them (nor does Theorem 5,
    whose Ito formula needs a loss with two continuous derivatives).

    Args:
        model, samples, batch_size: see `double_backward`.
        direction: z; overwritten, so that only one more copy of the parameters is needed: that of a gradient.

    Raises:
        ValueError: parameters are neither float32 nor float64.
    """
    values, length = moved(model), square(direction)
    origins = list(values.values())
    if not {one.dtype for one in origins} <= _STEP.keys():
        raise ValueError("half precision has no differences so small: call model.float()")
    if length == 0:
        return 0.0
    step = _STEP[origins[0].dtype] * math.sqrt((square(origins) or 1.0) / length)
    there = dict(zip(values, direction, strict=True))
    for z, origin in zip(direction, origins, strict=True):
        z.mul_(step).add_(origin)
    rise = 0.0
    with _evaluation(model):
        for _ in range(2):
            # What is mirrored once is mirrored exactly the next time: the two ways cancel to the last bit.
            for place, origin in zip(direction, origins, strict=True):
                place.mul_(-1).add_(origin, alpha=2)
            rise += _rise(model, values, there, samples, batch_size)
    return rise / (2 * step**2 * len(_some(samples)[1]))


_STEP = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the parameters' norm: rounding and third derivatives balance


def square(tensors: Sequence[Tensor]) -> float:
    """Squared Euclidean norm of all of them together, summed in float64."""
    return sum(_dot(one, one) for one in tensors)


def _bend(model: nn.Module, chunk: Samples, direction: Sequence[Tensor]) -> float:
    """z' H z of the summed loss."""
    at = _leaves(moved(model))
    with torch.enable_grad():
        found = torch.autograd.grad(_summed(model, at, chunk), list(at.values()), create_graph=True, **_UNUSED)
        slope = torch.stack([(one * z).sum() for one, z in zip(found, direction, strict=True)]).sum()
    del found  # of the products the graph keeps z alone
    bent = torch.autograd.grad(slope, list(at.values()), **_UNUSED)
    return sum(_dot(one, z) for one, z in zip(bent, direction, strict=True))


def _rise(
    model: nn.Module, values: Mapping[str, Tensor], there: Mapping[str, Tensor], samples: Samples, batch_size: int
) -> float:
    """The gradient of the summed loss at a place, along the way from the parameters to there.

    The way is taken as the rounded numbers have it, not as it was meant.
    """
    total = 0.0
    for chunk in _chunks(model, samples, batch_size):
        ways = zip(_gradient(model, there, chunk), there.values(), values.values(), strict=True)
        total += sum(_dot(one, place, origin) for one, place, origin in ways)
    return total


def _gradient(model: nn.Module, values: Mapping[str, Tensor], chunk: Samples) -> tuple[Tensor, ...]:
    """Of the summed loss, with these values for the parameters."""
    at = _leaves(values)
    return torch.autograd.grad(_summed(model, at, chunk), list(at.values()), **_UNUSED)


_UNUSED: Any = {"allow_unused": True, "materialize_grads": True}  # a parameter that has no part in the loss


def _summed(model: nn.Module, at: Mapping[str, Tensor], chunk: Samples) -> Tensor:
    x, y = chunk
    with torch.enable_grad():
        return cross_entropy(functional_call(model, dict(at), (x,)), y, reduction="sum")


def _leaves(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the same memory that gradients can be taken at, without a flag set on anybody else's."""
    return {name: value.detach().requires_grad_() for name, value in values.items()}


def _dot(one: Tensor, other: Tensor, origin: Tensor | None = None) -> float:
    """Of two tensors, the second seen from ``origin``, in float64."""
    flat = [torch.split(each.detach().reshape(-1), _PIECE) for each in (one, other)]
    if origin is None:
        return sum(float(a.double() @ b.double()) for a, b in zip(*flat, strict=True))
    start = torch.split(origin.reshape(-1), _PIECE)
    return sum(float(a.double() @ (b.double() - o.double())) for a, b, o in zip(*flat, start, strict=True))


def _chunks(model: nn.Module, samples: Samples, batch_size: int) -> Iterator[Samples]:
    """On the device of the model."""
    device = next(iter(moved(model).values())).device
    for x, y in zip(*(torch.split(each, batch_size) for each in _some(samples)), strict=True):
        yield x.to(device), y.to(device)


def _some(samples: Samples) -> Samples:
    if not len(samples[1]) or len(samples[0]) != len(samples[1]):
        raise ValueError(f"{len(samples[0])} inputs with {len(samples[1])} classes: give as many of each, one or more")
    return samples


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; attention by matrix products, since the fused one has no second derivative."""
    with evaluated(model), sdpa_kernel(SDPBackend.MATH):
        yield
