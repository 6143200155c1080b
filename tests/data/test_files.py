"""Images in files: Caltech-101's folders and one's own, as torchvision reads them, decoded when they are wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Caltech101, ImageFolder
from torchvision.transforms.v2 import functional as tv

from fedunlearn.backends.packing import pack, unpack
from fedunlearn.client import Client
from fedunlearn.data import datasets
from fedunlearn.data.datasets import DataMissing, DataSet, load
from fedunlearn.data.files import FileSamples
from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.data.treatment import Backdoored
from fedunlearn.runner import run
from fedunlearn.simulation import Setting
from tiny import load_tiny

CPU = torch.device("cpu")
CROPPED = Cropped(16, 12)
CLASSES = ("Faces", "Leopards", "airplanes")  # capitals come first, in Caltech-101 too


def write_images(folder: Path, per_class: int = 5, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    """Small jpgs of different sizes, the first of them grey; each class is of a brightness of its own."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for at in range(1, per_class + 1):
            size = (int(rng.integers(14, 30)), int(rng.integers(14, 30)))
            grey = number == 0 and at == 1
            noise = rng.integers(0, 60, size if grey else (*size, 3))
            values = (noise + 60 * number).astype(np.uint8)
            Image.fromarray(values).save(folder / name / f"image_{at:04d}.jpg")


def write_caltech(root: Path) -> Path:
    folder = root / "caltech101/101_ObjectCategories"
    write_images(folder)
    write_images(folder, classes=("BACKGROUND_Google",))
    return folder


def files_of(data: DataSet) -> dict[str, int]:
    """The label of each file, training and test set together."""
    found: dict[str, int] = {}
    for samples in (data.train, data.test):
        assert isinstance(samples, FileSamples)
        assert not found.keys() & set(samples.files)
        found |= dict(zip(samples.files, samples.labels.tolist(), strict=True))
    return found


def seen(image: Image.Image) -> torch.Tensor:
    """What a network is to see of it, by torchvision's own functions."""
    x = tv.pil_to_tensor(image.convert("RGB")).float() / 255
    x = tv.center_crop(tv.resize(x, [16], antialias=True), [12, 12])
    normalised: torch.Tensor = tv.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return normalised


def test_caltechs_images_and_labels_are_those_that_torchvision_reads(tmp_path: Path) -> None:
    folder = write_caltech(tmp_path)
    data = load("caltech-101", tmp_path, CROPPED)
    theirs = Caltech101(str(tmp_path))
    assert theirs.categories == list(CLASSES)
    expected = {
        str(folder / theirs.categories[label] / f"image_{number:04d}.jpg"): label
        for label, number in zip(theirs.y, theirs.index, strict=True)
    }
    assert files_of(data) == expected
    assert (data.classes, data.shape) == (3, (3, 12, 12))
    images = {file: seen(theirs[index][0]) for index, file in enumerate(expected)}
    for samples in (data.train, data.test):
        assert isinstance(samples, FileSamples)
        found = samples.inputs(torch.arange(len(samples.files)), None, CPU)
        torch.testing.assert_close(found, torch.stack([images[file] for file in samples.files]))


def test_a_fifth_of_each_class_is_the_test_set_always_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, per_class=10)
    one, other = (load("image-folder", tmp_path, CROPPED) for _ in range(2))
    assert one.train.labels.bincount().tolist() == [8, 8, 8]
    assert one.test.labels.bincount().tolist() == [2, 2, 2]
    assert one.test.files == other.test.files  # type: ignore[attr-defined]


@pytest.mark.parametrize("below", ["caltech101/101_ObjectCategories", "caltech101", "."])
def test_caltech_is_found_at_its_root_and_below(tmp_path: Path, below: str) -> None:
    write_caltech(tmp_path)
    assert len(load("caltech-101", tmp_path / below, CROPPED).train.labels) == 12


def test_a_folder_of_ones_own_is_torchvisions_image_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "whole")
    write_images(tmp_path / "split/train", per_class=3)
    write_images(tmp_path / "split/test", per_class=2, seed=1)
    (tmp_path / "split/train/Faces/notes.txt").write_text("no image")
    (tmp_path / "split/train/Faces/more").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "split/train/Faces/more/one.PNG", "PNG")
    assert files_of(load("image-folder", tmp_path / "whole", CROPPED)) == dict(
        ImageFolder(str(tmp_path / "whole")).imgs
    )
    data = load("image-folder", tmp_path / "split", CROPPED)
    for samples, part in ((data.train, "train"), (data.test, "test")):
        theirs = ImageFolder(str(tmp_path / "split" / part))
        assert isinstance(samples, FileSamples)
        assert list(zip(samples.files, samples.labels.tolist(), strict=True)) == theirs.imgs
    assert len(data.train.labels) == 10


def test_folders_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "few", per_class=1)
    write_images(tmp_path / "differ/train")
    write_images(tmp_path / "differ/test", classes=("Faces", "Leopards", "accordion"))
    write_images(tmp_path / "hollow")
    (tmp_path / "hollow/nothing").mkdir()
    for name, says in (
        ("empty", "has no folders of images"),
        ("few", "no fifth can be the test set"),
        ("differ", "only one of them has accordion, airplanes"),
        ("hollow", "a class without an image"),
    ):
        with pytest.raises(ValueError, match=says):
            load("image-folder", tmp_path / name, CROPPED)


@pytest.mark.parametrize("images", [None, Flipped()])
@pytest.mark.parametrize("name", ["caltech-101", "image-folder"])
def test_images_of_different_sizes_must_be_cropped(name: str, images: Flipped | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images differ in size: .* data\.images = \{ kind = \"Cropped\""):
        load(name, tmp_path, images)


def test_missing_files_are_an_error_that_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for name, place, ways in (
        (
            "caltech-101",
            None,
            ("data/caltech101/101_Obj", "cache", "--data-dir", "--download", "download('caltech-101')"),
        ),
        ("image-folder", None, ("--data-dir", "a folder of their own")),
        ("image-folder", tmp_path / "absent", ("no folder", "absent", "--data-dir")),
    ):
        with pytest.raises(DataMissing) as caught:
            load(name, place, CROPPED)
        for way in ways:
            assert way in str(caught.value)
    with pytest.raises(ValueError, match="only fashion-mnist, cifar-10, cifar-100, caltech-101 are fetched"):
        datasets.download("image-folder", tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    samples = load("image-folder", tmp_path, CROPPED).train
    assert isinstance(samples, FileSamples)
    content = Path(samples.files[0]).read_bytes()
    for damaged in (b"no image", content[: len(content) // 2], b"\x89PNG\r\n\x1a\n" + b"x" * 30):
        Path(samples.files[0]).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{samples.files[0]} is no image that can be read"):
            samples.inputs(torch.tensor([0]), None, CPU)


def test_only_what_is_gathered_is_decoded_and_only_paths_travel(tmp_path: Path) -> None:
    write_images(tmp_path, per_class=50)
    data = load("image-folder", tmp_path, CROPPED)
    assert isinstance(data.train, FileSamples)
    held = torch.arange(len(data.train.files))
    poisoned = Backdoored(0.8, 0)(data.train, held, 0)
    frames = pack([Client.of("0", poisoned, held), Client.of("1", data.train, held)])
    paths = sum(map(len, data.train.files))
    assert sum(map(len, frames)) < paths + 120 * (8 + 8 + 1 + 2 * (8 + 1) + 20)  # labels, marks, indices, and so on
    client = unpack([bytearray(frame) for frame in frames])[0]
    for file in data.train.files[1:]:
        Path(file).unlink()
    expected = poisoned.inputs(torch.tensor([0]), None, CPU)
    assert torch.equal(client.samples.inputs(torch.tensor([0]), None, CPU), expected)


PICTURES = (
    *("data.name=image-folder", "data.clients=2", 'data.images={ kind = "Cropped", resize = 10, crop = 8 }'),
    *("data.samples=22", 'data.treatment.0={ kind = "Backdoored", share = 0.8, label = 2 }'),
    *("training.rounds=1", "training.batch_size=8"),
)


def test_a_run_on_files_has_the_same_bits_in_workers_and_its_data_are_told_by_their_bytes(tmp_path: Path) -> None:
    write_images(tmp_path / "data", per_class=20)
    plan = load_tiny(tmp_path, *PICTURES)
    rows = [list(run(plan, tmp_path / str(n), workers=n, data_dir=tmp_path / "data")) for n in (1, 2)]
    assert [row.scores for row in rows[0]] == [row.scores for row in rows[1]]
    assert all(row.scores.attack is not None for row in rows[0] if row.scores)
    before = Setting.of(plan, data_dir=tmp_path / "data")
    digests = before.digests()
    changed = Path(before.data.train.files[3])  # type: ignore[attr-defined]
    changed.write_bytes(changed.read_bytes() + b"\0")
    after = Setting.of(plan, data_dir=tmp_path / "data").digests()
    assert {name for name in digests if digests[name] != after[name]} == {"training data"}
