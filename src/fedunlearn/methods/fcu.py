"""FCU: contrastive unlearning with frequency-guided fusion. Deng, Luo, Chen. MICCAI 2024."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedunlearn.federation import ClientContext, Reply, Traffic, Work
from fedunlearn.layers import layers
from fedunlearn.needs import Needs, Size
from fedunlearn.programs import Adam, LocalTraining, endless
from fedunlearn.rounds import Round, aggregate
from fedunlearn.task import Method, Task
from fedunlearn.weights import Weights

__all__ = ["FCU", "ContrastiveUnlearning", "contrastive_loss", "fuse"]

_Decay = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class FCU(Method):
    """At those who leave: push features towards a fresh network's, away from the old ones, and keep frequencies.

    With z, z_d, z_g the features that M, a freshly initialised D and the frozen theta* = G hand to the classifier,

        loss = mean -log( e^{cos(z, z_d)/tau} / (e^{cos(z, z_d)/tau} + e^{cos(z, z_g)/tau}) )

    for ``interval`` batches, then M <- fuse(M, G); a new D; and again, ``iterations`` batches in all. Biases,
    normalisations, other parameters and all buffers are G's. Several clients: the mean of their models (ours).

    The authors' code departs from their paper, and its ways are the defaults here: ``donor`` and ``phase``. Its
    plateau schedule is built and never stepped, so the learning rate is constant; its D has a pretrained backbone where
    the trained network had one, so D is initialised like the trained network; G, which it leaves in training mode,
    is in evaluation mode here, or its BatchNorm statistics would drift.

    Attributes:
        lr: of Adam. The paper's values for its CNN (supplement 14.1), as are the next four.
        betas: of Adam.
        iterations: batches in all; those after the last whole interval are left out, as in the code.
        interval: batches between two fusions.
        low_frequency: rho, the share of each axis of the spectrum that counts as low, in [0, 1].
        weight_decay: of Adam, as in the code.
        temperature: tau.
        donor: "official": low amplitudes are the unlearned model's, as the code does it; "paper": the high ones are,
            so that memory is preserved in low frequencies.
        phase: "pretrained": of G everywhere, as the code does it; "split": of whoever gives the amplitude.
        features: name of the module whose input the features are; None: the last linear layer.
    """

    lr: Annotated[float, Gt(0)] = 0.01
    betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    iterations: Annotated[int, Ge(0)] = 20
    interval: Annotated[int, Ge(1)] = 10
    low_frequency: Annotated[float, Ge(0), Le(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    temperature: Annotated[float, Gt(0)] = 0.5
    donor: Literal["official", "paper"] = "official"
    phase: Literal["pretrained", "split"] = "pretrained"
    features: str | None = None
    needs = Needs(forget_data="inputs", target_online=True)

    def cost(self, size: Size) -> Traffic:
        """Three networks look at each batch, one learns."""
        steps = self.iterations // self.interval * self.interval
        looking = LocalTraining(batches=steps, batch_size=size.training.batch_size)
        work = size.trained(size.forgotten.values(), looking)
        return size.sent(len(size.forgotten), work + Work(forward=2 * work.forward))

    def check(self, task: Task) -> None:
        """The network must have a layer whose input the features are."""
        classifier(task.architecture.template, self.features)

    def unlearn(self, task: Task, resume: Round | None = None) -> Iterator[Round]:
        """One visit to each who leaves."""
        if resume is None:
            program = ContrastiveUnlearning(
                Adam(self.lr, self.betas, self.weight_decay),
                self.iterations // self.interval,
                self.interval,
                task.training.batch_size,
                self.temperature,
                self.low_frequency,
                self.donor,
                self.phase,
                self.features,
            )
            yield Round(0, aggregate(task.forgotten, task.weights, program, task.turn()))


@dataclass(frozen=True)
class ContrastiveUnlearning:
    """What a client that leaves does; see `FCU`. Labels are not read."""

    optimizer: Adam
    fusions: int
    interval: int
    batch_size: int
    temperature: float
    low_frequency: float
    donor: Literal["official", "paper"]
    phase: Literal["pretrained", "split"]
    features: str | None

    def __call__(self, context: ClientContext) -> Reply:
        """Answer with the fused model."""
        model, pretrained = context.model.train(), context.frozen()
        batches = endless(context, self.batch_size)
        optimizer = self.optimizer(model.parameters(), 1.0)
        ours, theirs = (_features(network, self.features) for network in (model, pretrained))
        for _ in range(self.fusions):
            seed = int(torch.randint(2**62, (), generator=context.rng))
            fresh = _features(context.fresh(seed), self.features)
            for batch in islice(batches, self.interval):
                optimizer.zero_grad()
                with torch.no_grad():
                    towards, away = fresh(batch.x), theirs(batch.x)
                contrastive_loss(ours(batch.x), towards, away, self.temperature).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            del fresh  # before the next one is made: a client holds three networks
            self._fuse(model, pretrained)
        return Reply(Weights.of(model), context.samples())

    @torch.no_grad()
    def _fuse(self, model: nn.Module, pretrained: nn.Module) -> None:
        """In place, tensor by tensor: a copy of either would be a fourth model."""
        kinds = ("convolution", "linear", "attention")  # q, k and v are linear maps too
        fused = {layer.name for layer in layers(model) if layer.kind in kinds}
        for (name, ours), theirs in zip(model.named_parameters(), pretrained.parameters(), strict=True):
            both = ours.cpu(), theirs.cpu()
            ours.copy_(fuse(*both, self.low_frequency, self.donor, self.phase) if name in fused else theirs)
        for buffer, sent in zip(model.buffers(), pretrained.buffers(), strict=True):
            buffer.copy_(sent)


def contrastive_loss(features: Tensor, towards: Tensor, away: Tensor, temperature: float) -> Tensor:
    """Of features ``(n, d)`` each: log(1 + e^{(cos(z, away) - cos(z, towards)) / tau}), mean over the batch."""
    closeness = [F.cosine_similarity(features, other, dim=1) / temperature for other in (towards, away)]
    return -F.log_softmax(torch.stack(closeness, 1), 1)[:, 0].mean()


def fuse(
    unlearned: Tensor,
    pretrained: Tensor,
    low_frequency: float,
    donor: Literal["official", "paper"] = "official",
    phase: Literal["pretrained", "split"] = "pretrained",
) -> Tensor:
    """Frequency-guided fusion of two weights of one layer, computed in float64.

    A kernel (N, C, h, w) is taken as a matrix (C h) x (w N), a matrix as it is. Low frequencies are the window
    [c - b, c + b) of its centred spectrum on each axis, c = floor(n / 2), b = floor(n rho / 2). That window is not
    symmetric, so the inverse transform is not quite real: the imaginary part is dropped, as the code does silently.
    """
    one, other = (torch.fft.fftshift(torch.fft.fft2(_matrix(w).double())) for w in (unlearned, pretrained))
    low = torch.zeros(one.shape, dtype=torch.bool)
    rows, columns = (_window(n, low_frequency) for n in one.shape)
    low[rows, columns] = True
    ours = low if donor == "official" else ~low
    amplitude = torch.where(ours, one.abs(), other.abs())
    angle = torch.where(ours, one.angle(), other.angle()) if phase == "split" else other.angle()
    spectrum = torch.polar(amplitude, angle)
    back = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real
    return _like(back, pretrained)


def classifier(network: nn.Module, name: str | None) -> nn.Module:
    """The module whose input the features are.

    Raises:
        ValueError: there is none.
    """
    named = dict(network.named_modules())
    linear = [module for module in named.values() if isinstance(module, nn.Linear)]
    found: nn.Module | None = named.get(name) if name is not None else linear[-1] if linear else None
    if found is not None:
        return found
    lacks = "no linear layer" if name is None else f"no module {name!r}"
    raise ValueError(f"FCU reads the features before the classifier, but the network has {lacks}: set `features`")


def _features(network: nn.Module, name: str | None) -> Callable[[Tensor], Tensor]:
    """What a network hands to its classifier, flattened to ``(n, d)``; the network runs as a whole, to be counted."""
    caught: list[Tensor] = []
    # A hook that knew the network would keep it alive, after it was let go, until garbage is collected.
    classifier(network, name).register_forward_pre_hook(lambda _, args: caught.append(args[0]))

    def features(x: Tensor) -> Tensor:
        network(x)
        if not caught:  # a spare layer, or one whose weights are read without it
            which = "last linear layer" if name is None else f"module {name!r}"
            raise ValueError(f"FCU reads what the {which} is given, but the network never calls it: set `features`")
        return caught.pop().flatten(1)

    return features


def _window(size: int, share: float) -> slice:
    centre, half = size // 2, math.floor(round(size * share / 2, 9))
    return slice(centre - half, centre + half)


def _matrix(weight: Tensor) -> Tensor:
    if weight.ndim < 3:
        return weight
    return weight.movedim(0, -1).reshape(-1, weight.shape[-1] * len(weight))


def _like(matrix: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim >= 3:
        outputs, *others = weight.shape
        matrix = matrix.reshape(*others, outputs).movedim(-1, 0)
    return matrix.to(weight.dtype).contiguous()
