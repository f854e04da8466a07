"""Numbering: the names of a scan become rows of an index.

Found > id, offset, the first name of a hard link > a row of the table ``entry``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from tar_like.index.inodes import Inodes
from tar_like.layout import FILE, HARDLINK, place
from tar_like.source import Found, Skipped


class BuildSummary(SimpleNamespace):
    """What was found and done."""

    id: str = ""
    entries: int = 0
    files: int = 0
    bytes: int = 0
    hashed: int = 0
    reused: int = 0
    added: int = 0
    changed: int = 0
    gone: int = 0
    special: int = 0
    unreadable: int = 0

    def __init__(self, **values: Any) -> None:
        """What ``to_dict`` gave once, or nothing yet. Raises TypeError for other names."""
        if values.keys() - self.__annotations__:
            raise TypeError(f"There is no such figure: {', '.join(values)}.")
        super().__init__(**{**{one: getattr(self, one) for one in self.__annotations__}, **values})

    def to_dict(self) -> dict[str, Any]:
        """All figures, by name."""
        return dict(vars(self))

    def count_skipped(self, skipped: Skipped) -> None:
        """A name that is not in the tree."""
        if skipped.kind == "special":
            self.special += 1
        else:
            self.unreadable += 1


class Numbering:
    """Numbers the names of one tree."""

    def __init__(self) -> None:
        self.summary = BuildSummary()
        self.inodes: Inodes[int] = Inodes()
        self.length = 0
        """Where the next file's bytes may begin."""

    def rows(
        self,
        scan: Iterable[Found | Skipped],
        skip: Callable[[Skipped], None],
        more: Callable[[int, Iterable[tuple[int, int]], Iterable[tuple[bytes, bytes]]], None],
        recall: Callable[[Found, BuildSummary], bytes] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of the table ``entry``; ``recall`` has the hashes that are known.

        ``more`` gets the id, segments and extended attributes of what has any.
        """
        summary = self.summary
        for found in scan:
            if isinstance(found, Skipped):
                skip(found)
                continue
            (
                path, kind, size, mode, mtime, uid, gid, target,
                ctime, ino, dev, links, token, segments, xattrs,
            ) = found  # fmt: skip
            entry_id, link, remembered = summary.entries, -1, b""
            first = self.inodes.first(dev, ino, entry_id) if links > 1 else entry_id
            if first != entry_id:
                kind, size, target, link, segments, xattrs = HARDLINK, 0, b"", first, None, ()
            elif recall is not None:
                remembered = recall(found, summary)
            summary.entries += 1
            offset = self.length
            if kind == FILE:
                summary.files += 1
                if size:
                    offset = place(offset, size)
                    self.length = offset + size
                    summary.bytes += size
            if segments is not None or xattrs:
                more(entry_id, segments or (), xattrs)
            yield (
                entry_id, path, kind, size, offset, mode, mtime, uid, gid, target, link,
                remembered, ctime, ino, token,
            )  # fmt: skip

    def close(self) -> None:
        """Forget the inodes."""
        self.inodes.close()
