"""The transfers that one serving process has open, and what may be asked of them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from tar_like.errors import CommitFailed, Conflict, NoSpace, NotFound, TarLikeError
from tar_like.proxy.commit import read_outcome
from tar_like.proxy.place import Destination
from tar_like.proxy.transfer import Transfer
from tar_like.rules import Rules
from tar_like.wire import Status, bitmap

COMMIT_WAIT = 10.0
"""Seconds that a request for a commit waits before it answers that it is under way."""
COMMIT_START = 15.0
"""Seconds after which a commit that left no trace is asked for again."""
POLL = 0.01

CommitStarter = Callable[[str, str], None]
"""Given a transfer's id and a token: have a process run the commit."""


class Transfers:
    """Transfers by id. Thread-safe."""

    def __init__(self, destination: Destination, start_commit: CommitStarter) -> None:
        self.destination = destination
        self._start_commit = start_commit
        self._lock = threading.Lock()
        self._open: dict[str, Transfer] = {}

    def get(self, transfer_id: str) -> Transfer:
        """The open transfer. Raises NotFound when it is not offered, or complete."""
        with self._lock:
            transfer = self._open.get(transfer_id)
            if transfer is not None and transfer.alive:
                return transfer
            self._forget_dead()
            transfer = Transfer(self.destination, transfer_id)
            self._open[transfer_id] = transfer
            return transfer

    def _forget_dead(self) -> None:
        """Let go of transfers that are complete; their files close when no request has them."""
        for transfer_id, transfer in list(self._open.items()):
            if not transfer.alive:
                del self._open[transfer_id]

    def status(self, transfer_id: str) -> Status:
        """A transfer's status, complete ones included. Raises NotFound."""
        try:
            return self.get(transfer_id).status()
        except (NotFound, OSError):  # complete, maybe at this moment: its folder goes last
            report = self.destination.read_report(transfer_id)
            if report is None:
                raise
            return report

    def bitmaps(self, transfer_id: str) -> bytes:
        """Bits of the received blocks, then of the durable ones. Raises NotFound."""
        try:
            return self.get(transfer_id).bitmaps()
        except (NotFound, OSError):
            report = self.destination.read_report(transfer_id)
            if report is None:
                raise
            return bitmap(iter(range(report.blocks)), report.blocks) + bitmap(
                iter(range(report.durable)), report.blocks
            )

    def all(self) -> list[Status]:
        """Every transfer that is not complete."""
        found = []
        for transfer_id in self.destination.transfers():
            try:
                found.append(self.get(transfer_id).status())
            except TarLikeError:
                continue  # gone meanwhile, or not readable: its own page says why
        return found

    def commit(self, transfer_id: str, rules: Rules | None = None) -> Status:
        """Have the transfer committed; waits a while. Idempotent.

        With ``rules``, only if they are those that hold: Conflict otherwise.
        The status says how far it got: ``complete``, still ``committing``, or, with blocks
        revoked, ``receiving``. Raises Conflict when blocks are missing, and what went wrong.
        """
        deadline = time.monotonic() + COMMIT_WAIT
        token = ""
        asked = 0.0
        while True:
            status = self.status(transfer_id)
            _check_rules(status, rules)
            if status.state == "complete":
                return status
            outcome = read_outcome(self.destination.transfer(transfer_id)) if token else None
            if outcome is not None and outcome.token == token:
                if outcome.error:
                    raise _as_error(outcome.error, outcome.http_status)
                return _revoked(status, outcome.revoked)
            if status.state == "open" or status.received < status.blocks:
                raise Conflict(f"{status.blocks - status.received} blocks are missing: send them.")
            if status.state != "committing" and time.monotonic() - asked > COMMIT_START:
                token, asked = secrets.token_hex(8), time.monotonic()
                self._start_commit(transfer_id, token)
            if time.monotonic() > deadline:
                return status
            time.sleep(POLL)

    def checkpoint_due(self) -> None:
        """Make receipts durable where it is time to. Raises ReceiverFailed."""
        with self._lock:
            self._forget_dead()
            due = [transfer for transfer in self._open.values() if transfer.checkpoint_due]
        for transfer in due:
            transfer.checkpoint()

    def close(self) -> None:
        """A last checkpoint, then close every file."""
        with self._lock:
            for transfer in self._open.values():
                if transfer.alive:
                    try:
                        transfer.checkpoint()
                    except TarLikeError:
                        continue  # not durable, and no receipt says that it is
                transfer.close()
            self._open.clear()


def _check_rules(status: Status, rules: Rules | None) -> None:
    if rules is not None and status.state != "open" and status.rules != rules.to_json():
        raise Conflict("Another run of this transfer has stated other options: run this one again.")


def _as_error(text: str, http_status: int) -> TarLikeError:
    kinds = {kind.http_status: kind for kind in (Conflict, NoSpace)}
    return kinds.get(http_status, CommitFailed)(text)


def _revoked(status: Status, count: int) -> Status:
    return replace(status, revoked=count)
