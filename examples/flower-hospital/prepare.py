"""Make the keys and certificates of a federation of hospitals on this machine."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from deployment import DeploymentError, prepare


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where; it must not be there")
    parser.add_argument("--hospitals", type=int, default=5)
    parser.add_argument("--port", type=int, default=9400, help="of the SuperLink; hospitals take those that follow")
    asked = parser.parse_args()
    try:
        prepare(asked.folder, asked.hospitals, asked.port)
    except DeploymentError as error:
        sys.exit(str(error))
    print(f"{asked.folder}: keys and certificates of a server and {asked.hospitals} hospitals")


if __name__ == "__main__":
    main()
