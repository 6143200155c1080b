"""Draw the gap to Retrain by what was sent, of runs, as in the paper's Figures 4 and 5; a backdoor's success by rounds.

Run: python docs/draw_gap.py RUN... (of `fedunlearn run perturbations`, `layers`, `layers-vit`, `fashion-client-all`, or
of `fedunlearn reproduce table-7`: runs/reproduce/cpu/table-7)
"""

import sys
from pathlib import Path

from fedunlearn.report.figures import measures, prices, series_of
from fedunlearn.report.report import read_report

for run in map(Path, sys.argv[1:]):
    report = read_report(run)
    series = series_of([report])
    for picture in (*prices(series, [report]), *measures(series, [report])):
        kind = {"gap-bytes": "gap", "measure-attack": "attack"}.get(picture.name)
        if kind is not None:
            path = Path(__file__).parent / "pictures" / f"{kind}-{run.resolve().name}.png"
            picture.figure.savefig(path, dpi=200, facecolor="white")
            print(path)
