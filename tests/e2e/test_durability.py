"""--durability as the command line has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import Proxy, payload, run, sync
from tests.trees import assert_same


@pytest.fixture
def src(work: Path) -> Path:
    payload(work / "src", files=6, size=64 << 10)
    return work / "src"


def test_a_sync_without_syncs_arrives(work: Path, src: Path) -> None:
    sync(src, work / "dst", "--durability", "process")
    assert_same(src, work / "dst")
    assert sync(src, work / "dst")["blocks_sent"] == 0


def test_a_proxy_without_syncs_takes_trees_in(work: Path, src: Path) -> None:
    with Proxy(work / "dst", "--durability", "process") as proxy:
        done = sync(src, proxy.url)
        blocks = proxy.blocks(done["transfer"])
        assert blocks is not None
        assert (blocks.received, blocks.durable) == (blocks.total, 0)
    assert_same(src, work / "dst")


@pytest.mark.parametrize(
    ("target", "how"), [("dst", "half"), ("http://127.0.0.1:9/tar", "process")]
)
def test_no_other_durability(work: Path, src: Path, target: str, how: str) -> None:
    where = target if "://" in target else work / target
    run("sync", src, where, "--durability", how, codes=(2,)).sentence("durability")
