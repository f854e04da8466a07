"""The transfers that one serving process has open, and what may be asked of them."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from dataclasses import asdict, replace
from typing import Any, Protocol

from tar_like.errors import Busy, Conflict, NotFound, TarLikeError
from tar_like.index.recorded import LEAF_NAME
from tar_like.proxy import look
from tar_like.proxy.ledger import Ledger
from tar_like.proxy.look import Seen
from tar_like.proxy.nextledger import begin_draft
from tar_like.proxy.offer import reopen
from tar_like.proxy.outcome import COMMIT, PLANNING, read_outcome
from tar_like.proxy.patch import is_patch
from tar_like.proxy.patching import read_head, take_patch
from tar_like.proxy.place import Destination
from tar_like.proxy.planning import Wish
from tar_like.proxy.poll import Poll
from tar_like.proxy.transfer import Transfer
from tar_like.rules import PATCHED, Rules
from tar_like.wire import LOOKING, OPEN, RECEIVING, Look, Status, bitmap

WAIT = 10.0
"""Seconds that a request for a plan or a commit waits before it answers that it is under way."""
COMMIT_START = 15.0
"""Seconds after which a commit that left no trace is asked for again."""
BEGIN_ANEW = 2.0
"""Seconds in which a transfer that a commit begins anew is there again."""


class Starter(Protocol):
    """Has work done by a process of its own, which leaves in files how it ended."""

    def commit(self, transfer_id: str, token: str) -> None:
        """Commit a transfer."""

    def plan(self, transfer_id: str, token: str, wish: str) -> None:
        """Plan a transfer; the wish is planning.Wish as JSON."""

    def look(self, token: str) -> None:
        """Look at the destination."""


class Transfers:
    """Transfers by id. Thread-safe."""

    def __init__(self, destination: Destination, starter: Starter) -> None:
        self.destination = destination
        self._starter = starter
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

    def negotiate(self, transfer_id: str, wish: Wish, rules: Rules) -> Status:
        """Have a transfer planned, and these rules hold; waits a while. Idempotent.

        The status is ``open`` while there is no plan: it is being made, or there are questions.
        Raises what went wrong.
        """
        self.get(transfer_id).state(rules)
        transfer = self.get(transfer_id)
        if transfer.is_easy(wish.look):
            status = transfer.negotiate_as(wish, rules)
            if status.state == RECEIVING and is_patch(transfer.path):
                # While the blocks are coming; each of many requests finds it begun.
                begin_draft(self.destination, transfer.path, spare=status.bytes, wait=0.0)
            return status
        wish = replace(wish, told={})  # of use only where a few small files differ
        deadline, poll = time.monotonic() + WAIT, Poll()
        begun, transfer.planner = transfer.planner, ""
        token, started = begun or secrets.token_hex(8), bool(begun)
        while True:
            status = transfer.status()
            if status.state != OPEN:
                transfer.check_room()
                return status
            if status.questions and wish.ask:
                return status
            outcome = read_outcome(transfer.path, PLANNING)
            if outcome is not None and outcome.token == token:
                raise outcome.as_error()
            if not started and not transfer.is_being_planned:
                self._starter.plan(transfer_id, token, json.dumps(asdict(wish)))
                started = True
            if time.monotonic() > deadline:
                return status
            poll.wait()

    def look(self) -> Look:
        """Begin to look at the destination, where that may be of use."""
        found = look.begin(self.destination)
        if found.tree:
            self._starter.look(found.token)
        return found

    def again(self, transfer_id: str, token: str, rules: Rules) -> Status:
        """The last commit's tree once more: complete, when a look found it in place.

        Else its transfer is open, as if its index had been offered; or ``looking``, after a
        while, when that is not known yet. Raises NotFound when that tree is another one.
        """
        seen = self._seen(transfer_id, token)
        if seen is None:
            return Status(id=transfer_id, state=LOOKING)
        current = look.is_current(self.destination, seen)
        if seen.index != transfer_id or not current:
            raise NotFound("That is not the tree that was committed last: offer its index.")
        if seen.same and not (rules.delete and seen.extra):
            return look.report(self.destination, transfer_id, rules)
        reopen(self.destination, transfer_id)
        return self.get(transfer_id).status()

    def leaves(self, transfer_id: str) -> bytes:
        """What the leaves of the last commit's tree are known by. Raises NotFound for another."""
        ledger = Ledger(self.destination.ledger)
        try:
            found = b"".join(leaf.digest[:LEAF_NAME] for leaf in ledger.leaves())
            if ledger.index_id != transfer_id or not found:
                raise NotFound("That is not the tree that was committed last: offer its index.")
            return found
        finally:
            ledger.close()

    def patch(self, tree: str, folder: str) -> Status:
        """Take up a patch that leads to a tree (patching.take_patch); waits a while for its look.

        Raises Busy when that takes longer, and what take_patch raises.
        """
        head = read_head(folder)
        try:
            seen = self._seen(head.base, head.look)
        except NotFound as error:
            raise Conflict(str(error)) from None
        if seen is None:
            raise Busy("The receiver is still looking at its destination: try again.")
        transfer = self.get(take_patch(self.destination, tree, folder, seen))
        if head.plan and transfer.has_large_files:
            self._begin_planning(transfer, head.plan)
        return transfer.status()

    def _begin_planning(self, transfer: Transfer, wanted: dict[str, Any]) -> None:
        """Have a plan begun that somebody will negotiate at once: older versions are copied for it.

        Raises UsageError for what cannot be asked for.
        """
        wish, rules = Wish.from_json(wanted), Rules.from_json(wanted.get("rules", {}))
        if rules.canonical not in PATCHED or os.path.exists(transfer.plan_path):
            return  # who negotiates is told
        transfer.state(rules)
        transfer.planner = secrets.token_hex(8)
        self._starter.plan(transfer.id, transfer.planner, json.dumps(asdict(wish)))

    def _seen(self, index: str, token: str) -> Seen | None:
        """What a look at the last commit's tree saw; None where that takes long.

        Raises NotFound when that tree is another one, or nobody takes that look any more.
        """
        deadline, poll = time.monotonic() + WAIT, Poll()
        while (seen := look.read_look(self.destination, token)) is None:
            if look.last_index(self.destination) != index:
                raise NotFound("That is not the tree that was committed last: offer its index.")
            if time.monotonic() > deadline:
                if look.is_taken(self.destination, token):
                    return None
                if (seen := look.read_look(self.destination, token)) is None:
                    raise NotFound("Nobody takes that look any more: offer the index.")
                break
            poll.wait()
        return seen

    def _status_within(self, transfer_id: str, seconds: float) -> Status:
        """A status; a transfer that is being begun anew has time to be there again."""
        deadline, poll = time.monotonic() + seconds, Poll()
        while True:
            try:
                return self.status(transfer_id)
            except NotFound:
                if time.monotonic() > deadline:
                    raise
                poll.wait()

    def commit(self, transfer_id: str, rules: Rules | None = None) -> Status:
        """Have the transfer committed; waits a while. Idempotent.

        With ``rules``, only if they are those that hold: Conflict otherwise.
        The status says how far it got: ``complete``, still ``committing``, or, with blocks
        revoked, ``receiving``; or ``open``, where there is no plan (any more). Raises Conflict
        when blocks are missing, and what went wrong.
        """
        deadline, poll = time.monotonic() + WAIT, Poll()
        token = ""
        asked = 0.0
        while True:
            status = self._status_within(transfer_id, BEGIN_ANEW if token else 0.0)
            _check_rules(status, rules)
            if status.state == "complete":
                return status
            path = self.destination.transfer(transfer_id)
            outcome = read_outcome(path, COMMIT) if token else None
            if outcome is not None and outcome.token == token:
                if outcome.error:
                    raise outcome.as_error()
                return _revoked(status, outcome.revoked)
            if status.state == OPEN:
                return status  # begun anew, maybe: what it was planned by is no more
            if status.received < status.blocks:
                raise Conflict(f"{status.blocks - status.received} blocks are missing: send them.")
            if status.state != "committing" and time.monotonic() - asked > COMMIT_START:
                token, asked = secrets.token_hex(8), time.monotonic()
                self._starter.commit(transfer_id, token)
            if time.monotonic() > deadline:
                return status
            poll.wait()

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
    if status.rules.get("dry_run"):
        raise Conflict("This transfer is a dry run: there is nothing to commit.")
    if rules is not None and status.state != "open" and status.rules != rules.to_json():
        raise Conflict("Another run of this transfer has stated other options: run this one again.")


def _revoked(status: Status, count: int) -> Status:
    return status._replace(revoked=count)
