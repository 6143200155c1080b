"""Linear probes: which features they get, against hooks by hand, and what can and what cannot be read off them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fedunlearn.audits.probe import Features, probe
from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.federation import Forgotten, Turn
from fedunlearn.models import LayerNormCNN
from fedunlearn.models.vit import SmallViT
from fedunlearn.requests import ForgetClass

TURN = Turn(0, "evaluate", 0)
SHAPE = (1, 8, 8)


def cnn() -> nn.Module:
    return LayerNormCNN(3, SHAPE, channels=(4, 6), kernel=3)


def vit() -> nn.Module:
    return SmallViT(3, SHAPE, patch=4, layers=2, heads=2, hidden=8, mlp=12)


class Peculiar(nn.Module):
    """Layers registered backwards, one called twice, one never, and an activation that writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.never = nn.Linear(2, 2)
        self.shared = nn.Linear(4, 4)
        self.first = nn.Linear(64, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x.flatten(1)))
        scores: Tensor = self.last(self.shared(self.shared(x)))
        return scores


def images(count: int = 11) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 3


def federation(build: object) -> InProcess:
    return InProcess(build, [Client.of("a", images(), validation=0)], workers=1, device="cpu")  # type: ignore[arg-type]


def features(samples: InProcess, program: Features) -> dict[str, Tensor]:
    ((_, reply),) = samples.run(program, samples.architecture.fresh(1), TURN)
    assert reply.samples == len(reply.values["labels"])
    return dict(reply.values)


BLOCK = "encoder.layers.encoder_layer_{}"
INNER = ("self_attention", "mlp.0", "mlp.3")
VIT = ["conv_proj", *(f"{BLOCK.format(n)}.{name}" for n in (0, 1) for name in INNER), "heads.head"]


@pytest.mark.parametrize(
    ("build", "widths"),
    [
        (cnn, {"conv1": 16, "conv2": 24, "head": 3}),
        (vit, {name: {"conv_proj": 32, "heads.head": 3}.get(name, 12 if "mlp.0" in name else 8) for name in VIT}),
        (Peculiar, {"first": 4, "shared": 4, "last": 3}),
    ],
)
def test_layers_stand_in_the_order_of_the_flow(build: object, widths: dict[str, int]) -> None:
    """Feature maps of 2x2 places a channel, tokens of their width; layers that nothing flows through are not there."""
    found = features(federation(build), Features())
    assert list(found) == [*widths, "labels", "predicted"]
    for name, width in widths.items():
        assert found[name].shape == (11, width)
        assert found[name].dtype == torch.float32


def test_features_of_the_cnn_are_those_of_hooks_by_hand() -> None:
    samples = federation(cnn)
    network = samples.architecture.network(samples.architecture.fresh(1), torch.device("cpu")).eval()
    x, y = images()
    with torch.no_grad():
        first = network.conv1(x)  # type: ignore[operator]
        second = network.conv2(network.norm1(network.pool1(network.relu1(first))))  # type: ignore[operator]
        scores = network(x)
    for batch_size in (500, 4):
        found = features(samples, Features(batch_size=batch_size))
        halves = first.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5)).flatten(1)
        assert torch.allclose(found["conv1"], halves, atol=1e-5)
        assert torch.allclose(found["conv2"], second.reshape(11, 6, 2, 2, 2, 2).mean((3, 5)).flatten(1), atol=1e-5)
        assert torch.allclose(found["head"], scores, atol=1e-5)
        assert torch.equal(found["labels"], y)
        assert torch.equal(found["predicted"], scores.argmax(1))


def test_features_of_tokens_are_means_over_positions() -> None:
    samples = federation(vit)
    network = samples.architecture.network(samples.architecture.fresh(1), torch.device("cpu")).eval()
    kept: dict[str, Tensor] = {}
    for name in VIT:
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: kept.update({name: output[0] if isinstance(output, tuple) else output})
        )
    with torch.no_grad():
        network(images()[0])
    found = features(samples, Features())
    for name in VIT[1:-1]:
        assert kept[name].shape[:2] == (11, 5)  # the class token and four patches
        assert torch.allclose(found[name], kept[name].mean(1), atol=1e-5)
    assert torch.allclose(found["conv_proj"], kept["conv_proj"].flatten(1), atol=1e-5)  # it has 2x2 places
    assert torch.allclose(found["heads.head"], kept["heads.head"], atol=1e-5)


def test_a_layers_features_are_its_own_whatever_is_written_over_them() -> None:
    """An activation in place comes after the layer, and a second call's answer is the last."""
    samples = federation(Peculiar)
    weights = samples.architecture.fresh(1)
    found = features(samples, Features())
    parameters = weights.parameters
    first = images()[0].flatten(1) @ parameters["first.weight"].T + parameters["first.bias"]
    once = first.relu() @ parameters["shared.weight"].T + parameters["shared.bias"]
    twice = once @ parameters["shared.weight"].T + parameters["shared.bias"]
    assert (first < 0).any()
    assert torch.allclose(found["first"], first, atol=1e-5)
    assert torch.allclose(found["shared"], twice, atol=1e-5)


def test_samples_can_be_chosen() -> None:
    samples = federation(cnn)
    chosen = features(samples.marking(ForgetClass(2)), Features(of=Forgotten()))
    every = features(samples, Features())
    assert chosen["labels"].tolist() == [2] * 3
    assert torch.allclose(chosen["conv1"], every["conv1"][every["labels"] == 2], atol=1e-6)


# The probe


def clusters(count: int, classes: int, seed: int, apart: float = 6.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Classes around corners of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return (apart * np.eye(classes, 5)[labels] + rng.normal(size=(count, 5))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_separable_classes_are_found_without_a_mistake(classes: int) -> None:
    (known, labels), (asked, theirs) = clusters(200, classes, 0), clusters(120, classes, 1)
    accuracy, sure = probe(known, labels, asked, theirs)
    assert accuracy == 1
    assert sure.shape == (120,)
    assert np.all(sure > (0 if classes == 2 else -math.log(classes)))
    wrong, unsure = probe(known, labels, asked, (theirs + 1) % classes)
    assert wrong == 0
    assert np.all(unsure < 0)


def test_noise_is_read_as_well_as_by_chance() -> None:
    rng = np.random.default_rng(0)
    known, asked = (rng.normal(size=(600, 10)).astype(np.float32) for _ in range(2))
    labels, theirs = (rng.integers(0, 4, 600) for _ in range(2))
    accuracy, sure = probe(known, labels, asked, theirs)
    assert accuracy == pytest.approx(0.25, abs=3.3 * math.sqrt(0.25 * 0.75 / 600))
    assert abs(float(np.mean(sure)) - math.log(1 / 3)) < 0.3


def test_it_is_scikit_learns_regression_on_standardised_features() -> None:
    (known, labels), (asked, theirs) = clusters(90, 3, 0, apart=1), clusters(40, 3, 1, apart=1)
    shifted, theirs_shifted = known * 7 + 3, asked * 7 + 3
    accuracy, sure = probe(shifted, labels, theirs_shifted, theirs)
    mean, std = shifted.mean(0), shifted.std(0)
    fitted = LogisticRegression(C=0.01, max_iter=200).fit((shifted - mean) / std, labels)
    chances = fitted.predict_proba((theirs_shifted - mean) / std)
    true = chances[np.arange(40), theirs].astype(np.float64)
    assert accuracy == pytest.approx(float(np.mean(chances.argmax(1) == theirs)))
    assert sure == pytest.approx(np.log(true / (1 - true)), abs=1e-3)


def test_a_class_that_the_probe_has_never_seen_is_never_guessed_and_surely_not_there() -> None:
    """Its number is above the known ones', between them, or below."""
    (known, labels), (asked, theirs) = clusters(120, 3, 0), clusters(9, 3, 1)
    for names, strange in (([0, 1, 2], 3), ([0, 2, 5], 1), ([1, 2, 3], 0)):
        called = np.array(names)
        answers = np.append(called[theirs[:-1]], strange)
        accuracy, sure = probe(known, called[labels], asked, answers)
        assert accuracy == pytest.approx(8 / 9)
        assert sure[-1] == -1e6
        assert np.all(np.isfinite(sure))
        assert np.all(sure[:-1] > -2)


def test_features_that_are_all_but_constant_upset_nothing() -> None:
    """What was known to be constant may be otherwise in what is asked; a chance of 0 is a number on this scale too."""
    known, labels = clusters(60, 2, 0)
    asked, theirs = clusters(20, 2, 1)
    known[:, 4] = 1e-4 * known[:, 0]
    asked[:, 4] = 1.0
    accuracy, sure = probe(known, labels, asked, theirs)
    assert accuracy == 0.5  # it takes all for the same
    assert np.abs(sure).min() > 200  # exp(-200) is no float32
    assert np.abs(sure).max() < 1e6
