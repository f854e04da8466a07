"""A dry run: what an upload would do, said by the receiver, with nothing sent but the index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from tar_like.errors import IndexInvalid, shown
from tar_like.index import Index
from tar_like.layout import Entry
from tar_like.plan.rehearsed import Change, Rehearsed
from tar_like.wire import Failure, Status

Lines = Callable[[Any], str]


class Rehearsal:
    """What would be done. Names are printable (errors.shown); lists are read as they are gone over.

    Raises IndexInvalid where the receiver's file is damaged: all of it is read at once for that.
    """

    def __init__(self, index_path: str, status: Status, path: str) -> None:
        """``path`` is the receiver's file, which is removed."""
        self._index = Index(index_path)
        try:
            self._said = Rehearsed(path)
        finally:
            os.unlink(path)
        self._blocks = status.blocks
        self.bytes_to_send = status.bytes
        self.counts = {name: sum(1 for _ in items) for name, items in self.lists().items()}
        """How many each list has."""
        self.held = self._said.held()
        """Why nothing would be deleted although that was asked for."""
        self.failures = [Failure(*row, source=False) for row in self._said.trouble()]
        self.failures += [
            Failure(shown(row.path), row.detail, source=True)
            for row in self._index.skipped()
            if row.kind != "special"
        ]

    def sums(self) -> dict[str, object]:
        """What it comes to."""
        return {
            "transfer": self._index.id,
            "dry_run": True,
            "entries": self._index.entry_count,
            "blocks_total": self._blocks,
            "files_to_send": self.counts["send"],
            "bytes_to_send": self.bytes_to_send,
        }

    def lists(self) -> dict[str, Iterator[Any]]:
        """What is done to which names; each can be gone over once."""
        said, entry, name = self._said, self._entry, self._name
        return {
            "send": ({"path": name(one), "bytes": count} for one, count in said.sent()),
            "local": map(name, said.local()),
            "folders": map(name, said.folders()),
            "symlinks": (
                {"path": name(one), "target": shown(entry(one).target)} for one in said.symlinks()
            ),
            "links": ({"path": name(one), "to": name(entry(one).link)} for one in said.links()),
            "metadata": (
                {"path": name(one), "changes": _words(what)} for one, what in said.changed()
            ),
            "passed": map(name, said.passed()),
            "delete": map(shown, said.extra()),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for key, items in self.lists().items():
            yield from map(_LINES[key], items)

    def _entry(self, entry_id: int) -> Entry:
        try:
            return self._index.entry(entry_id)
        except KeyError:
            text = "What the receiver says it would do is damaged (it names an unknown entry)."
            raise IndexInvalid(text) from None

    def _name(self, entry_id: int) -> str:
        return shown(self._entry(entry_id).path or b".")

    def close(self) -> None:
        """Close the files."""
        self._said.close()
        self._index.close()


def _words(what: Change) -> list[str]:
    return [str(one.name).lower() for one in Change if one in what]


_LINES: dict[str, Lines] = {
    "send": lambda one: f"send {one['path']} ({one['bytes']} bytes)",
    "local": lambda one: f"local {one}",
    "folders": lambda one: f"folder {one}",
    "symlinks": lambda one: f"symlink {one['path']} -> {one['target']}",
    "links": lambda one: f"link {one['path']} => {one['to']}",
    "metadata": lambda one: f"change {one['path']} ({', '.join(one['changes'])})",
    "passed": lambda one: f"passed {one}",
    "delete": lambda one: f"delete {one}",
}
