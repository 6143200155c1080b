"""What runs at each client."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flwr.app import Context

from fedunlearn.flower.client import client_app


def network() -> Any:
    from overhead.work import Cnn

    return Cnn()


def data(context: Context) -> Any:
    from overhead.work import images

    return images(int(context.node_config["partition-id"]))


def folder(context: Context) -> Path:
    return Path(os.environ["OVERHEAD_FOLDER"]) / f"hospital-{int(context.node_config['partition-id']) + 1}"


app = client_app(network, data, outbox=lambda at: folder(at) / "outbox", key=lambda at: folder(at) / "key")
