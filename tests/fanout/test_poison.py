"""A queue that strangers write into: nothing of theirs is executed, and the work goes on."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

from rq import Callback, Queue, Repeat, Retry
from rq.job import Job as RqJob
from rq.serializers import DefaultSerializer, JSONSerializer

from tests.e2e.harness import Proxy, index, payload, wait_for
from tests.fanout.harness import Redis, ended_well, records, status, upload_job, workers
from tests.trees import assert_same

HOSTILE = 100


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._mark), "w"))


def order(**changes: Any) -> dict[str, Any]:
    """The arguments of a job of ours, to be spoilt."""
    return {
        "transfer": "0" * 64,
        "plan": "0" * 64,
        "urls": ["http://127.0.0.1:9/tar"],
        "source": "/",
        "first": 0,
        "stop": 1,
        "block_size": 4096,
        "compress": "auto",
    } | changes


OURS = "workers.jobs.upload_blocks"
SPOILT: list[dict[str, Any]] = [
    order(first=-1),
    order(first=5, stop=5),
    order(stop=1 << 70),
    order(first=0.5),
    order(first=True, stop="2"),
    order(transfer="../../etc/passwd"),
    order(plan=None),
    order(urls="http://127.0.0.1:9/tar"),
    order(urls=["file:///etc/passwd"]),
    order(urls=[]),
    order(block_size=1),
    order(block_size=1 << 60),
    order(compress="os.system"),
    order(source="\0"),
    order(source=["/"]),
    order(more=1),
    {},
]


class Poisoner:
    """Writes hostile jobs into the queue; each would touch a file of its own."""

    def __init__(self, redis: Redis, marks: Path) -> None:
        self._redis = redis.client
        self._marks = marks
        self._queue = Queue("tar-like", connection=redis.client, serializer=JSONSerializer)
        self._pickles = Queue("tar-like", connection=redis.client, serializer=DefaultSerializer)
        self._count = 0

    def fill(self) -> None:
        """HOSTILE jobs of ten kinds, and entries that are no jobs at all."""
        kinds = [
            self._names_a_function, self._is_retried, self._is_evaluated, self._calls_back,
            self._is_a_pickle, self._has_spoilt_arguments, self._has_more_arguments,
            self._has_pickled_data, self._has_spoilt_fields, self._has_an_instance,
        ]  # fmt: skip
        for number in range(HOSTILE):
            kinds[number % len(kinds)](number // len(kinds))
        self._redis.rpush(self._queue.key, b"\xff\xfe", b"no-such-job", b"a:b", b"x" * 100_000)
        self._redis.set("rq:job:a-string", b"1")
        self._redis.rpush(self._queue.key, b"a-string")
        self._redis.zadd("rq:wip:tar-like", {b"\xff": 1, b"nonsense": 1})

    def _mark(self) -> Path:
        self._count += 1
        return self._marks / str(self._count)

    def _touch(self) -> str:
        return f"touch {self._mark()}"

    def _names_a_function(self, _: int) -> None:
        self._queue.enqueue("os.system", self._touch())

    def _is_retried(self, _: int) -> None:
        self._queue.enqueue("subprocess.getoutput", self._touch(), retry=Retry(max=1000))

    def _is_evaluated(self, _: int) -> None:
        self._queue.enqueue("builtins.eval", f"__import__('os').system({self._touch()!r})")

    def _calls_back(self, _: int) -> None:
        back = Callback("tests.fanout.test_poison.called_back")
        self._queue.enqueue_call(
            OURS, kwargs=order(source=str(self._marks)),
            on_success=back, on_failure=back, on_stopped=back,
        )  # fmt: skip

    def _is_a_pickle(self, _: int) -> None:
        self._pickles.enqueue(print, Bomb(self._mark()))

    def _has_spoilt_arguments(self, number: int) -> None:
        for arguments in SPOILT[number :: HOSTILE // 10]:
            self._queue.enqueue_call(OURS, kwargs=arguments)

    def _has_more_arguments(self, _: int) -> None:
        self._queue.enqueue_call(OURS, args=(self._touch(),), kwargs=order())

    def _has_pickled_data(self, _: int) -> None:
        job = self._queue.enqueue("os.system", self._touch(), at_front=True)
        self._redis.hset(job.key, "data", zlib.compress(pickle.dumps(Bomb(self._mark()))))

    def _has_spoilt_fields(self, number: int) -> None:
        job = self._queue.enqueue("os.system", self._touch(), repeat=Repeat(times=3))
        names = ("created_at", "timeout", "retries_left", "status", "dependency_ids")
        self._redis.hset(job.key, names[number % len(names)], b"\xff{nonsense")

    def _has_an_instance(self, _: int) -> None:
        data = json.dumps(["system", "os", [self._touch()], {}]).encode()
        job = RqJob.create("os.system", connection=self._redis, serializer=JSONSerializer)
        job.save()
        self._redis.hset(job.key, "data", zlib.compress(data))
        self._redis.rpush(self._queue.key, job.id)


def called_back(job: RqJob, *_: object) -> None:
    """A callback that must never run."""
    (Path(job.kwargs["source"]) / f"called-back-{job.id}").touch()


def test_a_poisoned_queue(work: Path, redis: Redis) -> None:
    payload(work / "src", files=4)
    transfer = index(work / "src", work / "db")["id"]
    (work / "marks").mkdir()
    with Proxy(work / "dst") as proxy, workers(redis, work, 1) as crew:
        pids = {record["pid"] for record in records(redis)}
        Poisoner(redis, work / "marks").fill()
        redis.client.publish("rq:pubsub:x", b"\xff")
        for record in records(redis):
            redis.client.publish(f"rq:pubsub:{record['name']}", b"\xff nonsense")
        key = "rq:queue:tar-like"
        wait_for("the queue to be worked off", lambda: redis.client.llen(key) == 0)
        with upload_job(redis, proxy, work / "src", work / "db") as job:
            ended_well(job)
        assert {record["pid"] for record in records(redis)} == pids, "a worker was killed by a job"
        seen = status(redis)
        assert len(seen["refused"]) >= HOSTILE * 8 // 10, seen["refused"]
        assert any("os.system" in line for line in seen["refused"])
        assert b"Refused job" in crew[0].stderr()
        assert [row["id"] for row in seen["transfers"]] == [transfer]
    assert list((work / "marks").iterdir()) == []
    assert_same(work / "src", work / "dst")
