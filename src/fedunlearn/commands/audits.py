"""Audits: what can still be found out of a run's models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedunlearn.commands.options import DataDir, Json, Workers, complete_run, print_json
from fedunlearn.commands.watching import command_line, watch

__all__ = ["audit_run"]


def audit_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=complete_run)],
    shadows: Annotated[
        int, typer.Option(help="Federations to be trained, from which attackers learn; more later go on from these.")
    ] = 32,
    seed: Annotated[int | None, typer.Option(help="Of the run, to audit; else its first.")] = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Attack a run's models: what can still be found out, by whom, and how surely; broken off, it goes on.

    Started several times on the same run, also on machines that share its folder, it shares the work.
    """
    from fedunlearn.auditing import FILE, audit, plan_of
    from fedunlearn.console import print_audit
    from fedunlearn.report.audit import publish_audit
    from fedunlearn.report.page import publish
    from fedunlearn.report.report import assemble
    from fedunlearn.verdict import summary

    plan, chosen = plan_of(run, seed, shadows)
    steps = audit(run, plan, chosen, shadows, workers=workers, data_dir=data_dir, command=command_line())
    rounds = shadows * plan.total_rounds // len(plan.seeds)
    found = watch(steps, rounds, run, lambda step: (step.part, step.step, step.rounds))
    page = publish_audit(found, run)
    publish([assemble(run)], run)  # whose page links to the audit's from now on
    if as_json:
        print_json({"folder": str(run), **summary(found)})
        return
    print_audit(found)
    print(f"audit: {page}, {run / FILE}")
