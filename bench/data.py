"""The data sets: a tree of small files used read-only, and three big files made once."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

MIB = 1 << 20
BIG_RANDOM = 1000 * MIB
BIG_TEXT = 1000 * MIB
BIG_BINARIES = 500 * MIB
TEXT_POOL = 200 * MIB
TEXT_ROOTS = (
    Path("/usr/share/doc"),
    Path("/usr/lib/python3"),
    Path("/usr/lib"),
    Path("/usr/share"),
)
TEXT_SUFFIXES = (".py", ".txt", ".md", ".rst", ".html", ".c", ".h", ".pm", ".pl", "copyright")
BINARIES = "/usr/lib"


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a tree holds. `contents` counts regular files with bytes, a hard link once."""

    entries: int
    contents: int
    size: int

    def __str__(self) -> str:
        return f"{self.entries:,} entries, {self.size / MIB:,.0f} MiB"


def take_inventory(root: Path, *, read: bool) -> Inventory:
    """Count the tree below `root`; with `read`, read every file so the page cache holds it."""
    entries = size = 0
    seen: set[tuple[int, int]] = set()
    for path, status in _walk(root):
        entries += 1
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in seen:
            continue
        if status.st_size:
            seen.add((status.st_dev, status.st_ino))
            size += status.st_size
            if read:
                _read(path)
    return Inventory(entries, len(seen), size)


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            try:
                yield path, os.lstat(path)
            except FileNotFoundError:
                continue


def _read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass


def make_big_files(folder: Path) -> Path:
    """Make the three big files under `folder` unless they are there. Returns their folder."""
    big = folder / "big"
    big.mkdir(parents=True, exist_ok=True)
    _make(big / "random.bin", BIG_RANDOM, _random_pieces())
    _make(big / "text.txt", BIG_TEXT, _text_pieces(folder))
    _make(big / "binaries.tar", BIG_BINARIES, _tar_pieces())
    return big


def _make(path: Path, size: int, pieces: Iterator[bytes]) -> None:
    """Write the first `size` bytes of `pieces`; they may be fewer if `pieces` end."""
    if path.exists():
        return
    unfinished = path.parent.parent / f".{path.name}.part"
    left = size
    with open(unfinished, "wb") as file:
        for piece in pieces:
            left -= file.write(piece[:left])
            if not left:
                break
    unfinished.rename(path)


def _random_pieces() -> Iterator[bytes]:
    return (os.urandom(8 * MIB) for _ in range(BIG_RANDOM // (8 * MIB) + 1))


def _text_pieces(folder: Path) -> Iterator[bytes]:
    """Documents and sources, each once up to a pool of 200 MiB; then the pool again and again."""
    with tempfile.TemporaryFile(dir=folder) as file:
        for path in islice(_texts(), 200_000):
            file.write(path.read_bytes())
            if file.tell() >= TEXT_POOL:
                break
        rounds = BIG_TEXT // max(file.tell(), 1) + 1 if file.tell() else 0
        for _ in range(rounds):
            file.seek(0)
            while piece := file.read(8 * MIB):
                yield piece


def _texts() -> Iterator[Path]:
    for root in TEXT_ROOTS:
        for path, status in _walk(root):
            if stat.S_ISREG(status.st_mode) and path.endswith(TEXT_SUFFIXES):
                yield Path(path)


def _tar_pieces() -> Iterator[bytes]:
    argv = ["tar", "-C", "/", "-cf", "-", BINARIES.lstrip("/")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        assert tar.stdout is not None
        try:
            for _ in range(BIG_BINARIES // MIB + 1):
                if not (piece := tar.stdout.read(MIB)):
                    break
                yield piece
        finally:
            tar.kill()
