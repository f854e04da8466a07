"""Delete what the source no longer has.

    names of the destination and of the index, both in canonical order, in step
    > those that the index lacks, less what is spared > a list on disk
    > removed last first: a directory comes after what was in it

Spared are: what the scan left out or could not read, and all below; the receiver's own folder.
Nothing is followed: every name goes by its directory's fd. Everything can be done again after a
crash: what is gone is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from tar_like.database import temporary
from tar_like.dirfd import Walker, mount_of
from tar_like.errors import cause, counted, shown
from tar_like.index import Index
from tar_like.layout import DIRECTORY, sort_key
from tar_like.proxy.backup import Backup
from tar_like.rules import Rules
from tar_like.source.filters import make_filter
from tar_like.source.folder import RESERVED, list_by_path
from tar_like.wire import Failure

_CLOSED = (errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR)
IN_THE_WAY = (
    "cannot be put in place: a directory has its name, and something in it may not be deleted"
)
_OTHER_FILESYSTEM = "is where another filesystem is mounted: it is not deleted"


T = TypeVar("T")


class Extra(NamedTuple):
    """A name in the destination that the index lacks."""

    path: bytes
    is_directory: bool


class Spare:
    """What must not be deleted although the index lacks it, and all below."""

    def __init__(self, index: Index, rules: Rules, names: Iterable[str] = ()) -> None:
        """``names`` in the root are spared, too. Raises UsageError for filters that are none."""
        self._names = {RESERVED, *map(os.fsencode, names)}
        self._keep = make_filter(rules.regexes, rules.patterns)
        self._backup = os.fsencode(rules.backup_dir)
        self._seen = temporary()
        self._seen.execute("CREATE TABLE seen (path BLOB PRIMARY KEY) WITHOUT ROWID")
        self._seen.executemany(
            "INSERT OR IGNORE INTO seen VALUES (?)", ((row.path,) for row in index.skipped())
        )
        self._any_seen = self._seen.execute("SELECT count(*) FROM seen").fetchone()[0] > 0

    def __call__(self, path: bytes, is_directory: bool) -> bool:
        return (
            path in self._names
            or path == self._backup
            or self.unread(path)
            or (self._keep is not None and not self._keep(path, is_directory))
        )

    def unread(self, path: bytes) -> bool:
        """Whether the source has this name, but could not read it, or it is a special file."""
        query = "SELECT 1 FROM seen WHERE path = ?"
        return self._any_seen and self._seen.execute(query, (path,)).fetchone() is not None


class Extras:
    """The names below ``root`` that an index lacks and that are not spared, in canonical order."""

    def __init__(self, root: str, index: Index, spare: Spare, *, may_change: bool) -> None:
        """With ``may_change``, directories that are closed to their owner are opened."""
        self._walker = Walker(root)
        self._rows = index.names()
        self._row: tuple[bytes, str] | None = next(self._rows, None)
        self._spare = spare
        self._may_change = may_change
        self.failures: list[Failure] = []
        """What could not be looked at, or must not be deleted."""
        self.spared = 0

    def __iter__(self) -> Iterator[Extra]:
        with self._walker:
            yield from self._walk(b"", known=True)

    def below(self, directory: bytes) -> Iterator[Extra]:
        """Everything below a directory that the index does not have as one."""
        with self._walker:
            yield from self._walk(directory, known=False)

    def _walk(self, top: bytes, *, known: bool) -> Iterator[Extra]:
        stack = [(top, self._list(top), known)]
        while stack:
            directory, names, known = stack[-1]
            for name in names:
                path = directory + b"/" + name if directory else name
                kind = self._known(path) if known else None
                if kind is None:
                    extra = self._extra(path, directory, name)
                    if extra is None:
                        continue
                    yield extra
                    descend = extra.is_directory
                else:
                    descend = kind == DIRECTORY and not self._spare.unread(path)
                if descend:
                    stack.append((path, self._list(path), kind is not None))
                    break
            else:
                stack.pop()

    def _known(self, path: bytes) -> str | None:
        """The kind of the index's entry of this path, which is asked for once, in order."""
        row = self._row
        if row is not None and row[0] != path:
            key = sort_key(path)
            while row is not None and sort_key(row[0]) < key:
                row = next(self._rows, None)
            self._row = row
        if row is None or row[0] != path:
            return None
        self._row = next(self._rows, None)  # mostly the one that is asked for next
        return row[1]

    def _extra(self, path: bytes, directory: bytes, name: bytes) -> Extra | None:
        try:
            st = self._state(directory, name)
            is_directory = stat.S_ISDIR(st.st_mode)
            if self._spare(path, is_directory):
                self.spared += 1
                return None
            if is_directory and mount_of(self._walker.dirfd(path)) != mount_of(
                self._walker.dirfd(directory)
            ):
                self.failures.append(Failure(shown(path), _OTHER_FILESYSTEM, source=False))
                return None
        except OSError as error:
            self._fail(path, error)
            return None
        return Extra(path, is_directory)

    def _state(self, directory: bytes, name: bytes) -> os.stat_result:
        """What lies there, also where a directory may be listed and not be gone through."""
        fd = self._walker.dirfd(directory)
        return self._opened(fd, lambda: os.stat(name, dir_fd=fd, follow_symlinks=False))

    def _list(self, directory: bytes) -> Iterator[bytes]:
        try:
            fd = self._walker.dirfd(directory)
            return iter(self._opened(fd, lambda: list_by_path(fd)))
        except OSError as error:
            self._fail(directory, error)
            return iter(())

    def _opened(self, fd: int, look: Callable[[], T]) -> T:
        """Look into a directory, opened to its owner where it is closed. Raises OSError."""
        try:
            return look()
        except PermissionError:
            if not (self._may_change and open_up(fd)):
                raise
            return look()

    def _fail(self, path: bytes, error: OSError) -> None:
        if error.errno not in _GONE:
            text = f"cannot be looked at: {cause(error)}"
            self.failures.append(Failure(shown(path), text, source=False))


def in_the_way(root: str, index: Index, spare: Spare, walker: Walker) -> Iterator[Extra | Failure]:
    """What is below directories that have to give way to something else, or why they do not."""
    for path, kind in index.names():
        if kind == DIRECTORY:
            continue
        try:
            parent, name = walker.split(path)
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                continue
        except OSError:
            continue
        extras = Extras(root, index, spare, may_change=False)
        with contextlib.closing(_List(extras.below(path))) as listed:
            if extras.spared or extras.failures:
                yield Failure(shown(path), IN_THE_WAY, source=False)
            else:
                yield from listed.backwards()


def reason_to_hold(index: Index, rules: Rules) -> str:
    """Why nothing may be deleted, as far as the source is the reason; else empty."""
    unread = index.skipped_count("unreadable")
    if not unread or rules.ignore_errors:
        return ""
    return f"{counted(unread, 'name')} of the source could not be read"


class Deletion:
    """Removes names below a root. Raises nothing: what cannot be removed is in ``failures``."""

    def __init__(self, root: str, index: Index, rules: Rules, spared: Iterable[str] = ()) -> None:
        self._root = root
        self._index = index
        self._spare = Spare(index, rules, spared)
        self._backup = Backup(root, os.fsencode(rules.backup_dir)) if rules.backup_dir else None
        self.failures: list[Failure] = []
        self.deleted = 0

    def extras(self) -> None:
        """Remove what the index lacks, which must be that of a whole tree."""
        if self._index.is_patch:
            raise ValueError("What a patch does not list is to stay.")
        extras = Extras(self._root, self._index, self._spare, may_change=True)
        self.remove(iter(extras))
        self.failures += extras.failures

    def clear(self, directory: bytes) -> bool:
        """Empty a directory that is in the way of a file, unless something in it is spared."""
        extras = Extras(self._root, self._index, self._spare, may_change=True)
        with contextlib.closing(_List(extras.below(directory))) as listed:
            if extras.spared or extras.failures:
                return False
            self._remove_listed(listed)
        return not self.failures

    def remove(self, extras: Iterator[Extra]) -> None:
        """Remove these, which are in canonical order, as far as they are there."""
        with contextlib.closing(_List(extras)) as listed:
            self._remove_listed(listed)

    def _remove_listed(self, listed: _List) -> None:
        with Walker(self._root) as walker:
            for extra in listed.backwards():
                try:
                    self.deleted += self._remove_one(walker, extra)
                except OSError as error:
                    if _is_there(walker, extra.path):
                        text = f"cannot be deleted: {cause(error)}"
                        self.failures.append(Failure(shown(extra.path), text, source=False))

    def _remove_one(self, walker: Walker, extra: Extra) -> bool:
        try:
            self._take_away(walker, extra)
        except OSError as error:
            if extra.is_directory and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False  # something in it is spared, or has been named
            parent, _ = walker.split(extra.path)
            if error.errno not in _CLOSED or not open_up(parent):
                raise
            self._take_away(walker, extra)
        return True

    def _take_away(self, walker: Walker, extra: Extra) -> None:
        parent, name = walker.split(extra.path)
        if extra.is_directory:
            if self._backup is not None:
                self._backup.make(extra.path)
            os.rmdir(name, dir_fd=parent)
        elif self._backup is not None:
            self._backup.move(extra.path)
        else:
            os.unlink(name, dir_fd=parent)

    def close(self) -> None:
        """Close what it has open."""
        if self._backup is not None:
            self._backup.close()


def _is_there(walker: Walker, path: bytes) -> bool:
    """Whether nobody else has removed a name meanwhile."""
    try:
        parent, name = walker.split(path)
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        return error.errno not in _GONE
    return True


class _List:
    """Names on disk, to be read backwards."""

    def __init__(self, extras: Iterator[Extra]) -> None:
        self._db = temporary()
        self._db.execute("CREATE TABLE extra (id INTEGER PRIMARY KEY, path BLOB, dir INTEGER)")
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO extra (path, dir) VALUES (?, ?)", extras)

    def backwards(self) -> Iterator[Extra]:
        rows = self._db.execute("SELECT path, dir FROM extra ORDER BY id DESC")
        return (Extra(path, bool(is_directory)) for path, is_directory in rows)

    def close(self) -> None:
        self._db.close()


def open_up(fd: int) -> bool:
    """Let the owner of a directory change it; whether that made a difference."""
    mode = stat.S_IMODE(os.stat(fd).st_mode)
    if mode & 0o700 == 0o700:
        return False
    os.chmod(f"/proc/self/fd/{fd}", mode | 0o700)
    return True
