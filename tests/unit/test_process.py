"""Memory that processes keep."""

from __future__ import annotations

import os
import resource

from tar_like.process import large_buffer


def test_a_large_buffer_is_zeros_and_can_be_written_to() -> None:
    buffer = large_buffer(5000)
    assert bytes(buffer) == bytes(5000)
    buffer[1000:1003] = b"abc"
    assert bytes(buffer[999:1004]) == b"\0abc\0"
    assert len(large_buffer(0)) <= 1


def test_what_a_child_writes_is_its_own() -> None:
    buffer = large_buffer(5000)
    pid = os.fork()
    if pid == 0:
        buffer[0] = 1
        os._exit(buffer[0])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert buffer[0] == 0


def test_a_large_buffer_takes_memory_only_when_it_is_used() -> None:
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak()
    buffer = large_buffer(1 << 30)
    buffer[0] = 1
    assert peak() - before < 64 << 10  # KiB
