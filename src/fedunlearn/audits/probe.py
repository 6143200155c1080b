"""Linear probes: what the features of each layer still say, whatever the last layer makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedunlearn.audits.certainty import auc
from fedunlearn.federation import Choose, ClientContext, Part, Reply
from fedunlearn.kinds import LAYER_KINDS
from fedunlearn.layers import layers

__all__ = ["Features", "class_probe", "membership_probe"]

_PLACES = 2  # of each dimension of a feature map: more features than samples would fit anything
_FOLDS = 5
_PENALTY = 0.01  # inverse strength: of 0.001 to 1 what tells most of a model that was trained on the samples


@dataclass(frozen=True)
class Features:
    """What each layer answers to a client's samples, in eval mode and without augmentation.

    A program: it runs where the data are. Answers with values per sample, in the client's own order: for each layer
    that the input flows through, by its name, ``(n, d)`` float32; for ``"labels"`` the classes, ``(n,)``; and for
    ``"predicted"`` the model's, ``(n,)``. Feature maps are averaged to 2x2 places, tokens over their positions.

    Attributes:
        part: of the client's samples.
        of: which of them; None: all in the view.
        batch_size: samples a forward pass.
    """

    part: Part = "train"
    of: Choose | None = None
    batch_size: int = 500

    def __call__(self, context: ClientContext) -> Reply:
        """See `Features`."""
        model = context.model.eval()
        names = dict.fromkeys(row.name.rpartition(".")[0] for row in layers(model) if row.kind in LAYER_KINDS)
        found: dict[str, list[Tensor]] = {}
        seen: dict[str, Tensor] = {}  # of one batch; where a layer is called several times, its last answer

        def keep(name: str, output: Any) -> None:
            seen[name] = _flat(output[0] if isinstance(output, tuple) else output)

        hooks = [
            model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name in names
        ]
        with torch.no_grad():
            for batch in context.batches(0, self.batch_size, of=self.of, part=self.part, train=False):
                seen.clear()
                predicted = model(batch.x).argmax(1)
                for name, values in {**seen, "labels": batch.y, "predicted": predicted}.items():
                    found.setdefault(name, []).append(values.cpu())
        for hook in hooks:
            hook.remove()
        values = {name: torch.cat(parts) for name, parts in found.items()}
        return Reply(None, len(values.get("labels", ())), values=values)


def membership_probe(members: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Area under the curve of a probe that tells samples in training from samples that were not, by a layer's
    features.

    Its attacker knows some of either, and asks about the rest: five folds, a sample and its twin in the same one.

    Args:
        members, others: features, ``(n, d)`` each, twins at the same position; five samples at least.

    Returns:
        In [0, 1]; by chance 0.5.

    Raises:
        ValueError: shapes do not fit.
    """
    if members.shape != others.shape or len(members) < _FOLDS:
        raise ValueError(f"features of shapes {members.shape} and {others.shape} cannot be probed")
    features, pairs = np.concatenate([members, others]), np.tile(np.arange(len(members)), 2)
    labels = np.repeat([1, 0], len(members))
    with _quiet():
        scores = cross_val_predict(
            _probe(), features, labels, groups=pairs, cv=GroupKFold(_FOLDS), method="decision_function"
        )
    return auc(scores[labels == 1], scores[labels == 0])


def class_probe(
    known: NDArray[np.float32], labels: NDArray[np.int64], asked: Mapping[str, tuple[NDArray[np.float32], Any]]
) -> dict[str, float]:
    """Accuracy with which a probe that was fitted on some samples' classes finds those of others, by a layer's
    features.

    Args:
        known: features, ``(n, d)``, of samples that were in no training.
        labels: their classes, ``(n,)``; two different ones at least.
        asked: sets of features and classes, by name.

    Returns:
        In [0, 1], by name.
    """
    with _quiet():
        probe = _probe().fit(known, labels)
        return {name: float(np.mean(probe.predict(x) == y)) for name, (x, y) in asked.items()}


def _flat(output: Tensor) -> Tensor:
    """One row of features a sample."""
    if output.ndim == 4:
        output = F.adaptive_avg_pool2d(output, min(_PLACES, *output.shape[-2:]))
    elif output.ndim == 3:
        output = output.mean(1)
    return output.flatten(1).float()


def _probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=200))


class _quiet:  # noqa: N801 - used like a function
    """One thread, which is quicker, and no warning where the last digit is still moving."""

    def __enter__(self) -> None:
        self.threads, self.warnings = threadpool_limits(1, "blas"), warnings.catch_warnings()
        self.threads.__enter__()
        self.warnings.__enter__()
        warnings.simplefilter("ignore", ConvergenceWarning)

    def __exit__(self, *error: Any) -> None:
        self.warnings.__exit__(*error)
        self.threads.__exit__(*error)
