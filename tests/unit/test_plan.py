"""The plan against a model that knows where each byte is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tar_like.errors import IndexInvalid
from tar_like.index import Index
from tar_like.layout import GRAIN, PAGE, Entry, Extent, Piece
from tar_like.plan import Plan, build_plan, build_whole_plan
from tar_like.proxy.verify import units
from tests.unit.indexes import Segment, edit, file, folder, numbered, root, write

SIZES = st.one_of(
    st.integers(0, 3 * PAGE),
    st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 4 * PAGE, 5 * PAGE + 3]),
)


@dataclass(frozen=True)
class Case:
    """Files, which of them the receiver lacks, and the parts of them that hold data."""

    sizes: tuple[int, ...]
    lacking: tuple[bool, ...]
    data: tuple[tuple[tuple[int, int], ...] | None, ...]
    """Segments of sparse files; None for a file without holes."""
    pages: int

    @property
    def entries(self) -> list[Entry]:
        return numbered(
            [root(), *(file(b"%03d" % n, size) for n, size in enumerate(self.sizes)), folder(b"z")]
        )

    @property
    def segments(self) -> list[Segment]:
        return [
            (n, start, stop)
            for n, ranges in enumerate(self.data, 1)
            if ranges is not None
            for start, stop in ranges or ((0, 0),)
        ]

    def bytes_of_plan(self) -> list[tuple[int, int] | None]:
        """(entry, place in its file) of each byte of the plan; None for padding."""
        found: list[tuple[int, int] | None] = []
        for n, (size, lacking, ranges) in enumerate(
            zip(self.sizes, self.lacking, self.data, strict=True), 1
        ):
            if not lacking or not size:
                continue
            for start, stop in ((0, size),) if ranges is None else ranges:
                length = stop - start
                found += [None] * (-len(found) % GRAIN)
                if length >= PAGE or len(found) % PAGE + length > PAGE:
                    found += [None] * (-len(found) % PAGE)
                found += [(n, at) for at in range(start, stop)]
        return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(SIZES, max_size=8))
    data = []
    for size in sizes:
        pages = draw(st.sets(st.integers(0, max(0, size - 1) // PAGE))) if size else set()
        holes = draw(st.integers(0, 2)) == 0
        data.append(tuple(joined(sorted(pages), size)) if holes and size else None)
    lacking = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    if draw(st.booleans()):
        lacking = [True] * len(sizes)
    return Case(tuple(sizes), tuple(lacking), tuple(data), draw(st.integers(1, 4)))


def joined(pages: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Pages that hold data as the longest ranges there are."""
    for _, group in groupby(enumerate(pages), key=lambda pair: pair[1] - pair[0]):
        run = [page for _, page in group]
        yield run[0] * PAGE, min((run[-1] + 1) * PAGE, size)


@contextmanager
def planned(case: Case) -> Iterator[Plan]:
    directory = Path(tempfile.mkdtemp(prefix="tar-like-plan-"))
    try:
        write(directory / "index.db", case.entries, segments=case.segments)
        with Index(str(directory / "index.db")) as index:
            lacking = [entry for entry in case.entries[1:-1] if case.lacking[entry.id - 1]]
            build_plan(index, lacking, str(directory / "plan.db"), case.pages * PAGE)
        plan = Plan(str(directory / "plan.db"), str(directory / "index.db"))
        try:
            yield plan
        finally:
            plan.close()
    finally:
        shutil.rmtree(directory)


def extents_of(model: list[tuple[int, int] | None], start: int, stop: int) -> list[Extent]:
    """The longest runs of one file's bytes in a range of the plan."""
    found: list[Extent] = []
    for at in range(start, min(stop, len(model))):
        here = model[at]
        if here is None:
            continue
        entry_id, position = here
        last = found[-1] if found else None
        if (
            last is not None
            and last.entry_id == entry_id
            and last.stop == position
            and last.offset + last.stop - last.start == at
        ):
            found[-1] = last._replace(stop=position + 1)
        else:
            found.append(Extent(at, entry_id, position, position + 1))
    return found


@settings(max_examples=80)
@given(cases())
def test_each_block_has_the_bytes_that_the_model_has_there(case: Case) -> None:
    model = case.bytes_of_plan()
    entries = case.entries
    with planned(case) as plan:
        assert plan.length == len(model)
        assert plan.bytes == sum(byte is not None for byte in model)
        assert plan.files == sum(case.lacking)
        size = plan.block_size
        assert size == case.pages * PAGE
        assert plan.block_count == len(range(0, len(model), size))
        for number in range(plan.block_count):
            expected = extents_of(model, number * size, (number + 1) * size)
            assert plan.extents(number) == expected
            assert plan.pieces(number) == [
                Piece(
                    extent.entry_id,
                    entries[extent.entry_id].path,
                    extent.start,
                    extent.stop,
                    entries[extent.entry_id].size,
                    entries[extent.entry_id].mtime,
                    b"",
                    entries[extent.entry_id].ctime,
                )
                for extent in expected
            ]


@settings(max_examples=40)
@given(cases(), st.data())
def test_any_range_has_the_bytes_that_the_model_has_there(case: Case, data: st.DataObject) -> None:
    model = case.bytes_of_plan()
    with planned(case) as plan:
        for _ in range(5):
            start = data.draw(st.integers(0, len(model)))
            stop = data.draw(st.integers(start + 1, len(model) + 10))
            expected = extents_of(model, start, stop)
            assert list(plan.extents_between(start, stop)) == expected
            found = [(p.entry_id, p.start, p.stop) for p in plan.pieces_between(start, stop)]
            assert found == [(e.entry_id, e.start, e.stop) for e in expected]


@settings(max_examples=40)
@given(cases())
def test_no_page_of_a_file_is_in_two_blocks_of_a_plan(case: Case) -> None:
    blocks: dict[tuple[int, int], set[int]] = {}
    for at, byte in enumerate(case.bytes_of_plan()):
        if byte is not None:
            page = (byte[0], byte[1] // PAGE)
            blocks.setdefault(page, set()).add(at // (case.pages * PAGE))
    assert all(len(found) == 1 for found in blocks.values())


@given(cases())
def test_every_lacking_file_is_listed(case: Case) -> None:
    sent = {byte[0] for byte in case.bytes_of_plan() if byte is not None}
    with planned(case) as plan:
        wanted = [number for number, lacking in enumerate(case.lacking, 1) if lacking]
        assert list(plan.lacking()) == wanted
        assert list(plan.bare()) == [number for number in wanted if number not in sent]


@given(cases(), st.sampled_from([1, PAGE, 3 * PAGE, 1 << 40]))
def test_a_plan_is_cut_where_files_begin(case: Case, step: int) -> None:
    starts: dict[int, int] = {}
    for at, byte in enumerate(case.bytes_of_plan()):
        if byte is not None:
            starts.setdefault(byte[0], at)
    with planned(case) as plan:
        cuts = list(plan.file_starts(step))
        assert cuts == sorted(set(cuts) & set(starts.values()))
        assert cuts[:1] == sorted(starts.values())[:1]
        assert all(after - before >= step for before, after in pairwise(cuts))
        for start in starts.values():  # none was passed that should have been taken
            assert start in cuts or start - max(cut for cut in cuts if cut < start) < step
        parts = list(units(plan))
        assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
        assert [part.stop for part in parts[-1:]] == [plan.length][: len(parts)]
        extents = [e for part in parts for e in plan.extents_between(part.start, part.stop)]
        assert extents == list(plan.extents_between(0, plan.length))


def test_many_small_files_are_cut_by_their_number() -> None:
    count = 4500
    case = Case((1,) * count, (True,) * count, (None,) * count, 1)
    with planned(case) as plan:
        cuts = list(plan.file_starts(1 << 40))
        assert cuts == [0, 2000 * GRAIN, 4000 * GRAIN]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A plan and its index."""
    index, plan = tmp_path / "index.db", tmp_path / "plan.db"
    write(index, [root(), file(b"a", 5000)])
    with Index(str(index)) as opened:
        build_plan(opened, [opened.entry(1)], str(plan), PAGE)
    return plan, index


def test_a_plan_of_another_index_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    write(other, [root(), file(b"a", 5001)])
    Plan(str(files[0]), str(files[1])).close()
    with pytest.raises(IndexInvalid, match="another index"):
        Plan(str(files[0]), str(other))


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version=1",
        "PRAGMA application_id=1",
        "DELETE FROM meta",
        "DELETE FROM meta WHERE key = 'index'",
        "DROP TABLE meta",
    ],
)
def test_a_file_that_is_no_plan_is_refused(files: tuple[Path, Path], statement: str) -> None:
    with edit(files[0]) as db:
        db.execute(statement)
    with pytest.raises(IndexInvalid):
        Plan(str(files[0]), str(files[1]))


@pytest.mark.parametrize("content", [None, b"", b"no database" * 500])
def test_a_plan_that_cannot_be_read_is_refused(
    files: tuple[Path, Path], content: bytes | None
) -> None:
    files[0].unlink()
    if content is not None:
        files[0].write_bytes(content)
    with pytest.raises(IndexInvalid):
        Plan(str(files[0]), str(files[1]))


def test_a_plan_lies_under_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "a?b#c%41 \udcff"
    directory.mkdir()
    index, path = directory / "i?.db", directory / "p#.db"
    write(index, [root(), file(b"a", 5000)])
    with Index(str(index)) as opened:
        build_plan(opened, [opened.entry(1)], str(path), PAGE)
    plan = Plan(str(path), str(index))
    assert plan.block_count == 2
    plan.close()


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=12), st.integers(1, 3))
def test_a_whole_plan_has_every_file_but_those_left_out(
    files: list[tuple[int, bool]], pages: int
) -> None:
    entries = numbered([root(), *(file(b"%03d" % n, one[0]) for n, one in enumerate(files))])
    without = {n for n, (_, left_out) in enumerate(files, 1) if left_out}
    with tempfile.TemporaryDirectory() as folder:
        index_path, path = f"{folder}/index", f"{folder}/plan"
        write(Path(index_path), entries)
        with Index(index_path) as index:
            assert build_whole_plan(index, path, pages * PAGE, without)
        plan = Plan(path, index_path)
        sent = [one for one in entries[1:] if one.id not in without]
        assert list(plan.lacking()) == [one.id for one in sent]
        assert list(plan.bare()) == [one.id for one in sent if not one.size]
        pieces = [piece for n in range(plan.block_count) for piece in plan.pieces(n)]
        lengths = {one.id: 0 for one in sent}
        for piece in pieces:
            lengths[piece.entry_id] += piece.stop - piece.start
        assert lengths == {one.id: one.size for one in sent}
        assert (plan.bytes, plan.files) == (sum(lengths.values()), len(sent))
        plan.close()
