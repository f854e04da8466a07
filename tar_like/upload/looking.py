"""Having a receiver look, beside the scan, whether its last tree is in its place (proxy.look).

begin_look > (scan) > still_there, if the tree is that one

Kept apart: the rest of what an upload needs is imported while the receiver looks.
"""

from __future__ import annotations

from tar_like.errors import Forbidden, NotFound, Unauthorized
from tar_like.rules import Rules
from tar_like.upload.client import Client
from tar_like.wire import LOOKING, Look, Status


def begin_look(client: Client) -> Look | None:
    """Have a receiver look at its destination; None when it does not do that for us."""
    try:
        return client.look()
    except (Forbidden, Unauthorized):
        return None  # whoever may not ask this may send all the same


def still_there(client: Client, rules: Rules, look: Look) -> Status | None:
    """The tree of the receiver's last commit once more: complete, if a look found it in place.

    Otherwise it is to be sent as any tree; None, or a status that is not ``complete``.
    """
    try:
        while True:
            status = client.again(look, rules)
            if status is None or status.state != LOOKING:
                return status
    except (Forbidden, NotFound):
        return None
