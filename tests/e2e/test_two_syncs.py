"""Two syncs to one destination, and commits that were cut short: never a mixture."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tar_like.errors import Conflict
from tar_like.rules import Rules
from tar_like.upload.client import Client
from tar_like.upload.dispatch import UploadOptions
from tar_like.upload.run import Upload
from tar_like.wire import Status
from tests.chaos.scene import Quiet, make_index
from tests.e2e.harness import Job, Proxy, payload, run, sync, wait_for
from tests.trees import assert_same, differences, look


def two_trees(work: Path) -> tuple[Path, Path]:
    """Trees that share names, some of them of the same content, some not."""
    one, two = work / "one", work / "two"
    for root, seed in ((one, 1), (two, 2)):
        payload(root, files=12, size=200_000, seed=seed)
        for number in range(60):
            stamp = 1_600_000_000 + number + seed * (1 - number % 2)
            text = f"{number}" if number % 2 else f"{seed} {number}"
            (root / f"shared-{number}").write_text(text)
            os.utime(root / f"shared-{number}", (stamp, stamp))
        (root / f"only-{seed}").mkdir()
        (root / f"only-{seed}/file").write_text(f"{seed}")
    return one, two


def is_one_of(dest: Path, *trees: Path) -> bool:
    return any(not differences(look(tree), look(dest)) for tree in trees)


def test_at_one_proxy_the_result_is_one_tree(work: Path) -> None:
    one, two, dest = *two_trees(work), work / "dst"
    with Proxy(dest) as proxy:
        sync(one, proxy.url, "--delete")
        for round_ in range(2):
            for root in (one, two):
                (root / "shared-7").write_text(f"round {round_} of {root.name}")
            flags = ("--delete", "-s", "65536")
            with (
                Job("sync", one, proxy.url, *flags) as first,
                Job("sync", two, proxy.url, *flags) as second,
            ):
                first.end().verify(0)
                second.end().verify(0)
            assert is_one_of(dest, one, two), "a mixture"
    assert_same(one if is_one_of(dest, one) else two, dest)


def test_what_was_planned_before_another_commit_is_planned_again(work: Path) -> None:
    one, two, dest, db = *two_trees(work), work / "dst", work / "db"
    with Proxy(dest) as proxy:
        sync(one, proxy.url)
        run("index", "-b", one, "-db", db)
        (one / "new").write_bytes(os.urandom(200_000))
        run("index", "-b", one, "-db", db)
        args = ("-b", one, "-db", db, "-u", proxy.url, "-s", "4096")
        run("upload", *args, "-l", "2")  # planned: most of it is there
        sync(two, proxy.url, "--delete")
        result = run("sync", one, proxy.url, "-db", db, "--delete")
        assert "looked up again" in result.message
    assert_same(one, dest)


def test_a_folder_that_is_being_written_to_is_refused(work: Path) -> None:
    one, two, dest = *two_trees(work), work / "dst"
    with Job("sync", one, dest, "--limit", "300k", "-s", "65536") as first:
        transfers = dest / ".tar_like/transfers"  # made once the lock is held
        wait_for("the first", lambda: list(transfers.glob("*/index.db")), unless=first.ended)
        result = run("sync", two, dest, "--delete", codes=(0, 1))
        if result.code:
            result.sentence("another receiver|is serving")
        first.end().verify(0)
    assert is_one_of(dest, one, two)


@pytest.mark.parametrize("moment", ["before the plan", "before the answers", "before the blocks"])
def test_a_run_of_the_same_tree_with_other_options_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source, dest = work / "src", work / "dst"
    for root in (source, dest):
        root.mkdir()
        (root / "file").write_bytes(os.urandom(20_000))
        os.utime(root / "file", (1, 1))
    transfer = make_index(source, work / "db")
    with Proxy(dest) as proxy:
        options = UploadOptions(
            source=str(source), index_path=str(work / "db"), urls=(proxy.url,), block_size=4096,
            processes=1,
        )  # fmt: skip
        upload = Upload(options, Quiet())
        name = {
            "before the plan": "_ask_for_plan", "before the answers": "_answer",
            "before the blocks": "_rounds",
        }[moment]  # fmt: skip
        real = getattr(upload, name)

        def other() -> Status:
            client = Client(proxy.url)
            try:
                return client.negotiate(transfer, client.wish(4096, Rules(update=True), ask=True))
            finally:
                client.close()

        def between(*arguments: Any) -> Any:
            if name == "_answer":
                assert Upload(options._replace(rules=Rules(update=True)), Quiet()).run().state
                return real(*arguments)
            status = other()
            return status if name == "_ask_for_plan" else real(*arguments)

        monkeypatch.setattr(upload, name, between)
        with pytest.raises(Conflict, match=r"Another run of this tree .* run this one again\.$"):
            upload.run()
    sync(source, dest)
    assert_same(source, dest)


@pytest.mark.parametrize("again", ["the same", "a changed tree"])
def test_a_commit_that_was_cut_short_is_finished_or_superseded(
    work: Path, dice: random.Random, again: str
) -> None:
    source, dest = work / "src", work / "dst"
    for number in range(3000):
        path = source / f"{number % 10}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}")
    (dest / "extra").mkdir(parents=True)
    goal = dice.randrange(200, 2800)
    with Job("sync", source, dest, "--delete", "-p", "1") as job:
        wait_for(
            "the commit to give names",
            lambda: sum(len(files) for _, _, files in os.walk(dest / "4")) > goal // 10,
            unless=job.ended,
        )
        job.kill()
    if again == "a changed tree":
        for number in range(0, 3000, 7):
            path = source / f"{number % 10}/{number}"
            if number % 2:
                path.write_text(f"changed {number}")
            else:
                path.unlink()
        (source / "5/new").symlink_to("nowhere")
    sync(source, dest, "--delete")
    assert_same(source, dest)
