"""Build an index, or bring one up to date.

A new file is always written next to the old one and renamed over it; the old one only serves
as a memory of hashes, walked in step with the scan since both are in canonical order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tar_like import digest
from tar_like.codec import REASONS
from tar_like.errors import IndexInvalid, TarLikeError, cause
from tar_like.index import schema
from tar_like.index.identity import NO_HASH, Identity
from tar_like.index.numbering import BuildSummary, Numbering
from tar_like.index.reader import SEEN, Index
from tar_like.layout import FILE, HARDLINK, Entry, Piece, sort_key
from tar_like.source import Found, Skipped, Source, Wanted
from tar_like.source.hashing import Hashed, hash_files

CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build an index."""

    algorithm: str = digest.DEFAULT
    """A name of tar_like.digest, or ``none`` to leave the files unread."""
    fresh: bool = False
    """Do not reuse the hashes of the old index."""
    jobs: int = 1
    """Processes that hash."""
    wanted: Wanted = field(default_factory=Wanted)
    lasting: bool = True
    """Whether the index is synced before it gets its name: not, where it is of use to one run."""


def build_index(source: Source, path: str, options: BuildOptions) -> BuildSummary:
    """Write the index of a source to ``path``, by temporary file, sync (if lasting) and rename.

    Raises IndexInvalid when ``path`` holds something that is no index (it is left alone),
    SourceUnusable when the source's root cannot be read.
    """
    old = None if options.fresh and _is_replaceable(path) else _old_index(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    options = replace(options, wanted=_without(options.wanted, source, (path, temporary)))
    try:
        with writing(path):
            builder = _Builder(source, options, None if options.fresh else old)
            summary = builder.write(temporary)
            if summary is not None:
                _publish(temporary, path, sync=options.lasting)
            elif old is not None:
                summary = builder.unchanged(old)
    finally:
        if old is not None:
            old.close()
        if os.path.exists(temporary):
            os.unlink(temporary)
    assert summary is not None
    return summary


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Say what goes wrong with files in words. Raises TarLikeError."""
    try:
        yield
    except OSError as error:
        raise TarLikeError(f"The index {path} cannot be written: {cause(error)}.") from None
    except sqlite3.Error as error:
        raise TarLikeError(f"The index {path} cannot be written: {error}.") from None


def _is_replaceable(path: str) -> bool:
    """Whether the file is an index of whatever version, or there is none."""
    return not os.path.lexists(path) or schema.is_index(path)


def _without(wanted: Wanted, source: Source, paths: Iterable[str]) -> Wanted:
    """A scan that leaves out the index itself, where it lies in the tree that it describes."""
    base = os.path.join(os.path.realpath(source.url), "")
    own = {os.fsencode(os.path.realpath(path)[len(base) :]) for path in paths
           if os.path.realpath(path).startswith(base)}  # fmt: skip
    if "://" in source.url or not own:
        return wanted
    keep = wanted.keep
    return wanted._replace(
        keep=lambda path, is_dir: path not in own and (not keep or keep(path, is_dir))
    )


def _old_index(path: str) -> Index | None:
    if not os.path.lexists(path):
        return None
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return None
    try:
        return Index(path)
    except IndexInvalid as error:
        raise IndexInvalid(f"{error} It is left as it is; name another file with -db.") from None


def _publish(temporary: str, path: str, *, sync: bool) -> None:
    if sync:
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    os.replace(temporary, path)


class _Builder:
    """One scan on its way into one new index."""

    def __init__(self, source: Source, options: BuildOptions, old: Index | None) -> None:
        self._source = source
        self._options = options
        self._old = old
        self._memory = _Memory(old, options.algorithm) if old is not None else None
        self._numbering = Numbering()
        self._summary = self._numbering.summary

    def write(self, path: str) -> BuildSummary | None:
        """Write the index; None, and nothing of use written, when the old one still holds."""
        self._db = schema.create(path)
        try:
            scan = self._source.scan(self._options.wanted)
            identity = Identity(self._options.algorithm, self._path_of)
            if self._old is not None and self._memory is not None and self._may_compare(self._old):
                head = self._pass_unchanged(self._old, scan)
                if self._options.algorithm != NO_HASH:
                    self._summary.reused = self._summary.files
                if head is None and self._holds(self._old):
                    return None
                self._copy_unchanged(self._old, identity)
                scan = itertools.chain(() if head is None else (head,), scan)
                self._memory.forget(self._summary.entries)
            for chunk in _chunks(self._hashed(scan)):
                # SQLite binds plain tuples faster than their subclasses.
                self._db.executemany(schema.INSERT_ENTRY, map(tuple, chunk))
                identity.add(chunk)
            if self._memory:
                self._summary.gone = self._memory.finish()
            else:
                self._summary.added = self._summary.entries
            for _, *xattr in self._db.execute(schema.SELECT_XATTR):
                identity.add_xattr(*xattr)
            for path_, kind in self._db.execute("SELECT path, kind FROM skipped ORDER BY id"):
                identity.add_skipped(path_, kind)
            self._summary.id = identity.id()
            describe(
                self._db, self._summary, self._numbering.length, self._options.algorithm,
                self._source.url, self._options.wanted,
            )  # fmt: skip
            self._db.execute("COMMIT")
        finally:
            self._db.close()
            self._numbering.close()
        return self._summary

    def _path_of(self, entry_id: int) -> bytes:
        query = "SELECT path FROM entry WHERE id = ?"
        path: bytes = self._db.execute(query, (entry_id,)).fetchone()[0]
        return path

    def _may_compare(self, old: Index) -> bool:
        """Whether equal rows would mean an equal index."""
        wanted = self._options.wanted
        plain = not wanted.xattrs and not wanted.acls and not old.xattr_names
        return plain and old.algorithm == self._options.algorithm

    def _pass_unchanged(
        self, old: Index, scan: Iterator[Found | Skipped]
    ) -> Found | Skipped | None:
        """Go through the scan as long as it is what the old index says.

        Returns the first name that is not; None when all are.
        """
        summary = self._summary
        rows, inodes = old.fingerprints(), self._numbering.inodes
        hashed = self._options.algorithm != NO_HASH
        for found in scan:
            if isinstance(found, Skipped):
                self._skip(found)
                continue
            row = next(rows, _NO_ROW)
            links, size = found.links, found.size
            if row[:SEEN] != found[:SEEN]:
                first = links > 1 and inodes.known(found.dev, found.ino) == row[SEEN]
                if not (first and _same_link(row, found)):
                    return found
            elif found.kind == FILE:
                if hashed and not row[SEEN + 2]:
                    return found
                summary.files += 1
                if size:
                    summary.bytes += size
                    self._numbering.length = row[SEEN + 1] + size
            if links > 1:
                inodes.first(found.dev, found.ino, summary.entries)
            summary.entries += 1
        return None

    def unchanged(self, old: Index) -> BuildSummary:
        """The summary when nothing was written."""
        self._summary.id = old.id
        return self._summary

    def _holds(self, old: Index) -> bool:
        """Whether the old index has no more entries than were seen, and skipped the same."""
        if self._summary.entries != old.entry_count:
            return False
        skipped = self._db.execute("SELECT path, kind, detail FROM skipped ORDER BY id")
        return skipped.fetchall() == [tuple(row) for row in old.skipped()]

    def _copy_unchanged(self, old: Index, identity: Identity) -> None:
        """Take over the rows of the old index that the scan has confirmed."""
        count = self._summary.entries
        for chunk in _chunks(old.entries(0, count)):
            self._db.executemany(schema.INSERT_ENTRY, map(tuple, chunk))
            identity.add(chunk)
        segments = (row for row in old.segments() if row[0] < count)
        self._db.executemany("INSERT INTO segment VALUES (?, ?, ?)", segments)

    def _hashed(self, scan: Iterable[Found | Skipped]) -> Iterator[tuple[Any, ...]]:
        """The rows with their hashes: remembered, or computed in parallel."""
        if self._options.algorithm == NO_HASH:
            return self._rows(scan)
        pairs = hash_files(
            self._source, self._options.algorithm, self._numbered(scan), _to_hash,
            jobs=self._options.jobs,
        )  # fmt: skip
        return (
            entry if hashed is None else self._with_hash(entry, hashed) for entry, hashed in pairs
        )

    def _with_hash(self, entry: Entry, hashed: Hashed) -> Entry:
        self._summary.hashed += 1
        if not hashed.digest:
            self._skip(Skipped(entry.path, "unreadable", REASONS[hashed.reason]))
            return entry
        return entry._replace(hash=hashed.digest)

    def _numbered(self, scan: Iterable[Found | Skipped]) -> Iterator[Entry]:
        """The scan's names as entries: ids, offsets and hard links assigned."""
        new = tuple.__new__  # half the time of Entry(...), a million times
        for row in self._rows(scan):
            yield new(Entry, row)

    def _rows(self, scan: Iterable[Found | Skipped]) -> Iterator[tuple[Any, ...]]:
        recall = self._memory.recall if self._memory is not None else None
        return self._numbering.rows(scan, self._skip, self._more, recall)

    def _more(
        self,
        entry_id: int,
        segments: Iterable[tuple[int, int]],
        xattrs: Iterable[tuple[bytes, bytes]],
    ) -> None:
        """What few entries have."""
        query = "INSERT INTO segment VALUES (?, ?, ?)"
        self._db.executemany(query, ((entry_id, start, stop) for start, stop in segments))
        query = "INSERT INTO xattr VALUES (?, ?, ?)"
        self._db.executemany(query, ((entry_id, name, value) for name, value in xattrs))

    def _skip(self, skipped: Skipped) -> None:
        self._summary.count_skipped(skipped)
        self._db.execute(schema.INSERT_SKIPPED, skipped)


def describe(
    db: sqlite3.Connection, summary: BuildSummary, length: int, algorithm: str, url: str,
    wanted: Wanted,
) -> None:  # fmt: skip
    """Write what an index says of itself."""
    kinds = [name for name in ("xattrs", "acls") if getattr(wanted, name)]
    meta = {
        "id": summary.id,
        "hash": algorithm,
        "source": url,
        "entries": str(summary.entries),
        "files": str(summary.files),
        "bytes": str(summary.bytes),
        "length": str(length),
        "xattrs": " ".join(kinds),
    }
    db.executemany("INSERT INTO meta VALUES (?, ?)", _printable(meta))


class _Memory:
    """The hashes of an old index, walked in step with a new scan."""

    def __init__(self, old: Index, algorithm: str) -> None:
        self._old = old
        self._usable = old.algorithm == algorithm != NO_HASH
        self._rows = old.entries()
        self._next: Entry | None = next(self._rows, None)
        self._gone = 0

    def forget(self, count: int) -> None:
        """Go on after the first ``count`` rows, which have been confirmed."""
        self._rows = self._old.entries(count)
        self._next = next(self._rows, None)

    def recall(self, found: Found, summary: BuildSummary) -> bytes:
        """The known hash of an unchanged file, else nothing. Counts new and changed entries."""
        row = self._next
        if row is None or row.path != found.path:
            row = self._seek(found.path)
            if row is None:
                summary.added += 1
                return b""
        self._next = next(self._rows, None)
        same = (
            row.size == found.size
            and row.mtime == found.mtime
            and row.ctime == found.ctime
            and row.ino == found.ino
            and row.kind == found.kind
        )
        if not same:
            summary.changed += 1
            return b""
        if found.kind != FILE or not self._usable or not row.hash:
            return b""
        summary.reused += 1
        return row.hash

    def _seek(self, path: bytes) -> Entry | None:
        key = sort_key(path)
        while self._next is not None and sort_key(self._next.path) < key:
            self._gone += self._next.kind != HARDLINK
            self._next = next(self._rows, None)
        if self._next is not None and self._next.path == path:
            return self._next
        return None

    def finish(self) -> int:
        """How many old entries were not found any more."""
        if self._next is not None:
            self._gone += self._next.kind != HARDLINK
            self._gone += sum(1 for row in self._rows if row.kind != HARDLINK)
        return self._gone


def _to_hash(entry: Entry) -> Piece | None:
    """The whole file as a piece, where its hash is not known yet."""
    if entry.kind != FILE or entry.hash:
        return None
    return Piece(entry.id, entry.path, 0, entry.size, entry.size, entry.mtime, entry.token)


_NO_ROW: tuple[Any, ...] = (*[None] * SEEN, -2, 0, False)
"""Stands for the row after an index's last one, with a link that nothing has."""


def _same_link(row: tuple[Any, ...], found: Found) -> bool:
    """Whether the row of a further name of a file is still right."""
    path, kind, _, mode, mtime, uid, gid, _, ctime, ino = row[:SEEN]
    return kind == HARDLINK and (path, mode, mtime, uid, gid, ctime, ino) == (
        found.path, found.mode, found.mtime, found.uid, found.gid, found.ctime, found.ino,
    )  # fmt: skip


def _printable(meta: dict[str, str]) -> list[tuple[str, str]]:
    """Text that SQLite takes: a base that is not UTF-8 is escaped."""
    return [
        (key, value.encode("utf-8", "backslashreplace").decode()) for key, value in meta.items()
    ]


def _chunks(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk
