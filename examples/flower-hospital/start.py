"""Start the SuperLink and the hospitals' SuperNodes, and leave them running."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from deployment import APP, Deployment, DeploymentError


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="as prepare.py has made it")
    parser.add_argument("who", nargs="*", help="superlink, hospital-1 and so on; all, if nobody is named")
    asked = parser.parse_args()
    try:
        deployment = Deployment(asked.folder)
        try:
            deployment.start(*asked.who)
        except BaseException:
            deployment.stop(*asked.who)
            raise
    except DeploymentError as error:
        sys.exit(str(error))
    print(f"ready: SuperLink at {deployment.address}, {len(deployment.hospitals)} hospitals; logs: {asked.folder}/logs")
    print(f"train: export FLWR_HOME={deployment.folder}/operator FLWR_TELEMETRY_ENABLED=0; flwr run {APP} --stream")
    print(f"stop:  python {APP}/stop.py {asked.folder}")


if __name__ == "__main__":
    main()
