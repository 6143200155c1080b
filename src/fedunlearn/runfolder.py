"""A run's folder: which experiment it belongs to, who works in it, and the records in it; and the cache of models."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from fedunlearn.atomic import FileError, atomic_write, make_folder, read_json, write_json
from fedunlearn.checkpoint import CheckpointError
from fedunlearn.environment import environment
from fedunlearn.experiment import Experiment
from fedunlearn.experimentfile import resolved
from fedunlearn.record import Record, copy_durably

__all__ = [
    "FIRST_TRAINING",
    "Cache",
    "FolderError",
    "InUseError",
    "RunFolder",
    "differences",
    "folders",
    "leaves",
    "runs_in",
]

_EXPERIMENT, _ENVIRONMENT, _PARTITION, _LOCK = "experiment.toml", "environment.json", "partition.json", ".lock"

FIRST_TRAINING = "First training"  # the name of a record
_REQUEST = "request"  # folders of the runs, one for each request
_SAID = ("title", "story", "minutes", "published", "series")
_NAME = 60  # letters of a folder's name: file systems end at 255 bytes
_FILES = "files.json"  # of an entry of the cache
_LONG_AGO = 24 * 3600.0  # seconds: no model takes so long to be copied


class FolderError(ValueError):
    """A folder cannot take a run, or holds none; the sentence says what to do."""


def folders(experiment: Experiment, folder: Path) -> list[Path]:
    """Where the runs of an experiment are: in ``folder`` itself, or, where requests follow, one for each below it."""
    if not experiment.then:
        return [folder]
    return [folder / f"{_REQUEST}-{number}" for number in range(1, len(experiment.then) + 2)]


def runs_in(folder: Path) -> list[Path]:
    """The runs that there are in a folder, or below it where requests followed one another; else the folder itself."""
    below = sorted(folder.glob(f"{_REQUEST}-[0-9]*"), key=lambda path: (len(path.name), path.name))
    return [folder] if (folder / _EXPERIMENT).exists() or not below else below


class InUseError(FolderError):
    """Somebody else is at work in a folder."""


class RunFolder:
    """A folder with one run of one experiment.

    ``experiment.toml`` says what is run, with nothing left to defaults; ``environment.json`` on what, session by
    session; ``seed-N/`` holds a `Record` for the first training, the original model, and every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def ground(self) -> Path:
        """The folder itself, or, as long as there is none, the nearest one above it: whose disk and rights count."""
        folder = self.path.absolute()
        return next(path for path in (folder, *folder.parents) if path.exists())

    @contextmanager
    def claimed(self, experiment: Experiment, decides: Mapping[str, str], command: str) -> Iterator[None]:
        """Nobody else may run here meanwhile.

        Args:
            experiment: that the folder is for, or will be.
            decides: what decides the bits beside the experiment: an unfinished run goes on only with the same.
            command: that asks for this, for the record.

        Raises:
            FolderError: another run is at work here, or another experiment has been.
        """
        self.require_usable()
        make_folder(self.path)
        lock = FileLock(self.path / _LOCK)
        try:
            with lock.acquire(timeout=0):
                self._require_own(experiment, decides)
                # Of a process that was killed: nobody else is at work on these.
                _sweep([*self.path.glob(".*.tmp"), *self.path.glob("seed-*/**/.*.tmp")])
                with atomic_write(self.path / _EXPERIMENT) as file:
                    tomli_w.dump(resolved(experiment), file)
                if not self._all_done(experiment):
                    self._write_session(decides, command)
                yield
        except Timeout:
            raise InUseError(
                f"{self.path} is in use by another run: wait for it, or choose another folder with --output"
            ) from None

    def require_usable(self) -> None:
        """Before hours of work, not after.

        Raises:
            FolderError: this is no folder, or none that can be written to, or it holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path} is a file: name a folder for the run with --output")
        if not self.ground.is_dir() or not os.access(self.ground, os.W_OK):
            raise FolderError(
                f"{self.path} cannot be written, {self.ground} not being a folder one can write to: use --output"
            )
        if self.path.is_dir() and not (self.path / _EXPERIMENT).exists():
            strangers = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
            if strangers:
                raise FolderError(
                    f"{self.path} holds {strangers[0]}, but no run: name a new folder with --output, or remove it"
                )

    def record(self, seed: int, position: int, name: str) -> Record:
        """The record of one part of a seed, by its position in the run's order and its name."""
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", name)[:_NAME].strip("-")  # the position makes it unique
        return Record(self.path / f"seed-{seed}" / f"{position}-{slug}")

    def write_partition(self, seed: int, partition: Any) -> None:
        """Write down who holds what of a seed's data."""
        folder = self.path / f"seed-{seed}"
        make_folder(folder)
        write_json(folder / _PARTITION, partition)

    def partition(self, seed: int) -> dict[str, Any]:
        """What was written down of a seed's data."""
        return read_json(self.path / f"seed-{seed}" / _PARTITION)

    def records(self, seed: int) -> list[Record]:
        """The records of a seed that there are, in order."""
        folders = [path for path in (self.path / f"seed-{seed}").glob("*-*") if path.name.split("-")[0].isdecimal()]
        return [Record(path) for path in sorted(folders, key=lambda path: int(path.name.split("-")[0]))]

    @property
    def experiment(self) -> dict[str, Any]:
        """What is run here, as its file says it.

        Raises:
            FolderError: this is no run's folder.
        """
        try:
            return tomllib.loads((self.path / _EXPERIMENT).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise FolderError(f"{self.path} is no run's folder: it has no {_EXPERIMENT} that can be read") from None

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """On what it ran: each start of the command.

        Raises:
            FileError: the file is not as a run writes it.
        """
        path = self.path / _ENVIRONMENT
        sessions = read_json(path).get("sessions", [])
        if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
            raise FileError(f"{path} lists no sessions of a run: remove it, and what they ran on is not known any more")
        return sessions

    def _require_own(self, experiment: Experiment, decides: Mapping[str, str]) -> None:
        if not (self.path / _EXPERIMENT).exists():
            return
        differ = differences([_deciding(self.experiment), _deciding(resolved(experiment))])
        if differ:
            told = "; ".join(
                f"{name} is {_text(there)} there, {_text(here)} now" for name, (there, here) in differ.items()
            )
            raise FolderError(
                f"{self.path} holds a run of another experiment ({told}): choose another folder with --output, "
                "or remove this one"
            )
        for session in self.sessions[-1:]:
            other = list(differences([session.get("decides", {}), dict(decides)]))
            # What is complete can be looked at with any version of ours, but must not pass for the user's new code.
            users = [name for name in other if ":" in name or name in ("training data", "test data", "network")]
            if users or (other and not self._all_done(experiment)):
                raise FolderError(
                    f"{self.path} was begun with other {', '.join(users or other)}, so that its numbers would not be "
                    "those of what is here now: choose another folder with --output"
                )

    def complete(self, experiment: Experiment, seed: int) -> bool:
        """Whether nothing of a seed is left to do."""
        records = self.records(seed)
        return len(records) == 2 + len(experiment.methods) and all(record.complete for record in records)

    def _all_done(self, experiment: Experiment) -> bool:
        return all(self.complete(experiment, seed) for seed in experiment.seeds)

    def _write_session(self, decides: Mapping[str, str], command: str) -> None:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"started": started, "command": command, "decides": dict(decides), **environment()}
        write_json(self.path / _ENVIRONMENT, {"sessions": [*self.sessions, session]})


class Cache:
    """Records of first trainings and of retrained models, by all that decides their bits; shared by all runs.

    Args:
        path: a folder, which may be removed at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fetch(self, key: Mapping[str, Any], folder: Path) -> Record | None:
        """What another run has done, copied to ``folder``; None if there is nothing."""
        entry = self._entry(key)
        if not entry.is_dir():
            return None
        try:
            files = read_json(entry / _FILES).get("files")
            if not isinstance(files, dict) or any(_digest(entry / name) != told for name, told in files.items()):
                raise FileError(f"{entry} is not as it was stored")
            return Record.adopted(folder, entry)
        except (FileError, CheckpointError, OSError):  # somebody has tidied up in it, say: it is done anew
            shutil.rmtree(entry, ignore_errors=True)
            return None

    def store(self, key: Mapping[str, Any], record: Record) -> None:
        """Let other runs have a record that is complete."""
        entry = self._entry(key)
        if entry.exists():
            return
        temporary = self.path / f".{secrets.token_hex(8)}.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _sweep(path for path in self.path.glob(".*.tmp") if time.time() - path.stat().st_mtime > _LONG_AGO)
            copy_durably(record.folder, temporary)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            digests = {path.relative_to(temporary).as_posix(): _digest(path) for path in files}
            write_json(temporary / _FILES, {"files": digests})
            write_json(temporary / "key.json", key)
            os.rename(temporary, entry)
        except OSError:
            # No place to write, or somebody else was quicker: the run has its own copy and can do without.
            shutil.rmtree(temporary, ignore_errors=True)

    def _entry(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.path / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(tables: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The entries in which tables differ, by dotted name, with what each has; None where one has none."""
    flat = [dict(leaves(table)) for table in tables]
    names = dict.fromkeys(name for leaves in flat for name in leaves)
    found = {name: tuple(leaves.get(name) for leaves in flat) for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sweep(paths: Iterable[Path]) -> None:
    """Remove files and folders that nobody will rename into their places any more."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a table and of the tables in it, by dotted name."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _deciding(experiment: dict[str, Any]) -> dict[str, Any]:
    """Without what is only said of an experiment, or read off its rows afterwards."""
    said = {name: value for name, value in experiment.items() if name not in _SAID}
    recovery = said.get("recovery")
    if isinstance(recovery, Mapping):
        said["recovery"] = {name: value for name, value in recovery.items() if name != "stop"}
    return said


def _text(value: object) -> str:
    return "not said" if value is None else json.dumps(value)
