"""Which processes are running."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskkit.processes import lives, start_of


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process began")
def test_a_process_that_has_ended_does_not_live() -> None:
    me = os.getpid()
    assert lives(me)
    assert lives(me, start_of(me))
    assert not lives(me, "1"), "another one had this id"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(ended.pid), "nobody has asked for its exit code yet"
    ended.wait()
    assert not lives(ended.pid)
    assert lives(9_999_999_999), "no id of a process"
