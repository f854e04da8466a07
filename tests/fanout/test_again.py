"""Syncing again through workers: the same is spared as by one command alone."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Proxy, run
from tests.fanout.harness import BLOCK, Redis, workers
from tests.s3.conftest import Store
from tests.s3.conftest import s3 as s3
from tests.s3.conftest import store as store
from tests.trees import assert_same, build

MIB = 1 << 20


def inserted(data: bytes, dice: random.Random) -> bytes:
    """A large file that has something new in the middle."""
    return data[:MIB] + dice.randbytes(5000) + data[MIB:]


def test_a_tree_that_changed(work: Path, redis: Redis, dice: random.Random) -> None:
    src, dst = work / "src", work / "dst"
    build(src, 51, files=10)
    (src / "folder").mkdir()
    for number in range(20):
        (src / f"folder/{number}").write_bytes(dice.randbytes(90_000))
    (src / "large").write_bytes(dice.randbytes(4 * MIB))
    with Proxy(dst) as proxy, workers(redis, work, 2):

        def sync(*more: str) -> Any:
            words = ("-s", BLOCK, "--redis", redis.url, "--delete", "--json", *more)
            summary = run("sync", src, proxy.url, *words).summary
            assert summary["state"] == "complete"
            if not more:
                assert_same(src, dst)
            return summary

        sync()
        (src / "folder").rename(src / "renamed")
        (src / "renamed/3").unlink()
        shutil.copy(src / "renamed/4", src / "copy")
        (src / "new").write_bytes(dice.randbytes(50_000))
        (src / "large").write_bytes(inserted((src / "large").read_bytes(), dice))
        summary = sync()
        assert 50_000 < summary["bytes_sent"] < 50_000 + 300_000
        assert summary["deleted"] > 0
        assert sync()["blocks_sent"] == 0
        (src / "large").write_bytes(dice.randbytes(MIB))
        assert sync("--backup-dir", "old")["bytes_sent"] == MIB
        assert (dst / "old/large").stat().st_size == 4 * MIB + 5000
        assert (dst / "large").read_bytes() == (src / "large").read_bytes()


@pytest.mark.parametrize("fanned_out", [False, True])
def test_a_bucket_that_changed(
    work: Path, redis: Redis, s3: Store, dice: random.Random, fanned_out: bool
) -> None:
    dst = work / "dst"
    files = {f"folder/{number}": dice.randbytes(90_000) for number in range(10)}
    files["large"] = dice.randbytes(4 * MIB)
    for path, data in files.items():
        s3.put(path, data)
    with Proxy(dst) as proxy, workers(redis, work, 2 if fanned_out else 0):
        words = ["sync", s3.url, proxy.url, "-s", BLOCK, "--delete", "--json"]
        words += ["--redis", redis.url] if fanned_out else []

        def sync() -> Any:
            summary = run(*words, env=s3.environment()).summary
            assert summary["state"] == "complete"
            there = {
                str(path.relative_to(dst)): path.read_bytes()
                for path in dst.rglob("*")
                if path.is_file() and ".tar_like" not in path.parts
            }
            assert there == files
            return summary

        sync()
        for number in range(10):
            data = files[f"moved/{number}"] = files.pop(f"folder/{number}")
            s3.put(f"moved/{number}", data)
            s3.remove(b"folder/%d" % number)
        files["large"] = inserted(files["large"], dice)
        s3.put("large", files["large"])
        summary = sync()
        assert 0 < summary["bytes_sent"] < 300_000
        assert summary["deleted"] > 0
        assert sync()["blocks_sent"] == 0
