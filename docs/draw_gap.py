"""Draw the gap to Retrain by what was sent, of runs: as in the paper's Figures 4 and 5.

Run: python docs/draw_gap.py RUN... (of `fedunlearn run perturbations`, `layers`, `layers-vit`, `fashion-client-all`)
"""

import sys
from pathlib import Path

from fedunlearn.report.figures import prices, series_of
from fedunlearn.report.report import read_report

for run in map(Path, sys.argv[1:]):
    report = read_report(run)
    picture = next(one for one in prices(series_of([report]), [report]) if one.name == "gap-bytes")
    path = Path(__file__).parent / "pictures" / f"gap-{run.resolve().name}.png"
    picture.figure.savefig(path, dpi=200, facecolor="white")
    print(path)
