"""One bandwidth limit for many senders: a token bucket that they share.

    before each slice of a body: bucket.take(bytes) > so many seconds to wait

What is sent again after an error counts again: it was on the wire. Source: the generic cell rate
algorithm, ITU-T I.371, here with debts: a slice is sent whole and the next one waits for it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Protocol

BURST = 0.25
"""Seconds' worth of bytes that may go out at once after a pause."""


class Bucket(Protocol):
    """Gives out bytes at a rate."""

    @property
    def rate(self) -> int:
        """Bytes a second; 0 is no limit. May change at any time."""

    def take(self, count: int) -> float:
        """Take bytes; the seconds to wait before sending them. Never blocks for long."""


class SharedBucket:
    """A bucket that a process shares with those it forks."""

    def __init__(self, rate: int) -> None:
        """``rate`` is bytes a second; 0 is no limit."""
        self._state = multiprocessing.get_context("fork").Array("d", [float(rate), 0.0])

    @property
    def rate(self) -> int:
        """See Bucket."""
        return int(self._state[0])

    @rate.setter
    def rate(self, rate: int) -> None:
        self._state[0], self._state[1] = float(rate), 0.0

    def take(self, count: int) -> float:
        """See Bucket."""
        lock = self._state.get_lock()
        # A process that was killed while it held the lock must not stop the others.
        locked = lock.acquire(timeout=1.0)
        try:
            rate, free = self._state[0], self._state[1]
            now = time.monotonic()  # one clock for all processes of a machine
            wait, self._state[1] = debit(count, rate=rate, free=free, now=now)
            return wait
        finally:
            if locked:
                lock.release()


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
