"""Keys as a tree: which key is which path, and which can be none.

    KEY          is
    a/b          the file b in the directory a
    a/           the directory a, when it is empty (a marker, as consoles make them)
    a and a/b    the directory a; the object a is refused
    a//b  /a  a/./b  a/../b, a NUL, what is no UTF-8, a name of more than 255 bytes,
    a/ with bytes in it                                                                  refused

What is refused is listed, and the run exits with 3. Most directories have no object of their own:
they get the time of their marker, or else of the first file in them in the order of the index.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from tar_like.layout import DIRECTORY, FILE, sort_key
from tar_like.source.contract import Found, Skipped, Wanted

MAX_NAME = 255
RESERVED = b".tar_like"
"""The receiver's own directory in a destination's root; never part of a tree."""
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755


class Row(NamedTuple):
    """An object on its way into a tree. Rows sort in canonical order."""

    order: bytes
    path: bytes
    """With a slash at its end for a directory's marker."""
    size: int
    modified: int
    token: bytes
    mtime: int
    mode: int
    """-1 where the object does not say."""
    uid: int
    gid: int
    refusal: str
    """Why this is no part of the tree; empty for what is."""


def row(
    path: bytes, size: int, modified: int, token: bytes, *, mtime: int, mode: int = -1,
    uid: int = 0, gid: int = 0, refusal: str = "",
) -> Row:  # fmt: skip
    """The row of an object."""
    return Row(
        sort_key(path), path, size, modified, token, mtime, mode, uid, gid,
        refusal or trouble(path, size),
    )  # fmt: skip


def trouble(path: bytes, size: int) -> str:
    """Why a key can be no path; empty when it can."""
    names = path.split(b"/")
    if names[-1] == b"":
        if size:
            return "its key ends with a slash like a directory, but it has bytes"
        names.pop()
    if b"" in names:
        return "its key has an empty name in it"
    if b"." in names or b".." in names:
        return "its key has . or .. for a name"
    if not _is_text(path):
        return "its key is not valid UTF-8"
    if b"\0" in path:
        return "its key has a NUL in it"
    if max(map(len, names), default=0) > MAX_NAME:
        return f"its key has a name of more than {MAX_NAME} bytes"
    return ""


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_fine(one: Row) -> bool:
    """Whether a row is part of the tree."""
    return not one.refusal


def tree(
    rows: Iterable[tuple[object, ...]], first: Row | None, wanted: Wanted
) -> Iterator[Found | Skipped]:
    """The tree that rows in canonical order make, the root first.

    ``first`` is the first row that is not refused, if there is one.
    """
    yield _directory(b"", first)
    yield from _Tree(wanted).grow(map(Row._make, rows))


class _Tree:
    def __init__(self, wanted: Wanted) -> None:
        self._keep = wanted.keep or (lambda path, is_directory: True)
        self._open: list[bytes] = []
        """The names of the directory that we are in."""
        self._left_out: bytes = b""
        """A directory that is not wanted, with its slash."""
        self._held: Found | None = None
        """A file that the next row may turn out to be a directory of the same name."""

    def grow(self, rows: Iterator[Row]) -> Iterator[Found | Skipped]:
        last = b""
        for one in rows:
            if one.refusal:
                yield from self._refuse(one)
            elif one.path not in (last, b""):
                last = one.path
                yield from self._take(one)
        if self._held is not None:
            yield self._held

    def _refuse(self, one: Row) -> Iterator[Skipped]:
        names = one.path.split(b"/")
        above = (b"/".join(names[:depth]) for depth in range(1, len(names)))
        if all(self._keep(path, True) for path in above) and self._keep(one.path, False):
            yield Skipped(one.path, "unreadable", one.refusal)

    def _take(self, one: Row) -> Iterator[Found | Skipped]:
        if self._left_out and one.path.startswith(self._left_out):
            return
        *parents, name = one.path.split(b"/")
        if parents[:1] == [RESERVED] or (not parents and name == RESERVED):
            return
        kept = yield from self._enter(parents, one)
        if not kept or not name or not self._keep(one.path, False):
            return
        yield from self._release()
        self._held = _file(one)

    def _enter(self, parents: list[bytes], one: Row) -> Generator[Found | Skipped, None, bool]:
        """Open the directories that are new; whether all of them are wanted."""
        shared = 0
        while shared < min(len(parents), len(self._open)) and parents[shared] == self._open[shared]:
            shared += 1
        del self._open[shared:]
        for name in parents[shared:]:
            path = b"/".join([*self._open, name])
            if not self._keep(path, True):
                self._left_out = path + b"/"
                return False
            if self._held is not None and self._held.path == path:
                self._held = None
                yield Skipped(path, "unreadable", "its key is also the prefix of other keys")
            yield from self._release()
            yield _directory(path, one)
            self._open.append(name)
        return True

    def _release(self) -> Iterator[Found]:
        if self._held is not None:
            yield self._held
            self._held = None


def _directory(path: bytes, first: Row | None) -> Found:
    """A directory, by its marker or by the first file in it."""
    own = first is not None and first.path == (path + b"/" if path else b"")
    mode = first.mode & 0o7777 if first is not None and own and first.mode >= 0 else DIRECTORY_MODE
    uid, gid = (first.uid, first.gid) if first is not None and own else (0, 0)
    return Found(
        path, DIRECTORY, 0, mode, 0 if first is None else first.mtime, uid, gid, b"",
        0 if first is None else first.modified, 0, 0, 1, b"", None, (),
    )  # fmt: skip


def _file(one: Row) -> Found:
    # An index tells by ctime and ino whether a file is the same as before: the time of the upload,
    # and the version by a number.
    number = int.from_bytes(blake3(one.token).digest(8), "big", signed=True)
    mode = one.mode & 0o7777 if one.mode >= 0 else FILE_MODE
    return Found(
        one.path, FILE, one.size, mode, one.mtime, one.uid, one.gid, b"",
        one.modified, number, 0, 1, one.token, None, (),
    )  # fmt: skip
