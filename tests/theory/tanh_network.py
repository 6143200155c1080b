"""A small smooth network in float64 whose Hessian and covariances are exact, and a meter of what is held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tiny(seed: int = 0) -> nn.Module:
    """67 parameters."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return model


def draw(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator).double()
    return x, torch.randint(0, 3, (count,), generator=generator)


def flat_hessian(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    """Of the mean loss in evaluation mode, ``(P, P)``, by autograd."""
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    parameters = dict(model.named_parameters())
    start = torch.cat([parameters[name].detach().reshape(-1) for name in names])

    def loss(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [parameters[name].numel() for name in names])
        values = {name: part.view(parameters[name].shape) for name, part in zip(names, parts, strict=True)}
        return cross_entropy(functional_call(model, values, (samples[0],)), samples[1])

    modes = {module: module.training for module in model.modules()}
    model.eval()
    found: Tensor = hessian(loss, start)
    for module, mode in modes.items():
        module.training = mode
    return found.detach()


def sample_gradients(model: nn.Module, samples: tuple[Tensor, Tensor]) -> Tensor:
    """A row a sample, ``(n, P)``."""
    rows = []
    for x, y in zip(*samples, strict=True):
        found = torch.autograd.grad(cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        rows.append(torch.cat([one.reshape(-1) for one in found]))
    return torch.stack(rows)


def signature(model: nn.Module) -> tuple[object, ...]:
    """All of a model, and of the generator of random numbers, that nobody should change."""
    tensors = {name: value.tolist() for name, value in model.state_dict().items()}
    parameters = [(id(one), one.requires_grad, one.grad is None or one.grad.tolist()) for one in model.parameters()]
    modules = [(one.training, len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()]
    return tensors, parameters, modules, torch.get_rng_state().tolist()


class RecordedMemory(TorchDispatchMode):
    """The most bytes that tensors made meanwhile hold at the end of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {self._key(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        self.alive = {key: one for key, one in self.alive.items() if not one[0].expired()}
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and self._key(one) not in known:
                storage = one.untyped_storage()
                self.alive[self._key(one)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata
