"""The page of one run or of several: one file that needs no network and no script; and the files beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import tomli_w

from fedunlearn.amounts import scaled, tell_bytes
from fedunlearn.evaluation.published import Printed
from fedunlearn.evaluation.rows import ORIGINAL, Row
from fedunlearn.evaluation.stopping import StopRule
from fedunlearn.evaluation.table import REFERENCE, Line
from fedunlearn.report import figures, tables
from fedunlearn.report.beside import pictures_of
from fedunlearn.report.drawing import Picture
from fedunlearn.report.figures import NAMES, Series
from fedunlearn.report.rendering import AUDIT, REPORT, THEORY, render, write, write_pictures
from fedunlearn.report.report import FILE, Comparison, Report, measures_of, told, write_report
from fedunlearn.report.reproduction import Reproduction
from fedunlearn.report.shape import Shape

__all__ = ["page", "publish", "publish_reproduction", "reproduction_page"]

_PHASES = {
    "train": "first training",
    "unlearn": "unlearning step",
    "recover": "recovery",
    "evaluate": "validation checks",
}


_SOURCES = {
    "paper": "the paper of the method",
    "code": "published code",
    "supplement": "supplement of the NoT paper, section 14.1",
    "guess": "a guess, where nothing legible is published",
    "tuned": "a search of ours",
}


def publish(reports: Sequence[Report], folder: Path) -> Path:
    """Write everything that people read into a folder: the page, figures as SVG and PDF, tables, and the JSON.

    Returns:
        The page: ``report.html``, or ``compare.html`` for several runs.

    Raises:
        OSError: the folder cannot be written.
    """
    pictures = _Pictures.of(reports)
    write_pictures(pictures.all(), folder / "figures")
    write(folder / "table.csv", tables.as_csv(reports).encode())
    write(folder / "table.md", tables.as_markdown(reports).encode())
    write(folder / "table.tex", tables.as_latex(reports).encode())
    if len(reports) == 1:
        write_report(reports[0], folder / FILE)
    path = folder / (REPORT if len(reports) == 1 else "compare.html")
    beside = [name for name in (AUDIT, THEORY) if len(reports) == 1 and (folder / name).exists()]
    write(path, _rendered(reports, pictures, beside).encode())
    return path


def page(reports: Sequence[Report]) -> str:
    """The page's HTML."""
    return _rendered(reports, _Pictures.of(reports), ())


def publish_reproduction(reproduction: Reproduction, folder: Path) -> Path:
    """Write a table or a figure of the paper beside ours: the page, its figures, and the JSON.

    Returns:
        The page.

    Raises:
        OSError: the folder cannot be written.
    """
    pictures = [pictures_of(block) for block in reproduction.blocks]
    write_pictures((picture for group in pictures for picture in group), folder / f"{reproduction.artefact}-figures")
    path = folder / f"{reproduction.artefact}.html"
    write(path, reproduction_page(reproduction, pictures).encode())
    reproduction.write(folder / f"{reproduction.artefact}.json")
    return path


def reproduction_page(reproduction: Reproduction, pictures: Sequence[Sequence[Picture]]) -> str:
    """Its HTML, with the pictures of each of its blocks."""
    return render(
        "reproduction.html",
        title=f"{reproduction.title} (scale {reproduction.scale})",
        reproduction=reproduction,
        pictures=pictures,
        beside=tables.beside,
        reading=tables.how_to_read(reproduction),
        scores=all(isinstance(block, Shape) for block in reproduction.blocks),
    )


@dataclass(frozen=True)
class _Pictures:
    """All figures of a page, by where they stand in it, and the curves that they show."""

    series: list[Series]
    measures: list[Picture]
    prices: list[Picture]
    validation: Picture | None
    losses: list[list[Picture]]
    partitions: list[Picture]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> _Pictures:
        series = figures.series_of(reports)
        prefixes = [f"run{number}-" if len(reports) > 1 else "" for number in range(1, len(reports) + 1)]
        return cls(
            series,
            list(figures.measures(series, reports)),
            list(figures.prices(series, reports)),
            figures.validation(series, reports),
            [list(figures.losses(report, prefix)) for report, prefix in zip(reports, prefixes, strict=True)],
            [figures.partition(report, prefix) for report, prefix in zip(reports, prefixes, strict=True)],
        )

    def all(self) -> Iterator[Picture]:
        yield from self.measures
        yield from self.prices
        if self.validation is not None:
            yield self.validation
        for group in self.losses:
            yield from group
        yield from self.partitions


def _rendered(reports: Sequence[Report], pictures: _Pictures, beside: Collection[str]) -> str:
    return render(
        "template.html",
        filters={"amount": _amount, "told": told, "shown": _shown},
        audit=AUDIT if AUDIT in beside else None,
        theory=THEORY if THEORY in beside else None,
        reports=reports,
        several=len(reports) > 1,
        title=" / ".join(dict.fromkeys(report.title for report in reports)),
        differences=Comparison(tuple(reports)).differences,
        pictures=pictures,
        numbers=list(_numbers(pictures.series, measures_of(reports))),
        names=NAMES,
        measures=measures_of(reports),
        original=ORIGINAL,
        sources=_SOURCES,
        preset_notes=_preset_notes,
        reference=REFERENCE,
        asked=_asked,
        verdict=_verdict,
        facts=_facts,
        best=_best,
        stops=_stops,
        beside=_beside,
        phases=_phases,
        resolved=lambda report: tomli_w.dumps(dict(report.experiment)),
        environment=_environment,
    )


def _asked(report: Report) -> str:
    """Who asked for what, in a sentence."""
    request, earlier = report.experiment["request"], report.experiment.get("earlier", [])
    requests = request if isinstance(request, list) else [request]
    said = f"To be forgotten: {'; '.join(map(_meant, requests))}"
    if earlier:
        said = f"Request {len(earlier) + 1}, after {'; '.join(_meant(one) for one in earlier)}. {said}"
    if report.experiment.get("left"):
        said += f". Client {', '.join(report.experiment['left'])} has left already"
    who = next(iter(report.partitions.values()))
    going, total = sum(who.forget), sum(map(sum, who.classes))
    holders = sum(number > 0 for number in who.forget)
    return (
        f"{said}: {going:,} of {total:,} training samples ({100 * going / total:.3g} %), "
        f"held by {holders} of {len(who.clients)} clients."
    )


def _meant(request: Any) -> str:
    """What a request means, as its file says it."""
    if isinstance(request, list):
        return " and ".join(map(_meant, request))
    kind = request["kind"]
    if kind == "Client":
        return f"all data of client {request['client']}"
    if kind == "Class":
        return f"class {request['label']}, whoever holds it"
    if kind == "Share":
        return f"{request['share']:.0%} of every client's samples, drawn at random"
    instances = request["instances"]
    return f"{sum(map(len, instances.values()))} single samples of {len(instances)} clients"


def _verdict(report: Report) -> str:
    """What came of it, in a sentence."""
    lines = {line.method: line for line in report.table()}
    compared = [line for method, line in lines.items() if method not in (ORIGINAL, REFERENCE)]
    if not compared:
        return ""
    best = min(compared, key=lambda line: line.gap.of_means)
    said = (
        f"{best.method} ends {best.gap.of_means:.2f} points from the retrained models, where the model before the "
        f"request was {lines[ORIGINAL].gap.of_means:.2f} away"
    )
    if lines[REFERENCE].bytes:
        said += f", for {best.bytes / lines[REFERENCE].bytes:.0%} of their bytes"
    others = [f"{line.method} ends {line.gap.of_means:.2f} away" for line in compared if line is not best]
    return f"{'; '.join([said, *others[:3]])}."


def _facts(report: Report) -> list[tuple[str, str]]:
    """The setting, for a glance."""
    plan = report.experiment
    data, training, recovery = plan["data"], plan["training"], plan["recovery"]
    said = plan["model"].get("options", {})
    options = ", ".join(f"{name} {value}" for name, value in said.items())
    held = [data["name"], f"{data['clients']} clients", _kind(data["partition"])]
    held += [f"{data['samples']} samples each on average"] if "samples" in data else []
    held += [f"{data['validation']:.0%} of them for validation"]
    held += [f"images {_kind(data['images'])}"] if "images" in data else []
    held += [f"client {client}: {_kind(treatment)}" for client, treatment in data["treatment"].items()]
    steps = [
        _kind(training["optimizer"]),
        f"batch {training['batch_size']}",
        _epochs(training["epochs"]),
    ]
    local = f"{_epochs(recovery['epochs'])}, " if "epochs" in recovery else ""
    steps += [_kind(training["schedule"])] if training["schedule"]["kind"] != "Constant" else []
    return [
        ("Data", ", ".join(held)),
        ("Network", plan["model"]["name"] + (f" ({options})" if options else "")),
        ("Training", f"{training['rounds']} rounds, {', '.join(steps)}"),
        ("Recovery", f"{recovery['rounds']} rounds, {local}scored every {recovery['evaluate_every']}"),
        ("Seeds", ", ".join(map(str, report.seeds))),
    ]


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'s' * (number != 1)} a round"


def _kind(table: Mapping[str, Any]) -> str:
    entries = ", ".join(f"{name} {value}" for name, value in table.items() if name != "kind")
    return f"{table['kind']} ({entries})" if entries else str(table["kind"])


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, Mapping) and "kind" in value else told(value)


def _preset_notes(report: Report) -> list[tuple[str, str, str]]:
    """What there is to say of the presets in the table, once each."""
    found = [(setting.method, setting.origin) for setting in report.settings() if setting.origin]
    return list(dict.fromkeys((method, origin.preset, origin.note) for method, origin in found if origin.note))


def _best(report: Report) -> float | None:
    """The smallest gap of those that are compared."""
    gaps = [line.gap.of_means for line in report.table() if line.method not in (ORIGINAL, REFERENCE)]
    return min(gaps, default=None)


def _stops(report: Report) -> list[tuple[str, list[tuple[StopRule, Line]]]]:
    """Of each method that is compared, where each rule stops it."""
    found: dict[str, list[tuple[StopRule, Line]]] = {}
    for rule in report.rules:
        for line in report.table(rule):
            if line.method not in (ORIGINAL, REFERENCE):
                found.setdefault(line.method, []).append((rule, line))
    return list(found.items())


def _beside(report: Report) -> list[tuple[Printed, Line | None, float | None]]:
    """What the paper printed, our line for it where there is one, and our bytes as a share of Retrain's."""
    block = report.published
    if block is None:
        return []
    ours = {line.method: line for line in report.table()}
    retrain = ours[REFERENCE].bytes
    lines = [(row, ours.get(report.counterpart(row.method) or "")) for row in block.rows]
    return [(row, line, line.bytes / retrain if line and retrain else None) for row, line in lines]


def _phases(report: Report) -> list[dict[str, Any]]:
    """What each phase of each method took, mean over seeds."""
    last: dict[str, dict[int, Row]] = {}
    for row in report.compared:
        last.setdefault(row.method, {})[row.seed] = row
    found = []
    for method, rows in last.items():
        phases = dict.fromkeys(phase for row in rows.values() for phase in row.costs)
        for phase in phases:
            costs = [row.costs[phase] for row in rows.values() if phase in row.costs]
            found.append(
                {
                    "method": method,
                    "phase": _PHASES[phase],
                    "down": fmean(cost.traffic.down for cost in costs),
                    "up": fmean(cost.traffic.up for cost in costs),
                    "all": fmean(cost.traffic.down_all + cost.traffic.up_all for cost in costs),
                    "flops": fmean(cost.flops for cost in costs),
                    "seconds": fmean(cost.seconds for cost in costs),
                    "storage": fmean(cost.storage for cost in costs),
                }
            )
    return found


def _numbers(series: Sequence[Series], measures: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The curves as rows of a table."""
    for one in series:
        values = {measure: one.values(measure) for measure in measures}
        for at, (point, gap) in enumerate(zip(one.points, one.gaps(), strict=True)):
            means = {measure: fmean(found[at]) if found else None for measure, found in values.items()}
            known = [row.scores.validation for row in point if row.scores and row.scores.validation is not None]
            yield {
                "label": one.label,
                "rounds": point[0].rounds,
                **means,
                "gap": gap,
                "validation": fmean(known) if known else None,
                "bytes": one.price("bytes")[at],
            }


def _environment(report: Report) -> list[tuple[str, str]]:
    """On what it ran; of several sessions the last."""
    if not report.sessions:
        return []
    session = report.sessions[-1]
    memory = f"{tell_bytes(session['memory_bytes'])} of memory" if session.get("memory_bytes") else "memory not known"
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    decides = session.get("decides", {})
    first, last = report.sessions[0]["started"], session["started"]
    computed = " ".join([str(decides.get("device", "not known")), *session["accelerators"]])
    facts = [
        ("Command", session["command"]),
        (
            "Begun",
            first
            if len(report.sessions) == 1
            else f"{first}; gone on with {len(report.sessions) - 1} times, the last {last}",
        ),
        ("Versions", f"Python {session['python']}, {versions}"),
        ("Code", f"commit {session['commit'] or 'not known'}, digest {session['code']}"),
        ("Working folder", f"commit {session['commit_here'] or 'not known'}"),
        ("Machine", f"{session['processor']}, {session['cores']} cores, {memory}, {session['system']}"),
        ("Computed on", computed),
        ("Data", f"training {decides.get('training data', 'not known')}, test {decides.get('test data', 'not known')}"),
    ]
    if report.cached:
        facts.append(("From the cache", f"{'; '.join(report.cached)}: their seconds are of the run that did them"))
    return facts


def _amount(number: float | None) -> str:
    """A number with a prefix, such as 76.7 M."""
    if number is None:
        return ""
    return "\N{NO-BREAK SPACE}".join(filter(None, scaled(number)))
