"""What is measured: each work, its tools, the comparisons to print and the targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench import tools
from bench.tools import Tool

Data = Literal["small", "big"]
DATA: tuple[Data, ...] = ("small", "big")
Where = Literal["tmpfs", "disk"]

SYNC = tools.tar_like_sync()
SYNC_LZ4 = tools.tar_like_sync("--compress", "lz4")
SYNC_UNSYNCED = tools.tar_like_sync("--durability", "process")
INDEX = tools.Index(again=False)
INDEX_AGAIN = tools.Index(again=True)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One printed row: `subject` against `peer` (None: the seconds alone).

    `target` is a bound on the ratio, or on the seconds when there is no peer. With `flushed` the
    peer's time includes the `sync -f` that makes its copy as durable as tar-like's.
    """

    subject: Tool
    peer: Tool | None
    target: float | None = None
    flushed: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One data set going to one kind of destination."""

    key: str
    data: Data
    where: Where
    comparisons: tuple[Comparison, ...]

    def tools(self) -> list[Tool]:
        """Every tool of the comparisons once, in their order."""
        named: dict[str, Tool] = {}
        for row in self.comparisons:
            for tool in (row.subject, row.peer):
                if tool is not None:
                    named.setdefault(tool.name, tool)
        return list(named.values())


WORKS = (
    Work(
        "index",
        "small",
        "disk",
        (
            Comparison(INDEX, None, target=1.5),
            Comparison(INDEX_AGAIN, None, target=0.5),
            Comparison(INDEX, tools.HASH_ALL),
        ),
    ),
    Work(
        "small-tmpfs",
        "small",
        "tmpfs",
        (
            Comparison(SYNC, tools.RSYNC, target=1.5),
            Comparison(SYNC_LZ4, tools.RSYNC_Z, target=1.0),
            Comparison(SYNC_LZ4, tools.RSYNC_LZ4, target=1.0),
            Comparison(SYNC, tools.TAR_NC_TAR),
            Comparison(SYNC, tools.CP),
            Comparison(SYNC, tools.FPSYNC),
        ),
    ),
    Work(
        "small-disk",
        "small",
        "disk",
        (
            Comparison(SYNC, tools.RSYNC, target=1.5),
            Comparison(SYNC, tools.RSYNC, target=1.5, flushed=True),
            Comparison(SYNC_LZ4, tools.RSYNC_LZ4, target=1.0),
            Comparison(SYNC_LZ4, tools.RSYNC_LZ4, target=1.0, flushed=True),
            Comparison(SYNC, tools.FPSYNC),
            Comparison(SYNC, tools.FPSYNC, flushed=True),
        ),
    ),
    Work(
        "big-tmpfs",
        "big",
        "tmpfs",
        (
            Comparison(SYNC, tools.RSYNC, target=1.3),
            Comparison(SYNC, tools.TAR_NC_TAR),
            Comparison(SYNC, tools.CP),
            Comparison(SYNC, tools.FPSYNC),
            Comparison(SYNC_LZ4, tools.RSYNC_LZ4),
        ),
    ),
    Work(
        "big-disk",
        "big",
        "disk",
        (
            Comparison(SYNC, tools.RSYNC, target=1.3),
            Comparison(SYNC, tools.RSYNC, target=1.3, flushed=True),
        ),
    ),
    *(
        Work(
            f"durable-{data}",
            data,
            "disk",
            (
                Comparison(SYNC, SYNC_UNSYNCED, target=1.05),
                Comparison(SYNC, SYNC_UNSYNCED, target=1.05, flushed=True),
            ),
        )
        for data in DATA
    ),
    *(  # where syncing costs the disk nothing: what is left is what tar-like does for it
        Work(
            f"durable-{data}-tmpfs", data, "tmpfs", (Comparison(SYNC, SYNC_UNSYNCED, target=1.05),)
        )
        for data in DATA
    ),
)
