"""Remove data from federated models: NoT (CVPR 2025) and its rivals under one contract.

The names below are the public ones. They are imported when they are first used, so that the command line can
say what it is without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedunlearn.backends.in_process import InProcess as InProcess
    from fedunlearn.client import Client as Client
    from fedunlearn.evaluation.follow import follow as follow
    from fedunlearn.evaluation.follow import unlearn as unlearn
    from fedunlearn.layers import FIRST as FIRST
    from fedunlearn.methods.finetune import FineTune as FineTune
    from fedunlearn.methods.negation import NoT as NoT
    from fedunlearn.methods.retrain import Retrain as Retrain
    from fedunlearn.negation import negate as negate
    from fedunlearn.negation import negate_layers as negate_layers
    from fedunlearn.programs import SGD as SGD
    from fedunlearn.programs import Adam as Adam
    from fedunlearn.programs import Evaluate as Evaluate
    from fedunlearn.programs import LocalTraining as LocalTraining
    from fedunlearn.requests import AnyOf as AnyOf
    from fedunlearn.requests import ForgetClass as ForgetClass
    from fedunlearn.requests import ForgetClient as ForgetClient
    from fedunlearn.requests import ForgetInstances as ForgetInstances
    from fedunlearn.rounds import train as train
    from fedunlearn.task import Task as Task
    from fedunlearn.weights import Weights as Weights

_HOMES = {
    "FIRST": "layers",
    "SGD": "programs",
    "Adam": "programs",
    "AnyOf": "requests",
    "Client": "client",
    "Evaluate": "programs",
    "FineTune": "methods.finetune",
    "ForgetClass": "requests",
    "ForgetClient": "requests",
    "ForgetInstances": "requests",
    "InProcess": "backends.in_process",
    "LocalTraining": "programs",
    "NoT": "methods.negation",
    "Retrain": "methods.retrain",
    "Task": "task",
    "Weights": "weights",
    "follow": "evaluation.follow",
    "negate": "negation",
    "negate_layers": "negation",
    "train": "rounds",
    "unlearn": "evaluation.follow",
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
