"""Tell what clients can measure of a run's models themselves: `python docs/recognised.py RUN`.

Each model that the run ended with is audited as a server has it done once it has answered a request
(`fedunlearn.audits.recognition` and `judgement`); and the model before the request at every client, as if that one
alone had asked to be forgotten. What this prints is kept in `docs/audited/recognised.md`, from which
`docs/draw_results.py` fills `docs/audits.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from scipy import stats

from fedunlearn.amounts import tell_p
from fedunlearn.audits.certainty import LEVEL, POWER, holm
from fedunlearn.audits.judgement import Finding, judged
from fedunlearn.audits.recognition import Recognised, Recognition
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.federation import ClientId, Federation
from fedunlearn.requests import AnyOf, ForgetClient
from fedunlearn.subject import LAST, Subject, subjects
from fedunlearn.task import Task
from fedunlearn.weights import Weights

MODELS = {
    **dict.fromkeys(("Seed", "Model", "Client", "Judgement"), "---"),
    **dict.fromkeys(("p", "Area", "Area found from", "Gap", "Gap found from"), "---:"),
    **dict.fromkeys(("Own right, %", "Unseen right, %"), "---:"),
}
EVERYBODY = {"Seed": "---", **dict.fromkeys(("Clients", "Found", "Largest p", "Found by area alone", "Areas"), "---:")}
"""Columns, and which way they are aligned."""

WHERE = (
    f"**Where there was something to be forgotten** ({ORIGINAL}: as if nothing had been done; p: the smaller of both "
    f"directions'; found from: with a probability of {POWER:.0%}; own: what was to be forgotten)"
)
EACH = "**The model before the request, at each client as if it alone had asked** (p: that it is known better)"


def audited(subject: Subject) -> Iterator[Sequence[str]]:
    """A row for each model, and each client that had something to be forgotten."""
    task = subject.simulation.task(subject.simulation.federation, subject.original)
    before = answers(task, task.everyone, subject.original)
    for label in (ORIGINAL, *subject.labels):
        after = answers(task, task.everyone, subject.models[label, LAST])
        for client, found in judged(before, after, {}).clients.items():
            yield str(subject.seed), label, client, *told(found)


def told(found: Finding) -> Sequence[str]:
    """The cells of one client's finding."""
    if found.after is None or found.p_known is None or found.p_shunned is None:
        return found.status, *[""] * 7
    one = found.after
    return (
        found.status,
        tell_p(min(found.p_known, found.p_shunned)),
        f"{one.area:.3f}",
        number(found.smallest_area),
        f"{one.gap:.3f}",
        number(found.smallest_gap),
        f"{100 * one.accuracy_members:.1f}",
        f"{100 * one.accuracy_unseen:.1f}",
    )


def everybody(subject: Subject) -> Sequence[str]:
    """The row of a seed: at whom the model before the request knows what it was trained on, each asking alone."""
    clients = subject.simulation.federation
    task = subject.simulation.task(clients, subject.original)
    view = clients.marking(AnyOf(tuple(map(ForgetClient, clients.clients))))
    found = {name: one for name, one in answers(task, view, subject.original).items() if one.pairs}
    p = [judged({}, {name: one}, {}).clients[name].p_known or 1.0 for name, one in found.items()]
    areas = [one.area for one in found.values()]
    return (
        str(subject.seed),
        str(len(found)),
        str(sum(one <= LEVEL for one in p)),
        tell_p(max(p)),
        str(sum(map(area_tells, found.values()))),
        f"{min(areas):.3f} to {max(areas):.3f}",
    )


def answers(task: Task, view: Federation, weights: Weights) -> Mapping[ClientId, Recognised]:
    """What the clients of a view measure of a model."""
    replies = view.run(Recognition(), weights, task.turn(phase="evaluate"))
    return {client: Recognised.of(reply.metrics) for client, reply in replies}


def area_tells(one: Recognised) -> bool:
    """Whether the samples would be found by the area alone, by Mann and Whitney's test within classes."""
    known = float(stats.norm.sf((one.area - 0.5) / one.area_error))
    return holm([known, 1 - known])[0] <= LEVEL


def number(value: float | None) -> str:
    """To three decimals; "" where there is none."""
    return "" if value is None else f"{value:.3f}"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, columns.values(), *rows))


def recognised(run: Path) -> str:
    """What is printed."""
    rows: list[Sequence[str]] = []
    seeds: list[Sequence[str]] = []
    for subject in subjects(run):
        rows += audited(subject)
        seeds.append(everybody(subject))
    return "\n\n".join([WHERE, table(MODELS, rows), EACH, table(EVERYBODY, seeds)])


if __name__ == "__main__":
    print(recognised(Path(sys.argv[1])))
