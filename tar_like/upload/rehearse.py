"""A dry run: what an upload would do, said by the receiver, with nothing sent but the index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from tar_like.errors import shown
from tar_like.index import Index
from tar_like.plan.rehearsed import Rehearsed
from tar_like.wire import Failure, Status


@dataclass(slots=True)
class Rehearsal:
    """What would be done. Names are printable (errors.shown)."""

    transfer: str = ""
    dry_run: bool = True
    entries: int = 0
    blocks_total: int = 0
    files_to_send: int = 0
    bytes_to_send: int = 0
    send: list[dict[str, object]] = field(default_factory=list)
    """``path`` and ``bytes`` of each file of which anything has to be sent."""
    local: list[str] = field(default_factory=list)
    """Files that are made from content that the destination has, or that another file brings."""
    delete: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    """What the rules leave as it is."""
    held: str = ""
    """Why nothing would be deleted although that was asked for."""
    failures: list[Failure] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For people."""
        for one in self.send:
            yield f"send {one['path']} ({one['bytes']} bytes)"
        for word in ("local", "passed", "delete"):
            yield from (f"{word} {path}" for path in getattr(self, word))


def read_rehearsal(index: Index, status: Status, path: str) -> Rehearsal:
    """What the receiver's file says. Raises IndexInvalid."""
    found = Rehearsal(
        transfer=index.id,
        entries=index.entry_count,
        blocks_total=status.blocks,
        files_to_send=status.files,
        bytes_to_send=status.bytes,
    )

    def name(entry_id: int) -> str:
        return shown(index.entry(entry_id).path)

    said = Rehearsed(path)
    try:
        found.send = [{"path": name(entry), "bytes": count} for entry, count in said.sent()]
        found.local = [name(entry) for entry in said.local()]
        found.passed = [name(entry) for entry in said.passed()]
        found.delete = [shown(one) for one in said.extra()]
        found.held = said.held()
        found.failures = [Failure(*row, source=False) for row in said.trouble()]
    finally:
        said.close()
        os.unlink(path)
    found.failures += [
        Failure(shown(row.path), row.detail, source=True)
        for row in index.skipped()
        if row.kind != "special"
    ]
    return found
