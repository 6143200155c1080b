"""Write what the layer posets of torchvision's classification networks are into docs/posets.md.

Run: python docs/draw_posets.py [NETWORK...] (all of them take minutes; nothing is computed, for they lie on the meta
device)
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from torch import nn

from fedunlearn.layers import FIRST
from fedunlearn.theory.poset import LayerPoset

FILE = Path(__file__).parent / "posets.md"
HEAD = (
    "| network | layers | Lambda | length | paths | first layer | Cauchy by order | by paths | seconds |",
    "|---|---:|---:|---:|---:|---|---|---|---:|",
)
SIZES = {"inception_v3": 299}


@contextmanager
def without_memory() -> Iterator[None]:
    """Parameters are made on the meta device; the rest is not, since RegNets compute their widths with tensors."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta")))

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def row(name: str) -> tuple[bool, str]:
    """Whether a network has a poset, and its line: of the table, or of those that have none."""
    with without_memory():
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, **more).to("meta")
    size, start = SIZES.get(name, 224), time.perf_counter()
    try:
        poset = LayerPoset.of(model, torch.zeros(1, 3, size, size))
    except Exception as error:  # what cannot be drawn is told, whatever the reason
        return False, f"- {name}: {str(error).splitlines()[0]}"
    first = poset.verdict(FIRST)
    said = ["yes" if one else "no" for one in (first.cauchy, first.cauchy_by_paths)]
    paths = f"{poset.paths:,}" if poset.paths < 10**9 else f"{poset.paths:.2e}"
    chains = f"{poset.chains:,}" if poset.chains < 10**9 else f"{poset.chains:.2e}"
    cells = [name, len(poset.layers), chains, poset.length, paths, f"`{first.layers[0]}`", *said]
    return True, f"| {' | '.join(map(str, cells))} | {time.perf_counter() - start:.1f} |"


def table(names: list[str]) -> str:
    """The table of these networks, and below it those that have none, with the reason."""
    rows = []
    for name in names:
        rows.append(row(name))
        print(rows[-1][1], flush=True)
    lines = [*HEAD, *(line for has, line in rows if has)]
    without = [line for has, line in rows if not has]
    return "\n".join([*lines, *(["", "Without a poset:", "", *without] if without else [])])


def main(names: list[str]) -> None:
    """Write the table between the markers of the file."""
    start = time.perf_counter()
    written = table(names or torchvision.models.list_models(module=torchvision.models))
    text, count = re.subn(
        r"(<!-- posets -->\n).*?(<!-- /posets -->)",
        lambda found: found[1] + written + "\n" + found[2],
        FILE.read_text(),
        flags=re.DOTALL,
    )
    assert count == 1, f"{FILE} has lost its markers"
    FILE.write_text(text)
    print(f"{FILE}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
