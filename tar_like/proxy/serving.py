"""A serving process: uvicorn on a socket that its supervisor bound.

uvicorn hands a body on in messages of 64 KiB, each copied three times. ``BodyProtocol`` adds one
extension to the ASGI scope, ``tar_like.body``: receive the whole body straight into a buffer. An
application that does not use it sees plain uvicorn.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tar_like.proxy.access import Access
from tar_like.proxy.app import BODY_EXTENSION, make_app
from tar_like.proxy.place import Destination
from tar_like.proxy.transfers import CommitStarter, Transfers


class BodyProtocol(HttpToolsProtocol):
    """HTTP/1.1 by uvicorn and httptools, with bodies put where the application wants them."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle = self.cycle
        extensions: dict[str, Any] = {BODY_EXTENSION: self._taker(cycle)}
        self.scope["extensions"] = extensions

    def _taker(self, cycle: RequestResponseCycle) -> Callable[[memoryview], Awaitable[int]]:
        async def take(buffer: memoryview) -> int:
            """Put a body into a buffer of its length; returns less if the sender is gone."""
            body = cycle.body
            buffer[: len(body)] = body
            if cycle.more_body and len(body) < len(buffer):
                return await self._receive(cycle, buffer, len(body))
            return len(body)

        return take

    async def _receive(
        self, cycle: RequestResponseCycle, buffer: memoryview, position: int
    ) -> int:  # fmt: skip
        """What is still to come of a body, past the parser, which is made anew after it."""
        sink = _Sink(self, buffer, position)
        self.flow.pause_reading()  # an event loop looks at a protocol's kind when it begins to read
        self.transport.set_protocol(sink)
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
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
                self.parser = httptools.HttpRequestParser(self)
                self.flow.resume_reading()
        return sink.position


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
        if self.position == len(self._buffer):
            self._whose.flow.pause_reading()
            self._whose.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._whose.connection_lost(exc)

    def pause_writing(self) -> None:
        self._whose.pause_writing()

    def resume_writing(self) -> None:
        self._whose.resume_writing()


def serve_socket(
    destination: Destination,
    listener: socket.socket,
    start_commit: CommitStarter,
    access: Access,
    *,
    tls: tuple[str, str] | None,
    keep_alive: int,
    shutdown: int,
) -> None:
    """Serve until SIGTERM; requests in flight get ``shutdown`` seconds to end.

    ``tls`` names the files of the certificate and of its key.
    """
    app = make_app(Transfers(destination, start_commit), access)
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
    uvicorn.Server(config).run(sockets=[listener])
