"""Destinations that are laid out with honest symlinks and mounts: all of them work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import trees
from tests.unit.receiver import sync

Layout = Callable[[Path], Path]
"""Lays out a folder; returns the destination's path."""


def _link(path: Path, target: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(str(target))
    return path


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _mount(path: Path) -> Path:
    path.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "tar-like-test", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    return path


def _bind(path: Path, source: Path) -> Path:
    path.mkdir(parents=True)
    done = subprocess.run(["mount", "--bind", source, path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    return path


def _held(dest: Path, name: str, target: object) -> Path:
    """A destination that has a symlink of this name already."""
    _link(_folder(dest) / name, target)
    return dest


LAYOUTS: dict[str, Layout] = {
    "a folder": lambda w: _folder(w / "dst"),
    "nothing yet": lambda w: w / "dst",
    "nothing yet, deep": lambda w: w / "x/y/dst",
    "a symlink": lambda w: _link(w / "dst", _folder(w / "real")),
    "a relative symlink": lambda w: _link(w / "dst", _folder(w / "real").name),
    "a symlink to a symlink": lambda w: _link(w / "dst", _link(w / "mid", _folder(w / "real"))),
    "below a symlink": lambda w: _link(w / "up", _folder(w / "real")) / "dst",
    "below two symlinks": lambda w: _link(w / "a", _link(_folder(w / "r") / "b", w)) / "b/dst",
    "a symlink with dots": lambda w: _link(w / "dst", _folder(w / "real") / ".." / "real"),
    "dots on the way": lambda w: _folder(w / "other") / ".." / "dst",
    "a slash at the end": lambda w: Path(f"{_folder(w / 'dst')}/"),
    "a mount": lambda w: _mount(w / "dst"),
    "below a mount": lambda w: _mount(w / "disk") / "dst",
    "a symlink to a mount": lambda w: _link(w / "dst", _mount(w / "disk")),
    "a symlink below a mount": lambda w: _link(_mount(w / "disk") / "dst", _folder(w / "real")),
    "a bind mount": lambda w: _bind(w / "dst", _folder(w / "real")),
    "a symlink of the same name": lambda w: _held(w / "dst", "link", "d/file"),
    "another symlink of that name": lambda w: _held(w / "dst", "link", "/"),
    "a symlink where a file goes": lambda w: _held(w / "dst", "file", "/etc/passwd"),
    "a symlink where a folder goes": lambda w: _held(w / "dst", "d", "/etc"),
    "a symlink that is not in the tree": lambda w: _held(w / "dst", "mine", "/etc"),
    "a name that is no text": lambda w: _folder(w / os.fsdecode(b"d\xff\n st")),
}


@pytest.fixture
def source(work: Path) -> Path:
    folder = work / "src"
    (folder / "d/e").mkdir(parents=True)
    (folder / "file").write_bytes(b"file")
    (folder / "d/file").write_bytes(b"x" * 9000)
    (folder / "d/e/empty").touch()
    for name, target in (
        ("link", "file"), ("d/up", "../file"), ("d/root", "/"), ("d/nowhere", "nothing"),
        ("d/loop", "loop"), ("d/folder", "e"),
    ):  # fmt: skip
        (folder / name).symlink_to(target)
    return folder


@pytest.fixture
def room(work: Path) -> Iterator[Path]:
    """A folder for the layout; what is mounted in it goes again."""
    folder = _folder(work / "room")
    yield folder
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        where = line.split()[1]
        if where.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", where], check=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tree_arrives(source: Path, room: Path, name: str) -> None:
    dest = LAYOUTS[name](room)
    mine = dest / "mine"
    for _ in range(2):  # the second one finds everything in its place
        assert sync(source, dest) == {}
    if mine.is_symlink():
        mine.unlink()
        os.utime(dest, ns=(0, source.stat().st_mtime_ns))
    trees.assert_same(source, dest.resolve())
