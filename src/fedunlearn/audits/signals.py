"""What attackers on membership read off a model: how sure it is of each sample's class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedunlearn.federation import Choose, ClientContext, Part, Reply

__all__ = ["Confidence", "confidence"]

_LARGEST = 1e6  # of logits that are infinite, so that means and differences are numbers


@dataclass(frozen=True)
class Confidence:
    """How sure the weights that were sent are of a client's samples, in eval mode and without augmentation.

    A program: it runs where the data are. Answers with ``confidence`` per sample, ``(n,)`` float64 (`confidence`), in
    the client's own order, for audits by whoever may see single samples' values.

    Attributes:
        part: of the client's samples.
        of: which of them; None: all in the view.
        batch_size: samples a forward pass.
    """

    part: Part = "train"
    of: Choose | None = None
    batch_size: int = 500

    def __call__(self, context: ClientContext) -> Reply:
        """See `Confidence`."""
        model = context.model.eval()
        values = [torch.zeros(0, dtype=torch.float64)]
        with torch.no_grad():
            for batch in context.batches(0, self.batch_size, of=self.of, part=self.part, train=False):
                values.append(confidence(model(batch.x).cpu(), batch.y.cpu()))
        found = torch.cat(values)
        return Reply(None, len(found), values={"confidence": found})


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """The true class's probability p on the scale where it is near to normal: log(p / (1 - p)).

    As in LiRA (Carlini et al., "Membership inference attacks from first principles", S&P 2022, section IV-B), computed
    as z_y - logsumexp(z of the other classes), which loses nothing where p is near to 1.

    Args:
        logits: ``(n, classes)``, two classes at least.
        labels: ``(n,)``, int64.

    Returns:
        ``(n,)``, float64, within 1e6 of 0.

    Raises:
        ValueError: a logit is NaN: the model has diverged.
    """
    scores = logits.double()
    if bool(scores.isnan().any()):
        raise ValueError("the model's outputs are not numbers: it has diverged, so there is nothing to attack")
    scores = scores.clamp(-_LARGEST, _LARGEST)
    true = scores.gather(1, labels[:, None]).squeeze(1)
    others = scores.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return (true - others).clamp(-_LARGEST, _LARGEST)
