"""CIFAR in its own files: as torchvision reads them, but running nothing that they ask for."""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedunlearn.data import cifar, datasets
from fedunlearn.data.datasets import DataMissing, download, load
from fedunlearn.data.images import Flipped

CPU = torch.device("cpu")
FILES = {
    "cifar-10": [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"],
    "cifar-100": ["train", "test"],
}
FOLDERS = {"cifar-10": "cifar-10-batches-py", "cifar-100": "cifar-100-python"}


def pixels(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def python2(images: NDArray[np.uint8], lists: dict[str, list[int]], module: str = "numpy.core.multiarray") -> bytes:
    """A file as Python 2 and the NumPy of that time wrote them, opcode by opcode: all text and all values are bytes."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    empty = f"c{module}\n_reconstruct\n".encode() + b"cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    rows, columns = images.shape
    state = b"(K\x01" + number(rows) + number(columns) + b"\x86" + dtype + b"\x89" + text(images.tobytes()) + b"tb"
    entries = [text(b"data") + empty + state]
    entries += [text(name.encode()) + b"](" + b"".join(map(number, values)) + b"e" for name, values in lists.items()]
    return b"\x80\x02}(" + b"".join(entries) + b"u."


def write(folder: Path, name: str, count: int = 3) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """A small data set below a root, as it is distributed."""
    place = folder / FOLDERS[name]
    place.mkdir(parents=True)
    written = {}
    for seed, file in enumerate(FILES[name]):
        images, labels = (
            pixels(count, seed),
            [(7 * seed + at) % (10 if name == "cifar-10" else 100) for at in range(count)],
        )
        lists = {"labels": labels} if name == "cifar-10" else {"coarse_labels": [0] * count, "fine_labels": labels}
        (place / file).write_bytes(python2(images, lists))
        written[file] = images, labels
    meta, key = ("batches.meta", "label_names") if name == "cifar-10" else ("meta", "fine_label_names")
    (place / meta).write_bytes(pickle.dumps({key: [str(number) for number in range(100)]}, protocol=2))
    return written


def without_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision takes only the files themselves; these are others."""
    for kind in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        for part in ("train_list", "test_list"):
            monkeypatch.setattr(kind, part, [[file, None] for file, _ in getattr(kind, part)])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_images_and_labels_are_those_that_torchvision_reads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, name)
    without_digests(monkeypatch)
    data = load(name, tmp_path)
    kind = {"cifar-10": torchvision.datasets.CIFAR10, "cifar-100": torchvision.datasets.CIFAR100}[name]
    for ours, train in ((data.train, True), (data.test, False)):
        theirs = kind(str(tmp_path), train=train)
        assert torch.equal(ours.values, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))  # type: ignore[attr-defined]
        assert ours.labels.tolist() == theirs.targets
    assert (data.classes, data.shape) == (int(name.split("-")[1]), (3, 32, 32))


def test_images_are_normalised_per_channel(tmp_path: Path) -> None:
    (images, _), *_ = write(tmp_path, "cifar-10").values()
    data = load("cifar-10", tmp_path / FOLDERS["cifar-10"], Flipped())
    x = data.train.inputs(torch.tensor([0]), None, CPU).numpy()
    expected = images[0].reshape(3, 32, 32) / 255
    for channel, (mean, std) in enumerate(((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))):
        np.testing.assert_allclose(x[0, channel], (expected[channel] - mean) / std, atol=1e-5)


@given(st.integers(0, 4), st.booleans(), st.sampled_from(["numpy.core.multiarray", "numpy._core.multiarray"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whichever_python_and_numpy_wrote_it(tmp_path: Path, protocol: int, fortran: bool, module: str) -> None:
    images = pixels(4, 0)
    content = {"data": np.asfortranarray(images) if fortran else images, "labels": [9, 0, 3, 3], "batch_label": "x"}
    said = pickle.dumps(content, protocol=protocol)
    others = {"numpy._core.multiarray", "numpy.core.multiarray"} - {module}
    if protocol < 4:  # where a module's name stands without its length
        said = said.replace(others.pop().encode(), module.encode())
    for file in (said, python2(images, {"labels": [9, 0, 3, 3]}, module)):
        (tmp_path / "batch").write_bytes(file)
        read, labels = cifar.read([tmp_path / "batch"], "labels", 10)
        assert np.array_equal(read.reshape(4, -1).numpy(), images)
        assert labels.tolist() == [9, 0, 3, 3]
        assert labels.dtype == torch.int64


def test_files_of_python_2_are_of_protocol_2_and_mean_what_they_should() -> None:
    """The writer above against Python's own reader."""
    images = pixels(2, 0)
    said = python2(images, {"labels": [1, 2]})
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(said)]
    assert opcodes[0] == "PROTO"
    assert {"SHORT_BINSTRING", "BINSTRING"} <= set(opcodes)
    found = pickle.loads(said, encoding="bytes")
    assert np.array_equal(found[b"data"], images)
    assert found[b"labels"] == [1, 2]


class Runs:
    """What unpickling would run."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


STAND_IN = b"cnumpy\ndtype\n"
UNTOLD = b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\n)RU\x06labels](K\x03eu."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda mark: pickle.dumps({"data": Runs(Path.touch, mark), "labels": []}), "it asks for"),
        (lambda mark: pickle.dumps(Runs(__import__("os").system, f"touch {mark}"), 2), r"it asks for \w+\.system"),
        (lambda mark: f"c__builtin__\neval\n(S\"open('{mark}', 'w')\"\ntR.".encode(), r"it asks for __builtin__\.eval"),
        (lambda mark: b"cnumpy\nload\n(S'x'\ntR.", "it asks for numpy.load"),
        (lambda mark: b"cnumpy.core.multiarray\nscalar\n.", "it asks for numpy.core.multiarray.scalar"),
        (lambda mark: b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.mro__\x93.", "it asks for numpy.dtype.mro__"),
        (lambda mark: STAND_IN + b"(NS'make'\nNs\x86b.", "no file of CIFAR's"),
        (lambda mark: STAND_IN + b"(S'make'\nNdb.", "no file of CIFAR's"),
        (lambda mark: STAND_IN + b"(S'O8'\nK\x00K\x01tR.", "an array of O8, not of bytes"),
        (lambda mark: pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}, 2), "an array of f8, not of bytes"),
        (lambda mark: b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "it has bytes in rot13"),
        (lambda mark: b"\x80\x02Nr\xff\xff\xff\x0f.", "it numbers a value 268435455, and has fewer"),  # else 4 GB
        (lambda mark: UNTOLD, r"has 1 labels, but images of shape \(0, 0\)"),
        (lambda mark: b"", "no file of CIFAR's"),
        (lambda mark: python2(pixels(2, 0), {"labels": [0, 1]})[:-40], "no file of CIFAR's"),
        (lambda mark: pickle.dumps([1, 2]), "has no images, or no labels"),
        (lambda mark: pickle.dumps({"data": [[0] * 3072], "labels": [0]}), "has no images, or no labels"),
        (lambda mark: python2(pixels(2, 0), {"fine_labels": [0, 1]}), "has no images, or no labels"),
        (lambda mark: python2(pixels(2, 0), {"labels": [0]}), r"has 1 labels, but images of shape \(2, 3072\)"),
        (lambda mark: python2(pixels(2, 0)[:, :3000], {"labels": [0, 1]}), r"images of shape \(2, 3000\)"),
        (lambda mark: python2(pixels(2, 0), {"labels": [0, 10]}), "labels that are not 0 to 9"),
    ],
)
def test_what_is_no_file_of_cifars_is_refused_and_nothing_of_it_is_run(tmp_path: Path, content: Any, says: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "batch"
    path.write_bytes(content(mark))
    with pytest.raises(ValueError, match=says) as caught:
        cifar.read([path], "labels", 10)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert cifar._STAND_INS["numpy", "dtype"].make is cifar._dtype


def test_that_malicious_file_would_run_a_command(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps({"data": Runs(Path.touch, mark), "labels": []}))
    assert mark.exists()


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_missing_files_are_an_error_that_says_how_to_get_them(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    (tmp_path / FOLDERS[name] / FILES[name][-1]).unlink()
    with pytest.raises(DataMissing) as caught:
        load(name, tmp_path)
    for way in (str(tmp_path / FOLDERS[name]), "--data-dir", "--download", f"download('{name}')"):
        assert way in str(caught.value)


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """A web server on this machine, of one folder."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_it_is_fetched_and_checked_by_torchvision_and_then_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Callable[[Path], str]
) -> None:
    """From a server of our own; everything else is torchvision's."""
    write(tmp_path / "made", name)
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / FOLDERS[name], FOLDERS[name])
    kind = {"cifar-10": torchvision.datasets.CIFAR10, "cifar-100": torchvision.datasets.CIFAR100}[name]
    monkeypatch.setattr(kind, "url", f"{served(tmp_path)}/{archive.name}")
    monkeypatch.setattr(datasets, "_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="corrupted"):  # the digest is that of the true archive
        download(name)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    download(name)
    assert len(load(name).test.labels) == 3
