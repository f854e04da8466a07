"""`tar-like sync --dry-run`: it says what a run then does, and changes nothing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Proxy, run, sync
from tests.e2e.test_delete import target  # noqa: F401 (a fixture)
from tests.trees import assert_same, build, look, stamps

KEYS = {
    "command", "exit_code", "seconds", "dry_run", "transfer", "entries", "blocks_total",
    "files_to_send", "bytes_to_send", "send", "local", "delete", "passed", "held", "failures",
    "folders", "symlinks", "links", "metadata",
}  # fmt: skip


def rehearse(source: Path, where: object, *flags: str, codes: tuple[int, ...] = (0,)) -> Any:
    summary = run("sync", source, where, "--dry-run", "--json", *flags, codes=codes).summary
    assert summary.keys() == KEYS
    assert summary["bytes_to_send"] == sum(one["bytes"] for one in summary["send"])
    return summary


def kinds(said: Any) -> dict[str, list[str]]:
    """Which names are made or changed, and how."""
    keys = ("send", "local", "folders", "symlinks", "links", "metadata")
    return {
        key: [one if isinstance(one, str) else one["path"] for one in said[key]] for key in keys
    }


def test_it_agrees_with_what_a_run_then_does(
    work: Path,
    dice: random.Random,
    target: Callable[[Path], object],  # noqa: F811
) -> None:
    source, dest = work / "src", work / "dst"
    build(source, 5, deep=False)
    (source / "gives way/deep").mkdir(parents=True)
    (source / "gives way/deep/file").write_text("below")
    where = target(dest)
    sync(source, where)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    shutil.rmtree(source / "gives way")
    (source / "gives way").write_text("a file")
    for path in dice.sample(sorted({*files} - {source / "gives way/deep/file"}), 20):
        if path.exists():
            path.unlink()
    (source / "moved").mkdir()
    for number, path in enumerate(dice.sample([one for one in files if one.exists()], 6)):
        path.rename(source / f"moved/{number}")
    (source / "new").write_bytes(dice.randbytes(100_000))
    os.truncate(source / "new", 300_000)
    before = stamps(dest)
    said = rehearse(source, where, "--delete")
    assert {path: seen for path, seen in before.items() if not path.startswith(b".tar_like")} == {
        path: seen for path, seen in stamps(dest).items() if not path.startswith(b".tar_like")
    }
    there = set(look(dest))
    done = sync(source, where, "--delete")
    assert said["bytes_to_send"] == done["bytes_sent"]
    assert said["blocks_total"] == done["blocks_total"]
    assert said["transfer"] == done["transfer"]
    assert len(said["delete"]) == done["deleted"]
    assert {"gives way/deep", "gives way/deep/file"} <= set(said["delete"])
    gone = there - set(look(dest))
    assert len(gone) == done["deleted"]
    assert_same(source, dest)
    again = rehearse(source, where, "--delete")
    assert (again["delete"], *kinds(again).values()) == ([], *[[]] * 6)


def test_a_folder_is_not_touched_at_all(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    build(source, 3, deep=False)
    assert rehearse(source, dest)["files_to_send"] > 0
    assert not dest.exists()
    dest.mkdir()
    (dest / "extra").write_text("extra")
    before = stamps(dest)
    assert rehearse(source, dest, "--delete")["delete"] == ["extra"]
    assert stamps(dest) == before
    sync(source, dest, "--delete")
    before = stamps(dest)
    assert rehearse(source, dest)["send"] == []
    assert stamps(dest) == before


def test_a_receiver_keeps_nothing_of_it(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    build(source, 3, deep=False)
    with Proxy(dest) as proxy:
        rehearse(source, proxy.url)
        for folder in ("transfers", "completed", "tmp"):
            assert not os.listdir(dest / ".tar_like" / folder)
        assert os.listdir(dest) == [".tar_like"]


def test_a_transfer_under_way_is_not_disturbed(work: Path) -> None:
    source, dest, db = work / "src", work / "dst", work / "db"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(20_000))
    with Proxy(dest) as proxy:
        run("index", "-b", source, "-db", db)
        run("upload", "-b", source, "-db", db, "-u", proxy.url, "-s", "4096", "-l", "2")
        result = run("sync", source, proxy.url, "-db", db, "--dry-run", codes=(1,))
        result.sentence("on its way")
        assert sync(source, proxy.url, "-db", db)["blocks_sent"] == 2


@pytest.mark.parametrize("flags", [("--existing",), ("--update",), ()])
def test_it_goes_by_the_rules(work: Path, flags: tuple[str, ...]) -> None:
    source, dest = work / "src", work / "dst"
    for root in (source, dest):
        root.mkdir()
        (root / "both").write_text(f"of {root.name}")
    (source / "new").write_text("new")
    os.utime(source / "both", (1, 1))
    said = rehearse(source, dest, *flags)
    passed = {"--existing": ["new"], "--update": ["both"]}.get("".join(flags), [])
    assert said["passed"] == passed
    assert [one["path"] for one in said["send"]] == [
        name for name in ("both", "new") if name not in passed
    ]
    lines = run("sync", source, dest, "--dry-run", *flags).out.decode().splitlines()
    assert lines == [
        *(f"send {one['path']} ({one['bytes']} bytes)" for one in said["send"]),
        *(f"change {one['path']} ({', '.join(one['changes'])})" for one in said["metadata"]),
        *(f"passed {name}" for name in passed),
    ]
