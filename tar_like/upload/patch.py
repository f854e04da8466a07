"""Offering only what of a tree is not as it was when it was committed last.

    leaves that the receiver has > those of this tree, against them > a patch: the others

The receiver makes an index of what differs, which is then sent like any other. Where it cannot, or
where much of the tree is new, the whole index is offered instead.
"""

from __future__ import annotations

import struct
import tempfile
from functools import cached_property
from itertools import islice

from tar_like.errors import Conflict, TarLikeError
from tar_like.index import Recorded
from tar_like.index.recorded import LEAF, LEAF_NAME
from tar_like.rules import PATCHED, Rules
from tar_like.upload.client import Client
from tar_like.upload.difference import (
    Candidate,
    Giving,
    Order,
    compare,
    given_by,
    parts,
    revisions,
)
from tar_like.upload.dispatch import Offered
from tar_like.upload.told import Telling
from tar_like.wire import MOST_PATCHED, Look, PatchHead

LATE = 16
"""Where all but one of so many leaves are done it is late in the scan."""
PART = 4
"""Where the receiver lacks one leaf for so many that it has, it is offered the whole index."""
SOME = 16
"""So many the receiver may lack of any tree,"""
FEW = 1000
"""and a patch may have so many names."""
_LENGTH = struct.Struct("<I")


class Patching:
    """Finds out what of a tree the receiver's last one lacks."""

    def __init__(self, client: Client, rules: Rules, look: Look, block_size: int) -> None:
        """``look`` is one of the receiver that has begun; blocks of that size will be sent."""
        self._client = client
        self._rules = rules
        self._block_size = block_size
        self._look = look
        self._seen = 0
        """Leaves that are foreign and were looked at."""
        self._candidates: dict[int, Candidate] = {}
        """Leaves that the receiver is likely to lack, by number."""
        self._room = MOST_PATCHED

    @property
    def newest(self) -> int | None:
        """The last mtime (ns) in the receiver's tree; None where that is not known."""
        return self._look.newest

    @property
    def most(self) -> int | None:
        """How many leaves the receiver may lack: where they are more the whole index is offered.

        None where it is always.
        """
        return max(SOME, len(self.base) // LEAF_NAME // PART) if self._may_be else None

    @property
    def _may_be(self) -> bool:
        """Whether a patch may be offered by these rules."""
        return self._rules.canonical in PATCHED

    @cached_property
    def base(self) -> bytes:
        """The leaves of the receiver's last tree, by the starts of their digests, in order.

        Empty where the receiver does not say.
        """
        try:
            return self._client.leaves(self._look.tree)
        except TarLikeError:
            return b""

    def gather(self, rows: Recorded) -> None:
        """Look at what will be offered, as far as it was scanned, where that is almost all.

        Then the receiver's look is over, and a processor free.
        """
        if not rows.foreign or self.most is None or len(rows.foreign) > self.most:
            return
        done, base = len(rows.leaves) // LEAF, len(self.base) // LEAF_NAME
        if done * LATE < base * (LATE - 1):
            return
        for number in islice(rows.foreign, self._seen, None):
            self._room -= len(self._candidate(rows, number).stretch.names)
            if self._room < 0:
                return
        self._seen = len(rows.foreign)

    def _candidate(self, rows: Recorded, number: int) -> Candidate:
        found = self._candidates.get(number)
        if found is None:
            stretch, _ = rows.stretch(number)
            found = self._candidates[number] = Candidate.of(stretch, self._look)
        return found

    def offer(self, rows: Recorded, path: str) -> Offered | None:
        """Have a transfer of what differs; its index goes to ``path``.

        None where the whole index is to be offered. Files that are newer than all that the
        receiver has are read meanwhile, if they are few.
        """
        if not (self._may_be and rows.regular and self.base):
            return None
        order = compare(self.base, bytes(rows.leaves))
        room = min(max(FEW, rows.summary.entries // PART), MOST_PATCHED)
        given = list[Giving]()
        for number, base in given_by(order, len(self.base) // LEAF_NAME):
            one = self._candidate(rows, number)
            room -= len(one.stretch.names)
            if room < 0:
                return None
            given.append((one, base))
        revised = revisions(given)
        try:
            try:
                return self._offer(rows, path, order, given, revised)
            except Conflict:  # maybe a leaf is not what it was taken for
                return self._offer(rows, path, order, given, set()) if revised else None
        except TarLikeError:
            return None

    def _offer(
        self, rows: Recorded, path: str, order: Order, given: list[Giving], revised: set[int]
    ) -> Offered:
        """Raises TarLikeError."""
        head = PatchHead(
            base=self._look.tree,
            look=self._look.token,
            source=rows.url,
            order=tuple(order),
            plan=self._client.wish(self._block_size, self._rules, ask=True, look=self._look.token),
        )
        newer = [one.stretch for one, _ in given if one.newer]
        with tempfile.NamedTemporaryFile() as file:
            text = head.to_json()
            file.write(_LENGTH.pack(len(text)) + text)
            file.writelines(parts(given, revised))
            file.flush()
            with Telling(rows.url, newer, self.newest or 0) as telling:
                status = self._client.patch(rows.summary.id, file.name, telling.begin)
                self._client.fetch(status.id, "db", path)
        return Offered(status, telling.files)
