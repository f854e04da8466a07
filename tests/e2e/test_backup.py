"""`tar-like sync --backup-dir`: what is replaced or deleted is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import run, sync
from tests.e2e.test_delete import KINDS, PAIRS, change_of_types
from tests.trees import build, look, rsync_differences

FOLDER = "old/of today"


def contents(root: Path, folder: str = "") -> dict[bytes, tuple[str, bytes, str]]:
    """What is below a folder, but for directories: rsync keeps none that are empty."""
    if not (root / folder).exists():
        return {}
    return {
        path: (node.kind, node.target, node.digest)
        for path, node in look(root / folder).items()
        if node.kind != "folder"
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_it_keeps_what_rsync_keeps(work: Path, seed: int) -> None:
    first, second, dest, oracle = (work / name for name in ("first", "second", "dst", "oracle"))
    build(first, seed, deep=False)
    build(second, seed + 100, deep=False)
    for number, (folder, _, names) in enumerate(os.walk(second)):
        for name in names:
            stamp = 123456789 + seed + number
            os.utime(os.path.join(folder, name), (stamp, stamp), follow_symlinks=False)
    sync(first, dest)
    shutil.copytree(dest, oracle, symlinks=True, ignore=shutil.ignore_patterns(".tar_like"))
    before = contents(dest)
    sync(second, dest, "--delete", "--backup-dir", FOLDER)
    command = ["rsync", "-aHc", "--delete", "--backup", f"--backup-dir={FOLDER}"]
    subprocess.run([*command, f"--exclude=/{FOLDER}", f"{second}/", f"{oracle}/"], check=True)
    kept, expected = contents(dest, FOLDER), contents(oracle, FOLDER)
    assert kept.items() <= before.items()
    # rsync keeps no old file whose content is wanted again; either way every content is there.
    assert expected.items() <= kept.items()
    now = contents(dest)
    for path, node in before.items():
        assert path in kept or now.get(path) == node, path
    shutil.rmtree(dest / "old")
    os.utime(dest, ns=(0, second.stat().st_mtime_ns))
    assert not rsync_differences(second, dest)


def test_it_keeps_what_gives_way_to_another_kind(work: Path) -> None:
    source, dest = change_of_types(work)
    before = contents(dest)
    sync(source, dest, "--delete", "--backup-dir", "bak")
    kept, now = contents(dest, "bak"), contents(dest)
    for path, node in before.items():
        assert kept.get(path) == node or now.get(path) == node, path
    for old, new in PAIRS:
        if old in ("folder", "full") and new == "missing":
            assert (dest / f"bak/{old} to {new}").is_dir()


def test_it_is_left_alone_and_what_it_has_is_replaced(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    flags = ("--delete", "--backup-dir", "bak")
    for text in ("one", "three", "fifteen"):
        (source / "file").write_text(text)
        sync(source, dest, *flags)
    assert (dest / "file").read_text() == "fifteen"
    assert (dest / "bak/file").read_text() == "three"
    (source / "file").unlink()
    assert sync(source, dest, *flags)["deleted"] == 1
    assert (dest / "bak/file").read_text() == "fifteen"
    assert sync(source, dest, *flags)["deleted"] == 0
    assert sync(source, dest, "--delete")["deleted"] == 2


@pytest.mark.parametrize("folder", ["/tmp/elsewhere", "../beside", "a/../../b", ".tar_like/x", "."])
def test_a_backup_elsewhere_is_refused(work: Path, folder: str) -> None:
    (work / "src").mkdir()
    result = run("sync", work / "src", work / "dst", "--backup-dir", folder, codes=(2,))
    result.sentence("inside the destination")


def test_a_backup_that_the_source_has_is_refused(work: Path) -> None:
    KINDS["full"](work / "src")
    run("sync", work / "src", work / "dst", "--backup-dir", "below", codes=(1, 2)).sentence(
        "name an"
    )


def test_a_backup_is_not_written_through_a_symlink(work: Path) -> None:
    source, dest, outside = work / "src", work / "dst", work / "outside"
    for folder in (source, dest, outside):
        folder.mkdir()
    (dest / "bak").symlink_to(outside)
    (dest / "file").write_text("old")
    (source / "file").write_text("newer")
    summary = sync(source, dest, "--delete", "--backup-dir", "bak", codes=(1,))
    assert [row["path"] for row in summary["failures"]] == ["file"]
    assert not os.listdir(outside)
    assert (dest / "file").read_text() == "old"


def test_what_it_has_in_another_kind_is_replaced(work: Path) -> None:
    """A name is a symlink, a folder, nothing, a file, nothing: the backup follows."""
    source, dest = work / "src", work / "dst"
    source.mkdir()
    flags = ("--delete", "--backup-dir", "bak")
    name, kept = source / "name", dest / "bak/name"
    name.symlink_to("elsewhere")
    sync(source, dest, *flags)
    name.unlink()
    KINDS["full"](name)
    sync(source, dest, *flags)
    assert os.readlink(kept) == "elsewhere"
    shutil.rmtree(name)
    assert sync(source, dest, *flags)["deleted"] == 5
    assert (kept / "below/file").read_text() == "below"
    name.write_text("a file")
    sync(source, dest, *flags)
    name.unlink()
    assert sync(source, dest, *flags)["deleted"] == 1
    assert kept.read_text() == "a file"
    KINDS["full"](name)
    sync(source, dest, *flags)
    shutil.rmtree(name)
    sync(source, dest, *flags)
    name.write_text("one")
    sync(source, dest, *flags)
    name.write_text("and another")
    sync(source, dest, *flags)
    assert kept.read_text() == "one"


def test_what_is_not_deleted_since_it_cannot_be_kept_is_named(work: Path) -> None:
    source, dest, outside = work / "src", work / "dst", work / "outside"
    for folder in (source, dest, outside):
        folder.mkdir()
    (dest / "bak").symlink_to(outside)
    (dest / "folder").mkdir()
    (dest / "folder/file").write_text("old")
    flags = ("--delete", "--backup-dir", "bak")
    summary = sync(source, dest, *flags, codes=(1,))
    assert sorted(row["path"] for row in summary["failures"]) == ["folder", "folder/file"]
    assert (dest / "folder/file").read_text() == "old"
    assert not os.listdir(outside)
