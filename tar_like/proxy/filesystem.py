"""What kind of filesystem a file lies on (statfs(2))."""

from __future__ import annotations

import ctypes

EXT, XFS, BTRFS, TMPFS, F2FS = 0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010
"""By their magic numbers; ext2, ext3 and ext4 have one."""
PLAIN = frozenset((EXT, XFS, BTRFS, TMPFS, F2FS))
"""Those of this host's own kernel: a directory has another ctime whenever a name in it comes or
goes, and no server copies files by itself."""


def kind_of(fd: int) -> int:
    """The magic number of an open file's filesystem; 0 where it cannot be told."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).fstatfs(fd, buffer) != 0:
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF
