"""A scan that is known by its id before an index of it is written.

    scan > id | names into a temporary file > the same names again, for build_index

When the other side has that index already, none is needed here.
"""

from __future__ import annotations

import itertools
import marshal
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from tar_like.index.build import NO_HASH, BuildSummary
from tar_like.index.identity import Identity
from tar_like.index.inodes import Inodes
from tar_like.layout import FILE, HARDLINK, Piece
from tar_like.source import Found, Reading, Skipped, Source, Wanted

CHUNK = 1000
IN_MEMORY = 64 << 20
"""Bytes of names that are kept in memory; more go to a file."""


class Recorded:
    """A source that was scanned; the scan can be had again (source.contract.Source)."""

    def __init__(self, source: Source, wanted: Wanted) -> None:
        """Scan it. Extended attributes are not recorded."""
        self._source = source
        self._names = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 closed by close
        self._inodes = Inodes()
        self.summary = BuildSummary()
        """What was found, with the id of the index without hashes."""
        identity = Identity(NO_HASH)
        skipped: list[Skipped] = []
        scan = source.scan(wanted)
        while chunk := list(itertools.islice(scan, CHUNK)):
            marshal.dump(list(map(tuple, chunk)), self._names)
            identity.add(list(self._rows(chunk, skipped)))
        for one in skipped:
            identity.add_skipped(one.path, one.kind)
        self.summary.id = identity.id()
        self._inodes.close()

    def _rows(self, chunk: list[Any], skipped: list[Skipped]) -> Iterator[Any]:
        """The rows of the index, as far as the id covers them."""
        summary = self.summary
        for found in chunk:
            if isinstance(found, Skipped):
                skipped.append(found)
                summary.special += found.kind == "special"
                summary.unreadable += found.kind != "special"
                continue
            path, kind, size, mode, mtime, uid, gid, target, _, ino, dev, links = found[:12]
            link = -1
            if links > 1:
                first = self._inodes.first(dev, ino, summary.entries)
                if first != summary.entries:
                    kind, size, target, link = HARDLINK, 0, b"", first
            if kind == FILE:
                summary.files += 1
                summary.bytes += size
            summary.entries += 1
            yield 0, path, kind, size, 0, mode, mtime, uid, gid, target, link, b"", 0, 0, b""

    @property
    def url(self) -> str:
        return self._source.url

    def scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        self._names.seek(0)
        while True:
            try:
                chunk = marshal.load(self._names)
            except EOFError:
                return
            for fields in chunk:
                if len(fields) == len(Skipped._fields):
                    yield Skipped(*fields)
                else:
                    yield tuple.__new__(Found, fields)  # half the time of Found._make

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        return self._source.read(pieces, into)

    def close(self) -> None:
        """Give up the names; the source is closed by whoever opened it."""
        self._names.close()
