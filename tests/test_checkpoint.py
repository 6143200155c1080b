from __future__ import annotations

import errno
import json
import os
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedunlearn.atomic import atomic_write
from fedunlearn.checkpoint import (
    CheckpointError,
    load_weights,
    negate_file,
    negate_in_place,
    read_layers,
    read_metadata,
    save_weights,
)
from fedunlearn.negation import negate
from fedunlearn.weights import Weights


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A bfloat16 checkpoint with an integer tensor, an empty one, and metadata of its own."""
    torch.manual_seed(0)
    tensors = {
        "conv.weight": torch.randn(4, 3, 3, 3).bfloat16(),
        "conv.bias": torch.randn(4).bfloat16(),
        "norm.weight": torch.randn(4).bfloat16(),
        "norm.running_mean": torch.randn(4),
        "attention.in_proj_weight": torch.randn(12, 4).bfloat16(),
        "counter": torch.tensor(3),
        "empty.weight": torch.zeros(0, 2),
    }
    save_file(tensors, tmp_path / "in.safetensors", {"format": "pt", "note": 'says "ü"'})
    return tmp_path / "in.safetensors"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def test_only_the_chosen_bytes_change(source: Path, output: Path) -> None:
    done = negate_file(source, ["conv", "attention[k]"], output)
    before, after = load_file(source), load_file(output)
    # As in the file, which safetensors sorts by dtype and name.
    assert done.names == ("attention.in_proj_weight[4:8]", "conv.weight")
    assert done.negated_bytes == 4 * 4 * 2 + before["conv.weight"].nbytes
    assert done.file_bytes == output.stat().st_size
    expected = {**before, "conv.weight": -before["conv.weight"]}
    attention = expected["attention.in_proj_weight"] = before["attention.in_proj_weight"].clone()
    attention[4:8] *= -1
    assert before.keys() == after.keys()
    assert all(torch.equal(bits(after[name]), bits(expected[name])) for name in after)


def test_metadata_are_kept_and_the_history_grows(source: Path, output: Path, tmp_path: Path) -> None:
    negate_file(source, ["conv"], output, include_bias=True)
    twice = tmp_path / "twice.safetensors"
    negate_file(output, ["conv.bias", "conv.weight"], twice)
    kept = metadata(twice)
    assert json.loads(kept.pop("fedunlearn.negations")) == [["conv.bias", "conv.weight"]] * 2
    assert kept == metadata(source) == {"format": "pt", "note": 'says "ü"'}
    before, after = load_file(source), load_file(twice)
    assert all(torch.equal(bits(before[name]), bits(after[name])) for name in before)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
    ],
)
def test_a_file_and_a_network_are_negated_alike(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.arange(256).to(torch.uint8).repeat(8).view(dtype).reshape(2, -1)
    save_file({"layer.weight": values}, tmp_path / "in")
    negate_file(tmp_path / "in", ["layer[1:]"], tmp_path / "out")
    expected = negate(Weights({"layer.weight": values}), "layer[1:2]")
    assert torch.equal(bits(load_file(tmp_path / "out")["layer.weight"]), bits(expected.parameters["layer.weight"]))


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=3, max_size=5),
    chosen=st.lists(st.integers(0, 2), min_size=1),
)
def test_any_choice_twice_is_the_original(
    shapes: list[list[int]], chosen: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("twice")
    tensors = {f"layers.{i}.weight": torch.randn(*shape) for i, shape in enumerate(shapes)}
    save_file(tensors, folder / "in")
    names = [f"layers.{i}.weight" for i in chosen]
    negate_file(folder / "in", names, folder / "once")
    negate_file(folder / "once", names, folder / "twice")
    once, twice = load_file(folder / "once"), load_file(folder / "twice")
    for name, tensor in tensors.items():
        assert torch.equal(once[name], -tensor if name in names else tensor)
        assert torch.equal(bits(twice[name]), bits(tensor))


def test_a_torchvision_checkpoint_becomes_the_negated_network(tmp_path: Path) -> None:
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48).bfloat16()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    negate_file(tmp_path / "vit.safetensors", ["conv_proj"], tmp_path / "negated.safetensors")
    negated = negate(model).state_dict()
    assert all(torch.equal(negated[n], t) for n, t in load_file(tmp_path / "negated.safetensors").items())
    done = negate_file(tmp_path / "vit.safetensors", ["encoder.layers.*.mlp.?"], tmp_path / "globbed")
    assert done.names == tuple(f"encoder.layers.encoder_layer_{i}.mlp.{j}.weight" for i in (0, 1) for j in (0, 3))


def test_rows_of_a_file(source: Path) -> None:
    rows = read_layers(source)
    assert [row.index for row in rows] == list(range(7))
    assert {row.name: (row.dtype, row.kind) for row in rows} == {
        "conv.weight": ("bfloat16", "convolution"),
        "conv.bias": ("bfloat16", "bias"),
        "norm.weight": ("bfloat16", "normalisation"),
        "norm.running_mean": ("float32", "buffer"),
        "attention.in_proj_weight": ("bfloat16", "attention"),
        "counter": ("int64", "other"),
        "empty.weight": ("float32", "linear"),
    }


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["conv.wieght"], "did you mean conv.weight"),
        (["counter"], "counter is int64: only floating-point"),
        ([], "name at least one"),
        (["norm*"], "a normalisation must be named in full"),
        (["conv[0:9]"], "no such rows"),
        (["empty[0:1]"], "no such rows"),
    ],
)
def test_wrong_names_write_nothing(source: Path, output: Path, names: list[str], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        negate_file(source, names, output)
    assert os.listdir(source.parent) == [source.name]


def test_what_is_no_safetensors_file(source: Path, output: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    (tmp_path / "cut").write_bytes(content[:-5])
    (tmp_path / "head").write_bytes(content[:20])
    (tmp_path / "none").write_bytes(b"")
    torch.save({"conv.weight": torch.ones(2)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="pickled checkpoint: save its weights with"):
        negate_file(tmp_path / "pickle.pt", ["conv"], output)
    for name in ("cut", "head", "none"):
        for read in (read_layers, load_weights, lambda path: negate_file(path, ["conv"], output)):
            with pytest.raises(CheckpointError, match="no complete safetensors file"):
                read(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file"):
        negate_file(tmp_path / "missing", ["conv"], output)
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"folder holds no safetensors file"):
        read_layers(tmp_path / "folder")
    (tmp_path / "folder.safetensors.index.json").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no safetensors file"):
        read_layers(tmp_path / "folder.safetensors.index.json")
    assert not output.exists()


def with_header(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


ENTRY = '"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        f"{{{ENTRY},{ENTRY}}}",  # twice the same tensor
        f'{{"__metadata__":{{"a":"1","a":"2"}},{ENTRY}}}',
        f'{{{ENTRY},"b.weight":{{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}}}',  # overlapping
        f'{{{ENTRY},"b.weight":{{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}}}',  # a hole
        '{"a.weight":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}',
        '{"a.weight":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,8]}}',
        '{"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
        "[" * 100_000,
        "null",
    ],
)
def test_headers_that_lie(header: str, output: Path, tmp_path: Path) -> None:
    path = with_header(tmp_path / "in.safetensors", header.encode(), bytes(8))
    before = path.read_bytes()
    for read in (
        read_layers,
        load_weights,
        lambda path: negate_file(path, ["a"], output),
        lambda path: negate_in_place(path, ["a"]),
    ):
        with pytest.raises(CheckpointError, match="no complete safetensors file"):
            read(path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("length", [1 << 60, 1 << 63, (1 << 64) - 1, 100_000_001])
def test_an_absurd_length_takes_no_memory(length: int, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" * 50)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="no complete safetensors file"):
            read_layers(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_layers(tmp_path / "pipe.safetensors")


def test_where_it_may_be_written(source: Path, output: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    (tmp_path / "link").symlink_to(source)
    for same in (source, tmp_path / "link"):
        with pytest.raises(CheckpointError, match="is the source itself"):
            negate_file(source, ["conv"], same, force=True)
    output.write_text("old")
    with pytest.raises(CheckpointError, match="exists: choose another name"):
        negate_file(source, ["conv"], output)
    with pytest.raises(CheckpointError, match="is a folder"):
        negate_file(source, ["conv"], tmp_path, force=True)
    assert output.read_text() == "old"
    negate_file(source, ["conv"], output, force=True)
    assert load_file(output).keys() == load_file(source).keys()
    with pytest.raises(CheckpointError, match=r"cannot write .*: No such file"):
        negate_file(source, ["conv"], tmp_path / "missing" / "out")
    assert source.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors", "link", "out.safetensors"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_stopped_in_the_middle_nothing_is_left(
    source: Path, output: Path, error: BaseException, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(descriptor: int, content: memoryview, start: int) -> int:
        os.lseek(descriptor, start, os.SEEK_SET)
        os.write(descriptor, content[:10])
        raise error

    if existing:
        output.write_text("old")
    monkeypatch.setattr(os, "pwrite", stop)
    expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is CheckpointError else None):
        negate_file(source, ["conv"], output, force=True)
    assert sorted(os.listdir(source.parent)) == sorted({source.name} | ({output.name} if existing else set()))
    assert not existing or output.read_text() == "old"


@pytest.mark.parametrize("change", ["shorter", "rewritten", "replaced"])
def test_a_source_that_changes_meanwhile_is_noticed(
    source: Path, output: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, copied = source.read_bytes(), os.copy_file_range

    def changing(*arguments: int) -> int:
        if change == "shorter":
            os.truncate(source, 500)
        elif change == "rewritten":
            source.write_bytes(content)
            os.utime(source, (1, 1))
        else:
            with atomic_write(source) as file:
                file.write(content)
        return copied(*arguments)

    monkeypatch.setattr(os, "copy_file_range", changing)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        negate_file(source, ["conv"], output)
    assert not output.exists()


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSPC, None])
def test_file_systems_that_copy_nothing_themselves(
    source: Path, output: Path, tmp_path: Path, error: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    negate_file(source, ["conv"], tmp_path / "expected")

    def failing(*arguments: int) -> int:
        assert error is not None
        raise OSError(error, os.strerror(error))

    if error is None:  # as on a system without the call
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", failing)
    if error == errno.ENOSPC:
        with pytest.raises(CheckpointError, match=r"cannot write .*: No space left"):
            negate_file(source, ["conv"], output)
        assert not output.exists()
    else:
        negate_file(source, ["conv"], output)
        assert output.read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_copy_leaves_room_in_its_header_and_data_their_place_in_a_block(source: Path, output: Path) -> None:
    """So that the next negation moves nothing, and file systems can share the blocks."""
    negate_file(source, ["conv"], output)
    assert output.stat().st_size - source.stat().st_size == 4096
    start = [8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (source, output)]
    assert start[1] - start[0] == 4096
    twice = output.with_name("twice")
    negate_file(output, ["conv"], twice)
    assert twice.stat().st_size == output.stat().st_size
    assert twice.read_bytes()[start[1] :] == source.read_bytes()[start[0] :]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    size = 48 << 20
    save_file({"big.weight": torch.ones(size // 8, 2)}, tmp_path / "in")
    tracemalloc.start()
    try:
        negate_file(tmp_path / "in", ["big"], tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 2
    with safe_open(tmp_path / "out", framework="np") as file:
        assert np.all(file.get_tensor("big.weight") == -1)


@pytest.mark.parametrize(("mode", "then"), [(0o666, 0o640), (0o600, 0o600), (0o444, 0o440)])
def test_a_new_file_is_open_to_nobody_to_whom_its_source_is_not(
    source: Path, output: Path, mode: int, then: int
) -> None:
    source.chmod(mode)
    umask = os.umask(0o027)
    try:
        negate_file(source, ["conv"], output)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(output.stat().st_mode) == then


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_disk_that_does_not_keep_names_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, code = os.fsync, errno.EIO

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    code = errno.EINVAL  # of a file system that keeps them by itself
    with atomic_write(tmp_path / "b") as file:
        file.write(b"x")
    assert (tmp_path / "b").read_bytes() == b"x"


def test_names_of_others_are_told_in_one_short_line(tmp_path: Path) -> None:
    save_file({"a\x1b[2J\n" + "x" * 5000: torch.ones(1)}, tmp_path / "in")
    with pytest.raises(CheckpointError) as caught:
        negate_file(tmp_path / "in", ["a\x1b[2J"], tmp_path / "out")
    assert len(str(caught.value)) <= 1000
    assert str(caught.value).isprintable()


def test_a_foreign_history_is_not_overwritten(output: Path, tmp_path: Path) -> None:
    for value in ("no json", '{"a": 1}', "[1]"):
        save_file({"conv.weight": torch.ones(2, 2)}, tmp_path / "in", {"fedunlearn.negations": value})
        with pytest.raises(CheckpointError, match=r"fedunlearn.negations"):
            negate_file(tmp_path / "in", ["conv"], output)
        assert not output.exists()


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2).bfloat16(), nn.Linear(2, 1))
    model[1].weight = model[0].weight
    weights = negate(negate(Weights.of(model), "3", batchnorm="leave"), "0", batchnorm="leave")
    path = tmp_path / "weights.safetensors"
    save_weights(weights, path, {"round": "7"})
    save_weights(weights, path, {"round": "8"})
    back = load_weights(path)
    assert back.same_bits(weights)
    assert list(back.parameters) == list(weights.parameters)
    assert list(back.buffers) == list(weights.buffers)
    assert back.aliases == weights.aliases == {"1.weight": "0.weight"}
    assert back.negations == weights.negations == (("3.weight",), ("0.weight",))
    assert metadata(path)["round"] == "8"
    assert os.listdir(tmp_path) == [path.name]
    negate_file(path, "1", tmp_path / "negated")
    assert load_weights(tmp_path / "negated").negations == (*weights.negations, ("0.weight",))


def test_weights_of_anothers_making(source: Path) -> None:
    weights = load_weights(source)
    assert weights.buffers == {}
    assert weights.parameters.keys() == load_file(source).keys()


def test_weights_that_cannot_be_kept(tmp_path: Path) -> None:
    weights = Weights({"w": torch.ones(1)})
    own: Any = {"fedunlearn.negations": "[]"}
    with pytest.raises(CheckpointError, match=r"are taken: choose others"):
        save_weights(weights, tmp_path / "w", own)
    with pytest.raises(CheckpointError, match="cannot write"):
        save_weights(weights, tmp_path / "missing" / "w")
    save_file({"w": torch.ones(1)}, tmp_path / "odd", {"fedunlearn.parameters": '["v"]'})
    with pytest.raises(CheckpointError, match="other tensors in its metadata"):
        load_weights(tmp_path / "odd")


def test_the_same_weights_give_the_same_file(tmp_path: Path) -> None:
    weights = Weights({"a": torch.ones(3), "b": torch.zeros(2)}, negations=(("a",),))
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        save_weights(weights, path, {"one": "1", "two": "2", "three": "3"})
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_metadata(paths[0])["two"] == "2"
    assert load_weights(paths[0]).same_bits(weights)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("parameters", '[1, "a"]'),
        ("buffers", "[[]]"),
        ("aliases", '{"x": 1}'),
        ("aliases", '{"x": "gone"}'),
        ("negations", f"[[{'9' * 5000}]]"),
    ],
)
def test_metadata_that_lie(key: str, says: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "in", {f"fedunlearn.{key}": says})
    with pytest.raises(CheckpointError, match=rf"its metadata 'fedunlearn.{key}' "):
        load_weights(tmp_path / "in")


def test_an_empty_tensor_of_endless_rows(tmp_path: Path) -> None:
    header = f'{{"w":{{"dtype":"F32","shape":[0,{1 << 63}],"data_offsets":[0,0]}}}}'
    with pytest.raises(CheckpointError, match="torch has no tensor of the shape of w"):
        load_weights(with_header(tmp_path / "in", header.encode(), b""))


def test_many_keys_of_which_one_stands_twice_take_no_time(tmp_path: Path) -> None:
    """Compared pair by pair, these would take an hour."""
    pairs = ",".join(f'"{number}":"x"' for number in [*range(200_000), 199_999])
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(f'{{"weight_map":{{{pairs}}}}}')
    with pytest.raises(CheckpointError, match="'199999' stands twice in it"):
        read_layers(path)
