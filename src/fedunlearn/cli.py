"""The command line: parse, call, print.

torch is imported within the commands that need it, so that help and errors of usage come at once.
"""

from __future__ import annotations

import dataclasses
import glob
import inspect
import json
import shlex
import sys
import tomllib
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from fedunlearn.evaluation.flops import SampleFlops
    from fedunlearn.evaluation.rows import Row
    from fedunlearn.history import HistoryKind
    from fedunlearn.names import Layer
    from fedunlearn.report.report import Report

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedunlearn",
    help="Remove data from federated models.",
    no_args_is_help=True,
    rich_markup_mode=None,  # or [q] in a help text would be read as markup
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; what a user can mend is one sentence on standard error and exit code 2."""
    try:
        app()
    except Exception as error:
        if not _to_be_mended(error):
            raise
        for problem in getattr(error, "problems", [str(error)]):  # an experiment's file can have several
            print(f"fedunlearn: {' '.join(problem.split())}", file=sys.stderr)
        sys.exit(2)


def _to_be_mended(error: Exception) -> bool:
    """Whether the user can mend it: bad input, a client whose training failed, or too little memory for workers."""
    # By their names: to import the classes would import torch, for which a misspelt option need not wait.
    return isinstance(error, (ValueError, OSError, ImportError)) or type(error).__name__ in (
        "ClientError",
        "WorkerDied",
    )


def complete_experiment(incomplete: str) -> list[str]:
    """What the shell offers: shipped experiments, and TOML files."""
    from fedunlearn.experiments import shipped

    files = sorted(str(path) for path in Path().glob(f"{glob.escape(incomplete)}*") if path.suffix == ".toml")
    return [name for name in shipped() if name.startswith(incomplete)] + files


def complete_run(incomplete: str) -> list[str]:
    """What the shell offers: folders with a run, here and in ``runs``."""
    found = [path.parent for pattern in ("*", "runs/*") for path in sorted(Path().glob(f"{pattern}/experiment.toml"))]
    return [str(path) for path in found if str(path).startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, and nothing else.")]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or its report.json.", autocompletion=complete_run)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Instead of the file's, such as training.rounds=20."),
]
DataDir = Annotated[Path | None, typer.Option(help="Where the data set's files lie.")]
Workers = Annotated[int | None, typer.Option(help="Processes side by side; else as many as cores.", min=1)]
CacheFolder = Annotated[
    Path, typer.Option(envvar="FEDUNLEARN_CACHE", help="Trained and retrained models that runs share.")
]
_CACHE = Path("~/.cache/fedunlearn/models")


@app.command("layers")
def show_layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A network (resnet18), your own as package.module:callable, or a .safetensors file.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """List the layers that can be negated, and mark the default choice."""
    if Path(model).is_file() or model.endswith(".safetensors"):
        from fedunlearn.checkpoint import read_layers

        _print_layers(read_layers(model), (), as_json)
        return

    from fedunlearn.layers import FIRST, LayerError, layers, plan

    network = _network(model)
    try:
        default = plan(network, FIRST).names
    except LayerError as error:
        print(f"fedunlearn: no default choice: {error}", file=sys.stderr)
        default = ()
    _print_layers(layers(network), default, as_json)


@app.command("negate")
def negate_checkpoint(
    source: Annotated[Path, typer.Argument(metavar="IN.safetensors", help="The checkpoint; it is not changed.")],
    layer: Annotated[
        list[str],
        typer.Option(
            help="A tensor, a module, a glob, or rows of one (in_proj_weight[q]); may be given several times."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT.safetensors", help="Where to write the new checkpoint."),
    ],
    include_bias: Annotated[bool, typer.Option("--include-bias", help="Negate their biases too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Negate layers of a checkpoint; train the result on the data that stay."""
    from fedunlearn.checkpoint import negate_file

    done = negate_file(source, layer, output, include_bias=include_bias, force=force)
    print(f"negated {', '.join(done.names)} ({done.negated_bytes:,} of {done.file_bytes:,} bytes) -> {output}")
    if done.again:
        print(f"note: {', '.join(done.again)} had been negated before: that is undone", file=sys.stderr)
    if done.means:
        print(
            f"note: {len(done.means)} running means of BatchNorm were left alone; where the network is at hand, "
            "fedunlearn.negate(model) lets those behind a negated layer follow",
            file=sys.stderr,
        )


@app.command("run")
def run_experiment(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE.toml", help="A shipped experiment, or your own file.", autocompletion=complete_experiment
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the run is kept; else runs/NAME."),
    ] = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    download: Annotated[bool, typer.Option("--download", help="Let torchvision fetch the data set first.")] = False,
    workers: Workers = None,
    cache: CacheFolder = _CACHE,
    as_json: Json = False,
) -> None:
    """Compare methods at one deletion request; broken off, the same command goes on."""
    from fedunlearn.data import datasets
    from fedunlearn.experiment import load
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import assemble
    from fedunlearn.runfolder import RunFolder
    from fedunlearn.runner import run

    plan = load(experiment, overrides or ())
    folder = output or Path("runs") / Path(experiment).stem
    RunFolder(folder).require_usable()
    if download:
        datasets.download(plan.data.name, data_dir)
    rows = run(plan, folder, workers=workers, data_dir=data_dir, cache=cache.expanduser(), command=_command())
    _watch(rows, plan.total_rounds, folder)
    report = assemble(folder)
    _show(report, publish([report], folder), as_json)


@app.command("tune")
def tune_method(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Its name, or your own as package.module:Class.")],
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE.toml", help="A shipped experiment, or your own file.", autocompletion=complete_experiment
        ),
    ],
    points: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V,V,...", help="What to try; else the method's own grid. Several times."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Where the other hyper-parameters are from.")] = None,
    seed: Annotated[int | None, typer.Option(help="That chooses; else the experiment's first.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Else runs/NAME-tune-METHOD.")
    ] = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    cache: CacheFolder = _CACHE,
    as_json: Json = False,
) -> None:
    """Search a small grid on one seed, and report the best on the others alone; broken off, it goes on."""
    import tomli_w

    from fedunlearn.console import print_trials
    from fedunlearn.experiment import load, resolved
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import assemble
    from fedunlearn.tuning import SEARCH, TESTED, Search

    entries = {"kind": method, **({"preset": preset} if preset else {})}
    search = Search.of(entries, load(experiment, overrides or ()), dict(map(_values, points or ())), seed)
    folder = output or Path("runs") / f"{Path(experiment).stem}-tune-{method.rpartition(':')[2]}"
    options = {"workers": workers, "data_dir": data_dir, "cache": cache.expanduser(), "command": _command()}
    _watch(search.run(folder, **options), search.rounds, folder)
    found = search.trials(folder)
    publish([assemble(folder / SEARCH)], folder / SEARCH)
    if not as_json:
        print_trials(found, search.seed)
        print(f"the best, as a file says it:\n\n[[methods]]\n{tomli_w.dumps(resolved(found[0].method))}")
    report = assemble(folder / TESTED)
    page = publish([report], folder / TESTED)
    if as_json:
        said = [{"method": resolved(one.method), "gap": one.gap, "bytes": one.bytes} for one in found]
        _print_json({"seed": search.seed, "trials": said, "folder": str(page.parent), **report.summary()})
        return
    _show(report, page, as_json)


def _values(assignment: str) -> tuple[str, list[Any]]:
    """``lr=0.01,0.1`` to the entry and its values."""
    entry, equals, text = assignment.partition("=")
    if not (entry.strip() and equals and text.strip()):
        raise ValueError(f"--grid {assignment} says nothing to try: write KEY=VALUE,VALUE, such as --grid lr=0.01,0.1")
    try:
        return entry.strip(), tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return entry.strip(), [value.strip() for value in text.split(",")]  # words need no quotes


def _command() -> str:
    return shlex.join(["fedunlearn", *sys.argv[1:]])


def _watch(rows: Generator[Row, None, None], rounds: int, folder: Path) -> None:
    """Read a run to its end, showing how far it is."""
    from fedunlearn.console import watching

    try:
        with watching(rounds) as show:
            for row in rows:
                show(row)
    except KeyboardInterrupt:
        rows.close()
        print(f"fedunlearn: stopped; what was done is in {folder}, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command("report")
def report_run(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; else the run's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's page, figures and tables anew; of a run under way, from the seeds that are complete."""
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import read_report

    report = read_report(run)
    _show(report, publish([report], output or (run if run.is_dir() else run.parent)), as_json)


@app.command("compare")
def compare_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN ...", help="Folders of runs, or their report.json.", autocompletion=complete_run
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; else runs/compared.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show several runs on one page, and tell in what their configurations differ."""
    from fedunlearn import console
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import compare

    comparison = compare(runs)
    page = publish(comparison.reports, output or Path("runs/compared"))
    if as_json:
        _print_json(comparison.summary())
        return
    console.print_comparison(comparison)
    print(f"page: {page}")


@app.command("export")
def export_run(
    run: Run,
    tensorboard: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write TensorBoard's event files.")] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Write to MLflow's store: a folder, or a server's address.")
    ] = None,
) -> None:
    """Hand a run to TensorBoard or MLflow, which are extras; again, it is replaced."""
    from fedunlearn.export import to_mlflow, to_tensorboard
    from fedunlearn.report.report import read_report

    if tensorboard is None and mlflow is None:
        raise ValueError("say where to: --tensorboard FOLDER, --mlflow URI, or both")
    report = read_report(run)
    if tensorboard is not None:
        print(f"{len(to_tensorboard(report, tensorboard))} log directories in {tensorboard}")
    if mlflow is not None:
        print(f"{len(to_mlflow(report, mlflow))} runs in {mlflow}")


@app.command("experiments")
def list_experiments(as_json: Json = False) -> None:
    """List the experiments that come with the package, with the minutes that each takes on two cores."""
    from fedunlearn.experiments import shipped
    from fedunlearn.tomlfile import read

    named = shipped()
    tables = {name: read(path, named).table for name, path in named.items()}
    if as_json:
        _print_json([{"name": n, "title": t["title"], "minutes": t["minutes"]} for n, t in tables.items()])
        return
    for name, table in tables.items():
        print(f"{name}: {table['title']} ({table['minutes']:g} min)")


@app.command("methods")
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
        _print_json([candidate.summary() for candidate in CANDIDATES])
    else:
        console.print_capabilities(CANDIDATES)


@app.command("recommend")
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
    inputs, kept = _shape(shape), _kept(history, no_history, secure_aggregation)
    retained, forgotten = _who_holds(clients, samples, _share(scope, share, leaving, target_gone, classes), leaving)

    from fedunlearn.console import print_offers
    from fedunlearn.needs import Circumstances, Size
    from fedunlearn.programs import LocalTraining
    from fedunlearn.recommend import recommend
    from fedunlearn.weights import Weights

    network, flops = _measured(model, classes, inputs)
    weights = Weights.of(network)
    size = Size(
        weights.parameter_bytes,
        weights.nbytes - weights.parameter_bytes,
        len(weights.parameters),
        LocalTraining(epochs=epochs, batch_size=batch_size),
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
        max_bytes=bytes_limit,
        max_flops=max_flops,
        max_storage=storage_limit,
    )
    if as_json:
        about = {"bytes": size.message, "forward_flops": flops.forward, "backward_flops": flops.backward}
        _print_json({"model": about, "offers": [offer.summary() for offer in offers]})
        return
    print_offers(offers)


def _tell_method(name: str, as_json: bool) -> None:
    from fedunlearn.console import print_method
    from fedunlearn.methods.catalogue import CATALOGUE
    from fedunlearn.presets import presets
    from fedunlearn.problems import meant
    from fedunlearn.recommend import defaults

    if name not in CATALOGUE:
        raise ValueError(f"there is no method {name!r}{meant(name, CATALOGUE)}: take one of {', '.join(CATALOGUE)}")
    kind = CATALOGUE[name]
    says = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    if as_json:
        sayable = json.loads(json.dumps(defaults(kind), default=str))
        _print_json(
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


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise ValueError(f"--shape {text}: write the sizes of one input, such as 3,32,32")
    return tuple(map(int, sizes))


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


def _show(report: Report, page: Path, as_json: bool) -> None:
    from fedunlearn.console import print_report

    if as_json:
        _print_json({"folder": str(page.parent), **report.summary()})
        return
    print_report(report)
    print(f"report: {page}")


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False))


def _network(name: str) -> nn.Module:
    from fedunlearn.models import build

    return build(name, 1000, (3, 224, 224))


def _print_layers(rows: Sequence[Layer], default: Collection[str], as_json: bool) -> None:
    if as_json:
        _print_json([{**dataclasses.asdict(row), "default": row.name in default} for row in rows])
        return
    from rich.table import Table

    from fedunlearn.console import console

    table = Table("index", "name", "shape", "dtype", "kind", *([""] if default else []), box=None)
    table.columns[0].justify = "right"
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        mark = ["default"] if row.name in default else []
        shape = " x ".join(map(str, row.shape))
        table.add_row(str(row.index), row.name, shape, row.dtype, row.kind, *mark)
    console(width=160).print(table)  # a narrow terminal would break the names
