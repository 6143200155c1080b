"""All targets, by name."""

from __future__ import annotations

from collections.abc import Mapping

from fuzzing.checkpoint import CHECKPOINT, CHECKPOINT_FOLDER
from fuzzing.data import CIFAR, IDX
from fuzzing.experiment import EXPERIMENT
from fuzzing.outbox import OUTBOX
from fuzzing.register import REGISTER_EVENTS, REGISTER_FILE
from fuzzing.run import FOUND, RECORD
from fuzzing.statement import KEY, RECEIPT, REQUEST
from fuzzing.target import Target
from fuzzing.wire import ANSWER, ORDER, TALK

__all__ = ["TARGETS"]

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        *(EXPERIMENT, CHECKPOINT, CHECKPOINT_FOLDER, ORDER, ANSWER, TALK, REGISTER_FILE, REGISTER_EVENTS),
        *(REQUEST, RECEIPT, KEY, OUTBOX, RECORD, FOUND, IDX, CIFAR),
    )
}
