"""Cutting what is missing into ranges worth SECONDS of a worker's time. Pure.

    missing blocks, as runs > next() cuts one range > give_back() what of it did not arrive

The first ranges are one block, to learn the pace; the last ones are small, so that the end of a
transfer does not wait for one host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tar_like.layout import runs

SECONDS = 5.0
"""What a range is worth."""
MAX_BLOCKS = 4096


class Ranges:
    """Blocks that nobody is sending."""

    def __init__(self, missing: Iterable[int]) -> None:
        """``missing`` is ascending."""
        self._runs = deque(runs(iter(missing)))
        self.left = sum(stop - first for first, stop in self._runs)
        """How many blocks there are to give out."""
        self._pace = 0.0

    def learn(self, blocks: int, seconds: float) -> None:
        """A worker sent so many blocks in so many seconds."""
        if blocks > 0 and seconds > 0:
            pace = blocks / seconds
            self._pace = pace if not self._pace else 0.7 * self._pace + 0.3 * pace

    def next(self, workers: int) -> tuple[int, int] | None:
        """The next range, half-open; None when there is none."""
        if not self._runs:
            return None
        first, stop = self._runs.popleft()
        cut = min(stop, first + self._size(workers))
        if cut < stop:
            self._runs.appendleft((cut, stop))
        self.left -= cut - first
        return first, cut

    def give_back(self, missing: Iterable[int]) -> None:
        """Blocks of a range that has ended, ascending; they are the next to be given out."""
        found = list(runs(iter(missing)))
        self._runs.extendleft(reversed(found))
        self.left += sum(stop - first for first, stop in found)

    def _size(self, workers: int) -> int:
        worth = int(self._pace * SECONDS)
        fair = self.left // (3 * max(1, workers))
        return max(1, min(worth, fair, MAX_BLOCKS))
