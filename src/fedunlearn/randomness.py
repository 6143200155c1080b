"""Seeds that depend on what is drawn and for whom, never on who draws first."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["generator", "seeded", "stable_seed", "stable_seeds"]


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from the text of ``parts``: the same on every machine and in every process.

    ``hash()`` is not: Python salts it anew in each process.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stable_seeds(before: Sequence[object], each: Iterable[object], after: Sequence[object]) -> Iterator[int]:
    """``stable_seed(*before, one, *after)`` for one after another, of which what comes first is hashed once."""
    begun = hashlib.blake2b("".join(f"{part}\x1f" for part in before).encode(), digest_size=8)
    end = "".join(f"\x1f{part}" for part in after)
    for one in each:
        digest = begun.copy()
        digest.update(f"{one}{end}".encode())
        yield int.from_bytes(digest.digest(), "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `stable_seed`."""
    return torch.Generator().manual_seed(stable_seed(*parts))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed every global generator (Python's, NumPy's, torch's on the CPU and on ``device``), restore them after."""
    python, numpy = random.getstate(), np.random.get_state()
    accelerators = [device] if device is not None and device.type != "cpu" else []
    with torch.random.fork_rng(
        [d.index or 0 for d in accelerators], device_type=accelerators[0].type if accelerators else "cuda"
    ):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if device is not None and device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # no accelerator's, which would not be restored
        else:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
