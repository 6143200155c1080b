"""Data sets by name, and the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedunlearn.data import cifar, idx
from fedunlearn.data.files import FileSamples, Listing, listed
from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.importing import load_object, unknown
from fedunlearn.samples import Samples, SteppedSamples, TensorSamples, as_samples

__all__ = ["NAMES", "DataMissing", "DataSet", "download", "load"]

NAMES = ("digits", "fashion-mnist", "cifar-10", "cifar-100", "caltech-101", "image-folder")

_FETCHED = NAMES[1:5]
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CACHE = Path("~/.cache/fedunlearn")
_TORCHVISION = Path("FashionMNIST/raw")  # where, below its root, torchvision puts the files

_FROM_FILES = ("caltech-101", "image-folder")
_CALTECH, _NO_CLASS = "101_ObjectCategories", "BACKGROUND_Google"  # the latter: pictures of anything, to tell it apart
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as torchvision's networks have them
_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@dataclass(frozen=True)
class _Cifar:
    """Where a data set of CIFAR's has what; mean and standard deviation of all pixels of the training images."""

    kind: str  # torchvision's class, which knows where to fetch it
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_CIFAR = {
    "cifar-10": _Cifar(
        "CIFAR10",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "labels",
        10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar-100": _Cifar(
        "CIFAR100",
        "cifar-100-python",
        ("train",),
        "test",
        "fine_labels",
        100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


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
            - ``cifar-10``, ``cifar-100``: 50,000 + 10,000 coloured images of 32x32 (Krizhevsky 2009) of 10 or 100
              classes, kept as bytes, normalised by mean and standard deviation of each channel.
            - ``caltech-101``: 8677 photographs of different sizes (Fei-Fei et al. 2004), grey ones as RGB; a fixed
              stratified fifth is the test set. The folder BACKGROUND_Google is no class. They are normalised by
              ImageNet's mean and standard deviation: their own would need all of them decoded.
            - ``image-folder``: yours, in ``data_dir``: a folder a class below ``train`` and ``test``, or, where these
              are not both there, below ``data_dir`` itself, of which a fixed stratified fifth is the test set.
              Otherwise as Caltech-101.
            - ``package.module:function``: a function of yours, called without arguments. It returns a
              `DataSet`, or a pair (train, test) of whatever `fedunlearn.samples.as_samples` takes.
        data_dir: where the files lie (Fashion-MNIST's four ``*-ubyte`` files may be gzipped or not), or the root that
            torchvision downloaded them to. By default: where Debian's package puts Fashion-MNIST, else torchvision's
            root ``./data``, else ``~/.cache/fedunlearn``.
        images: how images become inputs; None: as they are. Those in files of their own differ in size, so they must
            be cropped.

    Raises:
        DataMissing: the files are not there.
        ValueError: the name is unknown, or the files or the function's data are not what they should be, or are no
            images that could be laid out.
        ImportError: there is no such function.
    """
    if name in _FROM_FILES:
        if not isinstance(images, Cropped):
            raise ValueError(
                f"{name}'s images differ in size: say how they are brought to one, in an experiment's file by "
                'data.images = { kind = "Cropped", resize = 256, crop = 224 }'
            )
        return _caltech(data_dir, images) if name == "caltech-101" else _image_folder(data_dir, images)
    if name == "digits":
        found = _digits()
    elif name == "fashion-mnist":
        found = _fashion_mnist(data_dir)
    elif name in _CIFAR:
        found = _cifar(name, data_dir)
    elif ":" in name:
        found = _own(name)
    else:
        raise unknown("data set", name, NAMES)
    return found if images is None else _seen(found, images)


def download(name: str, data_dir: Path | None = None) -> None:
    """Let torchvision fetch a data set, which `load` then finds.

    Args:
        name: ``fashion-mnist``, ``cifar-10``, ``cifar-100`` or ``caltech-101``; the others come with the program that
            makes them.
        data_dir: the root to put it under, to be given to `load` too; ``~/.cache/fedunlearn`` by default.

    Raises:
        ValueError: there is nothing to fetch for this name.
        OSError, RuntimeError: it cannot be fetched, or is not what it should be.
    """
    if name not in _FETCHED:
        raise ValueError(f"there is nothing to download for {name!r}: only {', '.join(_FETCHED)} are fetched")
    from torchvision import datasets as theirs
    from torchvision.datasets import utils

    root = data_dir or _CACHE.expanduser()
    if name in _CIFAR:  # of which a torchvision data set would unpickle the files
        kind = getattr(theirs, _CIFAR[name].kind)
        utils.download_and_extract_archive(kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5)
    else:
        kind = theirs.FashionMNIST if name == "fashion-mnist" else theirs.Caltech101
        kind(root, download=True)


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    values = torch.from_numpy(images).float().div_(16).reshape(-1, 1, 8, 8)
    classes = torch.from_numpy(labels).long()
    train, test = _split(classes)
    return DataSet(
        "digits",
        TensorSamples(values[train], classes[train]),
        TensorSamples(values[test], classes[test]),
        classes=10,
        shape=(1, 8, 8),
    )


def _fashion_mnist(data_dir: Path | None) -> DataSet:
    places = _places(data_dir, _TORCHVISION, first=_DEBIAN)
    for place in places:
        found = [_plain_or_gzipped(place / f"{part}-ubyte") for part in _PARTS]
        files = [path for path in found if path is not None]
        if len(files) == len(_PARTS):
            train, test = _images(*files[:2]), _images(*files[2:])
            return DataSet("fashion-mnist", train, test, classes=10, shape=(1, 28, 28))
    way = "run `apt-get install dataset-fashion-mnist`, or "
    raise _missing("fashion-mnist", "Fashion-MNIST's four *-ubyte files", places, way)


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


def _cifar(name: str, data_dir: Path | None) -> DataSet:
    known = _CIFAR[name]
    places = _places(data_dir, Path(known.folder))
    for place in places:
        files = [place / file for file in (*known.train, known.test)]
        if all(file.is_file() for file in files):
            train, test = (
                TensorSamples(*cifar.read(part, known.labels, known.classes), mean=known.mean, std=known.std)
                for part in (files[:-1], files[-1:])
            )
            return DataSet(name, train, test, known.classes, shape=(3, 32, 32))
    raise _missing(name, f"{name.upper()}'s files {known.train[0]} to {known.test}", places)


def _caltech(data_dir: Path | None, images: Cropped) -> DataSet:
    places = _places(data_dir, Path("caltech101"))
    folders = [place if place.name == _CALTECH else place / _CALTECH for place in places]
    for folder in folders:
        if folder.is_dir():
            return _from_folder("caltech-101", folder, images)
    raise _missing("caltech-101", "Caltech-101's classes", folders)


def _image_folder(data_dir: Path | None, images: Cropped) -> DataSet:
    if data_dir is None or not data_dir.is_dir():
        there = "image-folder is yours, wherever it lies" if data_dir is None else f"there is no folder {data_dir}"
        raise DataMissing(f"{there}: name it with --data-dir, with the images of each class in a folder of their own")
    parts = [data_dir / part for part in ("train", "test")]
    if not all(part.is_dir() for part in parts):
        return _from_folder("image-folder", data_dir, images)
    train, test = (listed(part) for part in parts)
    if train.classes != test.classes:
        differ = ", ".join(sorted({*train.classes} ^ {*test.classes}))
        raise ValueError(f"{parts[0]} and {parts[1]} must have the same classes, but only one of them has {differ}")
    return _of_files("image-folder", train, test, images)


def _from_folder(name: str, folder: Path, images: Cropped) -> DataSet:
    """A data set of which a fixed stratified fifth is the test set."""
    found = listed(folder, without=(_NO_CLASS,) if name == "caltech-101" else ())
    try:
        parts = _split(found.labels)
    except ValueError as error:
        raise ValueError(
            f"of {folder} no fifth can be the test set with something of each class ({error}): "
            "add images, or put them below train and test"
        ) from None
    train, test = (
        Listing(found.classes, tuple(found.files[at] for at in part.tolist()), found.labels[part]) for part in parts
    )
    return _of_files(name, train, test, images)


def _of_files(name: str, train: Listing, test: Listing, images: Cropped) -> DataSet:
    ours, theirs = (
        FileSamples(part.files, part.labels, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, geometry=images)
        for part in (train, test)
    )
    return DataSet(name, ours, theirs, len(train.classes), shape=(3, images.crop, images.crop))


def _split(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices for training, and of a stratified fifth that is always the same, for testing."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=labels.numpy(), random_state=0)
    return train, test


def _places(data_dir: Path | None, below: Path, first: Path | None = None) -> list[Path]:
    """Where to look for a data set's files, in this order; ``below`` is where torchvision puts them under its root."""
    roots = [data_dir] if data_dir else [*([first] if first else []), Path("data"), _CACHE.expanduser()]
    return [place for root in roots for place in (root, root / below)]


def _missing(name: str, what: str, places: Sequence[Path], way: str = "") -> DataMissing:
    return DataMissing(
        f"{what} are not in {', '.join(map(str, places))}: {way}name their directory with --data-dir, or let "
        f"torchvision fetch them with --download (in Python: fedunlearn.data.datasets.download({name!r}))"
    )


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
