"""Data sets by name: the two that are known, and the user's own."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedunlearn.data import datasets
from fedunlearn.data.datasets import DataMissing, DataSet, download, load
from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.importing import load_object

CPU = torch.device("cpu")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PARTS = {"train": 5, "t10k": 2}


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_small_fashion_mnist(folder: Path, *, gzipped: bool, pixel: int = 255) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in PARTS.items():
        for kind, values in (
            ("images-idx3", np.full((count, 28, 28), pixel)),
            ("labels-idx1", np.arange(count)),
        ):
            name = f"{part}-{kind}-ubyte" + (".gz" if gzipped else "")
            content = idx(values)
            (folder / name).write_bytes(gzip.compress(content) if gzipped else content)


def test_digits_are_scikit_learns_scaled_and_split() -> None:
    digits = load("digits")
    assert (digits.classes, digits.shape) == (10, (1, 8, 8))
    assert (len(digits.train.labels), len(digits.test.labels)) == (1437, 360)
    every = torch.cat([part.inputs(torch.arange(len(part.labels)), None, CPU) for part in (digits.train, digits.test)])
    assert every.dtype == torch.float32
    assert every.shape == (1797, 1, 8, 8)
    assert (float(every.min()), float(every.max())) == (0.0, 1.0)

    images, labels = load_digits(return_X_y=True)
    theirs = sorted((*image, label) for image, label in zip(images.tolist(), labels.tolist(), strict=True))
    found = torch.cat([digits.train.labels, digits.test.labels]).tolist()
    ours = sorted((*i, c) for i, c in zip((every.flatten(1) * 16).tolist(), found, strict=True))
    assert ours == theirs


def test_digits_split_is_stratified_and_always_the_same() -> None:
    one, other = load("digits"), load("digits")
    assert torch.equal(one.test.labels, other.test.labels)
    counts = one.test.labels.bincount(minlength=10)
    assert int(counts.max() - counts.min()) <= 2  # the digits' own counts are 174 .. 183


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_fashion_mnist_is_found_kept_as_bytes_and_normalised() -> None:
    fashion = load("fashion-mnist")
    assert (fashion.classes, fashion.shape) == (10, (1, 28, 28))
    assert torch.equal(fashion.train.labels.bincount(), torch.full((10,), 6000))
    assert torch.equal(fashion.test.labels.bincount(), torch.full((10,), 1000))
    assert fashion.train.values.dtype == torch.uint8  # type: ignore[attr-defined]
    every = fashion.train.inputs(torch.arange(60_000), None, CPU)
    assert every.shape == (60_000, 1, 28, 28)
    assert abs(float(every.mean())) < 2e-4
    assert abs(float(every.std()) - 1) < 2e-4


@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("gzipped", [True, False])
def test_data_dir_is_the_folder_itself_or_torchvisions_root(tmp_path: Path, below: str, gzipped: bool) -> None:
    write_small_fashion_mnist(tmp_path / below, gzipped=gzipped)
    small = load("fashion-mnist", tmp_path)
    assert small.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert small.test.labels.tolist() == [0, 1]
    white = torch.full((1, 1, 28, 28), 0.7140 / 0.3530)
    assert torch.allclose(small.test.inputs(torch.tensor([1]), None, CPU), white)


def test_places_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(datasets, "_CACHE", tmp_path / "cache")

    def first_pixel() -> float:
        x = load("fashion-mnist").train.inputs(torch.tensor([0]), None, CPU).flatten()[0]
        return round(float(x) * 0.3530 * 255 + 0.2860 * 255)

    with pytest.raises(DataMissing):
        load("fashion-mnist")
    write_small_fashion_mnist(tmp_path / "cache/FashionMNIST/raw", gzipped=False, pixel=3)
    assert first_pixel() == 3
    write_small_fashion_mnist(tmp_path / "data/FashionMNIST/raw", gzipped=False, pixel=2)
    assert first_pixel() == 2
    write_small_fashion_mnist(tmp_path / "debian", gzipped=True, pixel=1)
    assert first_pixel() == 1


def test_missing_files_are_an_error_that_says_how_to_get_them(tmp_path: Path) -> None:
    write_small_fashion_mnist(tmp_path, gzipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataMissing) as caught:
        load("fashion-mnist", tmp_path)
    assert isinstance(caught.value, FileNotFoundError)
    for way in (str(tmp_path), "apt-get install dataset-fashion-mnist", "--data-dir", "download("):
        assert way in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_small_fashion_mnist(tmp_path, gzipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(4)))
    with pytest.raises(ValueError, match=r"\(5, 28, 28\) and \(4,\)"):
        load("fashion-mnist", tmp_path)


def test_download_asks_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", lambda root, download: asked.append((root, download)))
    download("fashion-mnist", tmp_path)
    assert asked == [(tmp_path, True)]
    with pytest.raises(ValueError, match="nothing to download for 'digits'"):
        download("digits", tmp_path)


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no data set 'fashion_mnist' \(did you mean fashion-mnist\?\)"):
        load("fashion_mnist")


OWN = """
import torch
from fedunlearn.data.datasets import DataSet
from fedunlearn.samples import TensorSamples

class Items:
    def __len__(self): return 3
    def __getitem__(self, index): return torch.full((2, 5), float(index)), index

def tensors(): return (torch.zeros(4, 7), torch.tensor([0, 1, 2, 0])), (torch.zeros(1, 7), torch.tensor([4]))
def pictures(): return ((torch.zeros(1, 3, 5, 5), torch.tensor([0])),) * 2
def items(): return Items(), Items()
def ready():
    samples = TensorSamples(torch.zeros(1, 2), torch.tensor([0]))
    return DataSet("mine", samples, samples, 3, (2,))
def nothing(): return None
def negative(): return (torch.zeros(1, 7), torch.tensor([-1])), (torch.zeros(1, 7), torch.tensor([0]))
def empty(): return (torch.zeros(0, 7), torch.zeros(0)), (torch.zeros(1, 7), torch.tensor([0]))
constant = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the current directory, not installed."""
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package/own_data.py").write_text(OWN)
    (tmp_path / "own_package/needy.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_package", "own_package.own_data", "own_package.needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_package.own_data"


@pytest.mark.parametrize(("function", "classes", "shape"), [("tensors", 5, (7,)), ("items", 3, (2, 5))])
def test_classes_and_shape_of_own_data_are_found(own: str, function: str, classes: int, shape: tuple[int, ...]) -> None:
    data = load(f"{own}:{function}")
    assert (data.name, data.classes, data.shape) == (f"{own}:{function}", classes, shape)


def test_images_of_every_data_set_in_a_tensor_can_be_laid_out(own: str) -> None:
    plain, cropped = load("digits"), load("digits", images=Cropped(16, 12))
    assert cropped.shape == (1, 12, 12)
    some = torch.arange(3)
    expected = Cropped(16, 12)(plain.test.inputs(some, None, CPU), None)
    assert torch.equal(cropped.test.inputs(some, None, CPU), expected)
    assert load(f"{own}:pictures", images=Flipped()).train.inputs(some[:1], None, CPU).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("function", ["tensors", "items", "ready"])
def test_what_is_no_image_in_a_tensor_cannot_be(own: str, function: str) -> None:
    with pytest.raises(ValueError, match=r"are not: leave it out, and let the data set do it"):
        load(f"{own}:{function}", images=Flipped())


def test_own_data_set_is_taken_as_it_is(own: str) -> None:
    data = load(f"{own}:ready")
    assert isinstance(data, DataSet)
    assert (data.name, data.classes) == ("mine", 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", r"must return a pair \(train, test\) or a DataSet, not NoneType"),
        ("negative", "labels 0, 1"),
        ("empty", "labels are whole numbers"),
    ],
)
def test_own_data_that_cannot_serve_are_refused(own: str, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(f"{own}:{function}")


def test_objects_are_imported_by_path(own: str) -> None:
    assert load_object(f"{own}:constant") == 3


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("own_package.own_data:tensor", ImportError, r"has no 'tensor' \(did you mean tensors"),
        ("own_package.absent:f", ImportError, "no module 'own_package.absent'"),
        ("absent_package.module:f", ImportError, "no module 'absent_package'"),
        ("own_package.needy:f", ModuleNotFoundError, "No module named 'not_installed_anywhere'"),
        ("sys:absent", ImportError, "module 'sys' has no 'absent'"),
        ("own_package", ValueError, "write 'own_package' as 'package.module:name'"),
        (".own_data:f", ValueError, "package.module:name"),
        ("own_package.own_data:f()", ValueError, "package.module:name"),
    ],
)
def test_what_cannot_be_imported_is_named(own: str, path: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_object(path)
