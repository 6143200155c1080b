"""The command line: parse, call, print; what each command does stands in `fedunlearn.commands`."""

from __future__ import annotations

import sys

import typer

from fedunlearn.commands.advice import list_methods, recommend_methods
from fedunlearn.commands.audits import audit_run
from fedunlearn.commands.checkpoints import negate_checkpoint, show_layers
from fedunlearn.commands.helped import give_help
from fedunlearn.commands.keys import keys
from fedunlearn.commands.receipts import receipt
from fedunlearn.commands.register_page import page
from fedunlearn.commands.reproduction import reproduce_artefact
from fedunlearn.commands.requests import requests
from fedunlearn.commands.runs import (
    compare_runs,
    export_run,
    list_experiments,
    report_run,
    run_experiment,
    tune_method,
)
from fedunlearn.commands.theory import advise, theory

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedunlearn",
    help="Remove data from federated models.",
    no_args_is_help=True,
    rich_markup_mode=None,  # or [q] in a help text would be read as markup
    pretty_exceptions_enable=False,
)
app.command("layers")(show_layers)
app.command("negate")(negate_checkpoint)
app.command("run")(run_experiment)
app.command("tune")(tune_method)
app.command("report")(report_run)
app.command("audit")(audit_run)
app.command("compare")(compare_runs)
app.command("export")(export_run)
app.command("reproduce")(reproduce_artefact)
app.command("experiments")(list_experiments)
app.command("methods")(list_methods)
app.command("recommend")(recommend_methods)
app.command("advise")(advise)
app.add_typer(theory)
requests.command("page")(page)
for group in (requests, receipt, keys):
    app.add_typer(group)
give_help(app)


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
