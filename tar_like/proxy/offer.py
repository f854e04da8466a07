"""An offer: an index becomes a transfer.

folder/index.db > validate > furnish > transfers/ID
"""

from __future__ import annotations

import errno
import os

from tar_like.errors import NotFound
from tar_like.index import Index, validate
from tar_like.proxy.folding import check_names, folding
from tar_like.proxy.furnish import furnish
from tar_like.proxy.ledger import LEAVES, LeafRow, write_leaves
from tar_like.proxy.place import Destination
from tar_like.proxy.reissue import reissue
from tar_like.proxy.transfer import Transfer
from tar_like.rules import Rules


def offer(destination: Destination, transfer_id: str, folder: str) -> None:
    """Take up an index that was written to ``folder/index.db``: validate, then publish.

    Raises IndexInvalid (nothing is kept then), OSError.
    """
    path = os.path.join(folder, "index.db")
    leaves: list[LeafRow] = []
    validate(path, transfer_id, lambda *leaf: leaves.append(LeafRow(*leaf)))
    write_leaves(os.path.join(folder, LEAVES), leaves)
    fold = folding(folder)
    if fold is not None:
        with Index(path) as index:
            check_names(index, fold)
    open_transfer(destination, transfer_id, folder)


def reopen(destination: Destination, transfer_id: str) -> None:
    """Open a transfer of the index of the last commit, which was validated once.

    Raises OSError, sqlite3.Error, IndexInvalid.
    """
    folder = destination.temporary()
    try:
        reissue(destination, folder)
        open_transfer(destination, transfer_id, folder)
    finally:
        destination.discard(folder)


def open_transfer(destination: Destination, transfer_id: str, folder: str) -> None:
    """Make a transfer of a folder with an index that holds; nothing, if there is one."""
    furnish(destination, folder, Rules())
    final = destination.transfer(transfer_id)
    if _publish(destination, folder, final):
        return
    try:  # another was first with the same index
        Transfer(destination, transfer_id).close()
        destination.mark(transfer_id)
    except NotFound:
        destination.discard(final)
        _publish(destination, folder, final)


def _publish(destination: Destination, folder: str, final: str) -> bool:
    """Whether there was none. Raises OSError."""
    try:
        destination.durability.publish(folder, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
