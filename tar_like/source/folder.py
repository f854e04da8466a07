"""A folder as a source.

    scan: depth first, names sorted as bytes, each stat'ed through its directory's fd
    read: openat > preadv > fstat > close, the fstat last: what changed meanwhile is noticed

A part of a file is compared by ctime, too, so that parts of two versions never make up a file.

Not guaranteed: a file that changes while keeping its size and its mtime, and is read in one part
or wholly before or after that, is read as it is. Where
the index was made from a bucket (there are tokens) its times are the bucket's, so a file of the
right size is read as it is; the hashes in the index, if it has them, tell at the commit.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from tar_like.codec import CHANGED, UNREADABLE, VANISHED, Omission
from tar_like.dirfd import Walker
from tar_like.errors import SourceUnusable, UsageError, cause
from tar_like.layout import DIRECTORY, FILE, PAGE, SYMLINK, Piece, round_up
from tar_like.source.ahead import ahead
from tar_like.source.contract import Found, Reading, Skipped, Wanted
from tar_like.sparse import data_of

RUN = 100_000
"""Names of one directory that are sorted in memory; more are merged from sorted files."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
RESERVED = b".tar_like"
"""The receiver's own directory in a destination's root; never part of a tree."""


class FolderSource:
    """A tree below one folder (source.contract.Source)."""

    def __init__(self, base: str) -> None:
        self._base = os.path.abspath(base)
        self._recognized = False
        self._begun: tuple[Wanted, Iterator[Found | Skipped]] | None = None
        try:
            self._walker = Walker(self._base)
        except FileNotFoundError:
            raise UsageError(f"The folder {base} does not exist.") from None
        except NotADirectoryError:
            raise UsageError(f"{base} is not a folder.") from None
        except OSError as error:
            raise SourceUnusable(f"The folder {base} cannot be opened: {cause(error)}.") from None

    @property
    def url(self) -> str:
        return self._base

    def close(self) -> None:
        self._begun = None
        self._walker.close()

    def begin(self, wanted: Wanted) -> None:
        self._begun = wanted, ahead(self._scan(wanted))

    def scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        begun, self._begun = self._begun, None
        return begun[1] if begun and begun[0] == wanted else ahead(self._scan(wanted))

    def _scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        root = self._stat(b"", b"", b".", wanted)
        listing = self._list(b"", wanted)
        first = next(listing, None)
        for item in (root, first):
            if isinstance(item, Skipped) and not item.path:
                raise SourceUnusable(f"The folder {self._base} cannot be read: {item.detail}.")
        assert isinstance(root, Found)
        yield root
        stack = [_chain(first, listing)]
        while stack:
            for found in stack[-1]:
                yield found
                if found.kind == DIRECTORY:
                    stack.append(self._list(found.path, wanted))
                    break
            else:
                stack.pop()

    def recognize(self, seen: Iterable[tuple[bytes, int]]) -> bool:
        self._recognized = any(self._ctime(path) == ctime for path, ctime in seen)
        return self._recognized

    def _ctime(self, path: bytes) -> int | None:
        try:
            parent, name = self._walker.split(path)
            return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ctime_ns
        except OSError:
            return None

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        omissions: list[Omission] = []
        dirfd = self._walker.dirfd
        position = 0
        for number, (_, path, start, stop, size, mtime, token, ctime) in enumerate(pieces):
            end = position + stop - start
            try:
                parent, _, name = path.rpartition(b"/")
                fd = os.open(name, _OPEN, dir_fd=dirfd(parent))
                try:
                    got = os.preadv(fd, [into[position:end]], start)
                    if got != stop - start:
                        got += _read_rest(fd, into[position + got : end], start + got)
                    now = os.fstat(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                omissions.append(Omission(number, _reason(error)))
                continue
            if (
                got != stop - start
                or now.st_size != size
                or (now.st_mtime_ns != mtime and not token)
                or not stat.S_ISREG(now.st_mode)
                or (
                    now.st_ctime_ns != ctime
                    and self._recognized
                    and got != size
                    and ctime is not None
                    and not token
                )
            ):
                omissions.append(Omission(number, CHANGED))
                continue
            position = end
        return Reading(position, omissions)

    def _list(self, directory: bytes, wanted: Wanted) -> Iterator[Found | Skipped]:
        try:
            names = self._names(directory)
        except OSError as error:
            yield Skipped(directory, "unreadable", cause(error))
            return
        prefix = directory + b"/" if directory else b""
        for name in names:
            path = prefix + name
            if path == RESERVED:
                continue
            found = self._stat(path, directory, name, wanted)
            if found is not None:
                yield found

    def _names(self, directory: bytes) -> Iterable[bytes]:
        """The names in a directory, sorted as bytes. Raises OSError."""
        # By this path the names come as bytes, and the O_PATH fd is opened for reading.
        with os.scandir(b"/proc/self/fd/%d/" % self._walker.dirfd(directory)) as entries:
            return sorted_names(entries)

    def _stat(
        self, path: bytes, directory: bytes, name: bytes, wanted: Wanted
    ) -> Found | Skipped | None:
        """One name; None when it is gone, or not wanted. The hot path of a scan."""
        try:
            parent = self._walker.dirfd(directory)
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            mode = st.st_mode
            kind = _KINDS.get(mode & _FORMAT)
            if wanted.keep and path and not wanted.keep(path, kind == DIRECTORY):
                return None
            if kind is None:
                return Skipped(path, "special", _special(mode))
            target, segments, size = b"", None, 0
            if kind == FILE:
                size = st.st_size
                if size and st.st_blocks * 512 < size:
                    segments = _segments(name, parent, size)
            elif kind == SYMLINK:
                target, mode = os.readlink(name, dir_fd=parent), 0o777
            xattrs = read_xattrs(name, parent, wanted) if wanted.xattrs or wanted.acls else ()
        except FileNotFoundError:
            # Renamed, maybe, to a name that was passed already: to leave it out in silence would
            # be to claim that the tree is complete.
            return Skipped(path, "unreadable", "vanished during the scan")
        except OSError as error:
            return Skipped(path, "unreadable", cause(error))
        if not -_SIGN <= st.st_mtime_ns < _SIGN or not -_SIGN <= st.st_ctime_ns < _SIGN:
            return Skipped(path, "unreadable", "its time is out of range (years 1678 to 2262)")
        links = 1 if kind == DIRECTORY else st.st_nlink
        ino, dev = st.st_ino, st.st_dev
        if ino >= _SIGN or dev >= _SIGN:
            ino, dev = _signed(ino), _signed(dev)
        return tuple.__new__(  # half the time of Found(...), a million times
            Found,
            (
                path, kind, size, mode & 0o7777, st.st_mtime_ns, st.st_uid, st.st_gid, target,
                st.st_ctime_ns, ino, dev, links, b"", segments, xattrs,
            ),
        )  # fmt: skip


_FORMAT = 0o170000
_SIGN = 1 << 63
_KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}


def _signed(number: int) -> int:
    """As the signed 64-bit integer that SQLite keeps; inode numbers are unsigned."""
    return number if number < _SIGN else number - 2 * _SIGN


def _chain(
    first: Found | Skipped | None, rest: Iterator[Found | Skipped]
) -> Iterator[Found | Skipped]:
    if first is not None:
        yield first
        yield from rest


def _special(mode: int) -> str:
    names = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")


def _reason(error: OSError) -> int:
    return VANISHED if error.errno in _GONE else UNREADABLE


def _read_rest(fd: int, into: memoryview, start: int) -> int:
    """Go on after a short read, until the end of the buffer or of the file."""
    total = 0
    while total < len(into):
        got = os.preadv(fd, [into[total:]], start + total)
        if not got:
            break
        total += got
    return total


def _segments(name: bytes, parent: int, size: int) -> tuple[tuple[int, int], ...] | None:
    """The ranges of a sparse file that hold data, widened to pages."""
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
    except OSError:
        return None  # reading it will say what is wrong
    try:
        widened = ((start // PAGE * PAGE, round_up(stop)) for start, stop in data_of(fd, size))
        return tuple(_merged((start, min(stop, size)) for start, stop in widened)) or ((0, 0),)
    except OSError:
        return None
    finally:
        os.close(fd)


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for first, last in ranges:
        if first > stop:
            if start != stop:
                yield start, stop
            start = first
        stop = last
    if start != stop:
        yield start, stop


def read_xattrs(name: bytes, parent: int, wanted: Wanted) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes that are wanted; ACLs are such attributes too."""
    path = b"/proc/self/fd/%d/%s" % (parent, name)
    found = []
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return ()
        raise
    for key in sorted(names):
        if wanted.acls if key in ACLS else wanted.xattrs and portable(key):
            value = os.getxattr(path, key, follow_symlinks=False)
            found.append((os.fsencode(key), value))
    return tuple(found)


def portable(key: str) -> bool:
    """Whether this user may see, and set, an extended attribute that is no ACL."""
    return key.startswith("user.") or (os.geteuid() == 0 and not key.startswith("system."))


def sorted_names(entries: Iterator[os.DirEntry[bytes]]) -> Iterable[bytes]:
    """Sort names in bounded memory: what exceeds a run goes through temporary files."""
    files: list[BinaryIO] = []
    while True:
        run = [entry.name for entry in itertools.islice(entries, RUN)]
        run.sort()
        if len(run) < RUN:
            return heapq.merge(run, *map(_unspill, files)) if files else run
        files.append(_spill(run))


def _spill(run: list[bytes]) -> BinaryIO:
    import tempfile

    file = tempfile.TemporaryFile()  # noqa: SIM115 closed by _unspill
    file.write(b"\0".join(run) + b"\0")
    file.seek(0)
    return file


def _unspill(file: BinaryIO) -> Iterator[bytes]:
    with file:
        rest = b""
        while data := file.read(1 << 20):
            *names, rest = (rest + data).split(b"\0")
            yield from names
