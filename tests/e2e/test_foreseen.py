"""`tar-like sync --dry-run` against what rsync says that it would do, and what a run then does."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Proxy, run, sync
from tests.e2e.test_dry_run import kinds, rehearse
from tests.e2e.test_edits import Edited
from tests.trees import ROOT, assert_same


def itemized(src: Path, dst: Path) -> list[tuple[str, str, str]]:
    """(kind of change, name, what changes), as rsync would do it; times and owners compared."""
    argv = [
        "rsync",
        "-aHAXnic",
        "--modify-window=-1",
        "--delete",
        "--exclude=/.tar_like",
        "--out-format=%i %n%L",
    ]
    out = subprocess.run(
        [*argv, f"{src}/", f"{dst}/"], check=True, capture_output=True, text=True
    ).stdout
    found = []
    for line in out.splitlines():
        flags, _, name = line.partition(" ")
        name = name.strip().rstrip("/")
        if flags == "*deleting":
            found.append(("delete", name, ""))
            continue
        name = name.partition(" -> ")[0].partition(" => ")[0].rstrip("/") or "."
        new = flags[2:].startswith("+++")
        match flags[0], flags[1]:
            case ">", "f":
                kind = "content"
            case "h", _:
                kind = "links"
            case "c", "d":
                kind = "folders"
            case "c", "L":
                kind = "symlinks"
            case ".", _:
                kind = "metadata"
            case _:
                raise AssertionError(line)
        found.append((kind, name, "" if new else flags[2:]))
    return found


def words(flags: str) -> set[str]:
    """What rsync would set of a name: YXcstpoguax, from the third character on."""
    letters = {"t": "mtime", "p": "mode", "o": "owner", "g": "owner", "x": "xattrs", "a": "xattrs"}
    return {letters[one] for one in flags if one in letters}


def linked(*roots: Path) -> list[set[str]]:
    """Names that are one file in one of these trees; names in common join what they are in."""
    groups: list[set[str]] = []
    for root in roots:
        found: dict[int, set[str]] = {}
        for path in root.rglob("*"):
            st = path.lstat()
            if stat.S_ISREG(st.st_mode) and st.st_nlink > 1 and ".tar_like" not in path.parts:
                found.setdefault(st.st_ino, set()).add(str(path.relative_to(root)))
        for names in found.values():
            touching = [one for one in groups if one & names]
            groups = [one for one in groups if not one & names]
            groups.append(names.union(*touching))
    return groups


def unread(theirs: list[tuple[str, str, str]], src: Path) -> list[set[str]]:
    """Files that rsync has read, and found the same, which are too small for us to ask about."""
    return [
        {name}
        for kind, name, flags in theirs
        if kind == "metadata" and "t" in flags and 0 < _size(src / name) < 4096
    ]


def _size(path: Path) -> int:
    st = path.lstat()
    return st.st_size if stat.S_ISREG(st.st_mode) else 0


def assert_agrees(said: Any, theirs: list[tuple[str, str, str]], groups: list[set[str]]) -> None:
    """With groups of names of which we may do the one thing and rsync another."""
    ours = kinds(said)
    loose = set[str]().union(*groups)
    named = {
        kind: {name for one, name, _ in theirs if one == kind} - loose
        for kind in ("content", "folders", "symlinks", "links", "delete")
    }
    assert {*ours["send"], *ours["local"]} - loose == named["content"]
    for kind in ("folders", "symlinks", "links"):
        assert set(ours[kind]) - loose == named[kind], kind
    assert set(said["delete"]) - loose == named["delete"]
    changed = {
        name: words(flags)
        for kind, name, flags in theirs
        if kind == "metadata" and name not in loose
    }
    assert {
        one["path"]: set(one["changes"]) for one in said["metadata"] if one["path"] not in loose
    } == changed
    every = {*said["delete"]}.union(*ours.values())
    for names in groups:
        if any(name in names for _, name, _ in theirs):
            assert every & names, names


def disturb(tree: Edited, dice: random.Random) -> None:
    """Further things that a sync has to put right: attributes, links, and what is no file."""
    for path in dice.sample(tree.files(), 2):
        os.setxattr(path, "user.color", dice.randbytes(4))
    (tree.root / f"link{dice.randrange(1 << 30)}").symlink_to("nowhere")
    for path in list(tree.root.rglob("link*")):
        if path.is_symlink() and dice.random() < 0.5:
            moment = dice.randrange(10**18)
            os.utime(path, ns=(moment, moment), follow_symlinks=False)
        elif path.is_symlink():
            path.unlink()
            path.symlink_to("another place")
    if ROOT:
        for path in dice.sample([tree.folder(), *tree.files()], 2):
            os.chown(path, 1000 + dice.randrange(3), -1)
    fresh = tree.free().with_name(f"folder{dice.randrange(1 << 30)}")
    (fresh / "below").mkdir(parents=True)


@pytest.mark.parametrize("first", ["sync", "copy"])
@pytest.mark.parametrize("target", ["folder", "proxy"])
def test_random_edits(work: Path, dice: random.Random, first: str, target: str) -> None:
    (work / "src").mkdir()
    tree, dst = Edited(work / "src", dice), work / "dst"
    disturb(tree, dice)
    if first == "sync":
        sync(tree.root, dst, "-X")
    else:
        subprocess.run(["rsync", "-aHX", f"{tree.root}/", f"{dst}/"], check=True)
    for _ in range(2):
        for _ in range(dice.randrange(1, 8)):
            tree.edit()
        disturb(tree, dice)
        theirs = itemized(tree.root, dst)
        if target == "folder":
            said = rehearse(tree.root, dst, "--delete", "-X", "--checksum")
        else:
            with Proxy(dst) as proxy:
                said = rehearse(tree.root, proxy.url, "--delete", "-X", "--checksum")
        assert_agrees(said, theirs, linked(tree.root, dst) + unread(theirs, tree.root))
        done = sync(tree.root, dst, "--delete", "-X", "--checksum")
        assert said["bytes_to_send"] == done["bytes_sent"]
        assert len(said["delete"]) == done["deleted"]
        assert_same(tree.root, dst, xattrs=True)
        again = rehearse(tree.root, dst, "--delete", "-X")
        assert not any(kinds(again).values())


def test_each_kind_by_name_and_in_words(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    (src / "stays").mkdir(parents=True)
    for name in ("mode", "time", "name", "stays/file", "empty"):
        (src / name).write_text(name if name != "empty" else "")
    (src / "to").symlink_to("mode")
    sync(src, dst)
    (src / "mode").chmod(0o640)
    os.utime(src / "empty", ns=(5, 5))
    os.utime(src / "time", ns=(5, 5))
    os.link(src / "name", src / "second name")
    (src / "to").unlink()
    (src / "to").symlink_to("time")
    (src / "made/deep").mkdir(parents=True)
    os.utime(src, ns=(7, 7))
    said = rehearse(src, dst)
    assert said["folders"] == ["made", "made/deep"]
    assert said["symlinks"] == [{"path": "to", "target": "time"}]
    assert said["links"] == [{"path": "second name", "to": "name"}]
    assert said["metadata"] == [
        {"path": ".", "changes": ["mtime"]},
        {"path": "empty", "changes": ["mtime"]},
        {"path": "mode", "changes": ["mode"]},
    ]
    assert [one["path"] for one in said["send"]] == ["time"]
    result = run("sync", src, dst, "--dry-run")
    assert result.out.decode().splitlines() == [
        "send time (4 bytes)",
        "folder made",
        "folder made/deep",
        "symlink to -> time",
        "link second name => name",
        "change . (mtime)",
        "change empty (mtime)",
        "change mode (mode)",
    ]
    result.sentence("make 2 folders, 1 symlink and 1 hard link, set the metadata of 3 names")


def test_names_that_are_parted_or_joined(work: Path) -> None:
    """What is one file at the destination and two at the source, and the other way round."""
    src, dst = work / "src", work / "dst"
    src.mkdir()
    for name in ("a", "b", "c", "d", "e"):
        (src / name).write_text(name[0] * 5000)
    for name in ("c", "d", "e"):
        os.link(src / name, src / f"{name}2")
    sync(src, dst)
    shutil.copy2(src / "a", src / "b")
    os.utime(src / "b", ns=(src.stat().st_atime_ns, (src / "a").stat().st_mtime_ns))
    for name in ("b", "c2"):
        (dst / name).unlink()
    os.link(dst / "a", dst / "b")
    (dst / "c2").write_text("c" * 5000)
    for name in ("c", "d"):
        (src / name).chmod(0o600)
    said = rehearse(src, dst)
    assert (said["send"], said["local"], said["folders"]) == ([], ["b"], [])
    assert said["links"] == [{"path": "c2", "to": "c"}, {"path": "d2", "to": "d"}]
    assert [one for one in said["metadata"] if one["path"] != "."] == [
        {"path": name, "changes": ["mode"]} for name in ("c", "d")
    ]
    assert sync(src, dst)["bytes_sent"] == 0
    assert_same(src, dst)


def test_a_folder_that_may_not_give_way_is_named(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    src.mkdir()
    (dst / "name/full").mkdir(parents=True)
    (dst / "bare").mkdir()
    for name in ("name", "bare"):
        (src / name).write_text("a file")
    said = rehearse(src, dst, codes=(1,))
    done = run("sync", src, dst, "--json", codes=(1,)).summary
    assert said["failures"] == done["failures"]
    assert [one["path"] for one in said["failures"]] == ["name"]
    assert rehearse(src, dst, "--delete")["failures"] == []


def test_of_a_snapshot_everything_is_made(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    (src / "folder").mkdir(parents=True)
    (src / "folder/file").write_text("file")
    os.link(src / "folder/file", src / "name")
    (src / "link").symlink_to("name")
    sync(src, dst, "--snapshot", "one")
    said = kinds(rehearse(src, dst, "--snapshot", "two"))
    assert said == {
        "send": [],
        "local": [],
        "folders": ["folder"],
        "symlinks": ["link"],
        "links": ["name"],
        "metadata": [],
    }
    assert not (dst / "two").exists()


def test_a_rule_leaves_names_out(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    (src / "new/deep").mkdir(parents=True)
    (src / "new/file").write_text("file")
    os.link(src / "new/file", src / "a name")
    (src / "new/link").symlink_to("file")
    (dst / "a name").mkdir(parents=True)
    said = kinds(rehearse(src, dst, "--existing", codes=(0, 1)))
    assert (said["folders"], said["symlinks"]) == ([], [])


def test_closed_folders_do_not_stop_it(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    (src / "closed").mkdir(parents=True)
    (src / "closed/file").write_text("file")
    sync(src, dst)
    (src / "closed").chmod(0o500)
    (src / "closed/file").chmod(stat.S_IRUSR)
    said = kinds(rehearse(src, dst))
    assert said["metadata"] == ["closed", "closed/file"]
