"""What tests need of the system: the processes of a group, and ports that stay theirs."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

_held: list[socket.socket] = []
"""Names that say which ports this process has given away; they go with it."""


def group(leader: int) -> list[int]:
    """The living processes of a group."""
    numbers = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in numbers if (found := _group_of(pid)) is not None and found == leader]


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for whoever is to hear of its end."""
    return _group_of(pid) is None


def _group_of(pid: int) -> int | None:
    """The group of a living process (proc(5)). One whose threads still end may hold locks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    threads = int(fields[17])  # a first thread may be a zombie before the others are
    return int(fields[2]) if fields[0] not in "ZX" or threads > 1 else None


def free_port() -> int:
    """A port of loopback that nobody else gets, also while the server that has it is down.

    It is below those that the system itself gives to who asks for any, and to connections; and
    no other test process is given it, for which an abstract socket stands (unix(7)).
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    stop = min(lowest, 32_000) if lowest > 11_000 else 32_000
    while True:
        port = random.SystemRandom().randrange(10_000, stop)
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0tar-like-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        _held.append(holder)
        return port
