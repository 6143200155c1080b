"""Gradients of minibatches at fixed weights: the noise that training sees, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from fedunlearn.randomness import generator
from fedunlearn.theory.modes import evaluated

__all__ = ["minibatch_gradients", "parameters_named"]


def parameters_named(model: nn.Module, globs: Sequence[str] | None) -> dict[str, int]:
    """The parameters that globs pick, with their number of elements, in the model's order.

    Args:
        model: whose.
        globs: of names such as ``layer1.0.conv1.weight``; ``*`` crosses dots. None: all parameters.

    Raises:
        ValueError: a glob fits no parameter.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if globs is None:
        return sizes
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in sizes):
            raise ValueError(f"{glob!r} fits no parameter: name some of {', '.join(list(sizes)[:5])}, ...")
    return {name: size for name, size in sizes.items() if any(fnmatchcase(name, glob) for glob in globs)}


def minibatch_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    batches: int,
    batch_size: int,
    parameters: Sequence[str] | None,
    coordinates: Tensor,
    seed: int,
) -> Tensor:
    """Gradients of minibatches' mean cross-entropy at fixed weights: the X_i of the supplement's section 13.8.

    Taken in eval mode: BatchNorm normalises by its running statistics, so that a gradient is the mean of its samples'
    gradients, and dropout is off. The model is left as it was. Only the coordinates asked for are kept, so that
    memory is ``batches`` times these, and one gradient.

    Minibatches are drawn without replacement until fewer than ``batch_size`` samples are left; then an epoch begins
    anew, in another order.

    Args:
        model: classifies ``(n, ...)`` into ``(n, classes)``.
        x: inputs ``(n, ...)``; they travel to the model's device batch by batch.
        y: labels ``(n,)``, int64.
        batches: how many gradients, b.
        batch_size: samples in each.
        parameters: globs of names (`parameters_named`); None: all. A parameter that is frozen has its gradient too.
        coordinates: which elements to keep, ``(K,)`` int64: positions in the picked parameters, flattened one after
            another in the model's order.
        seed: of the minibatches.

    Returns:
        ``(batches, K)`` float32, on the CPU.

    Raises:
        ValueError: a glob fits no parameter, a coordinate is out of range, there is no full minibatch, or the loss
            depends on no parameter that was picked.
    """
    picked = parameters_named(model, parameters)
    total = sum(picked.values())
    if len(coordinates) and not 0 <= int(coordinates.min()) <= int(coordinates.max()) < total:
        raise ValueError(f"coordinates are positions among {total} elements: {int(coordinates.max())} is none")
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"{len(x)} samples give no minibatch of {batch_size}: take a smaller one")
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    leaves = {name: weights[name].clone().requires_grad_() for name in picked}
    device = next(iter(leaves.values())).device
    places, found = coordinates.to(device), torch.empty(batches, len(coordinates))
    with evaluated(model), torch.enable_grad():
        for row, index in zip(found, _drawn(len(x), batches, batch_size, seed), strict=True):
            outputs = functional_call(model, {**weights, **leaves}, (x[index].to(device),))
            loss = F.cross_entropy(outputs, y[index].to(device))
            if not loss.requires_grad:
                raise ValueError(f"the loss depends on none of {', '.join(list(picked)[:5])}: pick other parameters")
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            row.copy_(torch.cat([gradient.flatten() for gradient in gradients])[places])
    return found


def _drawn(samples: int, batches: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    random, left = generator(seed, "minibatches"), torch.empty(0, dtype=torch.int64)
    for _ in range(batches):
        if len(left) < batch_size:
            left = torch.randperm(samples, generator=random)
        yield left[:batch_size]
        left = left[batch_size:]
