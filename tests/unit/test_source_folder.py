"""What a folder has beyond the contract of sources: kinds, links, holes, names without end."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tar_like.codec import CHANGED
from tar_like.errors import SourceUnusable, UsageError
from tar_like.layout import DIRECTORY, FILE, PAGE, SYMLINK, Piece, sort_key
from tar_like.source import Found, Skipped, Wanted, folder, open_source
from tar_like.source.contract import WasRead
from tar_like.source.folder import FolderSource
from tests import trees


def scan(root: Path) -> dict[bytes, Found | Skipped]:
    source = FolderSource(str(root))
    try:
        return {one.path: one for one in source.scan(Wanted(xattrs=True))}
    finally:
        source.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_hostile_tree_is_found_as_it_is(work: Path, seed: int) -> None:
    tree = trees.build(work / "src", seed, specials=True)
    found = scan(tree.root)
    seen = trees.look(tree.root)
    for path, one in found.items():
        if isinstance(one, Skipped):
            assert one.kind == "special"
            continue
        node = seen.pop(path or b".")
        kinds = {FILE: "file", DIRECTORY: "folder", SYMLINK: "symlink"}
        assert kinds[one.kind] == node.kind, path
        assert one.mtime == node.mtime_ns, path
        assert one.size == (node.size if one.kind == FILE else 0), path
        if one.kind != SYMLINK:
            assert one.mode == node.mode, path
    assert not seen
    assert sum(isinstance(one, Skipped) for one in found.values()) == tree.specials


def test_special_files_are_named_by_their_kind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        found = scan(tmp_path)
    assert found[b"fifo"] == Skipped(b"fifo", "special", "FIFO")
    assert found[b"socket"] == Skipped(b"socket", "special", "socket")


def test_symlinks_are_read_never_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").touch()
    for name, target in (
        ("dir", "real"),
        ("dangling", "no\nwhere"),
        ("loop", "loop"),
        ("up", ".."),
    ):
        (tmp_path / name).symlink_to(target)
    found = scan(tmp_path)
    assert set(found) == {b"", b"real", b"real/x", b"dir", b"dangling", b"loop", b"up"}
    links = {p: one.target for p, one in found.items() if isinstance(one, Found) and one.target}
    assert links == {b"dir": b"real", b"dangling": b"no\nwhere", b"loop": b"loop", b"up": b".."}


def test_hard_links_are_told_by_their_inode(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    a, b = scan(tmp_path)[b"a"], scan(tmp_path)[b"b"]
    assert isinstance(a, Found) and isinstance(b, Found)
    assert (a.dev, a.ino, a.links) == (b.dev, b.ino, 2)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=6), st.integers(0, PAGE))
def test_the_segments_of_a_sparse_file_hold_all_its_data(
    ranges: list[tuple[int, int]], rest: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "sparse")
        with open(path, "wb") as file:
            for page, pages in ranges:
                os.pwrite(file.fileno(), b"x" * pages * PAGE, page * PAGE)
            file.truncate(60 * PAGE + rest)
        found = scan(Path(directory))[b"sparse"]
        assert isinstance(found, Found)
        size = 60 * PAGE + rest
        segments = found.segments
        assert segments is not None
        covered = {page for start, stop in segments for page in range(start // PAGE, stop // PAGE)}
        assert covered >= {page + n for page, pages in ranges for n in range(pages)}
        if not ranges:
            assert segments == ((0, 0),)
            return
        position = -1
        for start, stop in segments:
            assert position < start < stop <= size
            assert start % PAGE == 0
            assert stop % PAGE == 0 or stop == size
            position = stop


def test_a_file_without_holes_has_no_segments(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"x" * 3 * PAGE)
    (tmp_path / "empty").touch()
    found = scan(tmp_path)
    for name in (b"full", b"empty"):
        one = found[name]
        assert isinstance(one, Found) and one.segments is None


def test_names_that_do_not_fit_into_memory_are_sorted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*(b"%d" % number for number in range(50)), b"new\nline", b"\xff", b" ", b"long" * 60]
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(tmp_path), name), os.O_CREAT))
    whole = list(scan(tmp_path))
    assert whole == [b"", *sorted(names)]
    for run in (1, 7, len(names), len(names) + 1):
        monkeypatch.setattr(folder, "RUN", run)
        assert list(scan(tmp_path)) == whole


def test_a_tree_is_in_order_however_many_names_are_looked_at_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is gone into where it comes, in the middle of a batch as at its end."""
    for number in range(30):
        inner = tmp_path / f"{number:02}"
        if number % 3:
            inner.touch()
            continue
        (inner / "deep").mkdir(parents=True)
        for name in ("a", "deep/b", "z"):
            (inner / name).touch()
    paths = [os.fsencode(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    for batch in (1, 2, 7, 30, 31):
        monkeypatch.setattr(folder, "STRETCH", batch)
        assert list(scan(tmp_path)) == [b"", *sorted(paths, key=sort_key)]


def test_a_directory_that_cannot_be_taken_at_once_spoils_none_before_it(tmp_path: Path) -> None:
    """What was looked at for the others stays: their folders, their symlinks, their holes."""
    for name in ("a", "b", "c"):
        folder_ = tmp_path / name
        (folder_ / "folder").mkdir(parents=True)
        (folder_ / "link").symlink_to("folder")
        (folder_ / "file").write_bytes(name.encode())
        with (folder_ / "sparse").open("wb") as file:
            file.truncate(1 << 20)
    os.mkfifo(tmp_path / "b/zfifo")  # the last name: all others were looked at
    source = FolderSource(str(tmp_path))
    found = {one.path: one for one in source.scan(Wanted())}
    source.close()
    for name in (b"a", b"b", b"c"):
        kinds = [found[name + b"/" + one].kind for one in (b"file", b"folder", b"link", b"sparse")]
        assert kinds == ["f", "d", "l", "f"]
        link, sparse = found[name + b"/link"], found[name + b"/sparse"]
        assert isinstance(link, Found) and link.target == b"folder"
        assert isinstance(sparse, Found) and sparse.segments == ((0, 0),)
    assert isinstance(found[b"b/zfifo"], Skipped)


def piece(path: bytes, size: int = 1, mtime: int = 0) -> Piece:
    return Piece(1, path, 0, size, size, mtime, b"")


def test_what_became_another_kind_is_omitted(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)
    os.mkfifo(root / "fifo")
    source = FolderSource(str(root))
    mtime = outside.stat().st_mtime_ns
    names = (b"folder", b"link", b"linked/outside", b"fifo", b"../outside", b"missing/x", b"")
    reading = source.read([piece(name, 1, mtime) for name in names], memoryview(bytearray(99)))
    assert reading.length == 0
    assert [omission.piece for omission in reading.omissions] == list(range(len(names)))
    source.close()


@pytest.mark.parametrize("of_this_folder", [True, False])
def test_parts_of_two_versions_are_told_apart_by_ctime(
    tmp_path: Path, *, of_this_folder: bool
) -> None:
    """Also where size and mtime are the same; but not in a copy, where every ctime is another."""
    seen, other = tmp_path / "seen", tmp_path / "other"
    seen.write_bytes(b"old" * 100)
    other.write_bytes(b"new" * 100)
    st = seen.stat()
    whole = piece(b"seen", st.st_size, st.st_mtime_ns)._replace(ctime=st.st_ctime_ns)
    part = whole._replace(stop=150)
    source = FolderSource(str(tmp_path))
    names = [(b"gone", 1), (b"seen", st.st_ctime_ns if of_this_folder else 1)]
    source.recognize(iter(names))
    assert source.read([part], memoryview(bytearray(150))).omissions == []
    os.utime(other, ns=(0, st.st_mtime_ns))
    trees.tick(tmp_path)
    other.rename(seen)
    assert source.read([whole], memoryview(bytearray(300))).omissions == []
    reasons = [one.reason for one in source.read([part], memoryview(bytearray(150))).omissions]
    assert reasons == ([CHANGED] if of_this_folder else [])
    unknown = source.read([part._replace(ctime=None)], memoryview(bytearray(150)))
    assert unknown.omissions == []
    source.close()


def test_a_file_of_proc_that_has_no_size_is_never_padded() -> None:
    """The kernel says 0 bytes and gives more: what was promised is not there."""
    source = FolderSource("/proc/self")
    reading = source.read([piece(b"status", 100)], memoryview(bytearray(100)))
    assert reading.length == 0 and len(reading.omissions) == 1
    source.close()


@pytest.mark.skipif(not trees.ROOT, reason="needs root to become nobody")
def test_what_cannot_be_read_is_named_and_harms_no_other(work: Path) -> None:
    for name in ("closed", "open", "unlisted"):
        (work / "src" / name).mkdir(parents=True)
        (work / "src" / name / "file").write_text("x")
    (work / "src/secret").write_text("x")
    (work / "src/secret").chmod(0)
    (work / "src/closed").chmod(0)
    (work / "src/unlisted").chmod(0o311)
    unlisted = work / "src/unlisted/file"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            found = scan(work / "src")
            kinds = {path for path, one in found.items() if isinstance(one, Skipped)}
            source = FolderSource(str(work / "src"))
            times = (work / "src/secret").stat().st_mtime_ns
            reading = source.read([piece(b"secret", 1, times)], memoryview(bytearray(1)))
            inside = piece(b"unlisted/file", 1, unlisted.stat().st_mtime_ns)
            unlisted_reading = source.read([inside], memoryview(bytearray(1)))
            reasons = {one.detail for one in found.values() if isinstance(one, Skipped)}
            good = (
                kinds == {b"closed", b"unlisted"}
                and reasons == {"Permission denied"}
                and not unlisted_reading.omissions
                and b"open/file" in found
                and [one.reason for one in reading.omissions] == [3]
            )
            code = 0 if good else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("as_text", [True, False])
def test_names_come_back_as_they_are(
    work: Path, monkeypatch: pytest.MonkeyPatch, as_text: bool
) -> None:
    """As text only where no two names have the same one: of Big5's bytes some have."""
    names = {
        b"\xa2\xcc",
        b"\xa4Q",
        b"\xff",
        b"new\nline",
        "ü".encode(),
        "\udcff".encode("utf-8", "surrogatepass"),
    }
    for name in names:
        Path(os.fsdecode(os.fsencode(work) + b"/" + name)).touch()
    monkeypatch.setattr(folder, "_AS_TEXT", as_text)
    if not as_text:
        monkeypatch.setattr(folder.os, "fsencode", lambda _: pytest.fail("as text"))
    source = FolderSource(str(work))
    (stretch,) = list(source._stretches(Wanted()))[1:]
    source.close()
    assert stretch.names == sorted(names)
    fd = os.open(work, os.O_PATH)
    assert list(folder.list_by_path(fd)) == sorted(names)
    os.close(fd)


def test_a_root_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="does not exist"):
        FolderSource(str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="not a folder"):
        FolderSource(str(tmp_path / "file"))
    with pytest.raises((UsageError, SourceUnusable)):
        FolderSource(str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("url", ["ftp://host/x", "S4://bucket", "://"])
def test_a_url_of_no_source_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        open_source(url)


def test_closing_gives_every_descriptor_back(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    before = set(os.listdir("/proc/self/fd"))
    source = FolderSource(str(tmp_path))
    found = [one for one in source.scan(Wanted()) if isinstance(one, Found) and one.kind == FILE]
    source.read([piece(found[0].path, 1, found[0].mtime)], memoryview(bytearray(1)))
    source.close()
    assert set(os.listdir("/proc/self/fd")) <= before
    assert stat.S_ISDIR(deep.stat().st_mode)


def test_a_time_that_no_index_can_hold_is_named(work: Path) -> None:
    (work / "far").touch()
    os.utime(work / "far", (10**10, 10**10))
    source = FolderSource(str(work))
    if os.stat(work / "far").st_mtime_ns < 1 << 63:
        pytest.skip("this filesystem does not hold such a time either")
    (skipped,) = [found for found in source.scan(Wanted()) if isinstance(found, Skipped)]
    source.close()
    assert (skipped.path, skipped.kind) == (b"far", "unreadable")


def test_a_name_that_goes_during_the_scan_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been renamed to a name that was passed already."""
    for name in ("a", "b", "c"):
        (work / name).touch()
    list_them = FolderSource._names

    def listed(self: FolderSource, directory: bytes) -> list[bytes]:
        names = list(list_them(self, directory))
        (work / "b").unlink()
        return names

    monkeypatch.setattr(FolderSource, "_names", listed)
    source = FolderSource(str(work))
    _, one, gone, other = source.scan(Wanted())
    source.close()
    assert (one.path, other.path) == (b"a", b"c")
    assert isinstance(gone, Skipped)
    assert (gone.path, gone.kind) == (b"b", "unreadable")


def test_what_was_read_before_is_taken_for_just_that_file(tmp_path: Path) -> None:
    """It is told apart from what lies on disk by other bytes."""
    (tmp_path / "f").write_bytes(b"on disk")
    mtime = (tmp_path / "f").stat().st_mtime_ns
    source = FolderSource(str(tmp_path))
    whole = piece(b"f", 7, mtime)
    part = whole._replace(stop=6)
    into = bytearray(7)

    def read(one: Piece, was: WasRead, path: bytes = b"f") -> bytes:
        source.remember({path: was})
        reading = source.read([one], memoryview(into))
        assert not reading.omissions
        return bytes(into[: reading.length])

    try:
        assert read(whole, WasRead(mtime, memoryview(b"as read"), b"")) == b"as read"
        assert read(whole, WasRead(mtime - 1, memoryview(b"as read"), b"")) == b"on disk"
        assert read(whole, WasRead(mtime, memoryview(b"less"), b"")) == b"on disk"
        assert read(whole, WasRead(mtime, memoryview(b"as read"), b""), b"g") == b"on disk"
        assert read(part, WasRead(mtime, memoryview(b"as read"), b"")) == b"on dis"
        assert read(part, WasRead(mtime, memoryview(b"as rea"), b"")) == b"on dis"
    finally:
        source.close()
