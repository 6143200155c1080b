"""The layer poset: which layer comes before which, chains of layers, and sets that every chain meets once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from fedunlearn.layers import First, Layer, Selection
from fedunlearn.layers import layers as layers_of
from fedunlearn.names import pick
from fedunlearn.theory.graph import Graph, graph_of
from fedunlearn.weights import unwrap

__all__ = ["Hits", "LayerPoset", "Ordered", "Verdict"]


@dataclass(frozen=True)
class Hits:
    """How many chains, or paths, meet a set of layers not at all, once, and more than once."""

    none: int
    once: int
    more: int

    @property
    def all_once(self) -> bool:
        """Whether every one meets the set exactly once."""
        return self.none == self.more == 0


@dataclass(frozen=True)
class Verdict:
    """What a set of layers is in the poset, as the theorems ask.

    Attributes:
        layers: the set.
        antichain: no two of them are comparable.
        maximal: those of them that no layer comes after; Theorem 7 wants none.
        chains: how many maximal chains of the order meet the set, and how often.
        paths: the same of the network's paths from input to output.
    """

    layers: tuple[str, ...]
    antichain: bool
    maximal: tuple[str, ...]
    chains: Hits
    paths: Hits

    @property
    def cauchy(self) -> bool:
        """Whether it is a Cauchy domain as the paper defines it: by the order."""
        return self.chains.all_once

    @property
    def cauchy_by_paths(self) -> bool:
        """Whether it is one by paths, so that the network factorises through the set's outputs."""
        return self.paths.all_once


@dataclass(frozen=True)
class Ordered:
    """What there is to say of a network's layers and of some sets of them, as it can be kept.

    Attributes:
        layers: in the order in which they run.
        covers: pairs of a layer and one that comes next (Hasse diagram).
        heights: of each layer, the layers of the longest chain that ends with it.
        minimal, maximal: layers that none comes before, or after.
        length, chains, paths: see `LayerPoset`.
        verdicts: on each set, that of the negated layers first.
    """

    layers: tuple[str, ...]
    covers: tuple[tuple[str, str], ...]
    heights: Mapping[str, int]
    minimal: tuple[str, ...]
    maximal: tuple[str, ...]
    length: int
    chains: int
    paths: int
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class LayerPoset:
    """The layers of a network, ordered by who reads whose output (supplement 12.3).

    a < b where a path of the network leads from a to b. The paper's Cauchy domains and its Lemma 5 count maximal
    chains of this order, but the order does not see that a skip connection goes around a layer: in ``x + W x`` the one
    layer is the only maximal chain, though the network does not factorise through it. So all that is counted is
    counted twice here, along chains and along the paths of the graph; proofs that write the network as a composition
    need the latter.

    Layers that share their weight (a module that is called on two inputs) are one element, as long as no path meets it
    twice.

    Args:
        graph: of the network.
        table: the network's tensors (`fedunlearn.layers.layers`), by which layers can be named.

    Raises:
        ValueError: the graph has no layer, or the layers that share their weights cannot be ordered.
    """

    graph: Graph
    table: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no poset."""
        if not self.layers:
            raise ValueError("the network has no layer: there is no convolution and no matrix that reads its input")
        for bit, layer in enumerate(self.layers):
            if self._below[bit] >> bit & 1:
                raise ValueError(
                    f"{layer} runs again on what was made of its own output, so the layers have no order: give the "
                    "second call a module of its own"
                )

    @classmethod
    def of(cls, model: nn.Module, example: Tensor | tuple[object, ...], *, constants: bool = False) -> LayerPoset:
        """The poset of a network; arguments and errors: `graph_of`'s, and the class's."""
        return cls(graph_of(model, example, constants=constants), tuple(layers_of(unwrap(model))))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The elements, in the order in which they run."""
        return self.graph.layers

    @cached_property
    def _bits(self) -> dict[str, int]:
        return {layer: bit for bit, layer in enumerate(self.layers)}

    @cached_property
    def _below(self) -> tuple[int, ...]:
        """For each layer, those before it, a bit each."""
        found = [0] * len(self.layers)
        met: list[int] = []  # by node: the layers on the paths to it, its own with them
        for node in self.graph.nodes:
            before = 0
            for source in node.inputs:
                before |= met[source]
            if node.layer:
                bit = self._bits[node.layer]
                found[bit] |= before
                before |= 1 << bit
            met.append(before)
        shared = sum(1 for node in self.graph.nodes if node.layer) > len(found)
        return tuple(_closed(found) if shared else found)

    @cached_property
    def _covered(self) -> tuple[int, ...]:
        """For each layer, those before it with none between."""
        return tuple(_covers(self._below))

    @cached_property
    def _maximal(self) -> int:
        below = 0
        for bits in self._below:
            below |= bits
        return ~below & ((1 << len(self.layers)) - 1)

    @cached_property
    def _in_order(self) -> tuple[int, ...]:
        """Each layer after those below it; of shared ones, the first call may come before some of them."""
        return tuple(sorted(range(len(self.layers)), key=lambda bit: self._below[bit].bit_count()))

    def less(self, a: str, b: str) -> bool:
        """Whether a < b: a path leads from a to b. Two layers, each named as in `select`."""
        return bool(self._below[self._bits[self.one(b)]] >> self._bits[self.one(a)] & 1)

    @cached_property
    def covers(self) -> tuple[tuple[str, str], ...]:
        """The pairs a < b with no layer between: the lines of the Hasse diagram."""
        return tuple(
            (self.layers[lower], layer)
            for bit, layer in enumerate(self.layers)
            for lower in _members(self._covered[bit])
        )

    @cached_property
    def minimal(self) -> tuple[str, ...]:
        """The layers that no layer comes before."""
        return tuple(layer for layer, below in zip(self.layers, self._below, strict=True) if not below)

    @cached_property
    def maximal(self) -> tuple[str, ...]:
        """The layers that no layer comes after."""
        return self._named(self._maximal)

    @cached_property
    def heights(self) -> dict[str, int]:
        """For each layer, the number of layers of the longest chain that ends in it, itself with them."""
        height: dict[int, int] = {}
        for bit in self._in_order:
            height[bit] = 1 + max((height[lower] for lower in _members(self._covered[bit])), default=0)
        return {layer: height[bit] for bit, layer in enumerate(self.layers)}

    @property
    def length(self) -> int:
        """The number of layers of the longest chain (Definition 5, equation 41).

        It is also the largest number of layers on a path, where no weights are shared: the paths between the members
        of a chain join to one.
        """
        return max(self.heights.values())

    @cached_property
    def chains(self) -> int:
        """Lambda, which the paper calls the diameter: the number of maximal chains (equation 42)."""
        found = self._hits_of_chains(0)
        return found.none + found.once + found.more

    @cached_property
    def paths(self) -> int:
        """The number of paths from the network's inputs to its outputs: Lambda as the proof of Lemma 5 needs it."""
        return self.graph.path_count()

    def select(self, layers: Selection) -> tuple[str, ...]:
        """The layers that are meant, in the order in which they run.

        Args:
            layers: `fedunlearn.layers.FIRST`, or names as `fedunlearn.names.pick` reads them: of a layer, of its
                weight, globs.

        Raises:
            ValueError: something was named that is no layer, or only rows of one.
        """
        if isinstance(layers, First):
            constants = {node.layer for node in self.graph.nodes if node.op == "parameter"}
            return (next(layer for layer in self.layers if layer not in constants),)
        chosen: set[str] = set()
        for text in [layers] if isinstance(layers, str) else layers:
            chosen |= {text} if text in self._bits else self._picked(text)
        if not chosen:
            raise ValueError("no layer is selected: name at least one")
        return tuple(layer for layer in self.layers if layer in chosen)

    def one(self, layer: str) -> str:
        """The one layer that is meant, named as in `select`; a ValueError if there are several."""
        chosen = self.select(layer)
        if len(chosen) > 1:
            raise ValueError(f"{layer!r} means {len(chosen)} layers, among them {chosen[0]} and {chosen[1]}: name one")
        return chosen[0]

    def above(self, layers: Selection) -> tuple[str, ...]:
        """The layers that come after at least one of these."""
        chosen = self._mask(layers)
        return tuple(layer for layer, below in zip(self.layers, self._below, strict=True) if below & chosen)

    def below(self, layers: Selection) -> tuple[str, ...]:
        """The layers that come before at least one of these."""
        found = 0
        for bit in _members(self._mask(layers)):
            found |= self._below[bit]
        return self._named(found)

    def within(self, layers: Selection) -> tuple[int, int]:
        """Lambda and length of the poset that these layers are among themselves."""
        chosen = self._mask(layers)
        covered = _covers([below & chosen for below in self._below])
        members = [bit for bit in self._in_order if chosen >> bit & 1]
        lower = 0
        height: dict[int, int] = {}
        for bit in members:
            lower |= self._below[bit]
            height[bit] = 1 + max((height[other] for other in _members(covered[bit])), default=0)
        found = _hits(members, lambda bit: _members(covered[bit]), lambda bit: True, _members(chosen & ~lower))
        return found.once + found.more, max(height.values())

    def is_antichain(self, layers: Selection) -> bool:
        """Whether no two of these layers are comparable."""
        chosen = self._mask(layers)
        return not any(self._below[bit] & chosen for bit in _members(chosen))

    def is_cauchy(self, layers: Selection) -> bool:
        """Whether every maximal chain of the order meets these layers exactly once: the paper's Cauchy domain."""
        return self._hits_of_chains(self._mask(layers)).all_once

    def is_cauchy_by_paths(self, layers: Selection) -> bool:
        """Whether every path from input to output meets these layers exactly once.

        Then, and not by `is_cauchy` alone, the output is a function of these layers' outputs.
        """
        return self._hits_of_paths(self._mask(layers)).all_once

    def judged(self, negated: Selection, *others: Selection) -> Ordered:
        """All that can be said of the layers, and of sets of them.

        Raises:
            ValueError: something was named that is no layer.
        """
        return Ordered(
            self.layers,
            self.covers,
            self.heights,
            self.minimal,
            self.maximal,
            self.length,
            self.chains,
            self.paths,
            tuple(map(self.verdict, (negated, *others))),
        )

    def verdict(self, layers: Selection) -> Verdict:
        """All that the theorems ask of a set of layers."""
        chosen = self._mask(layers)
        return Verdict(
            self._named(chosen),
            self.is_antichain(layers),
            self._named(chosen & self._maximal),
            self._hits_of_chains(chosen),
            self._hits_of_paths(chosen),
        )

    def _hits_of_chains(self, chosen: int) -> Hits:
        return _hits(
            self._in_order,
            lambda bit: _members(self._covered[bit]),
            lambda bit: bool(chosen >> bit & 1),
            _members(self._maximal),
        )

    def _hits_of_paths(self, chosen: int) -> Hits:
        nodes = self.graph.nodes
        wanted = {self.layers[bit] for bit in _members(chosen)}
        return _hits(
            range(len(nodes)),
            lambda index: nodes[index].inputs,
            lambda index: nodes[index].layer in wanted,
            [len(nodes) - 1],
        )

    def _picked(self, text: str) -> set[str]:
        owners = {weight: node.layer for node in self.graph.nodes for weight in node.weights}
        parts = pick(text, [row for row in self.table if row.name in owners])
        rows = next((part for part in parts if part.rows is not None), None)
        if rows is not None:
            raise ValueError(f"{rows} is a part of a layer, which the order does not know: name the whole layer")
        return {owners[part.name] for part in parts}

    def _mask(self, layers: Selection) -> int:
        return sum(1 << self._bits[layer] for layer in self.select(layers))

    def _named(self, bits: int) -> tuple[str, ...]:
        return tuple(self.layers[bit] for bit in _members(bits))


def _members(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _covers(below: Sequence[int]) -> list[int]:
    """Of all those before each, those with none between."""
    found = []
    for bits in below:
        deeper = 0
        for bit in _members(bits):
            deeper |= below[bit]
        found.append(bits & ~deeper)
    return found


def _closed(below: Sequence[int]) -> list[int]:
    """The transitive closure: shared weights join paths that are apart in the graph."""
    closed = list(below)
    for middle in range(len(closed)):
        for bit, bits in enumerate(closed):
            if bits >> middle & 1:
                closed[bit] |= closed[middle]
    return closed


def _hits(
    order: Iterable[int],
    before: Callable[[int], Iterable[int]],
    is_chosen: Callable[[int], bool],
    ends: Iterable[int],
) -> Hits:
    """Count the ways to the ends by how often they meet what is chosen; whatever has none before it is a start."""
    counts: dict[int, tuple[int, int, int]] = {}
    for one in order:
        ways = [counts[other] for other in before(one)]
        none, once, more = map(sum, zip(*ways, strict=True)) if ways else (1, 0, 0)
        counts[one] = (0, none, once + more) if is_chosen(one) else (none, once, more)
    return Hits(*map(sum, zip(*(counts[end] for end in ends), strict=True)))
