"""Sorting more rows than memory should hold.

rows > sorted runs in one temporary file > merged, a batch of each run at a time
"""

from __future__ import annotations

import heapq
import marshal
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

RUN = 100_000
"""Rows that are sorted in memory."""
BATCH = 500

Row = tuple[Any, ...]
"""Numbers, bytes and texts. A plain tuple: no other can be written."""


class Sorted:
    """Rows in order. They may be added by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._runs: list[list[tuple[int, int]]] = []
        self._file: BinaryIO | None = None

    def add(self, rows: Iterable[Row]) -> None:
        """Take up rows; full runs go to the file."""
        with self._lock:
            self._rows.extend(rows)
            if len(self._rows) >= RUN:
                self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by close()
        self._rows.sort()
        batches = []
        for start in range(0, len(self._rows), BATCH):
            data = marshal.dumps(self._rows[start : start + BATCH])
            batches.append((self._file.tell(), len(data)))
            self._file.write(data)
        self._file.flush()
        self._runs.append(batches)
        self._rows = []

    def merged(self) -> Iterator[Row]:
        """All rows in order. Nothing may be added any more."""
        self._rows.sort()
        if not self._runs:
            return iter(self._rows)
        return heapq.merge(self._rows, *map(self._read, self._runs))

    def _read(self, batches: list[tuple[int, int]]) -> Iterator[Row]:
        assert self._file is not None
        for offset, length in batches:
            yield from marshal.loads(os.pread(self._file.fileno(), length, offset))

    def close(self) -> None:
        """Give up the file."""
        if self._file is not None:
            self._file.close()
