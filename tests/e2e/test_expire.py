"""`tar-like expire` and `tar-like proxy --expire`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import Proxy, index, payload, run, sync, upload, wait_for
from tests.trees import assert_same
from tests.unit.test_expire import age

HOUR = 3600


@pytest.fixture
def src(work: Path) -> Path:
    payload(work / "src", files=4, size=64 << 10)
    return work / "src"


def begin(work: Path, src: Path) -> Path:
    """A transfer that got one block; its folder."""
    transfer = index(src, work / "db")["id"]
    with Proxy(work / "dst") as proxy:
        upload(src, work / "db", proxy.url, "-s", "16KiB", "-f", 0, "-l", 0)
    return work / "dst/.tar_like/transfers" / transfer


def test_the_command_removes_and_lists(work: Path, src: Path) -> None:
    folder = begin(work, src)
    age(folder, 2 * HOUR)
    assert run("expire", "-b", work / "dst", "--json").summary["expired"] == []
    (gone,) = run("expire", "-b", work / "dst", "--older", "1h", "--json").summary["expired"]
    assert gone["id"] == folder.name
    assert gone["bytes"] > 0
    assert not folder.exists()
    sync(src, work / "dst")
    assert_same(src, work / "dst")


def test_a_proxy_removes_by_itself(work: Path, src: Path) -> None:
    folder = begin(work, src)
    age(folder, 2 * HOUR)
    with Proxy(work / "dst", "--expire", "1h") as proxy:
        wait_for("the abandoned transfer to go", lambda: not folder.exists(), unless=proxy.ended)
        upload(src, work / "db", proxy.url)
    assert_same(src, work / "dst")


@pytest.mark.parametrize("older", ["", "7", "d", "59s", "-1d", "1w", "1.5h"])
def test_what_is_no_age_is_refused(work: Path, older: str) -> None:
    run("expire", "-b", work, f"--older={older}", codes=(2,)).sentence("age", "length of time")


def test_a_folder_that_received_nothing_is_named(work: Path) -> None:
    run("expire", "-b", work, codes=(2,)).sentence("received")
    assert list(work.iterdir()) == []
