"""What a transfer passes over, by its rules: names that stay as they are at the destination.

    existing          what is not there
    ignore_existing   what is there, but for directories in the place of directories
    update            files that are newer there

A directory that is passed over takes with it all below.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from tar_like.dirfd import Walker
from tar_like.index import Index
from tar_like.layout import DIRECTORY, SYMLINK, Entry
from tar_like.rules import Rules


class Passing:
    """Applies the rules to what is at the destination now."""

    def __init__(self, rules: Rules, walker: Walker) -> None:
        self._rules = rules
        self._walker = walker

    def passed(self, index: Index) -> Iterator[int]:
        """Ids of the entries that are passed over, ascending."""
        rules = self._rules
        if not (rules.existing or rules.ignore_existing or rules.update):
            return
        below = b"/"  # of no path
        for entry in index.entries(1):
            if entry.path.startswith(below) or self.passes(entry):
                yield entry.id
                if entry.kind == DIRECTORY and not entry.path.startswith(below):
                    below = entry.path + b"/"

    def passes(self, entry: Entry) -> bool:
        """Whether an entry is passed over as things are at this moment."""
        try:
            parent, name = self._walker.split(entry.path)
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            return self._rules.existing
        if self._rules.ignore_existing:
            return entry.kind != DIRECTORY or not stat.S_ISDIR(st.st_mode)
        plain = stat.S_ISREG(st.st_mode) and entry.kind not in (DIRECTORY, SYMLINK)
        return self._rules.update and plain and st.st_mtime_ns > entry.mtime
