"""The tables of one run or of several, as LaTeX, Markdown and CSV; and the paper's numbers beside ours."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from fedunlearn.attacks import Attack
from fedunlearn.auditing import Audit
from fedunlearn.evaluation.published import Quantity, quantity
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE, Line, Spread
from fedunlearn.report.audit_numbers import Soon, probes_of, relearnt, standings
from fedunlearn.report.grid import Entry, Grid
from fedunlearn.report.report import Report, measures_of
from fedunlearn.report.reproduction import Reproduction
from fedunlearn.report.shape import Pair, Result, Shape
from fedunlearn.verdict import certain, conclusion, verdicts

__all__ = [
    "BESIDE",
    "as_csv",
    "as_latex",
    "as_markdown",
    "audit_as_markdown",
    "beside",
    "beside_as_markdown",
    "cells",
    "how_to_read",
]

BESIDE = (
    "Ours: after all rounds; oracle: ours at the scored round closest to Retrain, the paper's way as far as can be "
    "told, which nobody who unlearns can use. Gap: percentage points; its ± follows from the standard deviations of "
    "its measures, as if they were independent, ours over seeds, the paper's over it does not say what; of a figure it "
    "is how well that can be read. Rank: 1 is closest to Retrain, among the methods that both have. Bytes and FLOPs: "
    "as shares of Retrain's, the only way in which the paper's can be compared, ours at the oracle's round."
)
"""How to read `beside` of scores."""

_FOUND: Mapping[Quantity, str] = {
    "bound": (
        "t: the least time to unlearn by Theorem 5 as it is printed, in learning rate times steps; corrected: with the "
        "noise that the printed bound leaves out; measured: when the gap between what stays and what goes had come as "
        "far as Retrain's, not defined where it had not by the last model that was kept. FLOPs: those of that time, "
        "ours counted, the paper's three forward passes a sample. Of all this only FT / NoT can be compared."
    ),
    "cka": (
        "CKA: linear, of each model's activations to those of the model before the request, position by position; ours "
        "is unbiased, and of the paper's nobody knows. Normalised: 0 is a newly initialised network, 1 the original; "
        "not defined where such a network is as the original."
    ),
    "spectrum": (
        "NoT's dimensions as a share of Retrain's: those of the directions in which minibatch gradients vary most, "
        "until they hold so much of the variance. The paper says neither where its curves end nor how sure they are."
    ),
}
_ROWS: Mapping[Quantity, str] = {"bound": "Method", "cka": "Model", "spectrum": "Variance"}
_OVER_SEEDS = (
    "Ours: mean ± standard deviation over seeds. Paper: as printed, or as read off its figure; a range where it prints "
    "one."
)

_HEADINGS = {"retain": "Retain", "forget": "Forget", "test": "Test", "mia": "MIA", "attack": "Attack"}
_COSTS = {"bytes": "Bytes", "flops": "FLOPs"}


def as_csv(reports: Sequence[Report]) -> str:
    """Every method at every stop rule, numbers in full."""
    file = io.StringIO()
    measures = (*measures_of(reports), "mia_efficacy")
    spreads = [f"{measure}_{part}" for measure in measures for part in ("mean", "sd", "distance")]
    writer = csv.writer(file, lineterminator="\n")
    costs = ("bytes", "flops", "seconds", "storage")
    start, gaps = ("run", "rule", "method", "seeds", "met", "rounds"), ("gap_of_means", "gap_per_seed")
    writer.writerow([*start, *spreads, *gaps, *costs])
    for report in reports:
        for rule in report.rules:
            for line in report.table(rule):
                values = [getattr(line, measure) for measure in measures]
                numbers = [x for s in values for x in ((s.mean, s.sd, s.distance) if s else ("", "", ""))]
                begin = [report.name, rule.name, line.method, line.seeds, line.met, line.rounds]
                paid = [getattr(line, cost) for cost in costs]
                writer.writerow([*begin, *numbers, line.gap.of_means, line.gap.mean, *paid])
    return file.getvalue()


def as_markdown(reports: Sequence[Report]) -> str:
    """The paper's table, after all rounds."""
    first = ["Run"] if len(reports) > 1 else []
    measures = measures_of(reports)
    head = [*first, *_head(measures)]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for name, line in _lines(reports):
        lines.append(_row([*([name] if first else []), *cells(line, measures)]))
    return "\n".join(lines) + "\n"


def as_latex(reports: Sequence[Report]) -> str:
    """The paper's table, after all rounds; needs the package booktabs."""
    first = ["Run"] if len(reports) > 1 else []
    measures = measures_of(reports)
    rows = [
        " & ".join(
            _escaped(cell).replace("±", "$\\pm$") for cell in [*([name] if first else []), *cells(line, measures)]
        )
        for name, line in _lines(reports)
    ]
    heading = _head(measures)
    columns = "l" * (1 + len(first)) + "r" * (len(heading) - 1)
    head = " & ".join([*first, *heading])
    body = " \\\\\n".join(rows)
    return (
        f"% {' / '.join(' '.join(report.title.split()) for report in reports)}\n\\begin{{tabular}}{{{columns}}}\n"
        f"\\toprule\n{head} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
    )


def cells(line: Line, measures: Sequence[str]) -> list[str]:
    """A method's row as the paper prints it: mean ± sd (distance to Retrain) of each of ``measures``."""
    spreads = [_spread(getattr(line, measure)) for measure in measures]
    return [line.method, *spreads, f"{line.gap.of_means:.2f}", f"{line.bytes:.2e}", f"{line.flops:.2e}"]


def _head(measures: Sequence[str]) -> list[str]:
    return ["Method", *(_HEADINGS[measure] for measure in measures), "Avg. gap", *_COSTS.values()]


def beside(block: Shape | Grid) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """The paper's numbers beside ours: headings, each of two parts, and a row of cells a method."""
    return _shape(block) if isinstance(block, Shape) else _grid(block)


def _shape(shape: Shape) -> tuple[list[tuple[str, str]], list[list[str]]]:
    drawn = any(pair.last is not None for pair in shape.pairs)
    printed = [pair.published for pair in shape.pairs if pair.published]
    costs = [name for name in _COSTS if any(getattr(result, name) is not None for result in printed)]
    heads = [("Method", ""), ("Gap", "paper")]
    heads += [("Gap", "paper, last")] if drawn else []
    heads += [("Gap", "ours"), ("Gap", "oracle"), ("Rank", "paper"), ("Rank", "ours"), ("Rank", "oracle")]
    heads += [(name, side) for cost in costs for name in [_COSTS[cost]] for side in ("paper", "oracle")]
    after, oracle = (order.ranks for order in shape.orders)
    rows = []
    for pair in shape.pairs:
        row = [_named(pair), _gap(pair.published)]
        row += [f"{pair.last:.2f}" if pair.last is not None else ""] if drawn else []
        row += [_gap(pair.fixed), _gap(pair.oracle)]
        ranks = [*oracle[pair.method], after[pair.method][1]] if pair.published and pair.method in oracle else [""] * 3
        row += [str(ranks[0]), str(ranks[2]), str(ranks[1])]
        for cost in costs:
            row += [_share(getattr(result, cost) if result else None) for result in (pair.published, pair.oracle)]
        rows.append(row)
    return heads, rows


def _grid(grid: Grid) -> tuple[list[tuple[str, str]], list[list[str]]]:
    printed = [any(row.entries[at].published is not None for row in grid.rows) for at in range(len(grid.columns))]
    heads = [(_ROWS[quantity(grid.published)], "")]
    for column, both in zip(grid.columns, printed, strict=True):
        heads += [(column, side) for side in (("paper", "ours") if both else ("ours",))]
    rows = []
    for row in grid.rows:
        cells = [row.label]
        for entry, both in zip(row.entries, printed, strict=True):
            cells += [*([_told(entry)] if both else []), _over_seeds(entry)]
        rows.append(cells)
    return heads, rows


def _told(entry: Entry) -> str:
    if isinstance(entry.published, tuple):
        return " to ".join(f"{number:.3g}" for number in entry.published)
    return "" if entry.published is None else f"{entry.published:.3g}"


def _over_seeds(entry: Entry) -> str:
    if entry.mean is None:
        return "not defined"
    # As many places as three digits of the mean have, so that a spread of rounding errors alone is shown as none.
    within = 1e-3 <= abs(entry.mean) < 1e4 or entry.mean == 0
    form = f".{max(2 - math.floor(math.log10(abs(entry.mean) or 1)), 0)}f" if within else ".2e"
    return f"{entry.mean:{form}}" + (f" ± {entry.sd:{form}}" if entry.sd is not None else "")


def how_to_read(reproduction: Reproduction) -> list[str]:
    """What the columns and rows of `beside` mean, each kind of block once."""
    return list(dict.fromkeys(map(_meaning, reproduction.blocks)))


def _meaning(block: Shape | Grid) -> str:
    return BESIDE if isinstance(block, Shape) else f"{_OVER_SEEDS} {_FOUND[quantity(block.published)]}"


def beside_as_markdown(reproduction: Reproduction) -> str:
    """A section a block: what stands beside what, the table, and what came of it."""
    parts = []
    for block in reproduction.blocks:
        heads, rows = beside(block)
        lines = [_row([" ".join(head).strip() for head in heads]), _row(["---", *["---:"] * (len(heads) - 1)])]
        lines += [_row(row) for row in rows]
        seeds = ", ".join(map(str, block.seeds))
        about = f"`{block.experiment}`, seed{'s' * (len(block.seeds) > 1)} {seeds}. "
        parts += [f"**{block.heading}**", about + " ".join(block.sentences()), "\n".join(lines)]
    return "\n\n".join([f"`{reproduction.command}`", *parts, *how_to_read(reproduction)]) + "\n"


def audit_as_markdown(audit: Audit) -> str:
    """What came of it, a table of what attacks with shadows find, and one of what the models give away without."""
    names = [ORIGINAL, *audit.methods]
    heads = [_row(["", *names]), _row(["---", *["---:"] * len(names)])]
    sure = {method: certain(audit, method) for method in audit.methods if method != REFERENCE}

    def cells(attack: Attack, client: bool) -> Iterator[str]:
        for name in names:
            if name not in attack.results:
                yield ""
                continue
            found = attack.results[name].client if client else attack.results[name].sample
            told = f"{100 * found.value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
            yield f"**{told}**" if (attack.name, client) in sure.get(name, ()) else told

    parts = [conclusion(audit)]
    for client, heading in ((False, "Single samples: AUC, %"), (True, "All together: attacker right, %")):
        rows = [_row([attack.name, *cells(attack, client)]) for attack in audit.attacks if attack.results]
        parts += [f"**{heading}** (95 % interval; bold: more than of retrained models, adjusted p of 0.05 or less)"]
        parts += ["\n".join([*heads, *rows])]
    parts += ["**Without shadows** (means over seeds)", "\n".join(_examined_rows(audit))]
    parts += [f"**{one.method}: {one.status}.** {one.finding} *{one.promise}*" for one in verdicts(audit)]
    return "\n\n".join(parts) + "\n"


def _examined_rows(audit: Audit) -> Iterator[str]:
    """A line a fact, a column a model."""
    own, twins = (
        relearnt(audit, side) for side in (lambda facts: facts.relearned, lambda facts: facts.relearned_twins)
    )
    standing = standings(audit)
    *_, (layer, probed) = probes_of(audit)
    names = [ORIGINAL, *(name for name in standing if name != ORIGINAL)]
    lines: dict[str, Callable[[str], str]] = {
        "Accuracy on what was to be forgotten, %": lambda name: f"{100 * standing[name].own.value:.1f}",
        "Accuracy on twins, %": lambda name: f"{100 * standing[name].twins.value:.1f}",
        "In another class than Retrain's, of what was to be forgotten, %": lambda name: (
            f"{100 * standing[name].disagreement_own.value:.1f}"
        ),
        "Distance of the losses' distributions to Retrain's, %": lambda name: (
            f"{100 * standing[name].distance.value:.1f}"
        ),
        "Steps to relearn what was to be forgotten": lambda name: _steps(own[name]),
        "Steps to learn the twins": lambda name: _steps(twins[name]),
        f"Probe of {layer}: membership AUC, %": lambda name: f"{100 * probed[name]['membership'].value:.1f}",
    }
    yield _row(["", *names])
    yield _row(["---", *["---:"] * len(names)])
    for line, told in lines.items():
        yield _row([line, *map(told, names)])


def _steps(found: Soon) -> str:
    return (
        "never" if found.steps is None else f"{found.steps:.1f}" + ("" if found.reached == found.tried else " or more")
    )


def _named(pair: Pair) -> str:
    """The paper's name, and ours where it is another."""
    return pair.method if pair.label in (None, pair.method) else f"{pair.method}: {pair.label}"


def _gap(result: Result | None) -> str:
    if result is None:
        return ""
    return f"{result.gap:.2f}" if not result.gap or result.spread is None else f"{result.gap:.2f}±{result.spread:.2f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"


def _spread(s: Spread | None) -> str:
    return "" if s is None else f"{s.mean:.2f}±{s.sd:.2f} ({s.distance:.2f})"


def _lines(reports: Sequence[Report]) -> Iterator[tuple[str, Line]]:
    return ((report.name, line) for report in reports for line in report.table())


def _row(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
