"""Perturbations: by hand on kernels of two by two, and what must hold on any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedunlearn.backends.in_process import InProcess
from fedunlearn.client import Client
from fedunlearn.contract import small_task
from fedunlearn.evaluation.follow import follow
from fedunlearn.layers import FIRST, CancellingNegation, LayerError, Selection
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.perturbation import (
    FlipKernels,
    FlipSigns,
    Negate,
    Perturb,
    Perturbation,
    PruneAndReinitialise,
    Reinitialise,
    RotateKernels,
    RotateOutputs,
    Shrink,
    TransposeKernels,
    WhiteNoise,
)
from fedunlearn.programs import LocalTraining
from fedunlearn.requests import ForgetClient
from fedunlearn.task import Task
from fedunlearn.weights import Weights

KERNELS = [[[[1, 2], [3, 4]]], [[[5, 6], [7, -8]]]]
RANDOM = [Reinitialise(), WhiteNoise(), RotateOutputs(), PruneAndReinitialise(0.5), FlipSigns(), Shrink()]
KERNEL_WISE = [FlipKernels(), RotateKernels(), TransposeKernels()]


class Net(nn.Module):
    """Images (n, 1, 3, 3) to two scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(x).flatten(1))
        return scores


class Tens(Net):
    """Its initialiser draws nothing but tens."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            nn.init.constant_(parameter, 10)


@cache
def federation_of(build: type[Net], dtype: torch.dtype) -> InProcess:
    data = (torch.zeros(2, 1, 3, 3, dtype=dtype), torch.tensor([0, 1]))
    clients = [Client.of(name, data, validation=0) for name in "ab"]
    return InProcess(lambda: build().to(dtype), clients, workers=1, device="cpu")


def task(values: Any = KERNELS, build: type[Net] = Tens, seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    """Whose model has these kernels, 0.5 and -0.5 as their biases, and 1 to 16 in its head."""
    federation = federation_of(build, dtype)
    weights = {
        "conv.weight": torch.tensor(values, dtype=dtype).reshape(2, 1, 2, 2),
        "conv.bias": torch.tensor([0.5, -0.5], dtype=dtype),
        "head.weight": torch.arange(1, 17, dtype=dtype).reshape(2, 8),
        "head.bias": torch.zeros(2, dtype=dtype),
    }
    return Task.of(federation, Weights(weights), ForgetClient("a"), LocalTraining(), federation.architecture, seed=seed)


def perturbed(how: Perturbation, task: Task, layers: Selection = FIRST, include_bias: bool = False) -> Weights:
    (step,) = follow(Perturb(how, layers, include_bias), task, 0)
    assert step.phase == "unlearn"
    return step.round.after


# --- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Negate(), [-1, -2, -3, -4, -5, -6, -7, 8]),
        (Reinitialise(), [10] * 8),
        (WhiteNoise(0), [1, 2, 3, 4, 5, 6, 7, -8]),
        (FlipKernels(), [3, 4, 1, 2, 7, -8, 5, 6]),
        (RotateKernels(), [4, 3, 2, 1, -8, 7, 6, 5]),
        (TransposeKernels(), [1, 3, 2, 4, 5, 7, 6, -8]),
        (PruneAndReinitialise(0.5), [10, 10, 10, 10, 5, 6, 7, -8]),
        (PruneAndReinitialise(0.9), [10, 10, 10, 10, 10, 10, 10, -8]),
        (FlipSigns(0), [1, 2, 3, 4, 5, 6, 7, -8]),
        (FlipSigns(1), [-1, -2, -3, -4, -5, -6, -7, 8]),
        (Shrink(0.5, 0.1), [1.5, 2, 2.5, 3, 3.5, 4, 4.5, -3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_on_the_first_layers_kernels(how: Perturbation, expected: list[float], dtype: torch.dtype) -> None:
    before = task(dtype=dtype)
    after = perturbed(how, before)
    assert after.parameters["conv.weight"].dtype == dtype
    assert after.parameters["conv.weight"].flatten().tolist() == expected
    for name, tensor in before.weights.parameters.items():
        assert after.parameters[name] is tensor or name == "conv.weight"


def test_rotated_outputs_by_hand() -> None:
    """One channel: Q is 1 or -1, and the bias has the same one. All of head's first row, and nothing of its second."""
    seen = set()
    for seed in range(8):
        after = perturbed(RotateOutputs(), task(seed=seed), "head[0:1]", include_bias=True).parameters
        sign = int(after["head.weight"][0, 0])
        assert after["head.weight"].tolist() == [[sign * value for value in range(1, 9)], [*range(9, 17)]]
        seen.add(sign)
    assert seen == {1, -1}


def test_the_smallest_are_chosen_over_all_selected_tensors_together() -> None:
    """Of 24 elements the 12 smallest: 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, and the first 6 of the two."""
    after = perturbed(PruneAndReinitialise(0.5), task(), "*").parameters
    assert after["conv.weight"].flatten().tolist() == [10, 10, 10, 10, 10, 10, 7, -8]
    assert after["head.weight"].flatten().tolist() == [10] * 6 + list(range(7, 17))


def test_rows_are_all_that_is_read_and_changed() -> None:
    """Half of the second kernel's elements, though all of the first one's are smaller; the noise of its own size."""
    after = perturbed(PruneAndReinitialise(0.5), task(), "conv[1:2]").parameters["conv.weight"]
    assert after.flatten().tolist() == [1, 2, 3, 4, 10, 10, 7, -8]
    rows = perturbed(FlipKernels(), task(), "conv[1:2]").parameters["conv.weight"]
    assert rows.flatten().tolist() == [1, 2, 3, 4, 7, -8, 5, 6]
    quiet = task([[1e-6] * 4, [1e6] * 4])
    noise = perturbed(WhiteNoise(), quiet, "conv[0:1]").parameters["conv.weight"] - torch.tensor(1e-6)
    assert 0 < noise[0].abs().max() < 1e-5


def test_the_bias_goes_with_its_weight_if_asked_to() -> None:
    assert perturbed(Negate(), task(), include_bias=True).parameters["conv.bias"].tolist() == [-0.5, 0.5]
    assert perturbed(Reinitialise(), task(), include_bias=True).parameters["conv.bias"].tolist() == [10, 10]


# --- what must hold -------------------------------------------------------------------------------------------------

kernels = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8)
moderate = st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8)


@given(kernels)
@pytest.mark.parametrize("how", KERNEL_WISE, ids=str)
def test_kernel_operations_done_twice_are_nothing_and_keep_each_kernels_values(
    how: Perturbation, values: list[float]
) -> None:
    before = task(values)
    once = perturbed(how, before)
    for old, new in zip(before.weights.parameters["conv.weight"], once.parameters["conv.weight"], strict=True):
        assert sorted(old.flatten().tolist()) == sorted(new.flatten().tolist())
    assert perturbed(how, replace(before, weights=once)).same_bits(before.weights)


@given(moderate)
def test_a_rotation_is_a_flip_of_both_sides(values: list[float]) -> None:
    """So flipping, swapping, flipping and swapping back turns by 180 degrees."""
    turned = task(values)
    for how in (FlipKernels(), TransposeKernels(), FlipKernels(), TransposeKernels()):
        turned = replace(turned, weights=perturbed(how, turned))
    assert turned.weights.same_bits(perturbed(RotateKernels(), task(values)))


@given(moderate, st.integers(0, 100))
def test_rotated_outputs_keep_norms_and_inner_products(values: list[float], seed: int) -> None:
    """W and b have the same Q: of (W, b) as one matrix, all columns keep their inner products."""
    before = task(values, seed=seed, dtype=torch.float64)
    after = perturbed(RotateOutputs(), before, include_bias=True)
    old, new = (
        torch.cat([w.parameters["conv.weight"].reshape(2, 4), w.parameters["conv.bias"].reshape(2, 1)], 1)
        for w in (before.weights, after)
    )
    assert torch.allclose(old.T @ old, new.T @ new, atol=1e-9)
    assert math.isclose(after.norm(), before.weights.norm(), rel_tol=1e-12)


def test_rotations_are_uniform_over_the_orthogonal_matrices() -> None:
    """The first entry of a Haar-orthogonal 2x2 matrix has mean 0 and mean square 1/2; half of them are reflections."""
    eye = task([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)
    found = []
    for seed in range(400):
        after = perturbed(RotateOutputs(), replace(eye, seed=seed), "conv")
        found.append(after.parameters["conv.weight"].reshape(2, 4)[:, :2])
    drawn = torch.stack(found)
    for entry in drawn.reshape(400, 4).T:
        assert abs(entry.mean()) < 4 * math.sqrt(0.5 / 400)
        assert abs(entry.square().mean() - 0.5) < 4 * math.sqrt(0.125 / 400)
    assert abs(torch.linalg.det(drawn).mean()) < 4 / math.sqrt(400)


@given(kernels)
def test_flipping_all_signs_is_negation(values: list[float]) -> None:
    before = task(values)
    assert perturbed(FlipSigns(1), before).same_bits(perturbed(Negate(), before))
    assert perturbed(FlipSigns(0), before).same_bits(before.weights)


@given(st.floats(0, 1))
def test_as_many_signs_are_flipped_as_were_asked_for(share: float) -> None:
    before = task()
    after = perturbed(FlipSigns(share), before, "*")
    for name, size in (("conv.weight", 8), ("head.weight", 16)):
        old, new = before.weights.parameters[name], after.parameters[name]
        assert torch.equal(old.abs(), new.abs())
        assert int((old != new).sum()) == math.floor(share * size)


@given(kernels)
def test_shrinking_goes_from_nothing_to_a_fresh_draw(values: list[float]) -> None:
    before = task(values, Net)
    assert torch.equal(perturbed(Shrink(1, 0), before).vector(), before.weights.vector())
    assert perturbed(Shrink(0, 1), before).vector().equal(perturbed(Reinitialise(), before).vector())


@given(st.floats(0, 1), moderate)
def test_exactly_the_smallest_are_drawn_anew(share: float, values: list[float]) -> None:
    before = task(values, Net)
    after = perturbed(PruneAndReinitialise(share), before, "*")
    fresh = perturbed(Reinitialise(), before, "*")
    names = ("conv.weight", "head.weight")
    old, new, drawn = (torch.cat([w.parameters[n].flatten() for n in names]) for w in (before.weights, after, fresh))
    changed = new != old
    same = old == drawn  # a value that happens to be drawn again
    assert int((changed | same).sum()) >= math.floor(share * 24) >= int(changed.sum())
    assert torch.equal(new[changed], drawn[changed])
    if changed.any() and not changed.all():
        assert old[changed].abs().max() <= old[~changed & ~same].abs().max()


@pytest.mark.parametrize("scale", [0.1, 1, 3])
@pytest.mark.parametrize("size", [1e-3, 50])
def test_noise_is_as_large_as_its_scale_says(scale: float, size: float) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(300, 200)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    client = Client.of("a", (torch.zeros(1, 300), torch.tensor([0])), validation=0)
    federation = InProcess(Wide, [client], workers=1, device="cpu")
    weights = federation.architecture.fresh(0) * size
    wide = Task.of(federation, weights, ForgetClient("a"), LocalTraining(), federation.architecture)
    old = weights.parameters["layer.weight"]
    noise = (perturbed(WhiteNoise(scale), wide).parameters["layer.weight"] - old).double()
    sd = scale * old.double().square().mean().sqrt()
    assert abs(noise.std() / sd - 1) < 4 / math.sqrt(2 * noise.numel())
    assert abs(noise.mean() / sd) < 4 / math.sqrt(noise.numel())
    assert abs((noise * old).mean() / sd / old.std()) < 4 / math.sqrt(noise.numel())  # white: of the weights nothing


@pytest.mark.parametrize("how", RANDOM, ids=str)
def test_the_seed_decides_what_is_drawn(how: Perturbation) -> None:
    once, again, other = (perturbed(how, task(build=Net, seed=seed), "*") for seed in (0, 0, 1))
    assert once.same_bits(again)
    assert not once.same_bits(other)


@pytest.mark.parametrize("how", [how for how in RANDOM if not isinstance(how, PruneAndReinitialise)], ids=str)
def test_what_a_tensor_draws_does_not_depend_on_the_others(how: Perturbation) -> None:
    alone, beside = perturbed(how, task(build=Net), "head"), perturbed(how, task(build=Net), ["conv", "head"])
    assert torch.equal(alone.parameters["head.weight"], beside.parameters["head.weight"])


# --- the method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize("layers", [FIRST, "*", ["head[0:2]", "conv"]])
def test_negate_is_not(layers: Selection, include_bias: bool) -> None:
    small = small_task(ForgetClient("1"))
    (ours,) = follow(Perturb(Negate(), layers, include_bias), small, 0)
    (theirs,) = follow(NoT(layers, include_bias, "leave"), small, 0)
    assert ours.round.after.same_bits(theirs.round.after)
    assert ours.round.after.negations == theirs.round.after.negations != ()


def test_recalibration_is_nots() -> None:
    small = small_task(ForgetClient("1"))
    ours, theirs = (
        list(follow(method, small, 1)) for method in (Perturb(Negate(), recalibrate=True), NoT(batchnorm="recalibrate"))
    )
    assert [(step.phase, step.round.number) for step in ours] == [("unlearn", 0), ("unlearn", 1), ("recover", 0)]
    assert all(a.round.after.same_bits(b.round.after) for a, b in zip(ours, theirs, strict=True))


def test_it_is_called_as_what_it_does() -> None:
    assert Perturb(WhiteNoise(0.5)).name == "WhiteNoise"


def test_a_convolution_negated_with_its_normalisation_is_warned_of_and_otherwise_it_may_be_meant() -> None:
    small, both = small_task(ForgetClient("1")), ["conv", "norm.weight"]
    with pytest.warns(CancellingNegation, match=r"negating conv\.weight together with norm\.weight changes nothing"):
        perturbed(Negate(), small, both)
    assert not perturbed(Shrink(), small, both).same_bits(small.weights)


# --- refusals -------------------------------------------------------------------------------------------------------


class Odd(Net):
    """With kernels that are not square, one-dimensional and transposed ones, and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 2, (2, 3))
        self.line = nn.Conv1d(2, 2, 3)
        self.up = nn.ConvTranspose2d(2, 3, 2)
        self.norm = nn.BatchNorm2d(2)
        self.attention = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("how", "layers", "include_bias", "says"),
    [
        (
            FlipKernels(),
            ["conv", "line"],
            False,
            r"line\.weight is no convolution's kernel of height and width, which FlipKernels",
        ),
        (RotateKernels(), "head", False, r"head\.weight is no convolution's kernel .* name convolutions, without"),
        (TransposeKernels(), "conv", True, r"conv\.bias is no convolution's kernel"),
        (TransposeKernels(), ["conv", "wide"], False, r"the kernels of wide\.weight are not square"),
        (RotateOutputs(), "up", False, r"the rows of up\.weight are no output channels"),
        (RotateOutputs(), "norm.weight", False, r"the rows of norm\.weight are no output channels"),
        (Negate(), "tail", False, "the network has no layer 'tail'"),
    ],
)
def test_what_cannot_be_perturbed_is_refused_before_anything_runs(
    how: Perturbation, layers: Selection, include_bias: bool, says: str
) -> None:
    with pytest.raises(LayerError, match=says):
        Perturb(how, layers, include_bias).check(task(build=Odd))


@pytest.mark.parametrize(
    ("how", "layers"),
    [
        (FlipKernels(), ["conv", "wide", "up"]),
        (RotateKernels(), "wide[0:1]"),
        (TransposeKernels(), ["conv", "up"]),
        (RotateOutputs(), ["conv", "line", "head", "attention[q]", "attention.out_proj"]),
        (WhiteNoise(), ["norm.weight", "up"]),
    ],
)
def test_what_can_be_perturbed_is_not_refused(how: Perturbation, layers: Sequence[str]) -> None:
    Perturb(how, layers).check(task(build=Odd))


@pytest.mark.parametrize(
    ("kind", "entries", "says"),
    [
        (WhiteNoise, {"scale": -1}, "scale must be 0 or more and finite, not -1"),
        (WhiteNoise, {"scale": math.inf}, "scale must be 0 or more and finite, not inf"),
        (PruneAndReinitialise, {"share": 1.5}, r"share must be between 0 and 1, not 1\.5"),
        (FlipSigns, {"share": math.nan}, "share must be between 0 and 1, not nan"),
        (Shrink, {"keep": -0.5}, r"keep and fresh must be 0 or more and finite, not -0\.5 and 0\.5"),
        (Shrink, {"fresh": math.inf}, r"keep and fresh must be 0 or more and finite, not 0\.5 and inf"),
    ],
)
def test_hyper_parameters_out_of_range(kind: type, entries: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind(**entries)
