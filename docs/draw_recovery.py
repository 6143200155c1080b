"""Draw the gap to Retrain by what was sent, of `docs/measured/recovery.json`.

Run: python docs/draw_recovery.py (of what `python benchmarks/recovery.py --output docs/measured/recovery.json` wrote)
"""

import json
from pathlib import Path

import matplotlib as mpl

from fedunlearn.report.drawing import LIGHT, STYLE

DOCS = Path(__file__).parent
LINES = {  # kind of run, method -> colour, line style, legend
    ("", "Retrain"): ("faint", ":", "training anew"),
    ("", "FT"): ("c6", "-", "FT"),
    ("", "FCU"): ("c5", "-", "FCU"),
    ("-local", "FCU"): ("c5", "--", "FCU, two local epochs"),
    ("", "NoT"): ("c1", "-", "NoT"),
    ("-local", "NoT"): ("c1", "--", "NoT, two local epochs"),
    ("-more", "NoT"): ("c1", ":", "NoT, four local epochs"),
    ("", "NotNot"): ("c2", "-", "NotNot"),
    ("-local", "Reinitialise"): ("c3", "--", "training anew, two local epochs"),
}
TITLES = {"cnn": "a small CNN", "resnet": "a small ResNet", "vit": "a small ViT", "skewed": "CNN, clients differ"}

found = json.loads((DOCS / "measured" / "recovery.json").read_text(encoding="utf-8"))
with mpl.rc_context(STYLE):
    figure = mpl.figure.Figure(figsize=(10.5, 3.2), layout="constrained")
    axes = figure.subplots(1, len(found["frontier"]), sharey=True)
    for plot, (network, of) in zip(axes, found["frontier"].items(), strict=True):
        whole = of[""]["Retrain"][-1]["bytes"]
        for (kind, method), (colour, style, label) in LINES.items():
            points = [p for p in of.get(kind, {}).get(method, []) if p["rounds"]]
            if points:
                x, y = zip(*((p["bytes"] / whole, p["gap_per_seed"]) for p in points), strict=True)
                plot.plot(x, y, style, color=LIGHT[colour], marker="o", label=label)
        plot.set(title=TITLES[network], xlabel="bytes, of Retrain's", yscale="log")
        plot.xaxis.set_major_formatter("{x:.0%}")
    axes[0].set_ylabel("average gap to Retrain, points")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(DOCS / "pictures" / "recovery.png", dpi=170, facecolor="white")
