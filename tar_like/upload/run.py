"""One upload from offer to commit.

    offer > negotiate (questions > answers > plan) > rounds of (missing blocks > dispatcher)
    > commit > report

The receiver says what is missing, before each round; so a run picks up where any other ended.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

from tar_like.codec import REASONS
from tar_like.errors import (
    AnswersInvalid,
    Conflict,
    Interrupted,
    NotFound,
    TarLikeError,
    UsageError,
    counted,
    shown,
)
from tar_like.index import Index
from tar_like.layout import FILE
from tar_like.plan import Plan
from tar_like.plan.questions import Questions
from tar_like.source import Recognizes, open_source
from tar_like.upload.answer import Answering
from tar_like.upload.client import Client
from tar_like.upload.dispatch import Dispatcher, Progress, Sending, UploadOptions
from tar_like.upload.local import LocalDispatcher
from tar_like.upload.presence import presence
from tar_like.upload.range import BlockOutcome
from tar_like.upload.record import Record
from tar_like.upload.rehearse import Rehearsal
from tar_like.wire import COMMITTING, COMPLETE, OPEN, Failure, Status, Told, bits_missing

ROUNDS = 4
"""How often blocks that are still missing, or turned out wrong in staging, are sent again."""
_BETWEEN = "Another run of this tree has come between, it seems: run this one again."

BATCH = 1000
"""Files without data that are looked at in one go."""
IDLE_COMMITS = 6
"""How many requests for a commit may pass, about 10 s each, without one being under way."""


class UploadSummary:
    """What an upload did, and how things stand now."""

    transfer: str = ""
    state: str = "incomplete"
    """``complete`` or ``incomplete``."""
    entries: int = 0
    blocks_total: int = 0
    blocks_sent: int = 0
    bytes_sent: int = 0
    wire_bytes: int = 0
    """Bodies of blocks, and what the negotiation took: index, questions, answers, plan."""
    passed: int = 0
    """Entries that the rules left as they are at the destination."""
    deleted: int = 0
    """Names that were removed at the destination."""
    held: str = ""
    """Why nothing was deleted although that was asked for."""
    failures: list[Failure]
    """Entries that are not in their place."""
    errors: list[str]
    """What went wrong with blocks, or with the receiver."""
    interrupted: bool = False

    def __init__(self) -> None:
        self.failures, self.errors = [], []

    def to_dict(self) -> dict[str, Any]:
        """All of it, by name, as JSON can have it."""
        found = {name: getattr(self, name) for name in UploadSummary.__annotations__}
        return {**found, "failures": [one._asdict() for one in self.failures]}


class PatchGone(Exception):
    """A patch does not lead to the tree (any more): the whole index is to be offered."""

    carried = 0
    """Bytes of blocks that went over the wire for it."""


class _PlanAnew(Exception):
    """There is to be another plan; the text says why."""


class Upload:
    """One run. ``stop`` may be called from a signal handler."""

    def __init__(
        self,
        options: UploadOptions,
        progress: Progress,
        dispatcher: Dispatcher | None = None,
        client: Client | None = None,
    ) -> None:
        """Without a dispatcher, processes on this machine send the blocks.

        A ``client`` that is given goes on, and stays open; what it has carried counts.
        """
        self._client = client
        self._options = options
        self._progress = progress
        self._dispatcher = dispatcher or LocalDispatcher(options)
        self._stopped = False
        self._resumed = False
        self._looked = False
        self._has_told = False
        self._offered = options.patch.status if options.patch else None
        self._again = False
        self._sent_before = 0
        """Blocks of plans that were given up."""
        self.summary = UploadSummary()

    def stop(self) -> None:
        """Finish the blocks in flight, then end."""
        self._stopped = True
        self._dispatcher.stop()

    def run(self) -> UploadSummary:
        """Raises TarLikeError when the upload cannot even start, PatchGone (of a patch only)."""
        options = self._options
        with Index(options.index_path) as index, tempfile.TemporaryDirectory() as folder:
            self.summary.transfer = index.id
            self.summary.entries = index.entry_count
            self._note_unreadable(index)
            client = self._client or options.client(0)
            try:
                self._plan_and_send(client, index, folder)
            except Interrupted:
                self.summary.interrupted = True
            except PatchGone as gone:
                gone.carried = self.summary.wire_bytes
                raise
            except (NotFound, AnswersInvalid) as error:
                if self._options.patch:
                    raise PatchGone from None
                raise Conflict(f"{error} {_BETWEEN}") from None
            finally:
                self.summary.wire_bytes += client.carried
                if client is not self._client:
                    client.close()
                self._dispatcher.close(self.summary.state)
        return self.summary

    def rehearse(self) -> Rehearsal:
        """Only say what would be done; to be closed. Raises TarLikeError."""
        options = self._options
        client = options.client(0)
        with Index(options.index_path) as index, tempfile.TemporaryDirectory() as folder:
            try:
                status = self._negotiate(client, index, folder)
                path = os.path.join(folder, "rehearsal.db")
                client.rehearse(index.id, path)
                return Rehearsal(options.index_path, status, path)
            finally:
                client.close()

    def _plan_and_send(self, client: Client, index: Index, folder: str) -> None:
        for number in range(ROUNDS):
            status = self._negotiate(client, index, folder)
            try:
                self._rounds(client, status, os.path.join(folder, f"plan.{number}.db"))
            except _PlanAnew as why:
                self._progress.say(str(why))
                if self._options.patch:
                    raise PatchGone from None
                self._sent_before = self.summary.blocks_sent
            else:
                return
        self.summary.errors.append("Other runs are committed again and again: run it again.")

    def _note_unreadable(self, index: Index) -> None:
        for row in index.skipped():
            if row.kind != "special":
                self.summary.failures.append(Failure(shown(row.path), row.detail, source=True))

    def _negotiate(self, client: Client, index: Index, folder: str) -> Status:
        status, self._offered = self._offered or client.status(index.id), None
        if status is None or status.state == COMPLETE:
            if self._options.patch:
                raise PatchGone
            status = client.offer(index.id, index.path)
        else:
            self._resumed = status.received > 0
        try:
            status = self._ask_for_plan(client, index)
        except NotFound:  # another run has completed it just now
            if self._options.patch:
                raise PatchGone from None
            client.offer(index.id, index.path)
            status = self._ask_for_plan(client, index)
        while status.state == OPEN:
            self._raise_if_stopped()
            if status.questions:
                self._answer(client, index, folder, status.questions)
            status = self._ask_for_plan(client, index)
        wanted = self._options.rules.to_json()
        if status.rules != wanted:
            if status.rules.keys() == wanted.keys():
                raise Conflict(f"The receiver goes by other options. {_BETWEEN}")
            raise UsageError("The receiver is too old for what the options ask of it.")
        if status.block_size != self._options.block_size and status.blocks:
            self._progress.say(
                f"This transfer was begun with blocks of {status.block_size} bytes; "
                "it goes on with them."
            )
        self.summary.blocks_total = self._sent_before + status.blocks
        return status

    def _ask_for_plan(self, client: Client, index: Index) -> Status:
        options = self._options
        wish = client.wish(
            options.block_size,
            options.rules,
            ask=True,
            checksum=options.checksum,
            look=options.look,
            told=self._told(index),
        )
        return client.negotiate(index.id, wish)

    def _told(self, index: Index) -> Told | None:
        """What the receiver need not ask."""
        files = self._options.patch.files if self._options.patch else {}
        if not files or self._has_told:
            return None
        self._has_told = True
        paths = ((entry.id, entry.path) for entry in index.of_kind(FILE))
        return Told(digests={one: files[path].digest for one, path in paths if path in files})

    def _answer(self, client: Client, index: Index, folder: str, count: int) -> None:
        """Say what the receiver wants to know of files that it may have in part."""
        self._progress.say(
            f"Looking at what the receiver may have, or may be the same: {counted(count, 'file')}."
        )
        asked, said = os.path.join(folder, "questions.db"), os.path.join(folder, "answers.db")
        client.fetch(index.id, "questions", asked)
        questions = Questions(asked, index.id)
        source = open_source(self._options.source, self._options.s3)
        try:
            with presence(self._options.client(0), index.id):
                Answering(
                    questions, index, source,
                    jobs=self._options.processes, stopped=lambda: self._stopped,
                ).write(said)  # fmt: skip
        finally:
            source.close()
            questions.close()
        client.answer(index.id, said)
        os.unlink(said)

    def _rounds(self, client: Client, status: Status, plan_path: str) -> None:
        """Send what is missing and commit, until it is complete or cannot go on."""
        first, stop = self._range(status)
        whole = (first, stop) == (0, status.blocks)
        every = self._options.ignore_done or not status.received
        for _ in range(ROUNDS):
            missing = self._missing(client, status, first, stop, every=every)
            if missing:
                if not os.path.exists(plan_path):
                    client.fetch(status.id, "plan", plan_path)
                if self._resumed and not every:
                    missing = self._with_doubtful(client, plan_path, missing, first, stop)
                    self._resumed = False
                self._send(plan_path, missing)
            every = False
            self._raise_if_stopped()
            if self.summary.errors:
                self._raise_if_gone(client, status)
                return
            if not whole and self._elsewhere_missing(client, status):
                if not self._missing(client, status, first, stop, every=False):
                    return  # this part is done; others send theirs
                continue
            if status.files and not self._looked:
                self._look_at_bare(client, plan_path)
            if self._commit(client, status):
                return
            self._progress.say("Some staged blocks are missing, or wrong; they are sent again.")
        self.summary.errors.append("Blocks are still missing after several rounds: run it again.")

    def _range(self, status: Status) -> tuple[int, int]:
        first = self._options.first or 0
        stop = status.blocks if self._options.last is None else self._options.last + 1
        if first and first >= status.blocks:
            raise UsageError(f"There is no block {first}: the plan has {status.blocks}.")
        return first, min(stop, status.blocks)

    def _missing(
        self, client: Client, status: Status, first: int, stop: int, *, every: bool
    ) -> list[int]:
        if not status.blocks:
            return []
        if every:
            return list(range(first, stop))
        return [n for n in self._bits_missing(client, status) if first <= n < stop]

    def _with_doubtful(
        self, client: Client, plan_path: str, missing: list[int], first: int, stop: int
    ) -> list[int]:
        """Also what arrived of files that were touched before the rest could follow.

        Sent again it is compared: other bytes mark the file as changed, so that parts of two
        versions, of the same size and mtime, never make up a file.
        """
        begun = f"{plan_path}.begun"
        client.fetch(self.summary.transfer, "db", begun)
        plan = Plan(plan_path, self._options.index_path)
        lacking, doubtful = set(missing), set[int]()
        for _, blocks in plan.touched_since(begun):
            if not lacking.isdisjoint(blocks):
                doubtful.update(number for number in blocks if first <= number < stop)
        plan.close()
        os.unlink(begun)
        return sorted(lacking | doubtful)

    def _look_at_bare(self, client: Client, plan_path: str) -> None:
        """Name files that were empty, or one hole, when they were indexed, and are not any more.

        No block has them, so nobody else looks at them again.
        """
        self._looked = True
        if not os.path.exists(plan_path):
            client.fetch(self.summary.transfer, "plan", plan_path)
        source = open_source(self._options.source, self._options.s3)
        plan = Plan(plan_path, self._options.index_path)
        try:
            if not isinstance(source, Recognizes):
                return  # a request for each of them is too dear
            if not source.recognize(plan.seen()):
                return  # a copy of the tree, or none here: workers have it elsewhere
            pieces = plan.bare_pieces()
            while batch := list(islice(pieces, BATCH)):
                for number, reason in source.read(batch, memoryview(bytearray())).omissions:
                    path = shown(batch[number].path)
                    text = f"{REASONS[reason]} since it was indexed without data, which arrived so"
                    self.summary.failures.append(Failure(path, text, source=True))
        finally:
            plan.close()
            source.close()

    def _elsewhere_missing(self, client: Client, status: Status) -> bool:
        return bool(status.blocks) and next(self._bits_missing(client, status), None) is not None

    def _bits_missing(self, client: Client, status: Status) -> Iterator[int]:
        bits = client.bitmaps(status.id)
        return bits_missing(bits[: (status.blocks + 7) // 8], status.blocks)

    def _send(self, plan_path: str, missing: list[int]) -> None:
        options = self._options
        plan = Plan(plan_path, options.index_path)
        total, size = plan.bytes, plan.block_size
        self._progress.blocks(total, max(0, total - len(missing) * size))
        plan.close()
        record = Record(options.record, self.summary.transfer, size) if options.record else None
        sending = Sending(
            transfer=self.summary.transfer,
            plan_path=plan_path,
            index_path=options.index_path,
            block_size=size,
            missing=missing,
        )
        troubles: dict[str, str] = {}
        try:
            for outcome in self._dispatcher.send(sending, self._progress):
                self._take(outcome, troubles)
                if record is not None and not outcome.error:
                    record.add(outcome)
        finally:
            if record is not None:
                record.close()
        known = {failure.path for failure in self.summary.failures}
        self.summary.failures += [
            Failure(path, reason, source=True)
            for path, reason in troubles.items()
            if path not in known
        ]

    def _take(self, outcome: BlockOutcome, troubles: dict[str, str]) -> None:
        summary = self.summary
        if outcome.error:
            summary.errors.append(f"Block {outcome.block_no}: {outcome.error}")
            return
        summary.blocks_sent += 1
        summary.bytes_sent += outcome.raw
        summary.wire_bytes += outcome.wire
        troubles.update(outcome.troubles)

    def _commit(self, client: Client, planned: Status) -> bool:
        """Whether the transfer is complete, or cannot be; False when blocks must be sent again."""
        self._progress.say("All blocks have arrived; committing.")
        idle = 0
        while True:
            self._raise_if_stopped()
            try:
                status = client.commit(planned.id, self._options.rules)
            except TarLikeError as error:
                if self._options.patch and isinstance(error, NotFound):
                    raise PatchGone from None
                if isinstance(error, Conflict) and self._elsewhere_missing(client, planned):
                    return False  # the receiver believes some of them no more
                self.summary.errors.append(str(error))
                return True
            if status.state == COMPLETE:
                break
            if status.state == OPEN:
                raise _PlanAnew(
                    "Another run was committed meanwhile; what is missing is looked up again."
                )
            if status.revoked or status.received < status.blocks:
                return False
            if status.state != COMMITTING:
                idle += 1
                if idle >= IDLE_COMMITS:
                    self.summary.errors.append("The receiver does not get to committing.")
                    return True
        self._take_report(status)
        return True

    def _take_report(self, status: Status) -> None:
        """The transfer is complete. Raises _PlanAnew where that is not enough."""
        if status.again and not self._again:
            self._again = True
            raise _PlanAnew(
                f"{status.again} older versions were not what the receiver remembered of them; "
                "what is missing is looked up again."
            )
        self.summary.state = COMPLETE
        self.summary.deleted, self.summary.held = status.deleted, status.held
        self.summary.passed = status.passed
        reported = {failure.path for failure in status.failures}
        others = (one for one in self.summary.failures if one.path not in reported)
        self.summary.failures = [*status.failures, *others]

    def _raise_if_gone(self, client: Client, status: Status) -> None:
        """What went wrong with blocks of a patch may be that there is none any more."""
        if self._options.patch and client.status(status.id) is None:
            raise PatchGone

    def _raise_if_stopped(self) -> None:
        if self._stopped:
            raise Interrupted("Stopped.")
