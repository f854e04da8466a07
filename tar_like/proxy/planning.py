"""Planning: from an index to the plan of what must be sent.

    survey > questions for the sender, if it can be asked (the old versions are read meanwhile)
           > answers > assemble what is here (several processes) > sync > kept.db > plan.db
           > what of an older version is still being copied (proxy.laying)

Runs in a process of its own where the destination holds anything, unless only a few small files
differ: files are read, and a serving process must go on answering. It can be killed anywhere and
run again; what it has published stays.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tar_like import digest
from tar_like.chunks import SMALLEST_FILE
from tar_like.database import MAX_VALUE
from tar_like.dirfd import Walker
from tar_like.errors import NoSpace, UsageError
from tar_like.index import Index
from tar_like.layout import FILE, MAX_BLOCK_SIZE, PAGE, Entry
from tar_like.plan import Plan, build_plan, build_whole_plan
from tar_like.plan.questions import (
    Answer,
    Answers,
    Question,
    Questions,
    write_answers,
    write_questions,
)
from tar_like.plan.segments import Segments
from tar_like.proxy import adopt, kept, room, strays, survey
from tar_like.proxy.assemble import Task
from tar_like.proxy.assemblers import Assemblers
from tar_like.proxy.chunkcache import ChunkCache
from tar_like.proxy.doubt import distrust
from tar_like.proxy.laying import note_laid
from tar_like.proxy.ledger import Ledger, Row, plan_of
from tar_like.proxy.look import find_touched, read_look
from tar_like.proxy.outcome import PLANNING, attempt, keep_room, write_outcome
from tar_like.proxy.patch import patch_of
from tar_like.proxy.place import HOME, LAYING_LOCK, PLAN_LOCK, Destination, held
from tar_like.proxy.poll import Poll
from tar_like.proxy.seal import seal
from tar_like.proxy.snapshot import Basis, basis
from tar_like.proxy.sorter import Sorter
from tar_like.proxy.sources import Sources
from tar_like.proxy.strays import Strays
from tar_like.rules import Rules
from tar_like.wire import Told

FEW, FEW_BYTES = 5000, 16 << 20
"""What of entries, and of files' bytes, is planned where it is asked for."""
MAX_PADDING = 16
"""Blocks without bytes that a plan may have where files are left out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a sender asks for when it negotiates."""

    block_size: int
    ask: bool = False
    """It can answer questions."""
    checksum: bool = False
    """Believe no fingerprint: read every file that may be kept."""
    look: str = ""
    """The token of a look that was begun beside the scan (look.run_look)."""
    told: Mapping[int, bytes] = field(default_factory=dict)
    """Digests of files that it has told unasked, by entry (wire.Told)."""

    def __post_init__(self) -> None:
        """Raises UsageError for blocks that cannot be."""
        if self.block_size % PAGE or not PAGE <= self.block_size <= MAX_BLOCK_SIZE:
            raise UsageError("The block size must be a multiple of 4096, from 4 KiB to 1 GiB.")

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Wish:
        """What a request for a plan has, but for the rules. Raises UsageError."""
        block_size, look = values.get("block_size"), values.get("look", "")
        ask, checksum = values.get("ask", False), values.get("checksum", False)
        if type(block_size) is not int:
            raise UsageError("Negotiating a plan needs a block_size in bytes.")
        if type(ask) is not bool or type(checksum) is not bool:
            raise UsageError("Negotiating a plan: ask and checksum are true or false.")
        if not isinstance(look, str):
            raise UsageError("Which look? Its token is a text.")
        try:
            told = Told.from_json(values["told"]) if "told" in values else Told(digests={})
        except (ValueError, TypeError) as error:
            raise UsageError(f"Negotiating a plan: what is told is wrong: {error}") from None
        return cls(block_size=block_size, ask=ask, checksum=checksum, look=look, told=told.digests)


def run_planning(
    destination: Destination, transfer_id: str, token: str, wish: str, jobs: int
) -> None:
    """Plan a transfer; how it ended is in files."""
    path = destination.transfer(transfer_id)
    with (
        contextlib.suppress(FileNotFoundError),  # complete meanwhile
        Planning(destination, transfer_id, jobs) as planning,
    ):
        keep_room(path, PLANNING)
        outcome = attempt(lambda: planning.run(Wish(**json.loads(wish))))
        if outcome is not None:
            write_outcome(path, PLANNING, replace(outcome, token=token))


def questions_open(path: str) -> int:
    """How many questions a transfer has that nobody has answered."""
    asked = os.path.join(path, "questions.db")
    if not os.path.exists(asked) or os.path.exists(os.path.join(path, "answers.db")):
        return 0
    with Index(os.path.join(path, "index.db")) as index:
        questions = Questions(asked, index.id)
        try:
            return questions.count
        finally:
            questions.close()


class Planning:
    """The planning of one transfer."""

    def __init__(self, destination: Destination, transfer_id: str, jobs: int = 1) -> None:
        self._destination = destination
        self._id = transfer_id
        self._path = destination.transfer(transfer_id)
        self._index = Index(self._file("index.db"))
        self._jobs = jobs
        self._pool: Assemblers | None = None
        self._locks = contextlib.ExitStack()
        self._filesystem = -1
        """Open since before anything is copied: its sync tells of each write that failed since."""
        self._planned = ""
        """The id of the plan that was made here."""

    def close(self) -> None:
        """Close the index, and end the processes."""
        self._close_pool()
        self._index.close()

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @property
    def _assemblers(self) -> Assemblers:
        """The same ones for questions and plan."""
        if self._pool is None:
            self._pool = Assemblers(self._jobs, self._destination, self._path)
        return self._pool

    def __enter__(self) -> Planning:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, name: str) -> str:
        return os.path.join(self._path, name)

    @property
    def _basis(self) -> Basis:
        return basis(self._destination, self._path, Rules.read(self._path))

    def is_easy(self, look: str) -> bool:
        """Whether little or nothing at the destination will be read for it.

        ``look`` is the token of a look that was taken, if any.
        """
        if self._nothing_known:
            return True
        looked = os.path.exists(self._file("survey.db")) or find_touched(self._destination, look)
        return bool(looked) and self._is_small

    @property
    def _is_small(self) -> bool:
        """Whether only a few small files differ."""
        if patch_of(self._path) is None or self._index.entry_count > FEW:
            return False
        return self._index.file_bytes <= FEW_BYTES and not self._index.has_file_of(SMALLEST_FILE)

    @property
    def _nothing_known(self) -> bool:
        """Whether there is nothing at the destination that could be read."""
        known = os.path.exists(self._file("survey.db")) or os.path.exists(self._basis.ledger)
        if known or self._destination.donors(self._id) or Rules.read(self._path).existing:
            return False
        with os.scandir(self._basis.root) as names:
            return all(one.name == HOME for one in names)

    def run(self, wish: Wish) -> None:
        """Make the plan or the questions, if they are not there. Idempotent.

        Raises NoSpace, OSError, sqlite3.Error.
        """
        with self._locks:
            try:
                self._run(wish)
                self._end_laying()
            finally:
                if self._pool is not None:
                    self._pool.await_released()  # before anybody else may think that nobody copies

    def _run(self, wish: Wish) -> None:
        with held(self._file(PLAN_LOCK)), self._folder() as folder:
            if os.path.exists(self._file("plan.db")):
                return
            self._filesystem = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._locks.callback(os.close, self._filesystem)
            if self._nothing_known:
                self._plan_everything(folder, wish)
                return
            if not os.path.exists(self._file("survey.db")):
                self._survey(folder, wish)
            if not (wish.ask and self._waits_for_answers(folder, wish)):
                self._plan(folder, wish)

    def _waits_for_answers(self, folder: str, wish: Wish) -> bool:
        if os.path.exists(self._file("answers.db")):
            return False
        return os.path.exists(self._file("questions.db")) or self._ask(folder, wish)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[str]:
        folder = self._destination.temporary()
        try:
            yield folder
        finally:
            self._destination.discard(folder)

    def _plan_everything(self, folder: str, wish: Wish) -> None:
        """All of the tree is sent, but of files that are the same only the first."""
        if wish.ask and not os.path.exists(self._file("answers.db")):
            if os.path.exists(self._file("questions.db")):
                return
            known = self._index.algorithm != "none"
            unknown = () if known else survey.twins(self._index)
            if self._publish_questions(folder, (Question(one, 0, True) for one in unknown)):
                return
        temporary, plan = os.path.join(folder, "kept.db"), os.path.join(folder, "plan.db")
        db = kept.create(temporary)
        try:
            twins = set(survey.twins(self._index))
            entries = map(self._index.entry, sorted(twins))
            with self._digests() as digest_of:
                left = Sorter(db).left(entries, digest_of, Segments(self._index))
                twins -= {entry.id for entry in left}
            padding = sum(self._index.entry(entry_id).size for entry_id in twins)
            short = padding <= MAX_PADDING * wish.block_size
            if not short or not build_whole_plan(self._index, plan, wish.block_size, twins):
                lacking = (one for one in self._index.of_kind(FILE) if one.id not in twins)
                build_plan(self._index, lacking, plan, wish.block_size)
            db.execute("COMMIT")
        finally:
            db.close()
        self._publish(temporary, plan)

    def _publish(self, kept_path: str, plan_path: str) -> None:
        publish = self._destination.durability.publish
        for path, name in ((kept_path, "kept.db"), (plan_path, "plan.db")):
            publish(seal(path, name), self._file(f"{name}.seal"))
            publish(path, self._file(name))

    def _survey(self, folder: str, wish: Wish) -> None:
        temporary, adopted = os.path.join(folder, "survey.db"), os.path.join(folder, adopt.NAME)
        ledger = "" if wish.checksum else self._basis.ledger
        patch = patch_of(self._path)
        if patch is not None and not (patch.usable and patch.fits(ledger)):
            self._destination.discard(self._path)
            raise FileNotFoundError  # as if it were complete: all of the tree is offered then
        touched, alone = self._touched(ledger, wish.look)
        donors = self._destination.donors(self._id)

        def sift(lacking: Iterator[Entry]) -> Iterator[Entry]:
            return adopt.adopt(self._index, lacking, donors, adopted)

        known = survey.Known(
            root=self._basis.root,
            plan=plan_of(ledger),
            ledger=ledger,
            touched=touched,
            alone=alone,
            strays=wish.ask or self._index.algorithm != "none",
            patch="" if patch is None else patch.path,
        )
        rules = Rules.read(self._path)
        survey.write_survey(self._index, known, temporary, sift if donors else None, rules)
        publish = self._destination.durability.publish
        if donors:
            publish(adopted, self._file(adopt.NAME))
        publish(temporary, self._file("survey.db"))

    def _touched(self, ledger: str, token: str) -> tuple[str, bool]:
        """What a look has listed, and whether it saw nothing else."""
        if ledger != self._destination.ledger:
            return "", False  # nobody has looked there
        found = find_touched(self._destination, token)
        seen = read_look(self._destination, token)
        return found, bool(found) and seen is not None and seen.same and not seen.extra

    def _publish_questions(
        self,
        folder: str,
        rows: Iterable[Question],
        known: Callable[[Question], bytes] = lambda _: b"",
    ) -> bool:
        """Publish the questions, if there are any."""
        temporary = os.path.join(folder, "questions.db")
        if not write_questions(temporary, self._index.id, self._index.digest, rows, known):
            return False
        self._destination.durability.publish(temporary, self._file("questions.db"))
        return True

    def _ask(self, folder: str, wish: Wish) -> bool:
        """Publish the questions, if there are any, and read what the answers will be held to."""
        ledger, algorithm = self._basis.ledger, self._index.digest
        rows = survey.questions(self._file("survey.db"), ledger, algorithm)
        if wish.told and algorithm == digest.DEFAULT:
            rows = iter(asked := list(rows))
            if asked and all(one.entry_id in wish.told and not one.average for one in asked):
                self._take_told(folder, [(one.entry_id, wish.told[one.entry_id]) for one in asked])
                return False
        with _Remembered(self._index, self._basis, self._ledger(wish), self._destination) as known:
            rows = self._begin_to_lay(rows, known)
            if not self._publish_questions(folder, rows, known):
                return False
        with contextlib.closing(survey.Survey(self._file("survey.db"))) as found:
            self._assemblers.prepare(self._tasks(wish, found, known=False))
        self._read_strays(folder, self._assemblers)
        if self._is_answered_meanwhile():
            return False
        self._assemblers.settle()
        return True

    def _begin_to_lay(
        self, rows: Iterator[Question], known: Callable[[Question], bytes]
    ) -> Iterator[Question]:
        """Begin to copy an older version, if there is one alone of which nothing else is needed.

        The sender is told a little later what it is asked, so that is for what takes no time.
        """
        some = list(itertools.islice(rows, 2))  # those of large files come first
        large = [one for one in some if one.average]
        if len(large) == 1 and known(large[0]):
            self._assemblers.begin(self._index.entry(large[0].entry_id))
        return itertools.chain(some, rows)

    def _is_answered_meanwhile(self) -> bool:
        """Whether the answers have come while an older version is still being copied.

        A patch is planned at once then, unless it adopts what others have staged.
        """
        laying, poll = self._assemblers.laying, Poll()
        if laying is None or patch_of(self._path) is None or self._destination.donors(self._id):
            return False
        while not os.path.exists(self._file("answers.db")):
            if not laying.running:
                return False
            poll.wait()
        try:
            self._locks.enter_context(held(self._file(LAYING_LOCK), wait=0))
        except BlockingIOError:
            self._assemblers.settle()
        return True

    def _end_laying(self) -> None:
        """There is a plan; see what is still being copied for it to its end.

        Where that fails, who commits goes on with it.
        """
        laying = self._pool.laying if self._pool is not None else None
        if laying is None or not laying.released:
            return
        with contextlib.suppress(OSError):  # or the transfer is gone
            if laying.wait():
                self._sync()
                with self._folder() as folder:
                    note_laid(self._destination, self._path, folder, self._planned)

    def _take_told(self, folder: str, told: Iterable[tuple[int, bytes]]) -> None:
        """All that would have been asked is known."""
        temporary = os.path.join(folder, "answers.db")
        answers = (Answer(entry_id, content, b"") for entry_id, content in told)
        write_answers(temporary, self._index.id, answers)
        self._destination.durability.publish(temporary, self._file("answers.db"))

    def _read_strays(self, folder: str, pool: Assemblers) -> None:
        """Publish what strays hold, unless there are none, or it is known."""
        final, temporary = self._file(strays.NAME), os.path.join(folder, strays.NAME)
        found = survey.Survey(self._file("survey.db"))
        try:
            if found.has_strays and not os.path.exists(final):
                strays.write_read(temporary, pool.read(found.strays()))
                self._destination.durability.publish(temporary, final)
        finally:
            found.close()

    def _ledger(self, wish: Wish) -> str:
        """The ledger whose word is enough for the content of older versions; empty for none.

        A snapshot is made once: what was believed in vain could not be made good.
        """
        basis = self._basis
        return "" if wish.checksum or Rules.read(self._path).snapshot else basis.ledger

    def _plan(self, folder: str, wish: Wish) -> None:
        """Assemble, then plan what is left."""
        temporary, plan = os.path.join(folder, "kept.db"), os.path.join(folder, "plan.db")
        with contextlib.ExitStack() as opened:
            db = opened.enter_context(contextlib.closing(kept.create(temporary)))
            found = survey.Survey(self._file("survey.db"))
            opened.callback(found.close)
            found.copy_kept(db)
            sorter = Sorter(db)
            pool = self._assemblers
            self._read_strays(folder, pool)
            for provided in pool.assemble(self._tasks(wish, found, known=True)):
                sorter.take(provided)
            pool.settle()
            if sorter.staged:
                self._sync()
            digest_of = opened.enter_context(self._digests())
            entries = (entry for entry, _ in found.lacking(self._index))
            lacking = sorter.left(entries, digest_of, Segments(self._index))
            self._planned = build_plan(self._index, lacking, plan, wish.block_size, sorter.part)
            db.execute("COMMIT")
        if self._destination.donors(self._id) and not self._fits(plan):
            self._without_donors(folder, wish)
            return
        self._publish(temporary, plan)

    def _fits(self, plan_path: str) -> bool:
        """Whether there is room for a plan, beside what donors hold."""
        plan = Plan(plan_path, self._index.path)
        try:
            room.check(self._path, plan, plan.block_count)
        except NoSpace:
            return False
        finally:
            plan.close()
        return True

    def _without_donors(self, folder: str, wish: Wish) -> None:
        self._destination.discard(self._destination.donors_folder(self._id))
        for name in ("survey.db", "questions.db", "answers.db", strays.NAME, adopt.NAME):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._file(name))
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        self._close_pool()
        self._survey(folder, wish)
        self._plan(folder, wish)

    def _tasks(self, wish: Wish, found: survey.Survey, *, known: bool) -> Iterator[Task]:
        """Lacking files whose content may be here; ``known``: also those to be looked up."""
        with contextlib.ExitStack() as opened:
            digest_of = opened.enter_context(self._digests())
            read = Strays(self._file(strays.NAME))
            opened.callback(read.close)
            lacking = found.lacking(self._index)
            wanted = (digest_of(entry) for entry, _ in lacking) if known else ()
            sources = Sources(read, self._sources(wanted))
            opened.callback(sources.close)
            by_path = self._bases(wish)
            for entry, at_size in found.lacking(self._index):
                content = digest_of(entry)
                same = sources.of(content) if known else ()
                if (at_size >= 0 and (content or not known)) or same:
                    basis = by_path.get(entry.path)
                    yield Task(entry, content, at_size, basis, read.at(entry.id), same)

    def _bases(self, wish: Wish) -> dict[bytes, Row]:
        """What the ledger knows of the older versions of files whose chunks are asked for."""
        asked = self._file("questions.db")
        if not os.path.exists(asked):
            return {}
        questions, ledger = Questions(asked, self._index.id), Ledger(self._ledger(wish))
        try:
            if ledger.algorithm != self._index.digest:
                return {}
            paths = (self._index.entry(one.entry_id).path for one in questions if one.average)
            return {row.path: row for row in ledger.with_paths(paths)}
        finally:
            questions.close()
            ledger.close()

    def _sources(self, digests: Iterable[bytes]) -> Iterator[Row]:
        """The ledger's files that have one of these digests."""
        ledger = Ledger(self._basis.ledger)
        try:
            if ledger.algorithm == self._index.digest:
                yield from ledger.with_digests(filter(None, digests))
        finally:
            ledger.close()

    @contextlib.contextmanager
    def _digests(self) -> Iterator[Callable[[Entry], bytes]]:
        """What is known of files' digests: from the index, or from the answers."""
        said = self._file("answers.db")
        if not os.path.exists(said):
            yield lambda entry: entry.hash
            return
        with contextlib.closing(Answers(said)) as answers:
            digests = answers.digests()
            yield lambda entry: entry.hash or digests.of(entry.id)

    def _sync(self) -> None:
        """Raises OSError; what others staged must be sent again then, too."""
        try:
            self._destination.durability.filesystem(self._filesystem)
        except OSError:
            distrust(self._destination)
            raise


class _Remembered:
    """The chunks of older versions, where the ledger knows that they are what lies there."""

    def __init__(self, index: Index, basis: Basis, ledger: str, destination: Destination) -> None:
        self._index = index
        self._ledger = Ledger(ledger)
        self._walker = Walker(basis.root)
        self._cache = ChunkCache(destination.chunks)
        self._last: tuple[Question | None, bytes] = (None, b"")
        """What was asked about last: some do so twice."""

    def __call__(self, question: Question) -> bytes:
        """As ChunkList.to_bytes gives them; empty where they are not known, or too many."""
        if self._last[0] != question:
            self._last = question, self._read(question)
        return self._last[1]

    def _read(self, question: Question) -> bytes:
        if not question.average or self._ledger.algorithm != self._index.digest:
            return b""
        path = self._index.entry(question.entry_id).path
        for row in self._ledger.with_paths([path]):
            try:
                parent, name = self._walker.split(path)
                if row.is_of(os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    found = self._cache.read_bytes(row.digest.hex(), question.average)
                    return found if len(found) <= MAX_VALUE else b""
            except OSError:
                return b""
        return b""

    def __enter__(self) -> _Remembered:
        return self

    def __exit__(self, *_: object) -> None:
        self._walker.close()
        self._ledger.close()
