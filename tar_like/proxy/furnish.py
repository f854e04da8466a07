"""The folder of a transfer that nothing has been received of.

index.db and its seal, leaves.db or a patch, rules, stage/, receipts/, locks, room to say that the
disk is full
"""

from __future__ import annotations

import contextlib
import os

from tar_like.proxy.ledger import LEAVES
from tar_like.proxy.outcome import COMMIT, keep_room
from tar_like.proxy.patch import NAME
from tar_like.proxy.place import COMMIT_LOCK, LAYING_LOCK, PLAN_LOCK, Destination, touch
from tar_like.proxy.seal import SEALED, seal
from tar_like.rules import RULES, Rules


def furnish(destination: Destination, folder: str, rules: Rules) -> None:
    """Put beside an index what an open transfer has."""
    for name in ("stage", "receipts"):
        os.mkdir(os.path.join(folder, name), 0o700)
    for name in (PLAN_LOCK, COMMIT_LOCK, LAYING_LOCK):
        touch(os.path.join(folder, name))
    rules.write(folder)
    for name in (RULES, LEAVES, "index.db", NAME):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            destination.durability.file(path)
            if name in SEALED:
                destination.durability.file(seal(path))
    keep_room(folder, COMMIT)


def begin_anew(destination: Destination, transfer_id: str, rules: Rules) -> None:
    """Forget all of a transfer but its index: it is ``open`` again, to be planned by these rules.

    Of a patch nothing is left: the whole tree is to be offered. For whoever holds its locks. A
    crash between the two renames leaves it unknown. Raises OSError.
    """
    path = destination.transfer(transfer_id)
    if os.path.exists(os.path.join(path, NAME)):
        destination.discard(path)  # without its patch the index would be taken for a whole tree's
        return
    folder = destination.temporary()
    for name in ("index.db", LEAVES):
        with contextlib.suppress(FileNotFoundError):
            os.link(os.path.join(path, name), os.path.join(folder, name))
    furnish(destination, folder, rules)
    destination.discard(path)
    destination.durability.publish(folder, path)
