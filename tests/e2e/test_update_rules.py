"""`--update`, `--existing`, `--ignore-existing`, `--size-only`: as rsync has them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.harness import Proxy, run, sync
from tests.trees import Node, look

FLAGS = ("--update", "--existing", "--ignore-existing", "--size-only")
START = 1_600_000_000


def plant(root: Path, dice: random.Random) -> None:
    """A tree of names that another one will share in part, in other kinds, sizes and times."""
    root.mkdir(exist_ok=True)
    for number in range(40):
        path = root / f"dir{number % 4}" / f"{number}"
        kind = dice.choice(["file"] * 6 + ["folder", "symlink", "missing"])
        path.parent.mkdir(exist_ok=True)
        if kind == "file":
            write(path, dice, dice.choice([0, 10, 10, 5000]))
        elif kind == "folder":
            path.mkdir()
            if number % 2:
                write(path / "below", dice, 10)
        elif kind == "symlink":
            path.symlink_to(dice.choice(["here", "there"]))
    (root / root.name).mkdir()
    write(root / root.name / "only", dice, 10)
    for path in root.rglob("*"):
        if path.is_symlink() or path.is_dir():
            os.utime(path, (START, START), follow_symlinks=False)
    os.utime(root, (START, START))


def write(path: Path, dice: random.Random, size: int) -> None:
    """A file whose content is another one wherever its size or its time is another one."""
    stamp = START + 10 * dice.randrange(3)
    path.write_bytes(random.Random(f"{size} {stamp}").randbytes(size))
    os.utime(path, (stamp, stamp))


def seen(root: Path) -> dict[bytes, Node]:
    """A tree less what no two tools agree on: times of folders whose names are not all copied."""
    return {
        path: node if node.kind != "folder" else replace(node, mtime_ns=0)
        for path, node in look(root).items()
    }


@pytest.mark.parametrize("flags", [*((flag,) for flag in FLAGS), ("--update", "--existing"),
                                   ("--existing", "--ignore-existing"), ("--update", "--size-only"),
                                   ("--existing", "--delete")])  # fmt: skip
@pytest.mark.parametrize("known", [False, True])
def test_they_are_what_rsync_makes_of_them(
    work: Path, dice: random.Random, flags: tuple[str, ...], known: bool
) -> None:
    source, dest, oracle = work / "src", work / "dst", work / "oracle"
    plant(work / "before", dice)
    plant(source, dice)
    if known:
        sync(work / "before", dest)
    else:
        shutil.copytree(work / "before", dest, symlinks=True)
    subprocess.run(["cp", "-a", f"{work / 'before'}", oracle], check=True)
    copied = subprocess.run(
        ["rsync", "-aH", *flags, f"{source}/", f"{oracle}/"], check=False, capture_output=True
    )
    codes = (0, 1) if copied.returncode else (0,)  # folders that are not empty are in the way
    sync(source, dest, *flags, codes=codes)
    here, there = seen(dest), seen(oracle)
    for path, node in seen(source).items():
        # Where rsync leaves a file in the place of a folder, it still gives it the folder's time.
        if node.kind == "folder" and path in there and there[path].kind == "file":
            there[path] = replace(there[path], mtime_ns=here[path].mtime_ns)
    lines = [
        f"{path!r}: {here.get(path)} here, {there.get(path)} there"
        for path in sorted(here.keys() | there.keys())
        if here.get(path) != there.get(path)
    ]
    assert not lines, "\n".join(lines)


def test_what_is_passed_over_is_counted_and_not_sent(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    for root in (source, dest):
        root.mkdir()
        (root / "file").write_text(f"of {root.name}")
    os.utime(source / "file", (START, START))
    with Proxy(dest) as proxy:
        summary = sync(source, proxy.url, "--update")
        assert (summary["passed"], summary["bytes_sent"]) == (1, 0)
        assert (dest / "file").read_text() == "of dst"
        os.utime(source / "file")
        assert sync(source, proxy.url, "--update")["passed"] == 0
        assert (dest / "file").read_text() == "of src"


def test_a_run_with_another_rule_does_not_go_by_the_plan_of_the_one_before(work: Path) -> None:
    source, dest, db = work / "src", work / "dst", work / "db"
    for root in (source, dest):
        root.mkdir()
    (source / "new").write_bytes(os.urandom(20000))
    (source / "known").write_bytes(os.urandom(20000))
    (dest / "known").write_text("known")
    with Proxy(dest) as proxy:
        run("index", "-b", source, "-db", db)
        run("upload", "-b", source, "-db", db, "-u", proxy.url, "-s", "4096", "-l", "1")
        assert sync(source, proxy.url, "-db", db, "--existing")["passed"] == 1
    assert not (dest / "new").exists()
    assert (dest / "known").read_bytes() == (source / "known").read_bytes()
