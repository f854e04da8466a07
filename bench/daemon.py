"""A loopback rsync daemon for the peers, on a free port, for as long as a `with` block."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.command import BenchError, kill_group, spawn

START_SECONDS = 10


@contextmanager
def rsync_daemon(modules: dict[str, Path], *, folder: Path) -> Iterator[str]:
    """Serve `modules` (name -> folder, writable); yields the URL they are under."""
    port = free_port()
    conf = folder / "rsyncd.conf"
    conf.write_text(_conf(modules, folder))
    argv = ["rsync", "--daemon", "--no-detach", f"--config={conf}"]
    process = spawn([*argv, "--address=127.0.0.1", f"--port={port}"])
    try:
        wait_until_listening(port)
        yield f"rsync://127.0.0.1:{port}"
    finally:
        kill_group(process)


def _conf(modules: dict[str, Path], folder: Path) -> str:
    lines = ["munge symlinks = no", "numeric ids = yes", "read only = no"]
    lines += ["reverse lookup = no", f"log file = {folder / 'rsyncd.log'}"]
    if os.geteuid() == 0:
        # Without a chroot the daemon cuts absolute symlinks short; without ids it is nobody.
        lines += ["use chroot = yes", "uid = 0", "gid = 0"]
    else:
        lines += ["use chroot = no"]
    for name, path in modules.items():
        lines += [f"[{name}]", f"    path = {path}"]
    return "\n".join(lines) + "\n"


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(port: int) -> None:
    """Return once something listens on `port`, found without connecting to it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if _is_listening(port):
            return
        time.sleep(0.005)
    raise BenchError(f"Nothing listened on port {port} within {START_SECONDS} s.")


def _is_listening(port: int) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                return True
    return False
