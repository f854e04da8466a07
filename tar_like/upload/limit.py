"""One bandwidth limit for many senders: a token bucket that they share.

    before each slice of a body: bucket.take(bytes) > so many seconds to wait

What is sent again after an error counts again: it was on the wire. Source: the generic cell rate
algorithm, ITU-T I.371, here with debts: a slice is sent whole and the next one waits for it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Protocol

BURST = 0.25
"""Seconds' worth of bytes that may go out at once after a pause."""
MEMORY = 24
"""Bytes that a SharedBucket lives in."""


class Bucket(Protocol):
    """Gives out bytes at a rate."""

    @property
    def rate(self) -> int:
        """Bytes a second; 0 is no limit. May change at any time."""

    def take(self, count: int) -> float:
        """Take bytes; the seconds to wait before sending them. Never blocks for long."""


class SharedBucket:
    """A bucket that a process shares with those it forks, and with whoever has its memory."""

    def __init__(self, rate: int, fd: int = -1) -> None:
        """``rate`` is bytes a second; 0 is no limit. ``fd`` is a file of MEMORY bytes to live in.

        The memory: the rate, when the bucket is free again, and the rate that this was reckoned by.
        """
        self._state = memoryview(mmap.mmap(fd, MEMORY)).cast("d")
        self._state[0] = float(rate)
        import multiprocessing  # which a run without a limit need not wait for

        self._lock = multiprocessing.get_context("fork").Lock()

    @staticmethod
    def change(fd: int, rate: int) -> None:
        """Change the rate of the bucket that lives in this file, from now on."""
        os.pwrite(fd, struct.pack("d", rate), 0)

    @property
    def rate(self) -> int:
        """See Bucket."""
        return int(self._state[0])

    def take(self, count: int) -> float:
        """See Bucket."""
        # A process that was killed while it held the lock must not stop the others.
        locked = self._lock.acquire(timeout=1.0)
        try:
            rate, free, known = self._state
            now = time.monotonic()  # one clock for all processes of a machine
            free = free if rate == known else 0.0  # a debt at another rate is let off
            wait, free = debit(count, rate=rate, free=free, now=now)
            self._state[1], self._state[2] = free, rate
            return wait
        finally:
            if locked:
                self._lock.release()


def debit(count: int, *, rate: float, free: float, now: float) -> tuple[float, float]:
    """Seconds to wait for ``count`` bytes, and when the bucket is free again after them.

    >>> debit(100, rate=100, free=0.0, now=10.0)
    (0.0, 10.75)
    >>> debit(100, rate=100, free=10.75, now=10.0)
    (0.75, 11.75)
    """
    if rate <= 0:
        return 0.0, 0.0
    start = max(free, now - BURST)
    return max(0.0, start - now), start + count / rate


def pacer(bucket: Bucket) -> Callable[[int], None]:
    """What a Client calls before each slice of a body."""

    def pace(count: int) -> None:
        wait, rate = bucket.take(count), bucket.rate
        while wait > 0 and bucket.rate == rate:  # a new limit holds at once
            time.sleep(min(wait, 1.0))
            wait -= 1.0

    return pace
