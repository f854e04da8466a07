"""Child processes that do not outlive their parent, and keep their memory.

Sources: prctl(2), mallopt(3).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 64 << 20
_LARGE = 32 << 20


def die_with_parent(parent: int) -> None:
    """In a child: be killed when the thread that forked it ends; end now if it has already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def start_pool_worker(parent: int) -> None:
    """In a pool's process: leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)


def keep_memory() -> None:
    """In a process that handles block after block: keep what it frees for the next one.

    glibc gives the memory of large objects back, and getting its pages anew takes longer than
    to decompress into them. Another C library does as it does.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
