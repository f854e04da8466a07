"""Copying from file to file, shared or not, by one thread or two."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tar_like.proxy import copying
from tar_like.proxy.copying import copy_range
from tar_like.proxy.filesystem import TMPFS, kind_of

SIZE = 5 * (1 << 20) + 123


@pytest.fixture(params=["kernel", "two", "by hand"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How bytes are copied: by copy_file_range, by two threads, or where that is not to be had."""
    monkeypatch.setattr(copying, "LARGE", 1 << 20)
    kinds = {"two": next(iter(copying.PLAIN))}
    monkeypatch.setattr(copying, "kind_of", lambda _: kinds.get(request.param, 0))

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if request.param != "kernel":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    return str(request.param)


@pytest.fixture
def files(work: Path, dice: random.Random) -> Iterator[tuple[int, int]]:
    """A source, and an empty target."""
    (work / "source").write_bytes(dice.randbytes(SIZE))
    with ExitStack() as stack:
        fds = [os.open(work / name, os.O_RDWR | os.O_CREAT) for name in ("source", "target")]
        for fd in fds:
            stack.callback(os.close, fd)
        yield fds[0], fds[1]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("start", "offset", "length"),
    [(0, 0, SIZE), (5, 4096, 3 << 20), (1 << 20, 0, 1), (0, 7, 0), (3, 5, (1 << 20) + 1)],
)
def test_bytes_get_where_they_should(
    work: Path, files: tuple[int, int], start: int, offset: int, length: int
) -> None:
    copy_range(files[0], start, files[1], offset, length)
    whole = (work / "source").read_bytes()
    assert (work / "target").read_bytes() == (
        bytes(offset) * bool(length) + whole[start : start + length]
    )


@pytest.mark.usefixtures("way")
def test_a_source_that_has_become_shorter(work: Path, files: tuple[int, int]) -> None:
    whole = (work / "source").read_bytes()
    os.truncate(work / "source", 3 << 20)
    os.ftruncate(files[1], SIZE)
    copy_range(files[0], 0, files[1], 0, SIZE)
    assert (work / "target").read_bytes() == whole[: 3 << 20].ljust(SIZE, b"\0")


@pytest.mark.usefixtures("way")
def test_what_goes_wrong_is_raised(work: Path, files: tuple[int, int]) -> None:
    other = os.open(work / "target", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            copy_range(files[0], 0, other, 0, SIZE)
    finally:
        os.close(other)


def test_a_full_disk_is_raised_by_either_thread(
    work: Path, files: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "LARGE", 1 << 20)
    monkeypatch.setattr(copying, "kind_of", lambda _: TMPFS)
    write = copying.write_all

    written = []

    def fail(fd: int, data: bytes | memoryview, offset: int) -> None:
        if offset == 2 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(offset)
        write(fd, data, offset)

    monkeypatch.setattr(copying, "write_all", fail)
    os.truncate(work / "source", 100 << 20)
    with pytest.raises(OSError, match="No space left"):
        copy_range(files[0], 0, files[1], 0, 100 << 20)
    assert len(written) < 50, "the other one does not go on for long"


def test_kinds_of_filesystems(work: Path) -> None:
    shm, proc = (os.open(path, os.O_PATH) for path in ("/dev/shm", "/proc"))
    try:
        assert kind_of(shm) == TMPFS
        assert kind_of(proc) not in copying.PLAIN
        assert kind_of(-1) == 0
    finally:
        os.close(shm)
        os.close(proc)
