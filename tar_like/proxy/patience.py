"""How long a connection may take over what it has begun, so that the slow hold up nobody.

    new > head > body > work (ours: no limit here) > idle > head > ...
                  `> rest: the answer is there before the body's end

Looked at once a second. Bytes are what tells a slow sender from one that is gone; the clock of a
head runs from its first byte, whatever comes after.
"""

from __future__ import annotations

import time

FIRST = 20.0
"""Seconds until the first byte of a new connection."""
HEAD = 10.0
"""Seconds for the head of a request, from its first byte."""
WINDOW = 15.0
SLOWEST = 16 << 10
"""Bytes of a body that must come in each window of WINDOW seconds."""
REST = 10.0
"""Seconds for the rest of a body that has been answered already."""
UNREAD = 60.0
"""Seconds for which an answer may wait to be read."""
MAX_HEAD = 64 << 10
"""Bytes of a request's head."""

NEW, HEADS, BODY, WORK, RESTS, IDLE = range(6)


class Patience:
    """What one connection is about, since when, and how far it has got."""

    def __init__(self) -> None:
        self.phase = NEW
        self.since = time.monotonic()
        self.moved = 0
        """Bytes that came in this phase."""
        self._before = 0
        self._stuck = 0.0

    def enter(self, phase: int) -> None:
        """Something else begins."""
        self.phase = phase
        self.since = time.monotonic()
        self.moved = self._before = 0

    def stuck(self, *, paused: bool) -> None:
        """Whether the other side does not read what it asked for."""
        self._stuck = time.monotonic() if paused else 0.0

    def gone(self, *, now: float, waiting: bool) -> bool:
        """Whether the other side is to be given up; ``waiting``: it is we who do not read."""
        if self._stuck and now - self._stuck > UNREAD:
            return True
        passed = now - self.since
        if self.phase == BODY:
            return self._stalls(now, waiting=waiting)
        limits = {NEW: FIRST, HEADS: HEAD, RESTS: REST}
        return passed > limits.get(self.phase, passed)

    def _stalls(self, now: float, *, waiting: bool) -> bool:
        if not waiting and now - self.since <= WINDOW:
            return False
        stalls = not waiting and self.moved - self._before < SLOWEST
        self.since, self._before = now, self.moved
        return stalls
