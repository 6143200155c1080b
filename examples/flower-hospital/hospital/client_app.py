"""What runs at each hospital. torch is imported where it is needed: to answer a question nobody waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context

from fedunlearn.flower import client_app


def network() -> Any:
    """The model."""
    from hospital.model import Network

    return Network()


def images(context: Context) -> Any:
    """The hospital's own data."""
    from hospital.data import share

    return share(int(context.node_config["partition-id"]))


def folder(context: Context) -> Path:
    """The hospital's own folder."""
    return Path(str(context.node_config["folder"]))


app = client_app(network, images, outbox=lambda at: folder(at) / "outbox", key=lambda at: folder(at) / "key")
