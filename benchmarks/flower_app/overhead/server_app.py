"""What runs at the server."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedunlearn.atomic import write_json
from overhead.served import Served, measured

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do what ``times.json`` says, and write what it took into ``found.json``."""
    folder = Path(os.environ["OVERHEAD_FOLDER"])
    begun = time.time()
    served = Served(grid, folder)
    try:
        found = measured(served, json.loads((folder / "times.json").read_text()))
    finally:
        served.close()
    write_json(folder / "found.json", {"begun": begun, **found})
