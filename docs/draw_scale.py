"""Draw what grows with the number of clients: `python docs/draw_scale.py`, of what `benchmarks/scale.py` wrote."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedunlearn.report.drawing import LIGHT, axes_for, put_legend

DOCS = Path(__file__).parent
MEGABYTE = 2**20


def drawn(
    title: str, y: str, points: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]
) -> Figure:
    """Values by clients, both on log axes, a line for each number of participants."""
    lines: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for point in points:
        lines[point["participants"]].append((point["clients"], value(point)))
    legend = [f"{participants:,} take part" for participants in lines]
    with axes_for(title, "clients", y, legend=legend) as (figure, axes):
        for number, (line, label) in enumerate(zip(lines.values(), legend, strict=True), 1):
            axes.plot(*zip(*line, strict=True), color=LIGHT[f"c{number}"], marker="o", label=label)
        values = [height for line in lines.values() for _, height in line]
        axes.set(xscale="log", yscale="log", ylim=(min(values) / 10, max(values) * 10))
        put_legend(figure, axes)
    return figure


def main() -> None:
    """Draw both pictures."""
    points = json.loads((DOCS / "measured" / "scale.json").read_bytes())["clients"]
    alone, two = ([point for point in points if point["workers"] == workers] for workers in (1, 2))
    figures = {
        "scale-seconds": drawn(
            "Seconds per participating client",
            "seconds",
            alone,
            lambda point: statistics.median(point["seconds"]) / point["participants"],
        ),
        "scale-memory": drawn("Peak memory, two workers", "MB", two, lambda point: point["peak"] / MEGABYTE),
    }
    for name, figure in figures.items():
        path = DOCS / "pictures" / f"{name}.png"
        figure.savefig(path, dpi=200, facecolor="white")
        print(path)


if __name__ == "__main__":
    main()
