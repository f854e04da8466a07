"""Sending a range of blocks: the code that the local pool and workers on other hosts share.

for each missing block of the range: pieces > make > PUT > outcome
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from tar_like.codec import REASONS, Body
from tar_like.errors import (
    Conflict,
    Forbidden,
    NoSpace,
    NotFound,
    SourceUnusable,
    TarLikeError,
    Unauthorized,
    Unreachable,
    shown,
)
from tar_like.layout import Piece
from tar_like.plan import Plan
from tar_like.source import Recognizes, Source
from tar_like.upload.block import BlockMaker, Compressor, Made
from tar_like.upload.client import Client
from tar_like.wire import COMPLETE


class BlockOutcome(NamedTuple):
    """What became of one block."""

    block_no: int
    digest: bytes = b""
    raw: int = 0
    wire: int = 0
    new: bool = True
    """False when the receiver had it already."""
    troubles: tuple[tuple[str, str], ...] = ()
    """(path, reason) of source entries whose bytes could not be read as the index says."""
    error: str = ""
    """Why the block could not be sent; it is still missing then."""
    fatal: bool = False
    """The error concerns every block: there is no use in going on."""
    retry: bool = False
    """The error may pass: another try, later or by another sender, may succeed."""


_FATAL = (Unreachable, NoSpace, Unauthorized, Forbidden)
"""No other block would fare better."""


class Taker(Protocol):
    """A receiver in the sender's own process."""

    def take(
        self, transfer_id: str, plan_id: str, block_no: int, body: Body, claimed: bytes
    ) -> bool:
        """Take in a block with the digest that was made of it; False when it was there already.

        Idempotent. Raises what ``Client.put_block`` does.
        """

    def close(self) -> None:
        """Make what was taken last, and end."""


class RangeSender:
    """Sends blocks of one transfer. One a process; not thread-safe."""

    def __init__(
        self,
        client: Client,
        plan: Plan,
        source: Source,
        *,
        compress: str,
        taker: Taker | None = None,
    ) -> None:
        """With a ``taker``, blocks go to it, and everything else to the client's receiver."""
        self._client = client
        self._taker = taker
        self._plan = plan
        self._source = source
        self._maker = BlockMaker(source, plan.block_size)
        self._compressor = Compressor(compress)
        if isinstance(source, Recognizes):
            source.recognize(plan.seen())

    def send(
        self, blocks: Iterable[int], *, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[BlockOutcome]:
        """Send blocks in order, until one is fatal or ``stop()`` is true between two."""
        numbers = iter(blocks)
        coming: deque[tuple[int, list[Piece]]] = deque()
        while not stop():
            more = islice(numbers, 1 + self._maker.ahead - len(coming))
            coming.extend((number, self._plan.pieces(number)) for number in more)
            if not coming:
                return
            block_no, pieces = coming.popleft()
            outcome = self._send_one(block_no, pieces, [later for _, later in coming])
            yield outcome
            if outcome.fatal:
                return

    def _send_one(
        self, block_no: int, pieces: list[Piece], following: list[list[Piece]]
    ) -> BlockOutcome:
        try:
            made = self._maker.make(pieces, self._compressor, following)
        except SourceUnusable as error:
            return BlockOutcome(block_no=block_no, error=str(error), fatal=True, retry=error.retry)
        troubles = tuple(_troubles(pieces, made))
        try:
            new = self._deliver(block_no, made)
        except Conflict:
            # It arrived before with other bytes; the receiver has marked the files concerned.
            return BlockOutcome(block_no=block_no, new=False, troubles=troubles)
        except NotFound as error:
            # Another sender of the same tree may have had it completed meanwhile.
            status = self._client.status(self._plan.index_id)
            if status is not None and status.state == COMPLETE:
                return BlockOutcome(block_no=block_no, new=False, troubles=troubles)
            return BlockOutcome(block_no=block_no, error=str(error), fatal=True)
        except TarLikeError as error:
            fatal = isinstance(error, _FATAL)
            return BlockOutcome(block_no=block_no, error=str(error), fatal=fatal, retry=error.retry)
        self._compressor.sent(made.raw)
        return BlockOutcome(
            block_no=block_no,
            digest=made.digest,
            raw=made.raw,
            wire=made.wire if self._taker is None else 0,
            new=new,
            troubles=troubles,
        )

    def _deliver(self, block_no: int, made: Made) -> bool:
        plan = self._plan
        if self._taker is not None:
            take, body = self._taker.take, Body(tuple(made.omissions), made.plain)
            return self._client.retried(
                lambda: take(plan.index_id, plan.id, block_no, body, made.digest)
            )
        return self._client.put_block(
            plan.index_id, plan.block_size, block_no, made.digest, made.body, plan=plan.id
        )

    def close(self) -> None:
        """Close source, plan and connection."""
        if self._taker is not None:
            self._taker.close()
        self._source.close()
        self._plan.close()
        self._client.close()


def _troubles(pieces: list[Piece], made: Made) -> Iterator[tuple[str, str]]:
    for number, reason in made.omissions:
        yield shown(pieces[number].path), REASONS[reason]
