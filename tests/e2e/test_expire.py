"""`tar-like expire` and `tar-like proxy --expire`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tar_like.upload import presence
from tar_like.upload.answer import Answering
from tar_like.upload.dispatch import UploadOptions
from tar_like.upload.run import Upload
from tests.chaos.scene import Quiet
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


def test_a_sender_that_reads_for_long_keeps_its_transfer(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = work / "src", work / "dst"
    for root in (source, dest):
        root.mkdir()
        (root / "file").write_bytes(os.urandom(20_000))
        os.utime(root / "file", (1, 1))
    folder = dest / ".tar_like/transfers" / index(source, work / "db", "--hash", "none")["id"]
    monkeypatch.setattr(presence, "EVERY", 0.05)
    real = Answering.write

    def slow(answering: Answering, path: str) -> None:
        for _ in range(2):
            age(folder, 2 * HOUR)
            wait_for("a word", lambda: time.time() - (folder / "index.db").stat().st_mtime < HOUR)
        assert run("expire", "-b", dest, "--older", "1h", "--json").summary["expired"] == []
        real(answering, path)

    monkeypatch.setattr(Answering, "write", slow)
    with Proxy(dest) as proxy:
        options = UploadOptions(
            source=str(source), index_path=str(work / "db"), urls=(proxy.url,), block_size=4096,
            processes=1,
        )  # fmt: skip
        assert Upload(options, Quiet()).run().state == "complete"
    assert_same(source, dest)


@pytest.mark.parametrize("older", ["", "7", "d", "59s", "-1d", "1w", "1.5h"])
def test_what_is_no_age_is_refused(work: Path, older: str) -> None:
    run("expire", "-b", work, f"--older={older}", codes=(2,)).sentence("age", "length of time")


def test_a_folder_that_received_nothing_is_named(work: Path) -> None:
    run("expire", "-b", work, codes=(2,)).sentence("received")
    assert list(work.iterdir()) == []
