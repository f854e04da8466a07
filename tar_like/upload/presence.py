"""A sender that says nothing for long, since it reads, and yet is there.

with presence(client, transfer_id): ...        answers are sought; now and then the receiver hears
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from tar_like.errors import TarLikeError
from tar_like.upload.client import Client

EVERY = 20.0
"""Seconds; well below the shortest age at which a receiver takes a transfer for abandoned."""


@contextlib.contextmanager
def presence(client: Client, transfer_id: str) -> Iterator[None]:
    """Tells a receiver, on a thread. The client is nobody else's, and closed in the end."""
    end = threading.Event()

    def tell() -> None:
        while not end.wait(EVERY):
            with contextlib.suppress(TarLikeError):  # whoever speaks to it next will be told
                client.still_here(transfer_id)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        client.close()
