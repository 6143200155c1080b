"""Population attacks on membership: can the forgotten samples be told from samples never seen?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedunlearn.randomness import generator

__all__ = ["MIA_SAMPLES", "Membership", "mia", "mia_efficacy"]

MIA_SAMPLES = 10
"""The least number of forget and of test samples that `mia` takes: one for the test part of each split."""

_SPLITS = MIA_SAMPLES  # each tests on a tenth, so this many samples of each set are needed
_LARGEST_LOSS = 1e6
_SVC_SAMPLES = 10_000


@dataclass(frozen=True)
class Membership:
    """How well `mia` tells forget from test samples.

    Attributes:
        accuracy: percent; the mean over subsamples and splits. By chance 50.
        std: percentage points; standard deviation over all splits of all subsamples. That of the mean over
            one subsample is, near 50, about 50 / sqrt(2 samples): the splits overlap.
        samples: of each class that the attack had.
        auc: percent; how often a forget sample has a lower loss than a test sample, ties counting half, over
            all pairs. By chance 50; above, the forget samples look more like training samples than the test
            samples do.
    """

    accuracy: float
    std: float
    samples: int
    auc: float


def mia(forget_losses: Tensor, test_losses: Tensor, seed: int, repeats: int = 5) -> Membership:
    """Attack by the loss: logistic regression on one feature, forget (member) against test (non-member).

    This is the attack of the NeurIPS 2023 machine unlearning challenge's starting kit: the larger set is cut
    to the size of the smaller, at random (here rounded down to a multiple of ten); the score is the mean
    accuracy of 10 stratified shuffle splits, a tenth tested in each. That is repeated for several
    subsamples, since one alone is a noisy estimate. The paper does not say what its MIA columns are; of the
    common attacks this one is the nearest to their values.

    The measure is two-sided, and **50 is not the target: the value of the retrained model is**. Where forget
    and test samples are of different kinds (a class, a backdoor), retraining gives 70 to 100.

    Args:
        forget_losses, test_losses: cross-entropy of each sample, ``(n_forget,)`` and ``(n_test,)``, of the
            model in evaluation mode, without augmentation; 10 each at least.
        seed: of the subsamples.
        repeats: number of subsamples.

    Raises:
        ValueError: a set has fewer than 10 losses, or one that is not finite; ``repeats`` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, not {repeats}")
    forget, test = _values("forget loss", forget_losses, _SPLITS), _values("test loss", test_losses, _SPLITS)
    auc = roc_auc_score(_labels(len(forget), len(test)), -np.concatenate([forget, test]))
    # Above about 1e7 scikit-learn's solver stays at its starting point; a common factor moves no sample
    # across a threshold. Below the losses are left as they are: the kit does not standardise them, and its
    # penalty sees it.
    scale = max(1.0, forget.max() / _LARGEST_LOSS, test.max() / _LARGEST_LOSS)
    # Only a multiple of ten has a tenth. Otherwise the tested part can hold more of one set, the rest more of
    # the other, and an attack that finds nothing scores below 50 (13 of each: 33).
    samples = min(len(forget), len(test)) // _SPLITS * _SPLITS
    splits = StratifiedShuffleSplit(_SPLITS, test_size=1 / _SPLITS, random_state=0)
    scores = []
    for repeat in range(repeats):
        rng = generator("mia", seed, repeat)
        chosen = [losses[torch.randperm(len(losses), generator=rng)[:samples].numpy()] for losses in (forget, test)]
        feature = np.concatenate(chosen).reshape(-1, 1) / scale
        attack, member = LogisticRegression(), _labels(samples, samples)
        # Threads cost the solver of two numbers four times what it computes, and the values have been looked at.
        with threadpool_limits(1, "blas"), config_context(assume_finite=True, skip_parameter_validation=True):
            scores.append(cross_val_score(attack, feature, member, cv=splits, error_score="raise"))
    return Membership(100 * float(np.mean(scores)), 100 * float(np.std(scores)), samples, 100 * float(auc))


def mia_efficacy(retain_confidences: Tensor, test_confidences: Tensor, forget_confidences: Tensor) -> float:
    """Attack by the confidence: percent of the forget samples that it takes for non-members.

    This is "MIA-efficacy" (Jia et al., "Model sparsity can simplify machine unlearning", NeurIPS 2023; also
    SalUn's): a support vector machine learns to tell retain (member) from test samples and is then asked
    about the forget samples. Higher is not simply better: the retrained model's value is the target. It is
    about 0 for the original model.

    As in the original, as many retain samples as there are test samples serve, the first ones; so both sets
    should be in random order. More than 10,000 of each are left out, for fitting takes quadratic time; and if
    there are fewer retain samples, the test samples are cut to as many.

    Args:
        retain_confidences, test_confidences, forget_confidences: probability that the model gives the true
            class, ``(n,)`` each, in [0, 1].

    Raises:
        ValueError: a set is empty, or a confidence lies outside [0, 1].
    """
    retain, test, forget = (
        _values(f"{name} confidence", confidences, 1)
        for name, confidences in (
            ("retain", retain_confidences),
            ("test", test_confidences),
            ("forget", forget_confidences),
        )
    )
    if min(map(np.min, (retain, test, forget))) < 0 or max(map(np.max, (retain, test, forget))) > 1:
        raise ValueError("confidences are probabilities: give values in [0, 1]")
    samples = min(len(retain), len(test), _SVC_SAMPLES)
    feature = np.concatenate([retain[:samples], test[:samples]]).reshape(-1, 1)
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(feature, _labels(samples, samples))
    return 100 * float(np.mean(attack.predict(forget.reshape(-1, 1)) == 0))


def _labels(members: int, others: int) -> NDArray[np.int64]:
    return np.repeat([1, 0], [members, others])


def _values(name: str, values: Tensor, least: int) -> NDArray[np.float64]:
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f"the attack needs a row of {least} or more {name} values, not shape {tuple(values.shape)}")
    array: NDArray[np.float64] = values.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"a {name} is NaN or infinite: the model has diverged, so there is nothing to attack")
    return array
