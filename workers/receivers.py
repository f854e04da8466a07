"""The receivers of one destination: any of them can answer."""

from __future__ import annotations

import time

from tar_like.errors import Unreachable
from tar_like.upload.client import Client
from tar_like.upload.dispatch import UploadOptions

GONE = 60.0
"""Seconds without an answer from any of them after which there is no going on."""


class Receivers:
    """Asks one receiver, and the next when it does not answer."""

    def __init__(self, options: UploadOptions, transfer: str) -> None:
        self._clients: list[Client] = [options.client(n) for n in range(len(options.urls))]
        self._transfer = transfer

    def bitmaps(self) -> bytes:
        """What has arrived. Raises Unreachable when none of them answers for long."""
        end = time.monotonic() + GONE
        while True:
            try:
                return self._clients[0].bitmaps(self._transfer)
            except Unreachable:
                if time.monotonic() > end:
                    raise
                self._clients.append(self._clients.pop(0))

    def close(self) -> None:
        for client in self._clients:
            client.close()
