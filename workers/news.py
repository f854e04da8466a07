"""What the uploading command says of a transfer, for ``tar-like status``."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tar_like.upload.dispatch import UploadOptions
from workers import records
from workers.records import TransferRecord


class News:
    """The last news of one transfer."""

    def __init__(self, connection: Redis, options: UploadOptions) -> None:
        self._connection = connection
        self.record = TransferRecord(
            source=options.source,
            urls=" ".join(options.urls),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=time.time(),
            state="receiving",
        )

    def tell(self, **changes: Any) -> None:
        """Put what has changed where others find it. Silent while Redis is away."""
        self.record = replace(self.record, **changes, updated=time.time())
        try:
            records.save_transfer(self._connection, self.record)
        except RedisError:
            return  # the next news tells it again

    def end(self, state: str) -> None:
        """The last news."""
        if not self.record.id:
            return  # nothing was ever sent
        if state == "complete":
            blocks, total = self.record.blocks, self.record.bytes
            self.tell(received=blocks, durable=blocks, received_bytes=total, durable_bytes=total)
        self.tell(state=state, rate=0.0, queued=0, running=0)
