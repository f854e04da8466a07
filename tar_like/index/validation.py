"""Validate an index that somebody else made, in one pass, before anything is done with it.

    schema to the letter > SQLite's own integrity check > every row > its stretches > the id

Nothing is believed: canonical order implies unique paths and parents before children; offsets
are computed again. Raises IndexInvalid with the first rule that is broken.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tar_like import digest
from tar_like.database import Damaged, connect_readonly, damage
from tar_like.errors import IndexInvalid, shown
from tar_like.index.identity import Identity, TakeLeaf
from tar_like.index.reader import Index
from tar_like.layout import DIRECTORY, FILE, HARDLINK, PAGE, SYMLINK, Entry, place

CHUNK = 2000
MAX_SIZE = 1 << 62
MAX_NAME = 255
MAX_TARGET = 4096
MAX_XATTR = 65536
_KINDS = (FILE, DIRECTORY, SYMLINK, HARDLINK)
_UNLINKED = frozenset((FILE, DIRECTORY))
_ID_END = 1 << 32
_HASH_SIZES = {**digest.SIZES, "none": 0}
_TYPES = (int, bytes, str, int, int, int, int, int, int, bytes, int, bytes, int, int, bytes)
_FORMAT, _UTF8 = b"\0\0\0\4", b"\0\0\0\1"
"""In an SQLite file's header. Source: sqlite.org/fileformat2.html, 1.3."""
_BAD_NAMES = (b"", b".", b"..")
_SKIPPED = ("special", "unreadable")
RESERVED = b".tar_like"


def validate(path: str, index_id: str, leaf: TakeLeaf | None = None) -> None:
    """Check an index file against every rule, and that its id is ``index_id``.

    ``leaf`` is given the leaves, in order.
    """
    try:
        with Index(path, "What was offered") as index:
            _check_file(path)
            if index.is_patch:
                raise IndexInvalid("The index is that of a part of a tree only.")
            ids = {check_rows(index, leaf), index.id}
    except Damaged as error:
        raise IndexInvalid(f"The index is damaged ({damage(error)}).") from None
    if ids != {index_id}:
        raise IndexInvalid("The index does not have the id it is offered under.")


def _check_file(path: str) -> None:
    with open(path, "rb") as file:
        header = file.read(100)
        length = os.fstat(file.fileno()).st_size
    if (header[18:20], header[44:48], header[56:60]) != (b"\1\1", _FORMAT, _UTF8):
        raise IndexInvalid("The index is an SQLite file of another kind: WAL, or no UTF-8, say.")
    db = connect_readonly(path)
    try:
        pages, size = (
            db.execute(f"PRAGMA page_{what}").fetchone()[0] for what in ("count", "size")
        )
        if pages * size != length:
            raise IndexInvalid("The index is cut short, or has something behind it.")
        result = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    finally:
        db.close()
    if result != "ok":
        raise IndexInvalid(f"The index is damaged ({damage(result)}).")


def check_rows(index: Index, leaf: TakeLeaf | None = None) -> str:
    """Check every row; returns the id that they have. Raises IndexInvalid."""
    if index.algorithm not in _HASH_SIZES:
        raise IndexInvalid("The index names an unknown digest.")
    identity = Identity(index.algorithm, lambda entry_id: _first(index, entry_id), leaf)
    check_entries(index, identity.add)
    for path, name, value in _xattrs(index):
        identity.add_xattr(path, name, value)
    for path, kind, detail in index.skipped():
        if (type(path), type(kind), type(detail)) != (bytes, str, str) or kind not in _SKIPPED:
            raise IndexInvalid("A name that was skipped cannot be.")
        identity.add_skipped(path, kind)
    return identity.id()


def check_made(rows: Iterable[tuple[Any, ...]], algorithm: str) -> None:
    """Check rows of entries that are yet to be written. Raises IndexInvalid."""
    entries = map(Entry._make, rows)
    rules = _Rows(_HASH_SIZES[algorithm])
    while chunk := list(itertools.islice(entries, CHUNK)):
        rules.check(chunk)


def check_entries(index: Index, take: Callable[[list[Entry]], None] = lambda _: None) -> None:
    """Check its entries and their segments; each is taken. Raises IndexInvalid."""
    rows = _Rows(_HASH_SIZES[index.algorithm])
    entries = index.entries(-(1 << 63))
    while chunk := list(itertools.islice(entries, CHUNK)):
        rows.check(chunk)
        take(chunk)
    if rows.count == 0:
        raise IndexInvalid("The index has no root.")
    if str(rows.count) != str(index.entry_count):
        raise IndexInvalid("The index does not hold as many entries as it says.")
    check_segments(index)


def _named(path: bytes) -> str:
    """A path in an error: it may be of any length."""
    text = shown(path[:1000])
    return text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}"


def _check_root(path: bytes, kind: str) -> None:
    if path or kind != DIRECTORY:
        raise IndexInvalid("The index does not start with its root.")


def _check_values(count: int, entry: Entry) -> None:
    """The rules for the values of one entry."""
    if tuple(map(type, entry)) != _TYPES:
        raise IndexInvalid(f"Entry {count} has a value of a wrong type.")
    if entry.id != count:
        raise IndexInvalid(f"Entry {entry.id} is not numbered in order.")
    owners = 0 <= entry.uid < _ID_END and 0 <= entry.gid < _ID_END
    if not (0 <= entry.mode <= 0o7777 and owners):
        raise IndexInvalid(f"{_named(entry.path)} has a mode or an owner that cannot be.")


class _Rows:
    """The rules for entries, given one after the other."""

    def __init__(self, hash_size: int) -> None:
        self._hash_size = hash_size
        self._cursor = 0
        self._last_key = b""
        self._parents: list[bytes] = []
        self.count = 0

    def check(self, entries: list[Entry]) -> None:
        """The next entries. The hot path of an offer."""
        columns = list(zip(*entries, strict=True))
        if not self._may_be(columns):
            for count, entry in enumerate(entries, self.count):
                _check_values(count, entry)
        _, paths, kinds, sizes, offsets, *_, targets, links, hashes, _, _, _ = columns
        self._check_paths(paths, kinds)
        self._check_contents(paths, kinds, sizes, offsets, hashes)
        if any(targets) or set(links) != {-1} or not _UNLINKED.issuperset(kinds):
            linked = zip(paths, kinds, targets, links, strict=True)
            for count, (path, kind, target, link) in enumerate(linked, self.count):
                self._check_links(count, path, kind, target, link)
        self.count += len(entries)

    def _check_paths(self, paths: Sequence[bytes], kinds: Sequence[str]) -> None:
        parents, last, directory = self._parents, self._last_key, None
        for count, (path, kind) in enumerate(zip(paths, kinds, strict=True), self.count):
            parent, _, name = path.rpartition(b"/")
            key = path.replace(b"/", b"\0")  # layout.sort_key
            if (
                parent == directory
                and kind != DIRECTORY
                and key > last
                and name not in _BAD_NAMES
                and len(name) <= MAX_NAME
                and b"\0" not in path
                and path != RESERVED
            ):
                last = key  # one more in the directory of the one before: most are
                continue
            if count:
                self._last_key = last
                self._check_path(path)
                directory, last = parent, key
                if kind == DIRECTORY:
                    parents.append(path)
            else:
                _check_root(path, kind)
        self._last_key = last

    def _check_contents(
        self, paths: Sequence[bytes], kinds: Sequence[str], sizes: Sequence[int],
        offsets: Sequence[int], hashes: Sequence[bytes],
    ) -> None:  # fmt: skip
        cursor, lengths = self._cursor, (0, self._hash_size)
        for path, kind, size, offset, hash_ in zip(
            paths, kinds, sizes, offsets, hashes, strict=True
        ):
            if kind != FILE:
                if size or hash_ or kind not in _KINDS:
                    what = "is of no kind that has such a size or digest"
                    raise IndexInvalid(f"{_named(path)} {what}.")
            elif not 0 <= size < MAX_SIZE or len(hash_) not in lengths:
                raise IndexInvalid(f"{_named(path)} has a size or a digest that cannot be.")
            elif size:
                if offset != place(cursor, size) or offset + size >= MAX_SIZE:
                    raise IndexInvalid(f"{_named(path)} is not at its place in the archive.")
                cursor = offset + size
        self._cursor = cursor

    def _may_be(self, columns: list[tuple[Any, ...]]) -> bool:
        """Whether no entry breaks a rule of ``_check_values``."""
        if any(
            set(map(type, column)) != {kind} for column, kind in zip(columns, _TYPES, strict=True)
        ):
            return False
        ids, modes, uids, gids = columns[0], columns[5], columns[7], columns[8]
        return (
            ids == tuple(range(self.count, self.count + len(ids)))
            and 0 <= min(modes) <= max(modes) <= 0o7777
            and 0 <= min(uids) <= max(uids) < _ID_END
            and 0 <= min(gids) <= max(gids) < _ID_END
        )

    @staticmethod
    def _check_links(entry_id: int, path: bytes, kind: str, target: bytes, link: int) -> None:
        if kind != SYMLINK:
            fits = not target
        else:
            fits = 0 < len(target) < MAX_TARGET and b"\0" not in target
        if not fits:
            raise IndexInvalid(f"{_named(path)} has a link text that cannot be.")
        if (kind == HARDLINK) != (0 < link < entry_id) or (kind != HARDLINK and link != -1):
            raise IndexInvalid(f"{_named(path)} is a hard link to no earlier entry.")

    def _check_path(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        bad = b"\0" in path or name in _BAD_NAMES or path == RESERVED
        if bad or len(name) > MAX_NAME or path.startswith(b"/"):
            raise IndexInvalid(f"{_named(path)!r} is a name that cannot be.")
        key = path.replace(b"/", b"\0")  # layout.sort_key
        if key <= self._last_key:
            raise IndexInvalid(f"{_named(path)} is twice in the index, or out of order.")
        self._last_key = key
        parents = self._parents
        while parents and parents[-1] != parent:
            parents.pop()
        if parent and not parents:
            raise IndexInvalid(f"{_named(path)} lies in no directory of the index.")


def _first(index: Index, entry_id: int) -> bytes:
    """The path of an entry that a hard link goes to."""
    entry = index.entry(entry_id)
    if entry.kind not in (FILE, SYMLINK):
        raise IndexInvalid(f"{_named(entry.path)} has a hard link, but is no file.")
    return entry.path


def check_segments(index: Index) -> None:
    """Check what is said of files with holes. Raises IndexInvalid."""
    size = last = -1
    entry_id: int | None = None
    for owner, start, stop in index.segments():
        if not all(type(number) is int for number in (owner, start, stop)):
            raise IndexInvalid("A data segment has a value of a wrong type.")
        if owner != entry_id:
            try:
                entry = index.entry(owner)
            except KeyError:
                raise IndexInvalid("A data segment belongs to no entry.") from None
            entry_id, size, last = owner, entry.size, -1
        hole = start == stop == 0  # the only row of a file that is one hole
        if start % PAGE or not (hole or last < start < stop <= size):
            raise IndexInvalid(f"The data segments of entry {owner} overlap or are out of range.")
        if stop % PAGE and stop != size:
            raise IndexInvalid(f"The data segments of entry {owner} do not end at a page.")
        last = size if hole else stop


def _xattrs(index: Index) -> Iterator[tuple[bytes, bytes, bytes]]:
    for entry_id, path, name, value in index.all_xattrs():
        if (type(entry_id), type(name), type(value)) != (int, bytes, bytes):
            raise IndexInvalid("An extended attribute has a value of a wrong type.")
        fits = 0 < len(name) <= MAX_NAME and b"\0" not in name and len(value) <= MAX_XATTR
        if path is None or not fits or b"." not in name:
            raise IndexInvalid("An extended attribute cannot be.")
        yield path, name, value
