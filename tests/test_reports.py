"""The plugin that makes reports over hostile names printable."""

from __future__ import annotations

import pytest

from tests.reports import printable, pytest_report_to_serializable


def test_lone_surrogates_are_escaped_wherever_they_are() -> None:
    value = {"k\udcff": ["a\udcfeb", ("é\n", None, 7, "\ud800")]}
    assert printable(value) == {"k\\udcff": ["a\\udcfeb", ("é\n", None, 7, "\\ud800")]}


def test_what_pytest_made_of_a_report_is_what_is_mended() -> None:
    hook = pytest_report_to_serializable()
    next(hook)
    with pytest.raises(StopIteration) as stop:
        hook.send({"longrepr": "name\udcff"})
    assert stop.value.value == {"longrepr": "name\\udcff"}
