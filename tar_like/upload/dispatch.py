"""Who sends missing blocks: the options that both ways share, and the interface they have.

``local.LocalDispatcher``       processes on this machine
``workers.queue.RedisDispatcher``  workers on any number of hosts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from tar_like.config import S3Settings, Trust
from tar_like.rules import Rules
from tar_like.source import WasRead
from tar_like.upload.client import Client, Pace
from tar_like.upload.range import BlockOutcome, Taker
from tar_like.wire import Status


class Progress(Protocol):
    """Who wants to see how far an upload is."""

    def blocks(self, total: int, done: int) -> None:
        """There are ``total`` bytes to send, of which the receiver has ``done``."""

    def advance(self, raw: int) -> None:
        """So many bytes more have arrived."""

    def say(self, text: str) -> None:
        """A sentence for the user."""


class Offered(NamedTuple):
    """A patch that the receiver has taken up."""

    status: Status
    files: Mapping[bytes, WasRead]
    """What was read already, by path."""


class UploadOptions(NamedTuple):
    """What to send where, and how."""

    source: str
    index_path: str
    urls: tuple[str, ...]
    """Receivers of one destination; senders are spread over them."""
    block_size: int
    processes: int = 1
    first: int | None = None
    last: int | None = None
    """First and last block to send, both included."""
    ignore_done: bool = False
    """Send blocks that the receiver has, too."""
    compress: str = "auto"
    trust: Trust = Trust()
    """Workers on other hosts have their own."""
    record: str | None = None
    limit: int = 0
    """Bytes a second that all senders together may put on the wire; 0 is no limit."""
    dials: str = ""
    """Folder where the limit of local processes is found, to be changed."""
    rules: Rules = Rules()
    """What may be done with names that are at the destination already."""
    checksum: bool = False
    """Have the receiver believe no fingerprint: it reads every file that may be kept."""
    look: str = ""
    """The token of the look that the receiver took meanwhile, if any."""
    patch: Offered | None = None
    """Where the index is only of what differs (upload.patch)."""
    direct: Callable[[], Taker] | None = None
    """Where the receiver is this run's own: makes what takes blocks in, in a process that sends."""
    s3: S3Settings | None = None
    """How to reach a bucket; without it, as the settings of the sending host say."""

    def client(self, number: int, pace: Pace | None = None) -> Client:
        """A client of the receiver that the sender of this number speaks to."""
        first = number % len(self.urls)
        return Client(
            self.urls[first],
            others=self.urls[first + 1 :] + self.urls[:first],
            trust=self.trust,
            pace=pace,
        )


class Sending(NamedTuple):
    """Blocks of one transfer that are to be sent."""

    transfer: str
    plan_path: str
    index_path: str
    block_size: int
    missing: list[int]
    """Block numbers, ascending."""


class Dispatcher(Protocol):
    """Has blocks sent by whoever it knows."""

    def send(self, sending: Sending, progress: Progress) -> Iterator[BlockOutcome]:
        """Have the blocks sent; one outcome a block, in any order, as they become known.

        Every block that arrives is also told to ``progress``, once. Ends early after ``stop``.
        Raises TarLikeError when nothing can be sent any more. What has arrived stays: calling
        again with what is still missing goes on.
        """

    def stop(self) -> None:
        """Let the blocks in flight end and begin no others. For signal handlers; idempotent."""

    def close(self, state: str) -> None:
        """The upload is over, and the transfer in this state; nothing is sent after this."""
