"""A worker process's life.

    connect > give signs > RQ's loop: take a job > execute it > tell who leads > take the next

RQ's SimpleWorker runs jobs in its own process, so what is prepared for a transfer is kept from
job to job, and no job costs a fork. The loop waits for Redis when it is away, and survives what
others put into the queue.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.utils import now
from rq.worker import SimpleWorker

from tar_like.errors import TarLikeError
from workers import records
from workers.jobs import OrderJob, OrderQueue, Refused
from workers.limit import RedisBucket
from workers.link import connect, connect_patiently
from workers.pulse import Pulse
from workers.records import QUEUE, WorkerRecord
from workers.runtime import Runtime, WorkerOptions

WORKER_TTL = 20
"""Seconds; RQ waits 15 s less than this for a job before it gives its own sign of life."""
SOCKET_TIMEOUT = 15.0
MAINTENANCE = 30
MAX_REST = 15.0
"""Seconds that a worker rests at most after failures, so that others take the ranges."""
DONE_KEPT = 1000

Say = Callable[[str], None]


class RangeWorker(SimpleWorker):
    """An RQ worker that runs orders and nothing else."""

    max_connection_wait_time = 1.0
    log_result_lifespan = False
    log_job_description = False

    def __init__(
        self, options: WorkerOptions, number: int, say: Say, stopping: threading.Event
    ) -> None:
        """``stopping`` may be set at any time; raises StopRequested once it is, without Redis."""
        self._rest = stopping
        self._say = say
        self._options = options
        self._busy = False
        self._failures = 0
        self.left = False
        """Whether it ended because it should: asked to stop, or nothing to do any more."""
        connection = connect_patiently(
            options.redis_url, lambda: self._rest.is_set(), timeout=SOCKET_TIMEOUT
        )
        super().__init__(
            QUEUE,
            name=worker_name(),
            connection=connection,
            worker_ttl=WORKER_TTL,
            maintenance_interval=MAINTENANCE,
            job_class=OrderJob,
            queue_class=OrderQueue,
            log_job_description=False,
            serializer="json",
        )
        quick = connect(options.redis_url)
        bucket = RedisBucket(quick)
        record = WorkerRecord(name=self.name, host=socket.gethostname(), pid=os.getpid())
        self._quick: Redis = quick
        self._pulse = Pulse(quick, bucket, record)
        self._cut = False
        self._runtime = Runtime(
            options, number, self._pulse, bucket, lambda: self._cut or self._rest.is_set()
        )

    def live(self) -> bool:
        """Work until there is a reason to leave; False when it ended for want of Redis."""
        self._pulse.start()
        try:
            self.work(
                burst=self._options.burst,
                max_idle_time=self._options.max_idle,
                logging_level="ERROR",
            )
        except (StopRequested, RedisError):
            pass
        finally:
            self._pulse.end()
            self._runtime.forget()
        return self.left or self._rest.is_set()

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """RQ's; a job counts as taken from the moment it leaves the queue."""
        found = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
        self.left = found is None
        return found

    def execute_job(self, job: Job, queue: Queue) -> None:
        """RQ's, with the job's work put in, and what must happen after it."""
        assert isinstance(job, OrderJob)
        job.work = self._work
        self._busy, self._cut = True, False
        try:
            super().execute_job(job, queue)
        finally:
            self._busy = False
            job.work = None
        self._pulse.show(job="", phase="idle")
        self._tell(job)
        self._after_failure()

    def _work(self, job: OrderJob) -> dict[str, Any]:
        found = self._runtime.work(job)
        self._failures = 0
        self._pulse.note(failure="")
        return found

    def _tell(self, job: OrderJob) -> None:
        """Wake who leads the transfer."""
        try:
            key = records.done_key(job.order().transfer)
            with self._quick.pipeline(transaction=False) as pipe:
                pipe.rpush(key, job.id)
                pipe.ltrim(key, -DONE_KEPT, -1)
                pipe.expire(key, 60)
                pipe.execute()
        except (Refused, RedisError):
            return  # who leads looks by itself, too

    def _after_failure(self) -> None:
        """Rest a while, so that a host that cannot send does not take all the ranges."""
        if self._failures and not self._rest.is_set():
            self._pulse.show(phase="resting")
            self._rest.wait(min(MAX_REST, 0.5 * 2**self._failures))
            self._pulse.show(phase="idle")

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Say what went wrong in a sentence, and keep it where others see it."""
        kind, error, _ = exc_info
        assert isinstance(job, OrderJob)
        refusal = job.refusal()
        if refusal:
            text = f"Refused job {job.id}: {refusal}."
            self._keep_refused(text)
        else:
            known = isinstance(error, TarLikeError | OSError)
            text = str(error) if known else f"{kind.__name__}: {error}"
            self._failures += 1
            self._pulse.note(failure=text[:500])
        self._say(text)

    def _keep_refused(self, text: str) -> None:
        try:
            records.note_refused(self._quick, text)
        except RedisError:
            return  # it has been said

    def handle_payload(self, message: Any) -> None:
        """RQ's stop commands; anything else on the channel is dropped."""
        try:
            super().handle_payload(message)  # type: ignore[no-untyped-call]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            self._say("Dropped a message that is none of RQ's commands.")

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """The thread that hears RQ's commands ends quietly with the worker, else it listens on."""
        if self._rest.is_set():
            pubsub_thread.stop()
        else:
            self._rest.wait(1.0)

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """RQ's command to stop a job: the range ends after its block."""
        self._cut = True

    def _install_signal_handlers(self) -> None:
        """RQ's; who was asked to stop before has not forgotten it."""
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        if self._rest.is_set():
            raise StopRequested

    def run_maintenance_tasks(self) -> None:
        """RQ's; registries that somebody spoilt do not end the worker."""
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self._say(f"RQ's registries cannot be cleaned: {error}.")

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: finish the block, hand back the rest of the range, leave.

        Touches no connection, since it may have interrupted the use of one.
        """
        self._shutdown_requested_date = now()
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)
        self._stop_requested = True
        self._rest.set()
        if not self._busy:
            raise StopRequested


def worker_name() -> str:
    """A name that no other worker has."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
    return f"{host[:60]}-{os.getpid()}-{secrets.token_hex(3)}"


class _Relay(logging.Handler):
    """Says what RQ logs as an error, as one line."""

    def __init__(self, say: Say) -> None:
        super().__init__(logging.ERROR)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip().partition("\n")[0]
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        self._say(f"RQ: {text}")


def relay_rq(say: Say) -> None:
    """RQ's errors as sentences, and nothing else of its log."""
    for name in ("rq.worker", "rq.job", "rq.registry", "rq.queue"):
        logger = logging.getLogger(name)
        logger.handlers = [_Relay(say)]
        logger.setLevel(logging.ERROR)
        logger.propagate = False
