"""Seeded generator of hostile trees, and the eye that compares two trees.

    tree = build(root, seed=7)          # the same seed gives the same tree, byte for byte
    differences(look(src), look(dst))   # [] when the two are the same tree

`look` reads what a copy must keep: kind, mode, owner, size, mtime in ns, link targets, content,
hard link groups and, when asked, xattrs (ACLs are xattrs too). It walks by directory fd, so paths
beyond PATH_MAX are no obstacle. Not compared: atime, ctime, inode numbers, st_blocks (see
`stamps` and `allocated` for those).
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

RECORDS = b".tar_like"
DEEP = b"deep"
DEEP_LEVELS = 19
DEEP_NAME = 235
ROOT = os.geteuid() == 0

HOSTILE_NAMES = (
    b"a",
    b"a.b",
    b"a-b",
    b"a\x01",
    b"a b",
    b"a0",
    b"A",
    b"-rf",
    b"--help",
    b"--",
    b" ",
    b" lead",
    b"trail ",
    b"...",
    b".hidden",
    b"~",
    b"#hash",
    b"*",
    b"?",
    b"[x]",
    b"$(touch pwned)",
    b"`id`",
    b"'",
    b'"',
    b"|",
    b"a\\b",
    b"back\\n",
    b"\\xff",
    b"\xff",
    b"\xff\xfe\x80",
    b"bad-\xc3\x28",
    b"\xed\xa0\x80surrogate",
    b"new\nline",
    b"\n",
    b"cr\r",
    b"tab\t",
    b"\x7f",
    b"\x1b[31mred",
    b"caf\xc3\xa9",
    b"cafe\xcc\x81",
    "ünïcødé-☃-🦀".encode(),
    b"%41",
    b"%00",
    b"a+b",
    b"a&b=c;d",
    b"..a",
    b"c:d",
    b"n" * 255,
    b"\xfe" * 255,
    "é".encode() * 127,
)

EDGE_SIZES = (
    *(0, 4096, 0, 4096, 4096, 0, 8192, 0),
    *(1, 0, 4095, 4096, 4097, 8191, 8192, 8193, 12288),
    *(65535, 65536, 65537, 0, 102400, 131072, 131073, 0),
)

MTIMES = (
    0,
    -1,
    1,
    -1_000_000_000,
    -86_400_000_000_001,
    -1_234_567_890_123_456_789,
    999_999_999,
    1_000_000_000,
    1_600_000_000_123_456_789,
    1_700_000_000_000_000_001,
    1_700_000_000_999_999_999,
    4_102_444_800_000_000_007,
)

FILE_MODES = (0o644, 0o600, 0o755, 0o444, 0o400, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o4644)
DIR_MODES = (0o755, 0o700, 0o775, 0o555, 0o1777, 0o2775, 0o3770)
ROOT_FILE_MODES = (0o000, 0o200, 0o4000)
ROOT_DIR_MODES = (0o000, 0o300)
OWNERS = (0, 1, 1000, 12345, 65534, 2**31 + 7)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that `build` made: its root and the counts a test compares summaries with."""

    root: Path
    seed: int
    entries: int  # names below the root that can be copied (no specials)
    files: int  # names of regular files
    bytes: int  # sum of the sizes over distinct regular files
    specials: int  # FIFOs, sockets, devices


@dataclass(frozen=True, slots=True)
class Node:
    """One name of a tree as `look` saw it; everything in it must survive a copy."""

    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    target: bytes
    digest: str
    links: tuple[bytes, ...]  # all names of the inode within the tree
    outside: int  # names of the inode that are not within the tree
    xattrs: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class _Builder:
    root: bytes
    seed: int
    xattrs: bool
    first_name: dict[int, bytes] = field(default_factory=dict)

    def rng(self, what: bytes) -> random.Random:
        """Randomness that depends on the seed and a name alone, not on the order of making."""
        return random.Random(b"%d:" % self.seed + what)

    def at(self, name: bytes) -> bytes:
        return os.path.join(self.root, name)

    def folder(self, name: bytes) -> bytes:
        os.makedirs(self.at(name), exist_ok=True)
        return name

    def file(self, name: bytes, size: int) -> bytes:
        path = self.at(name)
        with open(path, "xb") as out:
            out.write(content(self.rng(b"content " + name), size))
        self.first_name[os.lstat(path).st_ino] = name
        return name

    def symlink(self, name: bytes, target: bytes) -> bytes:
        os.symlink(target, self.at(name))
        self.first_name[os.lstat(self.at(name)).st_ino] = name
        return name

    def hardlink(self, existing: bytes, name: bytes) -> None:
        os.link(self.at(existing), self.at(name), follow_symlinks=False)


def build(
    root: Path,
    seed: int,
    *,
    xattrs: bool = False,
    specials: bool = False,
    deep: bool = True,
    files: int = 40,
) -> Tree:
    """Make a hostile tree at `root` (which must not exist); about 180 entries and 2 MB.

    xattrs adds extended attributes and ACLs where the filesystem has them, specials adds FIFOs,
    sockets and, for root, devices; deep adds a chain of directories longer than PATH_MAX; files
    is the number of random files beyond the fixed ones.
    """
    root.mkdir(parents=True)
    b = _Builder(os.fsencode(root), seed, xattrs)
    _names(b)
    _edges(b)
    _sparse(b)
    _symlinks(b)
    _hardlinks(b)
    _random_files(b, files)
    if deep:
        _deep(b)
    count = _specials(b) if specials else 0
    _metadata(b)
    seen = look(root)
    regular = {n.links: n.size for n in seen.values() if n.kind == "file"}
    return Tree(
        root=root,
        seed=seed,
        entries=len(seen) - 1,
        files=sum(n.kind == "file" for n in seen.values()),
        bytes=sum(regular.values()),
        specials=count,
    )


def content(rng: random.Random, size: int) -> bytes:
    """`size` bytes: random, text, repeated or all zero, as the dice fall."""
    if rng.random() < 0.5:
        return rng.randbytes(size)
    line = rng.choice((b"\0", b"the same line again\n", b"\0\0\xff\n", rng.randbytes(1000)))
    return (line * (size // len(line) + 1))[:size]


def _names(b: _Builder) -> None:
    for where in (b.folder(b"names"), b.folder(b"names-as-folders")):
        for name in HOSTILE_NAMES:
            if where == b"names":
                b.file(where + b"/" + name, len(name) * 7)
            else:
                b.folder(where + b"/" + name)
    b.file(b"names-as-folders/a/b", 10)
    b.file(b"names-as-folders/new\nline/\xff\n", 4097)
    b.folder(b"names/sub/.tar_like")
    b.file(b"names/sub/.tar_like/a-file-of-the-user", 100)
    b.file(b"\x01first-is-empty", 0)
    b.file(b"\xff\xff-last-is-empty", 0)


def _edges(b: _Builder) -> None:
    b.folder(b"edges")
    for number, size in enumerate(EDGE_SIZES):
        b.file(b"edges/%02d-%d" % (number, size), size)
    b.folder(b"edges/nothing-in-it/nor-in-this")


def _sparse(b: _Builder) -> None:
    b.folder(b"sparse")
    rng = b.rng(b"sparse")
    size = 256 * 1024 + rng.randrange(4096)
    for name, places in (
        (b"all-hole", ()),
        (b"hole-first", (size - 100,)),
        (b"hole-last", (0,)),
        (b"hole-between", (0, size - 5000)),
        (b"islands", (65536, 131072 + 17)),
    ):
        with open(b.at(b"sparse/" + name), "xb") as out:
            for place in places:
                os.pwrite(out.fileno(), rng.randbytes(100), place)
            out.truncate(size)
        b.first_name[os.lstat(b.at(b"sparse/" + name)).st_ino] = b"sparse/" + name


def _symlinks(b: _Builder) -> None:
    b.folder(b"symlinks")
    for name, target in (
        (b"dangling", b"nowhere/at/all"),
        (b"absolute", b"/etc/passwd"),
        (b"to-folder", b"../edges"),
        (b"to-file", b"../edges/03-4096"),
        (b"up-and-out", b"../../../../../../etc"),
        (b"loop", b"loop"),
        (b"dot", b"."),
        (b"long", b"x/" * 2047 + b"y"),
        (b"not-utf8", b"\xff\xfe\n\x01"),
        (b"\xff-name", b"-rf"),
        (b"slash-at-end", b"../edges/"),
    ):
        b.symlink(b"symlinks/" + name, target)
    b.symlink(b"top-link", b"edges")


def _hardlinks(b: _Builder) -> None:
    b.folder(b"hard/near")
    b.folder(b"hard/far/away")
    first = b.file(b"hard/near/m", 9000)
    b.hardlink(first, b"hard/near/a")
    b.hardlink(first, b"hard/far/away/z")
    b.hardlink(first, b"zz-hard")
    b.hardlink(first, b"00-hard")
    b.hardlink(b.file(b"hard/empty-1", 0), b"hard/empty-2")
    b.hardlink(b.symlink(b"hard/symlink-1", b"near/m"), b"hard/far/symlink-2")
    b.file(b"hard/same-content-1", 5000)
    shutil.copyfile(b.at(b"hard/same-content-1"), b.at(b"hard/same-content-2"))
    b.first_name[os.lstat(b.at(b"hard/same-content-2")).st_ino] = b"hard/same-content-2"


def _random_files(b: _Builder, count: int) -> None:
    rng = b.rng(b"random files")
    folders = [b"r"]
    for number in range(max(1, count // 8)):
        folders.append(rng.choice(folders) + b"/%d-%s" % (number, rng.randbytes(2).hex().encode()))
    for name in folders:
        b.folder(name)
    for number in range(count):
        size = int(2 ** rng.uniform(0, 17)) - 1
        b.file(rng.choice(folders) + b"/%d" % number, size)


def _deep(b: _Builder) -> None:
    """A chain whose full path is longer than PATH_MAX, with things at its end."""
    here = os.open(b.folder(DEEP) and b.at(DEEP), os.O_RDONLY | os.O_DIRECTORY)
    try:
        for level in range(DEEP_LEVELS):
            name = b"%02d" % level + b"d" * (DEEP_NAME - 2)
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
            _deep_file(b, here, b"file-%02d" % level, level * 300)
        _deep_file(b, here, b"big", 70000)
        os.mkdir(b"empty", dir_fd=here)
        os.symlink(b"big", b"link", dir_fd=here)
        b.first_name[os.lstat(b"link", dir_fd=here).st_ino] = b"deep link"
        os.link(b"big", b"also-big", src_dir_fd=here, dst_dir_fd=here)
    finally:
        os.close(here)


def _deep_file(b: _Builder, folder: int, name: bytes, size: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    with open(fd, "wb") as out:
        out.write(content(b.rng(b"deep " + name), size))
        b.first_name[os.fstat(fd).st_ino] = b"deep " + name


def _specials(b: _Builder) -> int:
    b.folder(b"specials/only-a-fifo")
    os.mkfifo(b.at(b"specials/fifo"))
    os.mkfifo(b.at(b"specials/only-a-fifo/fifo\n\xff"))
    os.mknod(b.at(b"specials/socket"), stat.S_IFSOCK | 0o755)
    b.file(b"specials/a-file-among-them", 5000)
    if not ROOT:
        return 3
    try:
        os.mknod(b.at(b"specials/device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        return 3
    return 4


def _metadata(b: _Builder) -> None:
    """Owners, modes, xattrs and at last mtimes, from the leaves to the root."""
    for folder, dirs, names, fd in os.fwalk(b.root, topdown=False, follow_symlinks=False):
        relative = os.path.relpath(folder, b.root)
        for name in (*names, *dirs):
            ino = os.lstat(name, dir_fd=fd).st_ino
            identity = os.path.join(relative, name).removeprefix(b"./")
            _dress(b, b.first_name.get(ino, identity), name, fd)
    os.chmod(b.root, 0o750)
    os.utime(b.root, ns=(0, b.rng(b"root").choice(MTIMES)))


def _dress(b: _Builder, identity: bytes, name: bytes, fd: int) -> None:
    rng = b.rng(b"metadata " + identity)
    mode = os.lstat(name, dir_fd=fd).st_mode
    if ROOT and rng.random() < 0.5:
        os.chown(name, rng.choice(OWNERS), rng.choice(OWNERS), dir_fd=fd, follow_symlinks=False)
    path = b"/proc/self/fd/%d/%s" % (fd, name)
    if b.xattrs:
        _set_some(rng, path, _plain_xattrs(rng, mode))  # these need a file that may be written
    if stat.S_ISDIR(mode):
        os.chmod(name, _folder_mode(rng, identity), dir_fd=fd)
    elif stat.S_ISREG(mode):
        os.chmod(name, rng.choice(FILE_MODES + (ROOT_FILE_MODES if ROOT else ())), dir_fd=fd)
    if b.xattrs:
        _set_some(rng, path, _mode_xattrs(os.lstat(name, dir_fd=fd).st_mode))
    mtime = rng.choice(MTIMES) if rng.random() < 0.7 else rng.randrange(2 * 10**18)
    os.utime(name, ns=(0, mtime), dir_fd=fd, follow_symlinks=False)


def _folder_mode(rng: random.Random, identity: bytes) -> int:
    if ROOT:
        return rng.choice(DIR_MODES + ROOT_DIR_MODES)
    if identity.startswith((b"edges", b"hard", b"symlinks")):  # where tests make their changes
        return rng.choice([mode for mode in DIR_MODES if mode & 0o200])
    return rng.choice(DIR_MODES)


Xattrs = list[tuple[str, bytes]]


def _plain_xattrs(rng: random.Random, mode: int) -> Xattrs:
    found: Xattrs = []
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        found.append(("user.plain", b"value"))
        found.append(("user.binary", rng.randbytes(300)))
        found.append(("user.empty", b""))
    if ROOT and not stat.S_ISDIR(mode):
        found.append(("trusted.root", rng.randbytes(10)))
    return found


def _mode_xattrs(mode: int) -> Xattrs:
    """ACLs and capabilities, which chmod and chown would spoil."""
    found: Xattrs = []
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        found.append(("system.posix_acl_access", acl(65534, stat.S_IMODE(mode))))
    if stat.S_ISDIR(mode):
        found.append(("system.posix_acl_default", acl(1000, 0o750)))
    if ROOT and stat.S_ISREG(mode):
        found.append(("security.capability", struct.pack("<5I", 0x02000001, 0x400, 0, 0, 0)))
    return found


def _set_some(rng: random.Random, path: bytes, xattrs: Xattrs) -> None:
    for name, value in xattrs:
        if rng.random() < 0.4:
            set_xattr(path, name, value)


def acl(uid: int, mode: int) -> bytes:
    """A POSIX ACL as the kernel keeps it in an xattr (linux/posix_acl_xattr.h): a named user
    beside the three classes of `mode`, with the mask equal to the group class."""
    none = 0xFFFFFFFF
    user, group, other = (mode >> 6) & 7, (mode >> 3) & 7, mode & 7
    rows = ((1, user, none), (2, 5, uid), (4, group, none), (16, group, none), (32, other, none))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def set_xattr(path: bytes, name: str, value: bytes) -> bool:
    """Set an xattr; False where the filesystem or the kernel has no such kind."""
    try:
        os.setxattr(path, name, value, follow_symlinks=False)
    except OSError as e:
        if e.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL):
            return False
        raise
    return True


def xattr_support(folder: Path) -> bool:
    """Whether `folder` holds user xattrs and ACLs."""
    probe = folder / "xattr-probe"
    probe.touch()
    try:
        path = os.fsencode(probe)
        return set_xattr(path, "user.probe", b"1") and set_xattr(
            path, "system.posix_acl_access", acl(65534, 0o644)
        )
    finally:
        probe.unlink()


def look(root: Path, *, xattrs: bool = False, records: bool = False) -> dict[bytes, Node]:
    """Every name below `root` by its path relative to it; the root is b".".

    Specials are left out, and so is the records folder at the root unless `records` is set.
    """
    found: dict[bytes, Node] = {}
    names: dict[int, list[bytes]] = {}
    raw: list[tuple[bytes, os.stat_result, bytes, str, tuple[tuple[str, bytes], ...]]] = []
    for path, name, fd in _walk(os.fsencode(root), records=records):
        st = os.lstat(name, dir_fd=fd)
        if kind_of(st.st_mode) == "special":
            continue
        target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(st.st_mode) else b""
        digest = _digest(name, fd) if stat.S_ISREG(st.st_mode) else ""
        attributes = _xattrs(b"/proc/self/fd/%d/%s" % (fd, name)) if xattrs else ()
        names.setdefault(st.st_ino, []).append(path)
        raw.append((path, st, target, digest, attributes))
    for path, st, target, digest, attributes in raw:
        folder = stat.S_ISDIR(st.st_mode)
        found[path] = Node(
            kind=kind_of(st.st_mode),
            mode=stat.S_IMODE(st.st_mode),
            owner=(st.st_uid, st.st_gid) if ROOT else (-1, -1),
            size=0 if folder else st.st_size,
            mtime_ns=st.st_mtime_ns,
            target=target,
            digest=digest,
            links=tuple(sorted(names[st.st_ino])),
            outside=0 if folder else st.st_nlink - len(names[st.st_ino]),
            xattrs=attributes,
        )
    return found


def _walk(root: bytes, *, records: bool) -> Iterator[tuple[bytes, bytes, int]]:
    """(path relative to root, name, fd of its folder) of every name, the root first."""
    top = True
    for folder, dirs, names, fd in os.fwalk(root, follow_symlinks=False):
        if top:
            top = False
            yield b".", b".", fd
            if not records:
                dirs[:] = [name for name in dirs if name != RECORDS]
        prefix = folder[len(root) :].lstrip(b"/")
        for name in sorted((*dirs, *names)):
            yield os.path.join(prefix, name), name, fd


def kind_of(mode: int) -> str:
    """file, folder, symlink or special."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "symlink" if stat.S_ISLNK(mode) else "special"


def _digest(name: bytes, folder: int) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    with open(fd, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in names)


def differences(one: dict[bytes, Node], other: dict[bytes, Node]) -> list[str]:
    """What differs between two looks, a line each, worth printing."""
    lines = [f"{path!r}: only in the first" for path in sorted(one.keys() - other.keys())]
    lines += [f"{path!r}: only in the second" for path in sorted(other.keys() - one.keys())]
    for path in sorted(one.keys() & other.keys()):
        for item in fields(Node):
            mine, theirs = getattr(one[path], item.name), getattr(other[path], item.name)
            if item.name == "outside":
                mine = 0  # names outside the tree are not copied, so a copy has none
            if mine != theirs:
                lines.append(f"{path[-80:]!r}: {item.name} {mine!r:.200} != {theirs!r:.200}")
    return lines


def stamps(root: Path) -> dict[bytes, tuple[int, int, int, int]]:
    """(inode, mtime_ns, ctime_ns, mode) of every name: equal before and after means untouched."""
    found = {}
    for path, name, fd in _walk(os.fsencode(root), records=True):
        st = os.lstat(name, dir_fd=fd)
        found[path] = (st.st_ino, st.st_mtime_ns, st.st_ctime_ns, st.st_mode)
    return found


def tick(folder: Path) -> None:
    """Wait until what changes in a folder gets another time than what has changed before.

    Kernels before 6.13 have times that stand still for 4 ms, or for 10.
    """
    probe = folder / "a-probe-of-the-time"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        probe.touch()
    probe.unlink()


def allocated(root: Path, *, records: bool = True) -> int:
    """Bytes on disk below `root` (st_blocks); a name that vanishes meanwhile counts nothing."""
    total = 0
    for _, name, fd in _walk(os.fsencode(root), records=records):
        try:
            st = os.lstat(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        total += 0 if stat.S_ISDIR(st.st_mode) else st.st_blocks * 512
    return total


def visible_files(root: Path) -> dict[bytes, str]:
    """Digest of every regular file below `root` outside the records; safe while it changes."""
    found: dict[bytes, str] = {}
    for path, name, fd in _walk(os.fsencode(root), records=False):
        try:
            if stat.S_ISREG(os.lstat(name, dir_fd=fd).st_mode):
                found[path] = _digest(name, fd)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            if e.errno != errno.ELOOP:  # became a symlink between lstat and open
                raise
    return found


def rsync_differences(src: Path, dst: Path, *, xattrs: bool = False) -> list[str]:
    """The lines of rsync's dry run from `src` to `dst`; [] when it would do nothing.

    rsync itself cannot go beyond PATH_MAX, so the deep chain is left to `differences`.
    """
    options = ["-aHAXnic" if xattrs else "-aHnic", "--delete", "--modify-window=-1"]
    options += ["--no-specials", "--no-devices", "--info=nonreg0"]
    options += ["--exclude=/.tar_like", f"--exclude=/{DEEP.decode()}"]
    command = ["rsync", *options, f"{src}/", f"{dst}/"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    lines = done.stdout.decode(errors="backslashreplace").splitlines()
    if done.returncode:
        lines += [f"rsync exit {done.returncode}", done.stderr.decode(errors="backslashreplace")]
    return lines


def assert_same(src: Path, dst: Path, *, xattrs: bool = False) -> None:
    """The oracle: `dst` is `src` by our own eye and by rsync's."""
    lines = differences(look(src, xattrs=xattrs), look(dst, xattrs=xattrs))
    if shutil.which("rsync"):
        lines += [f"rsync: {line}" for line in rsync_differences(src, dst, xattrs=xattrs)]
    assert not lines, f"{dst} is not {src}:\n" + "\n".join(lines[:40])


def remove(root: Path) -> None:
    """Remove a tree whatever its modes and depth."""
    if not ROOT:
        for _, dirs, _, fd in os.fwalk(root, follow_symlinks=False):
            for name in dirs:
                if not stat.S_ISLNK(os.lstat(name, dir_fd=fd).st_mode):
                    os.chmod(name, 0o700, dir_fd=fd)
    shutil.rmtree(root)
