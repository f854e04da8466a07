"""After a failed sync nothing since the last checkpoint is trusted, whoever received it.

The kernel reports a failed write once, and then takes the pages for clean: reading them back
shows what was written, and the next sync succeeds, though the disk has other bytes. So the blocks
must come again. Source: fsync(2), NOTES and ERRORS.
"""

from __future__ import annotations

import os

from tar_like.proxy.place import Destination
from tar_like.proxy.receipts import ReceiptLog, Receipts
from tar_like.proxy.verified import Verified


def distrust(destination: Destination) -> None:
    """Void the receipts that no checkpoint covers, of all transfers and donors. Raises OSError."""
    for folder in destination.unfinished():
        if not Verified(folder):  # else its bytes were synced before
            _void(os.path.join(folder, "receipts"))


def _void(directory: str) -> None:
    receipts = Receipts(directory)
    receipts.refresh()
    durable = set(receipts.durable_blocks())
    void = [
        (block, receipt.epoch)
        for block in receipts.blocks()
        if block not in durable and (receipt := receipts.find(block)) is not None
    ]
    if void:
        log = ReceiptLog(directory)
        log.revoke(void)
        log.close()
