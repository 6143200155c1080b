"""Draw README's picture from a run of the quickstart, scored after every round: `python docs/draw_quickstart.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
import matplotlib.pyplot as plt

from fedunlearn.evaluation.rows import Row
from fedunlearn.experimentfile import load
from fedunlearn.runner import run

PICTURE = Path(__file__).parent / "pictures" / "quickstart.png"
ROUNDS = 10
COLOURS = {"FT": "#c2571a", "NoT": "#1b6ca8", "Retrain": "#555555"}  # apart for colour-blind eyes and in grey
NAMES = {"FT": "fine-tuning", "NoT": "NoT: one layer negated", "Retrain": "retrained from scratch"}


def curve(rows: list[Row], method: str, measure: str) -> tuple[list[int], list[float], list[float]]:
    """Rounds, mean and standard deviation over seeds."""
    by_round: dict[int, list[float]] = {}
    for row in rows:
        if row.scores is not None and row.method == method and row.rounds <= ROUNDS:
            by_round.setdefault(row.rounds, []).append(getattr(row.scores, measure))
    rounds = sorted(by_round)
    return rounds, [fmean(by_round[r]) for r in rounds], [stdev(by_round[r]) for r in rounds]


def main() -> None:
    """Run, draw, save."""
    plan = load("quickstart", [f"recovery.rounds={ROUNDS}", "recovery.evaluate_every=1"])
    with tempfile.TemporaryDirectory() as folder:
        rows = list(run(plan, Path(folder)))

    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.3), sharey=True, layout="constrained")
    titles = {"forget": "the leaving client's data", "test": "test data"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for method, colour in COLOURS.items():
            rounds, means, spreads = curve(rows, method, measure)
            low = [max(m - s, 0) for m, s in zip(means, spreads, strict=True)]
            high = [min(m + s, 100) for m, s in zip(means, spreads, strict=True)]
            style = {"Retrain": "--"}.get(method, "-")
            axis.plot(rounds, means, style, color=colour, linewidth=2, label=NAMES[method])
            axis.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set(title=f"Accuracy on {title}", xlabel="rounds after the request", xlim=(0, ROUNDS), ylim=(0, 101))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("%, mean ± sd of 3 seeds")
    axes[1].legend(frameon=False, loc="lower right")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=160)


if __name__ == "__main__":
    main()
