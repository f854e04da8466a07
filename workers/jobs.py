"""The one job that workers run, and the refusal of all others.

    queue > a job: function name and arguments > is it ours, with arguments that can be? > Order

RQ imports whatever callable a job names, with the JSON serializer too, and likewise the callbacks
of a job. So no job of ours is ever looked up by name: ``OrderJob`` reads its arguments as an
``Order`` and hands it to the worker, and refuses what is anything else.
Not guaranteed: a job that is in form can still name any folder that the worker may read and any
receiver, unless the worker is told its base and its receivers: whoever may write to Redis is
trusted that far.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError
from rq.exceptions import DeserializationError, NoSuchJobError, TimeoutFormatError
from rq.job import Job
from rq.queue import Queue

from tar_like.errors import TarLikeError, UsageError
from tar_like.layout import MAX_BLOCK_SIZE, PAGE
from tar_like.upload.block import MODES
from tar_like.upload.client import checked_url

FUNCTION = "workers.jobs.upload_blocks"
MAX_BLOCKS = 4096
"""Blocks of one order."""
MAX_NO = 1 << 50
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError,
    ResponseError, TimeoutFormatError,
)  # fmt: skip
"""What reading a job that somebody spoilt may raise in RQ."""


class Refused(TarLikeError):
    """A job that is none of this project's."""

    slug = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Blocks ``[first, stop)`` of a transfer that are to be sent. Nothing in it is secret."""

    transfer: str
    plan: str
    """Digest of the plan file, so that nobody sends by another plan of the same index."""
    urls: list[str]
    """The receivers, all of one destination."""
    source: str
    first: int
    stop: int
    block_size: int
    compress: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Order:
        """Raises Refused for what is no order."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names:
            raise Refused("its arguments are none of ours")
        order = cls(**values)
        texts = (order.transfer, order.plan, order.source, order.compress)
        numbers = (order.first, order.stop, order.block_size)
        if not all(type(text) is str and len(text) <= 4096 for text in texts):
            raise Refused("an argument is no text, or too long")
        if not all(type(number) is int for number in numbers):
            raise Refused("an argument is no number")
        order._check()
        return order

    def _check(self) -> None:
        if not _is_digest(self.transfer) or not _is_digest(self.plan):
            raise Refused("an id is no digest")
        if not 0 <= self.first < self.stop <= MAX_NO or self.stop - self.first > MAX_BLOCKS:
            raise Refused("its range cannot be")
        if not 0 < self.block_size <= MAX_BLOCK_SIZE or self.block_size % PAGE:
            raise Refused("its block size cannot be")
        if self.compress not in MODES or not self.source or "\0" in self.source:
            raise Refused("its source cannot be")
        if type(self.urls) is not list or not 0 < len(self.urls) <= 64:
            raise Refused("it names no receivers")
        try:
            for url in self.urls:
                checked_url(str(url))
        except UsageError:
            raise Refused("a receiver's URL cannot be") from None


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


class OrderJob(Job):
    """A job whose only work is an order; it imports nothing, whatever it names."""

    work: Callable[[OrderJob], dict[str, Any]] | None = None
    """What the worker does with it."""

    def order(self) -> Order:
        """What is to be done. Raises Refused."""
        try:
            name, instance, args, kwargs = self.func_name, self.instance, self.args, self.kwargs
        except (DeserializationError, *_BROKEN):
            raise Refused("it is not written as ours are") from None
        if name != FUNCTION or instance:
            raise Refused(f"it names {str(name)[:100]!r}")
        if self._names_more():
            raise Refused("it names callbacks, or jobs that depend on it")
        if args:
            raise Refused("its arguments are none of ours")
        return Order.from_json(kwargs)

    def refusal(self) -> str:
        """Why it is refused; empty for an order."""
        try:
            self.order()
        except Refused as error:
            return str(error)
        return ""

    def _names_more(self) -> bool:
        callbacks = (
            self._success_callback_name,
            self._failure_callback_name,
            self._stopped_callback_name,
        )
        return any(callbacks) or bool(self.webhooks) or bool(self.repeats_left)

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> Job:
        """A job; what is too broken to be one is removed, and is no job (NoSuchJobError)."""
        try:
            return super().fetch(id, connection=connection, serializer=serializer)
        except _BROKEN:
            if connection is not None:
                connection.delete(cls.key_for(id))
            raise NoSuchJobError(f"{id!r} is broken") from None

    def _execute(self) -> dict[str, Any]:
        if self.work is None:
            raise Refused("nobody is here to do it")
        return self.work(self)

    @property
    def func(self) -> None:
        """Nothing: what a job names is never imported."""
        return None

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Nothing: no order has any."""

    @property
    def should_retry(self) -> bool:
        """Only orders are tried again."""
        return not self.refusal() and super().should_retry


class OrderQueue(Queue):
    """The queue; an entry that is not even a name is dropped."""

    job_class = OrderJob

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        while True:
            found = super().lmove(connection, queue_key, timeout)
            if found is None or _is_name(found[1]):
                return found
            connection.lrem(f"{queue_key}:intermediate", 0, found[1])


def _is_name(raw: bytes) -> bool:
    """Whether RQ would give a job such an id."""
    return re.fullmatch(rb"[A-Za-z0-9_-]{1,200}", raw) is not None
