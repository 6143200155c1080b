"""Negating in place: only the chosen bytes change, and whatever breaks it off leaves the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedunlearn.checkpoint import (
    CheckpointError,
    load_weights,
    negate_file,
    negate_in_place,
    negating,
    read_layers,
    read_metadata,
    save_weights,
)
from fedunlearn.checkpoint import journal as journals
from fedunlearn.checkpoint.journal import JOURNAL
from fedunlearn.checkpoint.signs import checksum, flip, read_signs, set_signs
from fedunlearn.names import SIGNED
from fedunlearn.weights import Weights

STEPS = ("open", "pwrite", "fsync", "unlink", "replace")
"""The calls by which this package changes a disk."""


class Killed(BaseException):
    """What a process that is killed does not survive."""


@contextmanager
def killed_at(step: int, steps: list[str], torn: random.Random | None = None) -> Iterator[None]:
    """Raise instead of the call with that number, and at all that come later: a dead process undoes nothing.

    Args:
        step: counted from 0.
        steps: gets the calls that were made.
        torn: writes a part of the fatal write, if there is one.
    """
    real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in STEPS}

    def call(name: str) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_CREAT | os.O_RDWR):
                return real[name](*arguments, **named)
            if len(steps) >= step:
                if len(steps) == step and name == "pwrite" and torn is not None:
                    real[name](arguments[0], arguments[1][: torn.randrange(len(arguments[1]) + 1)], arguments[2])
                steps.append("killed")
                raise Killed
            steps.append(name)
            return real[name](*arguments, **named)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, call(name))
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that a killed process leaves half-written under a name of no meaning."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".tmp"}


def restore(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def plain(folder: Path) -> Path:
    """A file of another's making: no room in its header."""
    rng = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(40, 3, generator=rng).to(torch.bfloat16) for name in "abc"}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def roomy(folder: Path) -> Path:
    """A file with room: a copy that `negate_file` wrote."""
    rng = torch.Generator().manual_seed(0)
    save_weights(Weights({f"{name}.weight": torch.randn(40, 3, generator=rng) for name in "abc"}), folder / "first")
    negate_file(folder / "first", "b", folder / "model")
    (folder / "first").unlink()
    return folder / "model"


def sharded(folder: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    places = {}
    for number, name in enumerate("abc"):
        save_file({f"{name}.weight": torch.randn(40, 3, generator=rng)}, folder / f"{number}.safetensors")
        places[f"{name}.weight"] = f"{number}.safetensors"
    index = {"metadata": {"total_size": 1440}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def noted(folder: Path) -> Path:
    """A set, of which one shard was negated by itself and has a note."""
    negate_in_place(sharded(folder) / "0.safetensors", "a")
    return folder


KINDS = (plain, roomy, sharded, noted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("torn", [None, 0])
def test_killed_at_any_step_it_is_the_old_checkpoint_or_the_new_one(
    kind: Callable[[Path], Path], torn: int | None, tmp_path: Path
) -> None:
    path = kind(tmp_path)
    old = contents(tmp_path)
    steps: list[str] = []
    with killed_at(1000, steps):
        negate_in_place(path, ["a", "c"])
    new = contents(tmp_path)
    assert new != old
    assert steps.count("unlink") == 1 + (kind is noted)  # the journal, and the note
    states = []
    for step in range(len(steps)):
        restore(tmp_path, old)
        with pytest.raises(Killed), killed_at(step, [], None if torn is None else random.Random(torn)):
            negate_in_place(path, ["a", "c"])
        read_layers(path)
        read_layers(path)
        found = contents(tmp_path)
        found.pop(JOURNAL, None)  # where nothing was changed yet, which the next negation finds out
        states.append(found)
        assert found in (old, new), f"killed at step {step}, {steps[step]}"
    assert states[-1] == new  # removing the journal was done, only not yet durable
    assert states[:-1] == [old] * (len(steps) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_it_undoes_it_is_undone_anew(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    path = kind(tmp_path)
    old = contents(tmp_path)
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a", "c"])
    left = contents(tmp_path)
    steps: list[str] = []
    with killed_at(1000, steps):
        read_layers(path)
    assert contents(tmp_path) == old
    for step in range(len(steps)):
        restore(tmp_path, left)
        with pytest.raises(Killed), killed_at(step, []):
            read_layers(path)
        load_weights(path)
        assert contents(tmp_path) == old, f"killed at step {step}, {steps[step]}"


@contextmanager
def killed_before_the_end() -> Iterator[None]:
    """All is changed, and the journal not removed."""

    def stop(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "remove", stop)
        patch.setattr(journals, "_undo", stop)
        yield


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1), kind=st.sampled_from(KINDS))
def test_whatever_reached_the_disk_by_a_power_cut_is_undone(
    seed: int, share: float, kind: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any mixture of old and new bytes, down to single ones."""
    folder = tmp_path_factory.mktemp("cut")
    path = kind(folder)
    old = contents(folder)
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a[3:17]", "b", "c[:1]"])
    rng = np.random.default_rng(seed)
    for name, before in old.items():
        after = (folder / name).read_bytes()
        if len(after) == len(before):
            mixed = np.where(rng.random(len(before)) < share, *(np.frombuffer(c, np.uint8) for c in (after, before)))
            (folder / name).write_bytes(mixed.astype(np.uint8).tobytes())
    assert read_layers(path)[0].name == "a.weight"
    assert contents(folder) == old


DTYPES = [getattr(torch, name) for name in SIGNED]


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], list[str], int]:
    """Tensors of any bits, what to negate of them, and spaces after the header."""
    tensors, chosen = {}, []
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from([*DTYPES, torch.int32, torch.bool]))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        size = torch.empty(shape, dtype=dtype).nbytes
        content = draw(st.binary(min_size=size, max_size=size))
        if dtype is torch.bool:
            content = bytes(byte & 1 for byte in content)
        raw = torch.tensor(list(content), dtype=torch.uint8)
        name = f"t{number}.weight"
        tensors[name] = (raw.view(dtype) if size else torch.empty(0, dtype=dtype)).reshape(shape)
        if dtype in DTYPES and draw(st.booleans()):
            rows = shape[0] if shape else 0
            start = draw(st.integers(0, rows - 1)) if rows else 0
            stop = draw(st.integers(start + 1, rows)) if rows else 0
            chosen.append(f"{name}[{start}:{stop}]" if rows and draw(st.booleans()) else name)
    return tensors, chosen, draw(st.sampled_from([0, 8, 100, 5000]))


@settings(max_examples=20, deadline=None)
@given(drawn=checkpoints())
def test_in_place_is_as_into_a_new_file(
    drawn: tuple[dict[str, torch.Tensor], list[str], int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, chosen, spaces = drawn
    folder = tmp_path_factory.mktemp("alike")
    path, output = folder / "in", folder / "out"
    save_file(tensors, path, {"note": "ü"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes(
        (length + spaces).to_bytes(8, "little") + content[8 : 8 + length] + b" " * spaces + content[8 + length :]
    )
    before = path.read_bytes()
    if not chosen:
        return
    done = negate_file(path, chosen, output)
    assert path.read_bytes() == before
    assert negate_in_place(path, chosen).names == done.names
    after = path.read_bytes()
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert len(after) == len(before)
    assert after[len(after) - size :] == output.read_bytes()[output.stat().st_size - size :]
    expected = np.frombuffer(before[len(before) - size :], np.uint8).copy()
    for name, text in ((text.partition("[")[0], text) for text in chosen):  # by hand, from the format
        entry = json.loads(before[8 : 8 + length])[name]
        first, last = entry["data_offsets"]
        if "[" in text:
            row = (last - first) // entry["shape"][0]
            start, stop = map(int, text.partition("[")[2][:-1].split(":"))
            first, last = first + start * row, first + stop * row
        dtype = tensors[name].dtype
        for place in range(first + dtype.itemsize - 1, last, dtype.itemsize):
            if not (str(dtype).endswith("fnuz") and expected[place] in (0, 0x80)):
                expected[place] ^= 0x80
    assert after[len(after) - size :] == expected.tobytes()
    assert load_weights(path).negations == load_weights(output).negations == (done.names,)
    assert os.path.exists(f"{path}.negations.json") == (spaces < 100)
    assert negate_in_place(path, chosen).again == done.names
    assert path.read_bytes()[len(after) - size :] == before[len(before) - size :]


@pytest.mark.parametrize("dtype", SIGNED)
def test_signs_taken_and_given_back(dtype: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, 8 * 100, np.uint8)
    changed = numbers.copy()
    flip(changed, dtype)
    assert checksum(changed, dtype) == checksum(numbers, dtype)
    assert not np.array_equal(changed, numbers)
    set_signs(changed, read_signs(numbers, dtype), dtype)
    assert np.array_equal(changed, numbers)
    numbers[0] ^= 1  # the lowest bit of the first number: another number, not another sign
    assert checksum(changed, dtype) != checksum(numbers, dtype)


def test_only_the_layers_bytes_and_a_32nd_of_them_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a.weight": torch.randn(1 << 19), "b.weight": torch.randn(1 << 19)}, tmp_path / "in")
    real, written = os.pwrite, []

    def counting(descriptor: int, content: memoryview, start: int) -> int:
        written.append(real(descriptor, content, start))
        return written[-1]

    monkeypatch.setattr(os, "pwrite", counting)
    negate_in_place(tmp_path / "in", "a.weight")
    assert (1 << 21) * 33 / 32 < sum(written) < (1 << 21) * 33 / 32 + 1000


def test_memory_stays_flat(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(12 << 20)}, tmp_path / "in")  # 48 MB
    tracemalloc.start()
    try:
        negate_in_place(tmp_path / "in", "a.weight")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert load_file(tmp_path / "in")["a.weight"].eq(-1).all()


def test_what_was_loaded_stays_as_it_was(tmp_path: Path) -> None:
    path = roomy(tmp_path)
    weights = load_weights(path)
    before = {name: tensor.clone() for name, tensor in weights.parameters.items()}
    negate_in_place(path, ["a", "b", "c"])
    assert all(torch.equal(weights.parameters[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_disk_is_undone_at_once(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    path = kind(tmp_path)
    old = contents(tmp_path)
    real = os.pwrite
    calls, fatal = 0, 0

    def failing(descriptor: int, content: memoryview, start: int) -> int:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        negate_in_place(path, ["a", "c"])
        writes = calls
        assert writes >= 6  # plan, signs of both, digest, mark, one of the data at least
        for step in range(writes):
            restore(tmp_path, old)
            calls, fatal = 0, step + 1
            with pytest.raises(CheckpointError, match=r"cannot write .*: No space left"):
                negate_in_place(path, ["a", "c"])
            assert contents(tmp_path) == old


def test_where_undoing_fails_too_it_says_so_and_later_undoes(tmp_path: Path) -> None:
    path = plain(tmp_path)
    old = contents(tmp_path)
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a"])
    real = os.open

    def read_only(name: Any, flags: int, *rest: int, **named: Any) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(name, flags, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", read_only)
        for read in (read_layers, load_weights, read_metadata, lambda path: negate_file(path, ["a"], tmp_path / "o")):
            with pytest.raises(CheckpointError, match=r"broken off, of model.safe.*not be undone: .*Read-only"):
                read(path)
    assert JOURNAL in contents(tmp_path)
    read_layers(path)
    assert contents(tmp_path) == old


@pytest.mark.parametrize("change", ["size", "header", "numbers", "gone", "note"])
def test_a_journal_of_another_version_is_refused_and_changes_nothing(change: str, tmp_path: Path) -> None:
    path = plain(tmp_path)
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a"])
    content = bytearray(path.read_bytes())
    if change == "size":
        path.write_bytes(content + b" ")
    elif change == "header":
        path.write_bytes(content.replace(b'"pt"', b'"tp"'))
    elif change == "numbers":
        content[int.from_bytes(content[:8], "little") + 8] ^= 1
        path.write_bytes(content)
    elif change == "note":
        (tmp_path / "model.safetensors.negations.json").write_text("{}")
    else:
        path.unlink()
    left = contents(tmp_path)
    says = {"gone": "No such file", "note": "was changed since"}.get(change, "another file than the one")
    with pytest.raises(CheckpointError, match=rf"{says}.*and then remove .*{JOURNAL}"):
        read_layers(path)
    assert contents(tmp_path) == left


def test_a_damaged_journal_is_no_journal_that_never_was(tmp_path: Path) -> None:
    path = plain(tmp_path)
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a"])
    whole = (tmp_path / JOURNAL).read_bytes()
    for place in (8, 15, 20, 60, len(whole) - 1):
        (tmp_path / JOURNAL).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for read in (read_layers, lambda path: negate_in_place(path, ["a"])):
            with pytest.raises(CheckpointError, match=r"journal .* is damaged: restore the files"):
                read(path)
    (tmp_path / JOURNAL).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_layers(path)


def left_behind(folder: Path, plan: object) -> None:
    """A journal with a right digest, and no signs: whoever sends a folder can compute one."""
    text = (plan if isinstance(plan, str) else json.dumps(plan)).encode()
    head = b"fedneg 1" + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest()
    (folder / JOURNAL).write_bytes(head + text)


def test_journals_that_lie_are_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    size = path.stat().st_size
    change = {"name": path.name, "size": size, "before": "", "after": ""}
    idle = {**change, "stretches": []}
    for plan in (
        "[" * 100_000,
        "{}",
        {"changes": [{**change, "stretches": [{"start": 8, "stop": 1 << 62, "dtype": "float32"}]}], "notes": []},
        {"changes": [{**change, "stretches": [{"start": 8, "stop": 12, "dtype": "int32"}]}], "notes": []},
        {"changes": [{**change, "stretches": [{"start": 16, "stop": 12, "dtype": "float32"}]}], "notes": []},
        {"changes": [idle], "notes": [{"name": "../x", "before": None, "after": ""}]},
        {"changes": [idle], "notes": [{"name": "config.json", "before": None, "after": ""}]},
        {"changes": [idle], "notes": [{"name": "other.negations.json", "before": None, "after": ""}]},
        {"changes": [idle, idle], "notes": []},
        {"changes": [idle, {**idle, "name": "x\0"}], "notes": []},
        {"changes": [{**idle, "after": "x"}], "notes": []},
    ):
        left_behind(tmp_path, plan)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_layers(path)


@pytest.mark.parametrize("name", ["model.safetensors.negations.json", "model.safetensors.index.json"])
def test_a_journal_that_lies_changes_nothing_outside_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    path = plain(tmp_path / "sent")
    (tmp_path / "mine").write_text("mine")
    (path.parent / name).symlink_to(tmp_path / "mine")
    change = {"name": path.name, "size": path.stat().st_size, "before": "", "after": "", "stretches": []}
    left_behind(path.parent, {"changes": [change], "notes": [{"name": name, "before": "evil", "after": "mine"}]})
    with pytest.raises(CheckpointError, match=r"json is a link: put the file itself there"):
        read_layers(path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_journal_of_another_user_is_not_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path)
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a"])
    left = contents(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for use in (read_layers, lambda path: negate_in_place(path, ["a"])):
        with pytest.raises(CheckpointError, match=r"journal is another user's, who alone can undo"):
            use(path)
    assert contents(tmp_path) == left


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["find", "choose", "carry_out"])
def test_whoever_comes_between_is_in_the_history_or_refused(
    when: str, kind: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kind(tmp_path)
    before = load_weights(path)
    real = getattr(negating, when)

    def second(*arguments: Any) -> Any:
        monkeypatch.setattr(negating, when, real)
        with suppress(CheckpointError):
            negate_in_place(path, "b")
        return real(*arguments)

    monkeypatch.setattr(negating, when, second)
    negate_in_place(path, "a")
    after = load_weights(path)
    told = [name for entry in after.negations[len(before.negations) :] for name in entry]
    assert "a.weight" in told
    for name, tensor in before.parameters.items():
        assert torch.equal(after.parameters[name], -tensor if name in told else tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_once_it_is_done_undoes_nothing(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    path = kind(tmp_path)
    old = contents(tmp_path)
    negate_in_place(path, ["a", "c"])
    new = contents(tmp_path)
    restore(tmp_path, old)
    real = os.unlink

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        if not (tmp_path / JOURNAL).exists():
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            negate_in_place(path, ["a", "c"])
    assert contents(tmp_path) == new


def test_what_is_done_and_perhaps_not_durable_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = roomy(tmp_path)
    real = os.fsync

    def failing(descriptor: int) -> None:
        if not (tmp_path / JOURNAL).exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointError, match=r"model in .* were negated, but a power cut may still undo it: .*output"):
        negate_in_place(path, ["a"])
    assert load_weights(path).negations == (("b.weight",), ("a.weight",))


def test_a_journal_that_was_never_ready_hinders_nobody(tmp_path: Path) -> None:
    path = roomy(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"\0" * 100)
    read_layers(path)
    negate_in_place(path, ["a"])
    assert not (tmp_path / JOURNAL).exists()


def test_two_at_once(tmp_path: Path) -> None:
    path = roomy(tmp_path)
    save_file({"x.weight": torch.ones(2, 2)}, tmp_path / "other")
    tried = []

    def meanwhile(numbers: Any, dtype: str) -> None:
        for read in (read_layers, load_weights, lambda path: negate_in_place(path, ["a"])):
            with pytest.raises(CheckpointError, match="another process negates in place in"):
                read(path)
            tried.append(read)
        with pytest.raises(CheckpointError, match="another process"):
            negate_in_place(tmp_path / "other", ["x"])
        assert read_layers(tmp_path / "other")[0].name == "x.weight"  # it is not concerned
        flip(numbers, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "flip", meanwhile)
        negate_in_place(path, ["a"])
    assert len(tried) == 3
    assert load_weights(path).negations == (("b.weight",), ("a.weight",))


def test_files_that_are_others_too(tmp_path: Path) -> None:
    path = roomy(tmp_path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(CheckpointError, match="is a link"):
        negate_in_place(tmp_path / "link", ["a"])
    os.link(path, tmp_path / "hard")
    with pytest.raises(CheckpointError, match="has other names"):
        negate_in_place(path, ["a"])
    assert JOURNAL not in os.listdir(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_a_note_that_leads_elsewhere_is_not_followed(there: bool, tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    path = plain(tmp_path / "sent")
    if there:
        (tmp_path / "mine").write_text("{}")
    Path(f"{path}.negations.json").symlink_to(tmp_path / "mine")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"negations.json is a link"):
        negate_in_place(path, ["a"])
    assert path.read_bytes() == before
    assert not there or (tmp_path / "mine").read_text() == "{}"
    assert (tmp_path / "mine").exists() == there


def test_a_link_is_read_after_its_own_folder_is_settled(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path = plain(tmp_path / "there")
    before = path.read_bytes()
    with pytest.raises(Killed), killed_before_the_end():
        negate_in_place(path, ["a"])
    (tmp_path / "link").symlink_to(path)
    read_layers(tmp_path / "link")
    assert path.read_bytes() == before


def test_a_note_is_void_once_its_file_is_another(tmp_path: Path) -> None:
    path = plain(tmp_path)
    content = path.read_bytes()
    done = negate_in_place(path, ["a"])
    assert done.note == tmp_path / "model.safetensors.negations.json"
    negate_in_place(path, ["b[:2]"])
    assert load_weights(path).negations == (("a.weight",), ("b.weight[0:2]",))
    negate_file(path, ["c"], tmp_path / "copy")
    assert load_weights(tmp_path / "copy").negations == (("a.weight",), ("b.weight[0:2]",), ("c.weight",))
    path.write_bytes(content)  # fetched again
    assert load_weights(path).negations == ()
    for text in ("no json", "[]", '{"negations": 1}', '{"negations": [], "places": [[0, "x"]], "sha256": ""}'):
        done.note.write_text(text)
        with pytest.raises(CheckpointError, match="is no sign history: remove it"):
            read_layers(path)


def test_notes_that_would_fill_memory_or_never_end(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(1 << 12)}, tmp_path / "model")
    note = tmp_path / "model.negations.json"
    note.write_text(json.dumps({"negations": [], "places": [[0, 4096]] * 50_000, "sha256": ""}))
    tracemalloc.start()
    try:
        assert load_weights(tmp_path / "model").negations == ()
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    os.truncate(note, 100_000_001)
    with pytest.raises(CheckpointError, match="more than belong there"):
        read_layers(tmp_path / "model")
    note.unlink()
    os.mkfifo(note)
    with pytest.raises(CheckpointError, match="no regular file"):
        read_layers(tmp_path / "model")


def test_an_index_stays_as_private_as_it_was(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").chmod(0o600)
    negate_in_place(tmp_path, "a")
    assert (tmp_path / "model.safetensors.index.json").stat().st_mode & 0o777 == 0o600


def test_wrong_names_change_nothing(tmp_path: Path) -> None:
    path = roomy(tmp_path)
    old = contents(tmp_path)
    with pytest.raises(CheckpointError, match="has no layer 'x'"):
        negate_in_place(path, ["x"])
    assert contents(tmp_path) == old


@pytest.mark.long
def test_processes_that_are_killed_leave_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(8 << 20), "b.weight": torch.randn(100)}, tmp_path / "model")  # 32 MB
    code = (
        "import sys; from fedunlearn.checkpoint import negate_in_place; print('go', flush=True);"
        "[negate_in_place(sys.argv[1], 'a.weight') for _ in range(1000)]"
    )
    one = load_file(tmp_path / "model")["a.weight"].clone()
    rng, undone = random.Random(0), 0
    for _ in range(40):
        command = [sys.executable, "-c", code, str(tmp_path / "model")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        undone += (tmp_path / JOURNAL).exists()
        done = len(load_weights(tmp_path / "model").negations)
        found = load_file(tmp_path / "model")["a.weight"]
        assert torch.equal(found, -one if done % 2 else one)
    assert undone >= 10
