"""Draw what attacks found, of the audits in `docs/audited`: `python docs/draw_audit.py`."""

from pathlib import Path

from fedunlearn.auditing import Audit
from fedunlearn.report import audit_figures as figures

DOCS = Path(__file__).parent

for file in sorted((DOCS / "audited").glob("*.json")):
    audit = Audit.read(file)
    samples, _ = figures.intervals(audit)
    for picture in (samples, figures.receiver(audit, audit.attack("U-LiRA"))):
        path = DOCS / "pictures" / f"{file.stem}-{picture.name}.png"
        picture.figure.savefig(path, dpi=170, facecolor="white")
        print(path)
