"""What a process that is killed leaves behind."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, Self


class Snapshots:
    """Copies of a folder as a process that is killed would leave it: before each operation on a file in it.

    They are taken within a ``with`` block, in the main thread, and stand in ``target`` as "0", "1", ...
    """

    def __init__(self, watched: Path, target: Path) -> None:
        self.watched, self.target, self.count, self._on = watched, target, 0, False
        sys.addaudithook(self._hook)  # can never be removed: hence the switch

    def __enter__(self) -> Self:
        self._on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree") or (
            event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        )
        if not (self._on and writes and threading.current_thread() is threading.main_thread()):
            return
        if str(self.watched) not in str(arguments[0]):
            return
        self._on = False
        shutil.copytree(self.watched, self.target / str(self.count))
        self.count += 1
        self._on = True
