"""What survives a power cut, and the named calls for it.

    FULL     what is called durable, verified or complete was synced before
    PROCESS  nothing is synced: what is acknowledged survives the death of any process, and is
             believed as long as the machine that wrote it has not been started again

Source: syncfs(2) (it reports failed writes since Linux 5.8), fsync(2), rename(2).
"""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Protocol

_libc = ctypes.CDLL(None, use_errno=True)


class Durability(Protocol):
    """What a receiver does so that what it wrote lasts. Each raises OSError."""

    @property
    def lasts(self) -> bool:
        """Whether what was synced survives a power cut."""

    def filesystem(self, fd: int) -> None:
        """Everything of the filesystem that ``fd`` lies on, written before the call."""

    def file(self, path: str) -> None:
        """A file's content."""

    def publish(self, temporary: str, final: str) -> None:
        """A file (or a folder's names), then its own name by a rename, then the name's folder."""


class _Full:
    lasts = True

    def filesystem(self, fd: int) -> None:
        sync_filesystem(fd)

    def file(self, path: str) -> None:
        sync_file(path)

    def publish(self, temporary: str, final: str) -> None:
        self.file(temporary)
        os.replace(temporary, final)
        sync_directory(os.path.dirname(final))


class _Process:
    lasts = False

    def filesystem(self, fd: int) -> None:
        pass

    def file(self, path: str) -> None:
        pass

    def publish(self, temporary: str, final: str) -> None:
        os.replace(temporary, final)


FULL: Durability = _Full()
PROCESS: Durability = _Process()
BY_NAME = {"full": FULL, "process": PROCESS}


def machine() -> bytes:
    """This host and this boot of it, to tell whether unsynced bytes may be lost."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read().strip()
    except OSError:
        boot = b"unknown"
    return socket.gethostname().encode() + b"\0" + boot


def may_be_lost(writer: bytes, here: bytes) -> bool:
    """Whether what ``writer`` (a ``machine``) did not sync may be gone, as seen from ``here``.

    It is after another boot of the same host; other hosts are believed.
    """
    host, _, boot = writer.partition(b"\0")
    this_host, _, this_boot = here.partition(b"\0")
    return host == this_host and boot != this_boot


def sync_filesystem(fd: int) -> None:
    """Write everything of the filesystem that ``fd`` lies on to its disk. Raises OSError."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_file(path: str) -> None:
    """Make a file's content durable. Raises OSError."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until everything is written. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
