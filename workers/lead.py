"""Leading a transfer: which range goes out when, and which goes out again.

    every tick: which blocks have arrived? (the receiver's bitmap: the truth)
              > which ranges have ended, or lost their worker? > their missing blocks go out again
              > fill the queue: two ranges a worker > tell how far it is > sleep until a job ends

Redis only dispatches. When it is away the ticks wait for it; what it forgot is given out again.
Not guaranteed: that a block is sent once. A range whose worker gives no sign for LEASE + GRACE
seconds is given to another, and the first may still be alive: blocks are idempotent.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tar_like.layout import runs
from tar_like.plan import Plan
from tar_like.upload.dispatch import Progress, Sending, UploadOptions
from tar_like.upload.range import BlockOutcome
from tar_like.wire import bits_missing
from workers import records
from workers.board import ENDED, WAITING, Board
from workers.cache import plan_digest
from workers.jobs import Order
from workers.limit import limit, set_limit
from workers.link import gone
from workers.news import News
from workers.ranges import Ranges
from workers.receivers import Receivers
from workers.records import LEASE, WorkerRecord

TICK = 0.5
LOOK = 1.0
"""Seconds between two looks at the receiver's bitmap."""
GRACE = 2.5
"""Seconds that a range may be in nobody's hands: taken from the queue, and no sign of it yet."""
STALLED = 30.0
"""Seconds without a byte on the wire after which a sending worker is not waited for."""
GIVE_UP = 60.0
"""Seconds of failures without one block arriving after which the upload ends."""
AHEAD = 2
"""Ranges a worker: the one it sends and the one that waits for it."""
LAST_WORDS = 2.0
"""Seconds to wait for the reports of ranges whose blocks have all arrived."""


@dataclass(slots=True)
class _Range:
    """A range that was given out."""

    job: str
    first: int
    stop: int
    unclaimed: float = 0.0
    """Since when nobody has it; 0 while somebody has."""
    moved: tuple[str, int] = ("", -1)
    """The worker and its count of bytes at the last change."""
    moved_at: float = 0.0


class Lead:
    """One call of ``send``: decides which range goes out when."""

    def __init__(
        self, options: UploadOptions, sending: Sending, plan: Plan, *,
        connection: Redis, redis_url: str, news: News, receivers: Receivers,
        progress: Progress, stopped: Callable[[], bool], limit: int,
    ) -> None:  # fmt: skip
        self._options = options
        self._sending = sending
        self._plan = plan
        self._connection = connection
        self._redis_url = redis_url
        self._news = news
        self._receivers = receivers
        self._progress = progress
        self._stopped = stopped
        self._board = Board(connection, sending.transfer)
        self._digest = plan_digest(sending.plan_path)
        self._nonce = secrets.token_hex(4)
        self._count = 0
        self._wanted = set(sending.missing)
        """Blocks to send that have not arrived."""
        self._untold: dict[int, int] = {}
        """Blocks that have arrived, with their bytes, whose sender has not reported yet."""
        self._bad: set[int] = set()
        self._outcomes: list[BlockOutcome] = []
        self._ranges: Ranges | None = None
        self._out: dict[str, _Range] = {}
        self._fatal = ""
        self._failure = ""
        self._failed_since = 0.0
        self.limit = limit
        """Bytes a second of all workers together, as last set or changed; 0 is none."""
        self._looked = 0.0
        self._seen = b""
        """The receiver's bitmap at the last look."""
        self._rate = _Rate()
        self._alone_since = time.monotonic()
        self._said: set[str] = set()

    def outcomes(self) -> Iterator[BlockOutcome]:
        """Send, tick by tick, until all has arrived or there is no going on."""
        self._look()
        while self._wanted and not self._stopped() and not self._fatal:
            try:
                self._tick()
            except RedisError as error:
                self._away(error)
            yield from self._drain()
        yield from self._end()

    # --- one tick ---------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._lead():
            self._pause()
            self._look_if_due()
            return
        workers = records.workers(self._connection)
        if self._ranges is None:
            self._begin(workers)
        self._settle(workers)
        for job in self._board.enqueue_due(self._out):
            self._fail(f"{job} is tried again.")
        self._keep_limit()
        self._fill(len(workers))
        self._miss(workers)
        self._tell(workers)
        self._forgive("away")
        self._pause()
        self._look_if_due()
        self._check_failures()

    def _lead(self) -> bool:
        """Whether this command leads the transfer; only one does."""
        key, mine = records.lead_key(self._sending.transfer), self._nonce.encode()
        if self._connection.set(key, mine, nx=True, ex=LEASE):
            return True
        if self._connection.get(key) == mine:
            self._connection.expire(key, LEASE)
            return True
        self._say_once("lead", "Another command leads this transfer; following it.")
        return False

    def _begin(self, workers: list[WorkerRecord]) -> None:
        """Clear what an earlier command left in the queue; keep what workers are at."""
        self._board.clear()
        set_limit(self._connection, self._sending.transfer, self.limit)
        taken: set[int] = set()
        for record in workers:
            fits = 0 <= record.first < record.stop <= self._plan.block_count
            if record.transfer == self._sending.transfer and record.job and fits:
                self._out[record.job] = _Range(record.job, record.first, record.stop)
                taken.update(range(record.first, record.stop))
        self._ranges = Ranges(sorted(self._wanted - self._bad - taken))

    def _settle(self, workers: list[WorkerRecord]) -> None:
        """Take the reports of ranges that have ended, and take ranges from the dead."""
        assert self._ranges is not None
        if not self._out:
            return
        claims = {record.job: record for record in workers if record.job}
        ids = list(self._out)
        states = self._board.states(ids)
        ended = [job for job in ids if states[job] in ENDED]
        reports = {job: self._board.report(job) for job in ended}
        lost = [job for job in ids if job not in reports and self._is_lost(job, states, claims)]
        if not ended and not lost:
            return
        self._look()  # after the reports: what they say has arrived is in this bitmap
        for job in [*ended, *lost]:
            one = self._out.pop(job)
            report = reports.get(job)
            if report is not None:
                self._take(report)
            missing = [n for n in range(one.first, one.stop) if n in self._wanted]
            if job in ended:
                self._ranges.give_back(missing)
            else:
                self._give_out_first(missing)
        if lost:
            self._news.tell(redispatched=self._news.record.redispatched + len(lost))
            self._board.delete(lost)

    def _is_lost(self, job: str, states: dict[str, str], claims: dict[str, WorkerRecord]) -> bool:
        one, now = self._out[job], time.monotonic()
        record = claims.get(job)
        if record is not None:
            one.unclaimed = 0.0
            return self._is_stalled(one, record, now)
        if states[job] in WAITING:
            one.unclaimed = 0.0
            return False
        one.unclaimed = one.unclaimed or now
        return now - one.unclaimed > GRACE

    def _is_stalled(self, one: _Range, record: WorkerRecord, now: float) -> bool:
        mark = (record.name, record.moved)
        if mark != one.moved or record.phase != "sending":
            one.moved, one.moved_at = mark, now
        patience = STALLED if not self.limit else 10 * STALLED
        return now - one.moved_at > patience

    def _take(self, report: dict[str, Any]) -> None:
        """What a worker said of its range. Only the bitmap says what has arrived."""
        if "failure" in report:
            self._fail(str(report["failure"]))
            return
        try:
            rows = [_row(values) for values in report["blocks"]]
            errors = [(int(number), str(text)) for number, text in report["errors"]]
            troubles = [(str(path), str(reason)) for path, reason in report["troubles"]]
            fatal, seconds = str(report["fatal"]), float(report["seconds"])
        except (KeyError, TypeError, ValueError):
            return
        if self._ranges is not None:
            self._ranges.learn(len(rows), seconds)
        for number, row in enumerate(rows):
            if self._untold.pop(row.block_no, None) is not None:
                self._outcomes.append(row._replace(troubles=tuple(troubles) if not number else ()))
        for number, text in errors:
            if number in self._wanted and not fatal:
                self._wanted.discard(number)
                self._bad.add(number)
                self._outcomes.append(BlockOutcome(block_no=number, error=text))
        if fatal:
            self._fatal = fatal

    def _give_out_first(self, missing: list[int]) -> None:
        """Before all that waits: who held these blocks is gone, and time with it."""
        for first, stop in runs(iter(missing)):
            self._give_out(first, stop, at_front=True)

    def _fill(self, workers: int) -> None:
        """Two ranges a worker are out; a few even while there is no worker."""
        assert self._ranges is not None
        while len(self._out) < AHEAD * max(1, workers):
            found = self._ranges.next(workers)
            if found is None:
                return
            self._give_out(*found)

    def _give_out(self, first: int, stop: int, *, at_front: bool = False) -> None:
        self._count += 1
        job_id = self._board.name(self._nonce, self._count)
        self._out[job_id] = _Range(job_id, first, stop)
        self._board.put(job_id, self._order(first, stop), at_front=at_front)

    def _order(self, first: int, stop: int) -> Order:
        options = self._options
        return Order(
            transfer=self._sending.transfer,
            plan=self._digest,
            urls=list(options.urls),
            source=options.source,
            first=first,
            stop=stop,
            block_size=self._plan.block_size,
            compress=options.compress,
        )

    def _keep_limit(self) -> None:
        """The limit may be changed in Redis; what Redis forgot is put back."""
        found = limit(self._connection, self._sending.transfer)
        if found is None:
            set_limit(self._connection, self._sending.transfer, self.limit)
        else:
            self.limit = found

    def _pause(self) -> None:
        """Sleep until a job ends, or for a tick."""
        self._connection.blpop([records.done_key(self._sending.transfer)], TICK)

    # --- the receiver -----------------------------------------------------------------------

    def _look_if_due(self) -> None:
        if time.monotonic() - self._looked >= LOOK:
            self._look()

    def _look(self) -> None:
        """Learn from the receiver what has arrived."""
        count = self._plan.block_count
        size = (count + 7) // 8
        bits = self._receivers.bitmaps()
        self._looked = time.monotonic()
        received = bits[:size]
        arrived = self._wanted.intersection(_fresh(self._seen, received, count))
        self._seen = received
        for number in arrived:
            raw = sum(extent.stop - extent.start for extent in self._plan.extents(number))
            self._untold[number] = raw
            self._progress.advance(raw)
            self._rate.add(raw)
        self._wanted -= arrived
        if arrived:
            self._failed_since = 0.0
        self._note_sizes(_ones(received), _ones(bits[size:]), count)

    def _note_sizes(self, received: int, durable: int, count: int) -> None:
        total = self._plan.bytes
        self._sizes = {
            "id": self._sending.transfer,
            "blocks": count,
            "block_size": self._plan.block_size,
            "bytes": total,
            "received": received,
            "durable": durable,
            "received_bytes": total * received // max(1, count),
            "durable_bytes": total * durable // max(1, count),
            "rate": self._rate.now(),
        }

    def _tell(self, workers: list[WorkerRecord]) -> None:
        running = sum(1 for record in workers if record.job in self._out)
        self._news.tell(
            **self._sizes, state="receiving", limit=self.limit, running=running,
            queued=len(self._out) - running, failure=self._failure,
        )  # fmt: skip

    # --- failures ---------------------------------------------------------------------------

    def _fail(self, text: str) -> None:
        if not text.endswith("is tried again."):
            self._failure = text[:500]
        self._failed_since = self._failed_since or time.monotonic()

    def _check_failures(self) -> None:
        if self._failed_since and time.monotonic() - self._failed_since > GIVE_UP:
            self._fatal = self._failure or "Workers fail without saying why."

    def _away(self, error: RedisError) -> None:
        """Redis does not answer: say so, and wait; the receiver is still looked at."""
        self._say_once("away", f"{gone(self._redis_url, error)} Waiting for it.")
        time.sleep(TICK)
        self._look_if_due()

    def _miss(self, workers: list[WorkerRecord]) -> None:
        """Say when there is nobody to do the work."""
        now = time.monotonic()
        if workers:
            self._alone_since = now
            self._said.discard("nobody")
        elif now - self._alone_since > LEASE:
            self._say_once("nobody", "No worker is there: start 'tar-like worker'. Waiting.")

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._progress.say(text)

    def _forgive(self, what: str) -> None:
        if what in self._said:
            self._said.discard(what)
            self._progress.say("Redis is back.")

    # --- the end ----------------------------------------------------------------------------

    def _drain(self) -> Iterator[BlockOutcome]:
        found, self._outcomes = self._outcomes, []
        yield from found

    def _end(self) -> Iterator[BlockOutcome]:
        """The last reports, then the blocks that nobody reported, then why it ended."""
        try:
            self._last_words()
            queued = [
                job for job, state in self._board.states(list(self._out)).items() if state != ""
            ]
            claimed = {record.job for record in records.workers(self._connection)}
            self._board.delete(job for job in queued if job not in claimed)
            self._connection.delete(records.lead_key(self._sending.transfer))
        except RedisError:
            pass  # what it keeps of this ends by itself, and harms nothing
        yield from self._drain()
        for number, raw in sorted(self._untold.items()):
            yield BlockOutcome(block_no=number, raw=raw, wire=raw)
        self._untold.clear()
        self._news.tell(**self._sizes, state="received" if not self._wanted else "incomplete")
        if self._fatal and self._wanted:
            yield BlockOutcome(block_no=min(self._wanted), error=self._fatal, fatal=True)

    def _last_words(self) -> None:
        end = time.monotonic() + LAST_WORDS
        while self._untold and self._out and time.monotonic() < end:
            states = self._board.states(list(self._out))
            for job in [job for job, state in states.items() if state in ENDED]:
                del self._out[job]
                self._take(self._board.report(job) or {})
            if self._untold:
                self._connection.blpop([records.done_key(self._sending.transfer)], 0.1)


@dataclass(slots=True)
class _Rate:
    """Bytes a second over the last WINDOW seconds."""

    window: float = 10.0
    _points: list[tuple[float, int]] = field(default_factory=list)

    def add(self, raw: int) -> None:
        self._points.append((time.monotonic(), raw))

    def now(self) -> float:
        now = time.monotonic()
        self._points = [point for point in self._points if now - point[0] <= self.window]
        if not self._points:
            return 0.0
        span = max(1.0, now - self._points[0][0])
        return round(sum(raw for _, raw in self._points) / span, 1)


def _fresh(before: bytes, after: bytes, count: int) -> Iterator[int]:
    """Numbers in ``[0, count)`` whose bit is set after and was not before, ascending."""
    fresh = int.from_bytes(after, "little") & ~int.from_bytes(before, "little")
    others = ~fresh & ((1 << 8 * len(after)) - 1)
    return bits_missing(others.to_bytes(len(after), "little"), count)


def _ones(bits: bytes) -> int:
    return int.from_bytes(bits, "little").bit_count()


def _row(values: Any) -> BlockOutcome:
    number, raw, wire, new, digest = values
    return BlockOutcome(
        block_no=int(number),
        digest=bytes.fromhex(digest),
        raw=int(raw),
        wire=int(wire),
        new=bool(new),
    )
