"""What a source must do, and the values it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from tar_like.codec import Omission
from tar_like.layout import Piece

if TYPE_CHECKING:
    from tar_like.source.stretch import Stretch


class Found(NamedTuple):
    """A name that a scan found. A NamedTuple, since millions are made."""

    path: bytes
    kind: str
    """layout.FILE, DIRECTORY or SYMLINK; hard links are told apart by the index."""
    size: int
    mode: int
    mtime: int
    uid: int
    gid: int
    target: bytes
    ctime: int
    ino: int
    dev: int
    links: int
    """How many names the inode has; more than 1 may mean hard links within the tree."""
    token: bytes
    segments: tuple[tuple[int, int], ...] | None
    """The byte ranges that hold data, where a file has holes; None for one without."""
    xattrs: tuple[tuple[bytes, bytes], ...]


class Skipped(NamedTuple):
    """A name that is not part of the index, and why."""

    path: bytes
    kind: str
    """``special`` (a FIFO, socket or device) or ``unreadable``, which makes the run exit 3."""
    detail: str


class Wanted(NamedTuple):
    """What a scan is to take up."""

    keep: Callable[[bytes, bool], bool] | None = None
    """Given a relative path and whether it is a directory; False leaves it out, and all below."""
    xattrs: bool = False
    acls: bool = False


class Reading(NamedTuple):
    """What ``read`` did."""

    length: int
    """Bytes written to the start of the buffer."""
    omissions: list[Omission]


class Source(Protocol):
    """A tree that can be listed and read at random. One object a process; not thread-safe."""

    @property
    def url(self) -> str:
        """How to open this source again; the folder's path or the URL, without credentials."""

    def scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        """Every name in canonical order (layout.sort_key), the root ``b""`` first.

        What cannot be read is yielded as Skipped, never raised. Bounded memory.
        Raises SourceUnusable when the root itself cannot be read.
        """

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        """Read pieces end to end into a buffer that has room for all of them.

        A piece whose file is not (any more) as the piece says (size, mtime, token; for a part of
        a file also ctime, see Recognizes), or that cannot be read in full, takes no room and is
        listed as an omission. Never pads.
        Idempotent. Never raises for what one file does.
        """

    def close(self) -> None:
        """Give up file descriptors and connections."""


@runtime_checkable
class Begins(Protocol):
    """A source that can scan while something else is done."""

    @property
    def url(self) -> str:
        """As that of any source."""

    def begin(self, wanted: Wanted) -> None:
        """Begin a scan; the ``scan`` of just this goes on with it. Raises SourceUnusable."""

    def scan_as(
        self, wanted: Wanted, pack: Callable[[Iterator[Stretch]], Iterator[bytes]]
    ) -> Iterator[bytes]:
        """What ``pack`` makes of a scan's stretches, each before those below its directories.

        It is made beside this; the scan has begun when this returns. Raises SourceUnusable.
        """


@runtime_checkable
class Recognizes(Protocol):
    """A source whose versions of a file are told apart by ctime, if an index is of this very tree.

    An index may also be used with a copy of its tree, where every ctime is another one.
    """

    def recognize(self, seen: Iterable[tuple[bytes, int]]) -> bool:
        """Given (path, ctime) as an index saw them: is one still so, ``Piece.ctime`` counts.

        Returns whether it does.
        """


class WasRead(NamedTuple):
    """A whole file that was read before, as it was all the while."""

    mtime: int
    content: memoryview
    digest: bytes
    """By digest.DEFAULT."""


@runtime_checkable
class Remembers(Protocol):
    """A source that can be spared reading files twice."""

    def remember(self, files: Mapping[bytes, WasRead]) -> None:
        """``read`` takes the files of these paths from here, where a piece is of just that file."""


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that waits for others, and can do so while something else is done."""

    def ahead(self, pieces: Sequence[Piece], into: memoryview) -> None:
        """Begin to read what is probably wanted soon; a ``read`` of just these into it is faster.

        The buffer is in use until something is read into it; several may be at a time. A hint,
        which may be given again: it changes nothing of what any ``read`` gives. Never raises.
        """
