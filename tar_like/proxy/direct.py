"""Taking in blocks from a sender in the same process.

    sender: pieces > digests > Direct.take > staged > receipt

The receiver that ``sync`` starts for a folder is a child of the run, and so are its senders: they
all hold the destination together. A block need not go through HTTP to get from one to the other.
A process that sends is then one more that receives: it has a log of receipts of its own, and makes
it durable as a serving process does. Everything but blocks still goes to the receiver.

Not guaranteed: a digest is not made again of bytes that never left the process. The commit reads
them back and compares, as ever.
"""

from __future__ import annotations

import sqlite3
import sys
import threading

from tar_like.codec import Body
from tar_like.database import trouble
from tar_like.errors import ReceiverFailed, TarLikeError
from tar_like.proxy import intake
from tar_like.proxy.intake import map_write_error
from tar_like.proxy.place import Destination
from tar_like.proxy.transfer import Transfer


class Direct:
    """Takes in the blocks of one sender. For the process and the thread that made it."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._transfer: Transfer | None = None
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._checkpoints = threading.Thread(target=self._checkpoint, daemon=True)
        self._checkpoints.start()

    def take(
        self, transfer_id: str, plan_id: str, block_no: int, body: Body, claimed: bytes
    ) -> bool:
        """Stage and record one block whose digest was made of these very bytes. Idempotent.

        False when it was there already. Raises NotFound, Conflict, NoSpace, ReceiverFailed.
        """
        try:
            transfer = self._opened(transfer_id)
            transfer.check_plan(plan_id)
            return transfer.take(block_no, body, claimed)
        except OSError as error:
            raise map_write_error(error) from None
        except sqlite3.Error as error:
            raise ReceiverFailed(
                f"The receiver's records cannot be read or written ({trouble(error)})."
            ) from None

    def _opened(self, transfer_id: str) -> Transfer:
        transfer = self._transfer
        if transfer is None or transfer.id != transfer_id or not transfer.alive:
            transfer = Transfer(self._destination, transfer_id)
            with self._lock:
                self._transfer = transfer
        return transfer

    def _checkpoint(self) -> None:
        while not self._end.wait(intake.CHECKPOINT_POLL):
            with self._lock:
                transfer = self._transfer
            if transfer is not None and transfer.checkpoint_due:
                _settle(transfer)

    def close(self) -> None:
        """A last checkpoint, then close every file."""
        self._end.set()
        self._checkpoints.join()
        if self._transfer is not None:
            if self._transfer.alive:
                _settle(self._transfer)
            self._transfer.close()
            self._transfer = None


def _settle(transfer: Transfer) -> None:
    try:
        transfer.checkpoint()
    except TarLikeError as error:  # nothing is called durable then
        sys.stderr.write(f"tar-like: {error}\n")
