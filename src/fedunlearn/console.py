"""What a person sees in a terminal: progress of a run, and its table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedunlearn.amounts import tell_bytes, tell_p

if TYPE_CHECKING:  # else a table of layers would wait for torch
    from fedunlearn.auditing import Audit
    from fedunlearn.audits.certainty import Interval
    from fedunlearn.evaluation.table import Line, Spread
    from fedunlearn.presets import Preset
    from fedunlearn.recommend import Candidate, Offer
    from fedunlearn.report.report import Comparison, Report
    from fedunlearn.report.reproduction import Reproduction
    from fedunlearn.report.theory.section import Section
    from fedunlearn.tuning import Trial

__all__ = [
    "console",
    "print_audit",
    "print_capabilities",
    "print_comparison",
    "print_method",
    "print_offers",
    "print_report",
    "print_reproduction",
    "print_section",
    "print_trials",
    "watching",
]

_READABLE, _NARROW = 100, 80  # columns
_WIDEST, _BETWEEN = 48, 2  # characters of a column, and between two


def console(width: int | None = None) -> Console:
    """Where to print; a pipe has no width, and rich would break names at 80 columns."""
    return Console(width=width if sys.stdout.isatty() else 160, markup=False, highlight=False)


@contextmanager
def watching(rounds: int) -> Iterator[Callable[[str, str, int], None]]:
    """A bar on standard error, out of so many rounds, or a line a part in a log.

    Call what it gives with the part, what is done in it, and the number of rounds that this took.
    """
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("starting", total=rounds)

        last = None

        def show(part: str, step: str, rounds: int) -> None:
            nonlocal last
            progress.update(bar, advance=rounds, description=f"{part}, {step}" if step else part)
            if progress.disable and last != (last := part):  # a log shows no bar
                print(part, file=sys.stderr, flush=True)

        yield show


def print_report(report: Report) -> None:
    """The paper's table, in three that fit a terminal of 80 columns: how good, at what price, and stopped when."""
    from fedunlearn.evaluation.rows import ORIGINAL
    from fedunlearn.evaluation.table import REFERENCE

    out = console()
    lines = report.table()
    out.print(report.title, style="bold")
    quality = _table("Retain %", "Forget %", "Test %", "MIA %", "MIA-eff. %", "Avg. gap")
    kept = ["Kept"] if any(line.storage for line in lines) else []
    attacked = ["Attack %"] if "attack" in report.measures else []  # with the other measures it would be too wide
    price = _table("Rounds", "Bytes", "FLOPs", "Seconds", *kept, "Gap per seed", *attacked)
    for line in lines:
        measures = (line.retain, line.forget, line.test, line.mia, line.mia_efficacy)
        style = "dim" if line.method == ORIGINAL else ""
        quality.add_row(line.method, *map(_spread, measures), f"{line.gap.of_means:.2f}", style=style)
        stored = [f"{line.storage:.2e}"] if kept else []
        attack = [_spread(line.attack)] if attacked else []
        cells = (line.method, f"{line.rounds:g}", *_price(line), *stored, f"{line.gap.mean:.2f}", *attack)
        price.add_row(*cells, style=style)
    out.print(quality)
    out.print(price)
    if each := report.each():
        alone = _table(*(f"Gap, request {number}" for number in range(1, len(each) + 1)), first="Each by itself")
        for of_all in zip(*each, strict=True):
            alone.add_row(of_all[0].method, *(f"{line.gap.of_means:.2f}" for line in of_all))
        out.print(alone)
    stops = _table("Stop rule", "Rounds", "Avg. gap", "Bytes", "FLOPs", "Seconds")
    for rule in report.rules[1:]:
        for line in report.table(rule):
            if line.method not in (ORIGINAL, REFERENCE):
                met = "" if line.met == line.seeds else f" (met in {line.met} of {line.seeds})"
                gap = f"{line.gap.of_means:.2f}"
                stops.add_row(line.method, rule.name, f"{line.rounds:.3g}{met}", gap, *_price(line))
    out.print(stops)
    seeds = len(report.seeds)
    out.print(
        f"""Mean ± sd over {seeds} seed{"s" * (seeds > 1)}; in brackets the distance to Retrain's mean. Every
measure is two-sided: Retrain's value is the target, above is as far as below.
MIA: accuracy of a membership attack, forget against test samples. MIA-eff.:
share of forget samples that another attack takes for non-members.
Avg. gap: mean of the distances in retain, forget, test and MIA (the paper's
reading); per seed: the same of each seed's own models, averaged. Bytes:
parameters, both ways. FLOPs: at the clients. Kept: bytes stored since before
the request. Neither these nor seconds hold the first training, which is
Original's. Seconds hold the start of worker processes in whose rounds it fell:
compare them in long runs only.
Stop rules: oracle, the scored round closest to Retrain, which needs the Retrain
models; recovered, once validation accuracy is back and flat, which needs none."""
    )
    if attacked:
        out.print(
            """Attack: a backdoor's success, the share of test samples of other classes that
are taken for its label once they bear its trigger."""
        )
    _print_gaps_in(report)


def print_audit(audit: Audit) -> None:
    """What each attack finds, in 80 columns, and what that comes to."""
    from fedunlearn.evaluation.rows import ORIGINAL
    from fedunlearn.evaluation.table import REFERENCE
    from fedunlearn.verdict import conclusion, verdicts

    out = console()
    out.print(f"Audit: {audit.title}", style="bold")
    for attack in audit.attacks:
        out.print()
        if not attack.results:
            out.print(f"{attack.name}: no model could be attacked like this", width=_NARROW)
            continue
        table = Table(header_style="bold", box=None, pad_edge=False)
        table.add_column(attack.name, overflow="fold", width=26)
        for heading, width in (("Samples: AUC %", 19), ("p", 6), ("All: right %", 14), ("p", 6)):
            table.add_column(heading, justify="right", no_wrap=True, width=width)  # alike in all tables
        for method in dict.fromkeys((REFERENCE, ORIGINAL, *audit.methods)):
            if method in attack.results:
                result, beside = attack.results[method], attack.beside.get(method)
                sample_p, client_p = (tell_p(beside.sample_p), tell_p(beside.client_p)) if beside else ("", "")
                cells = (_interval(result.sample, 1), sample_p, _interval(result.client, 0), client_p)
                table.add_row(method, *cells, style="dim" if method == ORIGINAL else "")
        out.print(table)
    out.print()
    out.print(
        f"With 95 % intervals over {audit.shadows} shadows; by chance 50 %. Samples: how often one that was in "
        "training is told from a twin that was not. All: how often all of them together are told from all twins. "
        "Retrain is what is possible at all. p: how often chance alone would look as bad, against 50 %, or against "
        "Retrain where the data can be found in spite of it; not adjusted for the number of attacks, as those of the "
        "verdicts are.",
        width=_NARROW,
    )
    for one in verdicts(audit):
        out.print(f"\n{one.method}: {one.status}", style="bold", width=_NARROW)
        out.print(one.finding[:1].upper() + one.finding[1:], width=_NARROW)
        out.print(one.promise, width=_NARROW)
    out.print(f"\n{conclusion(audit)}", width=_NARROW)


def print_trials(trials: Sequence[Trial], seed: int) -> None:
    """What a search found on the seed that chooses."""
    table = _table("Avg. gap", "Bytes", first=f"Tried on seed {seed}")
    for trial in trials:
        gap, sent = ("diverged", "") if trial.gap is None else (f"{trial.gap:.2f}", f"{trial.bytes:.2e}")
        table.add_row(trial.label, gap, sent)
    console().print(table)


def print_comparison(comparison: Comparison) -> None:
    """In what the runs differ, and their methods under one another."""
    from fedunlearn.report.report import told

    out = console()
    names = [report.name for report in comparison.reports]
    if comparison.differences:
        differ = Table("Differs", *names, header_style="bold", box=None, pad_edge=False)
        differ.columns[0].no_wrap = True  # long values are broken, the entries' names never
        for column in differ.columns[1:]:
            column.overflow = "fold"
        for entry, values in comparison.differences.items():
            differ.add_row(entry, *map(told, values))
        out.print(differ)
    else:
        out.print("the experiments do not differ")
    attacked = ["Attack %"] if any("attack" in report.measures for report in comparison.reports) else []
    quality = _table("Method", "Retain %", "Forget %", "Test %", "MIA %", *attacked, "Avg. gap", "Bytes", first="Run")
    for report in comparison.reports:
        for line in report.table():
            measures = (line.retain, line.forget, line.test, line.mia, *([line.attack] if attacked else []))
            gap = f"{line.gap.of_means:.2f}"
            quality.add_row(report.name, line.method, *map(_spread, measures), gap, f"{line.bytes:.2e}")
    out.print(quality)
    out.print("Distances and gaps are to each run's own Retrain.")
    for report in comparison.reports:
        _print_gaps_in(report, f"{report.name}: ")


def print_reproduction(reproduction: Reproduction) -> None:
    """The paper's numbers beside ours, a table a block, and what came of the comparison."""
    from fedunlearn.report.tables import beside, how_to_read

    out = console()
    out.print(reproduction.title, style="bold")
    for block in reproduction.blocks:
        heads, rows = beside(block)
        out.print(f"\n{block.heading}", style="bold")
        _print_columns(["\n".join(head) for head in heads], rows)
        for sentence in block.sentences():
            out.print(sentence, width=_READABLE)
    for said in how_to_read(reproduction):
        out.print(f"\n{said}", width=_READABLE)


def print_section(section: Section) -> None:
    """What a diagnosis of the theory found; sentences of a row, the last of its cells, stand below the table."""
    out = console()
    out.print(section.title, style="bold")
    told = max((len(row[-1]) for row in section.rows), default=0) > _WIDEST
    shown = len(section.heads) - told
    _print_columns([head for head, _ in section.heads[:shown]], [row[:shown] for row in section.rows])
    for row in section.rows if told else ():
        out.print(f"{row[0]}: {row[-1]}", width=_READABLE)
    if told:
        out.print()
    explained: dict[str, list[str]] = {}
    for head, explanation in section.heads:
        if head and explanation:
            explained.setdefault(explanation, []).append(head)
    for explanation, heads in explained.items():
        out.print(f"{', '.join(heads)}: {explanation}", width=_READABLE, style="dim")
    for sentence in section.says:
        out.print(sentence, width=_READABLE)


def print_capabilities(candidates: Sequence[Candidate]) -> None:
    """What each method cannot do without: the capability matrix."""
    table = Table("Method", "History", header_style="bold", box=None, pad_edge=False)
    for heading in ("Forgotten\ndata", "Who\nleaves", "Who\nstays", "Proxy\ndata", "Single\nupdates", "Forgets"):
        table.add_column(heading, no_wrap=True)
    for candidate in candidates:
        needs = candidate.method.needs
        table.add_row(
            candidate.label,
            needs.history or "-",
            "-" if needs.forget_data == "none" else needs.forget_data,
            _if(needs.target_online, "online"),
            _if(needs.retain_online, "online"),
            _if(needs.proxy, "server's"),
            _if(needs.per_client_updates, "seen"),
            "clients" if needs.whole_clients else "anything",
        )
    out = console()
    out.print(table)
    out.print(
        """What the unlearning step cannot do without; recovery is by those who stay, whatever the method.
History: that the server must have kept of the first training. Forgotten data: what is read of it,
inputs alone or with labels. Single updates: which secure aggregation hides."""
    )


def print_method(name: str, says: str, hyperparameters: Mapping[str, Any], presets: Sequence[Preset]) -> None:
    """What one method does, its hyper-parameters with their defaults, and what others have used."""
    out = console(_READABLE)
    out.print(name, style="bold")
    out.print(says, width=_READABLE)
    table = Table("Hyper-parameter", "Default", header_style="bold", box=None, pad_edge=False)
    for hyperparameter, default in hyperparameters.items():
        table.add_row(hyperparameter, str(default))
    out.print(table if hyperparameters else "It has no hyper-parameters.")
    if not presets:
        return
    others = Table("Preset", "Hyper-parameter", "Value", "Source", header_style="bold", box=None, pad_edge=False)
    for preset in presets:
        for number, (hyperparameter, value) in enumerate(preset.values.items()):
            others.add_row("" if number else preset.name, hyperparameter, str(value), preset.sources[hyperparameter])
    out.print(others)
    for preset in presets:
        if preset.note:
            out.print(f"{preset.name}: {preset.note}", width=_READABLE)


def print_offers(offers: Sequence[Offer]) -> None:
    """Those that can run with their prices, and why the others cannot, in 100 columns."""
    out = console()
    table = _table("Rounds", "Bytes\nunlearning", "Bytes\nin all", "FLOPs\nunlearning", "FLOPs\nin all", "Storage")
    for offer in offers:
        step, total = offer.unlearning, offer.total
        if step is not None and total is not None:
            sent = (tell_bytes(cost.traffic.both_ways) for cost in (step, total))
            computed = (f"{cost.flops:.2e}" if cost.flops else "0" for cost in (step, total))
            cells = [offer.label, str(offer.rounds), *sent, *computed, tell_bytes(total.storage)]
            if offer.exceeded:
                table.add_row(*cells, "over budget", style="dim")
            else:
                table.add_row(*cells)
    if table.rows:
        out.print(table)
    else:
        out.print("no method can run")
    _print_reasons("Over budget", "Why", [(offer.label, offer.exceeded) for offer in offers])
    _print_reasons("Cannot run", "Lacking", [(offer.label, offer.lacking) for offer in offers])
    out.print(
        """
Predicted in closed form, as if all clients took part and no method stopped early. Bytes:
parameters, both ways. In all: with so many rounds of recovery. Storage: kept since before the
request. How well each forgets is another question, for `fedunlearn run` to answer."""
    )


def _print_reasons(heading: str, why: str, offers: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Methods by what is in their way, those with the same reasons together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for label, reasons in offers:
        if reasons:
            together.setdefault(tuple(reasons), []).append(label)
    if not together:
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(heading, width=30)
    table.add_column(why)
    for reasons, labels in together.items():
        table.add_row("\n".join(labels), "\n".join(f"- {reason}" for reason in reasons))
    out = console()
    out.print()
    out.print(table, width=min(out.width, _READABLE))


def _if(needed: bool, word: str) -> str:
    return word if needed else "-"


def _print_gaps_in(report: Report, whose: str = "") -> None:
    """What is not in the tables, and why."""
    out = console()
    for failure in report.failures:
        after = f"seed {failure.seed}, after {failure.rounds} rounds of recovery"
        out.print(f"{whose}{failure.method} is in no table: {after}: {failure.why}")
    if report.missing:
        out.print(f"{whose}not complete yet, and not counted: seed {', '.join(map(str, report.missing))}")


def _price(line: Line) -> tuple[str, str, str]:
    return f"{line.bytes:.2e}", f"{line.flops:.2e}", f"{line.seconds:.1f}"


def _table(*headings: str, first: str = "Method") -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print_columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose columns may be too many for the terminal: the others stand below, their rows named again."""
    out = console()
    widths = [_width(head, [row[at] for row in rows]) for at, head in enumerate(heads)]
    for number, columns in enumerate(_fitting(widths, out.width)):
        if number:
            out.print()
        table = Table(header_style="bold", box=None, pad_edge=False)
        for at in columns:
            left = at == 0 or widths[at] == _WIDEST  # sentences
            table.add_column(heads[at], justify="left" if left else "right", width=widths[at], overflow="fold")
        for row in rows:
            table.add_row(*(row[at] for at in columns))
        out.print(table)


def _width(head: str, cells: Sequence[str]) -> int:
    """Of a column: its cells are not broken before they are sentences, its head is, between words."""
    return min(max(map(len, (*head.split(), *cells)), default=1), _WIDEST)


def _fitting(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns side by side in so much room, each time with the first one."""
    columns = [0]
    for at in range(1, len(widths)):
        if len(columns) > 1 and sum(widths[one] + _BETWEEN for one in (*columns, at)) > room + _BETWEEN:
            yield columns
            columns = [0]
        columns.append(at)
    yield columns


def _spread(s: Spread | None) -> str:
    return "" if s is None else f"{s.mean:.2f}±{s.sd:.2f}\n({s.distance:.2f})"


def _interval(found: Interval, digits: int) -> str:
    value, low, high = (f"{100 * x:.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value} ({low}\N{EN DASH}{high})"
