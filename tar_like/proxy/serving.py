"""A serving process: uvicorn on a socket that its supervisor bound."""

from __future__ import annotations

import socket

import uvicorn

from tar_like.proxy.app import make_app
from tar_like.proxy.place import Destination
from tar_like.proxy.transfers import CommitStarter, Transfers


def serve_socket(
    destination: Destination,
    listener: socket.socket,
    start_commit: CommitStarter,
    *,
    keep_alive: int,
    shutdown: int,
) -> None:
    """Serve until SIGTERM; requests in flight get ``shutdown`` seconds to end."""
    app = make_app(Transfers(destination, start_commit))
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=shutdown,
    )
    uvicorn.Server(config).run(sockets=[listener])
