"""System calls of one piece of work: listed, or one of them made to fail or to kill.

    calls = traced(work, log=..., which=WRITES).calls         # {"pwrite64": 12, "renameat": 3, ...}
    traced(work, log=..., hit=Hit("pwrite64", 7))              # dies on entering the seventh
    traced(work, log=..., hit=Hit("pwrite64", 7, EIO)).met    # the seventh fails; did it come?

The work runs in a fork that asks before each of these calls, and does not get to do the one that
is hit. All threads and processes of it are counted together, and nothing else is.

Source: seccomp(2), seccomp_unotify(2), linux/seccomp.h, linux/bpf_common.h (Linux 5.9 and newer).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.scene import PATIENCE, Broken, Fork

WRITES = (
    "openat", "mkdir", "mkdirat", "write", "pwrite64", "pwritev", "pwritev2", "writev", "rename",
    "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "linkat", "symlink",
    "symlinkat", "ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "syncfs", "chmod",
    "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown", "utimensat", "setxattr",
    "fsetxattr", "removexattr", "fremovexattr", "sendfile", "copy_file_range",
)  # fmt: skip
READS = (
    "read", "pread64", "preadv", "preadv2", "stat", "lstat", "fstat", "newfstatat", "statx",
    "statfs", "fstatfs", "getdents64", "lseek", "close", "flock", "fcntl", "readlink",
    "readlinkat", "fgetxattr", "flistxattr",
)  # fmt: skip

_X86 = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "lseek": 8,
    "pread64": 17, "pwrite64": 18, "writev": 20, "sendfile": 40, "fcntl": 72, "flock": 73,
    "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83,
    "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "chmod": 90,
    "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "statfs": 137, "fstatfs": 138,
    "setxattr": 188, "fsetxattr": 190, "fgetxattr": 193, "flistxattr": 196, "removexattr": 197,
    "fremovexattr": 199, "getdents64": 217, "openat": 257, "mkdirat": 258, "fchownat": 260,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
    "readlinkat": 267, "fchmodat": 268, "utimensat": 280, "fallocate": 285, "preadv": 295,
    "pwritev": 296, "syncfs": 306, "renameat2": 316, "copy_file_range": 326, "preadv2": 327,
    "pwritev2": 328, "statx": 332,
}  # fmt: skip
_ARM = {
    "setxattr": 5, "fsetxattr": 7, "fgetxattr": 10, "flistxattr": 13, "removexattr": 14,
    "fremovexattr": 16, "fcntl": 25, "flock": 32, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36,
    "linkat": 37, "renameat": 38, "statfs": 43, "fstatfs": 44, "truncate": 45, "ftruncate": 46,
    "fallocate": 47, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "openat": 56,
    "close": 57, "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "writev": 66,
    "pread64": 67, "pwrite64": 68, "preadv": 69, "pwritev": 70, "sendfile": 71, "readlinkat": 78,
    "newfstatat": 79, "fstat": 80, "fsync": 82, "fdatasync": 83, "utimensat": 88, "syncfs": 267,
    "renameat2": 276, "copy_file_range": 285, "preadv2": 286, "pwritev2": 287, "statx": 291,
}  # fmt: skip
_MACHINES = {"x86_64": (0xC000003E, 317, _X86), "aarch64": (0xC00000B7, 277, _ARM)}
"""Of each architecture: its name in a filter, the number of seccomp(2), those of the calls."""

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_NO_NEW_PRIVS, _SET_FILTER, _NEW_LISTENER, _CLOSE_RANGE = 38, 1, 8, 436
_RECEIVE, _SEND, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082104
_GO_ON = 1
_NOTHING = bytes(80)
_CALL, _ANSWER = struct.Struct("=QIIi"), struct.Struct("=Qqii")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Hit:
    """What happens to one call."""

    call: str
    number: int
    """The how many-th of these calls, from 1."""
    error: int = 0
    """The errno that it fails with; without one the process is killed on entering it."""


@dataclass(slots=True)
class Traced:
    """How a piece of work went."""

    code: int = 0
    """Its exit code; negative for a signal."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often it made which call."""
    met: bool = False
    """Whether the call that was to be hit came."""


def traced(
    work: Callable[[], object], *, log: Path, which: Collection[str] = (), hit: Hit | None = None
) -> Traced:
    """Do it in a fork, asked at these calls, or at the one that is hit.

    Raises PermissionError where that is not allowed, Broken where it does not come to an end.
    """
    if platform.machine() not in _MACHINES:
        raise PermissionError(f"the calls of {platform.machine()} have no numbers here")
    arch, seccomp, known = _MACHINES[platform.machine()]
    numbers = {known[name]: name for name in ([hit.call] if hit else which) if name in known}
    ours, theirs = socket.socketpair()

    def started() -> object:
        ours.close()
        listener = _ask_before(arch, seccomp, list(numbers))
        socket.send_fds(theirs, [b"."], [listener])
        _libc.syscall(_CLOSE_RANGE, listener, listener, 0)  # none of the traced calls
        return work()

    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        with theirs:
            fork = Fork(started, log=log)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        for fd in fds:
            stack.callback(os.close, fd)
        stack.enter_context(fork)  # ends before the listener is closed
        if not fds:
            raise PermissionError(fork.said())
        done = Traced()
        _answer(fds[0], numbers, hit, done)
        done.code = fork.end()
    return done


def _ask_before(arch: int, seccomp: int, numbers: list[int]) -> int:
    """From now on these calls wait for an answer, which is given by who has this fd."""
    count = len(numbers)
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 0, count + 1, arch), (_LOAD, 0, 0, 0)]
    lines += [(_EQUAL, count - at, 0, number) for at, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ASK)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener: int = _libc.syscall(seccomp, _SET_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise PermissionError(f"seccomp: {os.strerror(ctypes.get_errno())}")
    return listener


def _answer(listener: int, numbers: dict[int, str], hit: Hit | None, done: Traced) -> None:
    """Let each call go on but the one that is hit, until nobody is left who could ask."""
    with contextlib.suppress(OSError):  # Linux 6.6 and newer: both are on one processor
        fcntl.ioctl(listener, _SET_FLAGS, 1)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while events := poll.poll(PATIENCE * 1000):
        if not events[0][1] & select.POLLIN:
            return
        with contextlib.suppress(FileNotFoundError):  # it was killed while it asked
            ident, pid, _, number = _CALL.unpack_from(fcntl.ioctl(listener, _RECEIVE, _NOTHING))
            name = numbers[number]
            done.calls[name] += 1
            error, flags = 0, _GO_ON
            if hit and hit.number == done.calls[name]:
                done.met = True
                if not hit.error:
                    os.kill(pid, signal.SIGKILL)
                    continue
                error, flags = -hit.error, 0
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(ident, 0, error, flags))
    raise Broken(f"nothing comes any more, and it does not end: {PATIENCE} s")
