"""Trying again: by kind of failure, with jittered exponential backoff.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tar_like.errors import TarLikeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of passing failure."""

    name: str
    attempts: int
    """How often in all the same thing is tried."""
    base: float
    """Seconds; the n-th pause is random, up to base * 2^n."""
    cap: float = 20.0


THROTTLED = Kind("the store asks to slow down", 10, 0.4)
SERVER = Kind("the store failed", 6, 0.2)
BROKEN = Kind("the connection broke", 6, 0.1)


class Passing(TarLikeError):
    """A failure that may pass."""

    retry = True

    def __init__(self, kind: Kind, text: str, *, progress: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.progress = progress
        """Something was achieved before: attempts are counted anew."""


def retried(action: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """Do it, and again while it fails in a way that may pass. Raises the last Passing."""
    failures: dict[Kind, int] = {}
    while True:
        try:
            return action()
        except Passing as failure:
            if failure.progress:
                failures.clear()
            count = failures[failure.kind] = failures.get(failure.kind, 0) + 1
            if count >= failure.kind.attempts:
                raise
            pause(random.uniform(0, min(failure.kind.cap, failure.kind.base * 2**count)))
