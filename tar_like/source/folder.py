"""A folder as a source.

    scan: depth first, names sorted as bytes, each stat'ed through its directory's fd;
          a stretch of them at once, one by one only where something is out of the ordinary
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
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, BinaryIO

from tar_like.codec import CHANGED, UNREADABLE, VANISHED, Omission
from tar_like.dirfd import Walker
from tar_like.errors import SourceUnusable, UsageError, cause
from tar_like.layout import DIRECTORY, FILE, SYMLINK, Piece
from tar_like.reading import read_at
from tar_like.source.ahead import ahead, ahead_as
from tar_like.source.batch import Batch, segments_of
from tar_like.source.contract import Found, Reading, Skipped, Wanted, WasRead
from tar_like.source.stretch import FORMAT, KINDS, STRETCH, Stretch, stretch_of_found

_AS_TEXT = sys.getfilesystemencoding() == "utf-8"
"""Whether names that are listed as text, as by an fd, become the bytes again that they were.

Of some encodings (Big5, say) not all do."""
_NAME = attrgetter("name")
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
        self._remembered: Mapping[bytes, WasRead] = {}
        try:
            self._walker = Walker(self._base, readable=True)
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
        self._begun = wanted, ahead(self._stretches(wanted))

    def scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        begun, self._begun = self._begun, None
        return begun[1] if begun and begun[0] == wanted else ahead(self._stretches(wanted))

    def scan_as(
        self, wanted: Wanted, pack: Callable[[Iterator[Stretch]], Iterator[bytes]]
    ) -> Iterator[bytes]:
        return ahead_as(self._stretches(wanted), pack)

    def _stretches(self, wanted: Wanted) -> Iterator[Stretch]:
        (root,) = self._look_at(b"", [b"."], wanted._replace(keep=None))
        batch = Batch(self._walker)
        listing = self._list(b"", wanted, batch)
        first = next(listing, b"")
        unreadable = (
            [one for stretch in first for _, one in stretch.skipped]
            if isinstance(first, list)
            else []
        )
        for item in (root, *(Skipped(*skipped) for skipped in unreadable)):
            if isinstance(item, Skipped) and item.path in (b"", b"."):
                raise SourceUnusable(f"The folder {self._base} cannot be read: {item.detail}.")
        assert isinstance(root, Found)
        yield stretch_of_found(b"", [root._replace(path=b"")])
        stack = [itertools.chain((first,), listing) if first else listing]
        while stack:
            for step in stack[-1]:
                if isinstance(step, bytes):
                    stack.append(self._list(step, wanted, batch))
                    break
                yield from step
            else:
                stack.pop()
        yield from batch.taken()

    def recognize(self, seen: Iterable[tuple[bytes, int]]) -> bool:
        self._recognized = any(self._ctime(path) == ctime for path, ctime in seen)
        return self._recognized

    def _ctime(self, path: bytes) -> int | None:
        try:
            parent, name = self._walker.split(path)
            return os.stat(name, dir_fd=parent, follow_symlinks=False).st_ctime_ns
        except OSError:
            return None

    def remember(self, files: Mapping[bytes, WasRead]) -> None:
        self._remembered = files

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        omissions: list[Omission] = []
        dirfd = self._walker.dirfd
        remembered = self._remembered
        position = 0
        for number, (_, path, start, stop, size, mtime, token, ctime) in enumerate(pieces):
            end = position + stop - start
            was = remembered.get(path) if remembered else None
            if was is not None and was.mtime == mtime and len(was.content) == size == stop - start:
                into[position:end] = was.content
                position = end
                continue
            try:
                parent, _, name = path.rpartition(b"/")
                fd = os.open(name, _OPEN, dir_fd=dirfd(parent))
                try:
                    got = os.preadv(fd, [into[position:end]], start)
                    if got != stop - start:
                        got += read_at(fd, into[position + got : end], start + got)
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

    def _list(
        self, directory: bytes, wanted: Wanted, batch: Batch
    ) -> Iterator[list[Stretch] | bytes]:
        """What is in a directory, in order: the directories, and stretches that are complete.

        The others are in the batch; what is there comes before what is given.
        """
        try:
            names = iter(self._names(directory))
        except OSError as error:
            what = Skipped(directory, "unreadable", cause(error))
            yield [*batch.taken(), stretch_of_found(directory, [what])]
            return
        if not directory:
            names = (name for name in names if name != RESERVED)
        alone = bool(wanted.keep or wanted.xattrs or wanted.acls)
        one_by_one: list[Found | Skipped] = []
        room = STRETCH
        while some := list(itertools.islice(names, room)):
            if not (alone or one_by_one):
                if not batch.has_room(len(some)):
                    yield batch.taken()
                folders = self._at_once(directory, some, batch)
                if folders is not None:
                    yield from folders
                    continue
            one_by_one += self._look_at(directory, some, wanted)
            room = STRETCH - sum(isinstance(one, Found) for one in one_by_one)
            if room in (0, STRETCH):
                yield from _complete(batch, directory, one_by_one)
                one_by_one, room = [], STRETCH
        if one_by_one:
            yield from _complete(batch, directory, one_by_one)

    def _names(self, directory: bytes) -> Iterable[bytes]:
        """The names in a directory, sorted as bytes. Raises OSError."""
        fd = self._walker.dirfd(directory)
        if _AS_TEXT:
            try:
                with os.scandir(fd) as entries:
                    return sorted_names(map(_NAME, entries), joined=True)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
        return list_by_path(fd)  # which also says why it is not readable

    def _at_once(self, directory: bytes, names: list[bytes], batch: Batch) -> list[bytes] | None:
        """See Batch.add."""
        try:
            return batch.add(directory, names, self._walker.dirfd(directory))
        except OSError:
            return None

    def _look_at(
        self, directory: bytes, names: list[bytes], wanted: Wanted
    ) -> list[Found | Skipped]:
        """These names of a directory, less what is not wanted."""
        prefix = directory + b"/" if directory else b""
        try:
            parent = self._walker.dirfd(directory)
        except OSError as error:
            return [Skipped(prefix + name, "unreadable", _trouble(error)) for name in names]
        return _look_at(parent, prefix, names, wanted)


def _complete(
    batch: Batch, directory: bytes, one_by_one: list[Found | Skipped]
) -> Iterator[list[Stretch] | bytes]:
    """What was looked at one by one, after what is in the batch; then the directories in it."""
    stretch = stretch_of_found(directory, one_by_one)
    yield [*batch.taken(), stretch]
    yield from stretch.folders()


def _look_at(
    parent: int, prefix: bytes, names: list[bytes], wanted: Wanted
) -> list[Found | Skipped]:
    """These names, one by one."""
    seen: list[Found | Skipped] = []
    keep, with_xattrs = wanted.keep, wanted.xattrs or wanted.acls
    os_stat, new = os.stat, tuple.__new__  # half the time of Found(...), a million times
    for name in names:
        path = prefix + name
        try:
            st = os_stat(name, dir_fd=parent, follow_symlinks=False)
            mode, ino, dev, links, uid, gid, size, _, _, _ = st
            mtime, ctime = st.st_mtime_ns, st.st_ctime_ns
            kind = KINDS.get(mode & FORMAT)
            if keep and not keep(path, kind == DIRECTORY):
                continue
            target, segments = b"", None
            if kind == FILE:
                if st.st_blocks * 512 < size:
                    segments = segments_of(name, parent, size)
            elif kind == DIRECTORY:
                size, links = 0, 1
            elif kind == SYMLINK:
                target, mode, size = os.readlink(name, dir_fd=parent), 0o777, 0
            else:
                seen.append(Skipped(path, "special", _special(mode)))
                continue
            xattrs = read_xattrs(name, parent, wanted) if with_xattrs else ()
        except OSError as error:
            seen.append(Skipped(path, "unreadable", _trouble(error)))
            continue
        if not -_SIGN <= mtime < _SIGN or not -_SIGN <= ctime < _SIGN:
            text = "its time is out of range (years 1678 to 2262)"
            seen.append(Skipped(path, "unreadable", text))
            continue
        if ino >= _SIGN or dev >= _SIGN:
            ino, dev = _signed(ino), _signed(dev)
        fields = (
            path, kind, size, mode & 0o7777, mtime, uid, gid, target,
            ctime, ino, dev, links, b"", segments, xattrs,
        )  # fmt: skip
        seen.append(new(Found, fields))
    return seen


def _trouble(error: OSError) -> str:
    """Why a name is not taken up.

    What is gone was renamed, maybe, to a name that was passed already: to leave it out in silence
    would be to claim that the tree is complete.
    """
    return "vanished during the scan" if isinstance(error, FileNotFoundError) else cause(error)


_SIGN = 1 << 63


def _signed(number: int) -> int:
    """As the signed 64-bit integer that SQLite keeps; inode numbers are unsigned."""
    return number if number < _SIGN else number - 2 * _SIGN


def _special(mode: int) -> str:
    names = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")


def _reason(error: OSError) -> int:
    return VANISHED if error.errno in _GONE else UNREADABLE


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


def list_by_path(fd: int) -> Iterable[bytes]:
    """The names in a directory that is open, readable or not, in order. Raises OSError."""
    with os.scandir(b"/proc/self/fd/%d/" % fd) as entries:
        return sorted_names(map(_NAME, entries))


def sorted_names(names: Iterator[Any], *, joined: bool = False) -> Iterable[bytes]:
    """Sort names in bounded memory: what exceeds a run goes through temporary files.

    ``joined``: they are texts, and become bytes all at once, in a third of the time.
    """
    files: list[BinaryIO] = []
    while True:
        run = list(itertools.islice(names, RUN))
        if joined and run:
            run = os.fsencode("\0".join(run)).split(b"\0")
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
