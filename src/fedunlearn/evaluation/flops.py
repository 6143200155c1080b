"""Floating-point operations of a network, counted by running it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedunlearn.federation import Work
from fedunlearn.randomness import seeded

__all__ = ["SampleFlops", "flops_per_sample"]


@dataclass(frozen=True)
class SampleFlops:
    """Operations for one sample; a multiplication with its addition counts as two.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass alone.
    """

    forward: int
    backward: int

    def of(self, work: Work) -> int:
        """Operations of so many sample passes."""
        return work.forward * self.forward + work.backward * self.backward


def flops_per_sample(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> SampleFlops:
    """Count what one sample costs in training.

    Convolutions, matrix products and attention are counted; activations, normalisations and sums, which are
    of lower order, count zero. The backward pass goes to the parameters that require gradients, not to the
    input, so it costs a little less than twice the forward pass. A batch costs its size times as much.

    The network runs on the meta device, without memory or arithmetic, where it can; else on the CPU, whose
    fused recurrent layers count zero.

    Args:
        build: returns the network, which takes ``(n, *shape)`` and returns a tensor; it is left as it is.
        shape: of one input, without the batch dimension.
    """
    try:
        return _count(build, shape, "meta")
    except Exception:  # a network that looks at its values may raise anything; a true fault recurs below
        return _count(build, shape, "cpu")


def _count(build: Callable[[], nn.Module], shape: tuple[int, ...], device: str) -> SampleFlops:
    batch = 2  # batch normalisation of 1x1 images needs two samples in training mode
    # Attention is counted only if taken apart into matrix products: fused on the CPU it would cost nothing.
    with (
        seeded(0),
        torch.device(device),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter,
    ):
        network = copy.deepcopy(build()).to(device).train()
        output = network(torch.zeros(batch, *shape))
        forward = counter.get_total_flops()
        if output.requires_grad:
            output.sum().backward()
        total = counter.get_total_flops()
    return SampleFlops(forward // batch, (total - forward) // batch)


def _convolution_backward(
    gradient: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
    out_shape: object,
) -> int:
    """The gradients for input and weight each cost as much as the forward pass.

    torch's own formula forgets that grouped convolutions connect channels within a group only: it finds the
    depthwise ones' gradients more costly by the number of channels (EfficientNet-B0: 41 times the forward
    pass).
    """
    batch, _, *positions = x if transposed else gradient
    # The weight is (outputs, inputs / groups, ...): each position meets each of its elements once.
    forward = 2 * batch * math.prod(positions) * math.prod(weight)
    return forward * (wanted[0] + wanted[1])


_FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}
