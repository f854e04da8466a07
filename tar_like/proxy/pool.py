"""The processes of a commit: each keeps a verifier and an applier of one transfer.

units of the plan > verify > what was found        ranges of entries > apply > what landed
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tar_like.process import start_pool_worker
from tar_like.proxy.apply import Applied, Applier
from tar_like.proxy.verify import Twin, Unit, UnitResult, Verifier


class Pool:
    """Verifiers and appliers on several processes, or in this one."""

    def __init__(self, jobs: int, path: str, root: str) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._worker = _Worker(path, root)
        if jobs > 1:
            context = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(
                jobs, context, _start_worker, (self._worker, os.getpid())
            )

    def verify(self, tasks: Iterable[Unit]) -> Iterator[UnitResult]:
        """What is found in each unit, in order."""
        if self._executor is None:
            return map(self._worker.verify, tasks)
        return self._executor.map(_verify, tasks)

    def copies(self, twins: list[Twin]) -> Iterator[UnitResult]:
        """What becomes of files without extents of their own."""
        batches = (twins[first : first + 256] for first in range(0, len(twins), 256))
        if self._executor is None:
            return map(self._worker.copies, batches)
        return self._executor.map(_copies, batches)

    def apply(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Applied]:
        """What each range of entries came to, in order."""
        if self._executor is None:
            return map(self._worker.apply, ranges)
        return self._executor.map(_apply, ranges)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


class _Worker:
    """What a process of the pool keeps."""

    def __init__(self, path: str, root: str) -> None:
        self._path = path
        self._root = root
        self._verifier: Verifier | None = None
        self._applier: Applier | None = None

    @property
    def _own_verifier(self) -> Verifier:
        if self._verifier is None:
            self._verifier = Verifier(self._path)
        return self._verifier

    def verify(self, unit: Unit) -> UnitResult:
        return self._own_verifier(unit)

    def copies(self, twins: list[Twin]) -> UnitResult:
        return self._own_verifier.copies(twins)

    def apply(self, ids: tuple[int, int]) -> Applied:
        if self._applier is None:
            self._applier = Applier(self._path, self._root)
        return self._applier.apply_range(*ids)


_worker: _Worker


def _start_worker(worker: _Worker, parent: int) -> None:
    global _worker
    start_pool_worker(parent)
    _worker = worker


def _verify(unit: Unit) -> UnitResult:
    return _worker.verify(unit)


def _copies(twins: list[Twin]) -> UnitResult:
    return _worker.copies(twins)


def _apply(ids: tuple[int, int]) -> Applied:
    return _worker.apply(ids)
