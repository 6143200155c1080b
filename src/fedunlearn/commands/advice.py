"""Which methods there are, and which of them can answer a request."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fedunlearn.commands.options import Json, input_shape, print_json

if TYPE_CHECKING:
    from torch import nn

    from fedunlearn.evaluation.flops import SampleFlops
    from fedunlearn.history import HistoryKind
    from fedunlearn.programs import LocalTraining
    from fedunlearn.task import Method

__all__ = ["list_methods", "recommend_methods"]


def list_methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, with its defaults.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods with what each cannot do without; or tell of one what it does, and its hyper-parameters."""
    from fedunlearn import console
    from fedunlearn.recommend import CANDIDATES

    if name is not None:
        _tell_method(name, as_json)
    elif as_json:
        print_json([candidate.summary() for candidate in CANDIDATES])
    else:
        console.print_capabilities(CANDIDATES)


def recommend_methods(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A network, or your own as package.module:callable.")
    ] = "layernorm-cnn",
    shape: Annotated[str, typer.Option(metavar="C,H,W", help="Of one input.")] = "3,32,32",
    classes: Annotated[int, typer.Option(help="That the network tells apart.", min=2)] = 10,
    clients: Annotated[
        int, typer.Option(help="Of the first training, those who leave included.", min=2, max=10**6)
    ] = 10,
    samples: Annotated[int, typer.Option(help="That each client trains on.", min=1, max=10**9)] = 1000,
    scope: Annotated[
        str, typer.Option(metavar="client|class|instances", help="What goes: whole clients, or a part of each.")
    ] = "client",
    leaving: Annotated[int | None, typer.Option(help="How many clients leave; else 1.", min=1)] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Of each client's samples that goes, for class (else 1 / classes) and instances."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Of local training.", min=1, max=10**9)] = 64,
    epochs: Annotated[float, typer.Option(help="Of local training in a round.")] = 1.0,
    training_rounds: Annotated[
        int, typer.Option(help="Of the first training, and of Retrain.", min=1, max=10**9)
    ] = 100,
    recovery_epochs: Annotated[
        float | None, typer.Option(help="Of local training in a round of recovery; else as --epochs. Not of Retrain.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Of recovery, for all other methods.", min=0, max=10**9)] = 50,
    target_gone: Annotated[
        bool, typer.Option("--target-gone", help="Those who leave cannot be reached any more.")
    ] = False,
    history: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="What was kept: norms, sum, last_local or updates; may be given several times. Else all were, "
            "or none with --secure-aggregation, since a history is recorded of single updates.",
        ),
    ] = None,
    no_history: Annotated[bool, typer.Option("--no-history", help="Nothing was kept of the training.")] = False,
    proxy: Annotated[
        int, typer.Option(metavar="N", help="Samples that the server holds itself.", min=0, max=10**12)
    ] = 0,
    secure_aggregation: Annotated[
        bool, typer.Option("--secure-aggregation", help="The server sees no single updates.")
    ] = False,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="BYTES", help="To be sent in all, such as 2GB or 500MiB.")
    ] = None,
    max_flops: Annotated[float | None, typer.Option(metavar="FLOPS", help="To be computed in all, as 1e15.")] = None,
    max_storage: Annotated[
        str | None, typer.Option(metavar="BYTES", help="To have been kept since before the request.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which methods can answer a request, at what price, and why the others cannot."""
    bytes_limit, storage_limit = _amount("--max-bytes", max_bytes), _amount("--max-storage", max_storage)
    _require_positive("--max-flops", max_flops, "1e15")
    _require_positive("--epochs", epochs, "1")
    _require_positive("--recovery-epochs", recovery_epochs, "2")
    inputs, kept = input_shape(shape), _kept(history, no_history, secure_aggregation)
    retained, forgotten = _who_holds(clients, samples, _share(scope, share, leaving, target_gone, classes), leaving)

    from fedunlearn.console import print_offers
    from fedunlearn.needs import Circumstances, Size
    from fedunlearn.programs import LocalTraining
    from fedunlearn.recommend import recommend
    from fedunlearn.weights import Weights

    network, flops = _measured(model, classes, inputs)
    weights, training = Weights.of(network), LocalTraining(epochs=epochs, batch_size=batch_size)
    size = Size(
        weights.parameter_bytes,
        weights.nbytes - weights.parameter_bytes,
        len(weights.parameters),
        training,
        retained,
        forgotten,
        proxy=proxy,
        clients=clients,
        rounds=training_rounds,
    )
    found = Circumstances(
        history=kept,
        target_online=not target_gone,
        proxy=proxy > 0,
        single_updates=not secure_aggregation,
        whole_clients=scope == "client",
    )
    offers = recommend(
        size,
        found,
        flops,
        rounds,
        training_rounds=training_rounds,
        recovery=dataclasses.replace(training, epochs=epochs if recovery_epochs is None else recovery_epochs),
        misfit=_misfits(network, inputs, training),
        max_bytes=bytes_limit,
        max_flops=max_flops,
        max_storage=storage_limit,
    )
    if as_json:
        about = {"bytes": size.message, "forward_flops": flops.forward, "backward_flops": flops.backward}
        print_json({"model": about, "offers": [offer.summary() for offer in offers]})
        return
    goes = f"{len(forgotten)} leaving" if scope == "client" else f"a part of each going ({scope})"
    told = ", ".join(sorted(kept)) or "nothing"
    print(f"{model}, {clients} clients with {samples} samples, {goes}; kept of the training: {told}")
    print_offers(offers)


def _misfits(network: nn.Module, inputs: tuple[int, ...], training: LocalTraining) -> Callable[[Method], str | None]:
    """Says of a method why it does not fit the network, if it does not."""
    import torch

    from fedunlearn.architecture import Architecture
    from fedunlearn.backends.in_process import InProcess
    from fedunlearn.client import Client
    from fedunlearn.task import Task
    from fedunlearn.weights import Weights

    somebody = Client.of("0", (torch.zeros(1, *inputs), torch.zeros(1, dtype=torch.long)), validation=0)
    everybody = InProcess(Architecture(lambda: copy.deepcopy(network)), [somebody])
    task = Task(Weights.of(network), everybody, everybody, everybody, (), training, everybody.architecture)

    def misfit(method: Method) -> str | None:
        try:
            method.check(task)
        except ValueError as error:
            return str(error)
        return None

    return misfit


def _tell_method(name: str, as_json: bool) -> None:
    from fedunlearn.console import print_method
    from fedunlearn.methods.catalogue import CATALOGUE
    from fedunlearn.presets import presets
    from fedunlearn.problems import meant
    from fedunlearn.task import defaults

    if name not in CATALOGUE:
        raise ValueError(f"there is no method {name!r}{meant(name, CATALOGUE)}: take one of {', '.join(CATALOGUE)}")
    kind = CATALOGUE[name]
    says = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    if as_json:
        sayable = json.loads(json.dumps(defaults(kind), default=str))
        print_json(
            {
                "method": name,
                "says": says,
                "hyperparameters": sayable,
                "needs": dataclasses.asdict(kind().needs),
                "presets": {preset.name: dataclasses.asdict(preset) for preset in presets(name).values()},
            }
        )
        return
    print_method(name, says, defaults(kind), list(presets(name).values()))


def _amount(option: str, text: str | None) -> int | None:
    from fedunlearn.amounts import parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _require_positive(option: str, number: float | None, such_as: str) -> None:
    most = 1e30  # what is computed from it stays a float
    if number is not None and not 0 < number < most:  # nan is neither
        raise ValueError(f"{option} must be above 0 and below {most:g}, such as {such_as}, not {number:g}")


def _kept(history: Sequence[str] | None, none: bool, secure: bool) -> frozenset[HistoryKind]:
    """Kinds of history that there are; of updates that were hidden, none could be recorded."""
    from fedunlearn.history import KINDS

    if none and history:
        raise ValueError("--history says what was kept, and --no-history that nothing was: leave out one of them")
    if strangers := sorted(set(history or ()) - set(KINDS)):
        raise ValueError(f"there is no history of kind {strangers[0]!r}: name one of {', '.join(KINDS)}")
    said = history or (() if none or secure else KINDS)
    return frozenset(kind for kind in KINDS if kind in said)


def _share(scope: str, share: float | None, leaving: int | None, target_gone: bool, classes: int) -> float | None:
    """Of each client's samples that goes; None: whole clients go."""
    if scope not in ("client", "class", "instances"):
        raise ValueError(f"--scope is client, class or instances, not {scope!r}")
    if scope == "client":
        if share is not None:
            raise ValueError("--share is for --scope class or instances: where whole clients go, give --leaving")
        return None
    if leaving is not None:
        raise ValueError(f"--leaving is for --scope client: with --scope {scope} nobody leaves, so give --share")
    if target_gone:
        raise ValueError(
            f"--target-gone is for --scope client: with --scope {scope} those who hold what goes stay, so leave it out"
        )
    if share is None and scope == "instances":
        raise ValueError("say with --share what part of each client's samples goes, such as --share 0.05")
    share = 1 / classes if share is None else share
    if not 0 < share < 1:
        raise ValueError(f"--share must be above 0 and below 1, such as 0.05, not {share:g}")
    return share


def _who_holds(
    clients: int, samples: int, share: float | None, leaving: int | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Samples by client: those that stay, and those that go."""
    names = list(map(str, range(clients)))
    if share is not None:
        go = round(share * samples)
        if not 0 < go < samples:
            raise ValueError(
                f"a share of {share:g} of --samples {samples} is {'all of them' if go else 'not one of them'}: "
                "change one of the two"
            )
        return dict.fromkeys(names, samples - go), dict.fromkeys(names, go)
    leave = 1 if leaving is None else leaving
    if leave >= clients:
        raise ValueError(f"--leaving {leave} of --clients {clients}: somebody must stay, so lower it")
    return dict.fromkeys(names[leave:], samples), dict.fromkeys(names[:leave], samples)


def _measured(model: str, classes: int, shape: tuple[int, ...]) -> tuple[nn.Module, SampleFlops]:
    """The network, and what a sample costs it."""
    from fedunlearn.evaluation.flops import flops_per_sample
    from fedunlearn.models import build

    try:
        network = build(model, classes, shape)
        return network, flops_per_sample(lambda: network, shape)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # whatever a network raises at inputs that it cannot take
        raise ValueError(f"{model} fails at inputs of shape {shape}: {error}") from error
