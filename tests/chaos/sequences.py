"""Random sequences over two proxies of one destination, and two trees on their way to it.

    offer, negotiate, put (any order, twice, through either proxy, damaged, from a source that has
    changed meanwhile), checkpoint, a sync that fails, a restart in peace or by kill -9, another
    boot, a byte that rots in staging, expire, commit

After every step a model says what must hold: what was acknowledged is received, unless something
happened that may take it back; what is durable stays; both proxies and a fresh process see the
same; what has a receipt is staged; what bears a name is whole; what is complete is there.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tar_like.errors import BlockInvalid, Conflict, NotFound, ReceiverFailed
from tar_like.index import BuildOptions, build_index
from tar_like.layout import Extent
from tar_like.plan import Plan
from tar_like.proxy import durable, ledger, receipts, verified
from tar_like.proxy.commit import run_commit
from tar_like.proxy.expire import expire
from tar_like.proxy.offer import offer
from tar_like.proxy.place import Destination
from tar_like.proxy.receipts import Receipts
from tar_like.proxy.transfer import Transfer
from tar_like.proxy.transfers import Transfers
from tar_like.source.folder import FolderSource
from tar_like.upload.block import BlockMaker, Compressor
from tests.chaos import scene
from tests.chaos.scene import Broken
from tests.trees import visible_files
from tests.unit.receiver import in_child

STEPS = 25
TREES = st.sampled_from("AB")
PROXIES = st.integers(0, 1)
LONG = 3600.0


def run(count: int, dice: random.Random) -> dict[str, object]:
    """So many sequences. Raises what hypothesis makes of a broken promise: the shortest one."""
    with tempfile.TemporaryDirectory(prefix="tar-like-sequences-", dir=scene.memory()) as name:
        trees = {key: Tree(Path(name), key, dice) for key in "AB"}
        steps: Counter[str] = Counter()

        class Bound(Machine):
            world = Path(name)
            sent = trees
            counted = steps

        hypothesis.seed(dice.randrange(1 << 32))(Bound)
        run_state_machine_as_test(
            Bound,
            settings=settings(
                max_examples=count,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
        return {"sequences": steps.pop("sequences"), "steps": sum(steps.values()), **steps}


class Tree:
    """A tree, its index with hashes, and itself after one file has changed unnoticed."""

    def __init__(self, work: Path, key: str, dice: random.Random) -> None:
        self.folder, self.changed = work / key, work / f"{key}-changed"
        self.index = work / f"{key}.db"
        (self.folder / "d").mkdir(parents=True)
        same, other = random.Random("same"), random.Random(f"{key} {dice.random()}")
        (self.folder / "same").write_bytes(same.randbytes(6000))
        (self.folder / "d/large").write_bytes(other.randbytes(11000))
        (self.folder / "small").write_bytes(other.randbytes(700))
        (self.folder / "empty").touch()
        (self.folder / "link").symlink_to("same")
        if key == "A":
            (self.folder / "other").symlink_to("small")
            os.link(self.folder / "small", self.folder / "d/linked")
        else:
            (self.folder / "other").write_bytes(other.randbytes(5000))
        for path in self.folder.rglob("*"):
            os.utime(path, ns=(10**18, 10**18 + (0 if path.name == "same" else ord(key))),
                     follow_symlinks=False)  # fmt: skip
        shutil.copytree(self.folder, self.changed, symlinks=True)
        large = self.changed / "d/large"
        times = large.stat().st_atime_ns, large.stat().st_mtime_ns
        large.write_bytes(bytes(large.stat().st_size))
        os.utime(large, ns=times)
        reader = FolderSource(str(self.folder))
        options = BuildOptions(algorithm="blake3", fresh=True, jobs=1)
        self.id = build_index(reader, str(self.index), options).id
        reader.close()
        self.files = visible_files(self.folder)
        self._made: dict[object, tuple[bytes, bytes]] = {}

    def block(self, plan: Plan, number: int, *, changed: bool) -> tuple[bytes, bytes]:
        """A block's digest and body."""
        pieces = plan.pieces(number)
        key = (changed, plan.block_size, *((one.path, one.start, one.stop) for one in pieces))
        if key not in self._made:
            source = FolderSource(str(self.changed if changed else self.folder))
            made = BlockMaker(source, plan.block_size).make(pieces, Compressor("none"))
            source.close()
            self._made[key] = made.digest, b"".join(bytes(part) for part in made.body)
        return self._made[key]


@dataclass
class Believed:
    """What must be true of a transfer."""

    offered: bool = False
    acknowledged: set[int] = field(default_factory=set)
    rotten: set[int] = field(default_factory=set)
    changed: bool = False
    """Bytes of the changed source were sent."""


class Inline:
    """Starts what a proxy asks for at once, in a child, and waits for its end."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def commit(self, transfer_id: str, token: str) -> None:
        if in_child(lambda: run_commit(self._destination, transfer_id, token, 1)):
            raise Broken("a commit crashed")

    def plan(self, transfer_id: str, token: str, wish: str) -> None:
        raise AssertionError("nobody asks for it here")


class Machine(RuleBasedStateMachine):
    """One sequence."""

    world: Path
    sent: dict[str, Tree]
    counted: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.counted["sequences"] += 1
        self.dest = Path(tempfile.mkdtemp(dir=self.world))
        self.destination = Destination(str(self.dest))
        self.destination.prepare()
        self.believed = {key: Believed() for key in self.sent}
        self.boots = 0
        self.patches = contextlib.ExitStack()
        self.proxies: list[Transfers] = []

    @initialize(key=TREES, size=st.sampled_from((4096, 8192)), whole=st.booleans())
    def begin(self, key: str, size: int, whole: bool) -> None:
        self.proxies = [self._proxy(), self._proxy()]
        self.offer(key)
        self.negotiate(key, 0, size)
        if whole:
            self.put_all(key, 1)

    @property
    def offered(self) -> bool:
        return any(one.offered for one in self.believed.values())

    def teardown(self) -> None:
        for proxy in self.proxies:
            _let_go(proxy)
        self.patches.close()
        shutil.rmtree(self.dest)

    def _proxy(self) -> Transfers:
        return Transfers(self.destination, Inline(self.destination))

    # What senders do

    @rule(key=TREES)
    def offer(self, key: str) -> None:
        """Offered again, it keeps what arrived."""
        self.counted["offer"] += 1
        folder = self.destination.temporary()
        shutil.copyfile(self.sent[key].index, os.path.join(folder, "index.db"))
        offer(self.destination, self.sent[key].id, folder)
        self.destination.discard(folder)
        self.believed[key].offered = True

    @rule(key=TREES, which=PROXIES, size=st.sampled_from((4096, 8192)))
    @precondition(lambda self: self.offered)
    def negotiate(self, key: str, which: int, size: int) -> None:
        transfer = self._get(key, which)
        if transfer is not None:
            self.counted["negotiate"] += 1
            transfer.negotiate(size)

    @rule(key=TREES, which=PROXIES, where=st.integers(0, 9), changed=st.sampled_from((0, 0, 0, 1)))
    @precondition(lambda self: self.offered)
    def put(self, key: str, which: int, where: int, changed: int) -> None:
        self._put(key, which, where, changed=bool(changed))

    @rule(key=TREES, which=PROXIES)
    @precondition(lambda self: self.offered)
    def put_all(self, key: str, which: int) -> None:
        for number in range(10):
            self._put(key, (which + number) % 2, number, changed=False)

    def _put(self, key: str, which: int, where: int, *, changed: bool) -> None:
        transfer = self._get(key, which)
        plan = self._plan(transfer)
        if transfer is None or plan is None or not plan.block_count:
            return
        where %= plan.block_count
        self.counted["put"] += 1
        believed = self.believed[key]
        digest, body = self.sent[key].block(plan, where, changed=changed)
        different = self.sent[key].block(plan, where, changed=not changed)[0] != digest
        believed.changed |= changed and different
        try:
            new = transfer.receive(where, memoryview(body), digest)
        except Conflict:
            if not (believed.changed or where in believed.rotten):
                raise Broken("the same bytes were a conflict") from None
            self.counted["conflict"] += 1
            return
        if not new and where not in self._fresh(key).blocks():
            raise Broken("called known, and there is no receipt")
        if new:
            believed.rotten.discard(where)
        believed.acknowledged.add(where)

    @rule(key=TREES, which=PROXIES, where=st.integers(0, 9), bit=st.integers(0, 10**6))
    @precondition(lambda self: self.offered)
    def put_damaged(self, key: str, which: int, where: int, bit: int) -> None:
        transfer = self._get(key, which)
        plan = self._plan(transfer)
        if transfer is None or plan is None or not plan.block_count:
            return
        where %= plan.block_count
        self.counted["put_damaged"] += 1
        digest, body = self.sent[key].block(plan, where, changed=False)
        flipped = bytearray(body)
        flipped[bit // 8 % len(body)] ^= 1 << bit % 8
        try:
            transfer.receive(where, memoryview(flipped), digest)
        except BlockInvalid:
            return
        raise Broken("a damaged block was taken in")

    @rule(key=TREES, which=PROXIES)
    @precondition(lambda self: self.offered)
    def commit(self, key: str, which: int) -> None:
        transfer = self._get(key, which)
        if transfer is None:
            return
        believed, plan = self.believed[key], self._plan(transfer)
        missing = plan is None or self._fresh(key).received < plan.block_count
        try:
            status = self.proxies[which].commit(self.sent[key].id)
        except Conflict:
            if not missing:
                raise
            return
        if plan is None and status.state == "open":
            return
        if missing:
            raise Broken("committed with blocks missing")
        if status.revoked:
            self.counted["revoked"] += 1
            if status.revoked > len(believed.rotten):
                raise Broken(f"{status.revoked} blocks revoked, {believed.rotten} rotten")
            believed.acknowledged -= believed.rotten
            believed.rotten.clear()
            return
        if status.state != "complete":
            raise Broken(f"neither complete nor anything else: {status}")
        if believed.rotten:
            raise Broken("rotten blocks were committed")
        self.counted["complete"] += 1
        self._check_complete(key, {one.path for one in status.failures})

    def _check_complete(self, key: str, failures: set[str]) -> None:
        allowed = {"d/large"} if self.believed[key].changed else set()
        if failures - allowed:
            raise Broken(f"not in place without a cause: {failures}")
        self.believed[key] = Believed()
        found = visible_files(self.dest)
        for path, content in self.sent[key].files.items():
            if os.fsdecode(path) not in failures and found.get(path) != content:
                raise Broken(f"complete, and {path!r} is not there")

    # What happens to receivers

    @rule(which=PROXIES)
    @precondition(lambda self: self.offered)
    def checkpoint(self, which: int) -> None:
        self.counted["checkpoint"] += 1
        for transfer in list(self.proxies[which]._open.values()):
            if transfer.alive:
                transfer.checkpoint()

    @rule(which=PROXIES)
    @precondition(lambda self: self.offered)
    def fail_to_sync(self, which: int) -> None:
        live = [one for one in self.proxies[which]._open.values() if one.alive and one._intake._log]
        if not live:
            return
        self.counted["fail_to_sync"] += 1
        self._keep_durable()
        with mock.patch.object(durable, "sync_filesystem", side_effect=OSError(5, "EIO")):
            try:
                live[0].checkpoint()
            except ReceiverFailed:
                return
        raise Broken("a failed sync went unnoticed")

    @rule(which=PROXIES, peace=st.booleans())
    def restart(self, which: int, peace: bool) -> None:
        self.counted["restart"] += 1
        if peace:
            self.proxies[which].close()
        else:
            _let_go(self.proxies[which])
        self.proxies[which] = self._proxy()

    @rule(often=st.integers(0, 3))
    @precondition(lambda self: self.offered)
    def boot(self, often: int) -> None:
        """All die, and the machine starts again: what no checkpoint covers does not count."""
        if often != 3:
            return
        self.counted["boot"] += 1
        self._keep_durable()
        for proxy in self.proxies:
            _let_go(proxy)
        self.boots += 1
        host = durable.machine().partition(b"\0")[0]
        for module in (durable, receipts, ledger, verified):
            name = b"%s\0boot %d" % (host, self.boots)
            self.patches.enter_context(mock.patch.object(module, "machine", lambda it=name: it))
        self.proxies = [self._proxy(), self._proxy()]

    def _keep_durable(self) -> None:
        for key, believed in self.believed.items():
            if believed.offered:
                believed.acknowledged &= set(self._fresh(key).durable_blocks())

    @rule(key=TREES, where=st.integers(0, 9), byte=st.integers(0, 10**5))
    @precondition(lambda self: self.offered)
    def rot(self, key: str, where: int, byte: int) -> None:
        """A byte of a received block changes in staging."""
        plan = self._plan(self._get(key, 0))
        received = sorted(self._fresh(key).blocks()) if plan is not None else []
        if plan is None or not received:
            return
        where = received[where % len(received)]
        extents = plan.extents(where)
        extent = extents[byte % len(extents)]
        staged = self._staged(key, extent)
        if where in self.believed[key].rotten or not staged.exists():
            return
        self.counted["rot"] += 1
        at = extent.start + byte % (extent.stop - extent.start)
        with staged.open("r+b") as file:
            found = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([found[0] ^ 1]), at)
        self.believed[key].rotten.add(where)

    @rule(key=TREES, old=st.booleans())
    @precondition(lambda self: self.offered)
    def expire(self, key: str, old: bool) -> None:
        folder = self._folder(key)
        if not folder.exists():
            return
        self.counted["expire"] += 1
        if old:
            then = time.time() - 2 * LONG
            for path in folder.rglob("*"):
                os.utime(path, (then, then))
        gone = {one.id for one in expire(self.destination, LONG)}
        if gone != ({self.sent[key].id} if old else set()):
            raise Broken(f"expired: {gone}")
        if old:
            self.believed[key] = Believed()

    # What must hold

    @invariant()
    def everybody_sees_the_same(self) -> None:
        for key, believed in self.believed.items():
            if not believed.offered:
                continue
            fresh = self._fresh(key)
            received, durably = set(fresh.blocks()), set(fresh.durable_blocks())
            if durably - received:
                raise Broken(f"durable, and not received: {durably - received}")
            if believed.acknowledged - received:
                raise Broken(f"acknowledged, and forgotten: {believed.acknowledged - received}")
            for which in (0, 1):
                transfer = self._get(key, which)
                if transfer is None:
                    raise Broken("an offered transfer is gone")
                status = transfer.status()
                if (status.received, status.durable) != (len(received), len(durably)):
                    raise Broken(f"proxy {which} says {status}; there are {received}, {durably}")
            self._check_staged(key, fresh)

    def _check_staged(self, key: str, fresh: Receipts) -> None:
        plan = self._plan(self._get(key, 0))
        for block in fresh.blocks():
            assert plan is not None
            if block in self.believed[key].rotten:
                continue
            for extent in plan.extents(block):
                path = self._path(key, extent)
                found = self._staged(key, extent).read_bytes()[extent.start : extent.stop]
                wanted = [
                    (tree / path).read_bytes()[extent.start : extent.stop]
                    for tree in (self.sent[key].folder, self.sent[key].changed)
                ]
                if found != wanted[0] and not (self.believed[key].changed and found == wanted[1]):
                    raise Broken(f"block {block} has a receipt, and other bytes in {path}")

    @invariant()
    def what_bears_a_name_is_whole(self) -> None:
        scene.no_partial_files(self.dest, *(tree.files for tree in self.sent.values()))

    def _folder(self, key: str) -> Path:
        return Path(self.destination.transfer(self.sent[key].id))

    def _fresh(self, key: str) -> Receipts:
        """What a process sees that has just started."""
        found = Receipts(str(self._folder(key) / "receipts"))
        found.refresh()
        return found

    def _get(self, key: str, which: int) -> Transfer | None:
        try:
            return self.proxies[which].get(self.sent[key].id)
        except NotFound:
            return None

    @staticmethod
    def _plan(transfer: Transfer | None) -> Plan | None:
        try:
            return transfer.plan() if transfer is not None else None
        except NotFound:
            return None

    def _staged(self, key: str, extent: Extent) -> Path:
        name = f"{extent.entry_id >> 10:x}/{extent.entry_id:x}"
        return self._folder(key) / "stage" / name

    def _path(self, key: str, extent: Extent) -> str:
        transfer = self._get(key, 0)
        assert transfer is not None
        return os.fsdecode(transfer._index.entry(extent.entry_id).path)


def _let_go(proxy: Transfers) -> None:
    """As kill -9 leaves it: files are closed, and nothing is written."""
    for transfer in proxy._open.values():
        transfer.close()
    proxy._open.clear()
