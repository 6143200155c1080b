"""What a model's layers answer to given inputs, and how alike two models' answers are, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedunlearn.kinds import LAYER_KINDS, has_running_mean, is_normalisation, kind_of
from fedunlearn.theory.cka import MinibatchCKA, gram
from fedunlearn.theory.modes import device_of, evaluated
from fedunlearn.weights import unwrap

__all__ = ["Position", "Similarity", "activations", "compare", "hearing", "positions"]

_SMALLEST = 8  # of a batch: two halves of more than this have the four samples that an unbiased estimate needs


@dataclass(frozen=True)
class Position:
    """A point of a network where its activations are read: the output of one call of a module.

    Attributes:
        module: its name.
        call: which of its calls in a forward pass, from 1.
        calls: how many there are: torchvision's residual blocks call one ReLU twice.
    """

    module: str
    call: int
    calls: int

    def __str__(self) -> str:
        return self.module if self.calls == 1 else f"{self.module}#{self.call}"


@dataclass(frozen=True)
class Similarity:
    """CKA of two models' activations at one position.

    Attributes:
        biased: in [0, 1], of batches, as `fedunlearn.theory.cka.MinibatchCKA.biased`; what is mostly published.
        unbiased: in [-1, 1].
        samples: it was estimated from.
    """

    biased: float
    unbiased: float
    samples: int


def positions(model: nn.Module, x: Tensor) -> tuple[Position, ...]:
    """The points at which Figures 3 and 7 look at a network, in the order of execution.

    One rule for all networks: each call of a layer, an activation, a pooling or a normalisation that is a module
    (functions are not seen), whose answer has a row a sample, except that

    * a layer with a BatchNorm behind it is read after both, and after the activation if one is still to come (so the
      linear end of a bottleneck block is not read);
    * of a block with self-attention (the module around ``nn.MultiheadAttention``) only its output is read, the stream
      that its layers add to.

    So of `LayerNormCNN` these are Figure 3's: conv1, relu1, pool1, norm1, ..., head. Of ResNets these are the ReLU
    after each convolution, and the head, as in Figure 7, and the poolings, which it leaves out; of ViTs
    ``conv_proj``, each encoder block, and the head, as there, and the last normalisation.

    Args:
        model: it is left as it was.
        x: inputs, ``(n, ...)``; the first two are used.

    Raises:
        ValueError: nothing was found to look at.
    """
    model = unwrap(model)
    blocks = _attention_blocks(model)
    kept = [
        name
        for name, module in model.named_modules()
        if name in blocks or (_is_read(module) and not any(_lies_in(name, block) for block in blocks))
    ]
    few = x[:2]
    order: list[tuple[str, int]] = []

    def note(name: str, call: int, answer: Tensor) -> None:
        if len(answer) == len(few):  # not of a table of positions, or of windows
            order.append((name, call))

    with hearing(model, kept, note), torch.no_grad():
        model(few.to(device_of(model)))
    inside = _before_activations(model, [name for name, _ in order])
    calls = Counter(name for name, _ in order)
    found = [Position(name, call, calls[name]) for name, call in order if name not in inside]
    if not found:
        raise ValueError("the network calls no layer that is a module: make modules of what is to be looked at")
    return tuple(found)


def activations(model: nn.Module, x: Tensor, batch_size: int = 256) -> dict[str, Tensor]:
    """All activations at all `positions`, for data that are few: each ``(n, p)`` on the CPU, in the model's dtype.

    In eval mode. They are copies: an activation in place writes over what came before it.

    Args:
        model: it is left as it was.
        x: inputs, ``(n, ...)``.
        batch_size: of a forward pass.
    """
    at = positions(model, x)
    found: dict[str, list[Tensor]] = {str(position): [] for position in at}

    def keep(position: Position, answer: Tensor) -> None:
        found[str(position)].append(answer.detach().flatten(1).to("cpu", copy=True))

    for batch in torch.split(x, batch_size):
        _read(model, batch, at, keep)
    return {name: torch.cat(parts) for name, parts in found.items()}


def compare(model_a: nn.Module, model_b: nn.Module, x: Tensor, batch_size: int = 256) -> dict[str, Similarity]:
    """CKA of two models at each of the `positions`, in eval mode, spatial positions and tokens flattened.

    Both models run batch by batch, and of each answer only its `gram` matrix is kept, and that for one batch. Batches
    are of near to equal size, so that none is too small.

    A BatchNorm in eval mode answers by its running statistics: of a negated convolution it gives what training would
    only if its running mean follows (`fedunlearn.negation.negate`, "negate_mean").

    Args:
        model_a, model_b: of one architecture; they are left as they were.
        x: inputs, ``(n, ...)``, the same for both; four at least.
        batch_size: samples a forward pass, at the most; eight at least. The memory that Gram matrices take grows with
            its square, the bias of the biased CKA falls with it.

    Returns:
        By `Position`, as text.

    Raises:
        ValueError: too few samples, or too small batches; or the models do not have the same positions.
    """
    if len(x) < 4 or batch_size < _SMALLEST:
        raise ValueError(
            f"{len(x)} samples in batches of {batch_size} are too few for CKA: take 4 and {_SMALLEST} at least"
        )
    at = positions(model_a, x)
    if positions(model_b, x) != at:
        raise ValueError("the two models differ in what they call: compare models of one architecture")
    sums = {position: MinibatchCKA() for position in at}
    for batch in x.tensor_split(-(-len(x) // batch_size)):
        grams: dict[Position, Tensor] = {}

        def keep(position: Position, answer: Tensor, grams: dict[Position, Tensor] = grams) -> None:
            grams[position] = gram(answer)

        def add(position: Position, answer: Tensor, grams: dict[Position, Tensor] = grams) -> None:
            first = grams.pop(position)
            sums[position].add(first, gram(answer).to(first.device))

        _read(model_a, batch, at, keep)
        _read(model_b, batch, at, add)
    return {str(position): Similarity(of.biased, of.unbiased, of.samples) for position, of in sums.items()}


def _read(model: nn.Module, x: Tensor, at: Sequence[Position], give: Callable[[Position, Tensor], None]) -> None:
    """One forward pass, and each answer as it comes, before anything can write over it."""
    model = unwrap(model)
    wanted = {(position.module, position.call): position for position in at}

    def pick(name: str, call: int, answer: Tensor) -> None:
        if (name, call) in wanted:
            give(wanted[name, call], answer)

    with hearing(model, dict.fromkeys(position.module for position in at), pick), torch.no_grad():
        model(x.to(device_of(model)))


@contextmanager
def hearing(model: nn.Module, names: Iterable[str], hear: Callable[[str, int, Tensor], None]) -> Iterator[None]:
    """In eval mode, give ``hear`` a module's name, the number of its call and its answer; then all is as before.

    Of modules that answer with several tensors, as attention and recurrent layers do, it is the first.
    """
    calls = Counter[str]()

    def hook(name: str, _: nn.Module, __: object, answer: Any) -> None:
        calls[name] += 1
        first = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(first, Tensor) and first.ndim:
            hear(name, calls[name], first)

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in names]
    try:
        with evaluated(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _before_activations(model: nn.Module, order: Sequence[str]) -> set[str]:
    """Layers with a BatchNorm called next, and such BatchNorms, unless no activation is called any more."""
    modules = [model.get_submodule(name) for name in order]
    last = max((at for at, module in enumerate(modules) if _is_of(module, "activation")), default=-1)
    found = set[str]()
    for at, (module, after) in enumerate(pairwise(modules)):
        if _is_layer(module) and has_running_mean(after):
            found |= {order[at], order[at + 1]} if at + 1 < last else {order[at]}
    return found


def _is_read(module: nn.Module) -> bool:
    return _is_layer(module) or is_normalisation(module) or _is_of(module, "activation") or _is_of(module, "pooling")


def _is_layer(module: nn.Module) -> bool:
    own = module.named_parameters(recurse=False)
    return any(kind_of(module, attribute, parameter) in LAYER_KINDS for attribute, parameter in own)


def _is_of(module: nn.Module, file: str) -> bool:
    """Whether torch defines it, or what it derives from, among its activations or its poolings."""
    return any(ancestor.__module__ == f"torch.nn.modules.{file}" for ancestor in type(module).__mro__)


def _attention_blocks(model: nn.Module) -> set[str]:
    """What directly holds a self-attention, unless that is the whole network."""
    holders = {n.rpartition(".")[0] for n, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    return holders - {""}


def _lies_in(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")
