"""What a worker process keeps from range to range, and how it sends one.

    order > index and plan (cached, verified) > does this host see the source?
    > which of its blocks are missing? > RangeSender.send, for at most BUDGET seconds > report

The rest of a range that took too long, or that a stop cut short, is simply still missing: whoever
leads the transfer gives it out again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tar_like.config import Trust
from tar_like.errors import SourceUnusable, TarLikeError
from tar_like.layout import Piece
from tar_like.plan import Plan
from tar_like.source import Source, open_source
from tar_like.upload.client import Client
from tar_like.upload.limit import pacer
from tar_like.upload.range import BlockOutcome, RangeSender
from workers.cache import Cache
from workers.jobs import Order, OrderJob
from workers.limit import RedisBucket
from workers.pulse import Pulse

BUDGET = 7.0
"""Seconds after which no further block of a range is begun."""
ATTEMPTS = 3
"""How often a request is tried; then another worker, or another receiver, may do better."""
PROBES = 8
PROBE_BYTES = 4096
PROBE_EVERY = 10.0
MAX_TROUBLES = 100


class RangeFailed(TarLikeError):
    """A range could not be sent from here, now."""

    retry = True
    slug = "range-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How the workers of one command work."""

    redis_url: str
    cache: str
    processes: int = 1
    base: str | None = None
    """Read from here, whatever the order says."""
    urls: tuple[str, ...] = ()
    """Send to these receivers, whatever the order says."""
    trust: Trust = field(default_factory=Trust)
    trusted: tuple[str, ...] = ()
    """The receivers that are shown the token and the certificate: an order may name any."""
    burst: bool = False
    """Leave when the queue is empty."""
    max_idle: int | None = None
    """Leave after so many seconds without work."""


@dataclass(slots=True)
class _Ready:
    """All that sending blocks of one transfer takes."""

    client: Client
    plan: Plan
    source: Source
    sender: RangeSender
    probed: float = 0.0


@dataclass(slots=True)
class _Report:
    """What became of a range; the job's result."""

    blocks: list[tuple[int, int, int, bool, str]] = field(default_factory=list)
    """(block, bytes read, bytes on the wire, was it new, digest)."""
    troubles: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    """(block, why): no use to try these again."""
    fatal: str = ""
    seconds: float = 0.0

    def take(self, outcome: BlockOutcome) -> None:
        if outcome.fatal:
            self.fatal = outcome.error
        if outcome.error:
            self.errors.append((outcome.block_no, outcome.error))
            return
        row = (outcome.block_no, outcome.raw, outcome.wire, outcome.new, outcome.digest.hex())
        self.blocks.append(row)
        room = MAX_TROUBLES - len(self.troubles)
        self.troubles.extend(outcome.troubles[:room])

    def to_json(self) -> dict[str, Any]:
        return {
            "blocks": self.blocks,
            "troubles": self.troubles,
            "errors": self.errors,
            "fatal": self.fatal,
            "seconds": round(self.seconds, 3),
        }


class Runtime:
    """One object a worker process. Not thread-safe."""

    def __init__(
        self, options: WorkerOptions, number: int, pulse: Pulse, bucket: RedisBucket,
        stopped: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._options = options
        self._number = number
        self._pulse = pulse
        self._bucket = bucket
        self._stopped = stopped
        self._cache = Cache(options.cache)
        self._order: Order | None = None
        self._ready: _Ready | None = None

    def work(self, job: OrderJob) -> dict[str, Any]:
        """Send an order's range. Raises Refused, and TarLikeError when trying again can help."""
        order = job.order()
        self._pulse.show(
            job=job.id, transfer=order.transfer, first=order.first, stop=order.stop,
            sent=0, phase="preparing",
        )  # fmt: skip
        try:
            report = self._send(self._get_ready(order), order)
        except BaseException:
            self.forget()
            self._number += 1  # the next try speaks to another receiver, if there are several
            raise
        return report.to_json()

    def forget(self) -> None:
        """Close what belongs to the last transfer."""
        if self._ready is not None:
            self._ready.sender.close()
        self._ready = self._order = None

    def _send(self, ready: _Ready, order: Order) -> _Report:
        self._probe(ready, order)
        report, started = _Report(), time.monotonic()
        bits = ready.client.bitmaps(order.transfer)
        count = ready.plan.block_count
        known = bits[: (count + 7) // 8]
        missing = [
            number
            for number in range(order.first, min(order.stop, count))
            if not known[number >> 3] >> (number & 7) & 1
        ]
        self._pulse.show(phase="sending")

        def stop() -> bool:
            return self._stopped() or time.monotonic() - started > BUDGET

        for outcome in ready.sender.send(missing, stop=stop):
            if outcome.error and outcome.retry:
                raise RangeFailed(outcome.error)
            report.take(outcome)
            self._pulse.note(sent=len(report.blocks))
        report.seconds = time.monotonic() - started
        return report

    def _get_ready(self, order: Order) -> _Ready:
        last = self._order
        if last is None or _basis(last) != _basis(order):
            self.forget()
            self._ready = self._build(order)
            self._order = order
        assert self._ready is not None
        return self._ready

    def _build(self, order: Order) -> _Ready:
        self._bucket.serve(order.transfer)
        client = self._client(order)

        def fetch(what: str, path: str) -> None:
            client.fetch(order.transfer, what, path)

        index_path = self._cache.index(order.transfer, fetch)
        plan = Plan(self._cache.plan(order.transfer, order.plan, fetch), index_path)
        if plan.block_size != order.block_size:
            raise RangeFailed("The plan has another block size than the order.")
        source = open_source(self._options.base or order.source)
        sender = RangeSender(client, plan, source, compress=order.compress)
        return _Ready(client, plan, source, sender)

    def _client(self, order: Order) -> Client:
        urls = self._options.urls or tuple(order.urls)
        wait = pacer(self._bucket)

        def pace(count: int) -> None:
            wait(count)
            self._pulse.pace(count)

        url = urls[self._number % len(urls)]
        return Client(
            url,
            trust=self._trust(url),
            attempts=ATTEMPTS,
            pace=pace,
        )

    def _trust(self, url: str) -> Trust:
        """The token is not for whomever somebody who writes to Redis may think of."""
        trust = self._options.trust
        return trust if url in self._options.trusted else trust._replace(token="", certificate="")

    def _probe(self, ready: _Ready, order: Order) -> None:
        """Raises SourceUnusable when nothing of the tree is seen from here: a mount is missing.

        Otherwise its files would be reported as vanished, which they are not.
        """
        now = time.monotonic()
        if ready.probed and now - ready.probed < PROBE_EVERY:
            return
        count = ready.plan.block_count
        places = {order.first, *(count * n // PROBES for n in range(PROBES))}
        buffer = memoryview(bytearray(PROBE_BYTES))
        seen = [
            not ready.source.read([_head(pieces[0])], buffer).omissions
            for place in sorted(places)
            if place < count and (pieces := ready.plan.pieces(place))
        ]
        if seen and not any(seen):
            raise SourceUnusable(
                f"Nothing of the tree is as the index says in {ready.source.url} here: is it "
                "mounted on this host? -b names another place."
            )
        ready.probed = now


def _basis(order: Order) -> tuple[object, ...]:
    """What all orders of one transfer have in common."""
    return order.transfer, order.plan, order.source, order.compress, tuple(order.urls)


def _head(piece: Piece) -> Piece:
    return piece._replace(stop=min(piece.stop, piece.start + PROBE_BYTES))
