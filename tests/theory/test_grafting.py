"""Grafting: every tensor from one model, layers that fit cost nothing, and those of strangers cost a lot."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm

from fedunlearn.models import build
from fedunlearn.negation import negate
from fedunlearn.theory.activations import compare
from fedunlearn.theory.grafting import (
    Gap,
    coadaptation_gap,
    graft,
    graftable,
    layer_gaps,
    negation_gaps,
)
from fedunlearn.weights import Weights

LAYERS = ("conv1", "norm1", "conv2", "norm2", "head")


def made(name: str, seed: int, shape: tuple[int, ...], **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(name, 10, shape, **options)


def cnn(seed: int = 0) -> nn.Module:
    return made("layernorm-cnn", seed, (1, 8, 8), channels=(8, 8), kernel=3)


def resnet(seed: int = 0) -> nn.Module:
    return made("small-resnet", seed, (1, 8, 8), width=4, blocks=(1, 1))


def digits(start: int, stop: int) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images[start:stop]).float().reshape(-1, 1, 8, 8) / 16
    return x, torch.from_numpy(labels[start:stop]).long()


def trained(model: nn.Module, steps: int = 60) -> Weights:
    x, y = digits(0, 1000)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        rows = order[torch.arange(100) + 100 * (step % 10)]
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return Weights.of(model)


@pytest.fixture(scope="module")
def strangers() -> dict[str, Weights]:
    """Trained on the same samples in the same order, from other initial weights."""
    return {"one": trained(cnn(0)), "other": trained(cnn(1))}


@pytest.fixture(scope="module")
def held() -> tuple[Tensor, Tensor]:
    return digits(1000, 1500)


# Layers


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (cnn(), 5),
        (resnet(), 7),  # stem, two blocks of two, a shortcut and the head; each with its BatchNorm, but for the head
        (made("small-vit", 0, (1, 8, 8), layers=2, heads=2, hidden=8, mlp=16), 2 + 2 * 6 + 3),
    ],
    ids=["cnn", "resnet", "vit"],
)
def test_definition_3_layers_are_a_partition(model: nn.Module, layers: int) -> None:
    known = graftable(model)
    tensors = [name for names in known.values() for name in names]
    assert len(known) == layers
    assert sorted(tensors) == sorted(model.state_dict())
    assert len(set(tensors)) == len(tensors)


def test_a_batchnorm_goes_with_the_layer_that_feeds_it_and_a_layernorm_behind_a_pooling_alone() -> None:
    of = graftable(resnet())["layer2.0.downsample.0"]
    norm = "layer2.0.downsample.1"
    held = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert of == ("layer2.0.downsample.0.weight", *(f"{norm}.{name}" for name in held))
    assert tuple(graftable(cnn())) == LAYERS


def test_tokens_are_their_own_layers_and_shared_norms_too() -> None:
    vit = made("small-vit", 0, (1, 8, 8), layers=1, heads=2, hidden=8, mlp=16)
    known = graftable(vit)
    assert known["class_token"] == ("class_token",)
    assert known["encoder.pos_embedding"] == ("encoder.pos_embedding",)
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert known[attention] == (f"{attention}.in_proj_weight", f"{attention}.in_proj_bias")

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.bn(self.b(self.bn(self.a(x))))
            return out

    assert list(graftable(Twice())) == ["a", "b", "bn"]  # and the counter is nobody's


def test_computed_and_tied_weights_stay_with_their_module() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[1].weight
    known = graftable(model)
    assert set(known["0"]) == {"0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"}
    assert known["1"] == ("1.weight", "1.bias")
    assert known["2"] == ("2.bias",)
    assert graftable(nn.Linear(3, 3)) == {"weight": ("weight",), "bias": ("bias",)}  # a network without a module in it


# Grafts


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=7, max_size=7), st.integers(0, 7))
@settings(max_examples=20)
def test_definition_3_every_tensor_is_of_exactly_the_model_that_was_named(models: list[str], named: int) -> None:
    like = resnet()
    of = {name: Weights.of(resnet(seed)) for seed, name in enumerate("abc")}
    of = {name: of[name].map(lambda t, by=at: torch.full_like(t, by)) for at, name in enumerate("abc")}
    known = graftable(like)
    take = dict(list(zip(known, models, strict=True))[:named])
    found = graft(of, take, like)
    for layer, names in known.items():
        source = of[take.get(layer, "a")]
        for name in names:
            tensor = {**found.parameters, **found.buffers}[name]
            assert tensor is {**source.parameters, **source.buffers}[name]
    found.into(like)


def test_running_statistics_come_with_the_layer() -> None:
    models = {"one": Weights.of(resnet(0)), "other": trained(resnet(1), steps=2)}
    found = graft(models, {"conv1": "other"}, resnet())
    assert torch.equal(found.buffers["bn1.running_mean"], models["other"].buffers["bn1.running_mean"])
    assert int(found.buffers["bn1.num_batches_tracked"]) == 2
    assert float(found.buffers["layer1.0.bn1.running_mean"].abs().max()) == 0


def test_wrong_grafts_are_refused() -> None:
    model = cnn()
    of = {"a": Weights.of(model)}
    with pytest.raises(ValueError, match="no layer 'relu1' to graft: take one of conv1, norm1"):
        graft(of, {"relu1": "a"}, model)
    with pytest.raises(ValueError, match="no model 'b' to take conv1 from: take one of a"):
        graft(of, {"conv1": "b"}, model)
    with pytest.raises(ValueError, match="one model at least"):
        graft({}, {}, model)
    with pytest.raises(ValueError, match="models of one architecture"):
        graft({**of, "b": Weights.of(resnet())}, {}, model)


# Gaps


def test_section_9_a_graft_of_one_model_is_trivially_coadapted(
    strangers: dict[str, Weights], held: tuple[Tensor, Tensor]
) -> None:
    one = {"one": strangers["one"]}
    whole = graft(one, dict.fromkeys(LAYERS, "one"), cnn())
    found = coadaptation_gap(cnn(), whole, [strangers["one"]], *held)
    assert whole.same_bits(strangers["one"])
    assert found == Gap(found.loss, found.accuracy, 0.0, 0.0, 0.0, 0.0)
    for gap in layer_gaps(cnn(), {"one": strangers["one"], "twin": strangers["one"]}, *held):
        assert gap.gap == found


def test_gap_by_hand(strangers: dict[str, Weights], held: tuple[Tensor, Tensor]) -> None:
    x, y = held
    grafted = graft(strangers, {"conv2": "other"}, cnn())
    scores = []
    for weights in (grafted, *strangers.values()):
        model = cnn().eval()
        weights.into(model)
        with torch.no_grad():
            logits = model(x).double()
        scores.append((float(F.cross_entropy(logits, y)), 100 * float((logits.argmax(1) == y).double().mean())))
    found = coadaptation_gap(cnn(), grafted, list(strangers.values()), x, y, batch_size=77)
    (loss, right), (loss_a, right_a), (loss_b, right_b) = scores
    assert (found.loss, found.accuracy) == pytest.approx((loss, right), rel=1e-5)
    assert found.loss_above_best == pytest.approx(loss - min(loss_a, loss_b), rel=1e-5)
    assert found.loss_above_mean == pytest.approx(loss - (loss_a + loss_b) / 2, rel=1e-5)
    assert found.accuracy_above_best == pytest.approx(right - max(right_a, right_b))
    assert found.accuracy_above_mean == pytest.approx(right - (right_a + right_b) / 2)


def test_section_9_layers_of_strangers_are_not_coadapted(
    strangers: dict[str, Weights], held: tuple[Tensor, Tensor]
) -> None:
    gaps = layer_gaps(cnn(), strangers, *held)
    assert [(g.host, g.donor, g.layer) for g in gaps] == [
        *(("one", "other", layer) for layer in LAYERS),
        *(("other", "one", layer) for layer in LAYERS),
    ]
    for one in gaps:
        if one.layer in ("conv1", "conv2", "head"):
            assert one.gap.loss_above_best > 1
            assert one.gap.accuracy_above_best < -20


def test_each_gap_is_that_of_its_graft(strangers: dict[str, Weights], held: tuple[Tensor, Tensor]) -> None:
    for one in layer_gaps(cnn(), strangers, *held)[3:7]:
        pair = {name: strangers[name] for name in (one.host, one.donor)}
        grafted = graft(pair, {one.layer: one.donor}, cnn())
        assert one.gap == coadaptation_gap(cnn(), grafted, list(pair.values()), *held)


def test_layers_of_one_function_do_not_fit_if_units_are_numbered_otherwise(
    strangers: dict[str, Weights], held: tuple[Tensor, Tensor]
) -> None:
    """The same function, and by CKA the same features, but no co-adapted layers: a gap says less than it seems."""
    one = strangers["one"]
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    moved = dict(one.parameters)
    moved |= {
        name: one.parameters[name][order] for name in ("conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias")
    }
    moved["conv2.weight"] = one.parameters["conv2.weight"][:, order]
    again = Weights(moved)
    models = [cnn(), cnn()]
    for model, weights in zip(models, (one, again), strict=True):
        weights.into(model)
    alike = compare(*models, held[0])
    assert all(at.unbiased == pytest.approx(1, abs=1e-4) for at in alike.values())
    same = coadaptation_gap(cnn(), again, [one], *held)
    assert same.loss_above_best == pytest.approx(0, abs=1e-4)
    found = layer_gaps(cnn(), {"one": one, "again": again}, *held)
    assert min(g.gap.loss_above_best for g in found if g.layer in ("conv1", "conv2")) > 0.5


def test_section_9_negation_breaks_coadaptation(strangers: dict[str, Weights], held: tuple[Tensor, Tensor]) -> None:
    gaps = negation_gaps(cnn(), strangers["one"], *held)
    assert [g.layer for g in gaps] == ["conv1", "conv2", "head"]
    for one in gaps:
        grafted = negate(strangers["one"], f"{one.layer}.weight", like=cnn())
        assert one.gap == coadaptation_gap(cnn(), grafted, [strangers["one"]], *held)
        assert one.gap.loss_above_best == one.gap.loss_above_mean > 0.5


def test_negated_layers_are_called_as_layers_are() -> None:
    vit = made("small-vit", 0, (1, 8, 8), layers=1, heads=2, hidden=8, mlp=16)
    gaps = negation_gaps(vit, Weights.of(vit), *digits(0, 20))
    assert {g.layer for g in gaps} <= set(graftable(vit))
    assert len(gaps) == 6  # conv_proj, in_proj, out_proj, two of the perceptron, head


def test_an_odd_network_does_not_notice_a_negated_layer_pair() -> None:
    """Of two linear layers without a bias, negating each flips the logits, negating both changes nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Linear(8, 10, bias=False))
    x, y = digits(0, 50)
    weights = Weights.of(model)
    both = negate(negate(weights, "1", like=model), "2", like=model)
    assert coadaptation_gap(model, both, [weights], x, y).loss_above_best == 0
    first, second = negation_gaps(model, weights, x, y)
    assert first.gap == second.gap
    with torch.no_grad():
        flipped = float(F.cross_entropy(-model(x).double(), y))
    assert first.gap.loss == pytest.approx(flipped, rel=1e-6)


def test_the_model_is_left_as_it_was(strangers: dict[str, Weights], held: tuple[Tensor, Tensor]) -> None:
    model = resnet().train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    weights = Weights.of(model)
    layer_gaps(model, {"a": weights, "b": trained(resnet(1), 1)}, *digits(0, 20))
    negation_gaps(model, weights, *digits(0, 20))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_cannot_be_scored_is_said(held: tuple[Tensor, Tensor]) -> None:
    weights = Weights.of(cnn())
    with pytest.raises(ValueError, match="one at least"):
        coadaptation_gap(cnn(), weights, [], *held)
    with pytest.raises(ValueError, match="0 inputs"):
        coadaptation_gap(cnn(), weights, [weights], held[0][:0], held[1][:0])
    with pytest.raises(ValueError, match="two at least"):
        layer_gaps(cnn(), {"a": weights}, *held)
    assert math.isfinite(coadaptation_gap(cnn(), weights, [weights], *held).loss)
