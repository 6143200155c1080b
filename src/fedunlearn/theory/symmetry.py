"""Signs that a network does not see: tensors that can be negated together without any change of the function."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from fedunlearn.flow import trace
from fedunlearn.kinds import has_running_mean, is_normalisation
from fedunlearn.names import LayerError, bias_of

__all__ = ["residual_stream", "sign_difference", "sign_symmetry"]

_TOLERANCE = 1e-12  # of the output, in float64
_NOISE = 0.1


def sign_symmetry(model: nn.Module, layer: str, example: object) -> tuple[str, ...] | None:
    """What else must be negated when a layer is, weight and bias, so that the function stays exactly the same.

    Three such symmetries are looked for, whatever the activation:

    * a BatchNorm (or another normalisation with a weight) is all that reads the layer: its weight, and the running
      mean. In training mode the mean of the batch follows by itself and the layer's bias counts for nothing;
    * a self-attention's input projection: queries and keys turn both, their products do not, the values turn, and the
      output projection's weight turns them back. Weights of attention, being softmax, sum to one;
    * torchvision's vision transformer, and its kin: all that is added into the residual stream turns, and the weight of
      every normalisation that reads it.

    Whoever negates the layer alone has then a network that is one sign of other, trainable tensors away: the
    negation keeps layer-wise optimality (Definition 7), though Lemma 8 need not apply.

    Args:
        model: the network; it is left as it is.
        layer: the name of a module that is an affine layer, or of its weight.
        example: an input, a tensor or a tuple of positional arguments.

    Returns:
        Names of parameters and buffers, the layer's own left out, in the network's order. None: no symmetry is known,
        or the one that the structure suggests does not hold on the example.

    Raises:
        LayerError: there is no such layer.
    """
    modules, known = dict(model.named_modules()), set(_order(model))
    if layer not in known and layer not in modules:
        raise LayerError(f"the network has no layer {layer}: name a module or a weight of it")
    weight = layer if layer in known else f"{layer}.weight".removeprefix(".")
    if weight not in known:  # it is computed from others, whose signs are not its own
        return None
    mine = {weight, bias_of(weight) or weight} & known
    module = weight.rpartition(".")[0]
    for others in _candidates(model, module, modules[module]):
        together = (mine | set(others)) & known
        if sign_difference(model, tuple(together), example) <= _TOLERANCE:
            return tuple(name for name in _order(model) if name in together - mine)
    return None


def residual_stream(model: nn.Module) -> tuple[str, ...]:
    """The tensors of torchvision's vision transformer whose common sign its function does not depend on.

    They are the class token, the patch projection, the position embedding, and of each block the output projection
    and the second layer of the perceptron: all that is added into the residual stream, which turns; and the weights,
    not the biases, of all layer normalisations, which turn it back. ViT-B/16 has 77 of them.

    Args:
        model: a ``VisionTransformer`` (`fedunlearn.models.vit.SmallViT` is one).

    Raises:
        ValueError: it is not.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError("give torchvision's VisionTransformer: whose residual stream another network has is not known")
    turned = ["class_token", "encoder.pos_embedding"]
    convolutions = [name for name, module in model.conv_proj.named_modules() if isinstance(module, nn.Conv2d)]
    turned += _tensors(model, f"conv_proj.{convolutions[-1]}".removesuffix("."))
    turned += ["encoder.ln.weight"]
    for name, block in model.named_modules():
        if isinstance(block, EncoderBlock):
            turned += [f"{name}.ln_1.weight", f"{name}.ln_2.weight"]
            last = [inner for inner, module in block.mlp.named_children() if isinstance(module, nn.Linear)][-1]
            turned += _tensors(model, f"{name}.self_attention.out_proj") + _tensors(model, f"{name}.mlp.{last}")
    return tuple(name for name in _order(model) if name in turned)


def sign_difference(model: nn.Module, negated: Sequence[str], example: object, *, training: bool = False) -> float:
    """How far the network's output moves when tensors are negated, as a share of its largest element.

    It is computed in float64 on a copy of the network whose parameters and running means have been moved at random:
    of the initial weights many are zero (a head, a token), and hide what they multiply.

    Args:
        model: the network; it is left as it is.
        negated: names of parameters and buffers.
        example: an input, a tensor or a tuple of positional arguments.
        training: compare in training mode, with the same random numbers. Negate no running mean then: it is written.

    Returns:
        max |N'(x) - N(x)| / max |N(x)|; 0 where both are zero.
    """
    network = copy.deepcopy(model).double().train(training)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    inputs = tuple(_double(value, device) for value in (example if isinstance(example, tuple) else (example,)))
    tensors: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or name.endswith("running_mean")):
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.add_(_NOISE * noise.to(tensor.device))
        torch.manual_seed(0)  # of dropout, the same in both
        before = network(*inputs).clone()
        for name in negated:
            tensors[name].neg_()
        torch.manual_seed(0)
        after = network(*inputs)
    moved = float((after - before).abs().max())
    return moved / float(before.abs().max()) if moved else 0.0


def _candidates(model: nn.Module, module: str, own: nn.Module) -> Iterator[tuple[str, ...]]:
    prefix = f"{module}." if module else ""
    if isinstance(own, nn.MultiheadAttention):
        # Extra keys and values stand beside the projected ones, and turn with them.
        yield (f"{prefix}out_proj.weight", f"{prefix}bias_k", f"{prefix}bias_v")
        return
    if isinstance(model, VisionTransformer):
        stream = residual_stream(model)
        if f"{prefix}weight" in stream:
            yield stream
    if isinstance(own, nn.Linear | _ConvNd):
        flow = trace(model)
        readers = flow.readers.get(f"{prefix}weight", ()) if flow else ()
        norms = {name: model.get_submodule(name) for name in readers}
        if norms and all(is_normalisation(norm) and norm.weight is not None for norm in norms.values()):
            means = [f"{name}.running_mean" for name, norm in norms.items() if has_running_mean(norm)]
            yield (*(f"{name}.weight" for name in norms), *means)


def _tensors(model: nn.Module, module: str) -> list[str]:
    return [f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters(recurse=False)]


def _order(model: nn.Module) -> list[str]:
    return [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]


def _double(value: object, device: torch.device) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, torch.float64) if value.is_floating_point() else value.to(device)
