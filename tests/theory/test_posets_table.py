"""docs/posets.md says what docs/draw_posets.py finds."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ROWS = (DOCS / "posets.md").read_text().splitlines()


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_a_network_s_row_is_what_the_script_writes(name: str) -> None:
    table = runpy.run_path(str(DOCS / "draw_posets.py"))["table"]
    (said,) = (row for row in table([name]).splitlines() if row.startswith(f"| {name} "))
    (written,) = (row for row in ROWS if row.startswith(f"| {name} "))
    without_time = re.compile(r"\| [\d.]+ \|$")
    assert without_time.sub("", said) == without_time.sub("", written)


def test_the_table_has_the_specification_s_rows() -> None:
    cells = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1:5] for row in ROWS if row.startswith("| ")}
    assert cells["resnet18"] == ["21", "8", "18", "256"]
    assert cells["efficientnet_b0"] == ["82", "1", "82", "2,519,424"]
    assert cells["vit_b_16"] == ["50", "1", "50", f"{2**36:.2e}"]
