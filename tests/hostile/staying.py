"""Programs that kill others, or stay when they should be gone."""

from hostile.parts import ANSWER, LIBC, WRONG

KILLING = {
    "its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)" + WRONG,
    "everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)" + WRONG,
    "every number": """
import os
for pid in range(3, 70000):
    try: os.kill(pid, 9); WORKED = pid != os.getpid()
    except OSError: pass
"""
    + WRONG,
    "a daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(3600)
    os._exit(0)
"""
    + WRONG,
    "ignores signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "outlives its parent": LIBC + "import time; libc.prctl(1, 0)\ntime.sleep(3600)",
    "sleeps through interrupts": """
import time
while True:
    try: time.sleep(3600)
    except BaseException: pass
""",
    "its process group": "import os, signal\nos.killpg(0, signal.SIGKILL)\n" + WRONG,
    "itself, stopped": "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    "time.sleep(3600)",
    "everyone, stopped": "import os, signal, time\nos.kill(-1, signal.SIGSTOP)\n"
    "os.kill(0, signal.SIGTSTP)\ntime.sleep(3600)",
    "catches signals and goes on": """
import signal
for number in range(1, 65):
    try: signal.signal(number, lambda *_: None)
    except (OSError, ValueError): pass
while True: signal.pause()
""",
    "a timer that waits for ever": """
import signal, time
def again(*_):
    signal.setitimer(0, 0.001)
    time.sleep(3600)
signal.signal(signal.SIGALRM, again)
signal.setitimer(0, 0.001)
"""
    + WRONG,
    "a program in its place that waits": "import os, sys\n"
    "os.execv(sys.executable, [sys.executable, '-c', 'while True: pass'])",
    "waits at its exit": "import atexit, sys, time\natexit.register(time.sleep, 3600)\nsys.exit(0)",
    "fork of old": LIBC + "WORKED = libc.syscall(58) >= 0" + ANSWER,
    "clone by its number": LIBC + "WORKED = libc.syscall(56, 17, 0, 0, 0, 0) >= 0" + ANSWER,
    "clone of today": LIBC + "args = (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17)\n"
    "WORKED = libc.syscall(435, args, 64) >= 0" + ANSWER,
    "a spawned program": "import os\n"
    "WORKED = os.posix_spawn('/usr/bin/env', ['env', 'sleep', '3600'], {}) > 0" + ANSWER,
    "a worker process": "import multiprocessing, time\nworker = multiprocessing.Process("
    "target=time.sleep, args=(3600,))\nworker.start()\nWORKED = worker.is_alive()" + ANSWER,
    "a pool": "from concurrent.futures import ProcessPoolExecutor\n"
    "WORKED = ProcessPoolExecutor(2).submit(abs, -1).result(1) == 1" + ANSWER,
    "a child on a terminal": "import pty\nWORKED = pty.fork()[0] >= 0" + ANSWER,
    "a thread of the C library": LIBC + "thread = ctypes.c_ulong()\n"
    "start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: libc.pause())\n"
    "WORKED = libc.pthread_create(ctypes.byref(thread), None, start, None) == 0" + ANSWER,
    "a session of its own": "import os\nos.setsid()\nWORKED = True" + ANSWER,
    "a group of its own": "import os\nos.setpgid(0, 0)\nWORKED = True" + ANSWER,
    "before all others": "import os\nWORKED = os.nice(-5) < 0" + ANSWER,
    "in real time": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n"
    "WORKED = True" + ANSWER,
    "reaps its children's children": LIBC + "WORKED = libc.prctl(36, 1, 0, 0, 0) == 0" + ANSWER,
    "hides from its caller": LIBC + "WORKED = libc.prctl(4, 0, 0, 0, 0) == 0" + ANSWER,
    "lets itself be traced": LIBC + "WORKED = libc.ptrace(0, 0, 0, 0) == 0" + ANSWER,
    "the whole machine": LIBC + "WORKED = libc.reboot(0) == 0" + ANSWER,
}
