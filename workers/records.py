"""What is written to Redis besides RQ's own keys: names of keys, and the values behind them.

    tar-like:workers               sorted set: worker names by the time they last gave a sign
    tar-like:worker:NAME           a WorkerRecord; gone LEASE seconds after the last sign
    tar-like:transfers             sorted set: transfer ids by the time of the last news
    tar-like:transfer:ID           a TransferRecord, kept for a day
    tar-like:lead:ID               who leads the transfer: one uploading command
    tar-like:done:ID               list: jobs that have ended, to wake the one who leads
    tar-like:limit:ID              bytes a second of all workers together; tar-like:bucket:ID
    tar-like:refused               list: the last jobs that were refused, and why

All of it may vanish at any time. Nothing here is secret, and nothing read back is believed.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from redis import Redis

QUEUE = "tar-like"
LEASE = 5
"""Seconds after which a worker that gives no sign is taken for dead."""
BEAT = 1.2
"""Seconds between two signs of a worker."""
KEEP = 86400
WORKERS = "tar-like:workers"
TRANSFERS = "tar-like:transfers"
REFUSED = "tar-like:refused"
MAX_REFUSED = 100
MAX_VALUE = 1 << 16


def worker_key(name: str) -> str:
    return f"tar-like:worker:{name}"


def transfer_key(transfer: str) -> str:
    return f"tar-like:transfer:{transfer}"


def lead_key(transfer: str) -> str:
    return f"tar-like:lead:{transfer}"


def done_key(transfer: str) -> str:
    return f"tar-like:done:{transfer}"


def limit_key(transfer: str) -> str:
    return f"tar-like:limit:{transfer}"


def bucket_key(transfer: str) -> str:
    return f"tar-like:bucket:{transfer}"


class _Record:
    """Reading and writing as JSON. What is not of the right types is no record."""

    __slots__ = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: bytes | str | None) -> Self | None:
        """None for what is no such record."""
        if text is None or len(text) > MAX_VALUE:
            return None
        try:
            values = json.loads(text)
            known = {f.name: values[f.name] for f in fields(cls)}  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        record = cls(**known)
        blank = cls()
        return record if all(_same(blank, record, name) for name in known) else None


def _same(blank: Any, record: Any, name: str) -> bool:
    wanted, found = getattr(blank, name), getattr(record, name)
    if isinstance(wanted, float):
        return isinstance(found, int | float) and not isinstance(found, bool)
    return type(wanted) is type(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord(_Record):
    """One worker process: who it is, and what it is doing."""

    name: str = ""
    host: str = ""
    pid: int = 0
    job: str = ""
    """The RQ job it is working on; empty when idle."""
    transfer: str = ""
    first: int = 0
    stop: int = 0
    """The range it is sending, half-open."""
    phase: str = "idle"
    """``idle``, ``preparing`` (index and plan), ``sending`` or ``resting`` (after a failure)."""
    sent: int = 0
    """Blocks of this range that have arrived."""
    moved: int = 0
    """Bytes put on the wire since the process began."""
    rate: float = 0.0
    """Bytes a second put on the wire, over the last few signs."""
    failure: str = ""
    """Why its last range failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord(_Record):
    """One transfer as the uploading command sees it."""

    id: str = ""
    state: str = ""
    """``receiving``, ``committing``, ``complete``, ``incomplete`` or ``interrupted``."""
    source: str = ""
    urls: str = ""
    host: str = ""
    pid: int = 0
    blocks: int = 0
    block_size: int = 0
    bytes: int = 0
    received: int = 0
    durable: int = 0
    received_bytes: int = 0
    durable_bytes: int = 0
    rate: float = 0.0
    """Bytes a second that arrive, over the last few seconds."""
    limit: int = 0
    queued: int = 0
    running: int = 0
    redispatched: int = 0
    """Ranges that were taken from a worker that gave no sign any more."""
    failure: str = ""
    """The last failure of a range."""
    started: float = 0.0
    updated: float = 0.0


def workers(connection: Redis) -> list[WorkerRecord]:
    """The workers that are alive. Raises RedisError."""
    names = _members(connection, WORKERS)
    if not names:
        return []
    values = connection.mget([worker_key(name) for name in names])
    found = [WorkerRecord.from_json(value) for value in values]
    dead = [name for name, value in zip(names, values, strict=True) if value is None]
    if dead:
        connection.zrem(WORKERS, *dead)
    return [record for record in found if record is not None]


def save_worker(connection: Redis, record: WorkerRecord) -> None:
    """A sign of life. Raises RedisError."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.set(worker_key(record.name), record.to_json(), ex=LEASE)
        pipe.zadd(WORKERS, {record.name: time.time()})
        pipe.execute()


def forget_worker(connection: Redis, name: str) -> None:
    """A worker has ended: nobody need wait for its signs. Raises RedisError."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.delete(worker_key(name))
        pipe.zrem(WORKERS, name)
        pipe.execute()


def transfers(connection: Redis) -> list[TransferRecord]:
    """The transfers there is news of, oldest first. Raises RedisError."""
    ids = _members(connection, TRANSFERS)
    if not ids:
        return []
    values = connection.mget([transfer_key(one) for one in ids])
    found = [TransferRecord.from_json(value) for value in values]
    return [record for record in found if record is not None]


def save_transfer(connection: Redis, record: TransferRecord) -> None:
    """News of a transfer. Raises RedisError."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.set(transfer_key(record.id), record.to_json(), ex=KEEP)
        pipe.zadd(TRANSFERS, {record.id: time.time()})
        pipe.zremrangebyscore(TRANSFERS, 0, time.time() - KEEP)
        pipe.execute()


def note_refused(connection: Redis, text: str) -> None:
    """Keep a line about a job that was refused. Raises RedisError."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.lpush(REFUSED, text[:500])
        pipe.ltrim(REFUSED, 0, MAX_REFUSED - 1)
        pipe.expire(REFUSED, KEEP)
        pipe.execute()


def refused(connection: Redis) -> list[str]:
    """The last jobs that were refused, newest first. Raises RedisError."""
    return [_text(line) for line in connection.lrange(REFUSED, 0, MAX_REFUSED - 1)]


def _members(connection: Redis, key: str) -> list[str]:
    return [_text(name) for name in connection.zrange(key, 0, 9999)]


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
