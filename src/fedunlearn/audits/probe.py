"""Linear probes: what the features of each layer still say, whatever the last layer makes of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedunlearn.audits.signals import confidence
from fedunlearn.federation import Choose, ClientContext, Part, Reply
from fedunlearn.kinds import LAYER_KINDS
from fedunlearn.layers import layers

__all__ = ["Features", "probe"]

_PLACES = 2  # of each dimension of a feature map: more features than samples would fit anything
_PENALTY, _STEPS = 0.01, 200  # inverse strength, for some features are near to constant; of the solver


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


def probe(
    known: NDArray[np.float32], labels: NDArray[np.int64], asked: NDArray[np.float32], asked_labels: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64]]:
    """Ask a linear probe, fitted on some samples' classes, for those of others, by a layer's features.

    A layer that was trained on samples makes them easier to tell apart than others of their kind. The probe itself was
    fitted on neither, so that whatever it knows more of the one than of the other, the features say.

    Args:
        known: features, ``(n, d)``, of samples that were in no training.
        labels: their classes, ``(n,)``; two different ones at least.
        asked: features, ``(m, d)``.
        asked_labels: their classes, ``(m,)``.

    Returns:
        The accuracy on what was asked, in [0, 1]; and how sure the probe is of each one's class, ``(m,)``, as
        `fedunlearn.audits.signals.confidence`. Of a class that it does not know it is sure that there is none.
    """
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=_STEPS))
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits may still move
        fitted.fit(known, labels)
    scores = fitted.decision_function(asked)  # logits; of chances those below 1e-38 would all be 0
    if scores.ndim == 1:  # of two classes, how much more the second
        scores = np.stack([np.zeros_like(scores), scores], 1)
    logits = np.full((len(asked), max(*labels, *asked_labels) + 1), -np.inf)
    logits[:, fitted.classes_] = scores
    accuracy = float(np.mean(logits.argmax(1) == asked_labels))
    return accuracy, confidence(torch.from_numpy(logits), torch.from_numpy(asked_labels)).numpy()


def _flat(output: Tensor) -> Tensor:
    """One row of features a sample, a copy: an activation in place may write over the output."""
    if output.ndim == 4:
        output = F.adaptive_avg_pool2d(output, min(_PLACES, *output.shape[-2:]))
    elif output.ndim == 3:
        output = output.mean(1)
    return output.flatten(1).to(torch.float32, copy=True)
