"""What kind of layer a parameter belongs to, read from its module's type."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedunlearn.names import Kind

__all__ = ["LAYER_KINDS", "has_running_mean", "is_normalisation", "kind_of", "rows_are_outputs"]

LAYER_KINDS: frozenset[Kind] = frozenset({"convolution", "linear", "attention", "embedding", "recurrent"})
"""The kinds that transform their input: what the paper calls a layer."""

_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_KINDS: tuple[tuple[Kind, tuple[type[nn.Module], ...]], ...] = (
    ("convolution", (_ConvNd,)),
    ("linear", (nn.Linear, nn.Bilinear)),
    ("attention", (nn.MultiheadAttention,)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
)


def kind_of(module: nn.Module, attribute: str, parameter: Tensor) -> Kind:
    """The kind of ``module.attribute``; the bias of a normalisation counts as a normalisation.

    A module of the user's own is a normalisation if its class is called so and the parameter is a vector.
    """
    if is_normalisation(module) or ("norm" in type(module).__name__.lower() and parameter.ndim == 1):
        return "normalisation"
    if attribute == "bias" or attribute.startswith("bias_") or attribute.endswith("_bias"):
        return "bias"
    for kind, types in _KINDS:
        if isinstance(module, types):
            return kind
    return "token" if "token" in attribute or "emb" in attribute else "other"


def is_normalisation(module: nn.Module) -> bool:
    """Whether the module is one of torch's normalisations."""
    return isinstance(module, _NORMALISATIONS)


def has_running_mean(module: nn.Module) -> bool:
    """Whether the module keeps the mean of what it saw (BatchNorm, and InstanceNorm if asked to)."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def rows_are_outputs(module: nn.Module) -> bool:
    """Whether dimension 0 of the weight numbers output channels; in a transposed convolution it does not."""
    return isinstance(module, (nn.Linear, _ConvNd)) and not isinstance(module, _ConvTransposeNd)
