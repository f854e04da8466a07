"""Connections to Redis: the two kinds there are, and errors as sentences.

A worker's connection waits until Redis is back, since a worker has nothing else to do. All other
connections say at once what is wrong, and who holds one decides.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import AbstractBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq.exceptions import StopRequested

from tar_like.errors import TarLikeError, UsageError

TIMEOUT = 5.0
"""Seconds that an answer may take."""
CONNECT_TIMEOUT = 3.0
AGAIN = 1.0
"""Seconds between two tries of a patient connection."""


class RedisGone(TarLikeError):
    """Redis does not answer, or not as it should."""

    retry = True
    slug = "redis-gone"


class _Patience(AbstractBackoff):
    """Waits as long as it takes, unless the process is to stop."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def compute(self, failures: int) -> float:
        if self._stopped():
            raise StopRequested
        return AGAIN


def connect(url: str, *, timeout: float = TIMEOUT) -> Redis:
    """A connection that raises redis' errors at once. Raises UsageError for what is no URL."""
    return _from_url(url, timeout, Retry(NoBackoff(), 1))


def connect_patiently(url: str, stopped: Callable[[], bool], *, timeout: float) -> Redis:
    """A connection that waits for Redis; raises StopRequested while waiting once ``stopped()``."""
    return _from_url(url, timeout, Retry(_Patience(stopped), -1))


def _from_url(url: str, timeout: float, retry: Retry) -> Redis:
    over_network = {} if url.startswith("unix:") else {"socket_keepalive": True}
    try:
        connection: Redis = Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=CONNECT_TIMEOUT,
            retry=retry,
            **over_network,
        )
        connection.connection_pool.make_connection()  # connects nowhere: can it be made at all?
    except (ValueError, TypeError):  # the latter for options of the URL that Redis does not know
        raise UsageError(
            f"{shown_url(url)} is no Redis URL: it looks like redis://host:6379/0."
        ) from None
    return connection


def greet(connection: Redis, url: str) -> None:
    """Raises RedisGone when Redis does not answer."""
    try:
        connection.ping()
    except RedisError as error:
        raise gone(url, error) from None


def gone(url: str, error: RedisError) -> RedisGone:
    """What to tell the user."""
    return RedisGone(f"Redis at {shown_url(url)} does not answer ({error}).")


def shown_url(url: str) -> str:
    """The URL without its password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "this"
    return f"{parts.scheme}://{host}{port}{parts.path}"
