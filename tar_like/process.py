"""Child processes that do not outlive their parent, and keep their memory.

A page that a process touches for the first time costs some microseconds, thousands of which make
up a block: so memory is taken in large pages, used again, and not touched for nothing.

Sources: prctl(2), mallopt(3), madvise(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import signal

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 64 << 20
_LARGE = 32 << 20


def die_with_parent(parent: int) -> None:
    """In a child: be killed when the thread that forked it ends; end now if it has already.

    What it has inherited is not looked through for garbage: that would copy it.
    """
    gc.freeze()
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
    to decompress into them; and it has each thread take its own. Another C library does as it
    does.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 1)


def large_buffer(size: int) -> memoryview:
    """Bytes to be written to, which take memory only when they are."""
    area = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a system that has no large pages
        area.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(area)
