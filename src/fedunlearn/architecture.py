"""A network's architecture: how to build it, and quick copies of it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedunlearn.randomness import seeded
from fedunlearn.weights import Weights

__all__ = ["Architecture"]


class Architecture:
    """What all networks of a federation have in common: everything but their weights.

    It is made from a function, not from a module: training anew needs a newly initialised network, and only the
    function that built the network knows how (a walk over ``reset_parameters`` misses whatever lacks it).
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        if isinstance(build, nn.Module) or not callable(build):
            raise TypeError("give a function that builds the network, e.g. `lambda: Net()`, not a network")
        self.build = build
        self._template: nn.Module | None = None
        self._channels_last = False

    def __reduce__(self) -> tuple[type[Architecture], tuple[Callable[[], nn.Module]]]:
        return Architecture, (self.build,)  # each process builds its own template: its memory layout does not travel

    @property
    def template(self) -> nn.Module:
        """One network, to be looked at and copied, never trained. Its values mean nothing."""
        if self._template is None:
            with seeded(0):
                template, again = self.build(), self.build()
            if not isinstance(template, nn.Module):
                raise TypeError(f"the function that builds the network returned {type(template).__name__}")
            if template is again:
                raise TypeError("the function that builds the network must build a new one each time it is called")
            # On CPUs pooling and convolutions of small networks are a quarter faster with channels last.
            self._channels_last = any(isinstance(module, nn.Conv2d) for module in template.modules())
            if self._channels_last:
                template = template.to(memory_format=torch.channels_last)
            self._template = template
        return self._template

    def network(self, weights: Weights, device: torch.device) -> nn.Module:
        """A network of its own with these weights on ``device``."""
        network = _copied(self.template)  # nine times quicker than building a ResNet-18 anew
        weights.into(network)
        return network.to(device)

    def fresh(self, seed: int) -> Weights:
        """Newly initialised weights."""
        with seeded(seed):
            return Weights.of(self.build())

    def laid_out(self, x: Tensor) -> Tensor:
        """A batch in the memory layout that the networks are in."""
        return x.contiguous(memory_format=torch.channels_last) if self._channels_last and x.ndim == 4 else x


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy, to which each module's dozen of empty dictionaries, for hooks mostly, are given ready-made.

    To copy them one by one takes up to half of the time.
    """
    contents = (value for each in module.modules() for value in vars(each).values())
    empty = {id(value): type(value)() for value in contents if type(value) in (dict, OrderedDict) and not value}
    return copy.deepcopy(module, empty)
