from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedunlearn.layers import CancellingNegation, LayerError, NegationWarning, plan
from fedunlearn.negation import negate, negate_layers
from fedunlearn.weights import Weights

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def convolution_and_norm(bias: bool = False, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 2),
    ).to(dtype)
    nn.init.uniform_(model[1].weight, 0.5, 2.0)
    nn.init.normal_(model[1].bias)
    for _ in range(3):
        model(torch.randn(8, 3, 6, 6, dtype=dtype) + 1)
    return model


def the_listing(model: nn.Module, layer_indicies: Sequence[int] = (0,)) -> nn.Module:
    """The paper's supplement, section 11."""
    with torch.no_grad():
        for layer_indx, param in enumerate(model.parameters()):
            if layer_indx in layer_indicies:
                param.data = -1 * param.data
    return model


@st.composite
def selections(draw: st.DrawFn) -> list[str]:
    names = ["0", "4", "0.bias", "4.bias", "1.weight", "0[1:3]", "4.weight[:1]", "1.bias[2:]"]
    return draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))


@settings(max_examples=20, deadline=None)
@given(selections(), st.booleans(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_twice_is_nothing_and_once_keeps_norms_and_all_else(
    written: list[str], include_bias: bool, dtype: torch.dtype
) -> None:
    model = convolution_and_norm(bias=True, dtype=torch.float32).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CancellingNegation)
        chosen = plan(model, written, include_bias=include_bias, batchnorm="leave")
    before = Weights.of(model)
    assert negate(model, chosen) is model
    once = Weights.of(model)
    touched = {part.name for part in chosen.parts}
    for name, value in before.parameters.items():
        rows = {row for p in chosen.parts if p.name == name for row in range(*(p.rows or (0, len(value))))}
        signs = torch.tensor([-1.0 if row in rows else 1.0 for row in range(len(value))], dtype=dtype)
        expected = value * signs.reshape(-1, *[1] * (value.ndim - 1))
        assert torch.equal(bits(once.parameters[name]), bits(expected))
        assert once.parameters[name].double().norm() == value.double().norm()
        assert (name in touched) == bool(rows)
    assert all(torch.equal(value, once.buffers[name]) for name, value in before.buffers.items())
    assert negate(before, chosen).same_bits(once)
    assert Weights.of(negate(model, chosen)).same_bits(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ["", "[1:5]"])
def test_every_floating_dtype_to_the_bit(dtype: torch.dtype, rows: str) -> None:
    size = dtype.itemsize
    # All of one or two bytes' values, also infinities, NaNs and both zeros; random bits beyond.
    if size <= 2:
        integers = torch.arange(256**size, dtype=torch.int32).to(torch.int8 if size == 1 else torch.int16)
        values = integers.view(dtype)
    else:
        values = torch.randint(0, 256, (2048,), dtype=torch.uint8).view(dtype)
    model = nn.Module()
    model.layer = nn.Module()
    model.layer.weight = nn.Parameter(values.clone().reshape(16, -1))
    negate(model, f"layer.weight{rows}")
    numbers = values.double().reshape(16, -1)
    signs = torch.ones(16, 1, dtype=torch.float64)
    signs[1:5] = -1
    expected = numbers * (signs if rows else -1)
    assert torch.equal(model.layer.weight.double().nan_to_num(), expected.nan_to_num())
    negate(model, f"layer{rows}")
    assert torch.equal(bits(model.layer.weight), bits(values))


def test_a_tensor_may_be_strided_or_without_data() -> None:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
    negate(model, "weight[1:3]")
    assert model.weight[:, 1].tolist() == [4, -5, -6, 7]
    with torch.device("meta"):
        meta = torchvision.models.resnet18().to(torch.float8_e4m3fn)
    assert negate(meta) is meta


def test_parameters_and_gradients_stay() -> None:
    model = convolution_and_norm()
    parameter, memory = model[0].weight, model[0].weight.data_ptr()
    parameter.grad = torch.ones_like(parameter)
    version = parameter._version
    negate(model)
    assert model[0].weight is parameter
    assert parameter.data_ptr() == memory
    assert parameter.requires_grad
    assert parameter.grad.eq(1).all()
    assert parameter._version > version


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_modules_are_negated_inside(wrap: Any) -> None:
    model = convolution_and_norm()
    expected = negate(copy.deepcopy(model))
    wrapped = wrap(model)
    assert negate(wrapped) is wrapped
    assert Weights.of(wrapped).same_bits(Weights.of(expected))


def test_tied_weights_are_negated_once() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    before = first.weight.detach().clone()
    negate(model, ["0", "1"])
    assert torch.equal(second.weight, -before)
    weights = Weights.of(model)
    assert torch.equal(negate(weights, ["1", "0.weight"]).parameters["0.weight"], before)


def test_vit_named_layers_and_query_rows() -> None:
    vit = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48)
    before = Weights.of(vit)
    after = negate(before, like=vit)
    assert [name for name in before.parameters if after.parameters[name] is not before.parameters[name]] == [
        "conv_proj.weight"
    ]
    attention = "encoder.layers.encoder_layer_0.self_attention"
    negate(vit, f"{attention}[q]")
    old, new = before.parameters[f"{attention}.in_proj_weight"], Weights.of(vit).parameters
    assert torch.equal(new[f"{attention}.in_proj_weight"][:24], -old[:24])
    assert torch.equal(new[f"{attention}.in_proj_weight"][24:], old[24:])
    assert torch.equal(new["conv_proj.weight"], before.parameters["conv_proj.weight"])


def test_weights_keep_their_tensors_and_their_history() -> None:
    model = convolution_and_norm()
    weights = Weights.of(model)
    once = negate(weights, like=model)
    twice = negate(once, "4.weight[0:1]", batchnorm="leave")
    assert twice.negations == (("0.weight",), ("4.weight[0:1]",))
    assert twice.buffers is not weights.buffers
    shared = [name for name in weights.parameters if weights.parameters[name] is twice.parameters[name]]
    assert shared == ["1.weight", "1.bias", "4.bias"]
    assert torch.equal(once.buffers["1.running_mean"], -weights.buffers["1.running_mean"])
    assert once.buffers["1.running_var"] is weights.buffers["1.running_var"]
    assert once.same_bits(Weights.of(negate(model)))
    assert negate(weights, plan(model)).same_bits(Weights.of(model))


def test_weights_alone_say_when_they_need_the_module() -> None:
    model = convolution_and_norm()
    weights = Weights.of(model)
    for arguments, says in (
        ({}, r"give the module \(like=...\)"),
        ({"layers": "*"}, r"give the module \(like=...\)"),
        ({"layers": "0"}, r"batchnorm='leave'"),
        ({"layers": "9", "batchnorm": "leave"}, "no layer '9'"),
    ):
        with pytest.raises(LayerError, match=says):
            negate(weights, **arguments)  # type: ignore[call-overload]
    plain = Weights.of(nn.Linear(2, 2))
    assert negate(plain, "weight", include_bias=True).negations == (("weight", "bias"),)


def test_a_plan_for_another_architecture_changes_nothing() -> None:
    model, other = convolution_and_norm(), nn.Sequential(nn.Linear(2, 2))
    before = Weights.of(other)
    with pytest.raises(LayerError, match=r"another architecture: there is no 1\.running_mean"):
        negate(other, plan(model))
    with pytest.raises(LayerError, match="too many rows"):
        negate(other, plan(model, "4[0:2]").__class__(plan(model, "0[3:4]").parts))
    assert Weights.of(other).same_bits(before)


def test_arguments_that_do_not_go_together() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="make a new optimizer"):
        negate(model, optimizer=optimizer)
    with pytest.raises(ValueError, match="goes with Weights"):
        negate(model, like=model)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="belongs to a module"):
        negate(Weights.of(model), "weight", optimizer=optimizer)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"to plan\(...\) instead"):
        negate(model, plan(model), include_bias=True)


@pytest.mark.parametrize(
    ("optimizer", "directions", "others"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), ["momentum_buffer"], []),
        (lambda p: torch.optim.AdamW(p, 0.1), ["exp_avg"], ["exp_avg_sq", "step"]),
        (
            lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
            ["momentum_buffer", "grad_avg"],
            ["square_avg", "step"],
        ),
        (lambda p: torch.optim.Rprop(p, 0.1), ["prev"], ["step_size"]),
        (lambda p: torch.optim.Adagrad(p, 0.1), [], ["sum"]),
        (lambda p: torch.optim.SGD(p, 0.1), [], []),
    ],
)
def test_remembered_directions_become_zero(optimizer: Any, directions: list[str], others: list[str]) -> None:
    model = nn.Linear(3, 4)
    trainer = optimizer(model.parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    trainer.step()
    before = copy.deepcopy({name: dict(trainer.state[p]) for name, p in model.named_parameters()})
    negate(model, "weight[1:3]", optimizer=trainer)
    state = trainer.state[model.weight]
    for key in directions:
        assert state[key][1:3].eq(0).all()
        assert torch.equal(state[key][[0, 3]], before["weight"][key][[0, 3]])
        assert torch.equal(trainer.state[model.bias][key], before["bias"][key])
        assert before["weight"][key][1:3].ne(0).any()
    for key in others:
        assert torch.equal(state[key], before["weight"][key])


@pytest.mark.parametrize("bias", [False, True])
def test_evaluation_after_negation_is_what_training_says(bias: bool) -> None:
    """BatchNorm reads -y (no bias) or 2b - y: with the mean of that, evaluation agrees with training."""
    model = convolution_and_norm(bias=bias).eval()
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    flipped = copy.deepcopy(model)
    with torch.no_grad():
        flipped[1].weight.neg_()
    negate(model)
    assert (model(images) - flipped(images)).abs().max() < 1e-12
    if bias:
        with torch.no_grad():
            model[0].bias.zero_()
        assert not torch.allclose(model(images), flipped(images))


def test_a_negated_bias_alone_is_followed_too() -> None:
    model = convolution_and_norm(bias=True).eval()
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    before = model(images)
    negate(model, "0.bias")
    assert (model(images) - before).abs().max() < 1e-12


def test_leave_is_the_listing() -> None:
    model = convolution_and_norm()
    expected = Weights.of(the_listing(copy.deepcopy(model)))
    assert Weights.of(negate(model, batchnorm="leave")).same_bits(expected)


def test_resnet_negated_is_resnet_with_one_normalisation_flipped_for_ever() -> None:
    """Negating conv1 is flipping the sign of bn1's weight: exactly, in evaluation and through training."""
    torch.manual_seed(0)
    negated = torchvision.models.resnet18(num_classes=3).double()
    images, labels = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1])
    negated(images)  # so that running means are not zero
    flipped = copy.deepcopy(negated)
    negate(negated)
    with torch.no_grad():
        flipped.bn1.weight.neg_()
    assert torch.equal(negated.eval()(images), flipped.eval()(images))
    for model in (negated.train(), flipped.train()):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    ours, theirs = Weights.of(negated), Weights.of(flipped)
    mirrored = ("conv1.weight", "bn1.weight", "bn1.running_mean")
    for name, value in {**ours.parameters, **ours.buffers}.items():
        other = {**theirs.parameters, **theirs.buffers}[name]
        assert torch.equal(value, -other if name in mirrored else other), name
    assert torch.equal(negated.eval()(images), flipped.eval()(images))


def test_a_convolution_with_its_normalisation_is_the_identity_and_warns() -> None:
    model = convolution_and_norm()
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    evaluated, trained = model.eval()(images), copy.deepcopy(model).train()(images)
    with pytest.warns(CancellingNegation):
        negate(model, ["0", "1"])
    assert torch.equal(model.eval()(images), evaluated)
    assert torch.equal(model.train()(images), trained)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 5), min_size=1))
def test_negate_layers_is_the_listing(indices: set[int]) -> None:
    model = convolution_and_norm(bias=True)
    expected = Weights.of(the_listing(copy.deepcopy(model), list(indices)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NegationWarning)
        assert negate_layers(model, list(indices)) is model
    assert Weights.of(model).same_bits(expected)


def test_negate_layers_defaults_to_the_first_parameter() -> None:
    model = convolution_and_norm()
    expected = Weights.of(the_listing(copy.deepcopy(model)))
    assert Weights.of(negate_layers(model)).same_bits(expected)


def test_negate_layers_warns_of_what_is_no_layer() -> None:
    vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    with pytest.warns(NegationWarning, match=r"index 0 \(class_token\) is a constant token"):
        negate_layers(vit)
    with pytest.warns(NegationWarning, match=r"index 2 \(conv_proj.bias\) is a bias without its weight"):
        negate_layers(vit, [2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        negate_layers(vit, [1, 2])
    model = convolution_and_norm()
    with pytest.warns(NegationWarning, match=r"1 \(1.weight\) is a normalisation, .* so do 1 more"):
        negate_layers(model, [1, 2])
    with pytest.warns(CancellingNegation), pytest.warns(NegationWarning, match="is a normalisation"):
        negate_layers(model, [0, 1])


@pytest.mark.parametrize("index", [-1, 5, 99])
def test_negate_layers_refuses_an_index_out_of_range(index: int) -> None:
    model = convolution_and_norm()
    before = Weights.of(model)
    with pytest.raises(LayerError, match="indices are 0 to 4"):
        negate_layers(model, [0, index])
    assert Weights.of(model).same_bits(before)
