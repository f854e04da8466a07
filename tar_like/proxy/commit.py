"""Commit: make staged files appear under their names, verified.

    all blocks received, older versions copied?
    > verify staged files (parallel) > sync > verified.db
    > names and metadata (parallel) > sync > ledger.db > report > transfer's folder removed

Runs in a process of its own, one at a time for a destination (a lock file says so to all hosts).
It can be killed anywhere and run again. A commit that ends without a report leaves
``outcome.json``: blocks whose staged bytes were wrong are revoked and must be sent again, or an
error says what is in the way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tar_like.database import attach, scratch
from tar_like.dirfd import open_file
from tar_like.errors import Conflict, counted, shown
from tar_like.index import Index
from tar_like.layout import FILE
from tar_like.plan import Plan
from tar_like.proxy.adopt import Adoption
from tar_like.proxy.apply import Applier
from tar_like.proxy.deletion import Deletion, reason_to_hold
from tar_like.proxy.directories import Directories
from tar_like.proxy.doubt import distrust
from tar_like.proxy.furnish import begin_anew
from tar_like.proxy.kept import Kept
from tar_like.proxy.laying import lay_rest
from tar_like.proxy.ledger import LANDED, plan_of, version_of
from tar_like.proxy.nextledger import NextLedger
from tar_like.proxy.outcome import COMMIT, Outcome, attempt, keep_room, write_outcome
from tar_like.proxy.patch import is_outdated, is_patch, patch_of
from tar_like.proxy.place import COMMIT_LOCK, LAYING_LOCK, PLAN_LOCK, Destination, held
from tar_like.proxy.pool import Pool
from tar_like.proxy.recall import carry_over
from tar_like.proxy.receipts import ReceiptLog, Receipts, reason
from tar_like.proxy.seal import broken, text_of
from tar_like.proxy.sights import Changes
from tar_like.proxy.snapshot import Snapshot, base_of
from tar_like.proxy.verified import Verified
from tar_like.proxy.verify import Twin, read_back, units
from tar_like.rules import Rules
from tar_like.wire import COMPLETE, Failure, Status

RANGE = 1024
"""Entries that are put in place as one task."""
INLINE = 5000
"""Transfers of fewer entries are committed in one process."""


def run_commit(destination: Destination, transfer_id: str, token: str, jobs: int) -> None:
    """Commit a transfer; how it ended is in files. Returns when it is complete or cannot go on."""
    path = destination.transfer(transfer_id)
    try:
        lock = _take_lock(path)
    except FileNotFoundError:
        return  # complete meanwhile
    try:
        outcome = attempt(lambda: _await_copies(path))
        with held(os.path.join(destination.home, COMMIT_LOCK)):
            if not os.path.exists(path):
                return  # a patch, and another tree was committed meanwhile
            keep_room(path, COMMIT)
            outcome = outcome or attempt(lambda: _commit(destination, transfer_id, jobs))
            if outcome is not None:
                write_outcome(path, COMMIT, replace(outcome, token=token))
    finally:
        os.close(lock)


def _await_copies(path: str) -> None:
    """Wait until what is copied beside the blocks is there; or is left, to be copied here."""
    with contextlib.suppress(FileNotFoundError), held(os.path.join(path, LAYING_LOCK)):
        pass


def _take_lock(path: str) -> int:
    fd = open_file(os.path.join(path, COMMIT_LOCK), os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.stat(os.path.join(path, "plan.db"))
    return fd


def _commit(destination: Destination, transfer_id: str, jobs: int) -> Outcome | None:
    path = destination.transfer(transfer_id)
    name = broken(path)
    if name:
        sys.stderr.write(f"tar-like: {text_of(name)}\n")
    if name or is_outdated(path):
        destination.discard(path)
        return None  # whoever waits finds no such transfer; a sender that runs again offers it
    with contextlib.closing(_Commit(destination, transfer_id, jobs)) as commit:
        return commit.run()


_LOST = "DELETE FROM main.landed WHERE entry_id = ?"
_SHARING = (
    "SELECT entry_id, digest FROM {0} l WHERE EXISTS (SELECT 1 FROM {0} o "
    "WHERE o.ino = l.ino AND o.entry_id < l.entry_id)"
)
_SHARED = "SELECT min(entry_id) FROM {0} GROUP BY ino HAVING count(*) > 1"
Shares = tuple[list[tuple[int, bytes]], list[int]]
"""Entries that share a file with an earlier one, with their digests; and those earlier ones."""
_NAMED = "CREATE TEMP TABLE named (entry_id INTEGER PRIMARY KEY)"
_NAMED_AND_LANDED = "SELECT entry_id, ino FROM named JOIN landed USING (entry_id)"
_VERIFIED = "INSERT INTO verified VALUES (?, ?)"
_DONATED = "INSERT INTO donated VALUES (?, ?)"


class _Commit:
    """One attempt to commit one transfer."""

    def __init__(self, destination: Destination, transfer_id: str, jobs: int) -> None:
        self._destination = destination
        self._id = transfer_id
        self._path = destination.transfer(transfer_id)
        self._index = Index(os.path.join(self._path, "index.db"))
        self._plan = Plan(os.path.join(self._path, "plan.db"), self._index.path)
        self._verified = Verified(self._path)
        self._verified.forget_lost()
        self._receipts = Receipts(os.path.join(self._path, "receipts"))
        small = self._index.entry_count < INLINE and self._plan.bytes < 64 << 20
        self._jobs = 1 if small else jobs
        self._all_jobs = jobs
        self._adoption = Adoption(self._path, destination.donors_folder(transfer_id))
        self._progress = _Progress(self._path)
        self._rules = Rules.read(self._path)
        self._patch = patch_of(self._path)
        self._deleted = self._passed = self._again = 0
        self._undeleted: list[Failure] = []
        self._held = ""
        name = self._rules.snapshot
        meta = {"plan": self._plan.id, "snapshot": name, "landed": self._index.digest}
        self._ledger = NextLedger(destination, self._path, self._patch, meta)
        self._snapshot = Snapshot(destination, self._path, name) if name else None
        self._root = self._snapshot.tree if self._snapshot else destination.root
        """Where the tree is put together."""
        # Open from the start: its sync tells of every write that failed since then.
        self._filesystem = os.open(destination.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close what is open."""
        self._ledger.close()
        os.close(self._filesystem)

    def run(self) -> Outcome | None:
        if self._snapshot is not None and self._snapshot.named:
            self._finish(self._snapshot.failures())
            return None
        self._check_complete()
        with held(os.path.join(self._path, PLAN_LOCK)):
            pass  # blocks that are being taken in are staged now, and none will be any more
        if not self._still_holds():
            begin_anew(self._destination, self._id, self._rules)
            return Outcome(token="")
        if self._snapshot is not None:
            self._snapshot.begin()
        if self._jobs == 1 and not self._destination.donors(self._id):
            self._ledger.begin()  # on a thread: no process is forked here
        with Pool(self._jobs, self._path, self._root) as pool:
            failures = self._source_failures()
            self._lay_rest()
            if not self._verified and (revoked := self._verify(pool)):
                return Outcome(token="", revoked=revoked)
            changed = self._verified.changed()
            failures += self._wrong(changed)
            lost = self._adoption.stage(self._index, self._verified)
            failures += map(self._damaged, lost - set(changed))
            failures += self._apply(pool)
        self._finish(failures)
        return None

    def _lay_rest(self) -> None:
        """Copy what a planning has left of older versions, where it was killed."""
        if self._patch is not None and not self._verified:
            with held(os.path.join(self._path, LAYING_LOCK)):
                lay_rest(self._destination, self._path, self._index, self._plan)

    def _still_holds(self) -> bool:
        """Whether what was found at the destination when this was planned is still there.

        Another transfer may have been committed since. False also where that came between two
        attempts of this one.
        """
        kept = Kept(os.path.join(self._path, "kept.db"))
        try:
            self._passed = kept.passed_count
            if plan_of(self._destination.ledger) in (kept.ledger, self._plan.id):
                return True
            return (
                self._patch is None
                and not self._verified
                and not kept.passed_count
                and kept.holds(self._index.path, self._base)
            )
        finally:
            kept.close()

    @property
    def _base(self) -> str:
        """Where what is kept lies."""
        root = self._destination.root
        return base_of(root, self._path) if self._snapshot else root

    @property
    def _entries(self) -> int:
        """Of the whole tree."""
        return self._index.entry_count if self._patch is None else self._patch.entries

    def _check_complete(self) -> None:
        """Raises Conflict when blocks are missing.

        Once everything was read back and synced, a receipt lost to a power cut is no loss.
        """
        self._receipts.refresh()
        missing = self._plan.block_count - self._receipts.received
        if missing and not self._verified:
            raise Conflict(f"{missing} blocks are missing: send them first.")

    def _source_failures(self) -> list[Failure]:
        return [
            Failure(shown(self._index.entry(entry_id).path), reason(why), source=True)
            for entry_id, why in sorted(self._receipts.omitted_entries().items())
        ]

    def _verify(self, pool: Pool) -> int:
        """Read everything back; returns the number of blocks that had to be revoked."""
        db = self._verified.begin()
        found = read_back(pool.verify(units(self._plan)), self._receipts, _into(db, _VERIFIED))
        changed = found.changed + self._verify_adopted(db)
        if not found.bad_blocks:
            changed += self._verify_local(pool, db)
        self._verified.end(db, changed, self._destination.durability)
        if found.bad_blocks:
            self._revoke(found.bad_blocks)
            return len(found.bad_blocks)
        self._sync_staged()
        self._check_complete()  # a receiver whose sync failed may have voided some
        self._verified.publish(self._destination.durability)
        return 0

    def _verify_adopted(self, db: sqlite3.Connection) -> list[int]:
        """Read donors back; returns adopted files that the index has other digests of."""
        changed = []
        for donor in self._adoption.donors():
            db.execute("CREATE TEMP TABLE donated (entry_id INTEGER PRIMARY KEY, digest BLOB)")
            with Pool(self._all_jobs, donor.path, self._destination.root) as pool:
                results = pool.verify(units(donor.plan))
                found = read_back(results, donor.receipts, _into(db, _DONATED))
            damaged, others = donor.damaged(found.bad_blocks), set(found.changed)
            for donor_entry, entry_id in self._adoption.files(donor):
                if donor_entry in damaged or (
                    donor_entry in others and donor.believes(donor_entry)
                ):
                    continue  # reported when it cannot be staged
                if donor_entry in others:
                    changed.append(entry_id)
                else:
                    query = "INSERT INTO verified SELECT ?, digest FROM donated WHERE entry_id = ?"
                    db.execute(query, (entry_id, donor_entry))
            db.execute("DROP TABLE donated")
            donor.close()
        return changed

    def _verify_local(self, pool: Pool, db: sqlite3.Connection) -> list[int]:
        """Files without blocks of their own: staged from what was here, or twins of others.

        Returns those that are not right, and the twins of files that did not arrive.
        """
        kept = Kept(os.path.join(self._path, "kept.db"))
        try:
            wholes = [Twin(one, one, known) for one, known in kept.whole()]
            twins, lost = [], []
            for row in map(Twin._make, kept.twins()):
                query = "SELECT digest FROM verified WHERE entry_id = ?"
                if db.execute(query, (row.first,)).fetchone() == (row.digest,):
                    twins.append(row)
                else:
                    lost.append(row.entry_id)
        finally:
            kept.close()
        for result in pool.copies(wholes + twins):
            _into(db, _VERIFIED)(result.verified)
            lost += result.changed
        return lost

    def _revoke(self, blocks: list[int]) -> None:
        log = ReceiptLog(os.path.join(self._path, "receipts"))
        log.revoke(
            [
                (block, receipt.epoch)
                for block in sorted(blocks)
                if (receipt := self._receipts.find(block)) is not None
            ]
        )
        log.close()

    def _wrong(self, changed: list[int]) -> Iterator[Failure]:
        """Files that are not what they should be: by the source's fault, or by what was here."""
        with contextlib.closing(Kept(os.path.join(self._path, "kept.db"))) as kept:
            for entry_id in changed:
                path = shown(self._index.entry(entry_id).path)
                if kept.believed(entry_id):
                    self._again += 1
                    text = "its older version is not what it was: run the same again"
                    yield Failure(path, text, source=False)
                else:
                    yield Failure(path, "changed", source=True)

    def _damaged(self, entry_id: int) -> Failure:
        text = "what an earlier run staged of it is damaged: run the same again"
        return Failure(shown(self._index.entry(entry_id).path), text, source=False)

    def _apply(self, pool: Pool) -> list[Failure]:
        applier = Applier(self._path, self._root)
        there = self._patch.folders_there() if self._patch is not None else ()
        directories = Directories(self._path, self._root, there)
        failures = directories.make()
        count = self._index.entry_count
        ranges = ((first, min(first + RANGE, count)) for first in range(0, count, RANGE))
        _remove(self._landed)
        landed = _new_database(self._landed, LANDED)
        landed.execute(_NAMED)
        named = ((one,) for one in self._index.linked())
        landed.executemany("INSERT INTO named VALUES (?)", named)
        attach(landed, os.path.join(self._path, "kept.db"), "kept")
        landed.execute("INSERT INTO main.landed SELECT * FROM kept.landed")
        for applied in pool.apply(ranges):
            _insert(landed, applied.landed)
            landed.executemany(_LOST, ((one,) for one in applied.lost))
            named = ((one,) for one in applied.named)
            landed.executemany("INSERT OR IGNORE INTO named VALUES (?)", named)
            failures += applied.failures
            self._deleted += applied.deleted
            self._progress.add(applied.count)
        apart = applier.separate(*(_merged if self._snapshot else _joined)(landed))
        _insert(landed, apart.landed)
        landed.executemany(_LOST, ((one,) for one in apart.lost))
        failures += apart.failures
        linked = applier.link_hard_links(self._not_landed(landed))
        failures += linked.failures
        self._deleted += linked.deleted
        if self._rules.delete:
            self._delete(failures)
        _refresh_named(applier, landed)
        failures += directories.finish()
        landed.execute("COMMIT")
        landed.close()
        return failures

    def _delete(self, failures: list[Failure]) -> None:
        """Remove what the index lacks; nothing unless all else went well."""
        self._held = reason_to_hold(self._index, self._rules)
        if failures and not self._held and not self._rules.ignore_errors:
            self._held = f"{counted(len(failures), 'entry')} could not be put in place"
        if self._held:
            return
        spared = self._destination.snapshots()
        deletion = Deletion(self._destination.root, self._index, self._rules, spared)
        with contextlib.closing(deletion):
            if self._patch is not None:
                deletion.remove(self._patch.gone())
            else:
                deletion.extras()
        self._deleted += deletion.deleted
        self._undeleted = deletion.failures

    def _not_landed(self, landed: sqlite3.Connection) -> set[int]:
        """Files with further names that are not in place themselves."""
        query = "SELECT 1 FROM landed WHERE entry_id = ?"
        return {
            entry_id
            for entry_id in self._index.linked()
            if self._index.entry(entry_id).kind == FILE
            and landed.execute(query, (entry_id,)).fetchone() is None
        }

    @property
    def _landed(self) -> str:
        """The file that says what has got its name."""
        return os.path.join(self._path, "landed.db")

    def _finish(self, failures: list[Failure]) -> None:
        """Names are in place: sync, then say so."""
        self._sync()
        if self._snapshot is not None:
            if not self._snapshot.named:
                self._snapshot.publish(failures)
            self._sync()
            self._snapshot.switch()
            self._sync()
        before = version_of(self._destination.ledger)
        if self._patch is None or self._patch.fits(self._destination.ledger):
            self._ledger.publish(self._landed)  # else it was published before a crash
        folder = self._destination.temporary()
        for transfer_id in (self._id, *([self._patch.tree] if self._patch else ())):
            report = os.path.join(folder, "report.json")
            with open(report, "wb") as file:
                file.write(self._report(failures)._replace(id=transfer_id).to_json())
            self._destination.durability.publish(report, self._destination.report(transfer_id))
        changes = self._changes()
        for path in self._destination.unfinished():
            if path != self._path and is_patch(path):
                self._destination.discard(path)  # a difference to what there is no more
        self._destination.discard(self._path)
        # It is complete, and whoever waits for it knows: the rest is for those who come later.
        self._destination.drop_old_reports()
        self._destination.discard(self._destination.donors_folder(self._id))
        self._destination.discard(folder)
        if changes is not None:
            # Whatever goes wrong, the next look takes longer, no more.
            with contextlib.suppress(OSError, ValueError, struct.error, sqlite3.Error):
                carry_over(self._destination, before, changes())

    def _changes(self) -> Callable[[], Changes] | None:
        """What this has changed in the directories of which something is remembered."""
        if self._patch is None:
            return None
        try:
            return self._patch.changes(self._landed)
        except (OSError, sqlite3.Error):
            return None

    def _report(self, failures: list[Failure]) -> Status:
        count = self._plan.block_count
        return Status(
            id=self._id,
            state=COMPLETE,
            block_size=self._plan.block_size,
            blocks=count,
            received=count,
            durable=count if self._destination.durability.lasts else 0,
            bytes=self._plan.bytes,
            files=self._plan.files,
            entries=self._entries,
            committed=self._entries - len(failures),
            passed=self._passed,
            again=self._again,
            deleted=self._deleted,
            rules=self._rules.to_json(),
            held=self._held,
            failures=(*failures, *self._undeleted),
        )

    def _sync_staged(self) -> None:
        """Raises OSError; what was staged since the last checkpoint must be sent again then."""
        try:
            self._sync()
        except OSError:
            distrust(self._destination)
            raise

    def _sync(self) -> None:
        self._destination.durability.filesystem(self._filesystem)


class _Progress:
    """A number in a file, for whoever wants to see how far a commit is."""

    def __init__(self, path: str) -> None:
        self._path = os.path.join(path, "progress")
        self._count = 0
        self._last = 0.0

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._last > 0.2:
            self._last = time.monotonic()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with contextlib.suppress(OSError), open(open_file(self._path, flags), "wb") as file:
                file.write(str(self._count).encode())


def _into(db: sqlite3.Connection, insert: str) -> Callable[[list[tuple[int, bytes]]], object]:
    """Something that takes verified files into a table."""
    return lambda rows: db.executemany(insert, rows)


def _insert(db: sqlite3.Connection, landed: list[tuple[int, bytes, int, int]]) -> None:
    db.executemany("INSERT OR REPLACE INTO main.landed VALUES (?, ?, ?, ?)", landed)


def _merged(landed: sqlite3.Connection) -> Shares:
    """What shares a file, although it is no hard link."""
    landed.execute("CREATE INDEX main.by_ino ON landed (ino, entry_id)")
    return _shares(landed, "main.landed")


def _joined(landed: sqlite3.Connection) -> Shares:
    """The same where nothing is shared: of files that somebody else has given several names."""
    landed.execute(
        "CREATE TEMP TABLE several AS SELECT landed.* FROM named JOIN main.landed USING (entry_id)"
    )
    landed.execute("CREATE INDEX temp.several_by_ino ON several (ino, entry_id)")
    return _shares(landed, "several")


def _shares(landed: sqlite3.Connection, table: str) -> Shares:
    shared = landed.execute(_SHARED.format(table))
    return landed.execute(_SHARING.format(table)).fetchall(), [first for (first,) in shared]


def _refresh_named(applier: Applier, landed: sqlite3.Connection) -> None:
    """Take the fingerprints of files with several names again: a name more or less changes them."""
    landed.execute(f"CREATE TEMP TABLE renewed AS {_NAMED_AND_LANDED}")
    rows = landed.execute("SELECT entry_id, ino FROM renewed")
    for entry_id, ino in rows:
        with contextlib.suppress(OSError):
            ctime = applier.ctime(entry_id, ino)
            if ctime is not None:
                query = "UPDATE landed SET ctime = ? WHERE entry_id = ?"
                landed.execute(query, (ctime, entry_id))


def _new_database(path: str, table: str) -> sqlite3.Connection:
    db = scratch(path)
    db.execute(table)
    return db


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
