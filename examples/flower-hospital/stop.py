"""Stop what start.py has started."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from deployment import Deployment, DeploymentError


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as prepare.py has made it")
    parser.add_argument("who", nargs="*", help="superlink, hospital-1 and so on; all, if nobody is named")
    asked = parser.parse_args()
    try:
        Deployment(asked.folder).stop(*asked.who)
    except DeploymentError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
