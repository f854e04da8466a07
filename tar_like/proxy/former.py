"""The names of one directory as they were, in leaves that a tree has no more.

    leaf of the tree > its names, off those that were > which of them may differ, and their rows

A sight of the directory tells most of it: a row of the ledger is looked up only where columns
differ. Where a leaf has just the names of one before, these are not even told apart.
"""

from __future__ import annotations

import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NewType

from tar_like.index.leaf import Leaf
from tar_like.lanes import differing
from tar_like.proxy.ledger import LeafRow
from tar_like.proxy.rows import ID, PATH, UNKNOWN, Row, Rows
from tar_like.proxy.sights import GID, MODE, MTIME, SIZE, UID, WIDTHS, Sight
from tar_like.source.stretch import TYPES, pack_told

_TOLD = (MODE, SIZE, MTIME, UID, GID)
"""The columns of a sight in the order of those of a leaf."""
_SYMLINK = stat.S_IFLNK >> 8
"""The upper byte of a mode is no less for a symlink, and is less for files and directories."""

Position = NewType("Position", int)
"""Of a name in a sight."""
Number = NewType("Number", int)
"""That a row is likely to have."""
Was = Row | Number | None
"""What a name was; None for a new one."""


def leaf_of(row: LeafRow, rows: Rows, sight: Sight | None) -> tuple[Leaf, Sequence[int]]:
    """A leaf of the ledger, and the numbers that its rows are likely to have.

    ``sight`` says of its names what the ledger says. Raises sqlite3.Error.
    """
    seen = _leaf_seen(row, sight) if sight is not None and row.directory else None
    if seen is not None:
        return seen
    cut = len(row.directory) + 1 if row.directory else 0
    found = list(rows.names(row.directory, row.first, row.names))
    names, targets, columns = list[bytes](), dict[int, bytes](), list[tuple[int, ...]]()
    for _, path, kind, size, mode, mtime, uid, gid, target in (one[: PATH + 8] for one in found):
        if target:
            targets[len(names)] = target
        names.append(path[cut:])
        columns.append((TYPES[kind] | mode, size, mtime, uid, gid))
    told = pack_told(*zip(*columns, strict=True)) if columns else b""
    return Leaf(row.directory, names, told, targets, {}, {}), [one[ID] for one in found]


def _leaf_seen(row: LeafRow, sight: Sight) -> tuple[Leaf, Sequence[int]] | None:
    """The same out of a sight; None where that has it not, or says too little."""
    place = _place_of(row, sight.listed)
    if place is None:
        return None
    first, stop = place
    names = sight.listed[first:stop]
    modes, sizes, mtimes, uids, gids = (
        sight.columns[one][WIDTHS[one] * first : WIDTHS[one] * stop] for one in _TOLD
    )
    if max(modes[1::4]) >= _SYMLINK:
        return None
    told = b"".join((modes, sizes, mtimes, uids, gids))
    numbers: Sequence[int] = range(sight.row + 1 + first, sight.row + 1 + stop)
    if sight.folders and sight.folders[0] < stop - 1:
        numbers = [_number_in(sight, position) for position in range(first, stop)]
    return Leaf(row.directory, names, told, {}, {}, {}), numbers


def _place_of(row: LeafRow, names: list[bytes]) -> tuple[int, int] | None:
    """Where a leaf's names begin and end among all that are in its directory; None if not there."""
    first = bisect_left(names, row.first)
    stop = first + row.names
    return (first, stop) if stop <= len(names) and names[first] == row.first else None


def _number_in(sight: Sight, position: int) -> Number:
    folders = sight.folders
    if folders and folders[0] < position:
        return Number(UNKNOWN)  # what is below that one lies between
    return Number(sight.row + 1 + position)


class Former:
    """Those of its names that no leaf has taken off yet. Everything raises sqlite3.Error."""

    def __init__(
        self, rows: Rows, directory: bytes, leaves: Iterable[LeafRow], sight: Sight | None
    ) -> None:
        """``leaves`` are the ledger's; ``sight`` says of their names what the ledger says."""
        self._prefix = directory + b"/" if directory else b""
        self._sight: Sight | None = None
        self._names: list[bytes] = []
        self._ranges: dict[bytes, tuple[int, int]] = {}
        """Positions in the sight of leaves that are left as a whole, by their first names."""
        self._left: dict[bytes, Row | Position] = {}
        """The others, by name: a row, or a position in the sight."""
        if sight is not None and directory and self._take_seen(leaves, sight):
            return
        for leaf in leaves:
            found = rows.names(directory, leaf.first, leaf.names)
            self._left.update((row[PATH][len(self._prefix) :], row) for row in found)

    def _take_seen(self, leaves: Iterable[LeafRow], sight: Sight) -> bool:
        """Take the names from a sight; False where it has them not."""
        self._names = names = sight.listed
        for leaf in leaves:
            place = _place_of(leaf, names)
            if place is None:
                self._ranges.clear()
                return False
            self._ranges[leaf.first] = place
        self._sight = sight
        return True

    def differing(self, leaf: Leaf) -> Iterator[tuple[int, Was]]:
        """Positions in a leaf of what may be other than it was, and what it was."""
        first, stop = self._ranges.get(leaf.names[0], (0, 0))
        if self._names[first:stop] == leaf.names:
            del self._ranges[leaf.names[0]]
            for position in self._unlike(leaf, first):
                yield position, self._number(Position(first + position))
            return
        for first, stop in self._ranges.values():
            positions = map(Position, range(first, stop))
            self._left.update(zip(self._names[first:stop], positions, strict=True))
        self._ranges.clear()
        for position, name in enumerate(leaf.names):
            was = self._left.pop(name, None)
            yield position, self._number(was) if isinstance(was, int) else was

    def _unlike(self, leaf: Leaf, first: int) -> Iterable[int]:
        """Positions of names, the same as from there on, that columns do not say to be the same.

        The hot path.
        """
        assert self._sight is not None
        told, count = leaf.told, len(leaf.names)
        found = set(leaf.targets)
        if max(told[1 : 4 * count : 4]) >= _SYMLINK:  # of symlinks the columns say too little
            found.update(at for at in range(count) if told[4 * at + 1] >= _SYMLINK)
        for column, start in zip(_TOLD, leaf.starts, strict=True):
            width = WIDTHS[column]
            now = told[start : start + width * count]
            then = self._sight.columns[column][width * first : width * (first + count)]
            if now != then:
                found.update(differing(now, then, 8 * width))
        return sorted(found)

    def left(self) -> Iterator[tuple[bytes, Row | Number]]:
        """The paths of those that no leaf has, and what they were."""
        for first, stop in self._ranges.values():
            for position in range(first, stop):
                yield self._prefix + self._names[position], self._number(Position(position))
        for name, was in self._left.items():
            yield self._prefix + name, self._number(was) if isinstance(was, int) else was

    def _number(self, position: Position) -> Number:
        assert self._sight is not None
        return _number_in(self._sight, position)
