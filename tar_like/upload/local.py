"""Having blocks sent by processes on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from tar_like.plan import Plan
from tar_like.source import open_source
from tar_like.upload.dispatch import Progress, Sending, UploadOptions
from tar_like.upload.limit import SharedBucket, pacer
from tar_like.upload.pool import Pool
from tar_like.upload.range import BlockOutcome, RangeSender


class LocalDispatcher:
    """A Dispatcher over ``pool.Pool``."""

    def __init__(self, options: UploadOptions) -> None:
        self._options = options
        self._pool: Pool | None = None
        self._stopped = False
        self.bucket = SharedBucket(options.limit)
        """The limit of all processes together; where there is one, it may be changed."""

    def send(self, sending: Sending, progress: Progress) -> Iterator[BlockOutcome]:
        """See Dispatcher."""

        def make(number: int) -> RangeSender:
            return self._sender(sending, number)

        self._pool = Pool(make, self._options.processes)
        if self._stopped:
            self._pool.stop()
        for outcome in self._pool.send(sending.missing, len(sending.missing)):
            if not outcome.error:
                progress.advance(outcome.raw)
            yield outcome

    def _sender(self, sending: Sending, number: int) -> RangeSender:
        return RangeSender(
            self._options.client(number, pacer(self.bucket) if self._options.limit else None),
            Plan(sending.plan_path, sending.index_path),
            open_source(self._options.source, self._options.s3),
            compress=self._options.compress,
        )

    def stop(self) -> None:
        """See Dispatcher."""
        self._stopped = True
        if self._pool is not None:
            self._pool.stop()

    def close(self, state: str) -> None:
        """Nobody else watches a local upload."""
