"""What a model is once it has left its module: named tensors, and the arithmetic that federated methods need."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

__all__ = ["Average", "Weights", "unwrap"]


@dataclass(frozen=True, eq=False)
class Weights:
    """The values of a model: on the CPU, contiguous, detached, never changed in place.

    ``parameters`` and ``buffers`` map names to tensors. A parameter that several modules share (tied weights)
    stands once, under the first of its names; ``aliases`` maps the other names to that one. Buffers that a
    module does not persist are no part of it. ``negations`` is the sign history: what was negated, in order, one
    tuple of names a negation (negating the same layer twice undoes it, so later requests must know).

    ``+``, ``-`` and ``*`` act on the parameters; buffers, aliases and history of the result are the **left**
    operand's. Averages of buffers are `Average`'s business.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    negations: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Copy the weights out of a module (also a compiled or data-parallel one)."""
        module = unwrap(module)
        parameters: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in first:
                aliases[name] = first[id(parameter)]
            else:
                first[id(parameter)] = name
                parameters[name] = _at_rest(parameter)
        buffers = {name: _at_rest(buffer) for name, buffer in _persistent_buffers(module)}
        return cls(parameters, buffers, aliases)

    def into(self, module: nn.Module) -> None:
        """Copy the weights into a module of the same architecture; its Parameter objects stay.

        Raises:
            ValueError: names, shapes or dtypes differ; nothing was copied.
        """
        module = unwrap(module)
        theirs: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(_persistent_buffers(module))}
        ours = {**self.parameters, **self.buffers}
        if theirs.keys() != ours.keys():
            missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
            raise ValueError(f"these weights are of another architecture: the module lacks {missing}, has {extra}")
        for name, tensor in ours.items():
            if theirs[name].dtype != tensor.dtype:
                raise ValueError(f"{name} is {tensor.dtype}, the module's {theirs[name].dtype}: convert one of them")
            if theirs[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, the module's {tuple(theirs[name].shape)}"
                raise ValueError(f"these weights are of another architecture: {name} has shape {shapes}")
        with torch.no_grad():
            for name, tensor in ours.items():
                theirs[name].copy_(tensor)

    def map(self, change: Callable[[Tensor], Tensor]) -> Weights:
        """Apply ``change`` to each parameter."""
        return replace(self, parameters={name: change(tensor) for name, tensor in self.parameters.items()})

    def __add__(self, other: Weights) -> Weights:
        return self._zip(other, torch.add)

    def __sub__(self, other: Weights) -> Weights:
        return self._zip(other, torch.sub)

    def __mul__(self, factor: float) -> Weights:
        return self.map(lambda tensor: tensor * factor)

    __rmul__ = __mul__

    def vector(self) -> Tensor:
        """All parameters as one vector, shape ``(P,)``."""
        return torch.cat([tensor.reshape(-1) for tensor in self.parameters.values()])

    def with_vector(self, vector: Tensor) -> Weights:
        """These weights with other parameters, `vector`'s inverse: ``(P,)``, each in its own dtype again.

        Where no dtype changes they share the vector's memory.

        Raises:
            ValueError: the vector has another length.
        """
        sizes = [tensor.numel() for tensor in self.parameters.values()]
        if vector.shape != (sum(sizes),):
            found = tuple(vector.shape)
            raise ValueError(f"these weights are of another architecture: {sum(sizes)} parameters, not {found}")
        parts = zip(self.parameters.items(), torch.split(vector.contiguous(), sizes), strict=True)
        return replace(self, parameters={name: part.view(like.shape).to(like.dtype) for (name, like), part in parts})

    def norm(self) -> float:
        """Euclidean norm of the parameters, accumulated in float64."""
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in self.parameters.values()))

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters alone: the paper's size of a message."""
        return sum(tensor.nbytes for tensor in self.parameters.values())

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and buffers: what is really sent."""
        return self.parameter_bytes + sum(tensor.nbytes for tensor in self.buffers.values())

    def same_bits(self, other: Weights) -> bool:
        """Whether every tensor equals the other's bit for bit (so -0.0 differs from 0.0, NaN equals itself)."""
        mine, theirs = {**self.parameters, **self.buffers}, {**other.parameters, **other.buffers}
        return mine.keys() == theirs.keys() and all(_same_bits(mine[name], theirs[name]) for name in mine)

    def digest(self, size: int = 16) -> str:
        """Of names and bits of all tensors: the same for the same model, on any machine.

        Args:
            size: bytes of the BLAKE2b digest; 16 tell models apart, 32 withstand somebody who wants two alike.
        """
        digest = hashlib.blake2b(digest_size=size)
        for name, tensor in sorted({**self.parameters, **self.buffers}.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def finite(self) -> bool:
        """Whether no tensor holds NaN or infinity."""
        return all(bool(torch.isfinite(t).all()) for t in (*self.parameters.values(), *self.buffers.values()))

    def _zip(self, other: Weights, operation: Callable[[Tensor, Tensor], Tensor]) -> Weights:
        if self.parameters.keys() != other.parameters.keys():
            names = sorted(self.parameters.keys() ^ other.parameters.keys())
            raise ValueError(f"these weights are of different architectures: only one of them has {names}")
        pairs = {name: operation(tensor, other.parameters[name]) for name, tensor in self.parameters.items()}
        return replace(self, parameters=pairs)


class Average:
    """The weighted mean of replies that are folded as they come: FedAvg's sum of p_k theta_k, in constant memory.

    Parameters and floating buffers are averaged; an integer buffer (BatchNorm's counter) is copied from
    ``like``, for the mean of counters means nothing. Sums are kept in float64: the mean of equal float32
    tensors is then that tensor exactly, so a round that changes nothing changes no bit.
    """

    def __init__(self, like: Weights) -> None:
        self._like = like
        self._sums: dict[str, Tensor] = {}
        self._total = 0.0

    def add(self, weights: Weights, share: float) -> None:
        """Fold in one reply; ``share`` need not be normalised (the number of samples serves).

        Raises:
            ValueError: the reply is of another architecture; the mean is as it was.
        """
        arriving = {**weights.parameters, **weights.buffers}
        expected = {**self._like.parameters, **self._like.buffers}
        if {n: t.shape for n, t in arriving.items()} != {n: t.shape for n, t in expected.items()}:
            raise ValueError("a reply has other tensors than the model that was sent")
        self._total += share
        for name, tensor in arriving.items():
            if name in self._sums:
                self._sums[name].add_(tensor, alpha=share)
            elif tensor.is_floating_point() or tensor.is_complex():
                wide = torch.complex128 if tensor.is_complex() else torch.float64
                self._sums[name] = tensor.to(wide) * share

    @property
    def total(self) -> float:
        """The sum of the shares so far."""
        return self._total

    def result(self) -> Weights:
        """The mean.

        Raises:
            ValueError: nobody replied, or nobody had a sample.
        """
        if self._total <= 0:
            raise ValueError("there is nothing to average: no client replied with a training sample")
        like = self._like
        return replace(
            like,
            parameters={name: self._mean(name, tensor) for name, tensor in like.parameters.items()},
            buffers={name: self._mean(name, tensor) for name, tensor in like.buffers.items()},
        )

    def _mean(self, name: str, like: Tensor) -> Tensor:
        return (self._sums[name] / self._total).to(like.dtype) if name in self._sums else like


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside ``torch.compile``, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif "_orig_mod" in module._modules:  # torch.compile's OptimizedModule, whose class is private
            module = module.get_submodule("_orig_mod")
        else:
            return module


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    persistent = module.state_dict(keep_vars=True).keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in persistent]


def _at_rest(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
