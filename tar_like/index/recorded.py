"""A scan that is known by its id before an index of it is written.

    beside: scan > stretches, packed, their leaves, the id
    later, if it is wanted: stretches > rows > index

When the other side has that index already, none is needed here, and no row is made. As soon as
times and leaves show that it has quite another one, the index is written beside the scan.
"""

from __future__ import annotations

import marshal
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from tar_like.index.identity import NO_HASH, Identity
from tar_like.index.inodes import Inodes
from tar_like.index.leaf import Leaf
from tar_like.index.spool import Spool
from tar_like.source import Begins, Found, Skipped, Wanted
from tar_like.source.ahead import Closed, chunks, loaded, open_stretch, packed
from tar_like.source.stretch import AGES_AGO, FoundInOrder, InOrder, Stretch, newest_of

if TYPE_CHECKING:
    import sqlite3

    from tar_like.index.numbering import BuildSummary, Numbering

_HEAD = struct.Struct("<qI")
"""Before each chunk of stretches: the last mtime so far, and the bytes before its leaves begin."""
_PLACED = struct.Struct("<qQ")
"""Where a chunk is in the spool, or -1, and its length."""
_MANY = 10
"""Bits of a stretch's place that number it within its chunk; the chunk's number is above them."""
LEAF, LEAF_NAME = 32, 8
"""Bytes of a leaf's digest, and of its start by which it is known from others."""

Chunk = bytes | memoryview
Firsts = dict[int, bytes]
"""By position in a stretch: the first path of what is a hard link to it."""


class Other(Protocol):
    """The index that the other side has."""

    @property
    def newest(self) -> int | None:
        """The last mtime (ns) in it; None where that is not known."""

    @property
    def base(self) -> bytes:
        """Its leaves by the starts of their digests, LEAF_NAME bytes each; none where that is not
        known. Asked for when a name is newer."""

    @property
    def most(self) -> int | None:
        """Where more leaves than so many are foreign, the index is wanted for certain; None where
        it is as soon as a name is newer."""


class Recorded:
    """A tree's stretches, and the index of them without hashes, which is not yet written."""

    def __init__(self, source: Begins, wanted: Wanted) -> None:
        """Begin to scan it. Extended attributes are not recorded. Raises SourceUnusable."""
        self._url = source.url
        self._wanted = wanted
        self._spool = Spool()
        self._packed = source.scan_as(wanted, partial(_pack, self._spool))
        self._path = ""
        self._chunks: array[int] = array("Q")
        """Of each chunk, where in the spool it is, and its length: one after the other."""
        self._places: array[int] = array("Q")
        """The place of each leaf's stretch. With its digest, 40 bytes of memory a stretch."""
        self._linked: dict[int, int] = {}
        """Leaves with hard links, and the chunks that their first paths came with."""
        self._names: set[bytes] | None = None
        self._compared = 0
        self.foreign: list[int] = []
        """The numbers of leaves that the other side lacks, until the index is begun."""
        self._db: sqlite3.Connection | None = None
        self._numbering: Numbering | None = None
        self._order = FoundInOrder()
        self._last: tuple[int, list[Closed]] = (-1, [])
        self.leaves = bytearray()
        """The digests of the leaves, 32 bytes each, in the order of the id; those that are done.

        They are not kept where the other side has no index.
        """
        self.summary: BuildSummary
        """What was found, with the id of the index without hashes; once it is finished."""

    def finish(
        self, path: str, other: Other | None, meanwhile: Callable[[], None] = lambda: None
    ) -> BuildSummary:
        """Wait until it is scanned. Raises TarLikeError.

        ``path`` is where the index goes, should it be wanted; it is begun as soon as it is known to
        be, at once where the other side has none. ``meanwhile`` is called whenever there is more.
        """
        from tar_like.index.numbering import BuildSummary

        self._path = path
        last = b""
        for data in self._packed:
            if last:
                self._take(last, other)
                meanwhile()
            last = data
        self.summary = BuildSummary(**marshal.loads(last))
        return self.summary

    def _take(self, message: bytes, other: Other | None) -> None:
        place, length = _PLACED.unpack_from(message)
        said = memoryview(message)[_PLACED.size :]
        if other is None:
            chunk = self._spool.read(place, length) if place >= 0 else said
            self._insert(self._db or self._begin(), chunk)
            return
        self._keep(self._spool.add(said) if place < 0 else place, length, said)
        if self._db is not None:
            self._insert(self._db, self._kept(-1))
            return
        newest, _ = _HEAD.unpack_from(said)
        if other.newest is not None and newest > other.newest and self._is_another(other):
            self._begin()

    def _is_another(self, other: Other) -> bool:
        """Whether it is certain that this is not the other tree, nor one much like it."""
        most = other.most
        if most is None:
            return True
        if self._names is None:
            base = other.base
            self._names = {base[at : at + LEAF_NAME] for at in range(0, len(base), LEAF_NAME)}
        self._compare(self._names)
        return not self._names or len(self.foreign) > most

    def _compare(self, names: set[bytes]) -> None:
        """See which of the leaves that are done the other side lacks."""
        done, leaves = len(self.leaves) // LEAF, self.leaves
        for number in range(self._compared, done):
            at = LEAF * number
            if bytes(leaves[at : at + LEAF_NAME]) not in names:
                self.foreign.append(number)
        self._compared = done

    def _keep(self, place: int, length: int, said: Chunk) -> None:
        digests, places, linked = _done(said)
        for number in linked:
            self._linked[number] = len(self._chunks) // 2
        self.leaves += digests
        self._places.extend(places)
        self._chunks.extend((place, length))

    def _kept(self, chunk: int) -> Chunk:
        """A chunk by its number; of -1, the last one."""
        place, length = self._chunks[2 * chunk : 2 * chunk + 2 or None]
        return self._spool.read(place, length)

    @property
    def url(self) -> str:
        """What was scanned."""
        return self._url

    @property
    def regular(self) -> bool:
        """Whether the tree has no hard links, and nothing was left out; once it is finished."""
        left_out = self.summary.special or self.summary.unreadable
        return not (self._linked or left_out or self._wanted != Wanted())

    def stretch(self, leaf: int) -> tuple[Stretch, Firsts]:
        """What a leaf (by its number) is the digest of."""
        chunk, place = divmod(self._places[leaf], 1 << _MANY)
        if self._last[0] != chunk:  # mostly they are asked for in order
            self._last = chunk, _loaded(self._kept(chunk))
        firsts: Firsts = {}
        if leaf in self._linked:
            firsts = _done(self._kept(self._linked[leaf]))[2][leaf]
        return open_stretch(self._last[1][place]), firsts

    def _begin(self) -> sqlite3.Connection:
        """Begin the index, with the stretches so far."""
        from tar_like.index import schema
        from tar_like.index.build import writing
        from tar_like.index.numbering import Numbering

        with writing(self._path):
            self._db = db = schema.create(self._path)
        self._numbering = Numbering()
        for chunk in range(len(self._chunks) // 2):
            self._insert(db, self._kept(chunk))
        return db

    def _insert(self, db: sqlite3.Connection, chunk: Chunk) -> None:
        self._write(db, self._order.push(map(open_stretch, _loaded(chunk))))

    def _write(self, db: sqlite3.Connection, names: Iterator[Found | Skipped]) -> None:
        """Write rows for the next names."""
        from tar_like.index import schema
        from tar_like.index.build import writing

        assert self._numbering is not None
        segments: list[tuple[int, int, int]] = []
        skipped: list[Skipped] = []

        def more(number: int, data: Iterable[tuple[int, int]], _: object) -> None:
            segments.extend((number, start, stop) for start, stop in data)

        rows = self._numbering.rows(names, skipped.append, more)
        with writing(self._path):
            db.executemany(schema.INSERT_ENTRY, rows)
            db.executemany("INSERT INTO segment VALUES (?, ?, ?)", segments)
            db.executemany(schema.INSERT_SKIPPED, skipped)

    def write(self) -> BuildSummary:
        """Have the index, once, in its new file; it is not synced. Raises TarLikeError."""
        from tar_like.index.build import describe, writing

        db = self._db or self._begin()
        assert self._numbering is not None
        self._write(db, self._order.end())
        length = self._numbering.length
        with writing(self._path):
            describe(db, self.summary, length, NO_HASH, self._url, self._wanted)
            db.execute("COMMIT")
        return self.summary

    def close(self) -> None:
        """Give up the stretches; the source is closed by whoever opened it."""
        self._packed = iter(())
        self._spool.close()
        if self._numbering is not None:
            self._numbering.close()
        if self._db is not None:
            self._db.close()


def _loaded(chunk: Chunk) -> list[Closed]:
    _, cut = _HEAD.unpack_from(chunk)
    return loaded(memoryview(chunk)[_HEAD.size : _HEAD.size + cut])


def _done(chunk: Chunk) -> tuple[bytes, list[int], dict[int, Firsts]]:
    """The leaves that were done by the end of a chunk."""
    _, cut = _HEAD.unpack_from(chunk)
    done: tuple[bytes, list[int], dict[int, Firsts]]
    done = marshal.loads(memoryview(chunk)[_HEAD.size + cut :])
    return done


def _pack(spool: Spool, scan: Iterator[Stretch]) -> Iterator[bytes]:
    """Chunks of stretches, with the leaves that are done; the last one says what they are together.

    A stretch is there before those below its directories, its leaf after those of them. What is
    given of a chunk that the spool has kept lacks the stretches.
    """
    leaves, newest = _Leaves(), AGES_AGO
    for number, stretches in enumerate(chunks(scan)):
        for place, stretch in enumerate(stretches, number << _MANY):
            leaves.push(stretch, place)
        newest = newest_of(stretches, newest)
        yield _chunk(spool, stretches, leaves, newest)
    leaves.end()
    yield _chunk(spool, [], leaves, newest)
    yield marshal.dumps(leaves.summary())


def _chunk(spool: Spool, stretches: list[Stretch], leaves: _Leaves, newest: int) -> bytes:
    data, done = packed(stretches), leaves.taken()
    chunk = b"".join((_HEAD.pack(newest, len(data)), data, done))
    place = spool.keep(chunk)
    said = chunk if place < 0 else _HEAD.pack(newest, 0) + done
    return _PLACED.pack(place, len(chunk)) + said


class _Open:
    """A stretch that is not at its end."""

    __slots__ = ("firsts", "inodes", "links", "passed", "place", "skipped", "stretch")

    def __init__(self, stretch: Stretch, place: int) -> None:
        self.stretch = stretch
        self.place = place
        self.passed = 0
        self.links = self.skipped = 0
        """How many of those it has were passed."""
        self.firsts: Firsts = {}
        self.inodes = stretch.inodes() if stretch.linked else ((), ())


class _Leaves:
    """The leaves of the stretches of a scan, and the id."""

    def __init__(self) -> None:
        self._entries = self._files = self._bytes = 0
        self._skipped = {"special": 0, "unreadable": 0}
        """By kind."""
        self._identity = Identity(NO_HASH)
        self._inodes: Inodes[bytes] = Inodes()
        self._place = 0
        self._order = InOrder(lambda stretch: _Open(stretch, self._place))
        self._count = 0
        self._digests: list[bytes] = []
        self._places: list[int] = []
        self._linked: dict[int, Firsts] = {}

    def push(self, stretch: Stretch, place: int) -> None:
        """The next stretch of the scan."""
        self._place = place
        for opened, count in self._order.push(stretch):
            self._pass(opened, count)

    def end(self) -> None:
        """There are no more."""
        for opened, _ in self._order.end():
            self._pass(opened, None)

    def taken(self) -> bytes:
        """The leaves since the last call: see ``_done``."""
        data = marshal.dumps((b"".join(self._digests), self._places, self._linked))
        self._digests, self._places, self._linked = [], [], {}
        return data

    def summary(self) -> dict[str, Any]:
        """What there was, at the end: fields of BuildSummary."""
        self._inodes.close()
        return {
            "id": self._identity.id(),
            "entries": self._entries,
            "added": self._entries,
            "files": self._files,
            "bytes": self._bytes,
            **self._skipped,
        }

    def _pass(self, opened: _Open, count: int | None) -> None:
        """Go past so many names of a stretch, or all."""
        stretch = opened.stretch
        stop = opened.passed + count if count is not None else len(stretch.names) + 1
        if stretch.linked:
            self._pass_links(opened, stop)
        if stretch.skipped:
            self._pass_skipped(opened, stop)
        opened.passed = stop
        if count is None and stretch.names:
            self._close(opened)

    def _pass_links(self, opened: _Open, stop: int) -> None:
        stretch, (devs, inos) = opened.stretch, opened.inodes
        prefix = stretch.directory + b"/" if stretch.directory else b""
        for position in islice(stretch.linked, opened.links, None):
            if position >= stop:
                return
            opened.links += 1
            path = prefix + stretch.names[position]
            first = self._inodes.first(devs[position], inos[position], path)
            if first != path:
                opened.firsts[position] = first

    def _pass_skipped(self, opened: _Open, stop: int) -> None:
        for position, fields in islice(opened.stretch.skipped, opened.skipped, None):
            if position >= stop:
                return
            opened.skipped += 1
            skipped = Skipped(*fields)
            self._skipped[skipped.kind] += 1
            self._identity.add_skipped(skipped.path, skipped.kind)

    def _close(self, opened: _Open) -> None:
        stretch, firsts = opened.stretch, opened.firsts
        told, targets = stretch.told, stretch.targets
        self._entries += len(stretch.names)
        self._files += stretch.files
        self._bytes += stretch.file_bytes
        if firsts:
            told, files, size = stretch.without(firsts)
            self._files -= files
            self._bytes -= size
            targets = {at: target for at, target in targets.items() if at not in firsts}
            self._linked[self._count] = firsts
        digest = Leaf(stretch.directory, stretch.names, told, targets, firsts, {}).digest()
        self._identity.add_leaf(stretch.directory, stretch.names[0], len(stretch.names), digest)
        self._digests.append(digest)
        self._places.append(opened.place)
        self._count += 1
