"""The bandwidth limit of a transfer, shared by its workers: a token bucket in Redis.

    limit:ID  bytes a second, set by the uploading command or by ``tar-like limit``
    bucket:ID when the bucket is free again, microseconds of Redis' clock

While Redis does not answer, each worker keeps to its share of the last limit it knew of.
"""

from __future__ import annotations

import time

from redis import Redis
from redis.exceptions import RedisError

from tar_like.upload.limit import BURST, debit
from workers.records import KEEP, bucket_key, limit_key

MAX_CREDIT = 4 << 20
"""Bytes that a worker takes at once, so as not to ask for every slice."""

_TAKE = """
local rate = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if rate <= 0 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local free = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
local start = math.max(free, now - tonumber(ARGV[2]))
free = start + tonumber(ARGV[1]) * 1000000 / rate
local keep = math.ceil((free - now) / 1000) + 10000
redis.call('SET', KEYS[2], string.format('%.0f', free), 'PX', string.format('%.0f', keep))
return string.format('%.0f', math.max(0, start - now))
"""


class RedisBucket:
    """A Bucket (tar_like.upload.limit) that workers of one transfer share. One thread takes."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._script = connection.register_script(_TAKE)
        self._transfer = ""
        self._rate = 0
        self._share = 0.0
        self._credit = 0
        self._free = 0.0

    @property
    def rate(self) -> int:
        """See Bucket."""
        return self._rate

    def serve(self, transfer: str) -> None:
        """Take for this transfer from now on."""
        if transfer != self._transfer:
            self._transfer, self._credit, self._rate = transfer, 0, 0
            self.look(1)

    def look(self, workers: int) -> None:
        """Learn the limit, and how many share it. Keeps to the old one when Redis is away."""
        if not self._transfer:
            return
        try:
            found = limit(self._connection, self._transfer)
        except RedisError:
            return
        if found is not None:
            self._rate = found
            self._share = found / max(1, workers)

    def take(self, count: int) -> float:
        """See Bucket."""
        rate = self._rate
        if not rate:
            return 0.0
        if self._credit >= count:
            self._credit -= count
            return 0.0
        wanted = max(count, min(MAX_CREDIT, rate // 40))
        try:
            keys = [limit_key(self._transfer), bucket_key(self._transfer)]
            wait = int(self._script(keys=keys, args=[wanted, int(BURST * 1e6)])) / 1e6
        except RedisError:
            now = time.monotonic()
            wait, self._free = debit(wanted, rate=self._share, free=self._free, now=now)
        self._credit += wanted - count
        return wait


def limit(connection: Redis, transfer: str) -> int | None:
    """The limit of a transfer; 0 is none, None when Redis knows nothing. Raises RedisError."""
    found = connection.get(limit_key(transfer))
    if found is None or not found.isdigit() or len(found) > 18:
        return None
    return int(found)


def set_limit(connection: Redis, transfer: str, rate: int) -> None:
    """Set the limit, from now on; 0 is none. Raises RedisError."""
    with connection.pipeline() as pipe:
        pipe.set(limit_key(transfer), rate, ex=KEEP)
        pipe.delete(bucket_key(transfer))
        pipe.execute()
