"""The jobs of one transfer in RQ: putting them there, and learning what became of them.

All of it raises RedisError when Redis is away, and none of it keeps anything: what Redis forgets is
simply not there any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, Retry
from rq.registry import ScheduledJobRegistry

from workers.jobs import FUNCTION, Order, OrderJob, OrderQueue
from workers.records import QUEUE

TIMEOUT = 900
"""Seconds after which RQ ends a job; a range ends by itself long before."""
RESULT_TTL = 600
RETRY_INTERVALS = [1, 3, 9]
MAX_QUEUED = 10_000
TAKEN = "taken"
"""The state of a job that a worker has taken from the queue and not yet begun."""
ENDED = (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED)
WAITING = (JobStatus.QUEUED, JobStatus.SCHEDULED)


class Board:
    """RQ's queue, as who leads a transfer uses it."""

    def __init__(self, connection: Redis, transfer: str) -> None:
        self._connection = connection
        self._prefix = f"{transfer[:16]}-"
        self._queue = OrderQueue(
            QUEUE, connection=connection, serializer="json", job_class=OrderJob
        )

    def name(self, nonce: str, number: int) -> str:
        """A job's id."""
        return f"{self._prefix}{nonce}-{number}"

    def put(self, job_id: str, order: Order, *, at_front: bool) -> None:
        """Enqueue an order, last of all or as the next one."""
        self._queue.enqueue_call(
            FUNCTION,
            kwargs=order.to_json(),
            job_id=job_id,
            at_front=at_front,
            timeout=TIMEOUT,
            result_ttl=RESULT_TTL,
            failure_ttl=RESULT_TTL,
            retry=Retry(max=len(RETRY_INTERVALS), interval=RETRY_INTERVALS),
            description=f"blocks {order.first} to {order.stop - 1}",
        )

    def states(self, ids: list[str]) -> dict[str, str]:
        """RQ's statuses, or TAKEN; empty for a job that is not there."""
        with self._connection.pipeline(transaction=False) as pipe:
            for job in ids:
                pipe.hget(OrderJob.key_for(job), "status")
                pipe.lpos(self._queue.key, job)
            found = pipe.execute()
        states = {}
        for number, job in enumerate(ids):
            status, place = found[2 * number], found[2 * number + 1]
            name = "" if status is None else status.decode("ascii", "replace")
            states[job] = TAKEN if name == JobStatus.QUEUED and place is None else name
        return states

    def report(self, job_id: str) -> dict[str, Any] | None:
        """What became of a job that has ended, which is then deleted; None when nobody says.

        The worker's report (runtime), or ``failure`` with a sentence.
        """
        for job in self._jobs([job_id]):
            result = job.latest_result()
            value = result.return_value if result is not None else None
            if job.get_status(refresh=False) == JobStatus.FAILED and result is not None:
                value = {"failure": _last_line(result.exc_string)}
            job.delete()
            return value if isinstance(value, dict) else None
        return None

    def delete(self, ids: Iterable[str]) -> None:
        """Take jobs away, wherever they are."""
        for job in self._jobs(ids):
            job.delete()

    def clear(self) -> None:
        """Take away what waits in the queue for this transfer."""
        ids = self._queue.get_job_ids(0, MAX_QUEUED)
        self.delete(one for one in ids if one.startswith(self._prefix))

    def enqueue_due(self, ids: Iterable[str]) -> list[str]:
        """Enqueue those of the failed jobs whose interval is over; which these are.

        RQ's retries with intervals need somebody who does this; it is the one who leads.
        """
        registry = ScheduledJobRegistry(queue=self._queue)
        due = set(registry.get_jobs_to_schedule()).intersection(ids)
        for job in self._jobs(due):
            registry.remove(job)
            self._queue._enqueue_job(job, at_front=True)
        return sorted(due)

    def _jobs(self, ids: Iterable[str]) -> Iterator[Job]:
        for job_id in ids:
            try:
                yield OrderJob.fetch(job_id, self._connection, "json")
            except NoSuchJobError:
                continue


def _last_line(text: str | None) -> str:
    """The sentence at the end of a traceback, without the exception's name."""
    line = (text or "A range failed.").strip().splitlines()[-1]
    name, _, sentence = line.partition(": ")
    return sentence if sentence and "." in name else line
