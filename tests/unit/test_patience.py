"""Senders that are slow, silent, gone or too many, at a real receiver with little patience."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tar_like.proxy import app, patience, serving
from tar_like.proxy.patience import BODY, HEADS, IDLE, NEW, RESTS, SLOWEST, WORK, Patience
from tar_like.proxy.server import Receiver, ServerOptions
from tar_like.wire import digest_header
from tests.e2e.harness import PATIENCE, wait_for
from tests.unit.receiver import Job

DIGEST = digest_header(bytes(32))


class Listening:
    """A receiver for one run, with a transfer that blocks can be sent to."""

    def __init__(self, receiver: Receiver, job: Job) -> None:
        self.job = job
        self.token = receiver.token
        self.port = int(receiver.urls[0].rpartition(":")[2].partition("/")[0])

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def head(self, length: int, *, token: bool = True) -> bytes:
        lines = [f"PUT /tar/{self.job.id}/4096/0 HTTP/1.1", "Host: x", f"Repr-Digest: {DIGEST}"]
        lines += [f"Authorization: Bearer {self.token}"] if token else []
        return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()

    def put(self, number: int) -> int:
        digest, body = self.job.block(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {self.token}", "Repr-Digest": digest_header(digest)}
        try:
            connection.request("PUT", f"/tar/{self.job.id}/4096/{number}", body, headers)
            return connection.getresponse().status
        except ConnectionError:
            return 0
        finally:
            connection.close()


@pytest.fixture
def listening(work: Path) -> Iterator[Callable[[], Listening]]:
    """Begins to listen when it is called, with what has been patched until then."""
    (work / "src").mkdir()
    (work / "src/file").write_bytes(b"0123456789" * 1500)
    made = Job(work / "src", work / "dst", compress="none")
    with contextlib.ExitStack() as stack:

        def listen() -> Listening:
            options = ServerOptions(destination=str(work / "dst"))
            return Listening(stack.enter_context(Receiver(options)), made)

        yield listen
    made.close()


Listen = Callable[[], Listening]


def answer(connection: socket.socket) -> tuple[int, str]:
    """What it is told before the connection ends: status and title; (0, "") for nothing."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split(b" ")[1]), json.loads(body)["title"]) if head else (0, "")


def test_who_takes_too_long_is_told_so_and_left(
    listening: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST", "HEAD", "WINDOW", "REST"):
        monkeypatch.setattr(patience, name, 2.0)  # who is not slow must get through on any day
    receiver = listening()
    with contextlib.ExitStack() as stack:
        silent, head, body, drip, late = (stack.enter_context(receiver.open()) for _ in range(5))
        head.sendall(b"GET / HTTP/1.1\r\nX: ")
        body.sendall(receiver.head(100) + b"some of it")
        drip.sendall(receiver.head(1 << 12) + b"x")
        late.sendall(receiver.head(1 << 30, token=False))
        assert late.recv(12) == b"HTTP/1.1 401"
        with contextlib.suppress(ConnectionError):
            while True:  # a byte now and then does not help
                drip.sendall(b"x")
                head.sendall(b"x")
                receiver.put(0)
        assert answer(silent) == (0, "")
        for slow in (head, body, drip):
            assert answer(slow) in ((408, "slow"), (0, ""))
        while late.recv(1 << 16):
            pass  # it ends
    wait_for("a block to be taken", lambda: receiver.put(1) in (200, 201))


def test_a_head_without_end_is_refused(listening: Listen) -> None:
    with listening().open() as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * (1 << 20))
        assert answer(one) in ((431, "head-too-large"), (0, ""))


def test_who_only_waits_makes_room_for_who_asks(
    listening: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 40)
    receiver = listening()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(receiver.open())
        assert [receiver.put(number) for number in range(4)] == [201] * 4
    assert receiver.job.missing == []


@pytest.mark.parametrize("begun", [False, True])
def test_slow_bodies_leave_their_turns_to_others(
    listening: Listen, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """More senders than there are buffers, whose bodies do not come, or not to an end."""
    monkeypatch.setattr(app, "BUSY_AFTER", 60.0)
    if begun:
        monkeypatch.setattr(serving, "SLOWEST", 1)
        monkeypatch.setattr(app, "SLOW_AFTER", 0.1)
    receiver = listening()
    with contextlib.ExitStack() as stack:
        for _ in range(3 * app.BODIES_IN_FLIGHT):
            stack.enter_context(receiver.open()).sendall(receiver.head(4000) + b"x")
        assert receiver.put(0) == 201


def test_more_than_there_is_room_for_are_told_to_come_back(
    listening: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "BUSY_AFTER", 0.5)
    monkeypatch.setattr(app, "ASIDE", 0)
    monkeypatch.setattr(serving, "SLOWEST", 1)
    receiver = listening()
    with contextlib.ExitStack() as stack:
        for _ in range(app.BODIES_IN_FLIGHT):
            stack.enter_context(receiver.open()).sendall(receiver.head(4000) + b"x")
        wait_for("every turn to be taken", lambda: receiver.put(0) == 503)


def test_the_clock_of_each_phase() -> None:
    one = Patience()
    now = one.since
    assert not one.gone(now=now + patience.FIRST, waiting=False)
    assert one.gone(now=now + patience.FIRST + 1, waiting=False)
    for phase, limit in ((HEADS, patience.HEAD), (RESTS, patience.REST), (NEW, patience.FIRST)):
        one.enter(phase)
        assert not one.gone(now=one.since + limit - 1, waiting=False)
        assert one.gone(now=one.since + limit + 1, waiting=False)
    for phase in (WORK, IDLE):
        one.enter(phase)
        assert not one.gone(now=one.since + 1e6, waiting=False)


def test_a_body_must_move_in_every_window() -> None:
    one = Patience()
    one.enter(BODY)
    now = one.since
    for _ in range(5):
        one.moved += SLOWEST
        now += patience.WINDOW + 1
        assert not one.gone(now=now, waiting=False)
    one.moved += SLOWEST - 1
    assert one.gone(now=now + patience.WINDOW + 1, waiting=False)


def test_a_body_that_we_do_not_read_is_not_slow() -> None:
    one = Patience()
    one.enter(BODY)
    now = one.since + 100 * patience.WINDOW
    assert not one.gone(now=now, waiting=True)
    assert not one.gone(now=now + patience.WINDOW - 1, waiting=False)
    assert one.gone(now=now + patience.WINDOW + 1, waiting=False)


def test_who_does_not_read_is_given_up() -> None:
    one = Patience()
    one.enter(WORK)
    now = time.monotonic()
    one.stuck(paused=True)
    assert not one.gone(now=now + patience.UNREAD - 1, waiting=False)
    now = time.monotonic()
    assert one.gone(now=now + patience.UNREAD + 1, waiting=False)
    one.stuck(paused=False)
    assert not one.gone(now=now + patience.UNREAD + 1, waiting=False)


def test_what_came_before_its_buffer_is_let_go() -> None:
    """A request is in a circle of references: its bytes would stay until those are collected."""
    cycle = SimpleNamespace(body=b"0123", more_body=False, disconnected=False)
    buffer = bytearray(4)
    assert asyncio.run(serving._Body(None, cycle).into(memoryview(buffer))) == 4  # type: ignore[arg-type]
    assert (buffer, cycle.body) == (b"0123", b"")
