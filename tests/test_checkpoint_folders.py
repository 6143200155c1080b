"""Sharded sets and Hugging Face's folders: negated as one file is, and there as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedunlearn.checkpoint import CheckpointError, load_weights, negate_file, negate_in_place, read_layers

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {f"{name}.weight": torch.randn(6, 4, generator=rng) for name in "abcd"}


def shard(folder: Path, holders: dict[str, str], held: dict[str, Tensor]) -> Path:
    """A set, as Hugging Face's libraries write it."""
    folder.mkdir()
    for shard in sorted(set(holders.values())):
        save_file({n: t for n, t in held.items() if holders[n] == shard}, folder / shard, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in held.values())
    content = {"metadata": {"total_size": size}, "weight_map": holders}
    (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with two tensors each, and what lies beside them."""
    made = shard(tmp_path / "hf", {f"{n}.weight": f"model-{n in 'cd'}.safetensors" for n in "abcd"}, tensors())
    (made / "config.json").write_text('{"model_type": "x"}')
    (made / "tokenizer").mkdir()
    (made / "tokenizer" / "vocab.txt").write_bytes(b"a\nb\0")
    (made / ".cache").mkdir()
    (made / ".cache" / "etag").write_text("old")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_only_the_shard_with_the_tensor_and_the_index_change(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    done = negate_file(folder, ["a", "b[2:4]"], tmp_path / "new")
    assert done.names == ("a.weight", "b.weight[2:4]")
    assert done.negated_bytes == (6 + 2) * 4 * 4
    assert done.file_bytes == sum(len(before[f"model-{held}.safetensors"]) for held in (False, True))
    assert contents(folder) == before
    after = contents(tmp_path / "new")
    assert before.keys() - after.keys() == {".cache/etag"}
    assert {name for name in after if after[name] != before[name]} == {"model-False.safetensors", INDEX}
    expected = tensors()
    expected["a.weight"] *= -1
    expected["b.weight"][2:4] *= -1
    held = load_file(tmp_path / "new" / "model-False.safetensors")
    assert all(torch.equal(held[name], expected[name]) for name in ("a.weight", "b.weight"))
    index = json.loads(after[INDEX])
    assert index.pop("metadata") == {"total_size": 384, "fedunlearn.negations": [["a.weight", "b.weight[2:4]"]]}
    assert index == {"weight_map": json.loads(before[INDEX])["weight_map"]}
    assert load_weights(tmp_path / "new").negations == (("a.weight", "b.weight[2:4]"),)
    negate_in_place(folder, ["a", "b[2:4]"])
    assert contents(folder) == {**after, ".cache/etag": b"old"}
    assert negate_in_place(folder / INDEX, ["a"]).again == ("a.weight",)


@settings(max_examples=10, deadline=None)
@given(
    holders=st.lists(st.sampled_from(["x.safetensors", "y.safetensors", "z.safetensors"]), min_size=4, max_size=4),
    chosen=st.lists(st.sampled_from(["a", "b[:3]", "c", "d[1:2]", "?"]), min_size=1, max_size=3),
)
def test_sharded_is_as_in_one_file(
    holders: list[str], chosen: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("sets")
    folder = shard(place / "set", dict(zip(tensors(), holders, strict=True)), tensors())
    save_file(tensors(), place / "whole")
    negate_file(place / "whole", chosen, place / "expected")
    negate_file(folder, chosen, place / "new")
    negate_in_place(folder, chosen)
    expected = load_weights(place / "expected")
    for path in (place / "new", folder):
        found = load_weights(path)
        assert found.parameters.keys() == expected.parameters.keys()
        assert all(torch.equal(found.parameters[name], tensor) for name, tensor in expected.parameters.items())
        assert sorted(found.negations[0]) == sorted(expected.negations[0])
    assert contents(place / "new") == contents(folder)


def test_layers_of_a_set_are_those_of_all_shards(folder: Path) -> None:
    rows = read_layers(folder)
    assert [(row.index, row.name) for row in rows] == [(i, f"{name}.weight") for i, name in enumerate("abcd")]
    assert rows == read_layers(folder / INDEX)


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    negate_in_place(folder, "b")  # has no room: leaves a note
    negate_file(folder, "a", tmp_path / "new")
    assert contents(tmp_path / "new").keys() == {"config.json", "model.safetensors"}
    assert load_weights(tmp_path / "new").negations == (("b.weight",), ("a.weight",))
    negate_file(folder, "a", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "new")


def test_history_of_a_shard_that_was_negated_alone_counts(folder: Path, tmp_path: Path) -> None:
    negate_file(folder / "model-True.safetensors", "c", tmp_path / "c.safetensors")
    os.replace(tmp_path / "c.safetensors", folder / "model-True.safetensors")
    assert load_weights(folder).negations == (("c.weight",),)
    assert negate_in_place(folder, ["c", "a"]).again == ("c.weight",)


def test_history_in_the_note_of_a_shard_goes_on_in_the_index(folder: Path, tmp_path: Path) -> None:
    shard = folder / "model-False.safetensors"
    note = negate_in_place(shard, "a").note
    assert note is not None
    assert load_weights(folder).negations == (("a.weight",),)
    negate_file(folder, "c", tmp_path / "new")
    assert load_weights(tmp_path / "new").negations == (("a.weight",), ("c.weight",))
    negate_in_place(folder, "c")  # in the other shard
    assert not note.exists()
    assert contents(folder).items() >= contents(tmp_path / "new").items()
    assert negate_in_place(folder, "a").again == ("a.weight",)
    assert load_weights(folder).negations == (("a.weight",), ("c.weight",), ("a.weight",))
    expected = {**tensors(), "c.weight": -tensors()["c.weight"]}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_weights(folder).parameters.items())


def test_a_shard_that_is_named_alone_knows_what_its_set_tells(folder: Path, tmp_path: Path) -> None:
    negate_in_place(folder, "a")
    shard = folder / "model-False.safetensors"
    assert negate_file(shard, "a", tmp_path / "alone.safetensors").again == ("a.weight",)
    assert negate_in_place(shard, ["a", "b"]).again == ("a.weight",)
    assert negate_in_place(folder / "model-True.safetensors", "c").again == ()
    (folder / INDEX).write_text("{")
    assert negate_in_place(folder / "model-True.safetensors", "d").names == ("d.weight",)


def rewritten(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../x.safetensors", "a shard is a .safetensors file in the index's folder"),
        ("/etc/x.safetensors", "a shard is a .safetensors file in the index's folder"),
        ("tokenizer/x.safetensors", "a shard is a .safetensors file in the index's folder"),
        ("", "a shard is a .safetensors file in the index's folder"),
        ("x\0.safetensors", "a shard is a .safetensors file in the index's folder"),
        ("pytorch_model-1.bin", "names the pickled shard 'pytorch_model-1.bin'"),
        ("missing.safetensors", "cannot read .*missing.safetensors: No such file"),
        ("link.safetensors", "leads out of"),
        ("model-True.safetensors", "model-False.safetensors also holds a.weight, unlike"),
    ],
)
def test_shards_that_are_not_there_or_elsewhere(name: str, says: str, folder: Path, tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
    places = {f"{n}.weight": f"model-{n in 'cd'}.safetensors" for n in "abcd"}
    rewritten(folder, weight_map={**places, "a.weight": name})
    before = contents(folder)
    for use in (
        read_layers,
        load_weights,
        lambda path: negate_in_place(path, "b"),
        lambda path: negate_file(path, "b", tmp_path / "new"),
    ):
        with pytest.raises(CheckpointError, match=says):
            use(folder)
    assert contents(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["hf", "x.safetensors"]


def test_a_shard_that_lacks_what_the_index_promises(folder: Path) -> None:
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    rewritten(folder, weight_map={**places, "e": "model-True.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-True.safetensors lacks e, unlike"):
        read_layers(folder)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "[" * 100_000,
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x"}, "metadata": []}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {"a": "\\ud800.safetensors"}}',
    ],
)
def test_what_is_no_index(text: str, folder: Path) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"is no index of shards|names the shard"):
        read_layers(folder)


def test_foreign_histories_of_an_index(folder: Path) -> None:
    for value in ("x", [1], {}):
        rewritten(folder, metadata={"fedunlearn.negations": value})
        with pytest.raises(CheckpointError, match="no list of lists of names"):
            read_layers(folder)


def test_folders_without_a_checkpoint_or_with_two(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="holds a pickled checkpoint"):
        read_layers(tmp_path / "bin")
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"model-False.safetensors, model-True.safetensors: name one of them"):
        read_layers(folder)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "adapter_model.bin",
        "diffusion_pytorch_model.bin",
        "model.pt",
        "model.ckpt",
        "weights.pth",
        "optimizer.pt",
        "consolidated.safetensors",
        "onnx/model.onnx",
    ],
)
def test_the_same_model_in_another_format_is_not_copied_unnegated(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    before = contents(folder)
    for use in (lambda: negate_file(folder, "a", tmp_path / "new"), lambda: negate_in_place(folder / INDEX, "a")):
        with pytest.raises(CheckpointError, match=r"may hold the same model, and would not be negated"):
            use()
    assert os.listdir(tmp_path) == ["hf"]
    assert contents(folder) == before


def test_what_holds_no_model_is_copied_and_leftovers_are_not(folder: Path, tmp_path: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / f".{'0a' * 8}.tmp").write_bytes(b"half a model")
    negate_file(folder, "a", tmp_path / "new")
    assert contents(folder).keys() - contents(tmp_path / "new").keys() == {".cache/etag", f".{'0a' * 8}.tmp"}


def test_a_subfolder_that_cannot_be_read_is_not_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "tokenizer":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer: Permission denied"):
        negate_file(folder, "a", tmp_path / "new")


def test_files_are_open_to_nobody_to_whom_their_sources_are_not(folder: Path, tmp_path: Path) -> None:
    for name in (INDEX, "model-False.safetensors", "config.json"):
        (folder / name).chmod(0o600)
    negate_file(folder, ["a"], tmp_path / "new")
    for name in (INDEX, "model-False.safetensors", "config.json"):
        assert (tmp_path / "new" / name).stat().st_mode & 0o777 == 0o600


def test_where_a_folder_may_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="there exists: choose another name"):
        negate_file(folder, "a", tmp_path / "there", force=True)
    for output in (folder / "new", folder / "tokenizer" / "new"):
        with pytest.raises(CheckpointError, match="write beside it"):
            negate_file(folder, "a", output)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No such file"):
        negate_file(folder, "a", tmp_path / "missing" / "new")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "copy_file_range"])
def test_a_full_disk_leaves_no_half_folder(
    call: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left"):
        negate_file(folder, "a", tmp_path / "new")
    assert os.listdir(tmp_path) == ["hf"]


def test_links_of_the_hub_cache_are_read_but_not_changed(folder: Path, tmp_path: Path) -> None:
    """Its snapshots are links to blobs, which other snapshots share."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        os.replace(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    before = contents(blobs)
    negate_file(snapshot, "a", tmp_path / "new")
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    assert torch.equal(load_weights(tmp_path / "new").parameters["a.weight"], -tensors()["a.weight"])
    with pytest.raises(CheckpointError, match="is a link"):
        negate_in_place(snapshot, "a")
    assert contents(blobs) == before
    (snapshot / "secret.txt").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="leads out of"):
        negate_file(snapshot, "a", tmp_path / "newer")
    assert not (tmp_path / "newer").exists()
