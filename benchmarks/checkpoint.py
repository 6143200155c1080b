"""What negating one layer of a large checkpoint costs: `python benchmarks/checkpoint.py`.

A file with one tensor of random numbers (50 MB) among zeros, so many that it has ten gigabytes, made sparse. One after
the other, in processes of their own that report what the system says of them: `floor` reads those 50 MB, writes them
back and waits for the disk; `in place` is `negate_in_place`; `new file` is `negate_file`; `shutil` copies the whole
file; and `load, negate, save` is what one would do without this package, with safetensors and torch. The last three
write the whole file, so they also run on a smaller one, which the page cache holds. Nothing is dropped from the page
cache: the tensor's bytes are warm for everybody, having been read before each way is measured. And a hole is cheaper to
read than data on the disk: what is in favour of those that read the whole file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LAYER = "layers.7.weight"
MEGABYTES = 50
WHOLE = ("new file", "load, negate, save", "shutil")
"""The ways that write the whole file."""


def floor(path: Path, output: Path) -> None:
    """Read the tensor, write it back, wait for the disk."""
    start, stop = place(path)
    descriptor = os.open(path, os.O_RDWR)
    content = bytearray(stop - start)
    os.preadv(descriptor, [content], start)
    os.pwrite(descriptor, content, start)
    os.fsync(descriptor)
    os.close(descriptor)


def in_place(path: Path, output: Path) -> None:
    from fedunlearn.checkpoint import negate_in_place

    negate_in_place(path, LAYER)


def new_file(path: Path, output: Path) -> None:
    from fedunlearn.checkpoint import negate_file

    negate_file(path, LAYER, output)


def load_negate_save(path: Path, output: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[LAYER] = -tensors[LAYER]
    save_file(tensors, output)
    synced(output)


def by_shutil(path: Path, output: Path) -> None:
    shutil.copyfile(path, output)
    synced(output)


def synced(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


WAYS: Mapping[str, Callable[[Path, Path], None]] = {
    "floor": floor,
    "in place": in_place,
    "new file": new_file,
    "load, negate, save": load_negate_save,
    "shutil": by_shutil,
}


def make(path: Path, gigabytes: float) -> None:
    """A sparse file: one tensor has content, some others are holes, and the header leaves no room."""
    layer = MEGABYTES * 10**6
    others = int(gigabytes * 10**9 - layer) // 8 // 4 * 4
    sizes = {f"layers.{number}.weight": layer if number == 7 else others for number in range(9)}
    entries, start = {"__metadata__": {"format": "pt"}}, 0
    for name, size in sizes.items():
        entries[name] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
        file.seek(8 + len(text) + entries[LAYER]["data_offsets"][0])
        file.write(os.urandom(layer))
        os.fsync(file.fileno())


def place(path: Path) -> tuple[int, int]:
    """The tensor's bytes in the file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        first, last = json.loads(file.read(length))[LAYER]["data_offsets"]
    return 8 + length + first, 8 + length + last


def alone(way: str, path: Path, output: Path) -> None:
    """Do it in this process, and print what it took; without the time in which libraries are imported."""
    if way in ("in place", "new file"):
        import fedunlearn.checkpoint  # noqa: F401
    if way == "load, negate, save":
        import safetensors.torch  # noqa: F401
    start, stop = place(path)
    with open(path, "rb") as file:
        file.seek(start)
        while file.tell() < stop and file.read(min(1 << 20, stop - file.tell())):
            pass  # so that it is in the page cache, whoever was there before
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is this way's
    before, resting, began = status("io", "write_bytes"), status("status", "VmRSS"), time.perf_counter()
    WAYS[way](path, output)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began,
                "written": status("io", "write_bytes") - before,
                "peak": 1024 * (status("status", "VmHWM") - resting),
            }
        )
    )


def status(file: str, key: str) -> int:
    """A number that the system keeps of this process."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(path: Path, ways: list[str], times: int) -> dict[str, dict[str, list[float]]]:
    """Each way in turn, so many times; what the whole-file ways wrote is removed in between."""
    found: dict[str, dict[str, list[float]]] = {way: {"seconds": [], "written": [], "peak": []} for way in ways}
    output = path.with_name("output.safetensors")
    for _ in range(times):
        for way in ways:
            command = [sys.executable, __file__, "--alone", way, str(path)]
            os.sync()  # nobody waits for what others wrote
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for key, value in told.items():
                found[way][key].append(value)
            output.unlink(missing_ok=True)
    return found


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """What stands in docs/performance.md."""
    from measuring import machine, relative, spread, table  # not above: it imports torch, for which each way would wait

    head = [f"{MEGABYTES} MB of", "way", "seconds", "of the floor", "written", "memory"]
    rows = [
        [
            f"{file['gigabytes']:g} GB",
            way,
            spread(took["seconds"]),
            f"{relative(took['seconds'], file['ways']['floor']['seconds']):.2f}",
            f"{max(took['written']) / 1e6:,.0f} MB",
            f"{max(took['peak']) / 1e6:,.0f} MB",
        ]
        for file in found["files"]
        for way, took in file["ways"].items()
    ]
    return {"checkpoint": f"{machine(found)}\n\n{table(head, rows)}"}


def require_space(folder: Path, gigabytes: float, whole: float) -> None:
    """That the disk has room for the files, and for copies of the one that is copied."""
    needed = (whole * 2 + 1) * 10**9  # the large one is sparse, unless it is copied too
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{folder} has {free / 1e9:.0f} GB free, and {needed / 1e9:.0f} are needed: name another --in")
    print(f"{free / 1e9:.0f} GB free in {folder}; at most {needed / 1e9:.0f} are used, of a file of {gigabytes:g} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10, help="of the file (10)")
    parser.add_argument("--whole", type=float, default=2, help="gigabytes of the file that is also copied (2)")
    parser.add_argument("--large-too", action="store_true", help="copy the large file also: takes minutes")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--in", dest="folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--output", type=Path, help="write raw results here, as JSON")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        way, path = options.alone
        alone(way, Path(path), Path(path).with_name("output.safetensors"))
        return
    from measuring import record

    require_space(options.folder, options.gigabytes, options.gigabytes if options.large_too else options.whole)
    files = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for gigabytes, ways in (
            (options.gigabytes, [way for way in WAYS if options.large_too or way not in WHOLE]),
            (options.whole, list(WAYS)),
        ):
            path = Path(folder) / "checkpoint.safetensors"
            make(path, gigabytes)
            files.append({"gigabytes": gigabytes, "ways": measure(path, ways, options.times)})
            for leftover in Path(folder).iterdir():
                leftover.unlink()
    print(tables(record(options.output, {"megabytes": MEGABYTES, "files": files}))["checkpoint"])


if __name__ == "__main__":
    main()
