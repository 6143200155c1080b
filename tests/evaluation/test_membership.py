"""The attacks against cases whose score is known, and against plain re-implementations."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from torch import Tensor

from fedunlearn.evaluation.membership import mia, mia_efficacy


def normal(count: int, mean: float, seed: int) -> Tensor:
    return mean + torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(count: int, low: float, high: float, seed: int) -> Tensor:
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * draws


# The loss attack


def test_sets_that_do_not_differ_give_chance() -> None:
    """Within three times the standard deviation of the score, 50 / sqrt(2k)."""
    losses = normal(500, 0, seed=0).abs()
    shuffled = losses[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    found = mia(losses, shuffled, seed=0)
    assert abs(found.accuracy - 50) < 3 * 50 / math.sqrt(1000)
    assert found.auc == pytest.approx(50)


def test_the_score_scatters_as_documented() -> None:
    scores = [mia(normal(60, 0, 2 * i).abs(), normal(60, 0, 2 * i + 1).abs(), i, repeats=1).accuracy for i in range(60)]
    expected = 50 / math.sqrt(120)
    assert 0.6 * expected < float(np.std(scores)) < 1.5 * expected


def test_sets_that_are_apart_are_told_apart() -> None:
    found = mia(torch.zeros(100), torch.full((70,), 5.0), seed=0)
    assert (found.accuracy, found.std, found.samples, found.auc) == (100, 0, 70, 100)


def test_overlapping_normal_losses_give_the_best_thresholds_accuracy() -> None:
    """N(0, 1) against N(1, 1): accuracy Phi(1/2), area Phi(1/sqrt 2)."""
    found = mia(normal(5000, 0, seed=0), normal(4000, 1, seed=1), seed=0, repeats=2)
    assert found.samples == 4000
    assert found.accuracy == pytest.approx(69.15, abs=1.0)
    assert found.auc == pytest.approx(76.02, abs=1.0)


def test_it_is_two_sided_but_the_area_has_a_direction() -> None:
    low, high = normal(400, 0, seed=0), normal(400, 1.5, seed=1)
    one, other = mia(low, high, seed=0), mia(high, low, seed=0)
    assert one.accuracy == pytest.approx(other.accuracy, abs=1.5)
    assert one.accuracy > 70
    assert one.auc == pytest.approx(100 - other.auc)


def test_it_is_the_starting_kits_attack() -> None:
    """Written out with scikit-learn's parts, for sets of one size; only the order of the samples differs."""
    forget, test = normal(200, 0.5, seed=0).abs(), normal(200, 1.2, seed=1).abs()
    feature = np.concatenate([forget, test])[:, None]
    member = np.array([1] * 200 + [0] * 200)
    splits = StratifiedShuffleSplit(n_splits=10, test_size=0.1, random_state=0)
    scores = []
    for train, held_out in splits.split(feature, member):
        attack = LogisticRegression().fit(feature[train], member[train])
        scores.append(100 * attack.score(feature[held_out], member[held_out]))
    found = mia(forget, test, seed=0)
    assert found.accuracy == pytest.approx(np.mean(scores), abs=2.5)
    assert found.std == pytest.approx(np.std(scores), abs=3.5)


def test_the_area_is_the_share_of_ordered_pairs() -> None:
    forget, test = normal(40, 0.5, seed=0).round(), normal(30, 1, seed=1).round()
    pairs = (forget[:, None] < test).double() + 0.5 * (forget[:, None] == test)
    assert mia(forget, test, seed=0).auc == pytest.approx(100 * float(pairs.mean()))


def test_the_seed_decides() -> None:
    forget, test = normal(50, 0, seed=0), normal(500, 0.5, seed=1)
    assert mia(forget, test, seed=1) == mia(forget, test, seed=1)
    assert mia(forget, test, seed=1).accuracy != mia(forget, test, seed=2).accuracy


def test_more_subsamples_scatter_less() -> None:
    forget, test = normal(40, 0, seed=0), normal(2000, 0.7, seed=1)
    few = [mia(forget, test, seed=seed, repeats=1).accuracy for seed in range(12)]
    many = [mia(forget, test, seed=seed, repeats=10).accuracy for seed in range(12)]
    assert np.std(many) < np.std(few)


@pytest.mark.parametrize("count", [10, 13, 50])
def test_equal_losses_tell_nothing(count: int) -> None:
    """13 too: a split that tests on two of one set and one of the other, having learnt the rest, would
    score 33."""
    found = mia(torch.full((count,), 2.3), torch.full((100,), 2.3), seed=0)
    assert (found.accuracy, found.std, found.auc) == (50, 0, 50)
    assert found.samples == count // 10 * 10


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e12, 1e30, 1e300])
def test_huge_losses_are_attacked_as_well(factor: float) -> None:
    forget, test = uniform(300, 0.5, 2, seed=0), uniform(300, 1, 2.5, seed=1)
    found = mia(forget * factor, test * factor, seed=0)
    assert found.accuracy == pytest.approx(mia(forget * 10, test * 10, seed=0).accuracy, abs=2)
    assert found.accuracy > 60


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_refused(bad: float) -> None:
    losses = torch.ones(20)
    spoiled = losses.index_fill(0, torch.tensor([3]), bad)
    with pytest.raises(ValueError, match="forget loss is NaN or infinite"):
        mia(spoiled, losses, seed=0)
    with pytest.raises(ValueError, match="test loss is NaN or infinite"):
        mia(losses, spoiled, seed=0)


def test_sets_that_are_too_small_are_refused() -> None:
    assert mia(torch.rand(10), torch.rand(10), seed=0).samples == 10
    for forget, test, name in ((9, 20, "forget"), (20, 9, "test"), (0, 20, "forget")):
        with pytest.raises(ValueError, match=f"10 or more {name} loss values"):
            mia(torch.rand(forget), torch.rand(test), seed=0)
    with pytest.raises(ValueError, match=r"shape \(20, 2\)"):
        mia(torch.rand(20, 2), torch.rand(20), seed=0)
    with pytest.raises(ValueError, match="repeats must be 1 or more"):
        mia(torch.rand(20), torch.rand(20), seed=0, repeats=0)


# The confidence attack


def test_forget_samples_go_with_the_side_they_resemble() -> None:
    retain, test = uniform(200, 0.9, 1, seed=0), uniform(150, 0, 0.5, seed=1)
    forget = torch.cat([uniform(30, 0.9, 1, seed=2), uniform(10, 0, 0.5, seed=3)])
    assert mia_efficacy(retain, test, forget) == pytest.approx(25)


def test_it_is_the_support_vector_machine_of_the_original() -> None:
    retain, test, forget = (
        uniform(300, 0.6, 1, seed=0),
        uniform(120, 0, 1, seed=1),
        uniform(80, 0.3, 1, seed=2),
    )
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(np.concatenate([retain[:120], test])[:, None], [1] * 120 + [0] * 120)
    members = 100 * attack.predict(forget[:, None].numpy()).mean()
    assert mia_efficacy(retain, test, forget) == pytest.approx(100 - members)


def test_only_the_first_samples_train_the_attack() -> None:
    """As many retain samples as test samples, and the other way round."""
    retain, test, forget = uniform(60, 0.4, 1, seed=0), uniform(40, 0, 0.7, seed=1), uniform(50, 0, 1, seed=2)
    score = mia_efficacy(retain, test, forget)
    assert mia_efficacy(torch.cat([retain[:40], torch.zeros(500)]), test, forget) == score
    assert mia_efficacy(retain[:40], torch.cat([test, torch.ones(500)]), forget) == score


def test_large_sets_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedunlearn.evaluation.membership._SVC_SAMPLES", 30)
    retain, test, forget = uniform(60, 0.4, 1, seed=0), uniform(40, 0, 0.7, seed=1), uniform(50, 0, 1, seed=2)
    assert mia_efficacy(retain, test, forget) == mia_efficacy(retain[:30], test[:30], forget)


def test_confidences_that_are_none_are_refused() -> None:
    good = torch.rand(20)
    with pytest.raises(ValueError, match="1 or more forget confidence values"):
        mia_efficacy(good, good, torch.empty(0))
    with pytest.raises(ValueError, match="retain confidence is NaN"):
        mia_efficacy(torch.tensor([float("nan")]), good, good)
    for outside in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
            mia_efficacy(good, torch.tensor([outside]), good)


# Both, on a network that has learnt its training samples by heart


@dataclass
class Overfit:
    retain: Tensor
    forget: Tensor
    test: Tensor
    test_accuracy: float


@pytest.fixture(scope="module")
def overfit() -> Overfit:
    """Probabilities of the true class: of 500 noisy digits, 100 of them to be forgotten, and 500 unseen."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))[:1000]
    images, labels = images[order] / 16 + rng.normal(0, 0.5, (1000, 64)), labels[order]
    network = MLPClassifier((128,), alpha=0, solver="lbfgs", max_iter=400, random_state=0)
    network.fit(images[:500], labels[:500])
    assert network.score(images[:500], labels[:500]) == 1
    true = torch.from_numpy(network.predict_proba(images)[np.arange(1000), labels]).clamp(1e-12, 1)
    return Overfit(true[100:500], true[:100], true[500:], 100 * network.score(images[500:], labels[500:]))


def test_the_original_model_gives_its_forget_samples_away_by_their_loss(overfit: Overfit) -> None:
    found = mia(-overfit.forget.log(), -overfit.test.log(), seed=0)
    assert overfit.test_accuracy < 80
    assert found.accuracy >= 50 + (100 - overfit.test_accuracy) / 2 - 3
    assert found.auc > 60


def test_the_original_model_takes_its_forget_samples_for_members(overfit: Overfit) -> None:
    assert mia_efficacy(overfit.retain, overfit.test, overfit.forget) <= 2
    assert mia_efficacy(overfit.retain, overfit.test, overfit.test) > 100 - overfit.test_accuracy
