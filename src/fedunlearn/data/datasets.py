"""Data sets by name, and the user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedunlearn.data import idx
from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.importing import load_object, unknown
from fedunlearn.samples import Samples, SteppedSamples, TensorSamples, as_samples

__all__ = ["NAMES", "DataMissing", "DataSet", "download", "load"]

NAMES = ("digits", "fashion-mnist")

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CACHE = Path("~/.cache/fedunlearn")
_TORCHVISION = Path("FashionMNIST/raw")  # where, below its root, torchvision puts the files

_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class DataMissing(FileNotFoundError):
    """A data set is not on this machine; the message names the ways to get it."""


@dataclass(frozen=True)
class DataSet:
    """A classification task.

    Attributes:
        name: as given to `load`.
        train, test: samples, of which ``train`` is to be dealt out to the clients.
        classes: their number; labels are 0 .. classes - 1.
        shape: of one input, without the batch dimension; (channels, height, width) for images.
    """

    name: str
    train: Samples
    test: Samples
    classes: int
    shape: tuple[int, ...]


def load(name: str, data_dir: Path | None = None, images: Cropped | Flipped | None = None) -> DataSet:
    """Load a data set.

    Args:
        name: one of these.

            - ``digits``: scikit-learn's 1797 grey images of 8x8, in [0, 1]; a fixed stratified fifth is the
              test set.
            - ``fashion-mnist``: 60,000 + 10,000 grey images of 28x28 (Xiao et al. 2017), kept as bytes,
              normalised by the training set's mean 0.2860 and standard deviation 0.3530 when they are
              gathered.
            - ``package.module:function``: a function of yours, called without arguments. It returns a
              `DataSet`, or a pair (train, test) of whatever `fedunlearn.samples.as_samples` takes.
        data_dir: where Fashion-MNIST's four ``*-ubyte`` files lie, gzipped or not, or the root that
            torchvision downloaded them to. By default: where Debian's package puts them, else torchvision's
            root ``./data``, else ``~/.cache/fedunlearn``.
        images: how images become inputs; None: as they are.

    Raises:
        DataMissing: the files are not there.
        ValueError: the name is unknown, or the files or the function's data are not what they should be, or are no
            images that could be laid out.
        ImportError: there is no such function.
    """
    if name == "digits":
        found = _digits()
    elif name == "fashion-mnist":
        found = _fashion_mnist(data_dir)
    elif ":" in name:
        found = _own(name)
    else:
        raise unknown("data set", name, NAMES)
    return found if images is None else _seen(found, images)


def download(name: str, data_dir: Path | None = None) -> None:
    """Let torchvision fetch a data set, which `load` then finds.

    Args:
        name: ``fashion-mnist``; the others come with the program that makes them.
        data_dir: the root to put it under, to be given to `load` too; ``~/.cache/fedunlearn`` by default.

    Raises:
        ValueError: there is nothing to fetch for this name.
    """
    if name != "fashion-mnist":
        raise ValueError(f"there is nothing to download for {name!r}: only fashion-mnist is fetched")
    from torchvision.datasets import FashionMNIST

    FashionMNIST(data_dir or _CACHE.expanduser(), download=True)


def _digits() -> DataSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    values = torch.from_numpy(images).float().div_(16).reshape(-1, 1, 8, 8)
    classes = torch.from_numpy(labels).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return DataSet(
        "digits",
        TensorSamples(values[train], classes[train]),
        TensorSamples(values[test], classes[test]),
        classes=10,
        shape=(1, 8, 8),
    )


def _fashion_mnist(data_dir: Path | None) -> DataSet:
    roots = [data_dir] if data_dir else [_DEBIAN, Path("data"), _CACHE.expanduser()]
    places = [place for root in roots for place in (root, root / _TORCHVISION)]
    for place in places:
        found = [_plain_or_gzipped(place / f"{part}-ubyte") for part in _PARTS]
        files = [path for path in found if path is not None]
        if len(files) == len(_PARTS):
            train, test = _images(*files[:2]), _images(*files[2:])
            return DataSet("fashion-mnist", train, test, classes=10, shape=(1, 28, 28))
    raise DataMissing(
        f"Fashion-MNIST's four *-ubyte files are not in {', '.join(map(str, places))}: "
        "run `apt-get install dataset-fashion-mnist`, or name their directory with --data-dir, "
        "or let torchvision fetch them with --download (in Python: fedunlearn.data.datasets.download('fashion-mnist'))"
    )


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _images(images: Path, labels: Path) -> TensorSamples:
    values, classes = idx.read(images), idx.read(labels)
    if values.shape[1:] != (28, 28) or classes.shape != values.shape[:1]:
        raise ValueError(
            f"{images} and {labels} are not Fashion-MNIST's: "
            f"they have shapes {tuple(values.shape)} and {tuple(classes.shape)}"
        )
    return TensorSamples(values.unsqueeze(1), classes.long(), mean=0.2860, std=0.3530)


def _seen(data: DataSet, images: Cropped | Flipped) -> DataSet:
    """The same images as the network is to see them."""
    train, test = data.train, data.test
    if len(data.shape) != 3 or not isinstance(train, SteppedSamples) or not isinstance(test, SteppedSamples):
        raise ValueError(
            f"data.images is for images that are held as a tensor (N, channels, height, width), which {data.name}'s "
            "are not: leave it out, and let the data set do it"
        )
    return replace(
        data,
        train=replace(train, geometry=images),
        test=replace(test, geometry=images),
        shape=images.shape(data.shape),
    )


def _own(name: str) -> DataSet:
    try:
        made = load_object(name)()
    except TypeError as error:
        raise ValueError(f"{name} must work without arguments: {error}") from error
    except (ImportError, OSError, ValueError):
        raise  # these tell what to do
    except Exception as error:
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, DataSet):
        return made
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise ValueError(f"{name} must return a pair (train, test) or a DataSet, not {type(made).__name__}")
    try:
        train, test = as_samples(made[0]), as_samples(made[1])
    except TypeError as error:
        raise ValueError(f"{name} must return data sets: {error}") from error
    labels = torch.cat([train.labels, test.labels])
    if len(train.labels) == 0 or len(test.labels) == 0 or labels.min() < 0:
        raise ValueError(f"{name} must return training and test samples with labels 0, 1, ...")
    shape = tuple(train.inputs(torch.tensor([0]), None, torch.device("cpu")).shape[1:])
    return DataSet(name, train, test, classes=int(labels.max()) + 1, shape=shape)
