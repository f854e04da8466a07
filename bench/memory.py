"""python -m bench.memory: peak memory by process role, and its slope in bytes per entry.

    for each tree size: make the tree on tmpfs
        for index, index again, sync: run it, sampling every process of its session
    print peak VmHWM and PSS by role, the slope between sizes, and the line drawn to ten million

With --s3 the entries are keys of a bucket that bench.store makes up, read over HTTP.

Not guaranteed: a process that lives shorter than one sampling interval is not seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.__main__ import DOCUMENT
from bench.command import BenchError, kill_group, remove_tree, spawn
from bench.machine import machine_line
from bench.measure import say
from bench.report import write_between
from bench.s3 import KEYS, server
from bench.tools import tar_like_argv

MIB = 1 << 20
TARGET = 300 * MIB
FAR = 10_000_000
PER_FOLDER = 1000
SMALL_EVERY = 10  # one file in ten has bytes, the others are empty
INODES_PER_ENTRY = 2.2  # source and destination, and some room
INTERVAL = 0.1


@dataclass(slots=True)
class Peak:
    """The highest bytes seen of one process (VmHWM, PSS), or of the processes of a role."""

    hwm: int = 0
    pss: int = 0

    def raise_to(self, other: Peak) -> None:
        self.hwm = max(self.hwm, other.hwm)
        self.pss = max(self.pss, other.pss)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Peaks of the processes below `root`, by role."""

    root: int
    known: set[int] = field(default_factory=set)
    peaks: dict[str, Peak] = field(default_factory=dict)

    def sample(self) -> None:
        """Look once. Processes that left their parent are still followed once seen."""
        parents = _parents()
        self.known.add(self.root)
        for pid in sorted(parents):
            if parents[pid] in self.known:
                self.known.add(pid)
        for pid in self.known & parents.keys():
            with suppress(OSError, KeyError):  # it may end while we look
                role = _role(pid, parents[pid] if pid != self.root else 0)
                self.peaks.setdefault(role, Peak()).raise_to(_peak(pid))


def _parents() -> dict[int, int]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                status = Path(f"/proc/{name}/stat").read_text(errors="replace")
                found[int(name)] = int(status.rpartition(")")[2].split()[1])
    return found


def _role(pid: int, parent: int) -> str:
    """A name for what the process is: its subcommand, and `child` if it was forked from it."""
    command = _arguments(pid)
    if not command:
        raise ProcessLookupError(pid)  # it has ended, or has not begun
    words = " ".join(command)
    for mark in ("resource_tracker", "forkserver", "spawn_main"):
        if mark in words:
            return mark
    name = next((word for word in command if word in ("sync", "index", "proxy", "upload")), "")
    name = name or os.path.basename(command[0])
    return f"{name} child" if parent and command == _arguments(parent) else name


def _arguments(pid: int) -> list[str]:
    raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [os.fsdecode(word) for word in raw.split(b"\0") if word]


def _peak(pid: int) -> Peak:
    return Peak(
        _field(f"/proc/{pid}/status", "VmHWM:"), _field(f"/proc/{pid}/smaps_rollup", "Pss:")
    )


def _field(path: str, key: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def make_tree(root: Path, entries: int) -> None:
    """Make `entries` files in folders of a thousand, one in ten with 16 bytes."""
    for first in range(0, entries, PER_FOLDER):
        folder = root / f"{first // PER_FOLDER:05d}"
        folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number in range(first, min(first + PER_FOLDER, entries)):
                _make_file(descriptor, number)
        finally:
            os.close(descriptor)


def _make_file(folder: int, number: int) -> None:
    name = f"entry-{number:08d}"
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    if number % SMALL_EVERY == 0:
        os.write(file, b"%016d" % number)
    os.close(file)


def watch(
    argv: list[str], *, timeout: float, env: Mapping[str, str] | None = None
) -> tuple[float, dict[str, Peak]]:
    """Run `argv`; its wall seconds and its peaks by role. Raises BenchError."""
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = spawn(argv, stdout=output, stderr=output, env=env)
        sampler = Sampler(process.pid)
        try:
            code = _sample_until_end(process, sampler, deadline=started + timeout)
        finally:
            kill_group(process)
        if code != 0:
            output.seek(0)
            tail = output.read().decode(errors="replace")[-1000:]
            raise BenchError(f"{' '.join(argv)}: exit code {code} (None: too slow)\n{tail}")
        return time.monotonic() - started, sampler.peaks


def _sample_until_end(
    process: subprocess.Popen[bytes], sampler: Sampler, *, deadline: float
) -> int | None:
    while time.monotonic() < deadline:
        sampler.sample()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(INTERVAL)
    return None


@dataclass(frozen=True, slots=True)
class Run:
    """One step on one tree size."""

    step: str
    entries: int
    seconds: float
    peaks: dict[str, Peak]


def measure(entries: int, folder: Path, *, timeout: float) -> list[Run]:
    """Index, index again and sync a tree of `entries`, made below `folder` and removed."""
    source = folder / "source"
    source.mkdir()
    say(f"{entries:,} entries: making the tree")
    make_tree(source, entries)
    return steps(str(source), entries, folder, timeout=timeout)


def measure_s3(entries: int, folder: Path, *, timeout: float) -> list[Run]:
    """The same with a bucket of so many keys."""
    say(f"{entries:,} keys")
    with server("--keys", str(entries), "made") as port:
        env = {**KEYS, "TARLIKE_S3_ENDPOINT": f"http://127.0.0.1:{port}"}
        return steps("s3://made", entries, folder, timeout=timeout, env=env)


def steps(
    source: str, entries: int, folder: Path, *, timeout: float,
    env: Mapping[str, str] | None = None,
) -> list[Run]:  # fmt: skip
    """What is measured, one after the other."""
    dest, db = folder / "dest", folder / "db"
    dest.mkdir()
    index = [*_tool(), "index", "-b", source, "-db", str(db), "-q"]
    commands = {"index": index, "index again": index}
    commands["sync"] = [*_tool(), "sync", source, str(dest), "-q"]
    runs = []
    for step, argv in commands.items():
        seconds, peaks = watch(argv, timeout=timeout, env=env)
        say(f"  {step}: {seconds:.1f} s, highest {_mib(max(p.hwm for p in peaks.values()))} MiB")
        runs.append(Run(step, entries, seconds, peaks))
    return runs


def _tool() -> list[str]:
    return ["env", "-u", "AWS_CA_BUNDLE", *_command()]


def _command() -> list[str]:
    return [part.replace("{{", "{").replace("}}", "}") for part in tar_like_argv()]


def table(runs: list[Run], sizes: list[int]) -> str:
    """One row a step and role: peaks at each size, slope, and the line to ten million."""
    columns = [f"VmHWM at {size:,} | PSS" for size in sizes]
    head = ["step", "process", *columns, "bytes/entry", "at 10 million", ""]
    width = 2 + 2 * len(sizes) + 3
    rows = ["| " + " | ".join(head) + " |", "|---|---" + "|--:" * (width - 3) + "|---|"]
    steps = list(dict.fromkeys(run.step for run in runs))
    for step in steps:
        of_step = {run.entries: run.peaks for run in runs if run.step == step}
        for role in sorted({role for peaks in of_step.values() for role in peaks}):
            rows.append(_row(step, role, [of_step[size].get(role) for size in sizes], sizes))
    return "\n".join(rows)


def _row(step: str, role: str, peaks: list[Peak | None], sizes: list[int]) -> str:
    cells = [step, f"`{role}`"]
    for peak in peaks:
        cells += [_mib(peak.hwm), _mib(peak.pss)] if peak else ["—", "—"]
    last, first = peaks[-1], peaks[0]
    if last and first and len(sizes) > 1:
        slope = (last.hwm - first.hwm) / (sizes[-1] - sizes[0])
        far = last.hwm + max(slope, 0) * (FAR - sizes[-1])
        cells += [f"{slope:.1f}", f"{_mib(far)}", "pass" if far <= TARGET else "**FAIL**"]
    else:
        cells += ["—", "—", ""]
    return "| " + " | ".join(cells) + " |"


def _mib(size: float) -> str:
    return f"{size / MIB:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--tmpfs", default="/dev/shm", help="folder on a tmpfs")
    parser.add_argument("--s3", action="store_true", help="keys of a bucket, instead of files")
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one command")
    parser.add_argument("--write", action="store_true", help="put the table in docs/benchmarks.md")
    options = parser.parse_args()
    sizes = sorted(options.entries)
    if reason := no_room(Path(options.tmpfs), sizes[-1]):
        sys.exit(reason)
    try:
        runs = [run for size in sizes for run in in_own_folder(size, options)]
    except BenchError as error:
        sys.exit(str(error))
    text = (
        f"{table(runs, sizes)}\n\nMiB; target: {TARGET // MIB} MiB in any process, with the line "
        f"through the sizes drawn to {FAR:,} entries.\n{machine_line()}.\n\n"
        f"Repeat with `python -m bench.memory {'--s3 ' * options.s3}--entries "
        f"{' '.join(map(str, sizes))}`."
    )
    print(text)
    if options.write:
        write_between(DOCUMENT, "bench-memory-s3" if options.s3 else "bench-memory", text)
    return 0


def in_own_folder(entries: int, options: argparse.Namespace) -> list[Run]:
    folder = Path(tempfile.mkdtemp(prefix="bench-memory-", dir=options.tmpfs))
    try:
        work = measure_s3 if options.s3 else measure
        return work(entries, folder, timeout=options.timeout)
    finally:
        remove_tree(folder)


def no_room(tmpfs: Path, entries: int) -> str | None:
    """Why a tree and its copy would not fit, or None."""
    free = os.statvfs(tmpfs).f_favail
    if 0 < free < entries * INODES_PER_ENTRY:
        return f"{tmpfs} has {free:,} inodes free; {entries:,} entries need twice as many."
    if shutil.disk_usage(tmpfs).free < entries * 4096:
        return f"{tmpfs} has too little room for {entries:,} entries."
    return None


if __name__ == "__main__":
    sys.exit(main())
