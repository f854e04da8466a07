"""Fanning a plan out: the dispatcher that hands blocks to workers on any number of hosts.

uploading command > RedisDispatcher.send > lead.Lead > board.Board > RQ > workers
"""

from __future__ import annotations

from collections.abc import Iterator

from tar_like.plan import Plan
from tar_like.upload.dispatch import Progress, Sending, UploadOptions
from tar_like.upload.range import BlockOutcome
from workers.lead import Lead
from workers.link import connect, greet
from workers.news import News
from workers.receivers import Receivers


class RedisDispatcher:
    """A Dispatcher (tar_like.upload.dispatch) that enqueues ranges for workers."""

    def __init__(self, options: UploadOptions, redis_url: str) -> None:
        """Raises UsageError for a URL that is none, and RedisGone when nobody answers there."""
        self._options = options
        self._url = redis_url
        self._connection = connect(redis_url)
        greet(self._connection, redis_url)
        self._news = News(self._connection, options)
        self._stopped = False
        self._limit = options.limit

    def send(self, sending: Sending, progress: Progress) -> Iterator[BlockOutcome]:
        """See Dispatcher."""
        plan = Plan(sending.plan_path, sending.index_path)
        receivers = Receivers(self._options, sending.transfer)
        lead = Lead(
            self._options, sending, plan,
            connection=self._connection, redis_url=self._url, news=self._news,
            receivers=receivers, progress=progress, stopped=lambda: self._stopped,
            limit=self._limit,
        )  # fmt: skip
        try:
            yield from lead.outcomes()
        finally:
            self._limit = lead.limit  # the next round keeps to what it was changed to
            receivers.close()
            plan.close()

    def stop(self) -> None:
        """See Dispatcher."""
        self._stopped = True

    def close(self, state: str) -> None:
        """See Dispatcher."""
        self._news.end("interrupted" if self._stopped else state)
        self._connection.close()
