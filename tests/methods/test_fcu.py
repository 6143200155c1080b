"""FCU: what the paper promises, numbers by hand, and twins in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import e, floor, log
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_twin import TRAINING, Array, Model, Noting, Overheard, distance, mean, three_clients
from numpy_twin_joint import Held
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.metered import Ledger, Metered
from fedunlearn.client import Client
from fedunlearn.contract import size_of, small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.federation import ClientError, Predicate
from fedunlearn.layers import layers
from fedunlearn.methods import fcu
from fedunlearn.methods.fcu import FCU, contrastive_loss, fuse
from fedunlearn.programs import SGD, LocalTraining
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient
from fedunlearn.task import Task
from fedunlearn.weights import Weights

Donor = Literal["official", "paper"]
Phase = Literal["pretrained", "split"]
DONORS: tuple[Donor, ...] = ("official", "paper")
PHASES: tuple[Phase, ...] = ("pretrained", "split")


@pytest.fixture(scope="module")
def small(one_worker: InProcess) -> Task:
    return small_task(ForgetClient("1"), one_worker)


class Stacked(nn.Module):
    """Three linear layers in float64, without anything between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 4, dtype=torch.float64)
        self.middle = nn.Linear(4, 5, dtype=torch.float64)
        self.head = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.middle(self.body(x)))
        return found


def stacked(
    request: Predicate, shards: dict[str, Held] | None = None, build: Callable[[], nn.Module] = Stacked
) -> tuple[Task, list[Weights]]:
    """A task on the clients of the twin; and the networks that are built from now on."""
    built: list[Weights] = []

    def noted() -> nn.Module:
        network = build()
        built.append(Weights.of(network))
        return network

    clients = [Client.of(c, (s.x, s.y), validation=0) for c, s in (shards or three_clients()).items()]
    federation = InProcess(noted, clients, workers=1, device="cpu")
    weights = federation.architecture.fresh(1)
    task = Task.of(federation, weights, request, TRAINING, federation.architecture, seed=2)
    _ = federation.architecture.template
    built.clear()
    return task, built


# --- fusion ---------------------------------------------------------------------------------------------------------


def fused(unlearned: Array, pretrained: Array, rho: float, donor: Donor, phase: Phase) -> Array:
    """The same entry by entry: kernel entry (n, c, i, j) stands in row c h + i, column j N + n."""
    size: tuple[int, int]
    if unlearned.ndim == 2:
        size = unlearned.shape[0], unlearned.shape[1]
        place = {at: at for at in np.ndindex(*size)}
    else:
        outputs, inputs, height, width = unlearned.shape
        size = inputs * height, width * outputs
        place = {(n, c, i, j): (c * height + i, j * outputs + n) for n, c, i, j in np.ndindex(*unlearned.shape)}
    spectra = []
    for weight in (unlearned, pretrained):
        matrix = np.zeros(size)
        for at, to in place.items():
            matrix[to] = weight[at]
        spectra.append(np.fft.fftshift(np.fft.fft2(matrix)))
    spectrum = np.zeros(size, dtype=complex)
    for row, column in np.ndindex(*size):
        low = all(
            n // 2 - floor(n * rho / 2) <= at < n // 2 + floor(n * rho / 2)
            for at, n in zip((row, column), size, strict=True)
        )
        ours = low == (donor == "official")
        amplitude = abs(spectra[0 if ours else 1][row, column])
        angle = np.angle(spectra[0 if ours and phase == "split" else 1][row, column])
        spectrum[row, column] = amplitude * np.exp(1j * angle)
    matrix = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    result = np.zeros(unlearned.shape)
    for at, to in place.items():
        result[at] = matrix[to]
    return result


shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)
shares = st.one_of(st.sampled_from([0.0, 0.5, 0.7, 0.9, 1.0]), st.floats(0, 1))


def drawn(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape)


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 10_000), shares, st.sampled_from(DONORS), st.sampled_from(PHASES))
def test_1_a_weight_fused_with_itself_is_itself(
    shape: tuple[int, ...], seed: int, rho: float, donor: Donor, phase: Phase
) -> None:
    weight = torch.tensor(drawn(shape, seed))
    assert float((fuse(weight, weight.clone(), rho, donor, phase) - weight).abs().max()) < 1e-13


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 10_000), shares, st.sampled_from(DONORS), st.sampled_from(PHASES))
def test_fusion_is_its_twin_in_numpy(shape: tuple[int, ...], seed: int, rho: float, donor: Donor, phase: Phase) -> None:
    """Odd sizes too; both donors, both phases."""
    one, other = drawn(shape, seed), drawn(shape, seed + 1)
    found = fuse(torch.tensor(one), torch.tensor(other), rho, donor, phase)
    assert found.shape == shape
    assert np.abs(found.numpy() - fused(one, other, rho, donor, phase)).max() < 1e-12


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (4, 3, 3, 3), (2, 2, 2, 2)])
def test_1_without_low_frequencies_the_pretrained_weight_comes_out(shape: tuple[int, ...]) -> None:
    one, other = (torch.tensor(drawn(shape, seed)) for seed in (1, 2))
    for phase in PHASES:
        assert float((fuse(one, other, 0.0, "official", phase) - other).abs().max()) < 1e-13
    single = fuse(one.float(), other.float(), 0.0)
    assert single.dtype == torch.float32
    assert torch.equal(single, other.float())


@pytest.mark.parametrize("shape", [(4, 6), (8, 2), (6, 4, 3, 2), (4, 2, 3, 3)])
def test_1_with_split_phases_all_frequencies_of_even_sizes_give_the_unlearned_weight(shape: tuple[int, ...]) -> None:
    """And from the other donor the pretrained one; sizes are those of the matrix, (C h) x (w N)."""
    one, other = (torch.tensor(drawn(shape, seed)) for seed in (1, 2))
    assert float((fuse(one, other, 1.0, "official", "split") - one).abs().max()) < 1e-13
    assert float((fuse(one, other, 1.0, "paper", "split") - other).abs().max()) < 1e-13
    assert float((fuse(one, other, 0.0, "paper", "split") - one).abs().max()) < 1e-13
    pulled = fuse(one, other, 1.0)  # the code's phase is the pretrained model's even then
    assert float((pulled - one).abs().max()) > 0.1


def test_a_row_has_no_low_frequency_until_its_half_share_is_one() -> None:
    """Of two rows a share of 1/2 is the window [1 - 0, 1 + 0): none, whatever the columns; a share of 1 is all."""
    one = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(fuse(one, 4 * one, 0.5), 4 * one)
    assert torch.allclose(fuse(one, 4 * one, 1.0), one)
    assert torch.allclose(fuse(one, 4 * one, 1.0, "paper"), 4 * one)


def test_the_low_window_of_a_square_by_hand() -> None:
    """Of (1, 0, ...) every amplitude is 1, of (4, 0, ...) it is 4, and all phases are 0.

    4 x 4, a share of 1/2: frequencies -1 and 0 on both axes get amplitude 1, the other twelve keep 4.
    The corner is the mean of the spectrum, (4 * 1 + 12 * 4) / 16; from the other donor (12 * 1 + 4 * 4) / 16.
    """
    one = torch.zeros(4, 4, dtype=torch.float64)
    one[0, 0] = 1
    assert float(fuse(one, 4 * one, 0.5)[0, 0]) == pytest.approx(52 / 16)
    assert float(fuse(one, 4 * one, 0.5, "paper")[0, 0]) == pytest.approx(28 / 16)


def test_the_codes_phase_pulls_strongly_back_to_the_pretrained_weight() -> None:
    """At rho = 0.7 a 30 % perturbation comes back half of the way; with split phases, to the middle."""
    rng = np.random.default_rng(0)
    pretrained = rng.normal(0, 1, (256, 256))
    unlearned = pretrained + 0.3 * rng.normal(0, 1, (256, 256))
    apart = np.linalg.norm(unlearned - pretrained)

    def shares_of_the_way(phase: Phase) -> list[float]:
        found = fuse(torch.tensor(unlearned), torch.tensor(pretrained), 0.7, phase=phase).numpy()
        return [float(np.linalg.norm(found - one) / apart) for one in (pretrained, unlearned)]

    assert shares_of_the_way("pretrained") == pytest.approx([0.48, 0.89], abs=0.01)
    assert shares_of_the_way("split") == pytest.approx([0.70, 0.71], abs=0.01)


# --- the loss -------------------------------------------------------------------------------------------------------

EAST, NORTH = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)


def test_3_the_loss_of_features_that_are_still_the_old_ones() -> None:
    """z = z_g, z_d orthogonal: log(1 + e^2); lengths do not matter."""
    found = float(contrastive_loss(5 * EAST, 3 * NORTH, EAST, 0.5))
    assert found == pytest.approx(log(1 + e**2))
    assert found == pytest.approx(2.1269, abs=1e-4)


def test_3_the_loss_of_features_that_are_the_fresh_networks() -> None:
    """z = z_d, z_g orthogonal: log(1 + e^-2)."""
    found = float(contrastive_loss(EAST, EAST, NORTH, 0.5))
    assert found == pytest.approx(log(1 + e**-2))
    assert found == pytest.approx(0.1269, abs=1e-4)


def test_the_loss_is_the_mean_over_the_batch_at_its_temperature() -> None:
    both = contrastive_loss(torch.cat([EAST, EAST]), torch.cat([NORTH, EAST]), torch.cat([EAST, NORTH]), 0.5)
    assert float(both) == pytest.approx((log(1 + e**2) + log(1 + e**-2)) / 2)
    assert float(contrastive_loss(EAST, NORTH, EAST, 1.0)) == pytest.approx(log(1 + e))


# --- the twin -------------------------------------------------------------------------------------------------------


def pull(z: Array, to: Array) -> tuple[Array, Array]:
    """Cosines (n,) with ``to``, and their slopes (n, d) by z."""
    lengths = np.linalg.norm(z, axis=1, keepdims=True), np.linalg.norm(to, axis=1, keepdims=True)
    cosine = (z * to).sum(1, keepdims=True) / (lengths[0] * lengths[1])
    return cosine[:, 0], to / (lengths[0] * lengths[1]) - cosine * z / lengths[0] ** 2


def arrays(weights: Weights) -> Model:
    return {name: tensor.numpy() for name, tensor in weights.parameters.items()}


def features(model: Model, x: Array) -> tuple[Array, Array]:
    """Of the first layer and of the second, which is what the classifier sees."""
    inner = x @ model["body.weight"].T + model["body.bias"]
    return inner, inner @ model["middle.weight"].T + model["middle.bias"]


def unlearned(pretrained: Model, fresh: list[Model], x: Array, method: FCU) -> Model:
    """M after as many intervals as there are fresh networks; Adam by hand, its moments kept all along."""
    model = dict(pretrained)
    learning = ["body.weight", "body.bias", "middle.weight", "middle.bias"]
    first = {name: np.zeros_like(model[name]) for name in learning}
    second = {name: np.zeros_like(model[name]) for name in learning}
    step = 0
    for downgraded in fresh:
        for _ in range(method.interval):
            inner, z = features(model, x)
            (away, up), (towards, down) = (pull(z, features(other, x)[1]) for other in (pretrained, downgraded))
            weight = 1 / (1 + np.exp((towards - away) / method.temperature)) / method.temperature / len(x)
            error = weight[:, None] * (up - down)
            back = error @ model["middle.weight"]
            slopes = dict(zip(learning, (back.T @ x, back.sum(0), error.T @ inner, error.sum(0)), strict=True))
            step += 1
            for name in learning:
                slope = slopes[name] + method.weight_decay * model[name]
                first[name] = method.betas[0] * first[name] + (1 - method.betas[0]) * slope
                second[name] = method.betas[1] * second[name] + (1 - method.betas[1]) * slope**2
                moment = first[name] / (1 - method.betas[0] ** step)
                root = np.sqrt(second[name] / (1 - method.betas[1] ** step)) + 1e-8
                model[name] = model[name] - method.lr * moment / root
        for name in pretrained:
            if name.endswith("weight"):
                arguments = model[name], pretrained[name], method.low_frequency, method.donor, method.phase
                model[name] = fused(*arguments)
            else:
                model[name] = pretrained[name]
    return model


@pytest.mark.parametrize(
    "method", [FCU(0.01, (0.9, 0.99), 7, 3, 1.0), FCU(0.1, (0.8, 0.9), 4, 2, 0.5, 0.1, 0.2)], ids=str
)
@pytest.mark.parametrize("donor", DONORS)
@pytest.mark.parametrize("phase", PHASES)
def test_fcu_is_its_twin_in_numpy(method: FCU, donor: Donor, phase: Phase) -> None:
    method = replace(method, donor=donor, phase=phase)
    task, built = stacked(ForgetClient("a"))
    (done,) = method.unlearn(task)
    assert len(built) == 2  # intervals
    expected = unlearned(arrays(task.weights), [arrays(one) for one in built], three_clients()["a"].x, method)
    assert distance(done.after, expected) < 1e-9
    assert (done.after - task.weights).norm() > 0.01


@pytest.mark.parametrize("request_", [AnyOf((ForgetClient("a"), ForgetClient("c"))), ForgetClass(0)], ids=str)
def test_all_who_hold_what_is_forgotten_do_it_and_the_mean_is_by_their_forgotten_samples(request_: Predicate) -> None:
    """Ours: several clients, and class-wise all of them, each with fresh networks of its own."""
    task, built = stacked(request_)
    method = FCU(iterations=2, interval=2, low_frequency=1.0)
    (done,) = method.unlearn(task)
    shards = three_clients()
    asked = task.forgotten.clients
    if isinstance(request_, ForgetClass):
        shards = {c: Held(s.x[s.y == 0], s.y[s.y == 0]) for c, s in shards.items() if (s.y == 0).any()}
    assert asked == (tuple(shards) if isinstance(request_, ForgetClass) else ("a", "c"))
    assert len(built) == len(asked) > 1
    pretrained = arrays(task.weights)
    sent = [
        (unlearned(pretrained, [arrays(one)], shards[client].x, method), len(shards[client].y))
        for client, one in zip(asked, built, strict=True)
    ]
    assert distance(done.after, mean(sent)) < 1e-9


# --- what is done, and how often ------------------------------------------------------------------------------------


def test_2_normalisations_biases_and_buffers_are_the_pretrained_models_to_the_bit(small: Task) -> None:
    (done,) = FCU(iterations=4, interval=2).unlearn(small)
    for name in ("norm.weight", "norm.bias", "head.bias"):
        assert torch.equal(done.after.parameters[name], small.weights.parameters[name])
    for name, buffer in small.weights.buffers.items():
        assert torch.equal(done.after.buffers[name], buffer)
    assert (done.after.parameters["conv.weight"] - small.weights.parameters["conv.weight"]).norm() > 0.01


def test_a_client_holds_no_copy_of_a_network_beside_the_three(small: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    original = Weights.of
    monkeypatch.setattr(fcu.Weights, "of", lambda module: copies.append(module) or original(module))
    list(FCU(iterations=4, interval=2).unlearn(small))
    assert len(copies) == 1 + 2  # the reply, and what the two fresh networks are drawn as


def test_4_labels_can_be_shuffled_without_effect() -> None:
    found = []
    for by in (0, 1, 2):
        shards = {c: Held(s.x, (s.y + by) % 3) for c, s in three_clients().items()}
        task, _ = stacked(ForgetClient("a"), shards)
        (done,) = FCU().unlearn(replace(task, training=replace(task.training, batch_size=2)))
        found.append(done.after)
    assert found[0].same_bits(found[1])
    assert found[0].same_bits(found[2])


def test_4_nobody_but_the_leaving_client_is_asked(small: Task) -> None:
    asked: dict[str, list[Any]] = {"everyone": [], "retained": [], "forgotten": []}
    watched = {name: Overheard(getattr(small, name), heard) for name, heard in asked.items()}
    list(FCU().unlearn(replace(small, **watched)))  # type: ignore[arg-type]
    assert [client for *_, client, _ in asked["forgotten"]] == ["1"]
    assert asked["everyone"] == asked["retained"] == []


@pytest.mark.parametrize(("iterations", "interval", "fusions"), [(20, 10, 2), (5, 2, 2), (3, 1, 3), (4, 5, 0)])
def test_5_so_many_fusions_as_whole_intervals_each_with_a_fresh_network_of_its_own(
    monkeypatch: pytest.MonkeyPatch, iterations: int, interval: int, fusions: int
) -> None:
    """Three weights each time. Batches after the last whole interval are left out."""
    calls: list[object] = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return fuse(*arguments)

    monkeypatch.setattr(fcu, "fuse", counted)
    task, built = stacked(ForgetClient("b"))
    heard: list[Any] = []
    (done,) = FCU(iterations=iterations, interval=interval).unlearn(
        replace(task, forgotten=Overheard(task.forgotten, heard))
    )
    assert len(calls) == 3 * fusions
    assert len(built) == len({one.digest() for one in built}) == fusions
    ((*_, reply),) = heard
    steps = fusions * interval
    assert (reply.work.forward, reply.work.backward) == (3 * steps * 6, steps * 6)
    assert ((done.after - task.weights).norm() < 1e-12) == (fusions == 0)


def test_fresh_networks_are_others_for_another_seed_and_client() -> None:
    digests = set()
    for seed, client in ((2, "a"), (3, "a"), (2, "b")):
        task, built = stacked(ForgetClient(client))
        list(FCU(iterations=1, interval=1).unlearn(replace(task, seed=seed)))
        digests.update(one.digest() for one in built)
    assert len(digests) == 3


def test_the_pretrained_network_stays_in_evaluation_mode_with_its_bits(small: Task) -> None:
    """As do the fresh ones."""
    heard: list[Any] = []
    list(FCU().unlearn(replace(small, forgotten=Overheard(small.forgotten, heard))))
    ((turn, program, _, _),) = heard
    given: list[nn.Module] = []
    list(small.forgotten.run(Noting(program, given), small.weights, turn))
    pretrained, *fresh = given
    assert len(fresh) == 2
    assert not any(network.training for network in given)
    assert not any(parameter.requires_grad for network in given for parameter in network.parameters())
    assert Weights.of(pretrained).same_bits(small.weights)


def test_the_network_that_unlearns_is_in_training_mode_and_the_two_others_are_not() -> None:
    modes: list[bool] = []

    class Moody(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            return super().forward(x)

    task, _ = stacked(ForgetClient("a"), build=Moody)
    list(FCU(iterations=4, interval=2).unlearn(task))
    assert sorted(modes) == [False] * 8 + [True] * 4


def test_its_price_is_the_formula(small: Task) -> None:
    """One model down, one up; (3 + 1 + 1) C_f batch n_iter: three forward passes and one backward, of 17 samples in
    batches of 8 and 9."""
    ledger, method = Ledger(), FCU(iterations=5, interval=2)
    list(method.unlearn(replace(small, forgotten=Metered(small.forgotten, ledger))))
    found = ledger.phases["unlearn"]
    assert (found.down, found.up) == (small.weights.parameter_bytes, small.weights.parameter_bytes)
    assert (found.work.forward, found.work.backward) == (3 * 2 * 17, 2 * 17)
    assert found == method.cost(size_of(small))


# --- features -------------------------------------------------------------------------------------------------------


def test_the_features_are_what_the_last_linear_layer_is_given_or_the_named_module() -> None:
    """Layers behind the features get no gradient, so they come out of fusion as they were."""
    task, _ = stacked(ForgetClient("a"))
    for name, moved in ((None, {"body", "middle"}), ("head", {"body", "middle"}), ("middle", {"body"})):
        (done,) = FCU(low_frequency=1.0, features=name).unlearn(task)
        step = (done.after - task.weights).parameters
        assert {n.split(".")[0] for n, tensor in step.items() if float(tensor.norm()) > 1e-9} == moved


class Idle(Stacked):
    """Its last linear layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(5, 3, dtype=torch.float64)


def test_a_classifier_that_is_not_called_is_told_in_a_sentence() -> None:
    task, _ = stacked(ForgetClient("a"), build=Idle)
    with pytest.raises(ClientError, match="the network never calls it: set `features`"):
        list(FCU().unlearn(task))


class Convolutions(nn.Module):
    """Without any linear layer: the last convolution is the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.last = nn.Conv2d(4, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.conv(x))).flatten(1)
        return found


def images(build: Callable[[], nn.Module], size: int) -> Task:
    rng = torch.Generator().manual_seed(0)
    clients = [
        Client.of(c, (torch.randn(6, 1, size, size, generator=rng), torch.arange(6) % 3), validation=0) for c in "ab"
    ]
    federation = InProcess(build, clients, workers=1, device="cpu")
    weights, training = federation.architecture.fresh(1), LocalTraining(SGD(0.1), batch_size=3)
    return Task.of(federation, weights, ForgetClient("a"), training, federation.architecture)


def test_a_network_without_a_linear_layer_is_refused_before_anything_runs() -> None:
    task, asked = images(Convolutions, 6), []
    watched = replace(task, forgotten=Overheard(task.forgotten, asked))
    with pytest.raises(ValueError, match="the network has no linear layer: set `features`"):
        next(follow(FCU(), watched, 0))
    with pytest.raises(ValueError, match="the network has no module 'nothing': set `features`"):
        next(follow(FCU(features="nothing"), watched, 0))
    assert asked == []


def test_with_features_named_a_network_without_a_linear_layer_unlearns() -> None:
    """What the named module is given is flattened: (n, 4, 4, 4) to (n, 64)."""
    task = images(Convolutions, 6)
    (step,) = follow(FCU(features="last"), task, 0)
    moved = (step.round.after - task.weights).parameters
    assert float(moved["conv.weight"].norm()) > 0.01
    assert float(moved["last.weight"].norm()) < 1e-6


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.vit(x.expand(-1, 3, -1, -1))
        return found


FUSED = ("linear", "convolution", "attention")


def test_a_vision_transformer_unlearns_with_the_features_before_its_head() -> None:
    """Linear layers, attention and the patch projection are fused; tokens, norms and biases are theta*'s bits."""
    task = images(Transformer, 8)
    head = task.architecture.template.get_submodule("vit.heads.head")
    assert fcu.classifier(task.architecture.template, None) is head
    (step,) = follow(FCU(iterations=4, interval=2), task, 0)
    found, before = step.round.after, task.weights
    assert found.finite()
    fused_ones = {layer.name for layer in layers(task.architecture.template) if layer.kind in FUSED}
    assert {"vit.conv_proj.weight", "vit.encoder.layers.encoder_layer_0.mlp.0.weight"} < fused_ones
    for name, tensor in found.parameters.items():
        if name not in fused_ones:
            assert torch.equal(tensor, before.parameters[name]), name
        elif "head" not in name:
            assert not torch.allclose(tensor, before.parameters[name], atol=1e-4), name
