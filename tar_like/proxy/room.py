"""Whether what a transfer still lacks fits into the destination's filesystem.

A lower bound, asked before a block is sent: what is refused could not have fitted. What fits by
this count may still fill the disk; the block that meets a full disk is then not acknowledged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from tar_like.errors import NoSpace
from tar_like.plan import Plan

RESERVE = 1 << 20
"""Bytes for receipts and other small records."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes, and inodes where the filesystem counts them."""

    bytes: int
    inodes: int

    def holds(self, other: Room) -> bool:
        """Whether the other fits into this one."""
        return self.bytes >= other.bytes and self.inodes >= other.inodes


def check(
    folder: str, plan: Plan, missing_blocks: int, copies: Callable[[], int] = lambda: 0
) -> None:
    """Refuse a transfer that cannot fit. ``folder`` is the transfer's own.

    ``copies`` gives the bytes that the receiver will stage by itself; some it may be staging now.

    Raises NoSpace with the numbers, OSError.
    """
    free = _free(folder)
    # The ledger will be a copy of the index, beside the one that is there.
    records = RESERVE + copies() + os.path.getsize(os.path.join(folder, "index.db"))
    most = Room(records + min(plan.bytes, missing_blocks * plan.block_size), plan.files)
    if free.holds(most):
        return
    taken = staged(os.path.join(folder, "stage"))
    needed = Room(records + max(0, plan.bytes - taken.bytes), max(0, plan.files - taken.inodes))
    if needed.bytes > free.bytes:
        raise NoSpace(
            f"The destination has too little space: {free.bytes} bytes are free, {needed.bytes} "
            "are needed. Make room, then run the same again."
        )
    if needed.inodes > free.inodes:
        raise NoSpace(
            f"The destination has too few inodes: {free.inodes} are free, {needed.inodes} are "
            "needed. Make room, then run the same again."
        )


def _free(folder: str) -> Room:
    """What this user may still take."""
    found = os.statvfs(folder)
    root = os.geteuid() == 0
    blocks = found.f_bfree if root else found.f_bavail
    inodes = (found.f_ffree if root else found.f_favail) if found.f_files else 1 << 63
    return Room(blocks * found.f_frsize, inodes)


def staged(stage: str) -> Room:
    """What a transfer has taken already."""
    taken = inodes = 0
    with os.scandir(stage) as shards:
        for shard in shards:
            with os.scandir(shard) as files:
                for file in files:
                    taken += file.stat(follow_symlinks=False).st_blocks * 512
                    inodes += 1
    return Room(taken, inodes)
