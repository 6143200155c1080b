"""Which bytes of a checkpoint are to be negated, and what it then says of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fedunlearn.checkpoint.errors import CheckpointError
from fedunlearn.checkpoint.found import Checkpoint, Index, Member
from fedunlearn.checkpoint.header import DTYPES, NEGATIONS
from fedunlearn.checkpoint.journal import Stretch
from fedunlearn.names import LayerError, Part, pick

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """A checkpoint, and the parts of it that are to be negated."""

    checkpoint: Checkpoint
    parts: tuple[Part, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parts as they are written."""
        return tuple(map(str, self.parts))

    def stretches(self, member: Member) -> tuple[Stretch, ...]:
        """The bytes of one file that change, in their order; empty tensors have none."""
        tensors = member.header.tensors
        held = [part for part in self.parts if part.name in tensors]
        all_of = [Stretch(*member.header.place(part), DTYPES[tensors[part.name]["dtype"]]) for part in held]
        return tuple(one for one in all_of if one.start < one.stop)

    def header_text(self, member: Member) -> bytes:
        """The header's JSON after the negation; a shard's does not change, for its index tells the history."""
        if self.checkpoint.index is not None:
            return member.header.text
        history = (*self.checkpoint.history, self.names)
        return member.header.telling({**member.header.metadata, NEGATIONS: json.dumps(history)})

    def index_text(self, index: Index) -> str:
        """The index after the negation: from now on it tells what single shards' notes told, too."""
        noted = (entry for member in self.checkpoint.members for entry in member.noted)
        return index.with_history((*index.history, *noted, self.names))


def choose(checkpoint: Checkpoint, layers: str | Sequence[str], include_bias: bool) -> Choice:
    """The parts that are meant.

    Raises:
        CheckpointError: a layer is not there, or has no sign.
    """
    path = checkpoint.path
    name = path.name if checkpoint.index is None else str(path.parent)
    try:
        parts = pick(layers, checkpoint.layers, aliases=checkpoint.aliases, include_bias=include_bias, source=name)
    except LayerError as error:
        raise CheckpointError(str(error)) from error
    return Choice(checkpoint, parts)
