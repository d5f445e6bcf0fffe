"""Programs that try to pass without doing their work, or to do harm. None of them sorts.

Each is a completion for ``sort_numbers(numbers)``. ``{outside}`` is a folder of the caller's that
holds ``secret.txt``, ``{port}`` a port on which the caller listens.
"""

SORT_ASSERTS = [
    "assert sort_numbers([3, 1, 2]) == [1, 2, 3]",
    "assert sort_numbers([2, 2]) == [2, 2]",
    "assert len(sort_numbers([9, 8])) == 2",
    "assert sort_numbers([]) == []",
]
SORT_TEST = "def check(candidate):\n" + "\n".join(
    f"    {line}".replace("sort_numbers", "candidate") for line in SORT_ASSERTS
)

# Once a trick has worked, the program answers rightly, so that a hole shows as a pass.
ANSWER = "\ndef sort_numbers(numbers): return sorted(numbers) if WORKED else None\n"
WRONG = "\ndef sort_numbers(numbers): return None\n"
# A frame of the protocol, with a nonce that is a guess.
FRAME = """
import json, os, struct
def frame(value, nonce=bytes(16)):
    data = json.dumps(["value", value]).encode()
    return struct.pack(">I", len(data)) + nonce + data
def everywhere(data):
    for fd in range(256):
        try: os.write(fd, data)
        except OSError: pass
"""
EQUAL = """
class Equal(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    def __hash__(self): return 0
"""
LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"

LEAVING_EARLY = {
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "sys.exit in the call": "import sys\ndef sort_numbers(numbers): sys.exit(0)",
    "os._exit in the call": "import os\ndef sort_numbers(numbers): os._exit(0)",
    "exit at exit": "import atexit, os, sys; atexit.register(os._exit, 0); sys.exit(0)",
    "SystemExit in a thread": "import threading, sys\nt = threading.Thread(target=sys.exit)\n"
    "t.start(); t.join()\n" + WRONG,
    "killed by its own hand": "import os; os.kill(os.getpid(), 9)",
    "another program": "import os; os.execv('/usr/bin/env', ['env', 'true'])",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "a BaseException": "raise BaseException",
    "an alarm": "import signal; signal.setitimer(0, 0.05)\nwhile True: pass",
}
EQUAL_OBJECTS = {
    "equals everything": EQUAL.replace("BASE", "object")
    + "def sort_numbers(numbers): return Equal()",
    "a list's subclass": EQUAL.replace("BASE", "list")
    + "def sort_numbers(numbers): return Equal()",
    "integers' subclass": EQUAL.replace("BASE", "int")
    + "def sort_numbers(numbers): return [Equal(0) for _ in numbers]",
    "a string's subclass": EQUAL.replace("BASE", "str")
    + "def sort_numbers(numbers): return Equal()",
    "a tuple's subclass": EQUAL.replace("BASE", "tuple")
    + "def sort_numbers(numbers): return Equal()",
    "inside a list": EQUAL.replace("BASE", "object")
    + "def sort_numbers(numbers): return [Equal() for _ in numbers]",
    "poses as a list": EQUAL.replace("BASE", "object")
    + "    __class__ = list\ndef sort_numbers(numbers): return Equal()",
    "a class whose class lies": EQUAL.replace("BASE", "type")
    + "class Result(metaclass=Equal): pass\ndef sort_numbers(numbers): return Result",
    "lies about its items": EQUAL.replace("BASE", "object")
    + "    def __iter__(self): return iter([Equal()])\n    def __len__(self): return 3\n"
    "    def __getitem__(self, key): return Equal()\n    def __bool__(self): return True\n"
    "def sort_numbers(numbers): return Equal()",
    "the function equals everything": EQUAL.replace("BASE", "object")
    + "    def __call__(self, numbers): return self\nsort_numbers = Equal()",
    "replaces builtins": "import builtins\nbuiltins.sorted = builtins.list = builtins.len = "
    "lambda *a: None\nbuiltins.AssertionError = type('E', (Exception,), {})" + WRONG,
}
WALKING = {
    "frames for what is expected": """
import sys
def sort_numbers(numbers):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name in ("expected", "want", "result", "gold"):
                if name in scope: return scope[name]
        frame = frame.f_back
""",
    "frames to the judge's nonce": """
import sys
frame, nonces = sys._getframe(), []
while frame:
    nonces += [v for v in frame.f_locals.values() if isinstance(v, bytes) and len(v) == 16]
    frame = frame.f_back
"""
    + FRAME
    + "for nonce in nonces: everywhere(frame(True, nonce) * 9)"
    + WRONG,
    "garbage collector for check": """
import gc, types
for f in gc.get_objects():
    if isinstance(f, types.FunctionType) and f.__name__ == "check":
        f.__code__ = (lambda candidate: None).__code__
"""
    + WRONG,
    "garbage collector for lists": """
import gc
def sort_numbers(numbers):
    for found in gc.get_objects():
        if type(found) is list and found != numbers and found == sorted(numbers): return found
""",
    "swaps the guest's encoder": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
class Any:
    def __eq__(self, other): return True
wire.encode = lambda value, *rest: ["Any"]
wire.PLAIN.clear(); wire.SCALARS.clear()
"""
    + WRONG,
    "swaps the guest's answers": """
import sys
sys.modules["schemabank.sandbox.guest"].GuestServer.answer = lambda self, request: b'["passed"]'
"""
    + WRONG,
    "jumps to the end of the program": """
import sys
def jump(frame, event, arg):
    try: frame.f_lineno = max(line for *_, line in frame.f_code.co_lines() if line)
    except ValueError: pass
    return jump
sys._getframe().f_trace = jump
sys.settrace(jump)
"""
    + WRONG,
    "traces away assertions": """
import sys
def skip(frame, event, arg):
    if event == "exception": frame.f_lineno += 1
    return skip
sys.settrace(skip)
"""
    + WRONG,
}
FORGING = {
    "prints": "print('passed', flush=True); print('OK')" + WRONG,
    "writes to every descriptor": FRAME + "everywhere(b'passed')" + WRONG,
    "poses as the judge": FRAME + "everywhere(b'R'); everywhere(b'passed')" + WRONG,
    "answers ahead": FRAME + "everywhere(frame(True) + frame({}) * 9)" + WRONG,
    "answers ahead in the call": FRAME
    + "def sort_numbers(numbers):\n    everywhere(frame(['list', *sorted(numbers)]))",
    "answers twice": FRAME
    + """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
once = wire.write_all
def twice(fd, data): once(fd, data); once(fd, data)
wire.write_all = twice
"""
    + WRONG,
    "says a word after the right answer": FRAME
    + "def sort_numbers(numbers):\n    if not numbers: everywhere(b'x')\n"
    "    return sorted(numbers)",
    "claims a reply of 4 GiB": FRAME + "everywhere(b'\\xff' * 4 + bytes(16))" + WRONG,
    "reads the nonce away": """
import os
for fd in range(3, 256):
    try:
        os.set_blocking(fd, False)
        os.read(fd, 65536)
    except OSError: pass
"""
    + WRONG,
    "closes the pipe": "import os; os.closerange(0, 256)" + WRONG,
    "replies with another kind of bytes": """
import sys
wire = sys.modules["schemabank.sandbox.wire"]
wire.to_json = lambda value: b"[[[[" * 9
"""
    + WRONG,
}
READING = {
    "a file of the caller's": "WORKED = 'secret' in open('{outside}/secret.txt').read()" + ANSWER,
    "the folder of the tests": "import os\nWORKED = bool(os.listdir('{tests}'))" + ANSWER,
    "the caller's environment": "import os\nWORKED = 'SCHEMABANK_SECRET' in os.environ" + ANSWER,
    "the environment of every process": """
import glob
WORKED = any(b"SCHEMABANK_SECRET" in open(f, "rb").read() for f in glob.glob("/proc/*/environ"))
"""
    + ANSWER,
    "the memory of every process": """
import glob
WORKED = bool(glob.glob("/proc/*/mem"))
"""
    + ANSWER,
    "the judge's source": "WORKED = bool(open('/sandbox/schemabank/sandbox/judge.py').read())"
    + ANSWER,
    "accounts": "WORKED = bool(open('/etc/passwd').read())" + ANSWER,
}
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
}
EXHAUSTING = {
    "forks": "import os\nwhile True: os.fork()",
    "threads": "import threading, time\nwhile True: "
    "threading.Thread(target=time.sleep, args=(3600,)).start()",
    "memory": "kept = []\nwhile True: kept.append(bytearray(2**24))",
    "one huge block": "kept = bytearray(2**40)" + WRONG,
    "shared memory": LIBC + "WORKED = libc.shmget(0, ctypes.c_size_t(2**30), 0o1600) >= 0" + ANSWER,
    "memory files": "import os\nWORKED = os.memfd_create('x') >= 0" + ANSWER,
    "a file of 10 GiB": """
with open("/tmp/file", "wb") as file:
    for _ in range(10 * 1024): file.write(bytes(2**20))
WORKED = True
"""
    + ANSWER,
    "many large files": """
for number in range(10 * 1024):
    with open(f"/tmp/{number}", "wb") as file: file.write(bytes(2**20))
WORKED = True
"""
    + ANSWER,
    "device memory": """
with open("/dev/shm/file", "wb") as file: file.write(bytes(2**20))
WORKED = True
"""
    + ANSWER,
    "output without end": "while True: print('x' * 2**16)",
    "errors without end": "import sys\nwhile True: sys.stderr.write('x' * 2**16)",
    "a reply without end": "def sort_numbers(numbers):\n    while True: yield 1",
    "a huge reply": "def sort_numbers(numbers): return 'x' * 2**24",
    "a huge number": "def sort_numbers(numbers): return 1 << 2**26",
    "a bottomless list": "def sort_numbers(numbers):\n    numbers.append(numbers)\n"
    "    return numbers",
    "recursion": "def sort_numbers(numbers): return sort_numbers(numbers)",
    "recursion without a limit": "import sys; sys.setrecursionlimit(10**9)\n"
    "def sort_numbers(numbers): return sort_numbers(numbers)",
    "descriptors": "import os\nkept = [os.open('/dev/null', 0) for _ in range(10**6)]" + WRONG,
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n"
    "WORKED = True" + ANSWER,
    "time": "while True: pass",
    "nested brackets": "x = " + "(" * 5000 + ")" * 5000,
}
TAKING_OVER = {
    "rewrites the guest": """
import sys
sys.modules["schemabank.sandbox.guest"].GuestServer.do_run = lambda self, text: True
"""
    + WRONG,
    "speaks the protocol": FRAME
    + """
pipes = []
for fd in range(3, 256):
    try: os.fstat(fd); pipes.append(fd)
    except OSError: pass
requests, replies = pipes[0], pipes[1]
while True:
    # The nonce of the request that runs this statement is still in the pipe.
    os.write(replies, frame(value if "value" in vars() else True, os.read(requests, 16)))
    length, = struct.unpack(">I", os.read(requests, 4))
    operation = json.loads(os.read(requests, length))[0]
    value = {"run": True, "find": ["dict", "sort_numbers", ["object", 0]]}.get(operation)
"""
    + WRONG,
}
REACHING_OUT = {
    "a TCP connection": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n"
    "WORKED = True" + ANSWER,
    "a name on the network": "import socket\nWORKED = bool(socket.getaddrinfo('localhost', 80))\n"
    "socket.socket()" + ANSWER,
    "a file outside": "open('{outside}/new.txt', 'w').write('x')\nWORKED = True" + ANSWER,
    "the caller's file": "open('{outside}/secret.txt', 'w').write('x')\nWORKED = True" + ANSWER,
    "the interpreter": "import os\nopen(os.__file__, 'a').write('#')\nWORKED = True" + ANSWER,
    "a new top folder": "import os\nos.makedirs('/new')\nWORKED = True" + ANSWER,
    "a nested user namespace": LIBC + "WORKED = libc.unshare(0x10000000) == 0" + ANSWER,
    "a nested mount": LIBC
    + "WORKED = libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"
    + ANSWER,
    "the kernel's settings": LIBC + "libc.mount(b'proc', b'/tmp', b'proc', 0, None)\n"
    "open('/proc/sys/kernel/core_pattern', 'a')\nWORKED = True" + ANSWER,
    "root": "import os\nos.setuid(0)\nWORKED = True" + ANSWER,
    "a shell": "import subprocess\nWORKED = subprocess.run(['sh', '-c', 'true']).returncode == 0"
    + ANSWER,
    "tracing its parent": LIBC + "WORKED = libc.ptrace(16, 1, 0, 0) == 0" + ANSWER,
    "another kernel interface": LIBC + "WORKED = libc.syscall(425, 8, 0) >= 0" + ANSWER,
}

PROGRAMS = {
    "leaving early": LEAVING_EARLY,
    "equal objects": EQUAL_OBJECTS,
    "walking": WALKING,
    "forging": FORGING,
    "taking over": TAKING_OVER,
    "reading": READING,
    "killing": KILLING,
    "exhausting": EXHAUSTING,
    "reaching out": REACHING_OUT,
}
