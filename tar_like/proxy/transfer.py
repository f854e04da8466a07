"""One transfer, as one serving process sees it: its files below transfers/ID.

    offer > negotiate > receive blocks > (commit, in a process of its own)
    (offer)  (planning)  (intake)         (commit)

Every answer comes from files, so any process on any host gives the same one. Thread-safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator

from tar_like import codec
from tar_like.chunks import SMALLEST_FILE
from tar_like.dirfd import open_file
from tar_like.errors import (
    Conflict,
    IndexInvalid,
    NotFound,
    ReceiverFailed,
    TooLarge,
    UsageError,
)
from tar_like.index import Index
from tar_like.plan import Plan
from tar_like.plan.questions import Questions, check_answers
from tar_like.proxy import room
from tar_like.proxy.backup import check_backup
from tar_like.proxy.furnish import begin_anew
from tar_like.proxy.intake import Block, Intake
from tar_like.proxy.kept import bytes_of_twins
from tar_like.proxy.laying import bytes_left
from tar_like.proxy.patch import NAME as PATCH
from tar_like.proxy.place import PLAN_LOCK, Destination, held
from tar_like.proxy.planning import Planning, Wish, questions_open
from tar_like.proxy.receipts import Receipts
from tar_like.proxy.rehearsal import write_rehearsal
from tar_like.proxy.snapshot import Snapshot
from tar_like.proxy.staging import Staging
from tar_like.proxy.verified import Verified
from tar_like.rules import PATCHED, RULES, Rules
from tar_like.source.filters import make_filter
from tar_like.wire import COMMITTING, OPEN, RECEIVING, Status, bitmap

_GONE = "The transfer is complete, or was removed: offer its index again."


class Transfer:
    """A transfer that is not complete."""

    def __init__(self, destination: Destination, transfer_id: str) -> None:
        """Raises NotFound when it has not been offered."""
        self.id = transfer_id
        self._destination = destination
        self.path = destination.transfer(transfer_id)
        self._lock = threading.Lock()
        try:
            self._identity = os.stat(self.path).st_ino
            self._index = Index(os.path.join(self.path, "index.db"), "The index of this transfer")
            self._staging = Staging(os.path.join(self.path, "stage"))
            self._plan: Plan | None = None
            if os.path.exists(self.plan_path):
                self._plan = Plan(self.plan_path, self.index_path)
            Rules.read(self.path)
        except OSError:
            raise NotFound("There is no such transfer: offer its index first.") from None
        except (IndexInvalid, ValueError):  # torn by a power cut, where nothing is synced
            raise NotFound("The transfer is damaged: offer its index again.") from None
        self.planner = ""
        """Of a planning that was begun before anybody negotiated: its token."""
        self._verified = Verified(self.path)
        self._verified.forget_lost()
        self._receipts = Receipts(os.path.join(self.path, "receipts"))
        self._intake = Intake(destination, self.path, self._staging, self._receipts)

    @property
    def alive(self) -> bool:
        """Whether its folder is still the one that was opened."""
        try:
            return os.stat(self.path).st_ino == self._identity
        except OSError:
            return False

    @property
    def index_path(self) -> str:
        """The validated index."""
        return os.path.join(self.path, "index.db")

    @property
    def plan_path(self) -> str:
        """The plan; there once it was negotiated."""
        return os.path.join(self.path, "plan.db")

    @property
    def rules(self) -> Rules:
        """The rules that were negotiated last."""
        return Rules.read(self.path)

    def negotiate(
        self,
        block_size: int,
        rules: Rules | None = None,
        *,
        ask: bool = False,
        checksum: bool = False,
        look: str = "",
    ) -> Status:
        """Make the plan, or keep the one that is there (with its own block size). Idempotent.

        There may be questions instead, if the sender can be asked: the status is ``open`` then.
        Raises UsageError, NoSpace, OSError, and what ``state`` raises.
        """
        wish = Wish(block_size=block_size, ask=ask, checksum=checksum, look=look)
        return self.negotiate_as(wish, rules or Rules())

    def negotiate_as(self, wish: Wish, rules: Rules) -> Status:
        """What ``negotiate`` does, for all that a sender may wish for."""
        self.state(rules)
        try:
            with Planning(self._destination, self.id) as planning:
                planning.run(wish)
        except FileNotFoundError:
            if os.path.exists(self.path):
                raise
            raise NotFound(_GONE) from None  # complete, or a patch of what is no more
        self.check_room()
        return self.status()

    def state(self, rules: Rules) -> None:
        """These rules hold from now on.

        Where a plan depends on them, the transfer is begun anew: this object is of no use then.

        Raises UsageError, Conflict when a commit by other rules is running, OSError.
        """
        rules = rules.checked().canonical
        if rules not in PATCHED and os.path.exists(os.path.join(self.path, PATCH)):
            raise UsageError("A patch goes by no rules but 'delete': offer the whole index.")
        make_filter(rules.regexes, rules.patterns)  # can they be?
        check_backup(self._index, rules)
        if rules.snapshot:
            Snapshot(self._destination, self.path, rules.snapshot).check()
        if rules != self.rules:
            with self._in_use():
                self._change_rules(rules)

    def _change_rules(self, rules: Rules) -> None:
        planned = any(map(os.path.exists, (self.plan_path, os.path.join(self.path, "survey.db"))))
        if planned and rules.dry_run and not self.rules.dry_run:
            raise Conflict(
                "This tree is on its way to this receiver, and a dry run would disturb it: "
                "'tar-like status' says how far it is."
            )
        try:
            with held(os.path.join(self.path, "commit.lock"), wait=1.0):
                if planned and rules.planning != self.rules.planning:
                    begin_anew(self._destination, self.id, rules)
                    return
                folder = self._destination.temporary()
                rules.write(folder)
                self._destination.durability.publish(
                    os.path.join(folder, RULES), os.path.join(self.path, RULES)
                )
                self._destination.discard(folder)
        except BlockingIOError:
            raise Conflict(
                "This tree is being committed by another run with other options: "
                "wait until that has ended."
            ) from None

    def check_room(self) -> None:
        """Refuse what cannot fit before it is sent; all is staged once it is verified.

        Raises NoSpace.
        """
        with self._in_use(shared=True):
            self._destination.mark(self.id)
            if os.path.exists(self.plan_path) and not self.verified and not self.rules.dry_run:
                plan = self.plan()
                self._receipts.refresh()
                missing = plan.block_count - self._receipts.received
                room.check(self.path, plan, missing, lambda: self._bytes_of_copies(plan))

    def _bytes_of_copies(self, plan: Plan) -> int:
        return bytes_of_twins(self.path) + bytes_left(self.path, plan)

    def is_easy(self, look: str) -> bool:
        """Whether negotiating takes no time worth speaking of, with this look (its token)."""
        if os.path.exists(self.plan_path):
            return True
        with Planning(self._destination, self.id) as planning:
            return planning.is_easy(look)

    @property
    def has_large_files(self) -> bool:
        """Whether any file is large enough for an older version to be of use in part."""
        return self._index.has_file_of(SMALLEST_FILE)

    @property
    def is_being_planned(self) -> bool:
        """Whether somebody is at it, on any host: another one would only wait."""
        try:
            with held(os.path.join(self.path, PLAN_LOCK), shared=True, wait=0):
                return False
        except BlockingIOError:
            return True
        except FileNotFoundError:  # gone meanwhile
            return False

    @property
    def open_questions(self) -> int:
        """How many questions are waiting for answers."""
        return 0 if os.path.exists(self.plan_path) else questions_open(self.path)

    @property
    def questions_path(self) -> str:
        """The questions. Raises NotFound when there are none."""
        path = os.path.join(self.path, "questions.db")
        if not os.path.exists(path):
            raise NotFound("There are no questions.")
        return path

    @property
    def longest_answer(self) -> int:
        """Bytes that answers cannot exceed. Raises NotFound when there are no questions."""
        with self._questions() as questions:
            return questions.longest_answer(self._index)

    @contextlib.contextmanager
    def _questions(self) -> Iterator[Questions]:
        questions = Questions(self.questions_path, self.id)
        try:
            with self._lock:
                yield questions
        finally:
            questions.close()

    def answer(self, path: str) -> None:
        """Take up answers that were written to a file. Idempotent: the first ones stay.

        Raises AnswersInvalid, OSError.
        """
        with self._questions() as questions:
            check_answers(path, questions, self._index)
        final = os.path.join(self.path, "answers.db")
        with held(os.path.join(self.path, "answers.lock")):
            if not os.path.exists(final):
                self._destination.durability.publish(path, final)

    def rehearse(self, path: str) -> None:
        """Write what the transfer would do to a file; then forget it.

        Raises Conflict unless it is a dry run that was planned, OSError, sqlite3.Error.
        """
        if not self.rules.dry_run or not os.path.exists(self.plan_path):
            raise Conflict("This transfer is no dry run, or is not planned yet.")
        snapshots = self._destination.snapshots()
        write_rehearsal(self.path, self._destination.root, snapshots, path)
        self._destination.discard(self.path)

    def plan(self) -> Plan:
        """The plan. Raises NotFound before it was negotiated."""
        if self._plan is None:
            with self._lock:
                if self._plan is None:
                    if not os.path.exists(self.plan_path):
                        raise NotFound("There is no plan yet: negotiate it first.")
                    self._plan = self._open_plan()
        return self._plan

    def _open_plan(self) -> Plan:
        try:
            return Plan(self.plan_path, self.index_path)
        except IndexInvalid as error:
            raise _damaged(error) from None

    def status(self) -> Status:
        """What is there now."""
        if not os.path.exists(self.plan_path):
            if not self.alive:
                raise NotFound("The transfer has just been completed.")
            return Status(
                id=self.id,
                state=OPEN,
                entries=self._index.entry_count,
                questions=self.open_questions,
                rules=self.rules.to_json(),
            )
        plan = self.plan()
        self._receipts.refresh()
        return Status(
            id=self.id,
            state=COMMITTING if self.committing else RECEIVING,
            block_size=plan.block_size,
            blocks=plan.block_count,
            received=plan.block_count if self.verified else self._receipts.received,
            durable=plan.block_count if self._verified.lasts else self._receipts.durable,
            bytes=plan.bytes,
            files=plan.files,
            entries=self._index.entry_count,
            committed=read_progress(self.path),
            rules=self.rules.to_json(),
        )

    @property
    def committing(self) -> bool:
        """Whether a commit is running, on any host."""
        try:
            fd = open_file(os.path.join(self.path, "commit.lock"), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @property
    def verified(self) -> bool:
        """Whether a commit has read everything back: staging must not be written to any more."""
        return bool(self._verified)

    def bitmaps(self) -> bytes:
        """The received blocks as bits, then the durable ones."""
        count = self.plan().block_count
        every = bitmap(iter(range(count)), count)
        if self._verified.lasts:
            return 2 * every
        self._receipts.refresh()
        received = every if self.verified else bitmap(iter(self._receipts.blocks()), count)
        return received + bitmap(iter(self._receipts.durable_blocks()), count)

    def check_plan(self, plan_id: str) -> None:
        """Refuse blocks of a plan that does not hold any more. Raises NotFound."""
        if plan_id and plan_id != self.plan().id:
            raise NotFound("This transfer has been planned anew: run the same again.")

    def check_length(self, block_size: int, block_no: int, length: int) -> None:
        """Refuse a body of a length that this block cannot have, before it is read.

        Raises NotFound for no block of the plan, Conflict for another block size, TooLarge.
        """
        plan = self.plan()
        if block_size != plan.block_size:
            raise Conflict(f"This transfer has blocks of {plan.block_size} bytes.")
        if not 0 <= block_no < plan.block_count:
            raise NotFound(f"There is no block {block_no}: the plan has {plan.block_count}.")
        if length <= codec.max_body(block_size, 0):
            return
        with self._lock_plan() as plan:
            extents = plan.extents(block_no)
        raw = sum(extent.stop - extent.start for extent in extents)
        limit = codec.max_body(raw, len(extents))
        if length > limit:
            raise TooLarge(f"The body has {length} bytes; this block has at most {limit}.")

    def receive(self, block_no: int, body: memoryview, claimed: bytes) -> bool:
        """Verify, stage and record one block; False when it was there already. Idempotent.

        Raises BlockInvalid before anything is written; Conflict when other bytes arrived as
        this block before; NoSpace, OSError (nothing is acknowledged then).
        """
        with self._lock_plan() as plan:
            extents = plan.extents(block_no)
        return self._take(Block.decode(block_no, extents, body, claimed))

    def take(self, block_no: int, body: codec.Body, claimed: bytes) -> bool:
        """``receive`` for who has just made the digest, of these very bytes, in this process."""
        with self._lock_plan() as plan:
            extents = plan.extents(block_no)
        return self._take(Block.of(block_no, extents, body, claimed))

    def _take(self, block: Block) -> bool:
        with self._in_use(shared=True):
            return not self.verified and self._intake.take(block)

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough time or bytes passed since the last checkpoint."""
        return self._intake.checkpoint_due

    def checkpoint(self) -> None:
        """Make this process's receipts durable: intake.Intake.checkpoint."""
        self._intake.checkpoint()

    @contextlib.contextmanager
    def _in_use(self, *, shared: bool = False) -> Iterator[None]:
        """Keep others from removing the transfer, and from beginning to commit it.

        Raises NotFound when it is gone.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(os.path.join(self.path, PLAN_LOCK), shared=shared))
            except FileNotFoundError:
                raise NotFound(_GONE) from None
            if not self.alive:
                raise NotFound(_GONE)
            yield

    @contextlib.contextmanager
    def _lock_plan(self) -> Iterator[Plan]:
        plan = self.plan()
        with self._lock:
            yield plan

    def close(self) -> None:
        """Close every file."""
        self._index.close()
        self._intake.close()
        self._staging.close()
        if self._plan is not None:
            self._plan.close()

    def __del__(self) -> None:
        """Nobody has it any more: its files close now, not when SQLite's cycles are collected."""
        if hasattr(self, "_intake"):  # else it was never opened
            self.close()


def _damaged(error: IndexInvalid) -> ReceiverFailed:
    """What is wrong with a file of the receiver's own, without its path."""
    what = str(error).rpartition("/")[2]
    return ReceiverFailed(f"The receiver's own records are damaged ({what.rstrip('.')}).")


def read_progress(path: str) -> int:
    """How many entries a running commit has dealt with."""
    try:
        with open(open_file(os.path.join(path, "progress"), os.O_RDONLY), "rb") as file:
            return int(file.read() or b"0")
    except (OSError, ValueError):
        return 0
