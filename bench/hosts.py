"""Several hosts on one machine: network namespaces on a bridge, each with its own link speed.

    with Hosts(4, mbit=100) as hosts:
        Popen([*hosts.hub(), "redis-server", ...])          # the fast host, at hosts.address
        Popen([*hosts.host(0), "tar-like", "worker", ...])  # one behind a link of 100 Mbit/s

Needs root, ip and tc. All addresses are inside the namespaces, which are gone at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from types import TracebackType
from typing import Self

SUBNET = "10.77.0"


class Hosts:
    """A hub and some hosts behind slow links. Prefixes run programs there."""

    def __init__(self, count: int, *, mbit: int) -> None:
        self._count = count
        self._mbit = mbit
        self._name = f"tl{secrets.token_hex(3)}"
        self._made: list[str] = []
        self.address = f"{SUBNET}.1"
        """The hub's address, as the hosts see it."""

    @staticmethod
    def possible() -> bool:
        """Whether this user on this machine can make hosts."""
        if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
            return False
        name = f"tlprobe{secrets.token_hex(3)}"
        if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
            return False
        subprocess.run(["ip", "netns", "delete", name], check=True)
        return True

    def hub(self) -> tuple[str, ...]:
        """What to put before a command to run it on the hub."""
        return ("ip", "netns", "exec", f"{self._name}-hub")

    def host(self, number: int) -> tuple[str, ...]:
        """What to put before a command to run it on a host."""
        return ("ip", "netns", "exec", f"{self._name}-{number}")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the hub meanwhile; sockets made here stay there. Source: setns(2)."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self._name}-hub") as hub:
            if libc.setns(hub.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(home.fileno(), 0)

    def cut(self, number: int) -> None:
        """Take the host's link down: packets vanish, nothing is said."""
        _do(*self.host(number), "ip", "link", "set", "eth0", "down")

    def mend(self, number: int) -> None:
        """Bring the link back."""
        _do(*self.host(number), "ip", "link", "set", "eth0", "up")

    def __enter__(self) -> Self:
        try:
            self._make_hub()
            for number in range(self._count):
                self._make_host(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._remove()

    def _make_hub(self) -> None:
        self._namespace(f"{self._name}-hub")
        _do(*self.hub(), "ip", "link", "add", "br0", "type", "bridge")
        _do(*self.hub(), "ip", "address", "add", f"{self.address}/24", "dev", "br0")
        _do(*self.hub(), "ip", "link", "set", "br0", "up")

    def _make_host(self, number: int) -> None:
        name, port = f"{self._name}-{number}", f"port{number}"
        self._namespace(name)
        _do(
            *self.hub(), "ip", "link", "add", port, "type", "veth",
            "peer", "name", "eth0", "netns", name,
        )  # fmt: skip
        _do(*self.hub(), "ip", "link", "set", port, "master", "br0", "up")
        inside = self.host(number)
        _do(*inside, "ip", "address", "add", f"{SUBNET}.{10 + number}/24", "dev", "eth0")
        _do(*inside, "ip", "link", "set", "eth0", "up")
        _do(
            *inside, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf",
            "rate", f"{self._mbit}mbit", "burst", "128kb", "latency", "100ms",
        )  # fmt: skip

    def _namespace(self, name: str) -> None:
        _do("ip", "netns", "add", name)
        self._made.append(name)
        _do("ip", "netns", "exec", name, "ip", "link", "set", "lo", "up")

    def _remove(self) -> None:
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)
        self._made = []


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
