"""What lstat says of many names, in columns.

    names > statx(2) of each, into a buffer > columns: one copy each

Python makes an object of each name's state, with a score of numbers, and takes as long for that as
the system for the call itself. So the records are left as the kernel writes them, one beside the
other, and a column is cut out of all of them at once. Where there is no statx, lstat's numbers are
put into the same buffer.

Source: statx(2), linux/stat.h. Columns are packed, little-endian, one number for each name.
Not thread-safe: one Lstats a thread.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

from tar_like.lanes import any_less, tops

MANY = 1024
"""Names whose records there is room for."""
_RECORD = 256
_WORDS, _QUADS = _RECORD // 4, _RECORD // 8
_LINKS, _UID, _GID, _MODE = 4, 5, 6, 7
"""Where these are in a record, in words of 4 bytes; behind the mode are 2 bytes of zeros."""
_INO, _SIZE, _BLOCKS, _CTIME, _MTIME, _DEVICE = 4, 5, 6, 12, 14, 17
"""The same in words of 8 bytes; of a time the seconds, with its nanoseconds behind."""
_TYPE = 4 * _MODE + 1
"""The byte of a record that has the bits of the type."""
_FLAGS, _MASK = repeat(0x100), repeat(0x7FF)
"""AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS."""
_AS_STATX = struct.Struct("<16xIIIHxxQQQ40xqQqQ8xII")
"""A record, as far as it is used."""
_SECOND = 10**9
_LATE = int.from_bytes(b"\0\0\0\0\xfe\xff\xff\xff" * 2 * MANY, "little")
"""The bits of seconds, a lane of 64 bits for each time, that no time before the year 2242 has."""
_TOPS = tops(MANY)


class Lstats:
    """The records of names, those of one directory after those of another."""

    def __init__(self) -> None:
        self._buffer = bytearray(_RECORD * MANY)
        self._bytes = memoryview(self._buffer)
        self._words = self._bytes.cast("I")
        self._quads = self._bytes.cast("Q")
        self._statx = _statx()
        buffer = (ctypes.c_char * len(self._buffer)).from_buffer(self._buffer)
        self._records = [ctypes.byref(buffer, _RECORD * number) for number in range(MANY)]
        self._device = b"", b""
        """What the system says of a device, and the number that it is."""
        self.count = 0
        """How many names there are."""

    def forget(self, start: int = 0) -> None:
        """Forget the names from ``start`` on."""
        self.count = start

    def look(self, names: Sequence[bytes], parent: int) -> None:
        """Look at names of a directory (an fd), none of which is followed, after those before.

        Raises OSError for any of them, and keeps none then.
        """
        start, stop = self.count, self.count + len(names)
        assert stop <= MANY
        if self._statx is not None:
            records = self._records[start:stop]
            if not any(map(self._statx, repeat(parent), names, _FLAGS, _MASK, records)):
                self.count = stop
                return
        for number, name in enumerate(names, start):  # also to know what is wrong with which
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
            _AS_STATX.pack_into(
                self._buffer, _RECORD * number,
                st.st_nlink, st.st_uid, st.st_gid, st.st_mode,
                st.st_ino, st.st_size, st.st_blocks,
                *divmod(st.st_ctime_ns, _SECOND), *divmod(st.st_mtime_ns, _SECOND),
                os.major(st.st_dev), os.minor(st.st_dev),
            )  # fmt: skip
        self.count = stop

    def types(self, start: int = 0) -> bytes:
        """Of each name from ``start`` on, the byte of its mode that has the bits of its type."""
        return self._bytes[_TYPE + _RECORD * start : _RECORD * self.count : _RECORD].tobytes()

    def fit(self, start: int = 0) -> bool:
        """Whether the times from ``start`` on can be told in ns."""
        first, stop = _WORDS * start, _WORDS * self.count
        ctimes = self._words[first + 2 * _CTIME + 1 : stop : _WORDS].tobytes()
        mtimes = self._words[first + 2 * _MTIME + 1 : stop : _WORDS].tobytes()
        if not (ctimes + mtimes).strip(b"\0"):  # as mostly: seconds below 2^32
            return True
        try:
            self.times(start)
        except struct.error:
            return False
        return True

    @property
    def modes(self) -> bytes:
        """With the bits of the type; u32, as are owners, groups and numbers of links."""
        return self._word(_MODE)

    @property
    def uids(self) -> bytes:
        """Owners."""
        return self._word(_UID)

    @property
    def gids(self) -> bytes:
        """Groups."""
        return self._word(_GID)

    @property
    def links(self) -> bytes:
        """How many names each has."""
        return self._word(_LINKS)

    @property
    def inos(self) -> bytes:
        """Inodes; i64, as are sizes, times and devices."""
        return self._quad(_INO)

    @property
    def sizes(self) -> bytes:
        """In bytes."""
        return self._quad(_SIZE)

    def times(self, start: int = 0) -> tuple[bytes, bytes]:
        """ctimes and mtimes from ``start`` on, in ns. Raises struct.error for what does not fit."""
        # Seconds and nanoseconds in one: all of them at once, as one number of many lanes.
        count = self.count - start
        seconds = self._quad(_CTIME, start) + self._quad(_MTIME, start)
        rest = self._quad(_CTIME + 1, start) + self._quad(_MTIME + 1, start)
        lanes, width = int.from_bytes(seconds, "little"), 8 * count
        if not lanes & _LATE:
            lanes = lanes * _SECOND + int.from_bytes(rest, "little")
            times = lanes.to_bytes(2 * width, "little")
        else:
            form = f"<{2 * count}q"
            pairs = zip(struct.unpack(form, seconds), struct.unpack(form, rest), strict=True)
            times = struct.pack(form, *(second * _SECOND + more for second, more in pairs))
        return times[:width], times[width:]

    @property
    def devs(self) -> bytes:
        """Devices."""
        numbers = self._quad(_DEVICE)
        if numbers == self._device[0] * self.count:  # as mostly: the one of last time
            return self._device[1] * self.count
        self._device = numbers[:8], struct.pack("<Q", _device(numbers[:8]))
        parts = (numbers[at : at + 8] for at in range(0, len(numbers), 8))
        return struct.pack(f"<{self.count}Q", *map(_device, parts))

    def may_have_holes(self, sizes: bytes | bytearray) -> bool:
        """Whether any name has fewer blocks than so many bytes take (``sizes``, as above)."""
        taken = int.from_bytes(self._quad(_BLOCKS), "little") << 9
        return any_less(taken, int.from_bytes(sizes, "little"), _TOPS >> 64 * (MANY - self.count))

    def blocks(self) -> tuple[int, ...]:
        """Of 512 bytes each."""
        return struct.unpack(f"<{self.count}Q", self._quad(_BLOCKS))

    def _word(self, field: int) -> bytes:
        return self._words[field : _WORDS * self.count : _WORDS].tobytes()

    def _quad(self, field: int, start: int = 0) -> bytes:
        return self._quads[field + _QUADS * start : _QUADS * self.count : _QUADS].tobytes()


def _device(number: bytes) -> int:
    return os.makedev(*struct.unpack("<II", number))


def _statx() -> Callable[..., Any] | None:
    """The call, where the system has it, and writes numbers in the order that is wanted."""
    if sys.byteorder != "little":
        return None
    call: Callable[..., Any] | None = getattr(ctypes.CDLL(None), "statx", None)
    return call
