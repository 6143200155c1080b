"""Advice: candidates of known networks, predictions recomputed from scratch, and orders held against outcomes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.layers import LayerError
from fedunlearn.theory import advice
from fedunlearn.theory.advice import Advice, Prediction, advise, candidates
from fedunlearn.theory.jacobian import gradient_norms
from fedunlearn.theory.poset import LayerPoset

Samples = tuple[Tensor, Tensor]
INPUTS, CLASSES = 8, 3


def chain(activation: type[nn.Module] = nn.Tanh, *, bias: bool = True) -> nn.Sequential:
    """Three layers, named 0, 2 and 4."""
    widths = (INPUTS, 24, 16)
    hidden = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b, bias=bias), activation())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], CLASSES, bias=bias))


class Branched(nn.Module):
    """first, then left and right beside one another and a way around both, then head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(INPUTS, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.head(h + self.left(h).relu() + self.right(h).relu())


class TwoHeads(nn.Module):
    """Whose output two layers make together."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(INPUTS, 6), nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.one(h) + self.other(h)


class Bare(nn.Module):
    """Whose last layer is a parameter, and no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(INPUTS, 6), nn.Parameter(torch.randn(CLASSES, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x).relu(), self.last)


def drawn(count: int, seed: int) -> Samples:
    """Classes by a linear rule, a quarter of them wrong, so that there is something to learn by heart."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=rng)
    y = (x[:, :CLASSES] + x[:, CLASSES : 2 * CLASSES]).argmax(1)
    wrong = torch.rand(count, generator=rng) < 0.25
    return x, torch.where(wrong, torch.randint(CLASSES, (count,), generator=rng), y)


KNOWN, UNSEEN = drawn(120, 0), drawn(90, 1)
EXAMPLE = KNOWN[0][:2]


def trained(network: nn.Module, steps: int = 150) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(KNOWN[0]), KNOWN[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def pair(build: object, seed: int = 0, **options: object) -> tuple[nn.Module, nn.Module]:
    """A trained network, and one newly drawn."""
    torch.manual_seed(seed)
    return trained(build(**options)), build(**options).eval()  # type: ignore[operator]


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    return pair(chain)


def told(
    networks: tuple[nn.Module, nn.Module],
    sets: Sequence[Sequence[str]] = (),
    known: Samples = KNOWN,
    unseen: Samples = UNSEEN,
    seed: int = 0,
) -> Advice:
    model, fresh = networks
    return advise(model, EXAMPLE, sets=sets, fresh=fresh, trained_on=known, unseen=unseen, seed=seed)


def of(found: Advice, *layers: str) -> Prediction:
    (prediction,) = (one.prediction for one in found.candidates if one.layers == layers)
    assert prediction is not None
    return prediction


# Candidates


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (chain(), (("0",), ("2",), ("0", "2"))),
        (Branched(), (("first",), ("left",), ("right",), ("first", "left"), ("first", "right"))),
        (TwoHeads(), (("first",),)),
        (nn.Sequential(nn.Linear(INPUTS, CLASSES)), ()),
    ],
)
def test_candidates_are_single_layers_and_neighbours_without_the_last(
    network: nn.Module, expected: tuple[tuple[str, ...], ...]
) -> None:
    assert candidates(LayerPoset.of(network, EXAMPLE)) == expected


def test_without_data_candidates_stand_as_they_run_with_what_the_theory_says() -> None:
    found = advise(Branched(), EXAMPLE)
    assert [one.name for one in found.candidates] == ["first", "left", "right", "first, left", "first, right"]
    assert found.samples == (0, 0)
    assert [one.cauchy_by_paths for one in found.candidates] == [True, False, False, False, False]
    assert all(one.prediction is None for one in found.candidates)
    first, left, *_ = (one.says for one in found.candidates)
    assert first == "no theorem says that layer-wise optimality is preserved."
    assert left.endswith("; paths go around it, so Theorem 6 says nothing of it.")
    covered, *_ = advise(chain(), EXAMPLE).candidates
    assert covered.conditions.covered_by_theorem
    assert covered.says == "Theorem 7 covers it."


def test_a_set_is_one_however_it_is_written() -> None:
    sets = (("2", "0"), ("0.weight", "2"), ["0", "2.weight"], "2")
    assert [one.layers for one in advise(chain(), EXAMPLE, sets=sets).candidates] == [("0", "2"), ("2",)]


# Predictions


def independent(networks: tuple[nn.Module, nn.Module], layer: str) -> tuple[float, float, float, float]:
    """Loss, changed, memory and use, by numpy and scikit-learn."""
    model, fresh = networks
    negated = copy.deepcopy(model)
    with torch.no_grad():
        negated.get_parameter(f"{layer}.weight").neg_()
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0)).numpy()
    fitted, held = order[:60], order[60:]

    def read(network: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(network, nn.Sequential)
        with torch.no_grad():
            return network[:-1](x).numpy(), network(x).double().numpy()

    def surest(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        own = chances[np.arange(len(y)), y]
        chances[np.arange(len(y)), y] = 0
        return np.log(own) - np.log(chances.sum(1))

    known, others = KNOWN[1].numpy(), UNSEEN[1].numpy()

    def signs(network: nn.Module) -> list[tuple[float, float]]:
        (features, scores), (new, new_scores) = read(network, KNOWN[0]), read(network, UNSEEN[0])
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        fit.fit(features[fitted], known[fitted])
        found = []
        for of_held, of_new in (
            (scores[held], new_scores),
            (fit.decision_function(features[held]), fit.decision_function(new)),
        ):
            sure = np.concatenate([surest(of_held, known[held]), surest(of_new, others)])
            member = np.r_[np.ones(len(held)), np.zeros(len(others))]
            found.append((float(roc_auc_score(member, sure)), float((of_new.argmax(1) == others).mean())))
        return found

    now, before, anew = signs(negated), signs(model), signs(fresh)
    memory = [(n[0] - 0.5) / (b[0] - 0.5) for n, b in zip(now, before, strict=True) if b[0] - 0.5 > 0.02]
    use = [(n[1] - a[1]) / (b[1] - a[1]) for n, b, a in zip(now, before, anew, strict=True) if b[1] - a[1] > 0.02]
    assert len(memory) == len(use) == 2  # all four tell something here
    after, first = read(negated, KNOWN[0])[1], read(model, KNOWN[0])[1]
    shifted = after - after.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(120), known]
    changed = (after.argmax(1) != first.argmax(1)).mean()
    return float(losses.mean()), float(changed), float(np.mean(memory)), float(np.mean(use))


@pytest.mark.parametrize("layer", ["0", "2"])
def test_a_prediction_recomputed_from_scratch(networks: tuple[nn.Module, nn.Module], layer: str) -> None:
    found = of(told(networks, [[layer]]), layer)
    assert (found.loss, found.changed, found.memory, found.useful) == pytest.approx(
        independent(networks, layer), rel=1e-6
    )
    assert found.changed > 0.2
    assert found.distance == math.hypot(max(found.memory, 0), max(1 - found.useful, 0))


def test_a_negation_that_a_symmetry_undoes_leaves_all_of_memory_and_use() -> None:
    """tanh is odd and there is no bias: with both hidden layers negated, the features are the same bits."""
    networks = pair(chain, bias=False)
    found = of(told(networks, [("0", "2"), ("0",)]), "0", "2")
    assert (found.memory, found.useful, found.distance) == (1, 1, 1)
    assert found.changed == 0
    with torch.no_grad():
        assert found.loss == float(F.cross_entropy(networks[0](KNOWN[0]).double(), KNOWN[1]))
    assert of(told(networks, [("0",)]), "0").changed > 0.2


def test_a_negation_that_leaves_a_newly_drawn_network_leaves_no_use(networks: tuple[nn.Module, nn.Module]) -> None:
    anew = copy.deepcopy(networks[0])
    with torch.no_grad():
        anew.get_parameter("0.weight").neg_()
    assert of(told((networks[0], anew), [("0",)]), "0").useful == 0


class Gated(nn.Module):
    """Through which nothing comes where the first layer is negated: its input and its weights are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(INPUTS, INPUTS, bias=False), nn.Linear(INPUTS, 24)
        self.head = nn.Linear(24, CLASSES)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(INPUTS))
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rest(self.first(x.exp()).relu().sqrt()).tanh())


def test_of_a_network_that_sees_nothing_neither_memory_nor_use_is_left() -> None:
    model, _ = pair(Gated)
    blind = copy.deepcopy(model)
    with torch.no_grad():
        blind.get_parameter("first.weight").zero_()
    found = of(told((model, blind)), "first")
    assert found.memory == pytest.approx(0, abs=0.15)  # classes are not quite as frequent among the unseen
    assert found.useful == 0
    assert found.distance == pytest.approx(1, abs=0.02)


def test_starved_are_layers_with_less_than_a_tenth_of_a_fresh_networks_gradient(
    networks: tuple[nn.Module, nn.Module],
) -> None:
    assert of(told(networks, [("0",)]), "0").starved == ()
    loud = copy.deepcopy(networks[1])
    with torch.no_grad():
        loud.get_parameter("4.weight").mul_(70)  # so that what lies below has a gradient as much larger
    negated = copy.deepcopy(networks[0])
    with torch.no_grad():
        negated.get_parameter("0.weight").neg_()
    now, then = gradient_norms(negated, *KNOWN), gradient_norms(loud, *KNOWN)
    assert [now[name] / then[name] < 0.1 for name in "024"] == [False, True, False]
    assert of(told((networks[0], loud), [("0",)]), "0").starved == ("2",)


def test_the_nearest_to_no_memory_and_all_use_comes_first(networks: tuple[nn.Module, nn.Module]) -> None:
    found = told(networks)
    distances = [one.prediction.distance for one in found.candidates if one.prediction]
    assert len(distances) == 3
    assert distances == sorted(distances)
    assert len(set(distances)) == 3
    assert found.samples == (120, 90)


def test_distances_by_hand() -> None:
    def distance(memory: float, useful: float) -> float:
        return Prediction(1.0, 0.5, memory, useful, ()).distance

    assert distance(0, 1) == 0
    assert distance(1, 1) == distance(0, 0) == 1
    assert distance(0.3, 0.6) == pytest.approx(0.5)
    assert distance(-0.2, 1.1) == 0  # less than nothing is nothing, more than all is all


@pytest.mark.parametrize(
    ("memory", "useful", "starved", "says"),
    [
        (0.61, 0.9, (), "forgets too little: 61% of what tells whom it was trained on is left; "),
        (0.2, 0.1, (), "forgets, but recovers slowly: 10% of what it can do is left; "),
        (0.2, -0.1, (), "forgets, but recovers slowly: 0% of what it can do is left; "),
        (-0.2, 0.8, (), "forgets (0% of memory is left) and keeps 80% of what it can; "),
        (0.1, 0.8, ("0", "2"), "forgets (10% of memory is left) and keeps 80% of what it can; little gradient reaches 0, 2; "),  # noqa: E501
    ],
)  # fmt: skip
def test_what_to_expect_is_said(memory: float, useful: float, starved: tuple[str, ...], says: str) -> None:
    (one,) = advise(chain(), EXAMPLE, sets=[("0",)]).candidates
    predicted = Prediction(1.0, 0.5, memory, useful, starved)
    assert advice.Candidate(one.layers, one.conditions, True, predicted).says == f"{says}Theorem 7 covers it."


def test_a_sign_that_tells_nothing_is_left_out_of_the_mean() -> None:
    assert advice._mean_share([(0.6, 0.5, 0.9), (0.3, 0.5, 0.51)]) == pytest.approx(0.25)
    assert advice._mean_share([(0.6, 0.5, 0.9), (0.6, 0.5, 0.7)]) == pytest.approx((0.25 + 0.5) / 2)
    assert advice._mean_share([(0.6, 0.5, 0.51), (0.3, 0.5, 0.4)]) == 0


def test_the_same_seed_gives_the_same_bits_and_another_other_halves(networks: tuple[nn.Module, nn.Module]) -> None:
    assert told(networks) == told(networks)
    one, other = (of(told(networks, [("0",)], seed=seed), "0") for seed in (0, 1))
    assert (one.loss, one.changed) == (other.loss, other.changed)
    assert one.memory != other.memory


def test_networks_are_left_as_they_were(networks: tuple[nn.Module, nn.Module]) -> None:
    model, fresh = (copy.deepcopy(network).train() for network in networks)
    model.get_submodule("1").eval()
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in (model, fresh)]
    found = told((model, fresh))
    assert found == told(networks)  # and are looked at in eval mode
    for network, then in zip((model, fresh), before, strict=True):
        assert all(bool((value == then[name]).all()) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters()) or network is model
        assert not any(module._forward_pre_hooks for module in network.modules())
    assert [module.training for module in model] == [True, False, True, True, True]  # type: ignore[attr-defined]
    assert fresh.training


def test_a_wrapped_network_is_looked_at_within(networks: tuple[nn.Module, nn.Module]) -> None:
    assert told((nn.DataParallel(networks[0]), nn.DataParallel(networks[1]))) == told(networks)


# What is refused


@pytest.mark.parametrize("sets", [[("nothing",)], [("0", "nothing")], [("0", "")], "3"])
def test_what_is_no_layer_is_refused(sets: Sequence[Sequence[str]]) -> None:
    with pytest.raises(LayerError):
        advise(chain(), EXAMPLE, sets=sets)


def test_a_part_of_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="is a part of a layer, which the order does not know: name the whole layer"):
        advise(chain(), EXAMPLE, sets=[("0[0:2]",)])


def test_of_one_layer_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="one layer alone: there is nothing to choose from"):
        advise(nn.Sequential(nn.Linear(INPUTS, CLASSES)), EXAMPLE)


@pytest.mark.parametrize(("known", "unseen"), [(49, 50), (50, 49)])
def test_too_few_samples_are_refused_and_fifty_are_not(
    networks: tuple[nn.Module, nn.Module], known: int, unseen: int
) -> None:
    def first(samples: Samples, count: int) -> Samples:
        return samples[0][:count], samples[1][:count]

    with pytest.raises(ValueError, match=f"{known} samples that were trained on and {unseen} others are too few"):
        told(networks, known=first(KNOWN, known), unseen=first(UNSEEN, unseen))
    assert told(networks, [("0",)], known=first(KNOWN, 50), unseen=first(UNSEEN, 50)).samples == (50, 50)


def test_samples_of_one_class_are_refused(networks: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(ValueError, match="of one class, which a probe cannot tell from another: give samples of sev"):
        told(networks, known=(KNOWN[0], torch.zeros_like(KNOWN[1])))


def test_an_untrained_model_is_refused(networks: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(ValueError, match="no more often than a newly drawn one: give it the trained weights"):
        told((networks[1], networks[1]))


@pytest.mark.parametrize(("network", "last"), [(TwoHeads, "one, other"), (Bare, "last")])
def test_without_one_last_linear_layer_there_is_no_prediction(network: type[nn.Module], last: str) -> None:
    with pytest.raises(ValueError, match=f"input of one last linear layer, but the last are {last}: ask without data"):
        told(pair(network))
    assert [one.layers for one in advise(network(), EXAMPLE).candidates] == [("first",)]


@pytest.mark.parametrize("missing", ["fresh", "trained_on", "unseen"])
def test_half_of_what_a_prediction_needs_is_refused(networks: tuple[nn.Module, nn.Module], missing: str) -> None:
    given = {"fresh": networks[1], "trained_on": KNOWN, "unseen": UNSEEN, missing: None}
    with pytest.raises(ValueError, match="give all, or none"):
        advise(networks[0], EXAMPLE, **given)  # type: ignore[arg-type]
