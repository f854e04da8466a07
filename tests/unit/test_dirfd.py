"""Walking by directory fd: deep, in any order, never through a symlink."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tar_like.dirfd import KEEP, Walker

NAME = b"a-name-of-fifty-bytes-so-that-paths-grow-long-....."
LEVELS = 3 * KEEP + 5


def open_fds() -> set[str]:
    """Of this whole process: others in it may close theirs meanwhile."""
    return set(os.listdir("/proc/self/fd"))


class Deep:
    """A deep tree. No dataclass: hypothesis prints its arguments."""

    def __init__(self, root: Path, paths: list[bytes]) -> None:
        self.root = root
        self.inodes = {path: inode_by_steps(root, path) for path in paths}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deep]:
    """A chain of folders beyond PATH_MAX, each with a branch; and all paths in it."""
    root = tmp_path_factory.mktemp("deep")
    paths = [b""]
    at = os.open(root, os.O_RDONLY)
    for level in range(LEVELS):
        os.mkdir(NAME, dir_fd=at)
        below = os.open(NAME, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
        chain = (paths[-1] if level else b"") + (b"/" if level else b"") + NAME
        if level % 7 == 0:
            os.mkdir(b"branch", dir_fd=at)
            paths.insert(1, chain + b"/branch")
        paths.append(chain)
    os.close(at)
    assert len(paths[-1]) > 4096 < max(map(len, paths))
    yield Deep(root, paths)
    remove(root)


def remove(root: Path) -> None:
    """rmtree goes by names; this chain is too long for that."""
    for _, names, files, fd in os.fwalk(root, topdown=False):
        for name in files:
            os.unlink(name, dir_fd=fd)
        for name in names:
            os.rmdir(name, dir_fd=fd)


def inode_by_steps(root: Path, path: bytes) -> tuple[int, int]:
    """The model: open one name after the other, remember nothing."""
    fd = os.open(root, os.O_RDONLY)
    for name in path.split(b"/") if path else []:
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    st_ = os.fstat(fd)
    os.close(fd)
    return st_.st_dev, st_.st_ino


@settings(max_examples=30)
@given(seed=st.integers())
def test_any_order_of_deep_paths_leads_where_the_names_say(deep: Deep, seed: int) -> None:
    dice = random.Random(seed)
    before = open_fds()
    with Walker(deep.root) as walker:
        for path in dice.choices(list(deep.inodes), k=60):
            found = os.fstat(walker.dirfd(path))
            assert (found.st_dev, found.st_ino) == deep.inodes[path], len(path)
            assert len(open_fds() - before) <= 2 * KEEP + 1
    assert open_fds() <= before


def test_a_walker_that_nobody_has_any_more_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    before = open_fds()
    walker = Walker(tmp_path)
    walker.dirfd(b"a/b")
    del walker
    assert open_fds() <= before


def test_up_and_down_one_name_at_a_time(
    deep: Deep,
) -> None:
    chain = sorted((path for path in deep.inodes if b"branch" not in path), key=len)
    with Walker(deep.root) as walker:
        for path in [*chain, *reversed(chain), *chain]:
            assert os.fstat(walker.dirfd(path)).st_ino == deep.inodes[path][1]


def test_split_gives_the_parent_and_the_name(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    with Walker(tmp_path) as walker:
        assert walker.split(b"") == (walker.root, b".")
        assert walker.split(b"x") == (walker.root, b"x")
        fd, name = walker.split(b"a/b/x")
        assert os.fstat(fd).st_ino == (tmp_path / "a/b").stat().st_ino
        assert name == b"x"


def test_the_root_may_be_a_symlink_nothing_below_it_may(tmp_path: Path) -> None:
    (tmp_path / "real/a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "real/out").symlink_to(tmp_path / "outside")
    (tmp_path / "real/in").symlink_to("a")
    (tmp_path / "real/a/up").symlink_to("..")
    (tmp_path / "real/dangling").symlink_to("nowhere")
    before = open_fds()
    with Walker(tmp_path / "root") as walker:
        for path in (b"out", b"in", b"a/up", b"a/up/a", b"dangling", b"out/x"):
            with pytest.raises(NotADirectoryError):
                walker.dirfd(path)
            assert os.fstat(walker.dirfd(b"a")).st_ino == (tmp_path / "real/a").stat().st_ino
    assert open_fds() <= before


@pytest.mark.parametrize(
    "path", [b"..", b"a/..", b"a/../a", b".", b"a/.", b"./a", b"/", b"/a", b"a/", b"a//a", b"//"]
)
def test_no_path_leads_up_or_round_about(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "a/a").mkdir(parents=True)
    with Walker(tmp_path) as walker, pytest.raises(NotADirectoryError):
        walker.dirfd(path)


def test_a_failed_walk_does_no_harm_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/file").touch()
    before = open_fds()
    with Walker(tmp_path) as walker:
        for _ in range(3):
            for path, code in (
                (b"a/b/missing", errno.ENOENT),
                (b"a/b/missing/c", errno.ENOENT),
                (b"a/file", errno.ENOTDIR),
                (b"a/file/c", errno.ENOTDIR),
                (b"x" * 300, errno.ENAMETOOLONG),
            ):
                with pytest.raises(OSError) as caught:
                    walker.dirfd(path)
                assert caught.value.errno == code
                here = os.fstat(walker.dirfd(b"a/b/c")).st_ino
                assert here == (tmp_path / "a/b/c").stat().st_ino
                assert os.fstat(walker.dirfd(b"")).st_ino == tmp_path.stat().st_ino
    assert open_fds() <= before


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_root_that_is_no_folder_is_an_error(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    if kind == "file":
        root.touch()
    before = open_fds()
    with pytest.raises(OSError):
        Walker(root)
    assert open_fds() <= before


@settings(max_examples=60)
@given(seed=st.integers())
def test_what_fails_on_the_way_leads_nobody_astray(
    crowded: tuple[Path, list[bytes]], seed: int
) -> None:
    """The same names lie on all levels: one level too high or too low is another directory."""
    root, there = crowded
    dice = random.Random(seed)
    with Walker(root) as walker:
        for _ in range(300):
            above = dice.choice([b"", *there])
            name = dice.choice([b"a", b"b", b"c", b"file", b"link", b"none", b"..", b".", b""])
            path = above + b"/" + name if above else name
            if dice.randrange(4) == 0:
                path = dice.choice(there)
            try:
                fd = walker.dirfd(path)
            except OSError:
                assert path not in there and path
                continue
            assert path in there or not path
            st_ = os.fstat(fd)
            assert (st_.st_dev, st_.st_ino) == inode_by_steps(root, path)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    root = tmp_path_factory.mktemp("crowded")
    there = list[bytes]()
    for names in itertools.chain(*(itertools.product("abc", repeat=depth) for depth in (1, 2, 3))):
        if sum(map(ord, names)) % 4 == 0:
            continue  # missing, with all that would be below
        path = root.joinpath(*names)
        if path.parent == root or path.parent.is_dir():
            path.mkdir()
            (path / "file").touch()
            (path / "link").symlink_to(root)
            there.append(os.fsencode(path.relative_to(root)))
    return root, there
