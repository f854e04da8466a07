"""The folder of a transfer that nothing has been received of.

index.db and its seal, rules, stage/, receipts/, locks, room to say that the disk is full
"""

from __future__ import annotations

import os

from tar_like.proxy.outcome import COMMIT, keep_room
from tar_like.proxy.place import COMMIT_LOCK, PLAN_LOCK, Destination, touch
from tar_like.proxy.seal import seal
from tar_like.rules import RULES, Rules


def furnish(destination: Destination, folder: str, rules: Rules) -> None:
    """Put beside an index what an open transfer has."""
    for name in ("stage", "receipts"):
        os.mkdir(os.path.join(folder, name), 0o700)
    for name in (PLAN_LOCK, COMMIT_LOCK):
        touch(os.path.join(folder, name))
    rules.write(folder)
    index = os.path.join(folder, "index.db")
    for path in (index, os.path.join(folder, RULES), seal(index)):
        destination.durability.file(path)
    keep_room(folder, COMMIT)


def begin_anew(destination: Destination, transfer_id: str, rules: Rules) -> None:
    """Forget all of a transfer but its index: it is ``open`` again, to be planned by these rules.

    For whoever holds its locks. A crash between the two renames leaves it unknown. Raises OSError.
    """
    path = destination.transfer(transfer_id)
    folder = destination.temporary()
    os.link(os.path.join(path, "index.db"), os.path.join(folder, "index.db"))
    furnish(destination, folder, rules)
    destination.discard(path)
    destination.durability.publish(folder, path)
