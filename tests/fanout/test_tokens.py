"""Workers and receivers that ask for a token: it is the worker's own, and for nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from tests.e2e.harness import Proxy, index, wait_for
from tests.fanout.harness import Redis, upload_job, workers
from tests.haproxy.balancer import Witness

TOKEN = "a-shared-token-of-the-tests"


def test_a_token_is_for_the_receiver_and_neither_for_redis_nor_for_strangers(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("src", "redis"):
        (work / name).mkdir()
    (work / "src/file").write_bytes(b"content" * 50_000)
    (work / "token").write_text(TOKEN)
    index(work / "src", work / "db")
    token = ("--token-file", work / "token")
    with (
        Redis(work / "redis") as redis,
        Witness() as stranger,
        Proxy(work / "dst", *token) as proxy,
    ):
        monkeypatch.setenv("TARLIKE_URL", proxy.url)
        with workers(redis, work, 1, *token):
            with upload_job(redis, proxy, work / "src", work / "db", *token) as job:
                assert job.end(120).verify(0).summary["state"] == "complete"
            for key in redis.client.scan_iter():
                assert TOKEN.encode() not in (redis.client.dump(key) or b""), key
            order = {
                "transfer": "0" * 64, "plan": "0" * 64, "source": str(work / "src"), "first": 0,
                "urls": [f"http://127.0.0.1:{stranger.port}/tar"], "stop": 1, "block_size": 4096,
                "compress": "auto",
            }  # fmt: skip
            queue = Queue("tar-like", connection=redis.client, serializer=JSONSerializer)
            queue.enqueue_call("workers.jobs.upload_blocks", kwargs=order)
            wait_for("the stranger to be asked", lambda: stranger.seen)
    assert not [one for one in stranger.seen if "authorization" in one.headers]
    assert (work / "dst/file").read_bytes() == b"content" * 50_000
