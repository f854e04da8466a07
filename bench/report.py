"""Samples -> rows -> a Markdown table, and its place in docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.data import Inventory
from bench.measure import Measured, Sample
from bench.works import Comparison, Work

HEAD = (
    "| data | to | tar-like | seconds | against | seconds | ratio | target | |\n"
    "|---|---|---|--:|---|--:|--:|--:|---|\n"
)


@dataclass(frozen=True, slots=True)
class Result:
    """A work and what was measured of it."""

    work: Work
    inventory: Inventory
    filesystem: str
    measured: Measured


def table(results: list[Result]) -> str:
    """The Markdown table: one row a comparison."""
    rows = (_row(result, row) for result in results for row in result.work.comparisons)
    return HEAD + "".join(rows)


def notes(results: list[Result]) -> list[str]:
    """One sentence for each tool that was skipped or failed."""
    said: dict[str, None] = {}
    for result in results:
        for name, reason in result.measured.skipped.items():
            said[f"Skipped {name}: {reason}."] = None
        for name, reason in result.measured.failed.items():
            said[f"Failed {name} ({result.work.key}): {reason.splitlines()[0]}"] = None
    return list(said)


def _row(result: Result, row: Comparison) -> str:
    ours = seconds_of(result.measured, row.subject.name, flushed=False)
    peer_name = "" if row.peer is None else row.peer.name
    theirs = seconds_of(result.measured, peer_name, flushed=row.flushed)
    # Paired round by round, so a slow minute of the machine weighs on both.
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    judged = ratios if row.peer else ours
    cells = [
        str(result.inventory),
        result.filesystem,
        f"`{row.subject.name}`",
        spread(ours),
        _peer(row),
        spread(theirs),
        spread(ratios),
        _target(row),
        _verdict(judged, row.target),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def seconds_of(measured: Measured, name: str, *, flushed: bool) -> list[float]:
    """Wall seconds of every round of a tool, empty when it was not measured."""

    def seconds(sample: Sample) -> float:
        return sample.flushed if flushed else sample.seconds

    return [seconds(sample) for sample in measured.samples.get(name, [])]


def spread(values: list[float]) -> str:
    """Median (min–max); the median alone when there is one value."""
    if not values:
        return "—"
    text = f"{median(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f}–{max(values):.2f})"


def _peer(row: Comparison) -> str:
    if row.peer is None:
        return ""
    return f"`{row.peer.name}`" + (" + `sync -f`" if row.flushed else "")


def _target(row: Comparison) -> str:
    if row.target is None:
        return ""
    return f"≤ {row.target:g}" + ("" if row.peer else " s")


def _verdict(values: list[float], target: float | None) -> str:
    if target is None:
        return ""
    if not values:
        return "not measured"
    return "pass" if median(values) <= target else "**FAIL**"


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->` in `path`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = path.read_text() if path.exists() else f"# Benchmarks\n\n{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no markers {begin} … {end}; add them where the table goes.")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")
