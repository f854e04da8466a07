"""What a look saw of each directory: the next one only sees whether that is still the same.

    looks/sights = chunk: whose they are > chunks of sights > chunk: are these all > BLAKE3 of all
    chunk        = length:u32  marshal
    sight        = a directory: its names, and columns of what lstat says of them

A sight is kept only of a directory in which everything was as the ledger says, and nothing besides,
and only as long as the ledger is that one. Where it is another by now, the ledger's rows tell what
changed. The file is not synced; what is torn or damaged is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import stat
import struct
import sys
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from blake3 import blake3

from tar_like.dirfd import open_file
from tar_like.lstat import MANY, Lstats
from tar_like.source.folder import RESERVED, RUN

MOST = RUN
"""Names of a directory of which there may be a sight: they are held in memory."""
CHUNK = 20_000
"""Names whose sights are written at a time."""
_VERSION = 2
_LENGTH = struct.Struct("<I")
_DIGEST = 32
_FORMAT = 2
"""Of marshal: equal values give equal bytes, wherever they come from (there are no references)."""
INO, CTIME, MTIME, SIZE, MODE, UID, GID = range(7)
"""A sight's columns."""
CODES = "QqqqIII"
"""The types of struct that they have."""
WIDTHS = tuple(struct.calcsize(f"<{code}") for code in CODES)
"""Bytes of a number in each."""
_NOT_OF_FOLDERS = (INO, CTIME, SIZE)
"""What is not seen of a directory: it is another one after each commit. Zeros stand for it."""
_NOTHING_SEEN = bytes(8)

Numbers = tuple[int, int, int, int, int, int, int]
"""One name's numbers in the columns."""


class Sight(NamedTuple):
    """A directory as it was."""

    path: bytes
    names: bytes
    """In order, with a zero byte between two; the root is the first name of its own."""
    columns: tuple[bytes, ...]
    folders: tuple[int, ...]
    """The positions of those that are directories, in order."""
    row: int
    """Where the directory was in the ledger. It may have moved since."""
    exact: bool
    """Modes, owners and groups, too, are those that the ledger has."""
    own: int
    """The ctime (ns) of the directory itself, as long as it has that its names are the same.
    0 where this is not to be relied on."""

    @property
    def many(self) -> int:
        """How many names it has."""
        return len(self.columns[INO]) // WIDTHS[INO]

    @property
    def listed(self) -> list[bytes]:
        """Its names."""
        return self.names.split(b"\0") if self.names else []


Change = tuple[Collection[bytes], Mapping[bytes, Numbers]]
"""Of a directory's names: those that are gone, and those that were put in place."""
NOTHING: Change = ((), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a commit did to the directories of which there may be sights."""

    of: Mapping[bytes, Change | None]
    """By directory; None where that cannot be told from what the commit knows."""
    gone: Collection[bytes]
    """What is no directory (any more): there is nothing to be told of it."""
    folders: Collection[bytes]
    """Directories that are new, or were changed themselves."""


def columns_of(lstats: Lstats) -> list[bytes]:
    """The columns that a sight has of the names that were looked at last. Raises struct.error."""
    ctimes, mtimes = lstats.times()
    return [
        lstats.inos, ctimes, mtimes, lstats.sizes, lstats.modes, lstats.uids, lstats.gids,
    ]  # fmt: skip


def numbers_of(st: os.stat_result) -> Numbers:
    """The same of one name; of a directory as ``numbers_of_folder`` has them."""
    if stat.S_ISDIR(st.st_mode):
        return numbers_of_folder(st.st_mtime_ns, st.st_mode, st.st_uid, st.st_gid)
    return (
        st.st_ino, st.st_ctime_ns, st.st_mtime_ns, st.st_size,
        st.st_mode, st.st_uid, st.st_gid,
    )  # fmt: skip


def numbers_of_folder(mtime: int, mode: int, uid: int, gid: int) -> Numbers:
    """What is seen of a directory: what a commit sets."""
    return 0, 0, mtime, 0, mode, uid, gid


class Taking:
    """A sight that is being taken, name by name, in order."""

    def __init__(self, row: int, own: int) -> None:
        """See Sight."""
        self._row, self._own = row, own
        self._names: list[bytes] = []
        self._columns = [bytearray() for _ in CODES]
        self._folders: list[int] = []
        self.exact = True

    @property
    def full(self) -> bool:
        """Whether there are more names than a sight may have."""
        return len(self._names) > MOST

    def add(self, names: Sequence[bytes], columns: Sequence[bytes]) -> None:
        """The next names, none of which is a directory's. To be given up when it is ``full``."""
        self._names += names
        for column, more in zip(self._columns, columns, strict=True):
            column += more

    def add_one(self, name: bytes, numbers: Numbers) -> None:
        """The next name. Raises struct.error."""
        columns = [struct.pack(f"<{code}", one) for code, one in zip(CODES, numbers, strict=True)]
        if stat.S_ISDIR(numbers[MODE]):
            self._folders.append(len(self._names))
        self.add([name], columns)

    def sight(self, path: bytes) -> Sight:
        """All names have come."""
        return Sight(
            path, b"\0".join(self._names), tuple(map(bytes, self._columns)),
            tuple(self._folders), self._row, self.exact, self._own,
        )  # fmt: skip


class Comparing:
    """Sees whether directories are as they were, the names of many of them at a time."""

    def __init__(self) -> None:
        self._lstats = Lstats()
        self._waiting: list[_Part] = []
        """What was looked at, and is not compared yet."""
        self.changed: set[bytes] = set()
        """The directories that are not as they were; all of them once this has ended."""

    def see(self, sight: Sight, fd: int, *, listed: bool) -> None:
        """Have a directory, open as ``fd`` (O_PATH suffices), compared.

        ``listed``: its names are known to be as they were. Raises OSError.
        """
        names = sight.listed
        if not listed and _names(sight, fd) != names:
            self.changed.add(sight.path)
            return
        for start in range(0, len(names), MANY):
            some = names[start : start + MANY]
            if self._lstats.count + len(some) > MANY:
                self.end()
            self._lstats.look(some, fd)
            self._waiting.append(_Part(sight, start, start + len(some)))

    def end(self) -> None:
        """Compare what is not compared yet."""
        parts, lstats = self._waiting, self._lstats
        try:
            columns = _blank(columns_of(lstats), _folders_of(parts))
        except struct.error:  # a time that the ledger cannot have, of whichever
            self.changed.update(part.sight.path for part in parts)
        else:
            for number, now in enumerate(columns):
                then = [part.column(number) for part in parts]
                if b"".join(then) == now:
                    continue
                at = 0
                for part, column in zip(parts, then, strict=True):
                    if now[at : at + len(column)] != column:
                        self.changed.add(part.sight.path)
                    at += len(column)
        parts.clear()
        lstats.forget()


class _Part(NamedTuple):
    """Some of a sight's names, by position."""

    sight: Sight
    start: int
    stop: int

    def column(self, number: int) -> bytes:
        width = WIDTHS[number]
        return self.sight.columns[number][width * self.start : width * self.stop]


def _folders_of(parts: Iterable[_Part]) -> Iterator[int]:
    """The positions, among all the names of these, of those that are directories."""
    first = 0
    for sight, start, stop in parts:
        if folders := sight.folders:
            some = folders[bisect_left(folders, start) : bisect_left(folders, stop)]
            yield from (first + at - start for at in some)
        first += stop - start


def _blank(columns: list[bytes], folders: Iterable[int]) -> list[bytes | bytearray]:
    """The columns, without what is not seen of directories, which are at these positions."""
    blank: list[bytes | bytearray] = [*columns]
    some = [(8 * at, 8 * at + 8) for at in folders]
    if some:
        for number in _NOT_OF_FOLDERS:
            blank[number] = column = bytearray(columns[number])
            for start, stop in some:
                column[start:stop] = _NOTHING_SEEN
    return blank


def renewed(sight: Sight, gone: Collection[bytes], placed: Mapping[bytes, Numbers]) -> Sight:
    """The sight after a commit has removed some names, and put others in place."""
    names = sight.listed
    positions = {name: at for at, name in enumerate(names)}
    if not gone and placed.keys() <= positions.keys():
        columns = list(map(bytearray, sight.columns))
        folders = set(sight.folders)
        for name, numbers in placed.items():
            at = positions[name]
            (folders.add if stat.S_ISDIR(numbers[MODE]) else folders.discard)(at)
            for column, code, width, one in zip(columns, CODES, WIDTHS, numbers, strict=True):
                struct.pack_into(f"<{code}", column, width * at, one)
        return sight._replace(
            columns=tuple(map(bytes, columns)), folders=tuple(sorted(folders)), own=0
        )
    unpacked = [
        struct.unpack(f"<{len(names)}{code}", column)
        for code, column in zip(CODES, sight.columns, strict=True)
    ]
    rows: dict[bytes, Any] = dict(zip(names, zip(*unpacked, strict=True), strict=True))
    for name in gone:
        rows.pop(name, None)
    rows.update(placed)
    taking = Taking(sight.row, own=0)
    taking.exact = sight.exact
    for name in sorted(rows, key=lambda name: b"" if name == b"." and not sight.path else name):
        taking.add_one(name, rows[name])
    return taking.sight(sight.path)


class Writing:
    """A file of sights that is being written; it is not synced.

    Where it cannot be written there is none: the next look takes longer, no more.
    """

    def __init__(self, path: str, ledger: str) -> None:
        """``path`` is where it is written; ``ledger``: which file of the ledger was looked at."""
        self.count = 0
        """How many were added."""
        self._path = path
        self._chunk: list[Sight] = []
        self._names = 0
        """How many wait to be written; a directory without any counts, too."""
        self._digest = blake3()
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):
            self._file = open(path, "wb")  # noqa: SIM115 closed by close()
        self._put(_whose(ledger))

    def add(self, sight: Sight) -> None:
        """One more."""
        self.count += 1
        self._chunk.append(sight)
        self._names += sight.many + 1
        if self._names >= CHUNK:
            self._put_chunk()

    def publish(self, final: str, *, whole: bool) -> None:
        """They are all; ``whole``: of each directory of that ledger there is one."""
        self._put_chunk()
        self._put(whole)
        self._write(self._digest.digest())
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
                os.replace(self._path, final)

    def close(self) -> None:
        """Give the file up, unless it is published. Idempotent."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
            os.unlink(self._path)

    def _put_chunk(self) -> None:
        self._put(list(map(tuple, self._chunk)))
        self._chunk.clear()
        self._names = 0

    def _put(self, value: str | bool | list[tuple[Any, ...]]) -> None:
        data = marshal.dumps(value, _FORMAT)
        chunk = _LENGTH.pack(len(data)) + data
        self._digest.update(chunk)
        self._write(chunk)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is not None:
                self._file.write(data)
        except OSError:
            self.close()
            self._file = None


class Remembered:
    """The sights of one ledger's directories, out of a file; none where they cannot be believed."""

    def __init__(self, path: str, ledger: str) -> None:
        """``ledger``: which file of the ledger it is."""
        self.whole = False
        """There is one of each directory; known when they were gone through."""
        self._file: BinaryIO | None = None
        self._first = 0
        with contextlib.suppress(OSError):
            file = open(open_file(path, os.O_RDONLY), "rb")  # noqa: SIM115 closed by close()
            if _is_sound(file) and _read(file) == _whose(ledger):
                self._file, self._first = file, file.tell()
            else:
                file.close()

    @property
    def usable(self) -> bool:
        """Whether there are any, of that ledger."""
        return self._file is not None

    def __iter__(self) -> Iterator[Sight]:
        """Each of them, always in the same order. Raises OSError."""
        if self._file is None:
            return
        self._file.seek(self._first)
        while isinstance(chunk := _read(self._file), list):
            yield from map(Sight._make, chunk)
        self.whole = chunk

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _whose(ledger: str) -> str:
    """What must be the same for sights to hold: whether an owner is right depends on who asks."""
    groups = sorted({os.getegid(), *os.getgroups()})
    return json.dumps([_VERSION, sys.hexversion, ledger, os.geteuid(), groups])


def _is_sound(file: BinaryIO) -> bool:
    """Whether a file is as it was written; it is at its start afterwards."""
    size, digest = os.fstat(file.fileno()).st_size, blake3()
    left = max(0, size - _DIGEST)
    while left and (data := file.read(min(left, 1 << 20))):
        digest.update(data)
        left -= len(data)
    sound = size > _DIGEST and file.read() == digest.digest()
    file.seek(0)
    return sound


def _read(file: BinaryIO) -> Any:
    """The next chunk of a file that is sound."""
    return marshal.loads(file.read(_LENGTH.unpack(file.read(_LENGTH.size))[0]))


def _names(sight: Sight, fd: int) -> list[bytes]:
    """A directory's names in order, as a look goes by them; of more than it had, some."""
    with os.scandir(b"/proc/self/fd/%d/" % fd) as entries:
        found = [entry.name for entry in islice(entries, sight.many + 2)]
    if not sight.path:
        found = [name for name in found if name != RESERVED]
    found.sort()
    return found if sight.path else [b".", *found]
