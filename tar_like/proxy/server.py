"""Running a receiver: one supervisor, serving processes, a process for each plan and commit.

    supervisor: bind > fork serving processes > start the work that they ask for > replace the dead
    serving process: uvicorn on the shared socket, or on a socket of its own

A serving process asks through a pipe; the answer is in the transfer's files. Nothing else is
shared. When the supervisor dies its children end too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import signal
import socket
import sqlite3
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from tar_like.errors import IndexInvalid, TarLikeError, UsageError, cause
from tar_like.index import Index
from tar_like.process import die_with_parent
from tar_like.proxy.access import Access
from tar_like.proxy.direct import Direct
from tar_like.proxy.durable import FULL, Durability
from tar_like.proxy.place import Destination
from tar_like.proxy.verified import Verified
from tar_like.tokens import AUDIENCE, random_token
from tar_like.wire import Look

BACKLOG = 1024
UNSENT = 64 << 10
"""Bytes of an answer that the kernel keeps for a client that does not read (tcp(7))."""
EXPIRE_EVERY = 3600.0
"""Seconds between two looks for abandoned transfers, at most."""
KEEP_ALIVE = 75
SHUTDOWN = 5
_IDLE = 19
"""How nice who works for nobody yet is to others."""
"""Seconds that requests in flight get when the receiver is told to stop."""
_HANDLED = (signal.SIGINT, signal.SIGTERM)
AT_ONCE = signal.SIGQUIT
"""Tells a supervisor to end its processes, without waiting for them to do so by themselves.

A commit, which is complete then, gets some seconds for what it notes down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How to run a receiver."""

    destination: str
    host: str = "127.0.0.1"
    port: int = 8000
    processes: int = 1
    lasting: bool = True
    """Not only for one run."""
    jobs: int = 1
    """Processes of a commit."""
    durability: Durability = FULL
    shadow: str = ""
    """A folder for all that would be written to the destination: for a dry run."""
    tokens: tuple[str, ...] = field(default=(), repr=False)
    """Shared tokens that are taken."""
    jwt_keys: str = ""
    """A folder with public keys, for signed tokens."""
    audience: str = AUDIENCE
    """Whom signed tokens must be for."""
    no_auth: bool = False
    """Ask nobody for a token, wherever they come from."""
    tls: tuple[str, str] | None = None
    """The files of a certificate and of its key."""
    expire: float | None = None
    """Seconds after which an abandoned transfer's staging is removed."""

    def access(self) -> Access:
        """Whom to let in. Raises UsageError."""
        if self.no_auth:
            return Access()
        if not self.jwt_keys:
            return Access(self.tokens)
        from tar_like.signed import Keyring

        keys = Keyring(self.jwt_keys, self.audience)
        if not keys and not self.tokens:
            raise UsageError(f"{self.jwt_keys} holds no public key (*-public*.pem).")
        return Access(self.tokens, keys)


def index_source(path: str) -> str | None:
    """Where the tree of a transfer came from; None when its index cannot be read."""
    try:
        with Index(os.path.join(path, "index.db")) as index:
            return index.source
    except IndexInvalid:
        return None


class Receiver:
    """A supervisor in a child process, for the duration of one run.

    Other users of this machine reach its ports, so it asks for a token that only this run has.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Bind and fork; the receiver serves when this returns. Raises TarLikeError."""
        self.token = random_token()
        options = replace(options, tokens=(self.token,), lasting=False)
        self._destination = destination = Destination(
            options.destination, options.durability, shadow=options.shadow
        )
        destination.prepare()
        self._lock = destination.lock(exclusive=True)
        self._jobs = options.jobs
        self._looking = 0
        self._look = Look(token="", tree="")
        destination.sweep()
        sockets = [bind(options.host, 0) for _ in range(options.processes)]
        self.urls = [_url(one) for one in sockets]
        """One for each serving process."""
        self._pid = _fork(lambda: supervise(destination, sockets, options))
        for one in sockets:
            one.close()

    def direct(self) -> Direct:
        """In a process that this run has forked since: take in what it sends, past HTTP."""
        return Direct(self._destination)

    def look(self) -> Look:
        """Begin to look whether everything is as the last commit left it."""
        from tar_like.proxy.look import begin, run_look

        self._look = found = begin(self._destination)
        if found.tree:
            self._looking = _fork(lambda: run_look(self._destination, found.token))
        return found

    def supersede(self, source: str, transfer_id: str) -> None:
        """Let a transfer adopt what earlier runs staged of the same source, as it was then.

        Nobody else serves this destination. Transfers of other sources are left alone. A commit
        that had begun to give names is finished first: its files are on their way out of staging.
        """
        from tar_like.proxy.commit import run_commit

        for path in self._destination.unfinished():
            known = index_source(path)
            if path == self._destination.transfer(transfer_id) or known not in (source, None):
                continue
            if known is not None and Verified(path):
                run_commit(self._destination, os.path.basename(path), "", self._jobs)
            if known is None or Verified(path):
                self._destination.discard(path)
            elif os.path.exists(path):
                self._destination.give(path, transfer_id)

    def close(self, *, at_once: bool = False) -> None:
        """Stop it and wait until it is gone. Idempotent.

        ``at_once`` is for a run that is complete: no request is in flight, no receipt matters.
        """
        if self._lock < 0:
            return
        if self._looking:
            self._end_look(at_once=at_once)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, AT_ONCE if at_once else signal.SIGTERM)
            os.waitpid(self._pid, 0)
        self._destination.sweep()
        os.close(self._lock)
        self._lock = -1

    def _end_look(self, *, at_once: bool) -> None:
        """What was seen in a run that is complete is of use for the next one: it is noted down."""
        from tar_like.proxy.look import read_look

        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            noting = at_once and read_look(self._destination, self._look.token) is not None
            if noting and not _not_ended([self._looking], SHUTDOWN):
                return
            os.kill(self._looking, signal.SIGKILL)
            os.waitpid(self._looking, 0)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Run a receiver until SIGTERM or SIGINT. Raises TarLikeError when it cannot start."""
    with contextlib.closing(bind(options.host, options.port)) as listener:
        if not (options.access().asks or options.no_auth or _on_loopback(listener)):
            raise UsageError(
                "Without a token only this machine may be listened to: set TARLIKE_TOKEN "
                "('tar-like token random' makes one), or --jwt-keys, or say --no-auth."
            )
        _check_tls(options.tls)
        destination = Destination(options.destination, options.durability)
        destination.prepare()
        lock = destination.lock(exclusive=False)
        try:
            supervise(
                destination,
                [listener] * options.processes,
                options,
                lambda: ready(_url(listener, tls=options.tls is not None)),
            )
        finally:
            os.close(lock)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises TarLikeError with what is in the way."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit this. Without it each answer waits 40 ms for a delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        _end_half_open(listener)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except socket.gaierror:
        raise UsageError(f"The host {host} is not known.") from None
    except (OSError, OverflowError) as error:
        text = cause(error) if isinstance(error, OSError) else "no such port"
        raise TarLikeError(f"Cannot listen on {host}:{port}: {text}.") from None
    listener.set_inheritable(True)
    return listener


def _end_half_open(listener: socket.socket) -> None:
    """Have the kernel find out about senders that vanished without a word (tcp(7))."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 90_000),
    ):  # fmt: skip
        listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _on_loopback(listener: socket.socket) -> bool:
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _check_tls(tls: tuple[str, str] | None) -> None:
    """Raises UsageError for a certificate and a key that do not go together."""
    if tls is not None:
        try:  # a key that has a password must not ask for it
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls, password=lambda: "")
        except OSError as error:
            text = f"The certificate {tls[0]} with the key {tls[1]} cannot be used"
            raise UsageError(f"{text} ({error.strerror or error}).") from None


def _url(listener: socket.socket, *, tls: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/tar"


def supervise(
    destination: Destination,
    sockets: list[socket.socket],
    options: ServerOptions,
    ready: Callable[[], None] | None = None,
) -> None:
    """Keep a serving process on each socket, and plan and commit, until told to stop."""
    supervisor = _Supervisor(destination, sockets, options)
    supervisor.run(ready)


class _Supervisor:
    def __init__(
        self, destination: Destination, sockets: list[socket.socket], options: ServerOptions
    ) -> None:
        self._destination = destination
        self._sockets = sockets
        self._options = options
        self._access = options.access()
        self._reader, self._writer = os.pipe()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        os.set_blocking(self._wake_reader, False)
        self._servers: dict[int, socket.socket] = {}
        self._work: dict[int, str] = {}
        """What each process does, by its pid."""
        self._stopping = False
        self._next_expiry = time.monotonic()
        self._ending = signal.SIGTERM

    def run(self, ready: Callable[[], None] | None) -> None:
        import tar_like.proxy.serving  # noqa: F401 imported once, before the forks

        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        # A shell without job control has SIGINT and SIGQUIT ignored by what it starts behind it.
        # Only the first may stay so: the terminal's Ctrl-C is our parent's.
        for number in (signal.SIGTERM, AT_ONCE):
            signal.signal(number, self._stop)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for one in self._sockets:
            self._start_server(one)
        # Now, and not when one is asked for: by then the package may have been replaced.
        from tar_like.proxy import commit, learning, look, planning  # noqa: F401

        if ready is not None:
            ready()
        pending = b""
        while not self._stopping:
            readers = [self._reader, self._wake_reader]
            readable, _, _ = select.select(readers, [], [], self._expire_if_due())
            if self._wake_reader in readable:
                _drain(self._wake_reader)
            if self._reader in readable:
                *lines, pending = (pending + os.read(self._reader, 4096)).split(b"\n")
                for line in lines:
                    self._start_work(*json.loads(line))
            self._reap()
        self._end()

    def _stop(self, number: int, _: object) -> None:
        self._stopping = True
        if number == AT_ONCE:
            self._ending = signal.SIGKILL

    def _start_server(self, listener: socket.socket) -> None:
        from tar_like.proxy.serving import serve_socket

        pid = _fork(
            lambda: serve_socket(
                self._destination, listener, self, self._access,
                tls=self._options.tls, keep_alive=KEEP_ALIVE, shutdown=SHUTDOWN,
            )
        )  # fmt: skip
        self._servers[pid] = listener

    def commit(self, transfer_id: str, token: str) -> None:
        """In a serving process: have the supervisor start a commit."""
        self._ask(["commit", transfer_id, token])

    def plan(self, transfer_id: str, token: str, wish: str) -> None:
        """In a serving process: have the supervisor start a planning."""
        self._ask(["plan", transfer_id, token, wish])

    def look(self, token: str) -> None:
        """In a serving process: have the supervisor start a look."""
        self._ask(["look", token])

    def _ask(self, words: list[str]) -> None:
        os.write(self._writer, f"{json.dumps(words)}\n".encode())

    def _start_work(self, kind: str, *words: str) -> None:
        from tar_like.proxy.look import run_look
        from tar_like.proxy.planning import run_planning

        destination, jobs = self._destination, self._options.jobs
        work: dict[str, Callable[[], None]] = {
            "commit": lambda: self._commit(*words),
            "plan": lambda: run_planning(destination, words[0], words[1], words[2], jobs),
            "look": lambda: run_look(destination, *words),
        }
        self._work[_fork(work[kind])] = kind

    def _commit(self, transfer_id: str, token: str) -> None:
        from tar_like.proxy.commit import run_commit
        from tar_like.proxy.learning import learn_chunks
        from tar_like.proxy.look import learn

        destination, begun = self._destination, None
        if self._options.lasting:
            with contextlib.suppress(OSError):  # no room, say
                begun = destination.now()
        run_commit(destination, transfer_id, token, self._options.jobs)
        complete = not os.path.exists(destination.transfer(transfer_id))
        if complete and begun is not None:  # nobody waits for the end of this process
            os.nice(_IDLE)
            with contextlib.suppress(OSError, sqlite3.Error):
                learn(destination)
                learn_chunks(destination, begun)

    def _expire_if_due(self) -> float | None:
        """Have a process remove abandoned transfers; returns the seconds until it is due again."""
        older = self._options.expire
        if older is None:
            return None
        if time.monotonic() >= self._next_expiry:
            self._next_expiry = time.monotonic() + min(EXPIRE_EVERY, older / 4)
            _fork(lambda: _expire(self._destination, older))
        return max(0.0, self._next_expiry - time.monotonic())

    def _reap(self) -> None:
        """Take note of children that ended; a serving process that died is replaced."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._work.pop(pid, None)
            listener = self._servers.pop(pid, None)
            if listener is not None and not self._stopping:
                if status:
                    time.sleep(0.05)  # a process that cannot start must not be forked in a rush
                self._start_server(listener)

    def _end(self) -> None:
        at_once = self._ending == signal.SIGKILL
        # A commit that all know of may still note down what is of use for the next run.
        noting = {pid for pid, kind in self._work.items() if at_once and kind == "commit"}
        for pid in {*self._servers, *self._work} - noting:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, self._ending)
        for pid in _not_ended([*self._servers, *self._work], SHUTDOWN + 2):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)


def _expire(destination: Destination, older: float) -> None:
    from tar_like.proxy.expire import expire

    for one in expire(destination, older):
        sys.stderr.write(
            f"tar-like: removed the abandoned transfer {one.id[:16]}, {one.bytes} bytes, "
            f"idle for {one.idle} s\n"
        )


def _not_ended(pids: list[int], seconds: float) -> list[int]:
    """Wait so long for children to end; those that have not."""
    deadline = time.monotonic() + seconds
    while pids := [pid for pid in pids if not _ended(pid)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.002)
    return pids


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


def _fork(work: Callable[[], None]) -> int:
    """Fork a child for some work; returns its pid.

    A signal that comes at once waits until the child has handlers of its own: it would be lost to
    ours, and whoever sent it would wait for ever.
    """
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(parent, before, work)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_child(parent: int, mask: Iterable[int], work: Callable[[], None]) -> None:
    """What a forked child does: its work, then it ends, whatever happens. Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C: the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        die_with_parent(parent)
        work()
        code = 0
    except TarLikeError as error:
        sys.stderr.write(f"tar-like: {error}\n")
    except OSError as error:
        sys.stderr.write(f"tar-like: the receiver's own files: {cause(error)}.\n")
    finally:
        sys.stderr.flush()
        os._exit(code)
