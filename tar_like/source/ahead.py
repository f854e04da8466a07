"""Scanning in a process of its own: what is done with the names goes on beside it.

    the first stretches here > fork > child: scan > packed > a pipe | here: out of the pipe

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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, cast

from tar_like.errors import SourceUnusable
from tar_like.process import start_pool_worker
from tar_like.source.contract import Found, Skipped
from tar_like.source.stretch import Stretch, found_in_order

FIRST = 1000
"""Names that are scanned before a process is worth its start."""
CHUNK = 1000
AHEAD = 1 << 20
"""Bytes that may wait to be taken."""
_LENGTH = struct.Struct("<I")
_END = _LENGTH.pack(0)

Stretches = Iterator[Stretch]
Closed = tuple[Any, ...]
"""A stretch with its names in one."""


def ahead(scan: Stretches) -> Iterator[Found | Skipped]:
    """The names of the stretches in order; the scan has begun when this returns.

    Iterating raises SourceUnusable when the scanning process dies.
    """
    chunks = itertools.chain.from_iterable(map(loaded, ahead_as(scan, _packed)))
    return found_in_order(map(open_stretch, chunks))


def ahead_as(scan: Stretches, pack: Callable[[Stretches], Iterator[bytes]]) -> Iterator[bytes]:
    """What ``pack`` makes of a scan, there too; ``ahead`` for what is best done beside it."""
    first, names = [], 0
    for stretch in scan:
        first.append(stretch)
        names += len(stretch.names) + len(stretch.skipped)
        if names > FIRST:
            break
    made = pack(itertools.chain(first, scan))
    if names <= FIRST or threading.active_count() > 1:
        return made
    rest = _from_child(made)
    next(rest)
    return cast(Iterator[bytes], rest)


def chunks(scan: Stretches) -> Iterator[list[Stretch]]:
    """The stretches in lists of some CHUNK names."""
    chunk, names = [], 0
    for stretch in scan:
        chunk.append(stretch)
        names += len(stretch.names) + 1
        if names >= CHUNK:
            yield chunk
            chunk, names = [], 0
    if chunk:
        yield chunk


def packed(stretches: Iterable[Stretch]) -> bytes:
    """Stretches as bytes, for ``loaded``, by this very version."""
    return marshal.dumps(list(map(_closed, stretches)), 2)


def loaded(data: bytes | memoryview) -> list[Closed]:
    """The stretches again, each for ``open_stretch``."""
    stretches: list[Closed] = marshal.loads(data)
    return stretches


def open_stretch(stretch: Closed) -> Stretch:
    """A stretch as it was."""
    directory, names, *rest = stretch
    return Stretch(directory, names.split(b"\0") if names is not None else [], *rest)


def _closed(stretch: Stretch) -> Closed:
    # To write and to read an object for each name takes several times as long.
    directory, names, *rest = stretch
    return directory, b"\0".join(names) if names else None, *rest


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


def _packed(scan: Stretches) -> Iterator[bytes]:
    return map(packed, chunks(scan))


def _next(pipe: BinaryIO) -> Any:
    """The next chunk's bytes; None at the end."""
    head = pipe.read(_LENGTH.size)
    if head == _END:
        return None
    data = pipe.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not data:
        raise SourceUnusable("The process that scans the source was killed: run it again.")
    return data
