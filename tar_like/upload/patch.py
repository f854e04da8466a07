"""Offering only what of a tree is not as it was when it was committed last.

    leaves that the receiver has > those of this tree, against them > a patch: the others

The receiver makes an index of what differs, which is then sent like any other. Where it cannot, or
where much of the tree is new, the whole index is offered instead.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from functools import cached_property

from tar_like.errors import TarLikeError
from tar_like.index import Recorded
from tar_like.index.leaf import Leaf
from tar_like.index.recorded import LEAF, LEAF_NAME, PART
from tar_like.rules import PATCHED, Rules
from tar_like.source.stretch import Stretch, newest_of
from tar_like.upload.client import Client
from tar_like.upload.told import Telling
from tar_like.wire import MOST_PATCHED, SEGMENT, Look, PatchHead, Status

FEW = 1000
"""Names that a patch may have of any tree."""
_LENGTH = struct.Struct("<I")
Order = list[tuple[int, int] | int]


class Patching:
    """Finds out what of a tree the receiver's last one lacks."""

    def __init__(self, client: Client, rules: Rules, look: Look) -> None:
        """``look`` is one of the receiver that has begun."""
        self._client = client
        self._rules = rules
        self._look = look
        self.digests: dict[bytes, bytes] = {}
        """Of files that are newer than all that the receiver has, by path, if they are few: once
        the patch was offered."""

    @cached_property
    def base(self) -> bytes:
        """The leaves of the receiver's last tree, by the starts of their digests, in order.

        Empty where nothing is to be a difference to it, or the receiver does not say.
        """
        if self._rules.canonical not in PATCHED:
            return b""
        try:
            return self._client.leaves(self._look.index)
        except TarLikeError:
            return b""

    def offer(self, rows: Recorded, path: str) -> Status | None:
        """Have a transfer of what differs; its index goes to ``path``.

        None where the whole index is to be offered. New files are read meanwhile: see ``digests``.
        """
        if not rows.regular or not self.base:
            return None
        order = compare(self.base, bytes(rows.leaves))
        head = PatchHead(
            base=self._look.index, look=self._look.token, source=rows.url, order=tuple(order)
        )
        try:
            with tempfile.NamedTemporaryFile() as file:
                text = head.to_json()
                file.write(_LENGTH.pack(len(text)) + text)
                room = min(max(FEW, rows.summary.entries // PART), MOST_PATCHED)
                newest, newer = self._look.newest, list[Stretch]()
                for number in _given(order):
                    stretch, _ = rows.stretch(number)
                    room -= len(stretch.names)
                    if room < 0:
                        return None
                    file.writelines(_packed(stretch))
                    if newest is not None and newest_of([stretch]) > newest:
                        newer.append(stretch)
                file.flush()
                with Telling(rows.url, newer, newest or 0) as telling:
                    status = self._client.patch(rows.summary.id, file.name, telling.begin)
                    self._client.fetch(status.id, "db", path)
            self.digests = telling.digests
            return status
        except TarLikeError:
            return None


def _given(order: Order) -> Iterator[int]:
    """Which of the tree's leaves the receiver lacks."""
    at = 0
    for step in order:
        if isinstance(step, int):
            yield from range(at, at + step)
            at += step
        else:
            at += step[1] - step[0]


def _packed(stretch: Stretch) -> Iterator[bytes]:
    """A stretch as a patch has it."""
    leaf = Leaf(stretch.directory, stretch.names, stretch.told, stretch.targets, {}, {}).pack()
    segments = [
        SEGMENT.pack(position, *one) for position, some in stretch.segments.items() for one in some
    ]
    versions = stretch.versions
    yield from (_LENGTH.pack(len(leaf)), leaf, versions, _LENGTH.pack(len(segments)), *segments)


def compare(base: bytes, leaves: bytes) -> Order:
    """A tree's leaves in order (wire.PatchHead), against those of another, as Patching.base."""
    numbers = {base[at : at + LEAF_NAME]: at // LEAF_NAME for at in range(0, len(base), LEAF_NAME)}
    order: Order = []
    last = 0
    for at in range(0, len(leaves), LEAF):
        number = numbers.get(leaves[at : at + LEAF_NAME], -1)
        step = order[-1] if order else None
        if number < last:
            if isinstance(step, int):
                order[-1] = step + 1
            else:
                order.append(1)
            continue
        if isinstance(step, tuple) and step[1] == number:
            order[-1] = step[0], number + 1
        else:
            order.append((number, number + 1))
        last = number + 1
    return order
