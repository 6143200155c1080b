"""How a layer is written down: rows of a layer table, and the names, globs and slices that pick from it.

Nothing here needs torch: a checkpoint file, a module and `Weights` are all read through the same names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

__all__ = ["Kind", "Layer", "LayerError", "Part", "bias_of", "guess_kinds", "pick", "spans"]

Kind = Literal[
    "convolution",
    "linear",
    "attention",
    "embedding",
    "recurrent",
    "normalisation",
    "bias",
    "token",
    "buffer",
    "other",
]

SIGNED = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
}
"""The dtypes that can be negated exactly, with their bytes per element."""

NO_NEGATIVE_ZERO = frozenset({"float8_e4m3fnuz", "float8_e5m2fnuz"})
"""The dtypes whose sign bit alone, 0x80, means NaN and not -0."""

_WRITTEN = re.compile(r"(?P<name>[^\[\]]+)(\[((?P<third>[qkv])|(?P<start>\d*):(?P<stop>\d*))\])?")
_NORMALISATION = re.compile(r"norm|(^|_)(bn|ln)(_|\d|$)", re.IGNORECASE)
_COMPUTED = re.compile(r"(?P<module>.+?)\.(parametrizations\..+|weight_(g|v|orig))")
_EMBEDDING = re.compile(r"emb|^wte$|^wpe$", re.IGNORECASE)


class LayerError(ValueError):
    """A layer was named that is not there, or that cannot be negated."""


@dataclass(frozen=True)
class Layer:
    """One tensor of a network.

    ``index`` is the paper's (its place in ``model.parameters()``), or the place in a file; ``dtype`` is
    torch's name without the prefix, such as ``float32``.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind


@dataclass(frozen=True)
class Part:
    """A whole tensor (``rows`` is None), or its rows ``start <= i < stop`` along dimension 0."""

    name: str
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.name if self.rows is None else f"{self.name}[{self.rows[0]}:{self.rows[1]}]"


def pick(
    written: str | Sequence[str],
    layers: Sequence[Layer],
    *,
    aliases: Mapping[str, str] | None = None,
    include_bias: bool = False,
    source: str = "the network",
) -> tuple[Part, ...]:
    """The parts of ``layers`` that are meant, in their order, each row once.

    What may be written, with or without the prefix of a DataParallel or ``torch.compile`` wrapper:

    * a tensor: ``conv1.weight``;
    * a module: ``conv1`` is its weight, an attention is its ``in_proj_weight``;
    * a glob: ``encoder.layers.*.mlp.0``. ``*`` crosses dots. It picks modules, or, if it fits none, tensors;
      never normalisations, for negating one together with its convolution does nothing;
    * rows of any of these: ``conv1[0:32]``, and ``in_proj_weight[q]``, ``[k]`` and ``[v]``, which are its
      thirds.

    Args:
        written: what to pick: one text or several.
        layers: the table to pick from.
        aliases: other names of tied tensors -> the name in ``layers``.
        include_bias: whether a weight brings its module's bias, with the same rows.
        source: how an error calls what was searched.

    Raises:
        LayerError: nothing was written, something was written wrongly, or a picked tensor has no sign.
    """
    if len(written) == 0:
        raise LayerError("no layer is selected: name at least one")
    table = _Table(layers, aliases or {}, source)
    chosen: dict[str, list[range]] = {}
    for text in [written] if isinstance(written, str) else written:
        if not isinstance(text, str):
            raise LayerError(f"{text!r} is no layer name: write names, or use negate_layers for parameter indices")
        for name, rows in table.find(text):
            chosen.setdefault(name, []).append(rows)
            bias = table.bias(name) if include_bias else None
            if bias is not None:
                chosen.setdefault(bias, []).append(table.bias_rows(name, rows, bias))
    parts: list[Part] = []
    for layer in layers:
        if layer.name in chosen:
            _require_sign(layer)
            for span in spans(chosen[layer.name]):
                parts.append(Part(layer.name, None if span == (0, _length(layer)) else span))
    return tuple(parts)


def spans(ranges: Iterable[range]) -> list[tuple[int, int]]:
    """Ranges of rows merged, as (start, stop) in order: 5-7, 0-3 and 2-4 -> ``[(0, 4), (5, 7)]``."""
    merged: list[tuple[int, int]] = []
    for rows in sorted(ranges, key=lambda rows: rows.start):
        if merged and rows.start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], rows.stop))
        else:
            merged.append((rows.start, rows.stop))
    return merged


def bias_of(weight: str) -> str | None:
    """The name of the bias beside a weight (``in_proj_weight`` -> ``in_proj_bias``); None: not a weight."""
    module, dot, attribute = weight.rpartition(".")
    return module + dot + attribute.replace("weight", "bias") if "weight" in attribute else None


def guess_kinds(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Kind]:
    """What each named tensor probably is, from names and shapes alone: there is no module to ask."""
    return {name: _guess(name, shape, shapes) for name, shape in shapes.items()}


class _Table:
    """The names under which the tensors of ``layers`` are found."""

    def __init__(self, layers: Sequence[Layer], aliases: Mapping[str, str], source: str) -> None:
        self.source = source
        self.layers = {layer.name: layer for layer in layers}
        tensors = {**{name: name for name in self.layers}, **aliases}
        modules = {
            name.rpartition(".")[0]: target
            for name, target in tensors.items()
            if name.rpartition(".")[2] in ("weight", "in_proj_weight")
        }
        matches = map(_COMPUTED.fullmatch, tensors)
        self.computed = {match["module"]: match[0] for match in matches if match}
        # Keyed without wrappers' prefixes, unless the network itself has both "conv1" and "module.conv1".
        self.plain: Callable[[str], str] = _unwrapped if len(set(map(_unwrapped, tensors))) == len(tensors) else str
        self.tensors = {self.plain(name): target for name, target in tensors.items()}
        self.modules = {self.plain(name): target for name, target in modules.items()}

    def find(self, text: str) -> list[tuple[str, range]]:
        """The tensors that one text means, each with its rows."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise LayerError(f"{text!r} is no layer name: write conv1, conv1[0:32], or in_proj_weight[q]")
        name = self.plain(match["name"])
        targets = self._glob(name) if "*" in name or "?" in name else [self._named(name)]
        return [(target, self._rows(text, match, self.layers[target])) for target in targets]

    def bias(self, weight: str) -> str | None:
        """The bias that belongs to a weight, if there is one."""
        return self.tensors.get(self.plain(bias_of(weight) or ""))

    def bias_rows(self, weight: str, rows: range, bias: str) -> range:
        """The rows of the bias that go with these rows of the weight."""
        length = _length(self.layers[bias])
        if len(rows) == _length(self.layers[weight]):
            return range(length)
        if length != _length(self.layers[weight]):
            raise LayerError(f"the rows of {weight} are no outputs, so {bias} has none to match: name it apart")
        return rows

    def _named(self, name: str) -> str:
        target = self.tensors.get(name) or self.modules.get(name)
        if target is not None:
            return target
        inside = [other for other in self.tensors if other.startswith(f"{name}.")]
        if inside:
            modules = [other for other in self.modules if other.startswith(f"{name}.") and self._negates(other)]
            raise LayerError(f"{name!r} has no weight of its own: name what lies in it, {_some(modules or inside)}")
        known = [*self.modules, *self.tensors]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {_some(close)}?" if close else f"it has {_some(known)}"
        raise LayerError(f"{self.source} has no layer {name!r}: {hint}")

    def _glob(self, glob: str) -> list[str]:
        for module, tensor in self.computed.items():
            if fnmatchcase(self.plain(module), glob):
                raise LayerError(f"{glob!r} fits {module}, whose weight is computed: name {tensor} or leave it out")
        modules = [self.modules[n] for n in self.modules if fnmatchcase(n, glob) and self._negates(n)]
        tensors = [t for n, t in self.tensors.items() if fnmatchcase(n, glob) and self._negates(n)]
        if not (modules or tensors):
            raise LayerError(
                f"{glob!r} fits no layer of {self.source} (a normalisation must be named in full): "
                f"it has {_some(n for n in self.modules if self._negates(n))}"
            )
        return list(dict.fromkeys(modules or tensors))

    def _negates(self, name: str) -> bool:
        layer = self.layers[self.modules.get(name) or self.tensors[name]]
        return layer.kind not in ("normalisation", "buffer")

    def _rows(self, text: str, match: re.Match[str], layer: Layer) -> range:
        length = _length(layer)
        if match["third"]:
            if not layer.name.endswith(("in_proj_weight", "in_proj_bias")):
                raise LayerError(f"{text!r}: only in_proj_weight and in_proj_bias have q, k and v; name rows")
            third = length // 3
            start = "qkv".index(match["third"]) * third
            return range(start, start + third)
        if match["start"] is None:
            return range(length)
        start, stop = int(match["start"] or 0), int(match["stop"] or length)
        if not (layer.shape and start < stop <= length):
            raise LayerError(f"{text!r}: {layer.name} has shape {layer.shape}, there are no such rows")
        return range(start, stop)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod").removeprefix("module.")


def _length(layer: Layer) -> int:
    return layer.shape[0] if layer.shape else 1


def _some(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _require_sign(layer: Layer) -> None:
    if layer.dtype not in SIGNED:
        raise LayerError(
            f"{layer.name} is {layer.dtype}: only floating-point tensors with a sign can be negated, "
            "so dequantise the network first or name another layer"
        )


def _guess(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Kind:
    module, dot, attribute = name.rpartition(".")
    parent = module.rpartition(".")[2]
    if attribute in ("running_mean", "running_var", "num_batches_tracked"):
        return "buffer"
    if "token" in attribute or _EMBEDDING.search(attribute):
        return "token"
    if attribute == "bias" and len(shapes.get(module + dot + "weight", (0, 0))) == 1:
        return "normalisation"
    if _NORMALISATION.search(parent) or (attribute == "weight" and len(shape) <= 1):
        return "normalisation"
    if "bias" in attribute:
        return "bias"
    if attribute.startswith(("weight_ih", "weight_hh")):
        return "recurrent"
    if attribute.endswith("proj_weight"):
        return "attention"
    if attribute != "weight":
        return "other"
    if _EMBEDDING.search(parent):
        return "embedding"
    return "convolution" if len(shape) > 2 else "linear"
