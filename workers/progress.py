"""How far the transfers are that go through a Redis, and who works on them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from redis.exceptions import RedisError

from workers import records
from workers.limit import set_limit
from workers.link import connect, gone, greet
from workers.records import TransferRecord, WorkerRecord

FOLLOWED = 15.0
"""Seconds without news after which nobody follows a transfer any more."""
ENDED = ("complete", "incomplete", "interrupted")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One look."""

    transfers: list[TransferRecord]
    workers: list[WorkerRecord]
    refused: list[str]


def look(redis_url: str) -> View:
    """What Redis knows now. Raises RedisGone, UsageError."""
    connection = connect(redis_url)
    try:
        return View(
            transfers=records.transfers(connection),
            workers=sorted(records.workers(connection), key=lambda one: (one.host, one.pid)),
            refused=records.refused(connection),
        )
    except RedisError as error:
        raise gone(redis_url, error) from None
    finally:
        connection.close()


def under_way(record: TransferRecord) -> bool:
    """Whether an uploading command is at this transfer."""
    return record.state not in ENDED and time.time() - record.updated < FOLLOWED


def abandoned(record: TransferRecord) -> bool:
    """Whether the uploading command went without a word."""
    return record.state not in ENDED and not under_way(record)


def change_limit(redis_url: str, prefix: str, rate: int) -> list[str]:
    """Set the limit of the transfers under way whose id begins so; which these are."""
    connection = connect(redis_url)
    greet(connection, redis_url)
    try:
        found = [
            one.id
            for one in records.transfers(connection)
            if one.id.startswith(prefix) and one.state not in ENDED
        ]
        for transfer in found:
            set_limit(connection, transfer, rate)
        return found
    except RedisError as error:
        raise gone(redis_url, error) from None
    finally:
        connection.close()
