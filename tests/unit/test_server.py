"""The receiver's processes, from their first moment on."""

from __future__ import annotations

import os
import signal
import time

from tar_like.proxy.server import _fork
from tests.unit.receiver import in_child


def test_a_signal_at_a_childs_first_moment_is_not_lost() -> None:
    """The parent's own handler raises, and what is raised in a hook of fork is ignored."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def forked() -> None:
        signal.signal(signal.SIGTERM, interrupt)
        os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
        pid = _fork(lambda: time.sleep(60))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()

    assert in_child(forked) == 0
