"""What a look remembers of directories: the next one sees no less by it."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from tar_like.database import connect
from tar_like.dirfd import Walker
from tar_like.proxy import inspection, recall
from tar_like.proxy import look as looking
from tar_like.proxy import sights as of_sights
from tar_like.proxy.durable import PROCESS
from tar_like.proxy.look import Seen, read_look, run_look
from tar_like.proxy.place import Destination, held
from tar_like.proxy.sights import (
    Comparing,
    Remembered,
    Sight,
    Taking,
    Writing,
    numbers_of,
    renewed,
)
from tests import trees
from tests.unit.receiver import in_child, sync

TOKEN = "0123456789abcdef"
FOLDERS = {b"", b"d", b"d/e", b"empty", b"empty/inner", b"wide", b"wide/100.d"}
WIDE = 300
"""Names of a folder that is looked at in stretches."""
assert WIDE > inspection.STRETCH
SETTLED = 2.5
"""Seconds after which a look believes that a symlink is another one only with another time."""


@pytest.fixture
def source(work: Path) -> Path:
    source = work / "src"
    for name in ("d/e", "wide", "empty/inner"):
        (source / name).mkdir(parents=True)
    for number in range(WIDE):
        (source / f"wide/{number}").write_text(f"{number}")
    (source / "wide/100.d").mkdir()
    (source / "wide/100.d/file").write_text("in a folder among names")
    for name in ("d/e/file", "d/after", "d.txt", "d/other", os.fsdecode(b"d/\xff\xe9")):
        (source / name).write_text(name[:4].encode("ascii", "replace").decode())
    os.link(source / "d.txt", source / "d/name")
    return source


@pytest.fixture
def dest(work: Path, source: Path) -> Path:
    """As the last commit left it, and remembered so."""
    dest = work / "dst"
    assert sync(source, dest, algorithm="none", durability=PROCESS) == {}
    assert look(dest) == (same(dest), [])
    assert remembered(dest) == (FOLDERS, True)
    trees.tick(work)
    return dest


def look(dest: Path) -> tuple[Seen, list[int]]:
    """What a look sees, and the files that it saw touched."""
    destination = Destination(str(dest))
    run_look(destination, TOKEN)
    seen = read_look(destination, TOKEN)
    assert seen is not None and seen.files
    with closing(connect(str(dest / f".tar_like/looks/{TOKEN}.db"), "ro")) as db:
        return seen, [row[0] for row in db.execute("SELECT entry_id FROM touched ORDER BY 1")]


def look_at_rows(dest: Path) -> tuple[Seen, list[int]]:
    """The same by a look that remembers nothing, and goes through all rows."""
    sights = sights_of(dest)
    aside = sights.with_name("aside")
    sights.rename(aside)
    try:
        with mock.patch.object(inspection, "FEW", 1 << 60):
            return look(dest)
    finally:
        aside.rename(sights)


def sights_of(dest: Path) -> Path:
    return dest / ".tar_like/looks/sights"


def version(dest: Path) -> str:
    st = (dest / ".tar_like/ledger.db").stat()
    return f"{st.st_ino}-{st.st_mtime_ns}-{st.st_size}"


def same(dest: Path) -> Seen:
    """What is seen where nothing has changed."""
    with closing(connect(str(dest / ".tar_like/ledger.db"), "ro")) as db:
        index = db.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0]
    return Seen(index=index, ledger=version(dest), same=True, files=True)


def remembered(dest: Path) -> tuple[set[bytes], bool]:
    """Of which directories there are sights, and whether these are all."""
    with closing(Remembered(str(sights_of(dest)), version(dest))) as sights:
        return {sight.path for sight in sights}, sights.whole


def keeping_times(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change after which the mtimes of the name and of its folder are put back."""

    def changed(path: Path) -> None:
        before = {one: one.lstat() for one in (path, path.parent) if os.path.lexists(one)}
        change(path)
        for one, st in before.items():
            if os.path.lexists(one):
                os.utime(one, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)

    return changed


def swap(path: Path) -> None:
    """Two files of one size trade names."""
    other = path.with_name(f"{int(path.name) + 1}")
    path.rename(path.with_name("third"))
    other.rename(path)
    path.with_name("third").rename(other)


def link_over(path: Path) -> None:
    path.unlink()
    os.link(path.with_name("other"), path)


def replace(path: Path) -> None:
    text = path.read_text()
    path.unlink()
    path.write_text(text)


def redirect(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere"[: len("target")])


def link_to_itself(path: Path) -> None:
    """A folder gets another name, and a symlink of its own leads there."""
    path.rename(path.with_name("f"))
    path.symlink_to("f")


EDITS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nothing": ("d", lambda path: None),
    "bytes": ("d/e/file", keeping_times(lambda path: path.write_text("FILE"))),
    "bytes and size": ("d/e/file", keeping_times(lambda path: path.write_text("longer"))),
    "bytes in a wide folder": ("wide/299", keeping_times(lambda path: path.write_text("???"))),
    "mode": ("d/e/file", lambda path: path.chmod(0o600)),
    "time": ("d/after", lambda path: os.utime(path, ns=(1, 1))),
    "same time": ("d/after", keeping_times(lambda path: os.utime(path, ns=(1, 1)))),
    "owner": ("d/after", lambda path: os.chown(path, 12345, -1)),
    "group": ("d/e", lambda path: os.chown(path, -1, 12345)),
    "gone": ("d/after", Path.unlink),
    "gone in a wide folder": ("wide/270", keeping_times(Path.unlink)),
    "swapped": ("wide/200", keeping_times(swap)),
    "linked over": ("d/after", keeping_times(link_over)),
    "linked elsewhere": ("d/after", lambda path: os.link(path, path.parent.parent / "e.link")),
    "replaced": ("d/e/file", keeping_times(replace)),
    "further name replaced": ("d/name", keeping_times(replace)),
    "first name replaced": ("d.txt", keeping_times(replace)),
    "name more": ("d/e/more", lambda path: path.write_text("")),
    "name more in secret": ("wide/256.more", keeping_times(lambda path: path.write_text(""))),
    "name more in the root": ("more", keeping_times(lambda path: path.write_text(""))),
    "name more in an empty folder": ("empty/inner/more", keeping_times(lambda path: path.mkdir())),
    "folder gone": ("d/e", shutil.rmtree),
    "empty folder gone": ("empty/inner", keeping_times(Path.rmdir)),
    "folder for a file": ("d/after", keeping_times(lambda path: (path.unlink(), path.mkdir()))),
    "file for a folder": ("empty/inner", keeping_times(lambda path: (path.rmdir(), path.touch()))),
    "symlink for a folder": ("d/e", keeping_times(link_to_itself)),
    "folder replaced": ("empty/inner", keeping_times(lambda path: (path.rmdir(), path.mkdir()))),
    "folder's mode": ("wide/100.d", lambda path: path.chmod(0o711)),
    "folder's time": ("d", lambda path: os.utime(path, ns=(1, 1))),
    "root's mode": ("", lambda path: path.chmod(0o750)),
    "root's time": ("", lambda path: os.utime(path, ns=(1, 1))),
}  # fmt: skip
OF_ROOT = {"owner", "group"}


def edit(dest: Path, name: str) -> None:
    if name in OF_ROOT and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path, change = EDITS[name]
    change(dest / path)


@pytest.fixture(params=[False, True], ids=["young", "settled"])
def settled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether directories count as old enough that their own ctime tells of new names."""
    if request.param:
        monkeypatch.setattr(looking, "_SETTLING", -3600.0)
    return bool(request.param)


@pytest.fixture(params=[0, 1 << 60], ids=["found", "all"])
def read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the rows of a directory that is not as it was are found, or come by among all."""
    monkeypatch.setattr(inspection, "FEW", request.param)


@pytest.mark.usefixtures("settled", "read")
@pytest.mark.parametrize("name", sorted(EDITS))
def test_an_edit_is_seen_as_looking(dest: Path, name: str) -> None:
    edit(dest, name)
    seen = look_at_rows(dest)
    assert look(dest) == seen
    assert look(dest) == seen, "by what the look before has remembered"
    assert seen != (same(dest), []) or name in ("nothing", "folder replaced")


@pytest.mark.usefixtures("settled", "read")
@pytest.mark.parametrize("seed", range(12))
def test_edits_are_seen_as_looking(dest: Path, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(4):
        name = dice.choice(sorted(EDITS.keys() - OF_ROOT))
        try:
            edit(dest, name)
        except OSError:
            continue  # what it changes is gone
        seen = look_at_rows(dest)
        assert look(dest) == seen, name


def forge(dest: Path, *, alike: bool = True) -> None:
    """Have the ledger say something else of a file; ``alike``: without a new version of it."""
    ledger = dest / ".tar_like/ledger.db"
    st = ledger.stat()
    with closing(connect(str(ledger), "rw")) as db:
        db.execute("PRAGMA journal_mode=OFF")
        db.execute(
            "UPDATE landed SET ctime = ctime + 1 WHERE entry_id ="
            " (SELECT id FROM entry WHERE path = CAST('d/e/file' AS BLOB))"
        )
    if alike:
        os.utime(ledger, ns=(st.st_atime_ns, st.st_mtime_ns))


def test_rows_of_what_is_remembered_are_not_read(dest: Path) -> None:
    forge(dest)
    assert look(dest) == (same(dest), [])
    (dest / "d/after").chmod(0o600)
    assert len(look(dest)[1]) == 1, "d/after: nobody has asked for d/e"
    (dest / "d/e/file").chmod(0o600)
    assert len(look(dest)[1]) == 2


def test_another_ledger_voids_what_is_remembered(dest: Path) -> None:
    forge(dest, alike=False)
    seen, touched = look(dest)
    assert (seen.same, len(touched)) == (False, 1)


def test_a_commit_voids_what_is_remembered(source: Path, dest: Path) -> None:
    before = sights_of(dest).read_bytes()
    (source / "d/after").write_text("other")
    assert sync(source, dest, algorithm="none", durability=PROCESS) == {}
    assert remembered(dest) == (set(), False)
    assert look(dest) == (same(dest), [])
    assert remembered(dest)[1]
    assert sights_of(dest).read_bytes() != before


def test_another_user_remembers_nothing(dest: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root is who it likes")

    def as_another() -> None:
        os.setgroups([12345])
        assert remembered(dest) == (set(), False)

    assert in_child(as_another) == 0
    assert remembered(dest)[1]


def test_what_is_damaged_is_not_believed(dest: Path) -> None:
    forge(dest)
    sights = sights_of(dest)
    good = sights.read_bytes()
    dice = random.Random(1)
    bad = [
        b"",
        b"\0" * 32,
        b"\0" * 33,
        good[:-1],
        good + b"\0",
        good[:32],
        good[32:],
        os.urandom(500),
    ]
    bad += [good[: dice.randrange(len(good))] for _ in range(20)]
    for _ in range(100):
        flipped = bytearray(good)
        flipped[dice.randrange(len(good))] ^= 1 << dice.randrange(8)
        bad.append(bytes(flipped))
    for data in bad:
        sights.write_bytes(data)
        assert len(look(dest)[1]) == 1
        assert sights.read_bytes() == data, "what is not as the ledger says is not remembered"
    sights.unlink()
    for make in (sights.mkdir, lambda: os.mkfifo(sights), lambda: sights.symlink_to("nowhere")):
        make()
        assert len(look(dest)[1]) == 1
        shutil.rmtree(sights) if sights.is_dir() else sights.unlink()
    sights.write_bytes(good)
    assert look(dest) == (same(dest), [])


def killed_at(dest: Path, event: str, name: str) -> None:
    """A look whose process is killed (-9) at what it does with a file."""

    def hook(what: str, arguments: tuple[object, ...]) -> None:
        if what == event and str(arguments[0]).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        sys.addaudithook(hook)
        run_look(Destination(str(dest)), TOKEN)

    assert in_child(killed) == -signal.SIGKILL


@pytest.mark.parametrize("event", ["open", "os.rename"])
def test_a_look_that_is_killed_leaves_nothing_wrong(dest: Path, event: str) -> None:
    sights = sights_of(dest)
    good = sights.read_bytes()
    for before in (b"", good[:-1], None):
        if before is None:
            sights.unlink()
        else:
            sights.write_bytes(before)
        killed_at(dest, event, f"{TOKEN}.sights")
        assert sights.exists() == (before is not None)
        assert look(dest) == (same(dest), [])
        assert remembered(dest)[1]
        (dest / "d/after").touch()
        assert len(look(dest)[1]) == 1
        assert sync(dest.with_name("src"), dest, algorithm="none", durability=PROCESS) == {}


def test_what_is_remembered_lasts_and_leftovers_do_not(dest: Path) -> None:
    sights = sights_of(dest)
    leftover = sights.with_name("fedcba9876543210.sights")
    leftover.write_bytes(b"half")
    for path in (sights, leftover):
        os.utime(path, (1, 1))
    assert look(dest) == (same(dest), [])
    assert sights.stat().st_mtime == 1, "there is nothing to be written anew"
    assert not leftover.exists()


def test_a_folder_with_more_names_is_looked_at_each_time(dest: Path) -> None:
    sights_of(dest).unlink()
    keeping_times(Path.touch)(dest / "d/e/more")
    seen = look(dest)
    assert (seen[0].same, seen[0].extra) == (True, True)
    assert remembered(dest) == (FOLDERS - {b"d/e"}, False)
    assert look(dest) == seen
    keeping_times(Path.unlink)(dest / "d/e/more")
    assert look(dest) == (same(dest), [])
    assert b"d/e" in remembered(dest)[0] and remembered(dest)[1]


@pytest.fixture
def linked(source: Path) -> Iterator[Path]:
    (source / "links").mkdir()
    (source / "links/link").symlink_to("target")
    dest = source.with_name("dst")
    assert sync(source, dest, algorithm="none", durability=PROCESS) == {}
    yield dest


def test_a_symlink_is_remembered_when_it_is_old_enough(linked: Path) -> None:
    assert look(linked) == (same(linked), [])
    paths, whole = remembered(linked)
    assert b"links" not in paths and b"wide" in paths and not whole
    destination, deadline = Destination(str(linked)), time.monotonic() + 60
    while destination.now() < (linked / "links/link").lstat().st_ctime + SETTLED:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert look(linked) == (same(linked), [])
    assert b"links" in remembered(linked)[0] and remembered(linked)[1]
    keeping_times(redirect)(linked / "links/link")
    seen = look_at_rows(linked)
    assert not seen[0].same
    assert look(linked) == seen


def no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sight: Sight, fd: int) -> Iterator[bytes]:
        raise OSError("nobody is to list this")

    monkeypatch.setattr(of_sights, "_names", refuse)


def test_what_is_settled_is_not_listed_again(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = work / "dst"
    assert sync(source, dest, algorithm="none", durability=PROCESS) == {}
    look(dest)
    assert not any(sight.own for sight in sights(dest)), "they are too young"
    monkeypatch.setattr(looking, "_SETTLING", -3600.0)
    trees.tick(work)
    assert look(dest) == (same(dest), [])
    assert all(sight.own for sight in sights(dest)), "written anew, to spare the next look that"
    no_listing(monkeypatch)
    before = sights_of(dest).stat()
    assert look(dest) == (same(dest), [])
    assert sights_of(dest).stat().st_mtime_ns == before.st_mtime_ns
    (dest / "wide/new").touch()
    trees.tick(work)
    assert not look(dest)[0].same


def test_directories_of_filesystems_that_are_not_known_are_listed(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_SETTLING", -3600.0)
    monkeypatch.setattr(recall, "kind_of", lambda _: 0x6969)
    assert look(dest) == (same(dest), [])
    assert not any(sight.own for sight in sights(dest))
    no_listing(monkeypatch)
    before = sights_of(dest).stat()
    assert look(dest) == (same(dest), []), "by the rows"
    assert sights_of(dest).stat().st_mtime_ns != before.st_mtime_ns


def test_a_directory_with_too_many_names_is_looked_at_each_time(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_sights, "MOST", WIDE)
    sights_of(dest).unlink()
    assert look(dest) == (same(dest), [])
    assert remembered(dest) == (FOLDERS - {b"wide"}, False)
    (dest / "wide/7").chmod(0o600)
    assert look(dest) == look_at_rows(dest) != (same(dest), [])


def test_a_look_does_not_wait_for_a_long_commit(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_NOTING", 0.05)
    with held(str(dest / ".tar_like/commit.lock")):
        assert look(dest) == (same(dest), [])


def sights(dest: Path) -> list[Sight]:
    with closing(Remembered(str(sights_of(dest)), version(dest))) as found:
        return list(found)


def taken(folder: Path, path: bytes) -> Sight:
    """A sight of a directory, taken name by name."""
    taking = Taking(7, own=0)
    names = sorted(map(os.fsencode, os.listdir(folder)))
    for name in names if path else [b".", *names]:
        taking.add_one(name, numbers_of(os.lstat(os.fsencode(folder) + b"/" + name)))
    return taking.sight(path)


def change(folder: Path, dice: random.Random) -> tuple[set[bytes], set[bytes]]:
    """Change some names of a directory; returns those that are gone, and those that are other."""
    gone, placed = set[bytes](), set[bytes]()
    for name in sorted(os.listdir(folder)):
        path, what = folder / name, dice.randrange(6)
        if what > 2:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if what == 0:
            gone.add(os.fsencode(name))
            continue
        path.mkdir(mode=0o700) if what == 1 else path.write_bytes(dice.randbytes(9))
        placed.add(os.fsencode(name))
    for _ in range(dice.randrange(4)):
        name = os.fsdecode(dice.randbytes(3).replace(b"/", b"_").replace(b"\0", b"\xff"))
        if not os.path.lexists(folder / name) and name.strip("."):
            (folder / name).touch()
            placed.add(os.fsencode(name))
    return gone - placed, placed


@pytest.mark.parametrize("path", [b"", b"d"])
@pytest.mark.parametrize("seed", range(20))
def test_a_sight_after_changes_is_as_if_it_were_taken_then(
    work: Path, path: bytes, seed: int
) -> None:
    dice, folder = random.Random(seed), work / "folder"
    folder.mkdir()
    for number in range(dice.randrange(30)):
        (folder / f"{number}").write_bytes(dice.randbytes(number))
    before = taken(folder, path)
    with closing(Walker(folder)) as walker:
        assert listed(folder, before, walker)
        gone, placed = change(folder, dice)
        if not path:
            placed.add(b".")
        numbers = {name: numbers_of(os.lstat(os.fsencode(folder) + b"/" + name)) for name in placed}
        after = renewed(before._replace(own=5), gone, numbers)
        assert after == taken(folder, path)
        assert listed(folder, after, walker)


def listed(folder: Path, sight: Sight, walker: Walker) -> bool:
    """Whether a directory is as a sight has it, by its names and without them."""
    found = set()
    for one in (False, True):
        comparing = Comparing()
        comparing.see(sight, walker.root, listed=one)
        comparing.end()
        found.add(not comparing.changed)
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("seed", range(20))
def test_of_directories_that_are_compared_together_each_is_told_from_the_others(
    work: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """However many names there is room for, and whichever of them is another one by now."""
    dice = random.Random(seed)
    monkeypatch.setattr(of_sights, "MANY", dice.randrange(1, 40))
    before, changed = [], set()
    for number in range(30):
        folder = work / f"{number:02}"
        folder.mkdir()
        for name in range(dice.choice([0, 1, 2, 30])):
            below = folder / f"{name}"
            below.mkdir() if dice.randrange(4) == 0 else below.write_bytes(b"x" * name)
        before.append(taken(folder, os.fsencode(folder.name)))
    for sight in before:
        folder = work / os.fsdecode(sight.path)
        if not sight.many or dice.randrange(3):
            continue
        name = dice.choice(sight.listed)
        path = folder / os.fsdecode(name)
        if path.is_file():
            what = dice.choice(["content", "mode", "time", "inode"])
            changed.add(sight.path)
        else:  # of a directory its inode and its ctime are not compared
            what = dice.choice(["mode", "time", "nothing"])
            changed.update([sight.path] if what != "nothing" else [])
        touch_up(path, what)
    with closing(Walker(work)) as walker:
        comparing = Comparing()
        for sight in before:
            comparing.see(sight, walker.dirfd(sight.path), listed=dice.random() < 0.5)
        comparing.end()
    assert comparing.changed == changed


def touch_up(path: Path, what: str) -> None:
    st = path.stat()
    if what == "content":
        path.write_bytes(b"another" * 9)
        os.utime(path, ns=(0, st.st_mtime_ns))
    elif what == "mode":
        path.chmod(0o511)
    elif what == "time":
        os.utime(path, ns=(0, st.st_mtime_ns + 1))
    elif what == "inode":
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        other.chmod(st.st_mode & 0o7777)
        os.utime(other, ns=(0, st.st_mtime_ns))
        other.rename(path)
    else:
        path.rmdir()
        path.mkdir(mode=st.st_mode & 0o7777)
        os.utime(path, ns=(0, st.st_mtime_ns))


def no_room(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(of_sights, "open", lambda *_: Full(), raising=False)


def no_file(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(of_sights, "open", refuse, raising=False)


def in_the_way(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sights_of(dest).mkdir()


@pytest.mark.parametrize("trouble", [no_room, no_file, in_the_way])
def test_a_look_does_not_depend_on_what_can_be_remembered(
    dest: Path,
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sights_of(dest).unlink()
    trouble(dest, monkeypatch)
    for _ in range(2):
        assert look(dest) == (same(dest), [])
    (dest / "d/after").write_bytes(b"others")
    assert len(look(dest)[1]) == 1


def test_a_look_says_what_it_saw_before_it_remembers(
    dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a ledger that has come meanwhile is not given sights of another one."""
    sights_of(dest).unlink()
    publish, seen = Writing.publish, list[Seen | None]()

    def noted(writing: Writing, final: str, *, whole: bool) -> None:
        seen.append(read_look(Destination(str(dest)), TOKEN))
        with held(str(dest / f".tar_like/looks/{TOKEN}.lock"), wait=0.0):
            publish(writing, final, whole=whole)

    monkeypatch.setattr(Writing, "publish", noted)
    look(dest)
    assert len(seen) == 1 and seen[0] is not None and seen[0].files
    sights_of(dest).unlink()
    sights = recall.Recall.sights

    def meanwhile(before: recall.Recall) -> Iterator[Sight]:
        shutil.copy(dest / ".tar_like/ledger.db", dest / ".tar_like/copy")
        (dest / ".tar_like/copy").rename(dest / ".tar_like/ledger.db")
        yield from sights(before)

    with monkeypatch.context() as patched:
        patched.setattr(recall.Recall, "sights", meanwhile)
        run_look(Destination(str(dest)), TOKEN)
    assert len(seen) == 1 and not sights_of(dest).exists()


def test_what_a_whole_commit_leaves_is_learned_once(source: Path, work: Path) -> None:
    dest = work / "learned"
    assert sync(source, dest, algorithm="none", durability=PROCESS) == {}
    destination = Destination(str(dest))
    with mock.patch.object(looking, "_LEARNED", 0):
        looking.learn(destination)
    assert remembered(dest) == (set(), False)
    looking.learn(destination)
    assert remembered(dest)[0]
    assert os.listdir(destination.looks) == ["sights"]
    before = sights_of(dest).stat()
    looking.learn(destination)
    assert sights_of(dest).stat() == before
    assert look(dest) == look_at_rows(dest) == (same(dest), [])
    shutil.rmtree(dest / ".tar_like/transfers")
    (dest / ".tar_like/ledger.db").unlink()
    looking.learn(destination)  # there is nothing
