"""Picture a run's page for these documents, as Chromium shows it: `python docs/draw_report.py runs/fashion-client`.

At 1440 and 390 pixels, in light and dark; needs the extra "dev" and a Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fedunlearn.report.page import publish
from fedunlearn.report.report import read_report

PICTURES = Path(__file__).parent / "pictures"


def save(seen: bytes, name: str) -> None:
    """A palette is a quarter of the size, and flat colours lose nothing by it."""
    picture = Image.open(io.BytesIO(seen)).quantize(128, dither=Image.Dither.NONE)
    picture.save(PICTURES / f"{name}.png", optimize=True)


def main() -> None:
    """Write the page anew, look at it, save what is seen."""
    report = read_report(Path(sys.argv[1]))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = publish([report], Path(folder))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (1440, 390):
            for scheme in ("light", "dark"):
                tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
                tab.goto(page.as_uri())
                save(tab.screenshot(full_page=True), f"report-{width}-{scheme}")
                if (width, scheme) == (1440, "light"):
                    save(
                        tab.screenshot(full_page=True, clip={"x": 100, "y": 0, "width": 1240, "height": 940}),
                        "report-top",
                    )
                tab.close()
        browser.close()


if __name__ == "__main__":
    main()
