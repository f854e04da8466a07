"""A serving process: uvicorn on a socket that its supervisor bound.

uvicorn hands a body on in messages of 64 KiB, each copied three times. ``BodyProtocol`` adds one
extension to the ASGI scope, ``tar_like.body``: take the whole body straight into a buffer. An
application that does not use it sees plain uvicorn.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tar_like.proxy.access import Access
from tar_like.proxy.app import BODY_EXTENSION, make_app
from tar_like.proxy.place import Destination
from tar_like.proxy.transfers import CommitStarter, Transfers


class _Sink:
    """A buffer that a body is being put into."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.position = 0
        """Bytes that have arrived; more than the buffer has when the body is too long."""

    def feed(self, data: bytes | bytearray) -> None:
        end = self.position + len(data)
        if end <= len(self.buffer):
            self.buffer[self.position : end] = data
        self.position = end


class BodyProtocol(HttpToolsProtocol):
    """HTTP/1.1 by uvicorn and httptools, with bodies put where the application wants them."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle = self.cycle
        extensions: dict[str, Any] = {BODY_EXTENSION: self._taker(cycle)}
        self.scope["extensions"] = extensions

    def on_body(self, body: bytes) -> None:
        sink: _Sink | None = getattr(self.cycle, "sink", None)
        if sink is None:
            super().on_body(body)
        else:
            sink.feed(body)

    def _taker(self, cycle: RequestResponseCycle) -> Callable[[memoryview], Awaitable[int]]:
        async def take(buffer: memoryview) -> int:
            """Put the body into the buffer; returns its length, less if the sender is gone."""
            sink = _Sink(buffer)
            sink.feed(cycle.body)
            cycle.body = bytearray()
            cycle.sink = sink  # type: ignore[attr-defined]
            if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
                cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                cycle.waiting_for_100_continue = False
            self.flow.resume_reading()
            while cycle.more_body and not cycle.disconnected:
                await cycle.message_event.wait()
                cycle.message_event.clear()
            return sink.position

        return take


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
