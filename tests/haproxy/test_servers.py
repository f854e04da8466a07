"""How haproxy finds receivers, and which requests it gives to another one."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import wait_for
from tests.haproxy.balancer import CONFIGURATION, Balancer, Witness

ID = "0123456789abcdef" * 4
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"


@contextmanager
def leaver(heard: list[bytes]) -> Iterator[int]:
    """Well by its health check, but whatever else it is asked, it leaves: its port."""

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            head = connection.recv(1 << 16)
            if head.startswith(b"GET /healthz"):
                connection.sendall(OK)
            elif head:
                heard.append(head.split(b"\r\n")[0])

    with serving(answer) as port:
        yield port


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """One connection after the other is given to `answer`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                answer(connection)
            except OSError:
                if listener.fileno() < 0 or stopped.is_set():
                    return

    stopped = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("method", "path", "size"),
    [
        ("GET", f"/tar/{ID}", 0),
        ("POST", f"/tar/{ID}/plan", 30),
        ("POST", f"/tar/{ID}/commit", 0),
    ],
)
def test_what_has_no_large_body_is_given_to_another(
    work: Path, method: str, path: str, size: int
) -> None:
    heard: list[bytes] = []
    body = bytes(size) if method != "GET" else None
    with (
        leaver(heard) as bad,
        Witness() as good,
        Balancer(work, [bad, good.port]) as balancer,
    ):
        for number in range(1, 5):
            assert balancer.request(method, path, body=body).status == 200
            assert len(good.seen) == number
            assert good.seen[-1].body == (body or b"")
        assert heard, "nothing was tried there"


def test_a_block_is_for_its_sender_to_send_again(work: Path) -> None:
    heard: list[bytes] = []
    with leaver(heard) as bad, Witness() as good, Balancer(work, [bad, good.port]) as balancer:
        answers = []

        def put() -> int:
            try:
                answer = balancer.request("PUT", f"/tar/{ID}/8388608/0", body=bytes(1 << 20))
                answers.append(answer.status)
            except OSError:  # it was told 502 while it was sending
                answers.append(502)
            return len(heard)

        wait_for("a block to go there", put)
        assert set(answers) <= {200, 502}
        assert answers.count(502) == len(heard)
        assert len(good.seen) == answers.count(200)


def test_receivers_found_by_a_name(work: Path) -> None:
    """As in containers: one name, several addresses; one of them goes away."""
    names = _Names()
    with Witness("127.0.0.1") as one, Witness("127.0.0.2", one.port) as two:
        text = CONFIGURATION.read_text()
        assert text.count("    parse-resolv-conf\n") == 1
        config = work / "haproxy.cfg"
        asking = f"    nameserver test 127.0.0.1:{names.port}\n    hold valid 100ms\n"
        config.write_text(re.sub(r"    parse-resolv-conf\n    hold valid .*\n", asking, text))
        env = {"PROXY_NAME": f"receivers.example:{one.port}"}
        with names, Balancer(work, [], config=config, env=env) as balancer:

            def both() -> bool:
                assert balancer.get("/tar").status == 200
                return bool(one.seen and two.seen)

            wait_for("both to be asked", both)
            names.addresses = ["127.0.0.2"]

            def the_other() -> bool:
                one.seen.clear()
                return all(balancer.get("/tar").status == 200 for _ in range(8)) and not one.seen

            wait_for("the one without a name to be left", the_other)


class _Names:
    """A name server that knows one name (RFC 1035), and whose it is."""

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1", "127.0.0.2"]
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(4096)
            if not question:
                return
            self._socket.sendto(self._answer(question), asker)

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5
        kind = struct.unpack("!H", question[end - 4 : end - 2])[0]
        found = self.addresses if kind == 1 else []  # A
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        answers = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(one) for one in found
        )
        return head + question[12:end] + answers

    def __enter__(self) -> _Names:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()
