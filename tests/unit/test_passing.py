"""What came to the destination between the plan and the commit is looked at again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tar_like.rules import Rules
from tar_like.wire import Status
from tests.unit.receiver import Job


@pytest.mark.parametrize("rules", [Rules(update=True), Rules(ignore_existing=True)])
def test_a_file_that_came_meanwhile_stays(work: Path, rules: Rules) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    for name in ("file", "other"):
        (source / name).write_text(f"{name} of the source")
        os.utime(source / name, (1_600_000_000, 1_600_000_000))
    job = Job(source, dest, negotiate=False)
    job.transfer.negotiate(4096, rules)
    job.send()
    (dest / "file").write_text("newer")
    report = job.commit()
    job.close()
    assert isinstance(report, Status)
    assert not report.failures
    assert (dest / "file").read_text() == "newer"
    assert (dest / "other").read_text() == "other of the source"
