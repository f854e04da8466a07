"""The machine line under every table."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from bench.command import output_of


def machine_line() -> str:
    """CPU, cores, memory, kernel, date, and the versions of what was compared."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    parts = [
        f"{_cpu_model()}, {os.cpu_count()} cores, {gib:.0f} GiB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {version}" for name, version in _versions() if version),
        time.strftime("%Y-%m-%d"),
    ]
    return "; ".join(parts)


def filesystem(path: Path) -> str:
    """What the filesystem under `path` calls itself, such as tmpfs or ext4."""
    words = output_of(["findmnt", "-no", "FSTYPE", "-T", str(path)]).split()
    return words[-1] if words else "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> list[tuple[str, str]]:
    return [
        ("tar-like", output_of(["git", "describe", "--always", "--dirty", "--tags"]).strip()),
        ("rsync", _word(output_of(["rsync", "--version"]), 2)),
        ("fpart", _package("fpart")),
        ("coreutils", _word(output_of(["cp", "--version"]), 3)),
        ("tar", _word(output_of(["tar", "--version"]), 3)),
    ]


def _package(name: str) -> str:
    return output_of(["dpkg-query", "-W", "-f", "${Version}", name])


def _word(text: str, number: int) -> str:
    words = text.partition("\n")[0].split()
    return words[number] if len(words) > number else ""
