"""Fingerprints of data and of the user's code: what an experiment's names do not say, and decides its bits."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from fedunlearn.data.files import FileSamples
from fedunlearn.importing import load_object
from fedunlearn.randomness import seeded
from fedunlearn.samples import Samples, TensorSamples

__all__ = ["digest_of", "source_of"]

_AT_ONCE = 256  # inputs of a data set that is read one by one


def digest_of(samples: Samples) -> str:
    """Digest of labels and inputs. All are read, as in every round of training."""
    labels, cpu = samples.labels, torch.device("cpu")
    digest = hashlib.blake2b(labels.numpy().tobytes(), digest_size=16)
    if isinstance(samples, TensorSamples):
        digest.update(f"{samples.values.dtype} {samples.values.shape} {samples.mean} {samples.std}".encode())
        parts: Iterable[torch.Tensor] = [samples.values]
    elif isinstance(samples, FileSamples):  # the files say all that decoding them would
        digest.update(f"{samples.mean} {samples.std}".encode())
        for file in samples.files:
            digest.update(hashlib.blake2b(Path(file).read_bytes()).digest())
        parts = ()
    else:
        parts = (samples.inputs(part, None, cpu) for part in torch.split(torch.arange(len(labels)), _AT_ONCE))
    with seeded(0):  # some data sets draw at random
        for part in parts:
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def source_of(name: str) -> str:
    """Digest of the file that ``package.module:name`` stands in, and of all beside it and below that it imports."""
    load_object(name)
    module = name.partition(":")[0]
    files = _imported(module, _home(module), {})
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files.values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _home(module: str) -> Path:
    """Where the user's own code lies: the package, or the folder that a module lies in."""
    file = _file(module.partition(".")[0])
    return file.parent if file else Path("nowhere")


def _imported(module: str, home: Path, found: dict[str, Path]) -> dict[str, Path]:
    """Files of a module and of what it imports, as far as they lie in ``home``; loaded they are all."""
    file = _file(module)
    if module in found or file is None or not file.is_relative_to(home) or "site-packages" in file.parts:
        return found
    found[module] = file
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for imported in names:
            _imported(imported, home, found)
    return found


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None
