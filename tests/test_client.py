"""Views, batches, and the counting of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedunlearn.architecture import Architecture
from fedunlearn.client import Client, View, execute
from fedunlearn.federation import ClientContext, ClientError, Forgotten, Reply, Retained, Turn, Work
from fedunlearn.randomness import seeded
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, Rest
from fedunlearn.samples import TensorSamples, as_samples, batch_count
from fedunlearn.weights import Weights

CPU = torch.device("cpu")
TURN = Turn(0, "train", 0)


def client(n: int = 11, validation: float = 0.2) -> Client:
    return Client.of("a", (torch.arange(float(n)).view(-1, 1), torch.arange(n) % 3), validation=validation)


def at(client: Client, program: Callable[[ClientContext], Reply], view: View | None = None, turn: Turn = TURN) -> Reply:
    architecture = Architecture(lambda: nn.Linear(1, 3))
    return execute(program, architecture.fresh(0), turn, view or View(), client, architecture, CPU)


@dataclass
class Read:
    """Keeps what it read, in the order in which it did."""

    size: int = 4
    train: bool = True
    epoch: int = 0

    def __call__(self, context: ClientContext) -> Reply:
        batches = list(context.batches(self.epoch, self.size, train=self.train, part="all"))
        self.sizes = [len(batch.x) for batch in batches]
        self.x = torch.cat([batch.x for batch in batches]).flatten().tolist()
        self.flagged = [
            x for batch in batches for x, f in zip(batch.x.flatten().tolist(), batch.forget, strict=True) if f
        ]
        return Reply()


def test_validation_is_a_fifth_drawn_by_seed_and_id() -> None:
    data = (torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64))
    one, same, other = (Client.of(i, data, seed=3) for i in "aab")
    assert int(one.validation.sum()) == 10
    assert torch.equal(one.validation, same.validation)
    assert not torch.equal(one.validation, other.validation)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        Client.of("a", data, validation=1.0)


@given(st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_batches_hold_every_sample_once_and_never_end_in_a_single_one(n: int, size: int, train: bool) -> None:
    read = Read(size, train)
    at(client(n), read)
    assert sorted(read.x) == list(range(n))
    assert len(read.sizes) == batch_count(n, size)
    if size > 1 and n > 1:
        assert min(read.sizes) > 1
        assert max(read.sizes) <= size + 1


def test_order_depends_on_epoch_and_turn_and_is_the_own_one_at_test_time() -> None:
    orders = []
    for turn, epoch in (
        (TURN, 0),
        (TURN, 1),
        (Turn(0, "train", 1), 0),
        (Turn(1, "train", 0), 0),
        (Turn(0, "recover", 0), 0),
    ):
        read = Read(epoch=epoch)
        at(client(), read, turn=turn)
        orders.append(tuple(read.x))
    assert len(set(orders)) == len(orders)
    read = Read(train=False)
    at(client(), read)
    assert read.x == list(range(11))


def test_a_view_of_a_view_sees_all_labels_so_indices_do_not_shift() -> None:
    view = View(
        (Rest(ForgetClass(0)), Rest(ForgetInstances({"a": (1, 4)}))),
        AnyOf((ForgetInstances({"a": (5,)}), ForgetClass(1))),
    )
    read = Read(train=False)
    at(client(), read, view)
    assert read.x == [2, 5, 7, 8, 10]  # without 0, 3, 6, 9 (class 0) and 1, 4
    assert read.flagged == [5, 7, 10]


def test_choosing_comes_before_batching() -> None:
    @dataclass
    class Sizes:
        def __call__(self, context: ClientContext) -> Reply:
            self.retained = [
                b.x.flatten().tolist() for b in context.batches(0, 3, of=Retained(), part="all", train=False)
            ]
            self.counts = (context.samples(Retained(), "all"), context.samples(Forgotten(), "all"))
            return Reply()

    sizes = Sizes()
    at(client(8), sizes, View(request=ForgetInstances({"a": (0, 2, 4, 6)})))
    assert sizes.retained == [[1, 3, 5, 7]]  # three and a single one: merged
    assert sizes.counts == (4, 4)


def test_a_choice_is_asked_about_what_there_is_to_choose_from_alone() -> None:
    """So that it can take a given number of samples: those in the view, and in the part that is read."""

    @dataclass
    class First:
        asked: list[list[bool]]

        def __call__(self, forget: Tensor) -> Tensor:
            self.asked.append(forget.tolist())
            return torch.arange(len(forget)) < 2

    @dataclass
    class Reads:
        first: First

        def __call__(self, context: ClientContext) -> Reply:
            self.x = [b.x.flatten().tolist() for b in context.batches(0, 4, of=self.first, train=False)]
            return Reply(samples=context.samples(self.first, "validation"))

    one, reads = client(10), Reads(First([]))
    view = View((Rest(ForgetInstances({"a": (0, 1)})),), ForgetInstances({"a": (2, 5)}))
    reply = at(one, reads, view)
    there = [k for k in range(2, 10) if not one.validation[k]]
    kept = [k for k in range(2, 10) if one.validation[k]]
    assert reads.x == [there[:2]]
    assert reads.first.asked == [[k in (2, 5) for k in part] for part in (there, kept)]
    assert reply.samples == len(kept[:2])


def test_parts_do_not_overlap() -> None:
    @dataclass
    class Parts:
        def __call__(self, context: ClientContext) -> Reply:
            self.train, self.validation = (
                {x for b in context.batches(0, 4, part=part) for x in b.x.flatten().tolist()}
                for part in ("train", "validation")
            )
            return Reply()

    parts = Parts()
    at(client(10), parts)
    assert len(parts.validation) == 2
    assert parts.train | parts.validation == set(range(10))
    assert not parts.train & parts.validation


def test_requests() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    assert ForgetClient("a")("a", labels).all()
    assert not ForgetClient("a")("b", labels).any()
    assert ForgetClass(1)("b", labels).tolist() == [False, True, False, True]
    assert Rest(ForgetClass(1))("b", labels).tolist() == [True, False, True, False]
    assert not ForgetInstances({"a": (0,)})("b", labels).any()
    with pytest.raises(IndexError, match="client a has samples 0 to 3, but 4 is to be forgotten"):
        ForgetInstances({"a": (4,)})("a", labels)


def test_a_predicate_that_answers_nonsense_is_told_so() -> None:
    with pytest.raises(TypeError, match="must answer with 11 booleans for client a"):
        View((lambda client, labels: labels,)).of(client())


def test_an_error_in_the_users_code_names_the_client_and_the_round() -> None:
    def program(context: ClientContext) -> Reply:
        raise ZeroDivisionError("by nought")

    with pytest.raises(ClientError, match="client a, train round 0: by nought") as caught:
        at(client(), program)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_all_global_generators_are_seeded_and_restored() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    @dataclass
    class Draw:
        def __call__(self, context: ClientContext) -> Reply:
            self.drawn = draw()
            return Reply()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    one, two = Draw(), Draw()
    at(client(), one)
    at(client(), two)
    assert one.drawn == two.drawn
    assert draw() == expected


def test_work_on_the_cpu_leaves_the_generators_of_accelerators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It seeded them, and did not restore them."""
    architecture = Architecture(lambda: nn.Linear(1, 3))
    start, seeds = Weights.of(architecture.template), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    execute(Read(), start, TURN, View(), client(), architecture, CPU)
    assert not seeds
    with seeded(3):  # whoever builds a network may build it on a GPU
        free = torch.rand(5)
    assert seeds == [3]
    with seeded(3, CPU):
        assert torch.equal(torch.rand(5), free)


class Features(nn.Module):
    """Its features are read by a hook; its head's output is not in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.body(x)))
        return scores


class Functional(nn.Module):
    """No module inside computes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize(
    "network", [Features, Functional, lambda: nn.Sequential(nn.Linear(1, 3), nn.ReLU(inplace=True))]
)
def test_passes_are_counted_on_every_network_that_is_handed_out(network: Callable[[], nn.Module]) -> None:
    def program(context: ClientContext) -> Reply:
        teacher, fresh = context.frozen(), context.fresh(5)
        for batch in context.batches(0, 4, part="all"):
            loss = (context.model(batch.x) - teacher(batch.x) - fresh(batch.x)).sum() + context.model(batch.x).sum()
            loss.backward()
        with torch.no_grad():
            context.model(batch.x[:1])
        return Reply()

    architecture = Architecture(network)
    reply = execute(program, architecture.fresh(0), TURN, View(), client(), architecture, CPU)
    assert reply.work == Work(forward=4 * 11 + 1, backward=2 * 11)


def test_passes_back_from_features_are_counted_too() -> None:
    def program(context: ClientContext) -> Reply:
        features = []
        context.model.head.register_forward_hook(lambda module, args, output: features.append(args[0]))
        for batch in context.batches(0, 4, part="all"):
            context.model(batch.x)
            features.pop().sum().backward()
        return Reply()

    architecture = Architecture(Features)
    reply = execute(program, architecture.fresh(0), TURN, View(), client(), architecture, CPU)
    assert reply.work == Work(forward=11, backward=11)


def test_teachers_hold_the_weights_that_were_sent_and_take_no_gradient() -> None:
    def program(context: ClientContext) -> Reply:
        with torch.no_grad():
            context.model.weight.zero_()
        teacher = context.frozen()
        assert bool(teacher.weight.any())
        assert not teacher.weight.requires_grad
        assert not teacher.training
        return Reply()

    at(client(), program)


def test_the_users_data_in_all_its_forms() -> None:
    class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.full((2,), float(index)), index % 2

    samples = as_samples(Pairs())
    assert samples.labels.tolist() == [0, 1, 0]
    assert samples.inputs(torch.tensor([2, 0]), None, CPU).tolist() == [[2.0, 2.0], [0.0, 0.0]]
    assert as_samples(samples) is samples
    bytes_ = TensorSamples(torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([0, 1]), mean=0.5, std=0.25)
    assert bytes_.inputs(torch.tensor([0, 1]), None, CPU).tolist() == [[-2.0], [2.0]]
    with pytest.raises(TypeError, match="no map-style data set"):
        as_samples(iter([]))
    with pytest.raises(ValueError, match="2 samples but 1 labels"):
        TensorSamples(torch.zeros(2, 1), torch.zeros(1))


def test_labels_are_those_of_the_items() -> None:
    class Changed(torch.utils.data.Dataset):  # type: ignore[type-arg]
        targets: ClassVar = [0, 1, 2]

        def __init__(self, target_transform: Callable[[int], int] | None) -> None:
            self.target_transform = target_transform

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            label = self.targets[index]
            return torch.zeros(1), self.target_transform(label) if self.target_transform else label

    assert as_samples(Changed(None)).labels.tolist() == [0, 1, 2]
    assert as_samples(Changed(lambda label: 2 - label)).labels.tolist() == [2, 1, 0]


def test_a_clients_indices_are_looked_at() -> None:
    data = (torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64))
    assert Client.of("a", data, torch.arange(10) > 6).indices.tolist() == [7, 8, 9]
    for wrong, says in (
        ([-1, 2], "indices from -1 to 2, its data 0 to 9"),
        ([3, 3], "a sample twice"),
        ([10], "from 10"),
    ):
        with pytest.raises(ValueError, match=says):
            Client.of("a", data, wrong)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), its data 10 samples"):
        Client.of("a", data, torch.tensor([True, False]))
    with pytest.raises(TypeError, match="a client's id is a string: write '1', not 1"):
        ForgetClient(1)  # type: ignore[arg-type]


def test_augmentation_draws_from_the_turns_generator_and_only_in_training() -> None:
    noisy = TensorSamples(
        torch.zeros(8, 1),
        torch.zeros(8, dtype=torch.int64),
        geometry=lambda x, rng: x if rng is None else x + torch.rand(x.shape, generator=rng),
    )
    one = Client.of("a", noisy)
    reads = [Read(train=True), Read(train=True), Read(train=False)]
    for read in reads:
        at(one, read)
    assert reads[0].x == reads[1].x
    assert any(reads[0].x)
    assert not any(reads[2].x)


def test_an_architecture_wants_a_function_that_builds_anew() -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="a function that builds"):
        Architecture(net)
    with pytest.raises(TypeError, match="build a new one each time"):
        Architecture(lambda: net).template  # noqa: B018
    with pytest.raises(TypeError, match="returned int"):
        Architecture(lambda: int("3")).template  # type: ignore[arg-type,return-value] # noqa: B018


class Keeping(nn.Module):
    """Tied weights, a buffer, and attributes of its own, two of which are one empty dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        self.two.weight = self.one.weight
        self.register_buffer("seen", torch.zeros(1))
        self.notes: dict[str, list[int]] = {}
        self.same, self.filled = self.notes, {"a": [1]}


def test_networks_are_deep_copies_of_the_template() -> None:
    architecture = Architecture(Keeping)
    template, start = architecture.template, architecture.fresh(0)
    assert isinstance(template, Keeping)
    template.two.register_forward_hook(lambda *_: None)
    one, other = (architecture.network(start, CPU) for _ in range(2))
    assert isinstance(one, Keeping)
    assert isinstance(other, Keeping)
    assert Weights.of(one).same_bits(start)
    assert one.two.weight is one.one.weight
    assert one.notes is one.same
    assert len(one.two._forward_hooks) == 1
    one.one.register_forward_hook(lambda *_: None)
    one.notes["new"] = one.filled["a"]
    one.filled["a"].append(2)
    with torch.no_grad():
        one.one.weight.zero_()
    for left in (other, template):
        assert not left.one._forward_hooks
        assert not left.notes
        assert left.filled == {"a": [1]}
        assert torch.count_nonzero(left.one.weight)
