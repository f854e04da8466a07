"""What differs between a folder and an index."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tar_like.codec import REASONS
from tar_like.dirfd import Walker
from tar_like.errors import UsageError, cause, shown
from tar_like.index import Index, Inodes
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry, Piece, sort_key
from tar_like.source import Found, Source, Wanted
from tar_like.source.folder import ACLS, portable, read_xattrs
from tar_like.source.hashing import Hashed, hash_files

_TYPES = {
    FILE: stat.S_IFREG,
    HARDLINK: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
}
_NAMES = {FILE: "file", HARDLINK: "file", DIRECTORY: "directory", SYMLINK: "symlink"}


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry that is not as the index says."""

    path: bytes
    kind: str
    """missing, extra, type, size, content, metadata or unreadable."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """What to compare."""

    jobs: int = 1
    extra: bool = False
    metadata: bool = False
    byte_range: tuple[int, int] | None = None
    """Only files that have bytes in this range of the virtual archive."""


@dataclass(slots=True)
class _Item:
    """An entry on its way through the check."""

    entry: Entry
    file: Piece | None = None
    differences: list[Difference] = field(default_factory=list)


def check(
    index: Index, source: Source, root: str, options: CheckOptions
) -> Iterator[Difference | Entry]:
    """Differences in the index's order, and each entry once it is checked.

    Raises UsageError for an index without hashes.
    """
    if index.algorithm == "none":
        raise UsageError("This index has no hashes to check by: make one with 'tar-like index'.")
    with Walker(root) as walker:
        comparer = _Comparer(index, walker, metadata=options.metadata)
        if options.byte_range:
            entries: Iterable[Entry] = index.in_range(*options.byte_range)
        else:
            entries = index.entries()
        pairs = hash_files(
            source, index.algorithm, map(comparer.look, entries), lambda item: item.file,
            jobs=options.jobs,
        )  # fmt: skip
        for item, hashed in pairs:
            yield from item.differences
            if hashed is not None:
                yield from comparer.compare_content(item, hashed)
            yield item.entry
    if options.extra:
        yield from extra_names(index, source)


def extra_names(index: Index, source: Source) -> Iterator[Difference]:
    """Names in the folder that the index does not list."""
    entries = index.entries()
    entry = next(entries, None)
    for found in source.scan(Wanted()):
        key = sort_key(found.path)
        while entry is not None and sort_key(entry.path) < key:
            entry = next(entries, None)
        if entry is None or entry.path != found.path:
            detail = "" if isinstance(found, Found) else found.detail
            yield Difference(found.path, "extra", detail)


def _visible(name: bytes) -> bool:
    key = os.fsdecode(name)
    return key in ACLS or portable(key)


class _Comparer:
    """Looks at entries where they should be."""

    def __init__(self, index: Index, walker: Walker, *, metadata: bool) -> None:
        self._index = index
        self._walker = walker
        self._metadata = metadata
        self._inodes: Inodes[int] = Inodes()

    def look(self, entry: Entry) -> _Item:
        """Compare all but the content; say what to hash."""
        item = _Item(entry)
        try:
            parent, name = self._walker.split(entry.path)
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(st.st_mode) else b""
        except (FileNotFoundError, NotADirectoryError):
            item.differences.append(Difference(entry.path, "missing", _NAMES[entry.kind]))
            return item
        except OSError as error:
            item.differences.append(Difference(entry.path, "unreadable", cause(error)))
            return item
        item.differences += self._compare(entry, st, target)
        content = self._index.entry(entry.link) if entry.kind == HARDLINK else entry
        expected = _TYPES[content.kind]
        if stat.S_IFMT(st.st_mode) != expected:
            return item
        if content.kind == FILE and st.st_size == content.size:
            item.file = Piece(entry.id, entry.path, 0, st.st_size, st.st_size, st.st_mtime_ns, b"")
        return item

    def _compare(self, entry: Entry, st: os.stat_result, target: bytes) -> Iterator[Difference]:
        content = self._index.entry(entry.link) if entry.kind == HARDLINK else entry
        if stat.S_IFMT(st.st_mode) != _TYPES[content.kind]:
            yield Difference(entry.path, "type", f"is no {_NAMES[content.kind]}")
            return
        if content.kind == FILE and st.st_size != content.size:
            yield Difference(entry.path, "size", f"{st.st_size} instead of {content.size} bytes")
        if content.kind == SYMLINK and target != content.target:
            yield Difference(entry.path, "content", "points elsewhere")
        if self._metadata:
            wrong = list(self._compare_metadata(entry, st))
            if wrong:
                yield Difference(entry.path, "metadata", ", ".join(wrong))

    def _compare_metadata(self, entry: Entry, st: os.stat_result) -> Iterator[str]:
        mode = stat.S_IMODE(st.st_mode)
        if mode != entry.mode and not stat.S_ISLNK(st.st_mode):
            yield f"mode {mode:04o} instead of {entry.mode:04o}"
        if st.st_mtime_ns != entry.mtime:
            yield f"mtime {st.st_mtime_ns} instead of {entry.mtime} ns"
        if (st.st_uid, st.st_gid) != (entry.uid, entry.gid):
            yield f"owner {st.st_uid}:{st.st_gid} instead of {entry.uid}:{entry.gid}"
        if entry.kind == HARDLINK and not self._is_linked(entry, st):
            yield "not a hard link to its first name"
        if entry.kind != HARDLINK and entry.kind != DIRECTORY and st.st_nlink > 1:
            first = self._inodes.first(st.st_dev, st.st_ino, entry.id)
            if first != entry.id:
                yield f"a hard link to {shown(self._index.entry(first).path)}"
        if self._index.xattr_names:
            yield from self._compare_xattrs(entry)

    def _compare_xattrs(self, entry: Entry) -> Iterator[str]:
        """Attributes that the index speaks of and this user may see: each that is not as it was."""
        content = entry.id if entry.kind != HARDLINK else entry.link
        names = self._index.xattr_names
        wanted = Wanted(xattrs="xattrs" in names, acls="acls" in names)
        mine = {name: value for name, value in self._index.xattrs(content) if _visible(name)}
        parent, name = self._walker.split(entry.path)
        try:
            found = dict(read_xattrs(name, parent, wanted))
        except OSError as error:
            yield f"its attributes cannot be read: {cause(error)}"
            return
        for key in sorted(mine.keys() | found.keys()):
            if mine.get(key) != found.get(key):
                yield f"attribute {shown(key)}"

    def _is_linked(self, entry: Entry, st: os.stat_result) -> bool:
        try:
            parent, name = self._walker.split(self._index.entry(entry.link).path)
            first = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return False
        return (first.st_dev, first.st_ino) == (st.st_dev, st.st_ino)

    def compare_content(self, item: _Item, hashed: Hashed) -> Iterator[Difference]:
        """The digest of what is there against the index."""
        entry = item.entry
        content = self._index.entry(entry.link) if entry.kind == HARDLINK else entry
        if not hashed.digest:
            yield Difference(entry.path, "unreadable", REASONS[hashed.reason])
        elif not content.hash:
            yield Difference(entry.path, "content", "the index has no hash of it to compare with")
        elif hashed.digest != content.hash:
            yield Difference(entry.path, "content", "other bytes")
