"""Waiting for what another process does, which says so in files."""

from __future__ import annotations

import time

POLL = 0.001, 0.02
"""Seconds between two looks at what another process does: the first time, and at most."""


class Poll:
    """Waits a little longer each time: what is quick is not kept waiting, what is slow not asked
    about all the time.
    """

    def __init__(self) -> None:
        self._seconds, self._most = POLL

    def wait(self) -> None:
        """Wait once."""
        time.sleep(self._seconds)
        self._seconds = min(self._most, 1.03 * self._seconds)
