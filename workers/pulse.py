"""A worker's signs of life, given by a thread of their own.

    every BEAT seconds: SET tar-like:worker:NAME, gone after LEASE > learn the bandwidth limit

So a worker that is killed, or cut off, is known to be gone within LEASE seconds.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from workers import records
from workers.limit import RedisBucket
from workers.records import BEAT, WorkerRecord


class Pulse:
    """What one worker process says of itself."""

    def __init__(self, connection: Redis, bucket: RedisBucket, record: WorkerRecord) -> None:
        self._connection = connection
        self._bucket = bucket
        self._record = record
        self._moved = 0
        self._seen = (time.monotonic(), 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin to give signs."""
        self._thread.start()

    def show(self, **changes: Any) -> None:
        """Say at once what has changed. Silent while Redis is away."""
        self._record = replace(self._record, **changes)
        self._send()

    def note(self, **changes: Any) -> None:
        """Say with the next sign what has changed."""
        self._record = replace(self._record, **changes)

    def pace(self, count: int) -> None:
        """So many bytes go out now."""
        self._moved += count

    def end(self) -> None:
        """The last sign: this worker is gone."""
        self._ended.set()
        self._thread.join(timeout=1.0)
        try:
            records.forget_worker(self._connection, self._record.name)
        except RedisError:
            return  # its lease ends by itself

    def _beat(self) -> None:
        while not self._ended.is_set():
            self._measure()
            self._send()
            self._learn()
            self._ended.wait(BEAT)

    def _measure(self) -> None:
        before, moved = self._seen
        now = time.monotonic()
        if now - before >= BEAT / 2:
            rate = (self._moved - moved) / (now - before)
            self._seen = (now, self._moved)
            self.note(rate=round((self._record.rate + rate) / 2, 1))

    def _send(self) -> None:
        if self._ended.is_set():
            return
        try:
            records.save_worker(self._connection, replace(self._record, moved=self._moved))
        except RedisError:
            return  # the next sign may get through; a missed one only lets the lease end

    def _learn(self) -> None:
        try:
            alive = self._connection.zcard(records.WORKERS)
        except RedisError:
            return
        self._bucket.look(alive)
