"""A federation of hospitals on one machine as it would be on many: keys, certificates, and Flower's processes.

``FOLDER/ca.crt`` is for everybody; ``server``, ``operator`` and each ``hospital-N`` would be on a machine of their own.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from certificates import make_certificates

from fedunlearn.deletion.signing import SigningKey

__all__ = ["APP", "SUPERLINK", "Deployment", "DeploymentError", "prepare"]

APP = Path(__file__).resolve().parent
"""What ``flwr run`` is given."""
SUPERLINK = "superlink"
"""The server's process; the others have the hospitals' names."""

_CONNECTION = "hospitals"  # its name in Flower's configuration
_MARK = "HOSPITAL_DEPLOYMENT"  # in the environment of every process, so that none is forgotten
_PROGRAMS = Path(sys.executable).parent
_ENVIRONMENT = {
    "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",  # Flower's programs start one another by name
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "NO_COLOR": "1",
}
_LAST_PORT = 65_535
_PATIENCE = 120.0  # seconds for a process to be ready
_GRACE = 15.0  # seconds for a process to end by itself
_KNOWN_ALREADY = "[code: 23]"  # Flower's, of a key that is registered


class DeploymentError(RuntimeError):
    """The sentence says what to do."""


def prepare(folder: Path, hospitals: int, port: int) -> None:
    """Make keys, certificates and lists; nothing that is there is overwritten.

    Args:
        folder: where; it must not be there.
        hospitals: how many.
        port: of the SuperLink; each hospital takes one more of those that follow.
    """
    if hospitals < 1:
        raise DeploymentError("a federation needs a hospital: give --hospitals 1 or more")
    if not 0 < port < port + hospitals <= _LAST_PORT:
        raise DeploymentError(f"ports end at {_LAST_PORT}, and each hospital takes one after --port: give another")
    folder = folder.absolute()
    if folder.is_relative_to(APP):
        raise DeploymentError(f"choose a folder outside {APP}: Flower sends what lies in there to every hospital")
    if folder.exists():
        raise DeploymentError(f"{folder} is there already: keys are never overwritten, choose another folder")
    names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
    folder.mkdir(mode=0o700, parents=True)
    for name in ("server", "operator", "logs", *names):
        (folder / name).mkdir(mode=0o700)
    make_certificates(folder / "server", "localhost", "127.0.0.1")
    (folder / "server" / "ca.crt").rename(folder / "ca.crt")
    SigningKey.make(folder / "server" / "key")
    keys = {name: SigningKey.make(folder / name / "key", node=True).public for name in names}
    entries = "".join(f'{name} = "{key.text}"\n' for name, key in keys.items())
    (folder / "server" / "clients.toml").write_text(f"[clients]\n{entries}")
    (folder / "operator" / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\nroot-certificates = "{folder / "ca.crt"}"\n'
    )


class Deployment:
    """The processes of a folder that `prepare` has made.

    Each stands in a session of its own and outlives whoever started it: `stop` ends them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        try:
            with open(self.folder / "operator" / "config.toml", "rb") as file:
                self.address: str = tomllib.load(file)["superlink"][_CONNECTION]["address"]
        except FileNotFoundError:
            raise DeploymentError(f"{folder} is no prepared folder: give one that prepare.py has made") from None
        self.hospitals = sorted(path.name for path in self.folder.glob("hospital-*"))
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    # The server

    def start_superlink(self) -> None:
        """The SuperLink, with TLS, for nodes whose keys it knows."""
        server, (host, port) = self.folder / "server", self.address.split(":")
        self._start(
            SUPERLINK,
            "flower-superlink",
            *("--ssl-ca-certfile", self.folder / "ca.crt"),
            *("--ssl-certfile", server / "server.pem"),
            *("--ssl-keyfile", server / "server.key"),
            "--enable-supernode-auth",
            *("--host", host, "--port", port),
            *("--database", server / "superlink.sqlite"),  # else all nodes would be unknown to it after a restart
            "--disable-runtime-dependency-installation",
            HOSPITAL_SERVER=str(server),
            FLWR_HOME=str(server / "flower"),
        )
        self._wait(SUPERLINK, self._healthy)

    def admit(self, hospital: str) -> None:
        """Tell the SuperLink a hospital's key."""
        key = self.folder / hospital / "key.pub"
        try:
            self.flwr("supernode", "register", key, _CONNECTION, "--name", hospital)
        except DeploymentError as error:
            if _KNOWN_ALREADY not in str(error):
                raise

    def flwr(self, *arguments: object) -> dict[str, Any]:
        """Flower's command line, as the operator; what it answers."""
        told = self._flwr(*arguments, "--format", "json")
        try:
            answer: dict[str, Any] = json.loads(told.stdout)
        except ValueError:
            answer = {}
        if not answer.get("success"):  # Flower's exit code is 0 all the same
            raise DeploymentError(f"flwr {arguments[0]}: {answer.get('error-message', told.stdout + told.stderr)}")
        return answer

    def run(self, **settings: float) -> str:
        """`flwr run`; the run's id."""
        config = " ".join(f"{name}={value}" for name, value in settings.items())
        return str(self.flwr("run", APP, _CONNECTION, "--run-config", config)["run-id"])

    def status(self, run: str) -> str:
        """Of a run: "running", "finished:completed", "finished:failed" and others."""
        return str(self.flwr("list", _CONNECTION, "--run-id", run)["runs"][0]["status"])

    def run_log(self, run: str) -> str:
        """What the ServerApp has said."""
        return self._flwr("log", run, _CONNECTION, "--show").stdout

    # The hospitals

    def start_hospital(self, name: str, key: Path | None = None) -> None:
        """A SuperNode; `wait_for` says when it is ready.

        Args:
            name: of the hospital.
            key: file of its private key; None: its own.
        """
        at, (host, port) = self.folder / name, self.address.split(":")
        number = int(name.removeprefix("hospital-"))
        self._start(
            name,
            "flower-supernode",
            *("--root-certificates", self.folder / "ca.crt"),
            *("--superlink", self.address),
            *("--auth-supernode-private-key", key or at / "key"),
            *("--host", host, "--port", int(port) + number),
            *("--node-config", f'partition-id={number - 1} folder="{at}"'),
            FLWR_HOME=str(at / "flower"),
        )

    def wait_for(self, hospital: str) -> None:
        """Wait until a SuperNode is ready."""
        self._wait(hospital, lambda: "SuperNode ID: " in self.log(hospital))

    # All of them

    def start(self, *names: str) -> None:
        """Start those that do not run, and wait until all are ready.

        Args:
            names: which; none: all.

        Raises:
            DeploymentError: there is none of a name, or one does not become ready.
        """
        self._require(names)
        known, running = (SUPERLINK, *self.hospitals), {name for _, name in self.processes()}
        wanted = [name for name in names or known if name not in running]
        if SUPERLINK in wanted:
            self.start_superlink()
            for name in self.hospitals:
                self.admit(name)
        hospitals = [name for name in wanted if name != SUPERLINK]
        for name in hospitals:
            self.start_hospital(name)
        for name in hospitals:
            self.wait_for(name)

    def stop(self, *names: str) -> None:
        """End processes, also those that they have started; the SuperLink last, so that nodes can sign off.

        Args:
            names: which; none: all.

        Raises:
            DeploymentError: there is none of a name.
        """
        self._require(names)
        running = {name for _, name in self.processes() if not names or name in names}
        for some in (running - {SUPERLINK}, running & {SUPERLINK}):
            self._signal(some, signal.SIGTERM, leaders=True)
            _until(lambda some=some: not self._alive(some, leaders=True), _GRACE)
            self._signal(some, signal.SIGKILL)
            _until(lambda some=some: not self._alive(some), _GRACE)
        for process in self._started.values():
            process.poll()

    def processes(self) -> Iterator[tuple[int, str]]:
        """All that run, with the name of the one that started each: ServerApps and ClientApps too."""
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is another user's
                environment = dict(_split(word) for word in (entry / "environ").read_bytes().split(b"\0"))
                if environment.get(_MARK.encode()) == os.fsencode(self.folder):
                    yield int(entry.name), os.fsdecode(environment[b"HOSPITAL_PROCESS"])

    def pids(self, program: str, name: str) -> list[int]:
        """Of one of Flower's programs, as ``flwr-serverapp``, among the processes of one name."""
        return [pid for pid, of in self.processes() if of == name and program in _command(pid)]

    def log(self, name: str) -> str:
        """What a process has said since it was last started."""
        return self._log(name).read_text(errors="replace")

    def _flwr(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(_PROGRAMS / "flwr"), *map(str, arguments)],
            env={**os.environ, **_ENVIRONMENT, "FLWR_HOME": str(self.folder / "operator")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )

    def _require(self, names: tuple[str, ...]) -> None:
        there = (SUPERLINK, *self.hospitals)
        for name in names:
            if name not in there:
                raise DeploymentError(f"there is no {name} in {self.folder}: name some of {', '.join(there)}, or none")

    def _start(self, name: str, program: str, *arguments: object, **environment: str) -> None:
        marks = {_MARK: str(self.folder), "HOSPITAL_PROCESS": name}
        with open(self._log(name), "wb") as log:
            self._started[name] = subprocess.Popen(
                [str(_PROGRAMS / program), *map(str, arguments)],
                env={**os.environ, **_ENVIRONMENT, **marks, **environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        process, end = self._started[name], time.monotonic() + _PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                reason = "does not become ready" if process.poll() is None else "has ended"
                hint = "; a key that is not registered, or whose node was killed less than a minute ago, is refused"
                told = self.log(name)
                raise DeploymentError(f"{name} {reason}{hint if '2004' in told else ''}. Its log:\n{told[-2000:]}")
            time.sleep(0.1)

    def _healthy(self) -> bool:
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        with suppress(OSError), urlopen(f"https://{self.address}/health", context=context, timeout=5):
            return True
        return False

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _alive(self, names: set[str], *, leaders: bool = False) -> list[int]:
        for process in self._started.values():
            process.poll()  # our own children stay there until we have looked
        programs = ("flower-superlink", "flower-supernode")
        alive = [pid for pid, name in self.processes() if name in names]
        return [pid for pid in alive if not leaders or any(program in _command(pid) for program in programs)]

    def _signal(self, names: set[str], number: int, *, leaders: bool = False) -> None:
        for pid in self._alive(names, leaders=leaders):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.1)


def _command(pid: int) -> list[str]:
    """Names of the files that a process runs."""
    with suppress(OSError):
        return [Path(os.fsdecode(word)).name for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]]
    return []


def _split(word: bytes) -> tuple[bytes, bytes]:
    name, _, value = word.partition(b"=")
    return name, value
