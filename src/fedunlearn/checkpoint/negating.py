"""NoT for somebody who has a checkpoint and no model: into a new file or folder, or in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedunlearn.atomic import atomic_write
from fedunlearn.checkpoint.choice import Choice, choose
from fedunlearn.checkpoint.copying import files_of, mode_of, negated_file, negated_folder
from fedunlearn.checkpoint.disk import File, text_of
from fedunlearn.checkpoint.errors import CheckpointError, refusing
from fedunlearn.checkpoint.found import Index, Member, find, told_by_an_index
from fedunlearn.checkpoint.header import opened
from fedunlearn.checkpoint.journal import LARGEST, Change, Note, Plan, at_work, carry_out, settle
from fedunlearn.checkpoint.note import mark_of, note_of, note_text
from fedunlearn.checkpoint.signs import flip

__all__ = ["FileNegation", "negate_file", "negate_in_place"]


@dataclass(frozen=True)
class FileNegation:
    """What was done to a checkpoint.

    Attributes:
        names: the negated parts.
        again: those that had been negated before, by the checkpoint's own history, or that of the set it is a shard of.
        means: the running means in it, which stay as they are: which of them follows a layer only its network knows.
        negated_bytes, file_bytes: of the parts, and of all files with tensors.
        note: the file beside the checkpoint that tells its history now, where the header had no room for it.
    """

    names: tuple[str, ...]
    again: tuple[str, ...]
    means: tuple[str, ...]
    negated_bytes: int
    file_bytes: int
    note: Path | None = None


def negate_file(
    source: Path | str,
    layers: str | Sequence[str],
    output: Path | str,
    *,
    include_bias: bool = False,
    force: bool = False,
) -> FileNegation:
    """Negate layers of a checkpoint into a new one: NoT for somebody who has a checkpoint and no model.

    All other bytes of the data and all metadata stay; ``fedunlearn.negations`` gets one more entry (in a sharded set,
    in the index's metadata). The file system copies what stays; one that can (Btrfs, XFS) shares it. A checkpoint has
    no graph, so there is no default layer, and a BatchNorm's running mean does not follow (before such a checkpoint is
    evaluated, train it or name ``bn1.running_mean`` too; training needs neither). A file's permissions are those of
    what it was made of, less the umask's.

    Args:
        source: a safetensors file; or the index of a sharded set, or a folder with one of either. What else lies in
            the folder is copied along, but for hidden folders (version control, caches), which hold older weights.
        layers: names as `fedunlearn.names.pick` reads them; which tensors are normalisations is guessed.
        output: where to write: a file, or a folder. It is there completely or, on any error, not at all.
        include_bias: negate the bias beside each selected weight too.
        force: replace ``output`` if it is a file that exists.

    Raises:
        CheckpointError: ``source`` is no sound checkpoint, a layer is not in it or has no sign, ``output`` is the
            source or exists, or it cannot be written; the folder holds the model in another format too.
    """
    source, output = Path(source), Path(output)
    choice = choose(find(source), layers, include_bias)
    if source.is_dir() or choice.checkpoint.index is not None:
        return _done(choice, negated_folder(choice, output))
    _require_free(source, output, force)
    mode = mode_of(choice.checkpoint.members[0].path)
    with refusing("write", output), atomic_write(output, mode=mode) as file:
        copy = File(output, file.fileno())
        negated_file(choice, choice.checkpoint.members[0], copy)
        size = copy.size
    return _done(choice, size)


def negate_in_place(path: Path | str, layers: str | Sequence[str], *, include_bias: bool = False) -> FileNegation:
    """Negate layers of a checkpoint where it lies: only their bytes are read and written, and the sign history.

    A crash at any instant, a power cut too, leaves the old model or the new one to all that read it with this package:
    the sign bits are in a journal beside the files before the first one changes, and whoever next reads the
    checkpoint after a crash undoes what was begun. **Other readers know nothing of the journal**
    (``fedunlearn-negation.journal``): where it lies there and no negation is under way, run ``fedunlearn layers`` on
    the checkpoint before anything else opens it. And a process that has the file mapped, as safetensors' own
    ``load_file`` does, sees its tensors change: negate a file that nobody has loaded.

    The history goes into the header where it has room (what `negate_file` wrote has), into the index of a
    sharded set, or into ``NAME.negations.json`` beside the file, which then belongs to it.

    Args:
        path: a safetensors file; or the index of a sharded set, or a folder with one of either.
        layers, include_bias: as `negate_file`'s.

    Raises:
        CheckpointError: as `negate_file`; or a file is a link or has several names, for others would change with it;
            or another process negates in the same folder. The checkpoint is as it was.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    with at_work(folder) as journal:
        choice = choose(find(path), layers, include_bias)
        checkpoint = choice.checkpoint
        if path.is_dir() or checkpoint.index is not None:
            list(files_of(checkpoint))  # that none of them holds the model a second time
        if checkpoint.index is not None:
            plan = _of_a_set(choice, checkpoint.index)
        else:
            plan = _of_one_file(choice, checkpoint.members[0])
        for name in sorted(plan.names):
            _require_ours(folder / name)
        carry_out(journal, plan)
    note = None if checkpoint.index is not None or not plan.notes else folder / plan.notes[0].name
    return _done(choice, sum(member.stamp[2] for member in checkpoint.members), note)


def _of_a_set(choice: Choice, index: Index) -> Plan:
    """How shards and index are changed; what notes beside single shards tell goes into the index."""
    members = [member for member in choice.checkpoint.members if choice.stretches(member) or member.noted]
    gone = [note_of(member.path) for member in members if member.noted]
    return Plan(
        tuple(_change(choice, member, member.header.text) for member in members),
        (
            Note(index.path.name, index.text, choice.index_text(index)),
            *(Note(path.name, text_of(path, LARGEST), None) for path in gone),
        ),
    )


def _of_one_file(choice: Choice, member: Member) -> Plan:
    """How a file without an index is changed, and the note beside it if its header has no room."""
    text = choice.header_text(member)
    if len(text) == len(member.header.text):
        return Plan((_change(choice, member, text),), ())
    path = note_of(member.path)
    after = note_text((*member.noted, choice.names), member.header, choice.stretches(member), _starts(choice, member))
    change = _change(choice, member, member.header.text)
    return Plan((change,), (Note(path.name, text_of(path, LARGEST), after),))


def _change(choice: Choice, member: Member, text: bytes) -> Change:
    size = member.stamp[2]
    return Change(member.path.name, size, member.header.text.decode(), text.decode(), choice.stretches(member))


def _starts(choice: Choice, member: Member) -> list[bytes]:
    """The first bytes of what is negated, as they will be."""
    starts = []
    with opened(member.path) as (file, _):
        for stretch in choice.stretches(member):
            numbers = file.read(stretch.start, mark_of(stretch))
            flip(numbers, stretch.dtype)
            starts.append(numbers.tobytes())
    return starts


def _done(choice: Choice, file_bytes: int, note: Path | None = None) -> FileNegation:
    checkpoint, names = choice.checkpoint, choice.names
    told = told_by_an_index(checkpoint.path) if checkpoint.index is None else ()
    again = tuple(name for name in names if any(name in before for before in (*told, *checkpoint.history)))
    tensors = (name for member in checkpoint.members for name in member.header.tensors)
    means = tuple(name for name in tensors if name.endswith("running_mean"))
    negated = sum(one.stop - one.start for member in checkpoint.members for one in choice.stretches(member))
    return FileNegation(names, again, means, negated, file_bytes, note)


def _require_ours(path: Path) -> None:
    """That nobody else's file changes with it."""
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link: name the file itself, or negate into a new one (--output)")
    if path.stat().st_nlink > 1:
        raise CheckpointError(f"{path} has other names (hard links), which would change too: negate into a new file")
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path!r} has no readable name: rename it first") from None


def _require_free(source: Path, output: Path, force: bool) -> None:
    settle(output)  # or a journal would speak of a file that is another soon
    if not output.exists():
        return
    if output.samefile(source):
        raise CheckpointError(f"{output} is the source itself: write to another file, or negate it in place")
    if output.is_dir():
        raise CheckpointError(f"{output} is a folder: name a file in it")
    if not force:
        raise CheckpointError(f"{output} exists: choose another name, or replace it with --force (force=True)")
