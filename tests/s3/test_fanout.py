"""Workers that read from S3, with settings of their own."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.harness import Proxy, run
from tests.fanout.harness import Redis, workers
from tests.s3.conftest import ACCESS_KEY, SECRET_KEY, Store


def test_workers_read_from_the_bucket_and_redis_knows_no_secrets(s3: Store, work: Path) -> None:
    files = {b"%d" % number: os.urandom(300_000) for number in range(20)}
    for path, data in files.items():
        s3.put(path, data)
    (work / "redis").mkdir()
    with Redis(work / "redis") as redis, Proxy(work / "dst") as proxy, workers(redis, work, 2):
        more = ("-s", "256KiB", "--redis", redis.url, "--json")
        result = run("sync", s3.url, proxy.url, *more, env=s3.environment())
        assert result.summary["state"] == "complete"
        names = list(redis.client.scan_iter())
        held = b"".join(redis.client.dump(name) or b"" for name in names) + b"".join(names)
    assert names
    for secret in (ACCESS_KEY, SECRET_KEY, s3.proxy.url):
        assert secret.encode() not in held
    for path, data in files.items():
        assert (work / "dst" / os.fsdecode(path)).read_bytes() == data
