"""Which ranges of a file hold data."""

from __future__ import annotations

from tar_like.index import Index
from tar_like.layout import Entry


class Segments:
    """The data ranges of files, asked for in order of entry id."""

    def __init__(self, index: Index) -> None:
        self._rows = index.segments()
        self._next = next(self._rows, None)

    def of(self, entry: Entry) -> list[tuple[int, int]]:
        """The ranges of a file that hold data: all of it, where it has no holes."""
        while self._next is not None and self._next[0] < entry.id:
            self._next = next(self._rows, None)
        if self._next is None or self._next[0] != entry.id:
            return [(0, entry.size)] if entry.size else []
        ranges = []
        while self._next is not None and self._next[0] == entry.id:
            _, start, stop = self._next
            if start < stop:
                ranges.append((start, stop))
            self._next = next(self._rows, None)
        return ranges
