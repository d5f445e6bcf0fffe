"""child.py: who of a process group is left."""

import os
import signal
import time

from faults.child import left_of


def test_who_runs_is_left_and_who_has_ended_is_not() -> None:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    while os.getpgid(pid) != pid:
        time.sleep(0.001)
    (left,) = left_of(pid, wait_s=0.05)
    assert left.startswith(f"{pid} (")
    os.kill(pid, signal.SIGKILL)
    assert left_of(pid) == ()  # nobody has asked how it ended, so it is a zombie
    os.killpg(pid, 0)
    os.waitpid(pid, 0)
    assert left_of(pid) == ()
