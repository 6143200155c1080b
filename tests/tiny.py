"""A small experiment that tests run; each says only what it has otherwise."""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomli_w

from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import load
from fedunlearn.tomlfile import Document

TINY = """
title = "Tiny"
seeds = [3]
[data]
name = "digits"
clients = 4
samples = 40
[model]
name = "layernorm-cnn"
options = { channels = [4, 8], kernel = 3 }
[training]
rounds = 2
optimizer = { kind = "SGD", lr = 0.05 }
[request]
kind = "Client"
client = "0"
[recovery]
rounds = 1
"""


def tiny_text(*overrides: str) -> str:
    """The experiment's file with other values, such as ``data.samples=100``."""
    document = Document(tomllib.loads(TINY), "tiny.toml", {})
    for assignment in overrides:
        document = document.overridden(assignment)
    return tomli_w.dumps(document.table)


def load_tiny(folder: Path, *overrides: str) -> Experiment:
    """The experiment with other values; its file is ``tiny.toml`` in ``folder``."""
    path = folder / "tiny.toml"
    path.write_text(tiny_text(*overrides))
    return load(path)
