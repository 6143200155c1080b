"""Root data: what all clients' slices are cut from, held once and never copied per client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

__all__ = [
    "DatasetSamples",
    "Geometry",
    "Samples",
    "SteppedSamples",
    "TensorSamples",
    "as_samples",
    "batch_count",
    "scaled",
]


Geometry = Callable[[Any, Generator | None], Tensor]
"""Where in an input its values stand, such as `fedunlearn.data.images.Flipped`: ``(values (n, ...), rng) -> (n, ...)``.

With ``rng`` it augments for training, every draw from it and on the CPU, so that all devices see the same; without, it
does as at test time. Values of different shapes come as a list of tensors.
"""


class Samples(Protocol):
    """Labelled samples that can be gathered by index."""

    @property
    def labels(self) -> Tensor:
        """Class of every sample, shape ``(N,)``, int64."""
        ...

    def inputs(self, indices: Tensor, rng: Generator | None, device: torch.device) -> Tensor:
        """Network inputs of the samples at ``indices`` (n,), shape ``(n, ...)``, on ``device``.

        With ``rng``, a generator of the CPU, they are augmented for training, every draw from it; without, they are as
        at test time.
        """
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class SteppedSamples(ABC):
    """Samples that become inputs step by step: values, then where they stand, then normalisation.

    Each step is done per batch, on the device that the batch is for, and nothing of it is kept: memory holds bytes,
    where floats would take four times as much, and CIFAR at 256x256 pixels sixty-four times as much again.

    Attributes:
        mean, std: subtracted and divided by, at last: for all values alike, or of each channel of images ``(n, c, h,
            w)``; 0 and 1 leave the values as they are.
        geometry: where values stand; None: where they are.
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    geometry: Geometry | None = None

    @abstractmethod
    def values_at(self, indices: Tensor, device: torch.device) -> Tensor | list[Tensor]:
        """Values of the samples at ``indices`` on ``device``: bytes of images have become floats in [0, 1]."""

    def shown(self, indices: Tensor, rng: Generator | None, device: torch.device) -> Tensor:
        """What `inputs` gives, before normalisation: images in [0, 1], as they will be seen."""
        values = self.values_at(indices, device)
        if self.geometry is not None:
            return self.geometry(values, rng)
        return values if isinstance(values, Tensor) else torch.stack(values)

    def normalised(self, x: Tensor) -> Tensor:
        """What `shown` gives, as the network is to have it."""
        if self.mean == 0.0 and self.std == 1.0:
            return x
        return (x - _spread(self.mean, x)) / _spread(self.std, x)

    def inputs(self, indices: Tensor, rng: Generator | None, device: torch.device) -> Tensor:
        """See `Samples.inputs`."""
        return self.normalised(self.shown(indices, rng, device))


@dataclass(frozen=True, eq=False)
class TensorSamples(SteppedSamples):
    """Samples that lie in one tensor, for example all images of a data set.

    Attributes:
        values: ``(N, ...)``. Bytes (uint8) become floats in [0, 1] when they are gathered, never before.
        labels: ``(N,)``, int64.
        mean, std, geometry: see `SteppedSamples`.
    """

    values: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.values) != len(self.labels):
            raise ValueError(f"{len(self.values)} samples but {len(self.labels)} labels")

    def values_at(self, indices: Tensor, device: torch.device) -> Tensor:
        """See `SteppedSamples.values_at`."""
        return scaled(self.values[indices].to(device))


class DatasetSamples:
    """Samples of a map-style ``torch.utils.data.Dataset`` whose items are ``(input, label)``, read one by one.

    Random transforms inside the data set draw from the global generators (Python's, NumPy's, torch's), which
    are seeded per round and client while a client works: they are reproducible too. They act at test time as well:
    to score without augmentation, implement `Samples`, or use `TensorSamples.geometry`.
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

    def inputs(self, indices: Tensor, rng: Generator | None, device: torch.device) -> Tensor:
        """See `Samples.inputs`."""
        return torch.stack([torch.as_tensor(self._dataset[int(index)][0]) for index in indices]).to(device)


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


def scaled(values: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; other values as they are."""
    return values.float().div_(255) if values.dtype == torch.uint8 else values


def _spread(value: float | tuple[float, ...], x: Tensor) -> float | Tensor:
    """One number, or one of each channel of ``x`` (n, c, h, w)."""
    return torch.tensor(value, device=x.device).reshape(-1, 1, 1) if isinstance(value, tuple) else value


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
