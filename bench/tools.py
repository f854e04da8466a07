"""The contenders: tar-like and its peers, each behind the same two methods."""

from __future__ import annotations

import compileall
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from bench.command import REPOSITORY, BenchError, finish, kill_group, output_of, run, spawn
from bench.daemon import free_port, wait_until_listening

CORES = os.cpu_count() or 1
SAME = ("--delete",)
SAME_NS = (*SAME, "--modify-window=-1")  # times compared in nanoseconds
# Only a daemon in a chroot, so only root's, keeps absolute symlinks as they are.
SAME_BY_DAEMON = SAME if os.geteuid() == 0 else ("--no-links", "--info=nonreg0")


@dataclass(frozen=True, slots=True)
class Job:
    """One run: copy `source` to `dest` (there, and empty), which the daemon serves as `url`."""

    source: Path
    dest: Path
    url: str
    scratch: Path
    timeout: float


class Tool(Protocol):
    """Something that can do a job, under the name the tables print."""

    @property
    def name(self) -> str: ...

    @property
    def verify(self) -> tuple[str, ...] | None:
        """rsync options under which the destination must equal the source; None: no tree."""

    def missing(self) -> str | None:
        """Why this tool cannot run here, or None when it can."""

    def run(self, job: Job) -> float:
        """Do the job and return its wall seconds. Raises BenchError."""


@dataclass(frozen=True, slots=True)
class Command:
    """A tool that is one command; `argv` has {source} {dest} {url} {scratch} to fill in."""

    name: str
    argv: tuple[str, ...]
    verify: tuple[str, ...] | None = SAME
    needs: tuple[str, ...] = ()
    rsync_compress: str = ""

    def missing(self) -> str | None:
        for program in self.needs or self.argv[:1]:
            if shutil.which(program) is None:
                return f"{program} is not installed"
        if self.rsync_compress and not rsync_knows(self.rsync_compress):
            return f"this rsync has no {self.rsync_compress}"
        return None

    def run(self, job: Job) -> float:
        return run(fill(self.argv, job), timeout=job.timeout)


def fill(argv: tuple[str, ...], job: Job) -> list[str]:
    """`argv` with the job's places filled in."""
    return [
        part.format(source=job.source, dest=job.dest, url=job.url, scratch=job.scratch)
        for part in argv
    ]


def rsync_knows(compressor: str) -> bool:
    """Whether the installed rsync offers `compressor` for --compress-choice."""
    _, _, after = output_of(["rsync", "--version"]).partition("Compress list:")
    return compressor in after.strip().partition("\n")[0].split()


@dataclass(frozen=True, slots=True)
class TarNcTar:
    """tar | nc → nc | tar over loopback. The listener waits already when the clock starts."""

    name: str = "tar | nc | tar"
    verify: tuple[str, ...] | None = SAME

    def missing(self) -> str | None:
        for program in ("tar", "nc"):
            if shutil.which(program) is None:
                return f"{program} is not installed"
        return None

    def run(self, job: Job) -> float:
        port = free_port()
        receiver = _shell(f'nc -l 127.0.0.1 {port} | tar -C "$1" -xpf -', job.dest)
        try:
            wait_until_listening(port)
            started = time.perf_counter()
            sender = _shell(f'tar -C "$1" -cf - . | nc -N 127.0.0.1 {port}', job.source)
            codes = [finish(process, timeout=job.timeout) for process in (sender, receiver)]
            seconds = time.perf_counter() - started
        finally:
            kill_group(receiver)
        if codes != [0, 0]:
            raise BenchError(f"{self.name}: exit codes {codes} (None: ran out of time)")
        return seconds


def _shell(script: str, argument: Path) -> subprocess.Popen[bytes]:
    return spawn(["bash", "-o", "pipefail", "-c", script, "bench", str(argument)])


def tar_like_argv() -> tuple[str, ...]:
    """The command measured as tar-like: $BENCH_TARLIKE, or this repository's own."""
    chosen = shlex.split(os.environ.get("BENCH_TARLIKE", ""))
    return tuple(part.replace("{", "{{").replace("}", "}}") for part in chosen) or _own_argv()


@cache
def _own_argv() -> tuple[str, ...]:
    """The command, with its bytecode, as `pip install .` leaves it."""
    for package in ("tar_like", "workers"):
        compileall.compile_dir(REPOSITORY / package, quiet=1)
    return sys.executable, "-m", "tar_like"


def tar_like_sync(*flags: str) -> Tool:
    """tar-like sync into a folder, its receiver's start and end included."""
    name = " ".join(("sync", *flags))
    argv = (*tar_like_argv(), "sync", "{source}", "{dest}", *flags, "-q")
    return Command(name, argv, verify=(*SAME_NS, "--exclude=/.tar_like"))


@dataclass(frozen=True, slots=True)
class Index:
    """tar-like index: with no index before, or (`again`) with one that is up to date."""

    again: bool
    verify: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return "index again" if self.again else "index"

    def missing(self) -> str | None:
        return None

    def run(self, job: Job) -> float:
        argv = fill((*tar_like_argv(), "index", "-b", "{source}", "-db", "{dest}/db", "-q"), job)
        first = run(argv, timeout=job.timeout)
        return run(argv, timeout=job.timeout) if self.again else first


RSYNC = Command("rsync -a", ("rsync", "-a", "{source}/", "{url}/"), verify=SAME_BY_DAEMON)
RSYNC_Z = Command("rsync -az", ("rsync", "-az", "{source}/", "{url}/"), verify=SAME_BY_DAEMON)
RSYNC_LZ4 = Command(
    "rsync -az --compress-choice=lz4",
    ("rsync", "-az", "--compress-choice=lz4", "{source}/", "{url}/"),
    verify=SAME_BY_DAEMON,
    rsync_compress="lz4",
)
CP = Command("cp -a", ("cp", "-a", "{source}/.", "{dest}/"), verify=SAME_NS)
TAR_NC_TAR = TarNcTar()
FPSYNC = Command(
    f"fpsync -n {CORES}",
    ("fpsync", "-n", str(CORES), "-t", "{scratch}", "{source}/", "{url}/"),
    verify=(
        *SAME_BY_DAEMON,
        "--omit-dir-times",
    ),  # its jobs write into folders whose times were set before
    needs=("fpsync", "rsync"),
)
HASH_ALL = Command(
    f"find | xargs -P {CORES} sha256sum",
    (
        *("bash", "-o", "pipefail", "-c"),
        f'find "$1" -type f -print0 | xargs -0 -P {CORES} -n 500 sha256sum',
        *("bench", "{source}"),
    ),
    verify=None,
)
