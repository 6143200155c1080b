"""The theory, computed: of a network alone, or of a run's models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedunlearn.commands.options import DataDir, Json, complete_run, input_shape, print_json
from fedunlearn.commands.watching import command_line, of_seed, watch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedunlearn.diagnoses import Advised
    from fedunlearn.findings import Found
    from fedunlearn.layers import Selection

__all__ = ["advise", "theory"]

theory = typer.Typer(
    name="theory", help="Compute what the paper's theory says of a network, or of a run's models.", no_args_is_help=True
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=complete_run)]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Of the run; may be given several times. Else all that are complete.")
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME", help="To negate; may be given several times. Else what NoT negates there."),
]
Most = Annotated[int, typer.Option("--samples", help="That are looked at: training, test and forgotten, each.", min=50)]


def _diagnose(
    name: str,
    run: Path,
    seeds: list[int] | None,
    most: int,
    data_dir: Path | None,
    as_json: bool,
    output: Path | None = None,
    **options: Any,
) -> None:
    from fedunlearn.diagnoses import diagnose
    from fedunlearn.subject import complete_seeds

    chosen = complete_seeds(run, tuple(seeds or ()))
    steps = diagnose(name, run, seeds=chosen, most=most, data_dir=data_dir, command=command_line(), **options)
    _publish(watch(steps, len(chosen), run, partial(of_seed, name)), output or run, as_json)


def _publish(found: Found[Any], folder: Path, as_json: bool) -> None:
    from fedunlearn.console import print_section
    from fedunlearn.report.page import publish
    from fedunlearn.report.rendering import REPORT
    from fedunlearn.report.report import assemble
    from fedunlearn.report.theory.page import publish_found, section_of

    page = publish_found(found, folder)
    report = folder / REPORT
    if _is_run(folder) and not (report.exists() and page.name in report.read_text(encoding="utf-8")):
        publish([assemble(folder)], folder)  # whose page links to the theory's from now on
    if as_json:
        print_json({"folder": str(folder), **found.summary()})
        return
    print_section(section_of(found))
    print(f"theory: {page}")


def _is_run(path: str | Path) -> bool:
    return (Path(path) / "experiment.toml").exists()


@dataclass(frozen=True)
class _LookedAt:
    """A network.

    Attributes:
        module: it.
        example: two inputs.
        layers: to negate.
        about: what it is called.
        folder: where to write what is found of it.
    """

    module: nn.Module
    example: Tensor
    layers: Selection
    about: str
    folder: Path


def _looked_at(
    model: str, layers: list[str] | None, shape: str, output: Path | None, data_dir: Path | None
) -> _LookedAt:
    import torch

    from fedunlearn.layers import FIRST
    from fedunlearn.models import build

    if _is_run(model):
        from fedunlearn.experimentfile import load
        from fedunlearn.methods.negation import NoT
        from fedunlearn.simulation import Setting

        plan = load(Path(model) / "experiment.toml")
        setting = Setting.of(plan, data_dir=data_dir)
        negated = next((method.layers for method in plan.methods if isinstance(method, NoT)), FIRST)
        example = torch.zeros(2, *setting.data.shape)
        selection = tuple(layers) if layers else negated
        return _LookedAt(setting.architecture.template, example, selection, plan.title, output or Path(model))
    if Path(model).is_dir():
        raise ValueError(f"{model} is no run's folder, and no network has such a name")
    inputs = input_shape(shape)
    folder = output or _folder_of(model)
    selection = tuple(layers) if layers else FIRST
    return _LookedAt(build(model, 10, inputs).eval(), torch.zeros(2, *inputs), selection, model, folder)


def _folder_of(model: str) -> Path:
    return Path("theory") / model.replace(":", ".")


Network = Annotated[
    str, typer.Argument(metavar="MODEL|RUN", help="A network, your own as package.module:callable, or a run's folder.")
]
Shape = Annotated[str, typer.Option(metavar="C,H,W", help="Of one input, where MODEL is a network.")]
Folder = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Else the run's, or theory/MODEL.")
]


@theory.command("poset")
def poset(
    model: Network,
    layer: Layers = None,
    shape: Shape = "3,224,224",
    output: Folder = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Which layers come before which, and which sets of them every path meets once (Definition 5, Theorem 6)."""
    from fedunlearn.findings import Found
    from fedunlearn.theory.poset import LayerPoset

    network = _looked_at(model, layer, shape, output, data_dir)
    found = LayerPoset.of(network.module, network.example).judged(network.layers)
    _publish(Found("poset", network.about, command_line(), (), (found,)), network.folder, as_json)


@theory.command("optimality")
def optimality(
    model: Network,
    layer: Layers = None,
    shape: Shape = "3,224,224",
    output: Folder = None,
    seeds: Seeds = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Whether negated layers are still optimal ones, and why (Theorem 7, Lemma 8, Definition 7)."""
    if _is_run(model):
        _diagnose("optimality", Path(model), seeds, 100, data_dir, as_json, output, layers=tuple(layer or ()))
        return
    from fedunlearn.diagnoses import Optimality
    from fedunlearn.findings import Found
    from fedunlearn.theory.optimality import conditions

    network = _looked_at(model, layer, shape, output, data_dir)
    found = conditions(network.module, network.layers, network.example)
    _publish(Found("optimality", network.about, command_line(), (), (Optimality(found, {}),)), network.folder, as_json)


def advise(
    model: Network,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME[,NAME]", help="A set to compare; several times. Else layers and pairs."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE.safetensors", help="Of the trained network, where MODEL is one.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="The data set that it was trained on, where MODEL is one.")
    ] = None,
    shape: Shape = "3,224,224",
    seeds: Seeds = None,
    most: Most = 2000,
    data_dir: DataDir = None,
    output: Folder = None,
    as_json: Json = False,
) -> None:
    """Say which layers to negate in a network, and why; of a run, beside what came of those that it negated."""
    sets = tuple(tuple(part.strip() for part in text.split(",")) for text in layer or ())
    if _is_run(model):
        _diagnose("advice", Path(model), seeds, most, data_dir, as_json, output, sets=sets)
        return
    if (weights is None) != (data is None):
        raise ValueError(
            "predictions need both the trained weights and the data: give --weights and --data, or neither"
        )
    from fedunlearn.diagnoses import advised_alone
    from fedunlearn.findings import Found

    if weights is None or data is None:
        network = _looked_at(model, None, shape, output, data_dir)
        about, folder, found = network.about, network.folder, advised_alone(network.module, network.example, sets)
    else:
        about, folder = f"{model} on {data}", output or _folder_of(model)
        found = _advised_with_data(model, weights, data, sets, most, data_dir)
    _publish(Found("advice", about, command_line(), (), (found,)), folder, as_json)


def _advised_with_data(
    model: str, weights: Path, data: str, sets: tuple[tuple[str, ...], ...], most: int, data_dir: Path | None
) -> Advised:
    from fedunlearn.backends.in_process import best_device
    from fedunlearn.checkpoint import load_weights
    from fedunlearn.data import datasets
    from fedunlearn.diagnoses import advised_alone
    from fedunlearn.models import build
    from fedunlearn.randomness import seeded, stable_seed

    trained, held = load_weights(weights), datasets.load(data, data_dir)
    with seeded(stable_seed("advice")):  # the same advice each time
        network, fresh = (build(model, held.classes, held.shape).to(best_device()) for _ in range(2))
    trained.into(network)
    return advised_alone(network, None, sets, fresh, held, most)


@theory.command("cka")
def cka(run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False) -> None:
    """How alike each model's activations are to those of the model before the request (Figures 3 and 7)."""
    _diagnose("cka", run, seeds, most, data_dir, as_json)


@theory.command("coadaptation")
def coadaptation(
    run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """What is lost where one layer is another model's, or negated (Definitions 3 and 4)."""
    _diagnose("coadaptation", run, seeds, most, data_dir, as_json)


@theory.command("jacobian")
def jacobian(
    run: Run,
    layer: Layers = None,
    seeds: Seeds = None,
    most: Most = 2000,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Whether Jacobians keep their law under negation, and gradients their size (Theorems 3 and 6)."""
    _diagnose("jacobian", run, seeds, most, data_dir, as_json, layers=tuple(layer or ()))


@theory.command("spectrum")
def spectrum(run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False) -> None:
    """How many dimensions the gradients of minibatches take (section 13.8, Figure 8)."""
    _diagnose("spectrum", run, seeds, most, data_dir, as_json)


@theory.command("bound")
def bound(run: Run, seeds: Seeds = None, most: Most = 2000, data_dir: DataDir = None, as_json: Json = False) -> None:
    """The least time that unlearning takes, beside how long it took (Theorem 5, Table 3)."""
    _diagnose("bound", run, seeds, most, data_dir, as_json)
