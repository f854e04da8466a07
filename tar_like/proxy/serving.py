"""A serving process: uvicorn on a socket that its supervisor bound.

uvicorn hands a body on in messages of 64 KiB, each copied three times. ``BodyProtocol`` adds one
extension to the ASGI scope, ``tar_like.body``: receive the whole body straight into a buffer. An
application that does not use it sees plain uvicorn. It also gives up who is too slow (patience.py),
and who connects when there are too many.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from typing import Any, cast

import httptools
import uvicorn
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tar_like.errors import Busy, HeadTooLarge, NoRequest, TarLikeError, TooSlow
from tar_like.process import keep_memory
from tar_like.proxy import problem
from tar_like.proxy.access import Access
from tar_like.proxy.app import BODY_EXTENSION, make_app
from tar_like.proxy.patience import (
    BODY,
    HEADS,
    IDLE,
    MAX_HEAD,
    NEW,
    RESTS,
    SLOWEST,
    WORK,
    Patience,
)
from tar_like.proxy.place import Destination
from tar_like.proxy.transfers import Starter, Transfers

FILES = 8192
MAX_CONNECTIONS = 4096
"""Connections that one process has at a time."""


class BodyProtocol(HttpToolsProtocol):
    """HTTP/1.1 by uvicorn and httptools, with bodies put where the application wants them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.patience = Patience()
        self.gathering: RequestResponseCycle | None = None
        """The request that waits for its body to come in earnest."""
        super().connection_made(transport)
        # What does not go out is not followed by more; uvloop's TLS would never go on then.
        if transport.get_extra_info("sslcontext") is None:
            transport.set_write_buffer_limits(high=0)
        if len(self.connections) > most_connections():
            self._make_room()

    def _make_room(self) -> None:
        """Part with whoever has waited longest without a request, or else with the newest."""
        others = cast("set[BodyProtocol]", self.connections)
        idle = [one for one in others if one.patience.phase in (NEW, IDLE) and one is not self]
        if idle:
            min(idle, key=lambda one: one.patience.since).transport.close()
        else:
            self._refuse(Busy("The receiver has as many connections as it can: try again."))

    def data_received(self, data: bytes) -> None:
        if self.patience.phase in (NEW, IDLE):
            self.patience.enter(HEADS)
        self.patience.moved += len(data)
        super().data_received(data)
        if self.patience.phase == HEADS and self.patience.moved > MAX_HEAD:
            self._refuse(HeadTooLarge("The request's head is larger than any of this protocol."))

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.patience.enter(BODY)
        extensions: dict[str, Any] = {BODY_EXTENSION: _Body(self, self.cycle)}
        self.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle is self.gathering and len(cycle.body) + len(body) < SLOWEST:
            cycle.body += body  # nobody need wake up for a drop
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.patience.enter(IDLE if self.patience.phase == RESTS else WORK)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else another request is here already
            self.patience.enter(RESTS if self.patience.phase == BODY else IDLE)

    def pause_writing(self) -> None:
        self.patience.stuck(paused=True)
        super().pause_writing()

    def resume_writing(self) -> None:
        self.patience.stuck(paused=False)
        super().resume_writing()

    def look(self, now: float) -> None:
        """Give up the other side if it takes too long."""
        if not self.patience.gone(now=now, waiting=self.flow.read_paused):
            return
        if self.patience.phase in (HEADS, BODY) and not self._answering:
            self._refuse(TooSlow("The request did not arrive in time."))
        if self.flow.write_paused:
            self.transport.abort()  # what is to be sent would never be read
        self.transport.close()

    @property
    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and cycle.response_started

    def send_400_response(self, msg: str) -> None:
        self._refuse(NoRequest("This is no HTTP request."))

    def _refuse(self, error: TarLikeError) -> None:
        """Answer what is no request, or not all of one, and part."""
        if self.transport.is_closing():
            return
        if not self._answering or self.cycle.response_complete:
            response = problem.of(error)
            head = [f"HTTP/1.1 {response.status_code} {error.slug}".encode()]
            head += [name + b": " + value for name, value in response.raw_headers]
            head += [b"connection: close", b"", bytes(response.body)]
            self.transport.write(b"\r\n".join(head))
        self.transport.close()

    async def receive(
        self, cycle: RequestResponseCycle, buffer: memoryview, position: int
    ) -> int:  # fmt: skip
        """What is still to come of a body, past the parser, which is made anew after it."""
        sink = _Sink(self, buffer, position)
        self.flow.pause_reading()  # an event loop looks at a protocol's kind when it begins to read
        self.transport.set_protocol(sink)
        self.proceed(cycle)
        self.flow.resume_reading()
        try:
            while sink.position < len(buffer) and not cycle.disconnected:
                await cycle.message_event.wait()
                cycle.message_event.clear()
        finally:
            self.transport.set_protocol(self)
            if sink.position < len(buffer):
                self.transport.close()
            else:
                cycle.more_body = False
                self.patience.enter(WORK)
                self.parser = httptools.HttpRequestParser(self)
                self.flow.resume_reading()
        return sink.position

    @staticmethod
    def proceed(cycle: RequestResponseCycle) -> None:
        """Have a sender that asked first send its body."""
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False


class _Body:
    """A request's body, for an application that has a buffer of its length (app.Body)."""

    def __init__(self, whose: BodyProtocol, cycle: RequestResponseCycle) -> None:
        self._whose = whose
        self._cycle = cycle

    async def begin(self) -> None:
        """Wait for the body to come in earnest: a sender that sends nothing needs no buffer."""
        cycle = self._cycle
        self._whose.proceed(cycle)
        while cycle.more_body and len(cycle.body) < SLOWEST and not cycle.disconnected:
            self._whose.gathering = cycle
            self._whose.flow.resume_reading()
            await cycle.message_event.wait()
            cycle.message_event.clear()
        self._whose.gathering = None
        if cycle.more_body and cycle.disconnected:
            raise ClientDisconnect

    async def into(self, buffer: memoryview) -> int:
        """Put it into a buffer of its length; returns less if the sender is gone."""
        cycle, there = self._cycle, len(self._cycle.body)
        buffer[:there] = cycle.body
        cycle.body = bytearray()  # a cycle lives until all cycles are collected
        if cycle.more_body and there < len(buffer) and not cycle.disconnected:
            return await self._whose.receive(cycle, buffer, there)
        return there


class _Sink(asyncio.BufferedProtocol):
    """Receives into a buffer until it is full, in place of another protocol."""

    def __init__(self, whose: BodyProtocol, buffer: memoryview, position: int) -> None:
        self._whose = whose
        self._buffer = buffer
        self.position = position
        """Bytes that are there."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self.position :]

    def buffer_updated(self, nbytes: int) -> None:
        self.position += nbytes
        self._whose.patience.moved += nbytes
        if self.position == len(self._buffer):
            self._whose.flow.pause_reading()
            self._whose.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._whose.connection_lost(exc)

    def pause_writing(self) -> None:
        self._whose.pause_writing()

    def resume_writing(self) -> None:
        self._whose.resume_writing()


class _Server(uvicorn.Server):
    """uvicorn, with an eye on how long everybody takes."""

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # ten ticks are a second
            now = time.monotonic()
            for one in list(cast("set[BodyProtocol]", self.server_state.connections)):
                one.look(now)
        return await super().on_tick(counter)


def most_connections() -> int:
    """How many connections a process has at a time: files must stay for everything else."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve_socket(
    destination: Destination,
    listener: socket.socket,
    starter: Starter,
    access: Access,
    *,
    tls: tuple[str, str] | None,
    keep_alive: int,
    shutdown: int,
) -> None:
    """Serve until SIGTERM; requests in flight get ``shutdown`` seconds to end.

    ``tls`` names the files of the certificate and of its key.
    """
    _raise_file_limit()
    keep_memory()
    app = make_app(Transfers(destination, starter), access)
    certificate, key = tls or (None, None)
    config = uvicorn.Config(
        app,
        http=BodyProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=shutdown,
    )
    _Server(config).run(sockets=[listener])
