"""A haproxy with the project's own haproxy.cfg, and a receiver that only takes note.

with Proxy(dst) as one, Proxy(dst) as two, Balancer(work, [one.port, two.port]) as balancer:
    run("sync", src, balancer.https, env=balancer.trust)
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.harness import PATIENCE, REPOSITORY, wait_for

CONFIGURATION = REPOSITORY / "haproxy" / "haproxy.cfg"
MAKE_CERTIFICATE = REPOSITORY / "haproxy" / "make-test-certificate"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Balancer:
    """A running haproxy: its two addresses, and what a sender needs to trust it."""

    def __init__(
        self,
        work: Path,
        ports: Sequence[int],
        *,
        config: Path = CONFIGURATION,
        env: dict[str, str] | None = None,
        tls_check: bool = True,
    ) -> None:
        """``tls_check``: whether it is asked over TLS how it is."""
        self._tls_check = tls_check
        folder = work / "haproxy"
        subprocess.run([MAKE_CERTIFICATE, folder], check=True, timeout=PATIENCE)
        self.ca = folder / "ca.pem"
        self.trust = {"TARLIKE_CA_BUNDLE": str(self.ca)}
        self._log = (folder / "log").open("w+b")
        listeners = [_listener(), _listener()]
        self.https_port, self.http_port = (one.getsockname()[1] for one in listeners)
        names = environment(folder / "certificate.pem", ports) | (env or {})
        for name, one in zip(("BIND_HTTPS", "BIND_HTTP"), listeners, strict=True):
            names[name] = f"fd@{one.fileno()}"
        self.process = subprocess.Popen(
            ["haproxy", "-db", "-f", config],
            env=names,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            pass_fds=[one.fileno() for one in listeners],
        )
        for one in listeners:
            one.close()
        self.https = f"https://127.0.0.1:{self.https_port}/tar"
        self.http = f"http://127.0.0.1:{self.http_port}/tar"

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        tls: bool = True,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = self._connection(tls=tls)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, *, tls: bool = True) -> Answer:
        """GET as senders do it: again, when the connection ends without an answer.

        haproxy ends it so, whatever retry-on says, for a request whose connection to a receiver
        is still being made when that one is taken out (on-marked-down shutdown-sessions).
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self.request("GET", path, tls=tls)
            except ConnectionError:
                assert self.process.poll() is None, self.log()
                if time.monotonic() > end:
                    raise

    def _connection(self, *, tls: bool) -> http.client.HTTPConnection:
        if tls:
            context = ssl.create_default_context(cafile=str(self.ca))
            return http.client.HTTPSConnection(
                "127.0.0.1", self.https_port, context=context, timeout=PATIENCE
            )
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE)

    def log(self) -> str:
        """What haproxy has said so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "backslashreplace")

    def wait_until(self, status: int, *, seconds: float = PATIENCE) -> None:
        """Until /healthz answers so: 200 with a receiver behind it, 503 without."""

        def answers() -> bool:
            return self.get("/healthz", tls=self._tls_check).status == status

        wait_for(f"/healthz to answer {status}", answers, seconds=seconds)

    def __enter__(self) -> Self:
        try:
            self.wait_until(200)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            print(f"--- haproxy said\n{self.log()[-6000:]}")
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._log.close()


def environment(certificate: Path, ports: Sequence[int]) -> dict[str, str]:
    """What haproxy.cfg reads, and no more of the user's environment than PATH."""
    names = {"PATH": os.environ["PATH"], "CERTIFICATE": str(certificate)}
    for number, port in enumerate(ports, 1):
        names[f"PROXY_{number}"] = f"127.0.0.1:{port}"
    return names


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


@dataclass(slots=True)
class Seen:
    """A request as it came through."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Witness:
    """Stands where a receiver stands, says 200 to everything, and keeps what came through."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.seen: list[Seen] = []
        witness = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path != "/healthz":
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    witness.seen.append(Seen(self.command, self.path, headers, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_OPTIONS = answer

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
