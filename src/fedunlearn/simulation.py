"""The federation that an experiment speaks of: clients, their data, the request, and how models of it are scored."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedunlearn.architecture import Architecture
from fedunlearn.backends.in_process import InProcess
from fedunlearn.backends.sampled import Sampled
from fedunlearn.client import Client, View
from fedunlearn.data import datasets
from fedunlearn.data.files import FileSamples
from fedunlearn.data.treatment import Backdoored
from fedunlearn.evaluation.flops import SampleFlops, flops_per_sample
from fedunlearn.evaluation.membership import MIA_SAMPLES
from fedunlearn.evaluation.scores import Scores, score, validate
from fedunlearn.experiment import Data, Experiment, Model
from fedunlearn.federation import ClientId, Federation
from fedunlearn.history import History
from fedunlearn.importing import load_object, path_of
from fedunlearn.models import build
from fedunlearn.randomness import generator, seeded, stable_seed
from fedunlearn.requests import AnyOf, ForgetClient, Rest
from fedunlearn.samples import Samples, TensorSamples
from fedunlearn.task import Task
from fedunlearn.weights import Weights

__all__ = ["Partition", "Setting", "Simulation"]

_AT_ONCE = 256  # inputs of a data set that is read one by one


@dataclass(frozen=True)
class Partition:
    """Who holds what of one seed's data.

    Attributes:
        clients: their ids.
        classes: of each client the training samples of each class, ``clients x classes``; validation not counted.
        forget: how many of each client's training samples are to be forgotten.
        validation: how many samples each client keeps for validation.
    """

    clients: tuple[ClientId, ...]
    classes: tuple[tuple[int, ...], ...]
    forget: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """What all seeds of an experiment have in common.

    Attributes:
        experiment: that is simulated.
        data: that are dealt out.
        architecture: of the network.
        flops: that the network takes for a sample.
        workers: see `InProcess`.
    """

    experiment: Experiment
    data: datasets.DataSet
    architecture: Architecture
    flops: SampleFlops
    workers: int | None = None

    @classmethod
    def of(cls, experiment: Experiment, *, workers: int | None = None, data_dir: Path | None = None) -> Setting:
        """Load the data and look at the network.

        Raises:
            ValueError: data set, network and request do not go together.
        """
        data = datasets.load(experiment.data.name, data_dir, experiment.data.images)
        architecture = Architecture(_Build(experiment.model, data.classes, data.shape))
        try:
            flops = flops_per_sample(architecture.build, data.shape)
        except (ValueError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"{experiment.model.name} does not take inputs of shape {data.shape}: {error}") from error
        return cls(experiment, data, architecture, flops, workers)

    def digests(self) -> dict[str, str]:
        """What data and network are, beyond their names: contents, initial weights, and the user's own code."""
        plan = self.experiment
        return {
            "training data": _digest(self.data.train),
            "test data": _digest(self.data.test),
            "network": self.architecture.fresh(0).digest(),
            **{name: _source(name) for name in (plan.data.name, plan.model.name) if ":" in name},
        }

    def own_methods(self) -> dict[str, str]:
        """Digests of the user's own methods' code."""
        names = [path_of(type(method)) for method in self.experiment.methods]
        return {name: _source(name) for name in names if not name.startswith("fedunlearn.")}


class Simulation:
    """One seed of a setting.

    Attributes:
        federation: of the clients.
        test: the test samples, as a federation of their own.
        attack: those of them that a backdoor is tried on, as the backdoor wants them to be seen; None: there is none.
        proxy: images that no client holds, at the server; None: there are none.
        partition: who holds what.
        training: what a client does in an ordinary round.
        left: clients who are gone when the request is answered.

    Raises:
        ValueError: data, partition and request do not go together.
    """

    _TESTS = ("test 0", "test 1")  # two, so that two cores score
    _ATTACKS = ("attack 0", "attack 1")
    _SERVER = "server"

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        plan, data = setting.experiment, setting.data
        tests = _shared_out(self._TESTS, data.test, torch.arange(len(data.test.labels)))
        backdoor = _backdoor(plan.data)
        tests += _shared_out(self._ATTACKS, *backdoor.attack(data.test)) if backdoor else []
        clients, left = _clients(plan.data, data, seed)
        server = [Client.of(self._SERVER, data.train, left, validation=0)]
        earlier = Rest(AnyOf(plan.earlier))
        try:
            self.partition = _partition(clients, View((earlier, plan.request)), data.classes)
        except IndexError as error:  # an instance that nobody has
            raise ValueError(str(error)) from None
        which = f"request {len(plan.earlier) + 1}" if plan.earlier else "the request"
        if not (meant := sum(self.partition.forget)):
            before = ", or what it means was forgotten before" if plan.earlier else ""
            raise ValueError(
                f"{which} means no training sample of anybody: there are no such clients, samples or class{before}"
            )
        if meant < MIA_SAMPLES:
            raise ValueError(
                f"{which} means {meant} training samples, but the membership attack needs {MIA_SAMPLES}: "
                "forget more of them, or score with functions of your own"
            )
        if not any(len(View((Rest(plan.forgotten),)).of(client).positions(None, "train")) for client in clients):
            raise ValueError(f"{which} leaves nobody's training samples: drop the model instead of unlearning")
        ids = [client.id for client in clients]
        if strangers := sorted(set(plan.left) - set(ids)):
            raise ValueError(f"left: there is no client {', '.join(strangers)}; they are {ids[0]} to {ids[-1]}")
        # Only with its own request is a client gone: before that it takes part.
        self.left = tuple(
            client.id
            for client in clients
            if client.id in plan.left and bool(plan.request(client.id, client.labels).all())
        )
        everybody = InProcess(setting.architecture, [*clients, *tests, *server], workers=setting.workers)
        testing, serving = AnyOf(tuple(map(ForgetClient, self._TESTS))), ForgetClient(self._SERVER)
        attacking = AnyOf(tuple(map(ForgetClient, self._ATTACKS)))
        self.federation = everybody.where(Rest(AnyOf((testing, attacking, serving))))
        self.test = everybody.where(testing)
        self.attack = everybody.where(attacking) if backdoor else None
        self.proxy = everybody.where(serving) if len(left) else None
        self.training = plan.training.program()

    def taking_part(self, federation: Federation) -> Federation:
        """Ours, or a wrapper around it, where only so many clients take part in a round as the experiment says."""
        share = self.setting.experiment.training.participation
        return Sampled(federation, share) if share < 1 else federation

    def task(
        self,
        federation: Federation,
        weights: Weights,
        *,
        history: History | None = None,
        proxy: Federation | None = None,
    ) -> Task:
        """The request on a trained model; ``federation`` and ``proxy`` are ours, or wrappers around them.

        What was asked to be forgotten earlier is not there any more.
        """
        plan = self.setting.experiment
        if plan.earlier:
            federation = federation.where(Rest(AnyOf(plan.earlier)))
        seed = stable_seed(self.seed, "unlearning", *([len(plan.earlier)] if plan.earlier else []))
        return Task.of(
            federation,
            weights,
            plan.request,
            self.training,
            self.setting.architecture,
            seed=seed,
            left=self.left,
            history=history,
            proxy=proxy,
        )

    def validate(self, federation: Federation, weights: Weights) -> float | None:
        """See `fedunlearn.evaluation.scores.validate`; ``federation`` is ours, or a wrapper around it."""
        return validate(self.task(federation, weights).retained, weights, self.seed)

    def score(self, weights: Weights, *, final: bool, validation: float | None) -> Scores:
        """See `fedunlearn.evaluation.scores.score`; of everybody's samples, also of those who have left."""
        plan = self.setting.experiment
        everyone = self.federation.marking(plan.forgotten)
        sets = [self.federation.where(request) for request in (*plan.earlier, plan.request)] if plan.earlier else []
        return score(
            weights, everyone, self.test, self.seed, final=final, validation=validation, sets=sets, attack=self.attack
        )


@dataclass(frozen=True)
class _Build:
    """Builds the network: a class and no lambda, so that workers can be sent it."""

    model: Model
    classes: int
    shape: tuple[int, ...]

    def __call__(self) -> torch.nn.Module:
        return build(self.model.name, self.classes, self.shape, **self.model.options)


def _clients(plan: Data, data: datasets.DataSet, seed: int) -> tuple[list[Client], torch.Tensor]:
    """The clients, and the indices of the samples that none of them holds and the server does."""
    labels = data.train.labels
    wanted = len(labels) - plan.proxy if plan.samples is None else plan.clients * plan.samples
    if wanted < 0 or wanted + plan.proxy > len(labels):
        held = f"{plan.clients} clients" + (f" with {plan.samples} samples each" if plan.samples is not None else "")
        served = f" and {plan.proxy} at the server" if plan.proxy else ""
        lower = "data.clients, data.samples or data.proxy" if plan.proxy else "data.clients or data.samples"
        raise ValueError(
            f"{held}{served} need {max(wanted, 0) + plan.proxy}, but {data.name} has {len(labels)}: lower {lower}"
        )
    if strangers := sorted(plan.treatment.keys() - {str(k) for k in range(plan.clients)}):
        raise ValueError(f"data.treatment names no client: {', '.join(strangers)}; they are 0 to {plan.clients - 1}")
    order = torch.randperm(len(labels), generator=generator(seed, "samples"))
    # Those at the server come after the clients', so that adding them changes nobody's data where samples are left.
    used, left = order[:wanted], order[wanted : wanted + plan.proxy]
    clients = []
    for number, part in enumerate(plan.partition(labels[used], plan.clients, seed)):
        id, own, samples = str(number), used[part], data.train
        if id in plan.treatment:
            samples = plan.treatment[id](samples, own, stable_seed(seed, id, "treatment"))
        clients.append(Client.of(id, samples, own, validation=plan.validation, seed=seed))
    return clients, left


def _backdoor(plan: Data) -> Backdoored | None:
    """Of those clients that have one."""
    found = [treatment for treatment in plan.treatment.values() if isinstance(treatment, Backdoored)]
    if len({backdoor.label for backdoor in found}) > 1:
        raise ValueError("data.treatment has backdoors of several labels, but one trigger opens one: give all the same")
    return found[0] if found else None


def _shared_out(names: Sequence[ClientId], samples: Samples, indices: torch.Tensor) -> list[Client]:
    """Samples to be scored, at clients of their own."""
    parts = indices.tensor_split(len(names))
    return [Client.of(name, samples, part, validation=0) for name, part in zip(names, parts, strict=True)]


def _partition(clients: list[Client], meant: View, classes: int) -> Partition:
    return Partition(
        tuple(client.id for client in clients),
        tuple(
            tuple(torch.bincount(client.labels[~client.validation], minlength=classes).tolist()) for client in clients
        ),
        tuple(len(meant.of(client).positions(None, "train")) for client in clients),
        tuple(int(client.validation.sum()) for client in clients),
    )


def _digest(samples: Samples) -> str:
    """Of labels and inputs. All are read, as in every round of training."""
    labels, cpu = samples.labels, torch.device("cpu")
    digest = hashlib.blake2b(labels.numpy().tobytes(), digest_size=16)
    if isinstance(samples, TensorSamples):
        digest.update(f"{samples.values.dtype} {samples.values.shape} {samples.mean} {samples.std}".encode())
        parts: Iterable[torch.Tensor] = [samples.values]
    elif isinstance(samples, FileSamples):  # the files say all that decoding them would
        digest.update(f"{samples.mean} {samples.std}".encode())
        for file in samples.files:
            digest.update(hashlib.blake2b(Path(file).read_bytes()).digest())
        parts = ()
    else:
        parts = (samples.inputs(part, None, cpu) for part in torch.split(torch.arange(len(labels)), _AT_ONCE))
    with seeded(0):  # some data sets draw at random
        for part in parts:
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _source(name: str) -> str:
    """Of the file that ``package.module:name`` stands in, and of all beside it and below that it imports."""
    load_object(name)
    module = name.partition(":")[0]
    files = _imported(module, _home(module), {})
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files.values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _home(module: str) -> Path:
    """Where the user's own code lies: the package, or the folder that a module lies in."""
    file = _file(module.partition(".")[0])
    return file.parent if file else Path("nowhere")


def _imported(module: str, home: Path, found: dict[str, Path]) -> dict[str, Path]:
    """Files of a module and of what it imports, as far as they lie in ``home``; loaded they are all."""
    file = _file(module)
    if module in found or file is None or not file.is_relative_to(home) or "site-packages" in file.parts:
        return found
    found[module] = file
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for imported in names:
            _imported(imported, home, found)
    return found


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None
