"""The index's id: BLAKE3 over the digests of its stretches, its leaves.

    rows, in canonical order > stretches (source.stretch) > columns > leaves > id
    a scan: its stretches, in columns as they come       > leaves > id

What tells one tree from another is in: kind, path, size, mode, times, owners, targets, links,
hashes, extended attributes; and what was seen but not taken up, since a tree that was read in
part is not the tree that was read whole. What depends on where the tree lies (inode, ctime, holes,
ETags) is not. Nor does a leaf depend on what is elsewhere: of a hard link it names the first path.

The leaves are in order of their ends: a leaf comes when all below its directories has come.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from operator import add, itemgetter
from typing import Any

from blake3 import blake3

from tar_like.index.leaf import Leaf
from tar_like.layout import DIRECTORY, HARDLINK
from tar_like.source.stretch import STRETCH, TYPES, pack_told

NO_HASH = "none"
"""The algorithm of an index whose files were not read."""
_TYPES = {**TYPES, HARDLINK: 0}
_XATTR = struct.Struct("<III")
_SKIPPED = struct.Struct("<II")

TakeLeaf = Callable[[bytes, bytes, int, bytes], None]
"""Given a leaf: the directory, the first name in it, how many there are, the digest."""


def _no_path(_: int) -> bytes:
    raise AssertionError("Leaves have no rows.")


class Identity:
    """Collects what an index says: rows in canonical order, or leaves; and, in their order each,
    extended attributes and skipped names."""

    def __init__(
        self,
        algorithm: str,
        path_of: Callable[[int], bytes] = _no_path,
        leaf: TakeLeaf | None = None,
    ) -> None:
        """``path_of`` gives the path of an entry that was added, for rows of hard links."""
        self._algorithm = algorithm
        self._path_of = path_of
        self._leaf = leaf
        self._leaves, self._xattrs, self._skipped = blake3(), blake3(), blake3()
        self._open: list[tuple[bytes, list[tuple[Any, ...]]]] = []
        """Directories that are not at their end, and the rows of the stretch at hand in each."""

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Take up the next entries, or their rows, which must be in canonical order.

        Raises struct.error for too large numbers.
        """
        rows = list(rows)
        if rows and not self._open:
            self._close(b"", rows[:1])
            self._open.append((b"", []))
            del rows[0]
        kinds = "".join(map(itemgetter(2), rows))
        start = 0
        while start < len(rows):
            stop = kinds.find(DIRECTORY, start + 1)
            run = rows[start : stop if stop > 0 else None]
            start += len(run)
            if kinds[start - len(run)] == DIRECTORY:
                self._extend(_parent(run[0]), run[:1])
                del run[0]
            if run and _parent(run[0]) == _parent(run[-1]):
                self._extend(_parent(run[0]), run)
            else:
                for row in run:
                    self._extend(_parent(row), [row])

    def _extend(self, directory: bytes, rows: list[tuple[Any, ...]]) -> None:
        """The next rows, all of one directory."""
        if self._open[-1][0] != directory:
            self._turn(directory)
        _, stretch = self._open[-1]
        while len(stretch) + len(rows) > STRETCH:
            room = STRETCH - len(stretch)
            self._close(directory, stretch + rows[:room])
            stretch.clear()
            rows = rows[room:]
        stretch += rows

    def _turn(self, directory: bytes) -> None:
        """Go on in another directory: one just passed, or one further up."""
        stretch = self._open[-1][1]
        if stretch and stretch[-1][1] == directory:
            self._open.append((directory, []))
            return
        while self._open[-1][0] != directory:
            self._end()

    def _end(self) -> None:
        directory, stretch = self._open.pop()
        if stretch:
            self._close(directory, stretch)

    def _close(self, directory: bytes, rows: list[tuple[Any, ...]]) -> None:
        _, paths, kinds, sizes, _, modes, mtimes, uids, gids, targets, links, hashes, *_ = zip(
            *rows, strict=True
        )
        cut = len(directory) + 1 if directory else 0
        names = [path[cut:] for path in paths]
        told = pack_told(map(add, map(_TYPES.__getitem__, kinds), modes), sizes, mtimes, uids, gids)
        firsts = {}
        if max(links) >= 0:
            firsts = {at: self._path_of(link) for at, link in enumerate(links) if link >= 0}
        leaf = Leaf(directory, names, told, _few(targets), firsts, _few(hashes))
        self.add_leaf(directory, names[0], len(names), leaf.digest())

    def add_leaf(self, directory: bytes, first: bytes, names: int, digest: bytes) -> None:
        """Take up the next leaf, where there are no rows."""
        self._leaves.update(digest)
        if self._leaf is not None:
            self._leaf(directory, first, names, digest)

    def add_digests(self, digests: list[bytes]) -> None:
        """The same of several, where nobody wants to know which leaves they are of."""
        self._leaves.update(b"".join(digests))

    def add_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        """Take up an extended attribute, in order of entries and names."""
        self._xattrs.update(_XATTR.pack(len(path), len(name), len(value)) + path + name + value)

    def add_skipped(self, path: bytes, kind: str) -> None:
        """Take up a name that is not in the tree."""
        name = kind.encode()
        self._skipped.update(_SKIPPED.pack(len(path), len(name)) + path + name)

    def id(self) -> str:
        """The id: 64 hexadecimal digits. There are no more rows then."""
        while self._open:
            self._end()
        hasher = blake3(b"tar-like index 3\0" + self._algorithm.encode() + b"\0")
        for part in (self._leaves, self._xattrs, self._skipped):
            hasher.update(part.digest())
        return hasher.hexdigest()


def _parent(row: tuple[Any, ...]) -> bytes:
    parent: bytes = row[1].rpartition(b"/")[0]
    return parent


def _few(values: tuple[bytes, ...]) -> dict[int, bytes]:
    return {at: value for at, value in enumerate(values) if value} if any(values) else {}
