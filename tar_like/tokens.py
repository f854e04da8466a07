"""Tokens: what a sender shows a receiver, and what it may do with it.

    shared   a random text that both sides have in their settings; may do everything
    signed   expires, and may be limited to one transfer and to some operations (signed.py)

Source: RFC 6750 (bearer tokens).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

OFFER = "offer"
"""Show an index, and negotiate its plan."""
SEND = "send"
"""Deliver blocks."""
COMMIT = "commit"
READ = "read"
"""Ask what is there: transfers, indexes, plans, what has arrived."""
OPERATIONS = (OFFER, SEND, COMMIT, READ)
AUDIENCE = "tar-like"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token lets its bearer do."""

    operations: frozenset[str] = frozenset(OPERATIONS)
    transfer: str = ""
    """The only transfer it is for; empty for any."""

    def allows(self, operation: str, transfer: str) -> bool:
        """Whether it lets one do this with this transfer; ``""`` is all of them."""
        return operation in self.operations and self.transfer in ("", transfer)


def random_token() -> str:
    """A shared token that nobody guesses."""
    return secrets.token_urlsafe(32)
