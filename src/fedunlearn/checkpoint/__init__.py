"""Checkpoints in the safetensors format: negating those nobody has the model of, and keeping `Weights`.

A negated checkpoint is its source with some sign bits flipped, so that it is streamed: neither the network nor a whole
tensor is ever in memory, and all other bytes are left to the file system to copy, or left where they are. A checkpoint
is a file, a sharded set (``model.safetensors.index.json``), or a folder with either, as Hugging Face's. Pickled
checkpoints (.bin, .pt, .pth) are refused, for loading one runs whatever code is in it.
"""

from __future__ import annotations

from fedunlearn.checkpoint.errors import CheckpointError
from fedunlearn.checkpoint.found import read_layers, read_metadata
from fedunlearn.checkpoint.kept import load_weights, save_weights
from fedunlearn.checkpoint.negating import FileNegation, negate_file, negate_in_place

__all__ = [
    "CheckpointError",
    "FileNegation",
    "load_weights",
    "negate_file",
    "negate_in_place",
    "read_layers",
    "read_metadata",
    "save_weights",
]
