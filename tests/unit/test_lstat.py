"""Many names looked at in one go: what os.lstat says of each, whichever way it comes."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tar_like import lstat
from tar_like.lstat import MANY, Lstats


@pytest.fixture(params=["statx", "lstat"])
def lstats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lstats:
    if request.param == "lstat":
        monkeypatch.setattr(lstat, "_statx", lambda: None)
    return Lstats()


@pytest.fixture
def fd(work: Path) -> Iterator[int]:
    fd = os.open(work, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def columns(lstats: Lstats) -> list[list[int]]:
    """All columns, as numbers."""
    words = (lstats.modes, lstats.uids, lstats.gids, lstats.links)
    quads = (lstats.inos, lstats.sizes, *lstats.times(), lstats.devs)
    found = [list(struct.unpack(f"<{lstats.count}I", column)) for column in words]
    found += [list(struct.unpack(f"<{lstats.count}q", column)) for column in quads]
    return [*found, list(lstats.blocks())]


def expected(folder: Path, names: list[bytes]) -> list[list[int]]:
    states = [os.lstat(os.fsencode(folder) + b"/" + name) for name in names]
    fields = (
        "st_mode", "st_uid", "st_gid", "st_nlink",
        "st_ino", "st_size", "st_ctime_ns", "st_mtime_ns", "st_dev", "st_blocks",
    )  # fmt: skip
    return [[getattr(state, field) for state in states] for field in fields]


def plant(folder: Path, dice: random.Random) -> list[bytes]:
    """Names of every kind, with times of every kind that is possible."""
    (folder / "file").write_bytes(b"x" * 5000)
    os.link(folder / "file", folder / "further")
    (folder / "link").symlink_to("nowhere")
    (folder / "folder").mkdir(mode=0o751)
    os.mkfifo(folder / "fifo")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 33)
    for number in range(50):
        path = folder / os.fsdecode(b"\xff%d" % number)
        path.write_bytes(dice.randbytes(dice.randrange(9000)))
        path.chmod(dice.randrange(0o10000))
    for second in (0, 1, -1, -5_000_000_000, 8_589_934_591, 8_589_934_592, 9_223_372_035):
        path = folder / f"at {second}"
        path.touch()
        os.utime(path, ns=(0, second * 10**9 + dice.randrange(10**9)))
    return sorted(map(os.fsencode, os.listdir(folder)))


def test_columns_are_what_lstat_says(work: Path, fd: int, lstats: Lstats) -> None:
    names = plant(work, random.Random(1))
    lstats.look(names, fd)
    assert lstats.count == len(names)
    assert columns(lstats) == expected(work, names)
    for some in ([], names[:1], names[5:7]):  # the buffer is used again
        lstats.forget()
        lstats.look(some, fd)
        assert columns(lstats) == expected(work, some)


def test_names_of_several_directories(work: Path, fd: int, lstats: Lstats) -> None:
    """What one look brings is kept until it is forgotten, whatever becomes of later ones."""
    (work / "below").mkdir()
    below = plant(work / "below", random.Random(2))
    names = plant(work, random.Random(1))
    inner = os.open(work / "below", os.O_PATH)
    try:
        lstats.look(names, fd)
        lstats.look(below, inner)
        both = [
            one + other
            for one, other in zip(
                expected(work, names), expected(work / "below", below), strict=True
            )
        ]
        assert columns(lstats) == both
        with pytest.raises(FileNotFoundError):
            lstats.look([*below, b"gone"], inner)
        assert columns(lstats) == both
        modes = both[0][len(names) :]
        assert lstats.types(len(names)) == bytes(mode >> 8 for mode in modes)
        lstats.forget(len(names))
        assert columns(lstats) == expected(work, names)
    finally:
        os.close(inner)


def test_as_many_as_there_may_be(work: Path, fd: int, lstats: Lstats) -> None:
    for number in range(MANY):
        (work / f"{number:04}").touch()
    names = sorted(map(os.fsencode, os.listdir(work)))
    lstats.look(names, fd)
    assert columns(lstats) == expected(work, names)


def test_names_on_several_devices(lstats: Lstats) -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        lstats.look([b".", b"proc", b"dev"], root)
    finally:
        os.close(root)
    devices = [os.lstat(one).st_dev for one in ("/", "/proc", "/dev")]
    assert list(struct.unpack("<3Q", lstats.devs)) == devices and len(set(devices)) > 1


@pytest.mark.parametrize("year", [1600, 2300])
def test_times_that_do_not_fit(
    work: Path, fd: int, lstats: Lstats, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    """Few filesystems have such times: what the kernel says is changed on its way."""
    (work / "file").touch()
    lstats.look([b"file"], fd)
    struct.pack_into("<q", lstats._buffer, 112, (year - 1970) * 31_556_952)
    with pytest.raises(struct.error):
        lstats.times()
    assert lstats.inos
    assert not lstats.fit()
    assert lstats.fit(1)


@pytest.mark.parametrize("year", [1700, 1969, 1970, 2105, 2107, 2200, 2260])
@pytest.mark.parametrize("at", [96, 112])
def test_times_that_fit(work: Path, fd: int, lstats: Lstats, year: int, at: int) -> None:
    (work / "file").touch()
    lstats.look([b"file", b"file"], fd)
    assert lstats.fit()
    struct.pack_into("<q", lstats._buffer, at + 256, (year - 1970) * 31_556_952)
    assert lstats.fit() and lstats.fit(1)
    assert lstats.times(1)[at == 112] == lstats.times()[at == 112][8:]


def test_a_name_that_is_gone(work: Path, fd: int, lstats: Lstats) -> None:
    for name in ("a", "c"):
        (work / name).touch()
    with pytest.raises(FileNotFoundError) as caught:
        lstats.look([b"a", b"b", b"c"], fd)
    assert caught.value.filename == b"b"
    with pytest.raises(OSError):
        lstats.look([b"a"], -1)


def test_no_symlink_is_followed(work: Path, fd: int, lstats: Lstats) -> None:
    (work / "folder").mkdir()
    (work / "link").symlink_to("folder")
    lstats.look([b"link"], fd)
    assert stat.S_ISLNK(struct.unpack("<I", lstats.modes)[0])


def test_holes(work: Path, fd: int, lstats: Lstats) -> None:
    for number in range(20):
        (work / f"{number:02}").write_bytes(b"x" * 700 * number)
    (work / "99").write_bytes(b"")
    names = sorted(map(os.fsencode, os.listdir(work)))
    lstats.look(names, fd)
    assert not lstats.may_have_holes(lstats.sizes)
    for at in (0, 7, len(names) - 1):
        path = work / os.fsdecode(names[at])
        before = path.read_bytes()
        with path.open("wb") as file:
            file.truncate(1 << 20)
        lstats.forget()
        lstats.look(names, fd)
        assert lstats.may_have_holes(lstats.sizes)
        path.write_bytes(before)


def test_one_name_with_a_hole_among_huge_numbers(work: Path, fd: int, lstats: Lstats) -> None:
    """Each has a lane of one number of its own: no carry goes to the next."""
    for name in ("a", "b", "c"):
        (work / name).touch()
    lstats.look([b"a", b"b", b"c"], fd)
    sizes = struct.pack("<3q", (1 << 63) - 1, 0, 0)
    assert lstats.may_have_holes(sizes)
    struct.pack_into("<Q", lstats._buffer, 48, 1 << 54)  # blocks of the first
    assert not lstats.may_have_holes(struct.pack("<3q", 1 << 62, 0, 0))
    assert lstats.may_have_holes(struct.pack("<3q", 1 << 62, 1 << 62, 0))
    assert lstats.may_have_holes(struct.pack("<3q", 1 << 62, 0, 1))
