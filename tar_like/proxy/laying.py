"""Laying: a copy of a file's older version on its way into staging, while its new one is read.

    begun when the sender is asked > the sender has answered: what it will send is left out from
    then on, and the plan is made > the copy goes on beside the blocks > its end is noted

Threads of one process do it. Who commits waits for that process, by a lock; where it was killed,
the commit copies what it left (``lay_rest``). Nothing of it is believed: the commit reads the whole
file back.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter

from tar_like.dirfd import Walker, open_file
from tar_like.index import Index
from tar_like.plan import Plan
from tar_like.proxy.chunkcache import name_of_file
from tar_like.proxy.copying import clone_range, copy_range
from tar_like.proxy.kept import Kept
from tar_like.proxy.place import Destination
from tar_like.proxy.staging import Staging

_LAID = "laid"
"""Says of which plan all copies are there that were not when it was made."""
_STEP = 8 << 20
"""Bytes that are copied in a row."""
Ranges = Iterable[tuple[int, int]]


class Laying:
    """One copy that is being made, by a thread.

    One only, since the sender reads meanwhile, on this machine maybe; and a second one would have
    to take turns with it.
    """

    def __init__(self, entry_id: int, mark: str, source: int, target: int, ranges: Ranges) -> None:
        """Begin to copy these ranges of an open file into one that is open for writing.

        Both are left as they are. Raises OSError, RuntimeError where there is no thread to be had.
        """
        self.entry_id = entry_id
        self.mark = mark
        """What the older version was before it was looked at (chunkcache.name_of_file)."""
        self.released = False
        """Whether it is part of a plan: then it stays where it is."""
        self._ranges = list(ranges)
        self._next, self._turn = threading.Lock(), threading.Lock()
        """Held to write; and by whoever is the next to do so, lest one takes all turns."""
        self._left_out: list[tuple[int, int]] = []
        self._error: OSError | None = None
        self._whole = False
        with contextlib.ExitStack() as opened:
            self._source = os.dup(source)
            opened.callback(os.close, self._source)
            self._target = os.dup(target)
            opened.callback(os.close, self._target)
            self._thread = threading.Thread(target=self._copy, daemon=True)
            self._thread.start()
            opened.pop_all()  # the thread closes them

    def _copy(self) -> None:
        try:
            copied = all(self._copy_range(*one) for one in self._ranges)
            self._whole = copied and name_of_file(os.fstat(self._source)) == self.mark
        except OSError as error:
            self._error = error
        finally:
            os.close(self._target)
            os.close(self._source)

    def _copy_range(self, start: int, stop: int) -> bool:
        """Whether anybody needs it still: the transfer may be gone, and all that it has staged."""
        if self._clone(start, stop):
            return True
        for step in range(start, stop, _STEP):
            if not os.fstat(self._target).st_nlink:
                return False
            self._copy_step(step, min(stop, step + _STEP))
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._next:
            self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def _clone(self, start: int, stop: int) -> bool:
        """Whether the filesystem has shared all of a range."""
        with self._writing():
            length = stop - start
            return not self._left_out and clone_range(
                self._source, start, self._target, start, length
            )

    def _copy_step(self, start: int, stop: int) -> None:
        with self._writing():
            for first, last in _between(start, stop, self._left_out):
                copy_range(self._source, first, self._target, first, last - first)

    def release(self, missing: Ranges) -> None:
        """Once this returns, others may write into these ranges of the file, and nobody else does.

        They are in order.
        """
        with self._writing():
            self._left_out = list(missing)
        self.released = True

    @property
    def running(self) -> bool:
        """Whether it is still being made."""
        return self._thread.is_alive()

    def wait(self) -> bool:
        """Whether all is there, of a file that has not changed meanwhile. Raises OSError."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._whole


def note_laid(destination: Destination, path: str, folder: str, plan_id: str) -> None:
    """Note that of a plan of a transfer (its folder) no copy is left to be made. Raises OSError."""
    temporary = os.path.join(folder, _LAID)
    with open(temporary, "w") as file:
        file.write(plan_id)
    destination.durability.publish(temporary, os.path.join(path, _LAID))


def is_laid(path: str, plan_id: str) -> bool:
    """Whether that was noted of this plan."""
    try:
        with open(open_file(os.path.join(path, _LAID), os.O_RDONLY)) as file:
            return file.read() == plan_id
    except (OSError, ValueError):
        return False


def bytes_left(path: str, plan: Plan) -> int:
    """At least so many bytes are still to be copied for a plan. Raises OSError."""
    left = 0
    with (
        contextlib.closing(Kept(os.path.join(path, "kept.db"))) as kept,
        contextlib.closing(Staging(os.path.join(path, "stage"))) as staging,
    ):
        found = () if is_laid(path, plan.id) else kept.laying()
        for entry_id, _ in found:
            with contextlib.suppress(FileNotFoundError):
                st = staging.stat(entry_id)
                sent = sum(stop - start for start, stop in plan.extents_of(entry_id))
                left += max(0, st.st_size - sent - 512 * st.st_blocks)
    return left


def lay_rest(destination: Destination, path: str, index: Index, plan: Plan) -> None:
    """Copy what is not there of older versions, where whoever began it has not ended it.

    Of one that is not what it was nothing is copied: what the file should be tells that it is not.
    For a commit that holds the lock, and will sync. Raises OSError.
    """
    if is_laid(path, plan.id):
        return
    with (
        contextlib.closing(Kept(os.path.join(path, "kept.db"))) as kept,
        contextlib.closing(Staging(os.path.join(path, "stage"))) as staging,
        Walker(destination.root) as walker,
    ):
        for entry_id, mark in kept.laying():
            with contextlib.ExitStack() as opened:
                try:
                    parent, name = walker.split(index.entry(entry_id).path)
                    old = open_file(name, os.O_RDONLY, dir_fd=parent)
                    opened.callback(os.close, old)
                    staged = staging.reopen(entry_id)
                    opened.callback(os.close, staged)
                except OSError:
                    continue
                size = min(os.fstat(old).st_size, index.entry(entry_id).size)
                if name_of_file(os.fstat(old)) == mark:
                    for start, stop in _between(0, size, [*plan.extents_of(entry_id)]):
                        copy_range(old, start, staged, start, stop - start)


def _between(start: int, stop: int, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is left of ``[start, stop)`` besides others, which are in order."""
    at = max(0, bisect_right(ranges, start, key=itemgetter(0)) - 1)
    for number in range(at, len(ranges)):
        first, last = ranges[number]
        if first >= stop:
            break
        if start < first:
            yield start, first
        start = max(start, last)
    if start < stop:
        yield start, stop
