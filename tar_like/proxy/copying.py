"""Copying bytes from file to file of one destination: shared where the filesystem can do so.

    large: clone > else, on a filesystem of this host, two threads that read and write
    else, elsewhere: copy_file_range, which a server may do by itself

Source: ioctl_ficlonerange(2), copy_file_range(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections import deque
from collections.abc import Iterator

from tar_like.proxy.durable import write_all
from tar_like.proxy.filesystem import PLAIN, kind_of
from tar_like.reading import read_at

LARGE = 32 << 20
"""Bytes from which it is worth asking for a clone, or starting a thread."""
_STEP = 1 << 20
_FICLONERANGE = 0x4020940D
_RANGE = struct.Struct("=qQQQ")
"""Descriptor and start of the source, length, offset in the target."""
_REFUSED = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def copy_range(source: int, start: int, target: int, offset: int, length: int) -> None:
    """Copy bytes of one open file to another. Raises OSError.

    Where the source has become shorter meanwhile, what is left stays as it is: digests tell.
    """
    if length >= LARGE:
        if clone_range(source, start, target, offset, length):
            return
        if kind_of(target) in PLAIN and kind_of(source) in PLAIN:
            _copy_by_two(source, start, target, offset, length)
            return
    while length:
        try:
            done = os.copy_file_range(source, target, length, start, offset)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            data = os.pread(source, min(length, _STEP), start)
            write_all(target, data, offset)
            done = len(data)
        if not done:
            return
        start, offset, length = start + done, offset + done, length - done


def clone_range(source: int, start: int, target: int, offset: int, length: int) -> bool:
    """Whether the target has got the source's own blocks. Raises OSError where there is no room.

    Filesystems say in many ways that they cannot; what else is wrong the copy will say.
    """
    try:
        fcntl.ioctl(target, _FICLONERANGE, _RANGE.pack(source, start, length, offset))
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    return True


def _copy_by_two(source: int, start: int, target: int, offset: int, length: int) -> None:
    """Copy with a second thread: one reads while the other writes. Raises OSError.

    Only one may write to a file at a time: they take turns by a lock that is slept for, since the
    kernel has the one who waits for its own lock spin, half of all time that the copy takes.
    """
    steps = iter(range(0, length, _STEP))
    turn = threading.Lock()
    errors: list[OSError] = []

    def work() -> None:
        try:
            _copy_steps(steps, turn, length, source, start, target, offset)
        except OSError as error:
            errors.append(error)
        finally:
            deque(steps, maxlen=0)  # nobody goes on where one has ended early

    other = threading.Thread(target=work, daemon=True)
    other.start()
    try:
        work()
    finally:
        other.join()
    if errors:
        raise errors[0]


def _copy_steps(
    steps: Iterator[int],
    turn: threading.Lock,
    length: int,
    source: int,
    start: int,
    target: int,
    offset: int,
) -> None:
    """Copy the steps that nobody else takes, until there are none, or the source ends."""
    room = memoryview(bytearray(_STEP))
    for step in steps:
        view = room[: min(_STEP, length - step)]
        got = read_at(source, view, start + step)
        with turn:
            write_all(target, view[:got], offset + step)
        if got < len(view):
            return
