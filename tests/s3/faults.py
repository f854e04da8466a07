"""An HTTP proxy before a store, that breaks what it is told to.

    with FaultProxy(port) as proxy:
        proxy.rules.append(Rule("reset", key="/bucket/a", times=2))
        ... requests to proxy.url ...
        assert proxy.rules[0].hits == 2

Every request is read, answered by the store over a connection of its own, and the whole answer
then passed on as the rules say. Requests of one connection are served one after the other.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate."
    b"</Message></Error>"
)
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
BROKEN = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"


@dataclass(slots=True)
class Rule:
    """A fault for the requests it fits."""

    kind: str
    """reset, truncate, stall, longer, shorter, slow_down, denied, broken, deaf (to If-Match), whole
    (deaf to Range), say (what is in ``says``) or pass."""
    key: str = ""
    """Part of the request's target."""
    method: str = "GET"
    times: int = 10**9
    after: int = 0
    """Bytes of the body that pass before a reset, truncation or stall."""
    seconds: float = 0.0
    call: Callable[[], None] | None = None
    """Done before the request is passed on: the store changes, say."""
    says: tuple[str, bytes] = ("", b"")
    """Status and further header lines, and a body, to be said instead of the store's answer."""
    hits: int = 0

    def fits(self, method: str, target: str) -> bool:
        return self.hits < self.times and method == self.method and self.key in target


@dataclass(slots=True)
class Request:
    """A request that came by."""

    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)


class FaultProxy:
    """Listens on a port of its own, in a thread of its own."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._end: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.rules: list[Rule] = []
        self.seen: list[Request] = []
        self.most_at_a_time = 0
        self._now = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)
        self._loop.close()

    def count(self, method: str, key: str = "") -> int:
        """How many such requests came by."""
        return sum(one.method == method and key in one.target for one in list(self.seen))

    def _serve(self) -> None:
        self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = _request(head)
        self.seen.append(request)
        body = await reader.readexactly(int(request.headers.get("content-length", "0")))
        self._now += 1
        self.most_at_a_time = max(self.most_at_a_time, self._now)
        try:
            rule = next((r for r in self.rules if r.fits(request.method, request.target)), None)
            if rule is not None:
                rule.hits += 1
                if rule.call is not None:
                    await asyncio.to_thread(rule.call)
                await asyncio.sleep(rule.seconds)
                head = _unheard(head, rule.kind)
            answer = await self._answer(head, body)
        finally:
            self._now -= 1
        return await _pass_on(answer, rule, request.method, writer)

    async def _answer(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            writer.write(re.sub(rb"\r\n\r\n$", b"\r\nConnection: close\r\n\r\n", head) + body)
            return await reader.read(-1)
        finally:
            writer.close()


def _unheard(head: bytes, kind: str) -> bytes:
    """The request as a store takes it that does not know a header."""
    name = {"deaf": rb"if-match", "whole": rb"range"}.get(kind)
    return head if name is None else re.sub(rb"(?i)\r\n" + name + rb": [^\r]*", b"", head)


def _request(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    return Request(method, target, {name.lower(): value for name, value in headers.items()})


async def _pass_on(
    answer: bytes, rule: Rule | None, method: str, writer: asyncio.StreamWriter
) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    head = re.sub(rb"(?i)\r\nconnection: close", b"", head)
    kind = rule.kind if rule is not None else ""
    if rule is not None and kind == "say":
        body = rule.says[1]
        head = b"HTTP/1.1 %s\r\nContent-Length: %d" % (rule.says[0].encode(), len(body))
    if kind in ("slow_down", "denied", "broken"):
        status, body = {
            "slow_down": (b"503 Slow Down", SLOW_DOWN),
            "denied": (b"403 Forbidden", DENIED),
            "broken": (b"500 Internal Server Error", BROKEN),
        }[kind]
        head = b"HTTP/1.1 %s\r\nContent-Length: %d" % (status, len(body))
        if method == "HEAD":
            body = b""
    if kind in ("longer", "shorter"):
        length = len(body) + (7 if kind == "longer" else -7)
        head = re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % length, head)
    if kind in ("reset", "truncate", "stall"):
        assert rule is not None
        body = body[: rule.after]
    writer.write(head + b"\r\n\r\n" + body)
    await writer.drain()
    if kind == "stall":
        await asyncio.Event().wait()
    if kind == "reset":
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return kind not in ("reset", "truncate", "longer", "shorter")
