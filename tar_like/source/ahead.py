"""Scanning in a process of its own: what is done with the names goes on beside it.

    the first names here > fork > child: scan > packed > a pipe | here: out of the pipe

The child goes on with the very iterator that it inherits. A small tree costs no process, and a
process that has threads forks none: there the scan stays where it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import marshal
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from tar_like.errors import SourceUnusable
from tar_like.process import start_pool_worker
from tar_like.source.contract import Found, Skipped

FIRST = 1000
"""Names that are scanned before a process is worth its start."""
CHUNK = 256
AHEAD = 1 << 20
"""Bytes that may wait to be taken."""
_LENGTH = struct.Struct("<I")
_END = _LENGTH.pack(0)

Names = Iterator[Found | Skipped]


def ahead(scan: Names) -> Names:
    """The same names in the same order; the scan has begun when this returns.

    Iterating raises SourceUnusable when the scanning process dies.
    """
    return itertools.chain.from_iterable(map(_unpacked, ahead_as(scan, _packed)))


def ahead_as(scan: Names, pack: Callable[[Names], Iterator[bytes]]) -> Iterator[bytes]:
    """What ``pack`` makes of the names, there too; ``ahead`` for what is best done beside them."""
    first = list(itertools.islice(scan, FIRST + 1))
    packed = pack(itertools.chain(first, scan))
    if len(first) <= FIRST or threading.active_count() > 1:
        return packed
    rest = _from_child(packed)
    next(rest)
    return cast(Iterator[bytes], rest)


def _from_child(packed: Iterator[bytes]) -> Iterator[bytes | None]:
    """None, once the child has begun; then what it has packed."""
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):  # more than a user may have, maybe
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, AHEAD)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_child(parent, packed, writer)
    os.close(writer)
    try:
        with open(reader, "rb", 1 << 16) as pipe:
            yield None
            while (data := _next(pipe)) is not None:
                yield data
    finally:
        if os.getpid() == parent:  # and not another child of it, which has this object too
            os.kill(pid, signal.SIGKILL)  # it has ended, or nobody wants the rest
            os.waitpid(pid, 0)


def _run_child(parent: int, packed: Iterator[bytes], writer: int) -> None:
    """Put the names into the pipe and end, whatever happens. Never returns."""
    code = 1
    try:
        start_pool_worker(parent)
        with open(writer, "wb", 1 << 16) as pipe:
            for data in packed:
                pipe.write(_LENGTH.pack(len(data)) + data)
            pipe.write(_END)
        code = 0
    except BrokenPipeError:
        pass  # nobody wants the rest
    except BaseException:  # noqa: BLE001 a mistake of ours must not end in silence
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _packed(scan: Names) -> Iterator[bytes]:
    while chunk := list(map(tuple, itertools.islice(scan, CHUNK))):
        yield marshal.dumps(chunk)


def _unpacked(data: bytes) -> Names:
    return map(_made, marshal.loads(data))


def _made(fields: tuple[Any, ...]) -> Found | Skipped:
    if len(fields) == len(Skipped._fields):
        return Skipped(*fields)
    return tuple.__new__(Found, fields)  # half the time of Found._make


def _next(pipe: BinaryIO) -> Any:
    """The next chunk's bytes; None at the end."""
    head = pipe.read(_LENGTH.size)
    if head == _END:
        return None
    data = pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not data:
        raise SourceUnusable("The process that scans the source was killed: run it again.")
    return data
