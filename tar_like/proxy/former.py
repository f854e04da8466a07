"""The names of one directory as they were, in leaves that a tree has no more.

    leaf of the tree > its names, off those that were > which of them may differ, with their rows

A sight of the directory tells most of it: a row of the ledger is read only where columns differ.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from tar_like.index.leaf import Leaf
from tar_like.proxy.ledger import LeafRow
from tar_like.proxy.rows import PATH, Row, Rows
from tar_like.proxy.sights import CODES, GID, MODE, MTIME, SIZE, UID, Sight

_TOLD = (MODE, SIZE, MTIME, UID, GID)
"""The columns of a sight in the order of those of a leaf."""


class Former:
    """Those of its names that no leaf has taken off yet. Everything raises sqlite3.Error."""

    def __init__(
        self, rows: Rows, directory: bytes, leaves: Iterable[LeafRow], sight: Sight | None
    ) -> None:
        """``leaves`` are the ledger's; ``sight`` says of their names what the ledger says."""
        self._rows = rows
        self._prefix = directory + b"/" if directory else b""
        self._left: dict[bytes, int | Row] = {}
        """The position of a name in the sight, or its row."""
        self._columns: list[tuple[int, ...]] = []
        self._first_row: int | None = None
        if sight is not None and directory and self._take_seen(leaves, sight):
            return
        for leaf in leaves:
            found = rows.names(directory, leaf.first, leaf.names)
            self._left.update((row[PATH][len(self._prefix) :], row) for row in found)

    def _take_seen(self, leaves: Iterable[LeafRow], sight: Sight) -> bool:
        """Take the names from a sight; False where it has them not."""
        names = sight.listed
        for leaf in leaves:
            first = bisect_left(names, leaf.first)
            some = names[first : first + leaf.names]
            if len(some) != leaf.names or some[0] != leaf.first:
                self._left.clear()
                return False
            self._left.update(zip(some, range(first, first + leaf.names), strict=True))
        self._columns = [
            struct.unpack(f"<{len(names)}{CODES[column]}", sight.columns[column])
            for column in _TOLD
        ]
        if not sight.folders:
            self._first_row = sight.row + 1
        return True

    def differing(
        self, leaf: Leaf, columns: list[tuple[int, ...]]
    ) -> Iterator[tuple[int, Row | None]]:
        """Positions in a leaf of what may be other than it was, and its row; None for new names.

        ``columns`` are the leaf's.
        """
        was = [self._left.pop(name, None) for name in leaf.names]
        for position in self._candidates(leaf, columns, was):
            one = was[position]
            if isinstance(one, int):
                yield position, self._row(leaf.names[position], one)
            else:
                yield position, one

    def _candidates(
        self, leaf: Leaf, columns: list[tuple[int, ...]], was: list[int | Row | None]
    ) -> Iterable[int]:
        """Positions of names of which the columns do not say that they are the same."""
        first, count = was[0], len(was)
        if (
            not self._columns
            or not isinstance(first, int)
            or was != list(range(first, first + count))
        ):
            return range(count)  # nothing is known of them, or a name has come or gone
        found = set(leaf.targets)
        if max(columns[0]) >= stat.S_IFLNK:  # of symlinks the columns say too little
            found.update(at for at, mode in enumerate(columns[0]) if stat.S_ISLNK(mode))
        for then, now in zip(self._columns, columns, strict=True):
            then = then[first : first + count]
            if then != now:
                found.update(at for at in range(count) if then[at] != now[at])
        return sorted(found)

    def left(self) -> Iterator[Row]:
        """The rows of those that no leaf has."""
        for name, one in self._left.items():
            row = self._row(name, one) if isinstance(one, int) else one
            if row is not None:
                yield row

    def _row(self, name: bytes, position: int) -> Row | None:
        path = self._prefix + name
        if self._first_row is None:
            return self._rows.entry(path)
        return self._rows.near(self._first_row + position, path)
