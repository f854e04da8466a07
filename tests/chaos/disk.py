"""An ext4 filesystem in a file, of a machine whose power can be cut.

    disk.format() > disk.mounted() > disk.keep()        what each trial begins with
    disk.restore() > disk.mounted() > disk.cut() > disk.start_again() > disk.mounted()

Source of the cut: EXT4_IOC_SHUTDOWN, include/uapi/linux/ext4.h.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from tests.chaos import scene

OPTIONS = ("loop", "loop,commit=1", "loop,data=writeback", "loop,nodelalloc")
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Trials(Protocol):
    """Trials of one kind, one after the other."""

    figures: dict[str, int]

    def one(self) -> None:
        """One trial. Raises Broken."""


def run(count: int, name: str, make: Callable[[Path], Trials]) -> dict[str, object]:
    """So many trials, in a folder and a mount namespace of their own; what they counted."""

    def work() -> dict[str, object]:
        with tempfile.TemporaryDirectory(
            prefix=f"tar-like-{name}-", dir=scene.memory(), ignore_cleanup_errors=True
        ) as folder:
            trials = make(Path(folder))
            for _ in range(count):
                trials.one()
            return dict(trials.figures)

    return scene.apart(work)


class Disk:
    """Mounted at ``mount``, now and then, in the namespace of ``scene.apart``."""

    def __init__(self, work: Path, dice: random.Random) -> None:
        """Raises PermissionError."""
        self._dice = dice
        self._file, self._kept = work / "disk", work / "kept"
        self.mount = work / "mnt"
        self.mount.mkdir()
        self._boot = work / "boot"
        self.start_again()
        subprocess.run(["mount", "--bind", self._boot, _BOOT_ID], check=True)

    def format(self) -> None:
        """Make it new, of 64 MiB."""
        self._file.unlink(missing_ok=True)
        with self._file.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._file], check=True)

    def keep(self) -> None:
        """What is on it now is what ``restore`` brings back."""
        shutil.copyfile(self._file, self._kept)

    def restore(self) -> None:
        """Have what was kept."""
        shutil.copyfile(self._kept, self._file)

    def mounted(self, options: str = "loop") -> AbstractContextManager[None]:
        """Mount it for a while."""
        return scene.mounted("-o", options, self._file, self.mount)

    def cut(self, fd: int) -> None:
        """The power is gone; ``fd`` is any file that is open on it."""
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))

    def open(self) -> int:
        """Its root, for ``cut``."""
        return os.open(self.mount, os.O_RDONLY)

    def start_again(self) -> None:
        """The machine is in another boot."""
        self._boot.write_text(f"{uuid.UUID(int=self._dice.getrandbits(128))}\n")
