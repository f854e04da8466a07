"""casync and restic: tools that keep versions of a tree in a store of chunks.

    casync   make into a store, and extract from it over what DEST had
    restic   backup into its repository: nothing appears at a destination

Neither sends anything anywhere: their stores lie on this machine. What a store grew by is what
would cross the wire. Whatever is not installed is left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.command import output_of, run

NAMES = ("casync", "restic")
_ENVIRONMENT = {"RESTIC_PASSWORD": "bench", "RESTIC_PROGRESS_FPS": "0"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tool with a store of its own for one tree."""

    name: str
    store: Path
    commands: tuple[Sequence[str], ...]
    dest: Path | None = None
    """Where it brings the tree, if it does."""

    def run(self, timeout: float) -> float:
        """Bring it up to date; wall seconds. Raises BenchError."""
        return sum(run(argv, timeout=timeout, env=_ENVIRONMENT) for argv in self.commands)

    def bytes(self) -> int:
        """How much its store holds."""
        return sum(one.stat().st_size for one in self.store.rglob("*") if one.is_file())


def stored(source: Path, folder: Path) -> list[Stored]:
    """The tools that are installed, each with an empty store below a folder."""
    found = []
    for name in filter(shutil.which, NAMES):
        store = folder / name
        store.mkdir(parents=True)
        found.append(_casync(source, store) if name == "casync" else _restic(source, store))
    return found


def _casync(source: Path, store: Path) -> Stored:
    dest, index = store.with_name("by-casync"), store / "tree.caidx"
    dest.mkdir()
    make = ("casync", "make", f"--store={store}/chunks.castr", str(index), str(source))
    extract = ("casync", "extract", f"--store={store}/chunks.castr", str(index), str(dest))
    return Stored("casync", store, (make, extract), dest)


def _restic(source: Path, store: Path) -> Stored:
    restic = ("restic", "--no-cache", "-r", str(store))
    run([*restic, "init"], timeout=60, env=_ENVIRONMENT)
    return Stored("restic", store, ([*restic, "backup", "-q", str(source)],))


def versions() -> str:
    """Which ones these are, and which are missing."""
    said = []
    for name in NAMES:
        line = output_of([name, "--version" if name == "casync" else "version"]).splitlines()
        said.append(" ".join(line[0].split()[:2]) if line else f"{name} is not installed")
    return ", ".join(said)
