"""A sender that says nothing for long, since it reads, and yet is there.

with Presence(client, transfer_id): ...        answers are sought; now and then the receiver hears
"""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

from tar_like.errors import TarLikeError
from tar_like.upload.client import Client

EVERY = 20.0
"""Seconds; well below the shortest age at which a receiver takes a transfer for abandoned."""


class Presence:
    """Tells a receiver, on a thread, while this is used as a context."""

    def __init__(self, client: Client, transfer_id: str) -> None:
        """The client is nobody else's, and closed in the end."""
        self._client = client
        self._transfer_id = transfer_id
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            with contextlib.suppress(TarLikeError):  # whoever speaks to it next will be told
                self._client.still_here(self._transfer_id)
