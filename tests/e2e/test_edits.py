"""A tree is edited at random and synced again: the same tree, for no more bytes than needed."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Job, Proxy, sync
from tests.trees import assert_same

MIB = 1 << 20
PAGE = 4096
EDIT = 4 * ((64 << 10) + 2 * PAGE)
"""Bytes that may be sent besides the new ones for an edit of a large file: chunks around it."""
SIZES = (0, 1, 900, PAGE, 30_000, 70_000, MIB, 2 * MIB)


class Edited:
    """A tree, edits of it, and what they may cost since the last sync."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.root, self.dice = root, dice
        for folder in ("a/deep", "b", "c/empty"):
            (root / folder).mkdir(parents=True)
        for number, size in enumerate(SIZES * 2):
            folder = dice.choice(("a", "a/deep", "b"))
            (root / folder / f"file{number}").write_bytes(dice.randbytes(size))
        (root / "link").symlink_to("a")
        self.synced()

    def synced(self) -> None:
        """What is here now is at the destination."""
        self._known = {path: path.read_bytes() for path in self.files()}
        self._times = {(path.stat().st_size, path.stat().st_mtime_ns) for path in self.files()}
        self._contents = set(self._known.values())
        self._fresh: dict[Path, int] = {}
        """Files that were only edited since, where they are, and the bytes that this may cost."""

    def files(self) -> list[Path]:
        return sorted(one for one in self.root.rglob("*") if one.is_file() and not one.is_symlink())

    def bound(self) -> int:
        """Bytes that a sync may send by now."""
        total, seen = 0, set[bytes]()
        for path in self.files():
            data, st = path.read_bytes(), path.stat()
            timely = (st.st_size, st.st_mtime_ns) in self._times
            if data in self._contents and (st.st_size >= PAGE or timely):
                continue
            if st.st_size >= 64 << 10 and data in seen:
                continue  # a twin of one that is counted
            seen.add(data)
            large = min(len(data), len(self._known.get(path, b""))) >= MIB
            cost = self._fresh.get(path, len(data)) if large else len(data)
            total += min(cost, len(data))
        return total

    def moved_by_hand(self, dst: Path) -> None:
        """Move a name about below ``dst``, which is as this tree was; its older version is lost."""
        found = [one for one in dst.rglob("*") if ".tar_like" not in one.parts]
        folders = [dst, *(one for one in found if one.is_dir() and not one.is_symlink())]
        if not found:
            return
        path, into = self.dice.choice(sorted(found)), self.dice.choice(sorted(folders))
        if path == into or path in into.parents:
            return
        gone = self.root / path.relative_to(dst)
        for known in [one for one in self._known if one == gone or gone in one.parents]:
            del self._known[known]
        path.rename(into / f"by hand {self.dice.randrange(1 << 40)}")

    def edit(self) -> None:
        """One edit at random."""
        name = self.dice.choice(sorted(EDITS))
        EDITS[name](self)

    def one(self) -> Path:
        """Some file, made if there is none."""
        files = self.files()
        if not files:
            self.create()
            files = self.files()
        return self.dice.choice(files)

    def folder(self) -> Path:
        """Some folder."""
        found = [one for one in self.root.rglob("*") if one.is_dir() and not one.is_symlink()]
        return self.dice.choice(sorted(found) or [self.root])

    def free(self) -> Path:
        """A name in some folder that is not taken."""
        return self.folder() / f"new{self.dice.randrange(1 << 40)}"

    def _change(self, change: Callable[[bytearray], int]) -> None:
        path = self.one()
        data = bytearray(path.read_bytes())
        fresh = change(data)
        path.write_bytes(data)
        if path in self._known:
            self._fresh[path] = self._fresh.get(path, 0) + fresh + EDIT

    def overwrite(self) -> None:
        def change(data: bytearray) -> int:
            start = self.dice.randrange(len(data) + 1)
            data[start : start + PAGE] = self.dice.randbytes(len(data[start : start + PAGE]))
            return PAGE

        self._change(change)

    def insert(self) -> None:
        def change(data: bytearray) -> int:
            start = self.dice.randrange(len(data) + 1)
            data[start:start] = self.dice.randbytes(5000)
            return 5000

        self._change(change)

    def append(self) -> None:
        def change(data: bytearray) -> int:
            data += self.dice.randbytes(5000)
            return 5000

        self._change(change)

    def truncate(self) -> None:
        def change(data: bytearray) -> int:
            del data[self.dice.randrange(len(data) + 1) :]
            return 0

        self._change(change)

    def touch(self) -> None:
        os.utime(self.one(), ns=(1, self.dice.randrange(10**18)))

    def chmod(self) -> None:
        self.one().chmod(self.dice.choice((0o600, 0o644, 0o755)))

    def touch_folder(self) -> None:
        os.utime(self.folder(), ns=(1, self.dice.randrange(10**18)))

    def chmod_folder(self) -> None:
        self.folder().chmod(self.dice.choice((0o700, 0o755, 0o1777)))

    def create(self) -> None:
        self.free().write_bytes(self.dice.randbytes(self.dice.choice(SIZES)))

    def rename(self) -> None:
        path = self.one()
        self._fresh.pop(path, None)
        path.rename(self.free())

    def move_folder(self) -> None:
        folder, target = self.folder(), self.free()
        if folder != self.root and folder not in target.parents:
            for path in list(self._fresh):
                if folder in path.parents:
                    del self._fresh[path]
            folder.rename(target)

    def duplicate(self) -> None:
        self.dice.choice((shutil.copy, shutil.copy2))(self.one(), self.free())

    def delete(self) -> None:
        self.one().unlink()

    def to_symlink(self) -> None:
        path = self.one()
        path.unlink()
        path.symlink_to("elsewhere")

    def to_folder(self) -> None:
        path = self.one()
        path.unlink()
        path.mkdir()

    def to_file(self) -> None:
        folder = self.folder()
        if folder != self.root:
            shutil.rmtree(folder)
            folder.write_bytes(self.dice.randbytes(3000))

    def link(self) -> None:
        os.link(self.one(), self.free())


NO_EDITS = {"edit", "one", "folder", "free", "files", "bound", "synced", "moved_by_hand"}
EDITS: dict[str, Callable[[Edited], None]] = {
    name: method
    for name, method in vars(Edited).items()
    if callable(method) and not name.startswith("_") and name not in NO_EDITS
}


@pytest.fixture
def tree(work: Path, dice: random.Random) -> Edited:
    (work / "src").mkdir()
    return Edited(work / "src", dice)


@pytest.mark.parametrize("scripts", [6])
def test_only_what_was_edited_is_sent(
    work: Path, tree: Edited, dice: random.Random, scripts: int
) -> None:
    dst = work / "dst"
    sync(tree.root, dst)
    for _ in range(scripts):
        for _ in range(dice.randrange(1, 8)):
            tree.edit()
        bound = tree.bound()
        summary = sync(tree.root, dst, "--delete")
        assert_same(tree.root, dst, xattrs=True)
        assert summary["bytes_sent"] <= bound
        tree.synced()


@pytest.mark.parametrize("scripts", [4])
def test_what_others_copied_there_and_moved_about_is_not_sent(
    work: Path, tree: Edited, dice: random.Random, scripts: int
) -> None:
    dst = work / "dst"
    shutil.copytree(tree.root, dst, symlinks=True)
    for _ in range(scripts):
        for _ in range(dice.randrange(1, 8)):
            tree.edit()
        for _ in range(dice.randrange(4)):
            tree.moved_by_hand(dst)
        bound = tree.bound()
        summary = sync(tree.root, dst, "--delete", *dice.choice(((), ("--checksum",))))
        assert_same(tree.root, dst, xattrs=True)
        assert summary["bytes_sent"] <= bound
        tree.synced()


def test_interrupted_at_any_moment_it_goes_on(
    work: Path, tree: Edited, dice: random.Random
) -> None:
    dst = work / "dst"
    with Proxy(dst) as proxy:
        sync(tree.root, proxy.url)
        for _ in range(3):
            for _ in range(6):
                tree.edit()
            for _ in range(2):
                with Job("sync", tree.root, proxy.url, "--delete", "-p", 2) as job:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        job.process.wait(dice.uniform(0.1, 1.2))
                    job.kill()
            summary = sync(tree.root, proxy.url, "--delete")
            assert_same(tree.root, dst, xattrs=True)
            assert summary["bytes_sent"] <= tree.bound()
            tree.synced()
