"""The models of a server: each on the disk before the event that names it, none kept for longer than it is needed."""

from __future__ import annotations

from fedunlearn.checkpoint import CheckpointError, load_weights, save_weights
from fedunlearn.deletion.events import RoundDone
from fedunlearn.deletion.plan import ServiceError
from fedunlearn.deletion.register import Register
from fedunlearn.rounds import Round
from fedunlearn.weights import Weights

__all__ = ["Models"]


class Models:
    """Files in the register's folder, named by its events.

    Args:
        register: whose.
    """

    def __init__(self, register: Register) -> None:
        self._register = register

    def save(self, weights: Weights, name: str = "model") -> str:
        """Write a model, before the event that is to name its file.

        Returns:
            The file's name.

        Raises:
            ServiceError: it cannot be written.
        """
        file = f"{self._register.head.count:08d}-{name}.safetensors"
        try:
            save_weights(weights, self._register.checkpoints / file)
        except CheckpointError as error:
            raise ServiceError(f"{error}: make room, or let this user write there, then start again") from None
        return file

    def load(self, file: str, digest: str) -> Weights:
        """Read a model.

        Raises:
            ServiceError: the file is gone, or is not what the register says.
        """
        path = self._register.checkpoints / file
        try:
            weights = load_weights(path)
        except (CheckpointError, OSError) as error:
            raise ServiceError(
                f"the model {path} that the register names cannot be read ({error}): restore it"
            ) from None
        if weights.digest(32) != digest:
            raise ServiceError(f"the model {path} is not the one that the register names: restore it")
        return weights

    def after(self, done: RoundDone) -> Round:
        """A round as it was left behind.

        Raises:
            ServiceError: a file is gone, or is not what the register says.
        """
        carried = {name: self.load(file, digest) for name, (file, digest) in done.carried.items()}
        return Round(done.number, self.load(done.checkpoint, done.model), carried)

    def prune(self) -> None:
        """Keep no model that nothing needs any more: older ones know what has been forgotten since.

        Raises:
            ServiceError: one cannot be removed.
        """
        standing, needed = self._register.standing(), set[str]()
        if standing.last is not None:
            needed |= {standing.last.checkpoint, *(file for file, _ in standing.last.carried.values())}
        if standing.current is not None:
            needed.add(standing.current.began.checkpoint)
        for path in self._register.checkpoints.iterdir():
            if path.name not in needed:
                try:
                    path.unlink()
                except OSError as error:
                    raise ServiceError(
                        f"the old model {path} cannot be removed ({error.strerror}): let this user write there"
                    ) from None
