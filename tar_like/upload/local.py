"""Having blocks sent by processes on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from tar_like.plan import Plan
from tar_like.source import Remembers, open_source
from tar_like.upload.client import Pace, is_here
from tar_like.upload.dial import Dial
from tar_like.upload.dispatch import Progress, Sending, UploadOptions
from tar_like.upload.limit import SharedBucket, pacer
from tar_like.upload.pool import Pool
from tar_like.upload.range import BlockOutcome, RangeSender

_FEW, _FEW_BYTES = 6, 48 << 20


class LocalDispatcher:
    """A Dispatcher over ``pool.Pool``."""

    def __init__(self, options: UploadOptions) -> None:
        self._options = options
        self._pool: Pool | None = None
        self._stopped = False
        self._dial: Dial | None = None
        self._bucket: SharedBucket | None = None

    def send(self, sending: Sending, progress: Progress) -> Iterator[BlockOutcome]:
        """See Dispatcher."""
        if self._options.limit and self._bucket is None:
            self._bucket = self._make_bucket(sending.transfer, progress)
        pace = pacer(self._bucket) if self._bucket is not None else None

        def make(number: int) -> RangeSender:
            return self._sender(sending, number, pace)

        self._pool = Pool(make, self._options.processes, few=self._few(sending))
        if self._stopped:
            self._pool.stop()
        for outcome in self._pool.send(sending.missing):
            if not outcome.error:
                progress.advance(outcome.raw)
            yield outcome

    def _few(self, sending: Sending) -> int:
        """Blocks that are sent sooner than a process is started that would send them."""
        if self._options.direct is not None:
            return 0  # what takes blocks in holds on to the transfer until its process ends
        if not all(map(is_here, self._options.urls)):
            return 1
        # Where both ends share the processors, as mostly by loopback, two that send are hardly
        # faster than one.
        return max(1, min(_FEW, _FEW_BYTES // sending.block_size))

    def _make_bucket(self, transfer: str, progress: Progress) -> SharedBucket:
        """The limit of all processes together, where others can change it."""
        options = self._options
        try:
            self._dial = Dial(options.dials, transfer, options.limit)
        except OSError as error:
            progress.say(f"The limit cannot be changed while this runs: {error}.")
            return SharedBucket(options.limit)
        return self._dial.bucket

    def _sender(self, sending: Sending, number: int, pace: Pace | None) -> RangeSender:
        taker = self._options.direct() if self._options.direct is not None else None
        source = open_source(self._options.source, self._options.s3)
        if self._options.patch is not None and isinstance(source, Remembers):
            source.remember(self._options.patch.files)
        return RangeSender(
            self._options.client(number, pace),
            Plan(sending.plan_path, sending.index_path),
            source,
            compress=self._options.compress if taker is None else "none",
            taker=taker,
        )

    def stop(self) -> None:
        """See Dispatcher."""
        self._stopped = True
        if self._pool is not None:
            self._pool.stop()

    def close(self, state: str) -> None:
        """See Dispatcher. Nobody else watches a local upload."""
        if self._dial is not None:
            self._dial.close()
