"""Root data: what all clients' slices are cut from, held once and never copied per client."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

__all__ = ["DatasetSamples", "Samples", "TensorSamples", "as_samples", "batch_count"]


class Samples(Protocol):
    """Labelled samples that can be gathered by index."""

    @property
    def labels(self) -> Tensor:
        """Class of every sample, shape ``(N,)``, int64."""
        ...

    def inputs(self, indices: Tensor, rng: Generator | None) -> Tensor:
        """Network inputs of the samples at ``indices`` (n,), shape ``(n, ...)``, on the CPU.

        With ``rng`` they are augmented for training, every draw from it; without, they are as at test time.
        """
        ...


@dataclass(frozen=True, eq=False)
class TensorSamples:
    """Samples that lie in one tensor, for example all images of a data set.

    Attributes:
        values: ``(N, ...)``. Bytes (uint8) become floats in [0, 1] when they are gathered, never before, so that
            memory holds a quarter of what floats would take.
        labels: ``(N,)``, int64.
        mean, std: subtracted and divided by, after that; 0 and 1 leave the values as they are.
        augment: for training batches: ``(values (n, ...), rng) -> (n, ...)``, after scaling and before
            normalisation.
    """

    values: Tensor
    labels: Tensor
    mean: float = 0.0
    std: float = 1.0
    augment: Callable[[Tensor, Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.values) != len(self.labels):
            raise ValueError(f"{len(self.values)} samples but {len(self.labels)} labels")

    def inputs(self, indices: Tensor, rng: Generator | None) -> Tensor:
        """See `Samples.inputs`."""
        x = self.values[indices]
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        if self.augment is not None and rng is not None:
            x = self.augment(x, rng)
        if self.mean != 0.0 or self.std != 1.0:
            x = (x - self.mean) / self.std
        return x


class DatasetSamples:
    """Samples of a map-style ``torch.utils.data.Dataset`` whose items are ``(input, label)``, read one by one.

    Random transforms inside the data set draw from the global generators (Python's, NumPy's, torch's), which
    are seeded per round and client while a client works: they are reproducible too. They act at test time as well:
    to score without augmentation, implement `Samples`, or use `TensorSamples.augment`.
    """

    def __init__(self, dataset: Any) -> None:
        if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"{type(dataset).__name__} is no map-style data set: it needs __len__ and __getitem__")
        self._dataset = dataset
        # torchvision's name; saves decoding every image. A target transform would make them others.
        found = None if getattr(dataset, "target_transform", None) else getattr(dataset, "targets", None)
        if found is None:
            found = [int(dataset[index][1]) for index in range(len(dataset))]
        self.labels = torch.as_tensor(found, dtype=torch.int64)

    def inputs(self, indices: Tensor, rng: Generator | None) -> Tensor:
        """See `Samples.inputs`."""
        return torch.stack([torch.as_tensor(self._dataset[int(index)][0]) for index in indices])


def as_samples(data: Any) -> Samples:
    """Samples of what the user has: `Samples`, tensors or arrays ``(inputs, labels)``, or a map-style data set."""
    if hasattr(data, "inputs") and hasattr(data, "labels"):
        samples: Samples = data
        return samples
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        return TensorSamples(torch.as_tensor(data[0]), _classes(torch.as_tensor(data[1])))
    if isinstance(data, Tensor):
        raise TypeError("a tensor alone has no labels: give (inputs, labels)")
    return DatasetSamples(data)


def _classes(labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels are whole numbers, one a sample, not {labels.dtype} of shape {tuple(labels.shape)}")
    return labels.to(torch.int64)


def batch_count(samples: int, size: int) -> int:
    """Batches of ``size`` in an epoch; a last one of a single sample is merged into the one before it."""
    if size < 1:
        raise ValueError(f"a batch holds at least one sample, not {size}")
    full, left = divmod(samples, size)
    alone = left == 1 and size > 1 and full > 0
    return full + (left > 0 and not alone)
