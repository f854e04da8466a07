"""System calls of one piece of work: listed, or one of them made to fail or to kill.

    calls = traced(work, log=..., which=WRITES).calls        # {"pwrite64": 12, "renameat": 3, ...}
    traced(work, ..., inject="pwrite64:signal=KILL:when=7")    # dies on entering the seventh

The work runs in a fork that strace attaches to, so that nothing but the work is counted.
"""

from __future__ import annotations

import re
import select
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.scene import Fork, wait_for

WRITES = (
    "openat,mkdir,mkdirat,write,pwrite64,pwritev,writev,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,link,linkat,symlink,symlinkat,ftruncate,truncate,fallocate,fsync,fdatasync,syncfs,chmod,"
    "fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,setxattr,fsetxattr,removexattr,"
    "sendfile,copy_file_range"
)
READS = "read,pread64,preadv,preadv2,fstat,newfstatat,statfs,getdents64,lseek,close,flock"


@dataclass(frozen=True, slots=True)
class Traced:
    """How a piece of work went."""

    code: int
    """Its exit code; negative for a signal."""
    calls: dict[str, int]
    """How often it made which call."""


def traced(work: Callable[[], object], *, log: Path, which: str, inject: str = "") -> Traced:
    """Do it in a fork under strace. Raises PermissionError where that is not allowed."""
    if shutil.which("strace") is None:
        raise PermissionError("strace is not installed")
    out = log.with_suffix(".strace")
    out.unlink(missing_ok=True)
    ours, theirs = socket.socketpair()

    def started() -> object:
        theirs.send(b"ready")
        select.select([theirs], [], [])  # no traced call: strace sees its end
        return work()

    with ours, Fork(started, log=log) as fork:
        theirs.close()
        ours.recv(5)
        words = ["strace", "-f", "-q", "-o", str(out), "-p", str(fork.pid)]
        words += ["-e", "trace=" + ",".join(f"?{name}" for name in which.split(","))]
        words += ["-e", f"inject={inject}"] if inject else []
        tracer = subprocess.Popen(words, stderr=subprocess.PIPE)
        try:
            wait_for("strace", lambda: _tracer(fork.pid) or tracer.poll() is not None)
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                raise PermissionError(tracer.stderr.read().decode().strip())
            ours.send(b"go")
            code = fork.end()
            tracer.wait(60)
        finally:
            tracer.kill()
            tracer.wait()
            assert tracer.stderr is not None
            tracer.stderr.close()
    return Traced(code, dict(Counter(_calls(out))))


def _tracer(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0\n" not in status


def _calls(out: Path) -> Iterator[str]:
    for line in out.read_text(errors="replace").splitlines():
        found = re.match(r"\d+\s+(\w+)\(", line)
        if found:
            yield found[1]
