"""The operator's page of a register: written once, or served on this machine as the register grows."""

from __future__ import annotations

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from fedunlearn.commands.options import writing

__all__ = ["page"]

_FILE = "register.html"
_HOST = "127.0.0.1"
_RELOAD = 10  # seconds
_PATIENCE = 10  # seconds for a request's first lines: browsers open connections that they do not use
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Refresh": str(_RELOAD),
}


def page(
    folder: Annotated[Path, typer.Argument(metavar="REGISTER", help="A register's folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Of the page; else register.html in it.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Write no file: show the page in a browser on this machine, always new.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="With --serve: where; else one that is free.", min=0, max=65535)
    ] = None,
) -> None:
    """Make one page of a register: requests and their states, quality over time, receipts, faults.

    It needs neither key nor network, and may be made while the server runs.
    """
    made = _made(folder)  # also before serving: what is wrong with a register is said here
    if serve:
        if output is not None:
            raise ValueError("--serve writes no file: leave --output out")
        _serve(folder, port or 0)
        return
    if port is not None:
        raise ValueError("--port is where a page is served: give --serve too, or leave it out")
    from fedunlearn.report.rendering import write

    path = output or folder / _FILE
    with writing(path):
        write(path, made)
    print(f"page: {path}")


def _made(folder: Path) -> bytes:
    from fedunlearn.deletion.register import Register
    from fedunlearn.report.register import register_page

    register = Register.read(folder)
    return register_page(register.standing(), register.head).encode()


def _serve(folder: Path, port: int) -> None:
    """Until Ctrl-C."""
    with _Server(folder, port) as server:
        print(f"page: {server.address} (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class _Server(ThreadingHTTPServer):
    """Shows a register's page to browsers on this machine, one at a time: matplotlib's settings are a process's."""

    def __init__(self, folder: Path, port: int) -> None:
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"port {port} cannot be served on ({reason}): choose another --port") from None
        self.address = f"http://{_HOST}:{self.server_port}/"
        # A page elsewhere can have its own name lead to this machine, and would then read what this one shows.
        self.names = {f"{name}:{self.server_port}" for name in (_HOST, "localhost")}
        self._folder, self._one = folder, threading.Lock()

    def page(self) -> bytes:
        """The register as it is now."""
        with self._one:
            return _made(self._folder)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET / alone."""

    server: _Server
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """The page, or why there is none at the moment."""
        status, kind, content = self._found()
        headers = _HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        with suppress(ConnectionError):  # a reader who has left misses nothing
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: one reader asks every ten seconds."""

    def _found(self) -> tuple[int, str, bytes]:
        if self.headers.get("Host") not in self.server.names:
            return 421, "text/plain", b"This page is served under its own address alone.\n"
        if self.path != "/":
            return 404, "text/plain", b"There is nothing but /.\n"
        try:
            return 200, "text/html", self.server.page()
        except (ValueError, OSError) as error:  # the next reload may find it mended
            return 503, "text/plain", f"{error}\n".encode()
